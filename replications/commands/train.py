"""`bitlaw train`, `bitlaw measure` and `bitlaw status`: the pool of runs, from the profile to the two tables."""

import sys
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

if TYPE_CHECKING:
    from collections.abc import Mapping

    from replications.pool import Expected
    from shared.sweep.spec import Run
    from shared.sweep.worker import Plan

ProfileName = Annotated[str, typer.Argument(help="micro, smoke, learning_rate, cpu or gpu (replications/pool.yaml)")]
PaperName = Annotated[str | None, typer.Option("--paper", help="only what this paper's experiment.yaml needs")]
CorpusName = Annotated[str | None, typer.Option("--corpus", help="another corpus than the profile's")]
ReportsFolder = Annotated[Path | None, typer.Option("--reports", help="folder of the tables; else the profile's")]
BuildFolder = Annotated[Path | None, typer.Option("--build", help="folder of checkpoints; else the profile's")]
Workers = Annotated[
    int, typer.Option("--workers", min=1, max=256, help="local processes (Ray counts the machines' CPUs itself)")
]
Processes = Annotated[
    int, typer.Option("--processes", min=1, max=64, help="processes that share each trunk (torchrun)")
]
Device = Annotated[str, typer.Option("--device", help="auto, cpu or cuda")]
Checkpoints = Annotated[
    Path | None,
    typer.Option(
        "--checkpoints", help="only the checkpoints kept in this folder; losses by sequence go into reports, too"
    ),
]
DryRun = Annotated[bool, typer.Option("--dry-run", help="print what it would cost, and stop")]
Executor = Annotated[str, typer.Option("--executor", help="local, or ray: a task each trunk (docs/cluster.md)")]
Address = Annotated[str, typer.Option("--address", help="of the Ray cluster: auto, or HOST:PORT")]
Repeats = Annotated[bool, typer.Option("--repeats", help="allow horizons beyond the corpus: its text is seen again")]
Rebuild = Annotated[bool, typer.Option("--rebuild", help="also train finished runs whose checkpoint is not here")]


def warn(sentence: str) -> None:
    print(f"bitlaw: warning: {sentence}", file=sys.stderr)


def train(
    profile: ProfileName,
    paper: PaperName = None,
    corpus: CorpusName = None,
    workers: Workers = 2,
    processes: Processes = 1,
    executor: Executor = "local",
    address: Address = "auto",
    device: Device = "auto",
    reports: ReportsFolder = None,
    build: BuildFolder = None,
    repeats: Repeats = False,
    rebuild: Rebuild = False,
    dry_run: DryRun = False,
) -> None:
    """Train what a profile still lacks. Ctrl-C saves and stops; the same command goes on."""
    from shared.sweep.ledger import Ledger
    from shared.sweep.tables import read_base_losses, read_runs

    check_executor(executor)
    want = expected(profile, paper, corpus)
    reports, build = folders(want, reports, build)
    ledger = Ledger(build)
    rows = read_runs(reports)
    losses = read_base_losses(reports)
    waiting = without_delta(rows, losses.keys() | {run.spec.run_id for run in want.runs})
    done = {
        run_id
        for (run_id,), row in rows.items()
        if run_id not in waiting
        # A checkpoint that is not here is missed only on request, a damaged one is always trained again.
        and (
            not (rebuild or ledger.run_folder(run_id).exists())
            # A base run whose losses the reports lost is put in again.
            or ((row["base_run_id"] or row["diverged"] == "True" or run_id in losses) and ledger.whole(run_id, warn))
        )
    }
    runs = [run for run in want.runs if run.spec.run_id not in done]
    if dry_run:
        print_cost(profile, want, runs, workers, reports)
        return
    if not runs:
        print(f"{profile}: all {len(want.runs)} runs are finished")
        return
    if not repeats:
        check_horizons(runs)
    start(plan_of(want, runs, {}, device, build, executor), reports, workers, processes, executor, address)
    print(f"{profile}: {len(runs)} runs finished, {len(want.runs)} in all; table {reports / 'runs.csv'}")


def without_delta(rows: "Mapping[tuple[str, ...], Mapping[str, str]]", bases: set[str]) -> set[str]:
    """Compressed runs that were put in before their base run, which is one of `bases` (known, or trained with them)."""
    lost = {run_id for (run_id,), row in rows.items() if row["diverged"] == "True"}
    return {
        run_id
        for (run_id,), row in rows.items()
        if row["base_run_id"] in bases - lost and not row["delta"] and run_id not in lost
    }


def measure(
    profile: ProfileName,
    paper: PaperName = None,
    corpus: CorpusName = None,
    workers: Workers = 2,
    executor: Executor = "local",
    address: Address = "auto",
    device: Device = "auto",
    reports: ReportsFolder = None,
    build: BuildFolder = None,
    checkpoints: Checkpoints = None,
    dry_run: DryRun = False,
) -> None:
    """Measure the post-training quantizations of a profile on the checkpoints at hand.

    With --checkpoints reports/checkpoints a fresh clone measures those in git, without training. --paper takes only the
    cells that the paper's experiment.yaml needs.
    """
    from shared.sweep.ledger import Ledger

    check_executor(executor)
    want = expected(profile, paper, corpus)
    reports, build = folders(want, reports, build)
    ledger = Ledger(build)
    lacking = lacking_cells(want, reports)
    if checkpoints is not None:
        lacking = lacking_of_kept(want, lacking, checkpoints, reports)
        here = [run for run in want.runs if run.spec.run_id in lacking]
    else:
        here = [r for r in want.runs if r.spec.run_id in lacking and ledger.result(r.spec.run_id, warn) is not None]
    cells = {run.spec.run_id: lacking[run.spec.run_id] for run in here}
    away = sum(len(found) for found in lacking.values()) - sum(len(found) for found in cells.values())
    print(f"{profile}: {sum(len(c) for c in cells.values())} cells to measure on {len(here)} checkpoints")
    if away:
        print(f"{away} cells wait for checkpoints that are not here: `bitlaw train {profile} --rebuild` trains them")
    if dry_run or not here:
        return
    if checkpoints is not None:
        from shared.sweep.kept import restore

        restore(checkpoints, ledger, here)
    start(plan_of(want, here, cells, device, build, executor), reports, workers, 1, executor, address)
    print(f"{profile}: measured; table {reports / 'measurements.csv'}")
    if checkpoints is not None:
        from shared.evaluate.ptq import rivals
        from shared.sweep.kept import keep_cells

        beside = reports / "checkpoints"
        count = keep_cells(ledger, beside, {run_id: rivals(want.cells[run_id]) for run_id in cells}, warn)
        print(f"{profile}: losses by sequence of {count} cells, in {beside}")


def keep(
    profile: ProfileName,
    corpus: CorpusName = None,
    reports: ReportsFolder = None,
    build: BuildFolder = None,
) -> None:
    """Copy the checkpoints that a profile names (`keep` in pool.yaml) into the reports folder, for git."""
    from replications.pool import kept_runs
    from shared.sweep.kept import keep as copy
    from shared.sweep.ledger import Ledger

    want = expected(profile, None, corpus)
    reports, build = folders(want, reports, build)
    runs = kept_runs(want)
    size = copy(Ledger(build), runs, reports / "checkpoints")
    print(f"{profile}: {len(runs)} checkpoints, {size / 2**20:.1f} MiB, in {reports / 'checkpoints'}")


def status(
    profile: ProfileName,
    paper: PaperName = None,
    corpus: CorpusName = None,
    reports: ReportsFolder = None,
) -> None:
    """Say what a profile still lacks, judged from the two tables; exit 0 only when it is complete."""
    from rich.console import Console
    from rich.table import Table

    from shared.sweep.tables import read_runs

    want = expected(profile, paper, corpus)
    reports, _ = folders(want, reports, None)
    runs = {run_id: row for (run_id,), row in read_runs(reports).items()}
    lacking = lacking_cells(want, reports)
    table = Table("size", "corpus", "seed", "checkpoints", "diverged", "cells", title=f"{profile}: finished / expected")
    complete = True
    for (size, corpus_name, seed), members in group(want.runs).items():
        ids = [run.spec.run_id for run in members]
        finished = [run_id for run_id in ids if run_id in runs]
        diverged = sum(runs[run_id]["diverged"] == "True" for run_id in finished)
        cells = sum(len(want.cells.get(run_id, [])) for run_id in ids)
        missing = sum(len(lacking.get(run_id, [])) for run_id in ids)
        complete &= len(finished) == len(ids) and not missing
        table.add_row(
            size, corpus_name, str(seed), f"{len(finished)} / {len(ids)}", str(diverged), f"{cells - missing} / {cells}"
        )
    Console().print(table)
    print("complete" if complete else f"not complete: `bitlaw train {profile}`, then `bitlaw measure {profile}`")
    raise typer.Exit(0 if complete else 1)


def expected(profile: str, paper: str | None, corpus: str | None) -> "Expected":
    """What the profile consists of; an unknown profile or paper is said first.

    A corpus of data/ is named by its pinned hashes, so that a status or a dry run needs no data at hand.
    """
    from replications.pool import expand
    from shared.corpus.load import load_corpus, pinned_sha256

    want = expand(profile, "0" * 64, paper=paper, corpus=corpus)
    name = corpus or want.profile.corpus
    sha256 = pinned_sha256(name, Path()) or load_corpus(name, Path()).sha256
    return expand(profile, sha256, paper=paper, corpus=corpus)


def folders(want: "Expected", reports: Path | None, build: Path | None) -> tuple[Path, Path]:
    """Where tables and checkpoints go. Raises BitlawError when something else stands there."""
    from shared.errors import BitlawError

    chosen = reports or Path(want.profile.reports), build or Path(want.profile.build)
    for folder in chosen:
        if folder.exists() and not folder.is_dir():
            raise BitlawError(f"{folder} is a file: name a folder")
    return chosen


def lacking_cells(want: "Expected", reports: Path) -> "dict[str, list]":
    """Cells by run that the table lacks; a diverged run owes none."""
    from shared.sweep.tables import read_measurements, read_runs

    diverged = {run_id for (run_id,), row in read_runs(reports).items() if row["diverged"] == "True"}
    have = {(run_id, f"{method}-{form}-{size}") for run_id, method, form, size, *_ in read_measurements(reports)}
    lacking = {
        run_id: [cell for cell in cells if (run_id, cell.name) not in have]
        for run_id, cells in want.cells.items()
        if run_id not in diverged
    }
    return {run_id: cells for run_id, cells in lacking.items() if cells}


def lacking_of_kept(want: "Expected", lacking: "dict[str, list]", folder: Path, reports: Path) -> "dict[str, list]":
    """Of the checkpoints in a folder: the cells that the table lacks, and those to be compared without kept losses.

    Raises BitlawError when none of the checkpoints is of the profile.
    """
    from shared.errors import BitlawError
    from shared.evaluate.ptq import rivals
    from shared.sweep.kept import kept, kept_cells

    runs = [run_id for run_id in kept(folder) if run_id in want.cells]
    if not runs:
        raise BitlawError(f"{folder}: none of its checkpoints has cells in this profile: name the profile they are of")
    found = {}
    for run_id in runs:
        have = kept_cells(reports / "checkpoints", run_id)
        missing = {cell for cell in rivals(want.cells[run_id]) if cell.name not in have}
        missing.update(lacking.get(run_id, []))
        if missing:
            found[run_id] = [cell for cell in want.cells[run_id] if cell in missing]
    return found


def check_executor(name: str) -> None:
    """Raises BitlawError for an unknown executor."""
    from shared.errors import BitlawError, nearest

    known = ["local", "ray"]
    if name not in known:
        raise BitlawError(f"--executor {name!r} is unknown{nearest(name, known) or ': use local or ray'}")


def plan_of(
    want: "Expected", runs: "list[Run]", cells: "dict[str, list]", device: str, build: Path, executor: str = "local"
) -> "Plan":
    from shared.sweep.launch import git_state
    from shared.sweep.worker import Plan
    from shared.train.device import pick

    if executor == "local":
        pick(device)
    root = Path.cwd()
    # Not resolved: on another machine a linked build folder may lead elsewhere.
    return Plan(root, build.absolute(), runs, cells, device, want.profile.save_seconds, git_state(root))


def start(
    plan: "Plan", reports: Path, workers: int, processes: int = 1, executor: str = "local", address: str = "auto"
) -> None:
    from shared.sweep.launch import checked, launch

    if executor == "ray":
        from shared.sweep.cluster import launch_on_ray

        checked(launch_on_ray(plan, reports, address, warn, processes))
        return
    checked(launch(plan, reports, workers, warn, processes))


def check_horizons(runs: "list[Run]") -> None:
    """Raises BitlawError when a corpus is too small for the longest horizon to see each token once."""
    from shared.corpus.load import load_corpus
    from shared.errors import BitlawError
    from shared.sweep.spec import tokens_label

    for corpus in sorted({run.corpus for run in runs}):
        available = len(load_corpus(corpus, Path()).train) - 1
        longest = max(run.spec.tokens for run in runs if run.corpus == corpus)
        if longest > available:
            raise BitlawError(
                f"corpus '{corpus}' has {available} training tokens, the horizon of {tokens_label(longest)} needs "
                f"{longest}: give more text, or allow repeats with --repeats"
            )


def group(runs: "list[Run]") -> "dict[tuple[str, str, int], list[Run]]":
    grouped: dict[tuple[str, str, int], list[Run]] = {}
    for run in runs:
        grouped.setdefault((run.size, run.corpus, run.spec.seed), []).append(run)
    return grouped


def print_cost(profile: str, want: "Expected", runs: "list[Run]", workers: int, reports: Path) -> None:
    """Each missing run with N, D, FLOPs and the time it adds; the sum for the workers asked for."""
    from rich.console import Console
    from rich.table import Table

    from shared.sweep.launch import expected_seconds, memory_bytes
    from shared.sweep.spec import tokens_label, trunks
    from shared.sweep.tables import measured_gflops

    speeds = {name: size.gflops for name, size in want.sizes.items()} | measured_gflops(reports)
    table = Table("run", "N", "D", "FLOPs", "adds", "memory", title=f"{profile}: what is missing")
    total = 0.0
    for members in trunks(runs).values():
        before = 0.0
        for number, run in enumerate(members, start=1):
            upto = expected_seconds(members[:number], speeds)
            table.add_row(
                f"{run.spec.run_id} {run.size} seed {run.spec.seed} {run.spec.phase}", f"{run.spec.shape.n_blocks:,}",
                tokens_label(run.spec.tokens), f"{run.spec.train_flops:.1e}", duration(upto - before),
                f"{memory_bytes(run.spec) / 2**30:.1f} GiB",
            )  # fmt: skip
            before = upto
        total += before
    Console().print(table)
    wall = max([total / workers, *(expected_seconds(members, speeds) for members in trunks(runs).values())])
    print(
        f"{len(runs)} of {len(want.runs)} runs missing: {duration(total)} for one worker, about {duration(wall)} with "
        f"{workers}; speeds from {reports / 'runs.csv'} where it has the size, else from pool.yaml"
    )


def duration(seconds: float) -> str:
    if seconds < 90:
        return f"{seconds:.0f} s"
    return f"{seconds / 60:.0f} min" if seconds < 5400 else f"{seconds / 3600:.1f} h"
