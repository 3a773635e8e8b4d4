"""`bitlaw allocate`: guided bit allocation against uniform and magnitude, at equal total bits."""

import math
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

if TYPE_CHECKING:
    from collections.abc import Sequence

    from replications.precision_predictor.allocating import Bench, Widths
    from replications.precision_predictor.subject import Subject
    from shared.ptq.cells import Results

# Of the cooled checkpoints in git: .1M parameters at 1M, 4M and 32M tokens, .38M at 32M. About four minutes alone.
CHECKPOINTS = "9657680eb1ca,db3235969afb,e917f2b43924,26a9f235f1ca"
UNITS, METHODS = "layer,channel,group", "rtn,rtn_mse,guided"
ALLOCATIONS = "uniform,magnitude,magnitude_linear,error,inputs,fisher,fisher_linear,block,measured"
KEY = ("checkpoint", "unit", "method", "budget", "allocation")
SURROGATE_KEY = ("checkpoint", "budget", "criterion")
# Of a second: multiples of what two products of each weight with each token take, on small models (measured).
OVERHEAD = 6.0


def allocate(
    checkpoints: Annotated[str, typer.Option("--checkpoints", help="run ids, folders or hub ids")] = CHECKPOINTS,
    dataset: Annotated[str, typer.Option("--dataset", help="corpus or data set of the hub")] = "python",
    units: Annotated[str, typer.Option("--units", help="what has a width: layer, channel, group")] = UNITS,
    methods: Annotated[str, typer.Option("--methods", help="rtn, rtn_mse (clipped), guided (GPTQ)")] = METHODS,
    budgets: Annotated[str, typer.Option("--budgets", help="bits a weight, scales not counted")] = "2.5,3,4",
    allocations: Annotated[str, typer.Option("--allocations", help="beside those compared with")] = ALLOCATIONS,
    b_min: Annotated[int, typer.Option("--b-min", help="least width")] = 2,
    b_max: Annotated[int, typer.Option("--b-max", help="largest width")] = 8,
    group: Annotated[int, typer.Option("--group", min=1, help="weights of a group")] = 32,
    calibration: Annotated[int, typer.Option("--calibration", min=1, help="windows")] = 32,
    windows: Annotated[int, typer.Option("--windows", min=2, help="to measure on")] = 16,
    context: Annotated[int, typer.Option("--context", min=0, help="of a window; 0: the model's, up to 256")] = 0,
    surrogates: Annotated[bool, typer.Option("--surrogates/--no-surrogates", help="exact second derivatives")] = True,
    lnq: Annotated[bool, typer.Option("--lnq/--no-lnq", help="the objective of LNQ, step by step")] = True,
    device: Annotated[str, typer.Option("--device", help="auto, cpu or cuda")] = "auto",
    out: Annotated[Path, typer.Option("--out", help="folder")] = Path("build/allocate"),
    dry_run: Annotated[bool, typer.Option("--dry-run", help="print the cost and stop")] = False,
) -> None:
    """Give each layer, channel or group its own bits by gradients; compare at equal total bits. Resumes."""
    import torch

    from replications.precision_predictor import allocating, lnq_steps
    from replications.precision_predictor.allocation import KINDS, check_widths
    from replications.precision_predictor.subject import open_subject
    from shared.errors import BitlawError, nearest
    from shared.ptq.cells import Results
    from shared.ptq.text import from_dataset
    from shared.train.device import pick

    names, ways = _words(checkpoints, "--checkpoints"), _words(methods, "--methods")
    kinds, averages = _words(units, "--units"), _numbers(budgets)
    asked = _words(allocations, "--allocations")
    check_widths(b_min, b_max)
    allocating.check_allocations(asked)
    for kind in kinds:
        if kind not in KINDS:
            raise BitlawError(f"unit '{kind}' is unknown{nearest(kind, list(KINDS))}: use {', '.join(KINDS)}")
    for method in ways:
        allocating.quantizer_of(method, "channel", b_min)
    for average in averages:
        if not b_min <= average <= b_max:
            raise BitlawError(f"a budget of {average:g} bits a weight is outside of {b_min} to {b_max}")
    where = pick(device)
    torch.set_num_threads(1)  # sums depend on the number of threads
    widths = allocating.Widths(b_min, b_max, group)
    results = Results(out)
    settings = {
        "dataset": dataset, "calibration_windows": calibration, "windows": windows, "context": context,
        "b_min": b_min, "b_max": b_max, "group": group, "device": where.type,
    }  # fmt: skip
    results.check(settings)
    cells = [(kind, way, average) for kind in kinds for way in ways for average in averages]
    if dry_run:
        _show_cost(
            [open_subject(name, where) for name in names], len(cells), len(asked), calibration, windows, context, lnq
        )
        return
    trials, studied = Table(out / "trials.csv", KEY), Table(out / "surrogates.csv", SURROGATE_KEY)
    stepped = Table(out / "lnq.csv", lnq_steps.KEY)
    wanted = [name for name in allocating.ALLOCATIONS if name in (*asked, *allocating.COMPARED)]
    with _progress(len(names) * (len(cells) + surrogates + lnq)) as tell:
        for name in names:
            todo = [
                (kind, way, average)
                for kind, way, average in cells
                if not all(
                    trials.has((name, kind, way, average, a)) for a in wanted if a != "measured" or kind == "layer"
                )
            ]
            study = surrogates and not all(studied.has((name, average, "uniform")) for average in averages[:2])
            follow = lnq and not any(row["checkpoint"] == name for row in stepped.rows)
            tell(name, len(cells) - len(todo) + bool(surrogates and not study) + bool(lnq and not follow))
            if not todo and not study and not follow:
                continue
            subject = open_subject(name, where)
            length = _context(context, subject)
            text = from_dataset(dataset, subject.tokenizer, length, calibration, windows)
            _keep_settings(results, settings, name, text.sha256)
            bench = allocating.open_bench(subject, text)
            if follow:  # first: trials change the model's weights, not these
                tell(f"{name} LNQ", 0)
                stepped.add([{"checkpoint": name} | row for row in lnq_steps.steps(bench)])
                tell(name, 1)
            for kind, way, average in todo:
                tell(f"{name} {kind} {way} {average:g} bits", 0)
                made = allocating.trials(bench, kind, way, average, asked, widths)  # type: ignore[arg-type]
                trials.add([allocating.row_of(subject, trial) for trial in made])
                tell(name, 1)
            if study:
                tell(f"{name} second derivatives", 0)
                studied.add(_study(bench, subject, tuple(averages[:2]), widths))
                tell(name, 1)
    _summary(out, trials.rows, studied.rows)
    for entries, one in lnq_steps.summarise(stepped.rows).items():
        print(
            f"LNQ, entries in {entries}: {one['steps']} steps on {one['matrices']} matrices change the objective by "
            f"{math.expm1(one['lowest']):+.2%} to {math.expm1(one['highest']):+.2g}"
        )


class Table:
    """A CSV file of rows, sorted by its key columns and written whole after every addition."""

    def __init__(self, path: Path, key: tuple[str, ...]) -> None:
        """Raises BitlawError for a file that no `add` wrote."""
        from replications.precision_predictor.results import read_trials

        self.path, self.key = path, key
        self.rows: list[dict[str, Any]] = []
        if path.exists():
            self.rows = read_trials(path, key)

    def has(self, values: tuple[Any, ...]) -> bool:
        return any(tuple(row[name] for name in self.key) == values for row in self.rows)

    def add(self, rows: "Sequence[dict[str, Any]]") -> None:
        import pandas as pd

        from shared.files import replacing

        fresh = {tuple(row[name] for name in self.key): row for row in (*self.rows, *rows)}
        self.rows = [fresh[key] for key in sorted(fresh)]
        with replacing(self.path) as temporary:
            pd.DataFrame(self.rows).to_csv(temporary, index=False, float_format="%.6g")


def _study(bench: "Bench", subject: "Subject", budgets: tuple[float, ...], widths: "Widths") -> list[dict[str, Any]]:
    from replications.precision_predictor.allocation_surrogates import surrogates

    about = {"checkpoint": subject.name, "N": subject.N, "D": subject.D}
    return [about | row for row in surrogates(bench, budgets, widths)]


def _summary(out: Path, trials: list[dict[str, Any]], studied: list[dict[str, Any]]) -> None:
    """summary.json, the figures and a few lines, from the files as they are: so that a second call says the same."""
    from replications.precision_predictor.allocation_summary import summarise
    from replications.precision_predictor.figures_allocation import allocation_drawings
    from replications.precision_predictor.results import read_trials
    from shared.files import write_json
    from shared.report.figures import style
    from shared.report.figures.gallery import write_gallery

    surrogates = read_trials(out / "surrogates.csv", SURROGATE_KEY) if studied else []
    found = summarise(read_trials(out / "trials.csv", KEY), surrogates)
    write_json(out / "summary.json", found)
    with style.theme():
        write_gallery(out, allocation_drawings(found))
    for kind, sides in found["s8"].items():
        for against, intervals in sides.items():
            for one in intervals:
                print(f"{kind} {against.replace('_', ' ')}, {one['label']}: {_text(one)}")
    print(f"{out}: trials.csv, surrogates.csv, summary.json and figures; {len(trials)} trials")


def _text(one: dict[str, Any]) -> str:
    if one["low"] is None:
        return f"{one['value']:+.4f} (of {one['n']} checkpoints: no interval)"
    return f"{one['value']:+.4f} [{one['low']:+.4f}, {one['high']:+.4f}]"


def _words(given: str, option: str) -> list[str]:
    from shared.errors import BitlawError

    words = [word.strip() for word in given.split(",") if word.strip()]
    if not words:
        raise BitlawError(f"{option} names nothing: give at least one")
    return words


def _numbers(given: str) -> list[float]:
    from shared.errors import BitlawError

    try:
        return [float(word) for word in _words(given, "--budgets")]
    except ValueError as error:
        raise BitlawError(f"--budgets {given}: {error}; give numbers such as 2.5,3") from error


def _context(asked: int, subject: "Subject") -> int:
    from shared.errors import BitlawError

    if asked > subject.context:
        raise BitlawError(f"--context {asked}: {subject.name} takes {subject.context} positions at most")
    return asked or min(subject.context, 256)


def _keep_settings(results: "Results", settings: dict[str, Any], name: str, sha256: str) -> None:
    """With the text of each checkpoint: rows of other windows are never mixed."""
    from shared.files import read_json, write_json

    path = results.folder / "settings.json"
    known = read_json(path) if path.exists() else settings
    key = f"windows_sha256 of {name}"
    if key in known:
        results.check({key: sha256})
    write_json(path, known | {key: sha256})


def _show_cost(
    subjects: "list[Subject]", cells: int, allocations: int, calibration: int, windows: int, context: int, lnq: bool
) -> None:
    """Rough: passes over the text and LNQ's steps, by the machine's speed."""
    import torch

    from replications.commands.train import duration
    from replications.precision_predictor import lnq_steps
    from replications.precision_predictor.allocating import block_weights
    from shared.ptq.cost import measured_speed, rounding_seconds
    from shared.ptq.layers import weight_OI
    from shared.ptq.methods import find_method

    total, speed = 0.0, measured_speed(torch.device("cpu"))
    work = find_method("lnq").work
    for subject in subjects:
        parameters = sum(p.numel() for p in subject.model.parameters())
        length = _context(context, subject)
        tokens = (cells * allocations * windows + 3 * calibration) * length
        total += 2 * parameters * tokens * OVERHEAD / speed.flops
        if lnq:
            matrices = [weight_OI(layer) for layer in block_weights(subject.model).values()]
            once = sum(rounding_seconds(work, w.numel(), w.shape[1], speed) for w in matrices)
            total += len(lnq_steps.BITS) * len(lnq_steps.ENTRIES) * once
    print(
        f"{len(subjects)} checkpoints, {cells} combinations of unit, method and budget, {allocations} allocations "
        f"each, {windows} windows to measure on: about {duration(total)} on this machine"
    )


@contextmanager
def _progress(total: int) -> "Iterator[Callable[[str, int], None]]":
    """A bar on a terminal, nothing elsewhere."""
    from rich.console import Console
    from rich.progress import BarColumn, Progress, TextColumn, TimeElapsedColumn, TimeRemainingColumn

    console = Console(stderr=True)
    columns = (TextColumn("{task.description}"), BarColumn(), TimeElapsedColumn(), TimeRemainingColumn())
    with Progress(*columns, console=console, disable=not console.is_terminal) as bars:
        task = bars.add_task("opening the model", total=total)
        yield lambda what, steps: bars.update(task, description=what, advance=steps)
