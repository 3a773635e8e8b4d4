"""`bitlaw statistics`: what the checkpoints at hand are like inside, for claims about mechanisms."""

from pathlib import Path
from typing import TYPE_CHECKING, Any

from replications.commands.train import BuildFolder, DryRun, PaperName, ProfileName, ReportsFolder

if TYPE_CHECKING:
    from replications.mechanism import Job

FILE = "statistics.csv"


def statistics(
    profile: ProfileName,
    paper: PaperName = None,
    reports: ReportsFolder = None,
    build: BuildFolder = None,
    dry_run: DryRun = False,
) -> None:
    """Copying from the context, kurtosis of what products read, change of weights to the next horizon, and delta on a
    second text.

    Of the checkpoints at hand that reports/statistics.csv lacks; Ctrl-C loses one checkpoint at most.
    """
    from rich.progress import track

    from replications.commands.measured import write_rows
    from replications.commands.train import expected, folders, warn
    from replications.mechanism import COLUMNS, KEY, jobs, measure
    from shared.sweep.ledger import Ledger
    from shared.sweep.tables import locked, read_table

    want = expected(profile, paper, None)
    reports, build = folders(want, reports, build)
    ledger = Ledger(build)
    have = read_table(reports / FILE, COLUMNS, KEY)
    todo: list[Job] = jobs(want, ledger, {key[:2] for key in have}, warn)
    print(f"{profile}: {len(todo)} checkpoints to look into, about {2 * len(todo)} s")
    if dry_run:
        return
    for job in track(todo, description="statistics", disable=not todo):
        rows: list[dict[str, Any]] = measure(job, ledger, Path())
        with locked(reports):
            write_rows(reports / FILE, COLUMNS, KEY, rows)
    if todo:
        print(f"{profile}: table {reports / FILE}")
