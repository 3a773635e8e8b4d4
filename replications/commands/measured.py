"""What the commands on measured rows share: tables that resume, a folder's settings, the clean law, progress."""

import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from replications.precision_predictor.effective import CleanLaw

# Columns that are never numbers; a run id may look like one.
TEXTS = frozenset((
    "model", "text", "optimizer", "method", "group_size", "arm", "rounding", "held", "precision", "kernel", "runtime",
))  # fmt: skip
BASE_LAWS = "pool: ours of reports/; besiroglu: Chinchilla's refit; a FIT.json of `bitlaw fit`; none"


def clean_law(name: str) -> "CleanLaw | None":
    """The law that penalties are turned into parameters by. Without a name that of our runs, where they are.

    Raises BitlawError for a file that is no fit, or a law that cannot say at which N a loss is reached.
    """
    import numpy as np

    from replications.precision_predictor.effective import CleanLaw, clean_of_pool
    from shared.errors import BitlawError
    from shared.laws.chinchilla import LAW

    tables = Path("reports/runs.csv"), Path("reports/measurements.csv")
    if name == "none" or (not name and not all(path.exists() for path in tables)):
        return None
    if name in ("", "pool"):
        return clean_of_pool(pool_rows(Path("reports")))
    if name == "besiroglu":
        from replications.papers import GUIDE

        values = GUIDE.published().values()
        theta = LAW.internal({key: values[f"besiroglu_{key}"] for key in LAW.parameters})
        # Its published intervals are of single constants, which are strongly tied: none is made of them here.
        return CleanLaw(LAW, np.stack([theta, theta]), "Chinchilla's law by Besiroglu et al. 2024, without interval")
    from replications.laws import saved
    from replications.penalty import check_base_law

    try:
        law, result = saved(Path(name))
    except BitlawError as error:
        raise BitlawError(f"--base-law {error}; or use {BASE_LAWS}") from error
    check_base_law(law, 1.0)
    return CleanLaw.of(law, result, f"{law.name} of {name}")


def pool_rows(reports: Path) -> Any:
    """The pool's cells as the papers' fits select them (shared/laws/study.py): all phases and groups, with `use`.

    Raises BitlawError when a table is missing or damaged.
    """
    from replications.papers import HELD_OUT, find
    from shared.laws.settings import HeldOut, Selection, read_settings
    from shared.laws.study import select
    from shared.laws.tables import read_pool

    selection = read_settings(find("kumar_precision").file("experiment.yaml"), Selection, "fit")
    pool = read_pool(reports / "runs.csv", reports / "measurements.csv")
    return select(pool, selection, read_settings(HELD_OUT, HeldOut))


def read_rows(path: Path, columns: tuple[str, ...], key: tuple[str, ...]) -> list[dict[str, Any]]:
    """Rows in the order of their keys, numbers as numbers; none while there is no file."""
    from shared.sweep.tables import read_table

    rows = [
        {name: text if name in TEXTS else _number(path, name, text) for name, text in row.items()}
        for row in read_table(path, columns, key).values()
    ]
    return sorted(rows, key=lambda row: [(isinstance(row[name], str), row[name]) for name in key])


def _number(path: Path, column: str, text: str) -> float | int | None:
    from shared.errors import BitlawError

    try:
        return None if text == "" else int(text) if text.lstrip("-").isdigit() else float(text)
    except ValueError as error:
        raise BitlawError(f"{path}: column '{column}' holds {text!r}, which is no number: remove the row") from error


def write_rows(path: Path, columns: tuple[str, ...], key: tuple[str, ...], rows: Sequence[Mapping[str, Any]]) -> None:
    """Add rows to a table, or replace those of the same key; six significant digits, sorted."""
    from shared.sweep.tables import cell_text, read_table, write_table

    known = read_table(path, columns, key)
    for row in rows:
        texts = {column: cell_text(row.get(column)) for column in columns}
        known[tuple(texts[name] for name in key)] = texts
    write_table(path, columns, known)


def check_settings(folder: Path, settings: dict[str, Any]) -> None:
    """Keep the settings of a folder's results. Raises BitlawError when it holds those of others: they never mix."""
    from shared.files import write_json
    from shared.ptq.cells import Results

    Results(folder).check(settings)
    write_json(folder / "settings.json", settings)


def finish(
    out: Path,
    rows: list[dict[str, Any]],
    summarise: Callable[[list[dict[str, Any]]], dict[str, Any]],
    lines: Callable[[dict[str, Any]], list[str]],
    draw: Callable[[dict[str, Any]], Any],
) -> None:
    """summary.json, its figures and what the terminal shows."""
    from shared.files import read_json, write_json
    from shared.report.figures import style
    from shared.report.figures.gallery import write_gallery

    summary = summarise(rows)
    write_json(out / "summary.json", summary)
    with style.theme():
        write_gallery(out, draw(read_json(out / "summary.json")))
    print(*lines(summary), f"{out}: summary.json and figures", sep="\n")


@contextmanager
def bar(total: int, first: str = "starting") -> Iterator[Callable[[str], None]]:
    """A bar on a terminal, a line for each new description elsewhere."""
    from rich.console import Console
    from rich.progress import BarColumn, Progress, TextColumn, TimeElapsedColumn, TimeRemainingColumn

    console = Console(stderr=True)
    columns = (TextColumn("{task.description}"), BarColumn(), TimeElapsedColumn(), TimeRemainingColumn())
    last = ""
    with Progress(*columns, console=console, disable=not console.is_terminal) as bars:
        task = bars.add_task(first, total=max(total, 1))

        def tell(what: str) -> None:
            nonlocal last
            if what != last and not console.is_terminal:
                print(what, file=sys.stderr)
            last = what
            bars.update(task, description=what, advance=1)

        yield tell
