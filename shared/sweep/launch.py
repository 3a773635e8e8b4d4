"""Start local workers on a plan, show how far they are, and put what they finish into the tables.

Ctrl-C reaches the workers too: they save their state and stop; the same command goes on from there.
"""

import contextlib
import hashlib
import json
import queue
import signal
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn, TimeRemainingColumn

from shared.errors import BitlawError
from shared.files import write_text
from shared.sweep.events import STOP_SECONDS, Event, environment, parse
from shared.sweep.ledger import Ledger
from shared.sweep.spec import Run, RunSpec, trunks
from shared.sweep.tables import add_measurements, add_runs
from shared.sweep.worker import LAUNCHER, Plan
from shared.train.state import DamagedFileError

# By default glibc hands every large tensor back to the kernel and gets it again page by page: 20-30 % of a step at
# S and W (docs/log.md). Keep what was used, and ask for huge pages. Other systems ignore the variable.
MALLOC = ":".join(
    f"glibc.malloc.{name}={value}"
    for name, value in {"hugetlb": 1, "mmap_threshold": 2**30, "trim_threshold": 2**32, "top_pad": 2**28}.items()
)


@dataclass(frozen=True)
class Outcome:
    """What a launch did: events as they came, and the first error that a worker reported (or None)."""

    events: list[Event]
    error: str | None


def git_state(root: Path) -> dict[str, object]:
    """Revision and whether tracked files differ from it; 'unknown' outside a git checkout."""

    def git(*arguments: str) -> str | None:
        try:
            return subprocess.run(
                ["git", "-C", str(root), *arguments], capture_output=True, text=True, check=True
            ).stdout.strip()
        except (OSError, subprocess.CalledProcessError):
            return None

    revision = git("rev-parse", "--short=12", "HEAD")
    changed = git("status", "--porcelain", "--untracked-files=no", "--", "shared", "replications")
    return {"git_revision": revision or "unknown", "dirty": changed != ""}


def collect(plan: Plan, reports: Path, say: Callable[[str], None]) -> None:
    """Put every finished run and cell of a plan into the tables."""
    ledger = Ledger(plan.build)
    results, losses = [], {}
    for run in plan.runs:
        result = ledger.result(run.spec.run_id, say)
        if result is None:
            continue
        if not result["diverged"]:
            try:
                losses[run.spec.run_id] = ledger.losses(run.spec.run_id).numpy()
            except DamagedFileError as error:
                say(f"{error} (its row stays as it is)")
                continue
        results.append(result)
    add_runs(reports, results, losses)
    cells = [
        found
        for run_id, wanted in plan.cells.items()
        for cell in wanted
        if (found := ledger.cell(run_id, cell.name, say)) is not None
    ]
    if cells:
        add_measurements(reports, cells)


def unfinished(plan: Plan) -> list[str]:
    """What of a plan has no result: runs, or cells of runs that did not diverge."""
    ledger = Ledger(plan.build)
    missing = []
    for run in plan.runs:
        result = ledger.result(run.spec.run_id, lambda sentence: None)
        if result is None:
            missing.append(run.label)
        elif not result["diverged"]:
            cells = plan.cells.get(run.spec.run_id, [])
            missing += [
                f"{run.label} {cell.name}"
                for cell in cells
                if not ledger.measured(run.spec.run_id, cell.name, lambda sentence: None)
            ]
    return missing


def units(plan: Plan) -> int:
    """Length of the progress bar: cells to measure, or checkpoints to train."""
    return sum(len(cells) for cells in plan.cells.values()) or len(plan.runs)


def worker_command(processes_each: int) -> list[str]:
    """Arguments of Python for one worker: `processes_each` processes that share each trunk, started by torchrun."""
    shared_by = ["-m", "torch.distributed.run", "--standalone", f"--nproc-per-node={processes_each}"]
    return [*(shared_by if processes_each > 1 else []), "-m", "shared.sweep.worker"]


def threads(plan: Plan) -> int:
    return max(run.spec.threads for run in plan.runs)


def settings(plan: Plan) -> dict[str, str]:
    """What a worker's environment says about memory and threads."""
    return {"GLIBC_TUNABLES": MALLOC} | dict.fromkeys(("OMP_NUM_THREADS", "MKL_NUM_THREADS"), str(threads(plan)))


@contextlib.contextmanager
def watched(plan: Plan, reports: Path, say: Callable[[str], None]) -> Iterator[Callable[[Event], None]]:
    """A progress bar; what it yields takes each event, and puts what is finished into the tables."""
    labels = {run.spec.run_id: run.label for run in plan.runs}
    columns = (
        TextColumn("{task.description}"),
        BarColumn(),
        MofNCompleteColumn(),
        TimeElapsedColumn(),
        TimeRemainingColumn(),
    )
    with Progress(*columns, transient=True) as progress:
        bar = progress.add_task("measuring" if plan.cells else "training", total=units(plan))

        def take(event: Event) -> None:
            if "finished" in event or "measured" in event:
                run_id = str(event.get("finished") or event.get("measured"))
                progress.advance(bar, int(event.get("cells", 1)))
                progress.console.print(
                    f"{'measured' if 'measured' in event else 'finished'} {labels[run_id]} [{run_id}]", markup=False
                )
                collect(plan, reports, say)
            elif "warning" in event:
                say(str(event["warning"]))

        yield take


def concluded(plan: Plan, reports: Path, say: Callable[[str], None], events: list[Event], error: str | None) -> Outcome:
    """The tables brought up to date, and what is wrong when something of the plan is missing."""
    collect(plan, reports, say)
    missing = unfinished(plan)
    if not missing:
        # A worker that died did no harm: another one took its work over.
        error = None
    elif error is None:
        error = f"{len(missing)} of {units(plan)} pieces of work are not finished ({missing[0]}): run the command again"
    return Outcome(events, error)


def launch(plan: Plan, reports: Path, workers: int, say: Callable[[str], None], processes_each: int = 1) -> Outcome:
    """Run a plan to its end; each worker is `processes_each` processes that share a trunk, started by torchrun.

    Raises KeyboardInterrupt after Ctrl-C, with everything finished in the tables.
    """
    # What cannot be read or written is said before hours of training, and what the ledger has already is put in.
    collect(plan, reports, say)
    text = json.dumps(plan.to_json(), sort_keys=True)
    plan_file = plan.build / "plans" / f"{hashlib.sha256(text.encode()).hexdigest()[:12]}.json"
    write_text(plan_file, text)
    count = max(1, min(workers, len(plan.runs) if plan.cells else len(trunks(plan.runs))))
    processes = [
        subprocess.Popen(
            [sys.executable, *worker_command(processes_each), str(plan_file)],
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
            env=environment(settings(plan), LAUNCHER if processes_each == 1 else ""),
            cwd=plan.root,
        )
        for _ in range(count)
    ]
    lines: queue.Queue[tuple[int, str | None]] = queue.Queue()
    errors: list[list[str]] = [[] for _ in processes]

    def follow(number: int) -> None:
        stdout, stderr = processes[number].stdout, processes[number].stderr
        assert stdout is not None
        assert stderr is not None
        drain = threading.Thread(target=lambda: errors[number].extend(stderr), daemon=True)
        drain.start()
        for line in stdout:
            lines.put((number, line))
        drain.join()
        processes[number].wait()
        lines.put((number, None))

    # A polite kill is a Ctrl-C: workers save and stop.
    if threading.current_thread() is threading.main_thread():
        signal.signal(signal.SIGTERM, signal.default_int_handler)
    for number in range(count):
        threading.Thread(target=follow, args=(number,), daemon=True).start()
    events: list[Event] = []
    error: str | None = None
    interrupted = False
    with ended(processes), watched(plan, reports, say) as take:
        open_workers = count
        while open_workers:
            try:
                number, line = lines.get(timeout=STOP_SECONDS if interrupted else None)
            except KeyboardInterrupt:
                interrupted = True
                stop(processes)
                continue
            except queue.Empty:
                for process in processes:
                    process.kill()
                continue
            if line is None:
                open_workers -= 1
                if not interrupted and processes[number].returncode not in (0, 2) and error is None:
                    tail = "".join(errors[number][-20:]).strip()
                    error = f"a worker ended with code {processes[number].returncode}: {tail or 'it said nothing'}"
                continue
            event = parse(line)
            events.append(event)
            take(event)
            if "error" in event and error is None:
                error = str(event["error"])
    if interrupted:
        collect(plan, reports, say)
        raise KeyboardInterrupt
    return concluded(plan, reports, say, events, error)


@contextlib.contextmanager
def ended(processes: list[subprocess.Popen[str]]) -> Iterator[None]:
    """No worker outlives its launcher, which a full disk or a damaged table may end: each is given time to save."""
    try:
        yield
    except BaseException:
        stop(processes)
        for process in processes:
            try:
                process.wait(STOP_SECONDS)
            except subprocess.TimeoutExpired:
                process.kill()
                process.wait()
        raise


def stop(processes: list[subprocess.Popen[str]]) -> None:
    """Ask all workers to save and stop (a second request does no harm)."""
    for process in processes:
        if process.poll() is None:
            process.terminate()


def expected_seconds(runs: list[Run], gflops: dict[str, float]) -> float:
    """Seconds that one worker needs for these runs, trunk and branches shared as `trunk.run` shares them."""
    total = 0.0
    for members in trunks(runs).values():
        recipe, shape = members[0].spec.recipe, members[0].spec.shape
        reached = max(
            recipe.branch_step(run.spec.tokens) if run.spec.cooled else recipe.steps(run.spec.tokens) for run in members
        )
        branches = sum(
            recipe.steps(run.spec.tokens) - recipe.branch_step(run.spec.tokens) for run in members if run.spec.cooled
        )
        tokens = (reached + branches) * recipe.batch_tokens
        total += tokens * shape.flops_per_token() / (gflops[members[0].size] * 1e9)
    return total


def memory_bytes(spec: RunSpec) -> float:
    """What a training process holds: 16 bytes a parameter (weights, gradients, two moments, FP32), and activations.

    Kept for the backward pass, a token of a micro-batch: about 17 D + 6 F numbers of two bytes a block, the logits
    twice; no attention weights, which neither CUDA's kernel nor ours keeps. An estimate.
    """
    shape = spec.shape
    parameters = shape.n_blocks + shape.n_embedding + shape.n_head + shape.n_norms
    block = 2 * (17 * shape.d_model + 6 * shape.d_ff)
    return 16.0 * parameters + spec.batch_tokens / spec.accumulate * (shape.n_layer * block + 4 * shape.vocabulary)


def checked(outcome: Outcome) -> None:
    """Raise what a worker reported."""
    if outcome.error is not None:
        raise BitlawError(outcome.error)
