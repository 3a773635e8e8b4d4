"""`bitlaw verify`: train random rows again and compare."""

import random
import tempfile
from pathlib import Path
from typing import Annotated

import typer

from replications.commands.train import (
    CorpusName,
    Device,
    ReportsFolder,
    Workers,
    expected,
    folders,
    plan_of,
    start,
    warn,
)


def verify(
    profile: Annotated[str, typer.Argument(help="a profile of replications/pool.yaml")] = "cpu",
    minutes: Annotated[float, typer.Option("--minutes", min=0.1, help="how long it may take")] = 15.0,
    seed: Annotated[
        int | None, typer.Option("--seed", help="of the choice of rows; else another one each time")
    ] = None,
    corpus: CorpusName = None,
    workers: Workers = 2,
    device: Device = "auto",
    reports: ReportsFolder = None,
) -> None:
    """Train random rows of runs.csv again: exact on the machine of the row, within three seed deviations elsewhere.

    Exit code 1 when a row does not come back.
    """
    from rich.console import Console
    from rich.table import Table

    from replications.design_compressed import read_runs as numbers_of
    from replications.design_compressed import training_noise
    from replications.verify import chosen, compared
    from shared.errors import BitlawError
    from shared.sweep.tables import measured_gflops, read_runs

    want = expected(profile, None, corpus)
    reports, _ = folders(want, reports, None)
    rows = {run_id: row for (run_id,), row in read_runs(reports).items()}
    seed = random.SystemRandom().randrange(10**6) if seed is None else seed
    speeds = {name: size.gflops for name, size in want.sizes.items()} | measured_gflops(reports)
    runs = chosen(want.runs, rows, speeds, 60 * minutes * workers, seed)
    print(f"{profile}: {len(runs)} of {len(rows)} rows again (--seed {seed})")
    with tempfile.TemporaryDirectory() as folder:
        build, fresh = Path(folder) / "build", Path(folder) / "reports"
        start(plan_of(want, runs, {}, device, build), fresh, workers)
        again = {run_id: row for (run_id,), row in read_runs(fresh).items()}
    table = numbers_of(reports)
    try:
        noise = {} if table is None else training_noise(table)
    except BitlawError as error:
        noise = {}
        warn(f"{error}; rows of another machine are compared exactly")
    found = compared(runs, rows, again, noise)
    shown = Table("run", "recorded", "again", "allowed", "")
    for verdict in found:
        how = "same machine" if verdict.exact else "other machine"
        shown.add_row(
            verdict.run.label, f"{verdict.recorded:.6g}", f"{verdict.again:.6g}",
            f"{verdict.allowed:.2g} ({how})", "holds" if verdict.holds else "DIFFERS",
        )  # fmt: skip
    Console().print(shown)
    raise typer.Exit(0 if all(verdict.holds for verdict in found) else 1)
