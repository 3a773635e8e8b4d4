"""`bitlaw decode`: progressive mixed-precision decoding of causal language models, measured."""

import sys
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

if TYPE_CHECKING:
    import torch

    from replications.precision_predictor.decoding_rows import Plan, Table
    from replications.precision_predictor.subject import Subject
    from shared.ptq.text import Windows

# The cooled committed checkpoints: two sizes, 1M to 32M tokens (reports/checkpoints/index.json).
MODELS = ["9657680eb1ca", "db3235969afb", "e917f2b43924", "7f846c36359f", "26a9f235f1ca"]
MOST_CONTEXT = 256  # 64 of prefix and 192 steps; PMPD decodes 256 tokens
PASS_SECONDS = 1e-3  # of Python a block, each forward pass

Models = Annotated[list[str] | None, typer.Argument(metavar="[MODEL]...", help="run ids, folders or hub ids")]
Text = Annotated[list[Path], typer.Option("--text", help="UTF-8 text instead of a data set")]
Schedules = Annotated[list[str], typer.Option("--schedule", help="also this one, such as static:4:3:40 (repeatable)")]


def decode(
    models: Models = None,
    dataset: Annotated[str, typer.Option("--dataset", help="of `bitlaw data`, or NAME[:CONFIG][@REVISION]")] = "python",
    text: Text = [],  # noqa: B006
    prefix: Annotated[int, typer.Option("--prefix", help="tokens that the prefill reads")] = 64,
    context: Annotated[int, typer.Option("--context", help="of a window; 0: the model's, up to 256", min=0)] = 0,
    windows: Annotated[int, typer.Option("--windows", min=2, help="of given text, to measure losses on")] = 96,
    prompts: Annotated[int, typer.Option("--prompts", min=2, help="of these windows, to generate text from")] = 48,
    labelled: Annotated[int, typer.Option("--labelled", min=20, help="prompts to train the scheduler on")] = 80,
    group: Annotated[str, typer.Option("--group", help="inputs that share scales, or channel")] = "32",
    highest: Annotated[int, typer.Option("--highest", min=1, max=8, help="bits of the stored code")] = 6,
    high: Annotated[int, typer.Option("--high", help="bits, of the learned scheduler")] = 4,
    low: Annotated[int, typer.Option("--low", help="bits, of the learned scheduler")] = 3,
    schedule: Schedules = [],  # noqa: B006
    device: Annotated[str, typer.Option("--device", help="auto, cpu or cuda")] = "auto",
    revision: Annotated[str, typer.Option("--revision", help="of a hub id")] = "main",
    out: Annotated[Path, typer.Option("--out", help="folder of the results")] = Path("build/decode"),
    dry_run: Annotated[bool, typer.Option("--dry-run", help="print what it costs, and stop")] = False,
) -> None:
    """Decode under schedules of weight precision: loss by step, generated text, a learned scheduler. Resumes."""
    from replications.precision_predictor.decoding import check_cache, check_prefix
    from replications.precision_predictor.subject import open_subject
    from shared.errors import BitlawError
    from shared.train.device import pick

    where = pick(device)
    if group != "channel" and not (group.isdigit() and int(group) > 0):
        raise BitlawError(f"--group {group}: must be a number of inputs or channel")
    if prompts > windows:
        raise BitlawError(f"--prompts {prompts}: they are taken from the {windows} windows: give more --windows")
    if out.exists() and not out.is_dir():
        raise BitlawError(f"--out {out}: is a file: name a folder")
    work = []
    for name in dict.fromkeys(models or MODELS):
        subject = open_subject(name, where, revision)
        check_cache(subject.model)
        if context > subject.context:
            raise BitlawError(f"--context {context}: {name} takes {subject.context} positions at most")
        length = context or min(subject.context, MOST_CONTEXT)
        plan = _plan(prefix, check_prefix(prefix, length), highest, group, schedule, high, low)
        work.append((subject, plan, _windows(subject, text, dataset, length, labelled, windows)))
    if len({plan for _, plan, _ in work}) > 1:
        raise BitlawError("the models have different contexts: give a --context that all have")
    _show_cost(work, prompts, where)
    if not dry_run:
        _run(work, prompts, out)


def _plan(prefix: int, steps: int, highest: int, group: str, schedule: list[str], high: int, low: int) -> "Plan":
    """All schedules are read here, before anything is measured: BitlawError for a bad one."""
    from replications.precision_predictor.decoding_rows import Plan
    from replications.precision_predictor.schedules import default_losses, default_texts

    more = [text.strip() for text in schedule]
    plan = Plan(
        prefix=prefix,
        steps=steps,
        highest=highest,
        group=None if group == "channel" else int(group),
        losses=tuple(dict.fromkeys([*default_losses(steps, highest), *more])),
        texts=tuple(dict.fromkeys([*default_texts(steps, highest), *more])),
        high=high,
        low=low,
    )
    _ = plan.widths
    return plan


def _windows(subject: "Subject", text: list[Path], dataset: str, context: int, labelled: int, count: int) -> "Windows":
    from shared.errors import BitlawError
    from shared.ptq.text import from_dataset, from_files

    if text:
        found = from_files(text, subject.tokenizer, context, labelled, count)
    else:
        found = from_dataset(dataset, subject.tokenizer, context, labelled, count)
    vocabulary = subject.model.get_input_embeddings().weight.shape[0]
    if int(max(found.calibration.max(), found.evaluation.max())) >= vocabulary:
        raise BitlawError(f"{subject.name}: its tokenizer gives tokens that the model does not know")
    return found


def _show_cost(work: "list[tuple[Subject, Plan, Windows]]", prompts: int, device: "torch.device") -> None:
    from replications.commands.train import duration
    from shared.ptq.cost import measured_speed

    speed = measured_speed(device)
    total = 0.0
    for subject, plan, found in work:
        weights, blocks, cache = _size(subject)
        batch = _batch(subject, found.context)
        scored = (len(plan.losses) + 2 * len(plan.widths) + 1) * len(found.evaluation) * found.context
        lines = len(plan.generated) * prompts + 5 * len(found.calibration)
        segments = sum(len(plan.schedule(name).segments) for name in plan.losses) * -(-len(found.evaluation) // batch)
        passes = segments + plan.steps * (len(plan.generated) * -(-prompts // batch) + 5)
        # A growing cache is copied at each step: half of its final size on average, read and written.
        moved = lines * plan.steps * found.context * cache
        flops = 2 * weights * (scored + lines * found.context)
        seconds = flops / speed.flops + moved / speed.copy + passes * blocks * PASS_SECONDS
        total += seconds
        count = len(found.evaluation)
        print(
            f"{subject.name}: {len(plan.losses)} schedules on {count} windows of {found.context} tokens "
            f"with {plan.prefix} of prefix, {len(plan.generated)} on {prompts} prompts; {duration(seconds)}"
        )
    print(f"time: {duration(total)} on {device} (rough); text: {work[0][2].about}")


def _size(subject: "Subject") -> tuple[int, int, float]:
    """Weights in a token's products, blocks, and bytes of its keys and values in FP32."""
    from shared.ptq.layers import block_list, listed

    weights = sum(matrix.weights for matrix in listed(subject.model, with_head=False))
    head = subject.model.get_input_embeddings().weight.numel()
    blocks = len(block_list(subject.model)[1])
    return weights + head, blocks, 8.0 * blocks * subject.model.config.hidden_size


def _batch(subject: "Subject", context: int) -> int:
    from shared.ptq.cells import batch_windows
    from shared.ptq.layers import listed

    widest = max(matrix.outputs for matrix in listed(subject.model, with_head=False))
    # Four times the windows that plain evaluation takes: a decode step has one token of each.
    return 4 * batch_windows(context, subject.model.get_input_embeddings().weight.shape[0], widest)


def _run(work: "list[tuple[Subject, Plan, Windows]]", prompts: int, out: Path) -> None:
    """Measure what is not there yet, write the table after each model's losses and texts, then the summary."""
    from replications.commands.measured import bar
    from replications.precision_predictor.decoding_rows import COLUMNS, KEY, Writer, keyed, loss_rows, text_rows
    from replications.precision_predictor.decoding_summary import summarise
    from replications.precision_predictor.figures_decoding import draw
    from replications.precision_predictor.nested import nested
    from shared.files import write_json
    from shared.ptq.layers import listed
    from shared.report.figures import style
    from shared.report.figures.gallery import write_gallery
    from shared.sweep.tables import read_table, write_table

    _check_settings(work, prompts, out)
    path = out / "table.csv"
    table: Table = read_table(path, COLUMNS, KEY)

    def there(name: str, part: str) -> bool:
        return any(key[:2] == (name, part) for key in table)

    todo = [item for item in work if not (there(item[0].name, "penalty") and there(item[0].name, "rouge"))]
    steps = sum(len(p.losses) + 2 * len(p.widths) + 2 * len(p.texts) + 11 for _, p, _ in todo)
    with bar(steps) as tell:
        for subject, plan, found in todo:
            weights = sum(matrix.weights for matrix in listed(subject.model, with_head=False))
            write = Writer(subject.name, subject.N or weights, subject.D, plan)
            batch = _batch(subject, found.context)

            def say(what: str, name: str = subject.name) -> None:
                tell(f"{name}: {what}" if sys.stderr.isatty() else name)

            with nested(subject.model, plan.widths, plan.group) as switch:
                if not there(subject.name, "penalty"):
                    table |= keyed(loss_rows(write, switch, found.evaluation, batch, say))
                    write_table(path, COLUMNS, table)
                if not there(subject.name, "rouge"):
                    count = len(found.evaluation)
                    used = min(prompts, count)
                    judged_SP = found.evaluation[[k * count // used for k in range(used)], : plan.prefix]
                    labelled_SP = found.calibration[:, : plan.prefix]
                    table |= keyed(text_rows(write, switch, judged_SP, labelled_SP, batch, say))
                    write_table(path, COLUMNS, table)
    summary = summarise(table.values())
    write_json(out / "summary.json", summary)
    with style.theme():
        write_gallery(out, draw(summary))
    _show(summary)
    print(f"{out}: table.csv, summary.json and figures")


@dataclass(frozen=True)
class Held:
    """settings.json: what all rows share, and the weights and text of each run."""

    common: dict[str, Any]
    runs: dict[str, dict[str, str]]


def read_held(path: Path) -> dict[str, Any]:
    """Empty while there is no file. Raises BitlawError for a file that holds something else."""
    from shared.checked import check
    from shared.files import read_json

    if not path.exists():
        return {"common": {}, "runs": {}}
    held: dict[str, Any] = read_json(path)
    check(Held, held, path, "file of settings", "choose another --out")
    return held


def _check_settings(work: "list[tuple[Subject, Plan, Windows]]", prompts: int, out: Path) -> None:
    """Raises BitlawError when the folder holds results of other settings: they are never mixed."""
    from dataclasses import asdict

    from shared.errors import BitlawError
    from shared.files import six_digits, write_json
    from shared.train.state import checksum

    path = out / "settings.json"
    held = read_held(path)
    plan, found = work[0][1], work[0][2]
    common = six_digits(asdict(plan)) | {"windows": len(found.evaluation), "labelled": len(found.calibration)}
    common["prompts"] = min(prompts, len(found.evaluation))
    runs = {
        subject.name: {"weights": checksum(subject.model.state_dict()), "text": windows.sha256}
        for subject, _, windows in work
    }
    old = held["common"] | {f"{name}: {key}": v for name, run in held["runs"].items() for key, v in run.items()}
    new = common | {f"{name}: {key}": v for name, run in runs.items() for key, v in run.items()}
    for key in new:  # what others follow from comes first
        if key in old and old[key] != new[key]:
            raise BitlawError(f"{out}: holds results with another '{key}': choose another --out")
    write_json(path, {"common": common, "runs": held["runs"] | runs})


def _show(summary: dict[str, Any]) -> None:
    """The comparisons at equal average bits."""
    from rich.table import Table

    from replications.commands.laws import console

    table = Table("schedule", "against", box=None, padding=(0, 2, 0, 0))
    for heading in ("bits", "gain in loss", "95 %", "gain in Rouge-L", "95 %"):
        table.add_column(heading, justify="right", no_wrap=True)
    for key in sorted(set(summary["gain"]) | set(summary["rouge_gain"])):
        name, _, control = key.partition(" against ")
        cells = []
        for part in ("gain", "rouge_gain"):
            one = summary[part].get(key)
            cells += [f"{one['value']:+.4f}", f"{one['low']:+.4f} {one['high']:+.4f}"] if one else ["", ""]
        bits = (summary["gain"].get(key) or summary["rouge_gain"][key])["bits"]
        table.add_row(name, control, f"{bits:.3f}", *cells)
    console().print(table)
    for policy, one in summary["scheduler"].items():
        print(f"scheduler {policy}: Rouge-L {one['value']:.4f} at {one['bits']:.3f} bits")
    print(f"intervals: {summary['about']['intervals']}")
