"""Whether a claim's region is older in git than the first row that decides it.

A region stated after its rows is a description, not a prediction. `precedence.yaml` says which rows decide which claim,
and names, with the reason, each claim whose region was stated or changed after them.
"""

import ast
import csv
import io
import re
import subprocess
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

from pydantic import Field

from shared.errors import BitlawError
from shared.laws.settings import Strict, read_settings

SETTINGS = Path("replications/precedence.yaml")
RUNS = Path("reports/runs.csv")
SOURCES = "replications/*/claims.py"
ID = re.compile(r"[A-Z]+\d+[a-z]?")  # K1a, O8, CB4b


class Rows(Strict):
    """The rows of one table that decide some claims. `key`: columns that tell a row from others, in every version of
    the table; `where`: a pandas query on the present table, all rows when empty; `of`: a query that its runs must meet
    in reports/runs.csv."""

    table: Path
    key: list[str] = Field(min_length=1)
    where: str = ""
    of: str = ""
    claims: list[str] = Field(min_length=1)


class Precedence(Strict):
    """precedence.yaml. `after`: id of a claim -> why its region is younger than its rows."""

    rows: list[Rows]
    after: dict[str, str] = Field(default_factory=dict)


@dataclass(frozen=True)
class Order:
    """`stated`, `measured`: commits (abbreviated) at which the region got its present bounds and at which the first
    deciding row came; `measured` is None while there is no row."""

    claim: str
    stated: str
    measured: str | None
    before: bool
    excuse: str | None

    @property
    def right(self) -> bool:
        """Stated first, or said to be later; an excuse that is not needed is wrong too."""
        return self.before == (self.excuse is None)


def orders(root: Path) -> list[Order]:
    """The order of each claim that precedence.yaml lists, by id.

    Raises BitlawError when git holds no whole history here, or a listed claim is not in any claims.py.
    """
    settings = read_settings(root / SETTINGS, Precedence)
    commits = {commit: index for index, commit in enumerate(history(root))}
    stated = _stated(root, commits)
    found: dict[str, tuple[int, str] | None] = {}
    for rows in settings.rows:
        first = _first_row(root, rows, commits)
        for claim in rows.claims:
            if "/" in claim:  # a file, such as heldout.yaml: its last change counts
                stated[claim] = _touching(root, claim, commits)[-1]
            if claim not in stated:
                raise BitlawError(f"{SETTINGS}: no claims.py in git states '{claim}'")
            known = found.get(claim)
            found[claim] = min(known, first) if known and first else known or first
    unknown = sorted(settings.after.keys() - found.keys())
    if unknown:
        raise BitlawError(f"{SETTINGS}: 'after' names {', '.join(unknown)}, for which it lists no rows")
    return [
        Order(
            claim,
            stated[claim][:7],
            first[1][:7] if first else None,
            first is None or commits[stated[claim]] < first[0],
            settings.after.get(claim),
        )
        for claim, first in sorted(found.items())
    ]


def history(root: Path) -> list[str]:
    """All commits of HEAD, parents first. Raises BitlawError where there is no git or only a part of its history."""
    if _git(root, "rev-parse", "--is-shallow-repository").strip() != "false":
        raise BitlawError(f"{root}: git holds a part of the history only; fetch all of it (git fetch --unshallow)")
    commits = _git(root, "rev-list", "--reverse", "--topo-order", "HEAD").split()
    if len(commits) == 1:
        raise BitlawError(f"{root}: git holds one commit, in which nothing is older than anything else")
    return commits


def regions(source: str) -> dict[str, tuple[str, ...]]:
    """Claim id -> its bounds as written, of every call in a claims.py whose first argument, or `id`, is one.

    Only the bounds, the last two arguments of the call's Region or of the call itself: wording may be mended at any
    time, what decides may not. A bound that is a name counts by the name.
    """
    found = {}
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Call) and (claim := _id(node)):
            given = [*node.args, *(keyword.value for keyword in node.keywords)]
            within = next(
                (one.args for one in given if isinstance(one, ast.Call) and _name(one) == "Region"), node.args
            )
            found[claim] = tuple(ast.unparse(bound) for bound in within[-2:])
    return found


def _id(node: ast.Call) -> str | None:
    given = [keyword.value for keyword in node.keywords if keyword.arg == "id"] + node.args[:1]
    first = given[0].value if given and isinstance(given[0], ast.Constant) else None
    return first if isinstance(first, str) and ID.fullmatch(first) else None


def _name(node: ast.Call) -> str:
    return node.func.id if isinstance(node.func, ast.Name) else ""


def _stated(root: Path, commits: dict[str, int]) -> dict[str, str]:
    """Claim id -> the commit that gave its region the bounds that it has now."""
    paths = _git(root, "ls-files", SOURCES).split()
    found: dict[str, str] = {}
    for path in paths:
        now: dict[str, tuple[str, ...]] = {}
        for commit in _touching(root, path, commits):
            then = regions(_git(root, "show", f"{commit}:{path}"))
            found |= {id: commit for id, bounds in then.items() if now.get(id) != bounds}
            now = then
    return found


def _first_row(root: Path, rows: Rows, commits: dict[str, int]) -> tuple[int, str] | None:
    """Index and name of the first commit whose table holds a row that decides."""
    wanted = _deciding(root, rows)
    if wanted:
        for commit in _touching(root, str(rows.table), commits):
            then = csv.DictReader(io.StringIO(_git(root, "show", f"{commit}:{rows.table}")))
            if any(_key(row, rows.key) in wanted for row in then):
                return commits[commit], commit
    return None


def _deciding(root: Path, rows: Rows) -> set[tuple[str, ...]]:
    if not (root / rows.table).exists():
        return set()
    chosen = _read(root / rows.table, rows.where)
    if rows.of:
        runs = {row["run_id"] for row in _read(root / RUNS, rows.of)}
        chosen = [row for row in chosen if row["run_id"] in runs]
    return {_key(row, rows.key) for row in chosen}


def _read(path: Path, where: str) -> list[dict[str, str]]:
    import pandas as pd

    table = pd.read_csv(path, dtype=str, keep_default_na=False)
    try:
        chosen = table.query(where) if where else table
    except (ValueError, TypeError, AttributeError, NameError) as error:
        raise BitlawError(f"{SETTINGS}: '{where}' cannot be asked of {path}: {error}") from error
    return [{str(name): value for name, value in row.items()} for row in chosen.to_dict("records")]


def _key(row: dict[str, str], names: Iterable[str]) -> tuple[str, ...]:
    return tuple(row[name] for name in names)


def _touching(root: Path, path: str, commits: dict[str, int]) -> list[str]:
    """The commits that changed a file that they still hold, oldest first."""
    found = _git(root, "log", "--diff-filter=AM", "--format=%H", "--", path).split()
    return sorted(found, key=commits.__getitem__)


def _git(root: Path, *arguments: str) -> str:
    try:
        done = subprocess.run(["git", "-C", str(root), *arguments], capture_output=True, text=True, check=True)
    except (OSError, subprocess.CalledProcessError) as error:
        said = getattr(error, "stderr", "") or str(error)
        raise BitlawError(f"{root}: git {arguments[0]} failed: {said.strip().splitlines()[-1]}") from error
    return done.stdout
