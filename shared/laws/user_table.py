"""Anybody's runs: a CSV or Parquet table, its columns under the names that laws use, and the rows that are wanted."""

import re
from collections.abc import Mapping
from pathlib import Path

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from shared.errors import BitlawError, nearest
from shared.laws.tables import ADDED, COLUMNS, alike, bad_cell, few, read_csv

# The unquantized group of a law with one constant for each group, where nobody says which it is.
REFERENCES = ("bf16", "fp16", "fp32", "16", "none", "unquantized", "baseline", "bf16/bf16")
# An equals sign by itself, and what may hold one in an expression: texts and names of columns.
ASSIGNS, QUOTED = re.compile(r"(?<![=<>!])=(?!=)"), re.compile(r"'[^']*'|\"[^\"]*\"|`[^`]*`")


def read_user_table(path: Path, columns: Mapping[str, str] | None = None, where: str = "") -> pd.DataFrame:
    """The rows of `path` for which `where` holds, with every column that holds only numbers as numbers, plus `row`
    (from 1).

    `columns` maps a law's name to a column of the table, or to an expression of columns such as
    ``C / (6 * N)``, with names that are no words in backticks; the column keeps its old name too. `where` is an
    expression of columns (old or new names), as in ``N > 1e8 and method == 'rtn'``.

    Raises BitlawError: unreadable file, column twice in the header, unknown column, expression without a sense, no row
    left.
    """
    table = _parquet(path) if path.suffix.lower() in (".parquet", ".pq") else _csv(path)
    table["row"] = np.arange(1, len(table) + 1)
    own = set(table.columns)
    for name, source in (columns or {}).items():
        table[name] = _column(table, name, source, path)
    # For the words of `tables.check`; pandas hands them on to selections and copies.
    table.attrs = {COLUMNS: dict(columns or {}), ADDED: sorted(set(columns or {}) - own)}
    if where:
        if ASSIGNS.search(QUOTED.sub("''", where)):
            raise BitlawError(f"{path}: --where '{where}': = gives a value; write == to compare")
        kept = _evaluate(table, where, f"{path}: --where '{where}'")
        if not pd.api.types.is_bool_dtype(kept):
            raise BitlawError(f"{path}: --where '{where}' is neither true nor false for a row; compare columns in it")
        table = table[kept]
        if table.empty:
            raise BitlawError(f"{path}: no row satisfies --where '{where}'; loosen it")
    return table.reset_index(drop=True)


def coded(table: pd.DataFrame, column: str, reference: str | None, name: str) -> tuple[pd.DataFrame, tuple[str, ...]]:
    """`table` with the text of `column` replaced by codes 0, 1, ..., and the groups in the order of their codes; the
    unquantized group `reference` comes first.

    Raises BitlawError: no such column, no such group, or no group that is known to be unquantized.
    """
    if column not in table:
        own = [str(c) for c in table.columns if c not in {*table.attrs.get(ADDED, ()), "row"}]
        raise BitlawError(
            f"{name}: column '{column}' is missing{alike(column, own)}; name it with --map {column}=COLUMN, one of "
            f"{few(own)}"
        )
    empty = table[table[column].isna() | (table[column].astype(str).str.strip() == "")]
    if len(empty):
        raise bad_cell(name, empty.iloc[0], column, "the cell is empty; name the group of every row")
    names = table[column].map(lambda value: f"{value:g}" if isinstance(value, float) else str(value))
    known = sorted(set(names))
    if reference is None:
        reference = next((group for group in known if group.lower() in REFERENCES), None)
        if reference is None:
            raise BitlawError(
                f"{name}: which group of '{column}' is unquantized? say --reference, one of {few(known, 6)}"
            )
    if reference not in known:
        raise BitlawError(f"{name}: column '{column}' has no group '{reference}'{nearest(reference, known)}")
    groups = (reference, *(group for group in known if group != reference))
    return table.assign(**{column: names.map(groups.index).astype(float)}), groups


def _csv(path: Path) -> pd.DataFrame:
    table = read_csv(path, low_memory=False, header=None, nrows=1, dtype=str)
    header = [str(name).strip() for name in table.iloc[0]]
    twice = sorted({name for name in header if header.count(name) > 1})
    if twice:
        raise BitlawError(f"{path}: column '{twice[0]}' stands twice in the header; keep one")
    for sign, what in ((";", "semicolons"), ("\t", "tabs")):
        if len(header) == 1 and sign in header[0]:
            raise BitlawError(f"{path}: is separated by {what}; save it with commas")
    table = read_csv(path, low_memory=False, skip_blank_lines=False, keep_default_na=False)
    if len(header) != len(table.columns):
        raise BitlawError(f"{path}: its rows have more cells than its header; name every column")
    table.columns = pd.Index(header)
    blank = _blank(table)
    if blank.any():
        last = len(table) - int(np.argmin(blank[::-1])) if not blank.all() else 0
        if blank[:last].any():
            row = int(np.argmax(blank)) + 1
            raise BitlawError(f"{path}: row {row} (line {row + 1}) is empty; remove it")
        table = table.iloc[:last].copy()
    if table.empty:
        raise BitlawError(f"{path}: has a header and no row; add runs")
    for column in table.columns:
        if not pd.api.types.is_numeric_dtype(table[column]) and not pd.api.types.is_bool_dtype(table[column]):
            text = table[column].astype(str).str.strip()
            numbers = pd.to_numeric(text, errors="coerce")
            # An empty cell in a column of numbers is missing; a word makes it a column of words, which `check` names.
            table[column] = numbers if (numbers.notna() | (text == "")).all() and numbers.notna().any() else text
    return table


def _blank(table: pd.DataFrame) -> NDArray[np.bool_]:
    """(rows,) whether every cell of a row is empty."""
    blank = np.ones(len(table), dtype=bool)
    for column in table.columns:
        if pd.api.types.is_numeric_dtype(table[column]) or pd.api.types.is_bool_dtype(table[column]):
            return np.zeros(len(table), dtype=bool)
        blank &= (table[column].isna() | (table[column].astype(str).str.strip() == "")).to_numpy()
    return blank


def _parquet(path: Path) -> pd.DataFrame:
    try:
        table = pd.read_parquet(path)
    except OSError as error:
        raise BitlawError(f"{path}: cannot be read ({error.strerror or error})") from error
    except Exception as error:  # pyarrow has many exceptions for a file that is no Parquet
        raise BitlawError(f"{path}: is not a Parquet table ({' '.join(str(error).split())[:120]})") from error
    # pandas writes an index that has a name as columns, and reads it as an index again.
    named = [level for level in table.index.names if level is not None and level not in table.columns]
    return table.reset_index(named) if named else table


def _column(table: pd.DataFrame, name: str, source: str, path: Path) -> "pd.Series[float]":
    if source in table.columns:
        return table[source]
    own = [str(column) for column in table.columns if column != "row"]
    if not any(sign in source for sign in "+-*/()`"):
        raise BitlawError(
            f"{path}: column '{source}' of --map {name}={source} is missing"
            f"{alike(source, own) or f': its columns are {few(own)}'}"
        )
    return _evaluate(table, source, f"{path}: --map {name}='{source}'")


def _evaluate(table: pd.DataFrame, expression: str, what: str) -> "pd.Series[float]":
    try:
        found = table.eval(expression, engine="python")
    except pd.errors.UndefinedVariableError as error:
        word = str(error).split("'")[1]
        hint = alike(word, [str(column) for column in table.columns])
        raise BitlawError(f"{what}: there is no column '{word}'{hint}") from error
    except Exception as error:  # whatever an expression of the user can raise
        raise BitlawError(f"{what}: makes no sense ({' '.join(str(error).split())[:120]})") from error
    if not isinstance(found, pd.Series):
        raise BitlawError(f"{what}: is one value, not one for each row; name columns in it")
    return found
