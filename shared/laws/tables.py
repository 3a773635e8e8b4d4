"""Tables of runs and measurements: read as text, checked cell by cell, then handed on as numbers.

Every complaint names the file, the data row (from 1; the line is one more, for the header) and the column.
"""

from collections.abc import Mapping
from itertools import combinations
from pathlib import Path
from typing import Any, Literal

import numpy as np
import pandas as pd

from shared.errors import BitlawError, nearest
from shared.laws.law import Columns, Law

# text: not empty; note: text or empty; number: finite; positive: finite and > 0; error: finite and >= 0; flag: True
# or False; maybe: a number, or whatever a failed run left (empty, NaN, infinite).
Kind = Literal["text", "note", "number", "positive", "error", "flag", "maybe"]

RUNS: dict[str, Kind] = {
    "run_id": "text",
    "trunk_id": "text",
    "size": "text",
    "corpus": "text",
    "n_blocks": "positive",
    "tokens": "positive",
    "cooled": "flag",
    "seed": "text",
    "loss": "maybe",
    "diverged": "flag",
    "base_run_id": "note",
    "seconds": "maybe",
    "numerics_version": "text",
}
MEASUREMENTS: dict[str, Kind] = {
    "run_id": "text",
    "method": "text",
    "format": "text",
    "bits": "positive",
    "group_size": "text",
    "activation_format": "note",
    "kv_format": "note",
    "calibration": "note",
    "loss": "maybe",
    "delta": "maybe",
    "delta_se": "maybe",
    "numerics_version": "text",
}
MEASUREMENT_KEY = ["run_id", "method", "format", "group_size", "activation_format", "kv_format", "calibration"]
TOGETHER = 1e-6  # share of the variance of ln D that ln N leaves, below which the two are one
# What `user_table.read_user_table` leaves in `attrs`: {a law's name: the user's column}, and which names it added.
COLUMNS, ADDED = "columns", "added"
# Inputs of laws, by the names that tables have for them.
KNOWN_INPUTS = ("N", "D", "bits", "format", "G", "group_size", "method")
FLAGS = {"True": True, "true": True, "1": True, "False": False, "false": False, "0": False}


def read_table(path: Path, kinds: Mapping[str, Kind]) -> pd.DataFrame:
    """A CSV file with its known columns checked and converted; other columns stay text. Adds `row`, from 1.

    Raises BitlawError: file unreadable or empty, column missing or named twice, a cell of the wrong kind.
    """
    table = read_csv(path, dtype=str, keep_default_na=False, skip_blank_lines=False, header=None)
    header = [str(name).strip() for name in table.iloc[0]]
    twice = sorted({name for name in header if header.count(name) > 1})
    if twice:
        raise BitlawError(f"{path}: column '{twice[0]}' stands twice in the header; keep one")
    table = table.iloc[1:].fillna("").reset_index(drop=True)
    table.columns = pd.Index(header)
    require(table, list(kinds), str(path))
    for column, kind in kinds.items():
        table[column] = _converted(table[column].str.strip(), kind, path)
    table["row"] = np.arange(1, len(table) + 1)
    return table


def read_csv(path: Path, **options: Any) -> pd.DataFrame:
    """`pandas.read_csv` of UTF-8. Raises BitlawError for a file that is missing or no CSV table."""
    try:
        return pd.read_csv(path, encoding="utf-8-sig", **options)
    except OSError as error:
        raise BitlawError(f"{path}: cannot be read ({error.strerror or error})") from error
    except (pd.errors.EmptyDataError, pd.errors.ParserError, ValueError, OverflowError) as error:
        raise BitlawError(f"{path}: is not a CSV table ({' '.join(str(error).split())})") from error


def require(table: pd.DataFrame, columns: list[str], name: str, own: list[str] | None = None) -> None:
    """Raises BitlawError when a column is absent, naming the nearest header, and how to name one of a user's `own`."""
    known = [str(column) for column in table.columns]
    for column in columns:
        if column not in known:
            hint = alike(column, known)
            advice = "" if own is None else f"; name it with --map {column}=COLUMN, one of {few(own)}"
            raise BitlawError(f"{name}: column '{column}' is missing{hint}{advice}")


def alike(word: str, known: list[str]) -> str:
    """`errors.nearest`, where a word that differs in its case only comes first."""
    same = [other for other in known if other.lower() == word.lower()]
    return f", did you mean '{same[0]}'?" if same else nearest(word, known)


def read_pool(runs: Path, measurements: Path) -> pd.DataFrame:
    """One row per checkpoint x quantization, of all corpora and methods: the rows of `measurements` with their run.

    Columns: run_id, trunk_id, size, corpus, N (block parameters), D (tokens), phase (cooled or trunk), seed, method,
    format, bits, group_size, activation_format, kv_format, calibration, loss, delta and delta_se (nats per token),
    base_run_id (empty for an unquantized run), diverged, seconds (of the run), numerics_version, row (of
    `measurements`). Raises BitlawError: what `read_table` raises; an unknown run; a quantization measured
    twice; a loss or delta that is not finite in a run that did not diverge.
    """
    runs_table = read_table(runs, RUNS)
    _once(runs_table, ["run_id"], str(runs))
    cells = read_table(measurements, MEASUREMENTS)
    _once(cells, MEASUREMENT_KEY, str(measurements))
    _finite(runs_table, ["loss"], ~runs_table["diverged"].astype(bool), str(runs))
    taken = runs_table[["run_id", *(c for c in RUNS if c not in MEASUREMENTS), "numerics_version"]]
    columns = ["row", *MEASUREMENTS]
    pool = cells[columns].merge(taken, on="run_id", how="left", suffixes=("", "_run"), indicator=True)
    unknown = pool[pool["_merge"] == "left_only"]
    if len(unknown):
        raise bad_cell(
            str(measurements), unknown.iloc[0], "run_id", f"run '{unknown.iloc[0]['run_id']}' is not in {runs}"
        )
    pool["diverged"] = pool["diverged"].astype(bool)
    sound = ~pool["diverged"]
    _finite(pool, ["loss", "delta", "delta_se"], sound, str(measurements))
    negative = pool[sound & (pool["delta_se"] < 0)]
    if len(negative):
        raise bad_cell(str(measurements), negative.iloc[0], "delta_se", "a standard error cannot be negative")
    differs = pool[pool["numerics_version"] != pool["numerics_version_run"]]
    if len(differs):
        here, there = differs.iloc[0]["numerics_version"], differs.iloc[0]["numerics_version_run"]
        raise bad_cell(
            str(measurements), differs.iloc[0], "numerics_version", f"{here} where its run in {runs} has {there}"
        )
    pool["phase"] = np.where(pool["cooled"].astype(bool), "cooled", "trunk")
    pool = pool.rename(columns={"n_blocks": "N", "tokens": "D"})
    return pool.drop(columns=["_merge", "cooled", "numerics_version_run"])


def one_version(table: pd.DataFrame, name: str) -> None:
    """Raises BitlawError when rows of different numerics would enter one fit."""
    versions = table["numerics_version"]
    if versions.nunique() > 1:
        other = table[versions != versions.iloc[0]].iloc[0]
        raise bad_cell(
            name,
            other,
            "numerics_version",
            f"{other['numerics_version']} where row {table.iloc[0]['row']} has {versions.iloc[0]}; "
            "rows of different numerics are never fitted together",
        )


def check(law: Law, table: pd.DataFrame, name: str, positive_target: bool = False) -> None:
    """Raises BitlawError unless `table` can be fitted by `law`: columns, finite values, positive inputs, no row
    twice, more than one value of every input and at least as many rows as parameters.

    Inputs of `law.at_least_zero` may be zero; the target must be above zero where its logarithm is fitted. What
    `user_table.read_user_table` notes of its columns' own names is named too."""
    used = [*law.inputs, law.target, *([f"{law.target}_se"] if f"{law.target}_se" in table.columns else [])]
    added = {*table.attrs.get(ADDED, ()), "row"}
    own = [str(column) for column in table.columns if column not in added]
    require(table, used[: len(law.inputs) + 1], name, own)
    table = table.reset_index(drop=True)
    if "row" not in table:
        table["row"] = np.arange(1, len(table) + 1)
    for column in used:
        # True and False count as numbers for pandas, and are none.
        if not pd.api.types.is_numeric_dtype(table[column]) or pd.api.types.is_bool_dtype(table[column]):
            text = table[column].astype(str).str.strip()
            table[column] = _converted(text, "maybe", name, table["row"], table.attrs.get(COLUMNS))
    _finite(table, used, pd.Series(True, index=table.index), name, "remove the row")
    for column in [*law.inputs, *([law.target] if positive_target else [])]:
        least = "at least zero" if column in law.at_least_zero else "above zero"
        low = table[(table[column] < 0) if column in law.at_least_zero else (table[column] <= 0)]
        if len(low):
            why = "" if column in law.inputs else ": its logarithm is fitted"
            raise bad_cell(name, low.iloc[0], column, f"{low.iloc[0][column]:g} must be {least}{why}")
    errors = f"{law.target}_se"
    if errors in used and (table[errors] < 0).any():
        raise bad_cell(name, table[table[errors] < 0].iloc[0], errors, "a standard error cannot be negative")
    _once(table, own, name)
    _one_trunk_one_model(table, name)
    reason = too_little(law, table)
    if reason:
        raise BitlawError(f"{name}: {reason}")


def numbers(law: Law, table: pd.DataFrame) -> pd.DataFrame:
    """A checked table with the law's columns as numbers, whatever they were read as."""
    used = [name for name in (*law.inputs, law.target, f"{law.target}_se") if name in table.columns]
    return table.assign(**{name: pd.to_numeric(table[name]).astype(float) for name in used})


def observations(law: Law, table: pd.DataFrame) -> list[str]:
    """What to know of a sound table that a fit does not stop at: inputs that other laws have and this one averages
    over, and runs that look like one run twice."""
    inputs, said = list(law.inputs), []
    cells = len(table.drop_duplicates(inputs))
    others = [column for column in KNOWN_INPUTS if column in table and column not in inputs]
    averaged = [column for column in others if len(table.drop_duplicates([*inputs, column])) > cells]
    if averaged:
        said.append(f"{law.name} has no {', '.join(averaged)}: rows that differ in them only are fitted as the same")
    key = [*inputs, *(column for column in (*others, "trunk_id") if column in table), law.target]
    again = table[table.duplicated(key, keep="first")]
    if len(again):
        row = again.iloc[0]
        same = table[(table[key] == row[key]).all(axis=1)]
        numbers_of = same["row"] if "row" in same else pd.Series(np.flatnonzero(table.index.isin(same.index)) + 1)
        first, second = int(numbers_of.iloc[0]), int(numbers_of.iloc[1])
        said.append(
            f"row {second} has the inputs and the {law.target} of row {first} to the last digit"
            f"{f' ({len(again)} such rows)' if len(again) > 1 else ''}; if they are one run, keep one"
        )
    return said


def few(words: list[str], most: int = 12) -> str:
    return ", ".join(words[:most]) + (", ..." if len(words) > most else "")


def collinear(columns: Columns) -> tuple[str, str, float] | None:
    """Which two inputs rise together in every row, if any, and the power p of second = constant * first^p."""
    logs = {name: np.log(column) for name, column in columns.items() if np.min(column) > 0 and np.ptp(column) > 0}
    for first, second in combinations(logs, 2):
        x, y = logs[first] - logs[first].mean(), logs[second] - logs[second].mean()
        power = float(x @ y / (x @ x))
        if np.sum((y - power * x) ** 2) < TOGETHER * np.sum(y**2):
            return first, second, power
    return None


def too_little(law: Law, table: pd.DataFrame) -> str | None:
    """Why sound rows cannot tell the law's parameters apart, or None when they may. Inputs of one value count unless
    the law has parameters to be held for them (bounds without room)."""
    free = int(np.sum(law.bounds[:, 1] > law.bounds[:, 0]))
    if len(table) < free:
        return f"{len(table)} rows are fewer than the {free} parameters of {law.name}; measure more"
    for column in law.inputs:
        if table[column].nunique() == 1 and free == len(law.parameters):
            return (
                f"column {_named(column, table.attrs.get(COLUMNS))} has one value only ({table[column].iloc[0]:g}), "
                f"so {law.name} cannot tell its exponent; add rows with another"
            )
    return None


def _converted(
    text: pd.Series,
    kind: Kind,
    path: Path | str,
    rows: pd.Series | None = None,
    names: Mapping[str, str] | None = None,
) -> pd.Series:
    rows = pd.Series(np.arange(1, len(text) + 1), index=text.index) if rows is None else rows

    def first(bad: pd.Series, problem: str) -> None:
        if bad.any():
            at = bad[bad].index[0]
            shown = f"'{text[at]}' " if text[at] else ""
            blank = problem if text[at] else "the cell is empty"
            place = f"row {rows[at]} (line {rows[at] + 1}), column {_named(str(text.name), names)}"
            raise BitlawError(f"{path}: {place}: {shown}{blank}")

    if kind in ("text", "note"):
        first((text == "") & (kind == "text"), "is empty")
        return text
    if kind == "flag":
        first(~text.isin(list(FLAGS)), "is neither True nor False")
        return text.map(FLAGS).astype(bool)
    numbers = pd.to_numeric(text, errors="coerce").astype(float)
    first(numbers.isna() & ~text.str.lower().isin(["", "nan"]), "is not a number")
    if kind != "maybe":
        first(~np.isfinite(numbers), "is not finite")
    if kind == "positive":
        first(numbers <= 0, "must be above zero")
    if kind == "error":
        first(numbers < 0, "cannot be negative")
    return numbers


def _one_trunk_one_model(table: pd.DataFrame, name: str) -> None:
    """`trunk_id` names one trained model: resamples draw models within each N."""
    if "trunk_id" not in table:
        return
    trunk = table["trunk_id"]
    empty = trunk.isna() | (False if pd.api.types.is_numeric_dtype(trunk) else trunk.astype(str).str.strip() == "")
    if empty.any():
        raise bad_cell(name, table[empty].iloc[0], "trunk_id", "the cell is empty; name the trained model of every row")
    if "N" in table:
        of_trunk = table.groupby("trunk_id")
        other = table[table["N"] != of_trunk["N"].transform("first")]
        if len(other):
            row = other.iloc[0]
            first = int(of_trunk["row"].transform("first")[row.name])
            raise bad_cell(
                name,
                row,
                "trunk_id",
                f"'{other['trunk_id'].iloc[0]}' has another N in row {first}; name each trained model apart",
            )


def _finite(
    table: pd.DataFrame,
    columns: list[str],
    where: pd.Series,
    name: str,
    advice: str = "remove the row or mark its run as diverged",
) -> None:
    for column in columns:
        bad = table[where & ~np.isfinite(table[column].astype(float))]
        if len(bad):
            value = float(bad.iloc[0][column])
            raise bad_cell(name, bad.iloc[0], column, f"{value} is not finite; {advice}")


def _once(table: pd.DataFrame, key: list[str], name: str) -> None:
    again = table[table.duplicated(key, keep="first")]
    if len(again):
        row = again.iloc[0]
        same = (table[key] == row[key]).all(axis=1)
        first = int(table[same].iloc[0]["row"])
        raise bad_cell(
            name, row, key[0] if len(key) == 1 else ", ".join(key), f"the row repeats row {first}; keep one of them"
        )


def bad_cell(name: str, row: "pd.Series[Any]", column: str, problem: str) -> BitlawError:
    """What is wrong with a cell of the file `name`: its row (from 1, in the column `row`) and its column."""
    number = int(row["row"])  # a row of numbers only comes as floats
    named = _named(column, row.attrs.get(COLUMNS))
    return BitlawError(f"{name}: row {number} (line {number + 1}), column {named}: {problem}")


def _named(column: str, names: Mapping[str, str] | None) -> str:
    """'tokens' (D) where the user's column is not called as the law's input."""
    own = (names or {}).get(column, column)
    return f"'{column}'" if own == column else f"'{own}' ({column})"
