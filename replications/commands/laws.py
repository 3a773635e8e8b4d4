"""`bitlaw laws`, `bitlaw compare` and `bitlaw claims`: what laws there are, which predicts best, what papers claim."""

import sys
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

if TYPE_CHECKING:
    import pandas as pd
    from rich.console import Console

    from shared.laws.law import Law
    from shared.laws.noise import SeedNoise

Json = Annotated[bool, typer.Option("--json", help="print JSON")]
TableFile = Annotated[Path, typer.Argument(metavar="TABLE", help="CSV or Parquet, one row a run or measurement")]
LawNames = Annotated[
    list[str], typer.Option("--law", help="a law of `bitlaw laws`, or all whose columns the table has; repeatable")
]
Map = Annotated[
    list[str], typer.Option("--map", metavar="NAME=COLUMN", help="a law's input or target as a column, or 'C/(6*N)'")
]
Where = Annotated[str, typer.Option("--where", metavar="EXPR", help='rows to use, such as "N > 1e8 and bits == 4"')]
RecipeName = Annotated[str, typer.Option("--recipe", help="how to fit; default: huber for losses, weighted for deltas")]
Reference = Annotated[str, typer.Option("--reference", help="the unquantized group of a law with a constant a group")]
Boot = Annotated[int, typer.Option("--resamples", min=20, max=100_000, help="behind each interval")]
Seed = Annotated[int, typer.Option("--seed", min=0)]

ALL = "all"


def laws(json: Json = False) -> None:
    """List the laws: inputs, target, constants, source; and the recipes to fit them by."""
    from rich.table import Table

    from replications.laws import ENTRIES
    from shared.laws.law import UNITS
    from shared.laws.recipes import RECIPES

    if json:
        print_json(
            {
                "laws": {
                    name: {
                        "paper": entry.paper,
                        "target": entry.law.target,
                        "inputs": list(entry.law.inputs),
                        "units": entry.law.units,
                        "parameters": list(entry.law.parameters),
                        "source": entry.law.source,
                    }
                    for name, entry in ENTRIES.items()
                },
                "recipes": {name: {"about": recipe.about, "source": recipe.source} for name, recipe in RECIPES.items()},
            }
        )
        return
    table = Table("law", "predicts", "from", "constants", "source", box=None, padding=(0, 2, 0, 0))
    for name, entry in ENTRIES.items():
        law = entry.law
        table.add_row(name, law.target, " ".join(law.inputs), " ".join(law.parameters), law.source)
    console().print(table)
    print("inputs: " + "; ".join(f"{name} {unit}" for name, unit in UNITS.items()))
    for name, recipe in RECIPES.items():
        print(f"recipe {name}: {recipe.about}")


def compare(
    table: TableFile,
    law: LawNames,
    columns: Map = [],  # noqa: B006
    where: Where = "",
    recipe: RecipeName = "",
    reference: Reference = "",
    resamples: Boot = 200,
    seed: Seed = 0,
    json: Json = False,
) -> None:
    """Score laws on one table by what they predict unseen: sizes left out, and larger N or D from smaller."""
    from rich.table import Table

    from shared.errors import BitlawError
    from shared.laws.compare import LEFT_OUT, ROLLOUT
    from shared.laws.compare import compare as score
    from shared.laws.noise import NO_NOISE

    found = read(table, columns, where)
    chosen = choose(law, found, reference, table)
    if ALL in law and len({one.target for one, _ in chosen}) > 1:
        raise BitlawError(f"{table}: has laws of the loss and of delta; name those of one target with --law")
    shared_table = _one_table(chosen, found)
    if ALL in law:
        chosen = _rivals(chosen, shared_table, recipe, str(table))
    result = score(
        [one for one, _ in chosen], shared_table, recipe=recipe or None,
        noise=scatter(chosen[0][0], shared_table, recipe, str(table)) if chosen else NO_NOISE,
        n_boot=resamples, seed=seed, name=str(table),
    )  # fmt: skip
    if json:
        print_json(result.to_json())
        return
    splits = (LEFT_OUT, *ROLLOUT.values())
    shown = Table("law", "constants", "rms", "AICc", *splits, box=None, padding=(0, 2, 0, 0))
    for one in result.scores:
        errors = [
            f"{e.value:.2%} [{e.low:.2%}, {e.high:.2%}]" if (e := one.errors.get(split)) else "" for split in splits
        ]
        shown.add_row(one.law, str(one.parameters), f"{one.rms:.3g}", f"{one.aicc:.1f}", *errors)
    console().print(shown)
    print(result.statement)
    for note in result.notes:
        print(f"note: {note}")


def claims(
    paper: Annotated[str, typer.Argument(help="a folder of replications/; default: all")] = "",
    reports: Annotated[Path, typer.Option("--reports", help="folder of the results")] = Path("reports"),
    json: Json = False,
) -> None:
    """Show the papers' claims and their verdicts, as `bitlaw replicate claims` last judged them."""
    from rich.table import Table

    from replications.papers import GUIDE, PAPERS, find
    from shared.errors import BitlawError
    from shared.report.results import read_ledger

    # People who look for the guide's claims call them so; its folder is that of the comparison between papers.
    paper = GUIDE.name if paper == "guide" else paper
    names = [find(paper).name] if paper else [*PAPERS, GUIDE.name]
    files = {name: reports / name / "claims.json" for name in names}
    there = {name: read_ledger(path) for name, path in files.items() if path.exists()}
    if not there:
        raise BitlawError(f"{files[names[0]]}: no claims are judged yet; run `bitlaw replicate claims {names[0]}`")
    if json:
        print_json(there)
        return
    for name, judged in there.items():
        table = Table("id", "verdict", "evidence", "value", "claim", title=name, title_justify="left", box=None)
        table.columns[0].no_wrap = table.columns[1].no_wrap = True
        for claim in judged["claims"]:
            value = claim["value"]
            table.add_row(
                claim["id"],
                claim["verdict"],
                claim["evidence"],
                "" if value is None else f"{value:.3g}",
                claim["statement"],
            )
        console().print(table)
        print(f"of {judged['tested']} tested, {judged['expected_false_verdicts']:.2g} may be false by chance\n")


def read(table: Path, columns: list[str], where: str) -> "pd.DataFrame":
    """The user's table. Raises BitlawError for a --map without '='."""
    from shared.errors import BitlawError
    from shared.laws.user_table import read_user_table

    mapping = {}
    for one in columns:
        name, equals, source = one.partition("=")
        if not equals or not name or not source:
            raise BitlawError(f"--map {one}: write NAME=COLUMN, such as --map N=parameters")
        mapping[name.strip()] = source.strip()
    return read_user_table(table, mapping, where)


def choose(names: list[str], table: "pd.DataFrame", reference: str, what: Path) -> "list[tuple[Law, pd.DataFrame]]":
    """The named laws with the table as each needs it; `all` is every law whose columns the table has."""
    from replications.laws import ENTRIES, fits, for_table
    from shared.errors import BitlawError

    wanted = list(dict.fromkeys(names))
    if ALL in wanted:
        wanted = [name for name in ENTRIES if fits(name, table)]
        if not wanted:
            raise BitlawError(f"{what}: has the columns of no law; name them with --map (`bitlaw laws` lists inputs)")
    chosen = []
    for name in wanted:
        try:
            chosen.append(for_table(name, table, reference or None, str(what)))
        except BitlawError as error:
            if ALL not in names:
                raise
            typer.echo(f"{name}: left out ({error})", err=True)
    return chosen


def scatter(law: "Law", rows: "pd.DataFrame", recipe: str, what: str) -> "SeedNoise":
    """The seeds' noise in the user's rows, where the recipe weighs by it and `trunk_id` says which rows share one.

    A cell's rows are equal in every known input of a law, not in this law's alone: what bits or N change is no noise.
    Raises BitlawError for a table that cannot be fitted.
    """
    from replications.laws import ENTRIES
    from shared.laws.noise import NO_NOISE, seed_noise
    from shared.laws.recipes import default, find
    from shared.laws.tables import KNOWN_INPUTS, check, numbers

    chosen = find(recipe) if recipe else default(law)
    if not chosen.noise or "trunk_id" not in rows:
        return NO_NOISE
    check(law, rows, what, positive_target=chosen.misfit.log)
    known = dict.fromkeys([*KNOWN_INPUTS, *(name for entry in ENTRIES.values() for name in entry.law.inputs)])
    by = "format" if "format" in rows or "bits" not in law.inputs else "bits"
    return seed_noise(numbers(law, rows), [name for name in known if name in rows], target=law.target, by=by)


def _rivals(
    chosen: "list[tuple[Law, pd.DataFrame]]", table: "pd.DataFrame", recipe: str, what: str
) -> "list[tuple[Law, pd.DataFrame]]":
    """Of all laws those that the table can be fitted to, and that predict another N or D wherever any of them does."""
    from shared.errors import BitlawError
    from shared.laws.recipes import default, find
    from shared.laws.tables import check

    usual = {name for law, _ in chosen for name in ("N", "D") if name in law.inputs}
    kept = []
    for law, rows in chosen:
        lacking = ", ".join(sorted(usual - set(law.inputs)))
        if lacking:
            typer.echo(f"{law.name}: left out (it has no {lacking}, so it predicts no other one)", err=True)
            continue
        try:
            check(law, table, what, positive_target=(find(recipe) if recipe else default(law)).misfit.log)
        except BitlawError as error:
            typer.echo(f"{law.name}: left out ({error})", err=True)
            continue
        kept.append((law, rows))
    return kept


def _one_table(chosen: "list[tuple[Law, pd.DataFrame]]", table: "pd.DataFrame") -> "pd.DataFrame":
    """The table with the codes of grouped laws, which agree between laws of one column."""
    for law, coded in chosen:
        if law.grouped is not None:
            table = table.assign(**{law.grouped: coded[law.grouped]})
    return table


def console() -> "Console":
    """As wide as the terminal, or wide enough for every column where the output goes to a file."""
    from rich.console import Console

    return Console() if sys.stdout.isatty() else Console(width=200)


def print_json(value: Any) -> None:
    import json

    from shared.files import six_digits

    print(json.dumps(six_digits(value), indent=1))
