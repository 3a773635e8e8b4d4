"""Every law of the papers by name, ready to be fitted to a table."""

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import pandas as pd

from replications.capybara_fp import law as capybara_fp
from replications.compression_laws import law as compression_laws
from replications.kumar_precision import law as kumar_precision
from replications.precision_predictor import law as precision_predictor
from replications.qat_scaling import law as qat_scaling
from replications.undertrained_qid import law as undertrained_qid
from replications.unified import law as unified
from shared.errors import BitlawError, nearest
from shared.files import read_json
from shared.laws import chinchilla
from shared.laws.law import Law
from shared.laws.result import Fit
from shared.laws.user_table import coded

# Groups that show the form of a family whose constants depend on the table.
EXAMPLE = {"frantar": ("bf16", "<group>"), "quartet": ("bf16/bf16", "<forward>/<backward>")}
PAPERS = (
    ("kumar_precision", kumar_precision.LAWS),
    ("undertrained_qid", undertrained_qid.LAWS),
    ("qat_scaling", qat_scaling.LAWS),
    ("capybara_fp", capybara_fp.LAWS),
    ("precision_predictor", precision_predictor.LAWS),
    ("unified", unified.LAWS),
)


@dataclass(frozen=True)
class Entry:
    """A law of a paper. `family` makes it for a table's groups; `law` then is an example of its form."""

    paper: str
    law: Law
    family: Callable[[tuple[str, ...]], Law] | None = None


ENTRIES: dict[str, Entry] = {
    "chinchilla": Entry("shared", chinchilla.LAW),
    **{law.name: Entry(paper, law) for paper, laws in PAPERS for law in laws},
    **{
        name: Entry("compression_laws", family(EXAMPLE[name]), family)
        for name, family in compression_laws.FAMILIES.items()
    },
}


def find(name: str) -> Entry:
    """Raises BitlawError for an unknown law."""
    if name not in ENTRIES:
        raise BitlawError(f"law '{name}' is unknown{nearest(name, list(ENTRIES)) or ': `bitlaw laws` lists them'}")
    return ENTRIES[name]


def for_table(
    name: str, table: pd.DataFrame, reference: str | None = None, what: str = "table"
) -> tuple[Law, pd.DataFrame]:
    """The law and the table that it can be fitted to: text of a grouped column becomes codes (user_table.coded).

    Raises BitlawError for an unknown law and for groups that do not make one.
    """
    entry = find(name)
    if entry.family is None or entry.law.grouped is None:
        return entry.law, table
    table, groups = coded(table, entry.law.grouped, reference, what)
    try:
        return entry.family(groups), table
    except BitlawError as error:
        raise BitlawError(f"{what}: {error}") from error


def restore(name: str, groups: tuple[str, ...]) -> Law:
    """The law of a saved fit."""
    entry = find(name)
    return entry.law if entry.family is None else entry.family(groups)


def saved(path: Path, part: str = "") -> tuple[Law, Fit]:
    """A fit that `bitlaw fit --out` wrote, with its law, or one `part` of a fits.json. Raises BitlawError, naming the
    file, for anything else, and for a part that it has not."""
    values = read_json(path)
    parts = values.get("fits") if isinstance(values, dict) else None
    if isinstance(parts, dict):
        if part not in parts:
            hint = nearest(part, list(parts)) if part else ""
            raise BitlawError(f"{path}: has no part '{part}'{hint or ': name one with --part, of ' + ', '.join(parts)}")
        values = parts[part]
    elif part:
        raise BitlawError(f"{path}: holds one fit, without parts; leave --part away")
    try:
        result = Fit.from_json(values)
        law = restore(result.law, result.groups)
        result.check(law)
    except BitlawError as error:
        raise BitlawError(f"{path}: {error}") from error
    return law, result


def fits(name: str, table: pd.DataFrame) -> bool:
    """Whether the table has the columns of the law."""
    law = find(name).law
    return {*law.inputs, law.target} <= {str(column) for column in table.columns}
