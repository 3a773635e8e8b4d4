"""Every law of the papers by name, ready to be fitted to a table."""

from collections.abc import Callable
from dataclasses import dataclass

import pandas as pd

from replications.capybara_fp import law as capybara_fp
from replications.compression_laws import law as compression_laws
from replications.kumar_precision import law as kumar_precision
from replications.precision_predictor import law as precision_predictor
from replications.qat_scaling import law as qat_scaling
from replications.undertrained_qid import law as undertrained_qid
from shared.errors import BitlawError, nearest
from shared.laws import chinchilla
from shared.laws.law import Law
from shared.laws.user_table import coded

# Groups that show the form of a family whose constants depend on the table.
EXAMPLE = {"frantar": ("bf16", "<group>"), "quartet": ("bf16/bf16", "<forward>/<backward>")}
PAPERS = (
    ("kumar_precision", kumar_precision.LAWS),
    ("undertrained_qid", undertrained_qid.LAWS),
    ("qat_scaling", qat_scaling.LAWS),
    ("capybara_fp", capybara_fp.LAWS),
    ("precision_predictor", precision_predictor.LAWS),
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
    return entry.family(groups), table


def restore(name: str, groups: tuple[str, ...]) -> Law:
    """The law of a saved fit."""
    entry = find(name)
    return entry.law if entry.family is None else entry.family(groups)


def fits(name: str, table: pd.DataFrame) -> bool:
    """Whether the table has the columns of the law."""
    law = find(name).law
    return {*law.inputs, law.target} <= {str(column) for column in table.columns}
