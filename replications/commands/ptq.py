"""`bitlaw ptq`: a Hugging Face model at each precision, what it loses, and the law of that loss."""

import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer
from typer.core import TyperCommand

if TYPE_CHECKING:
    import torch
    from torch import Tensor

    from shared.laws.law import Law
    from shared.laws.result import Fit
    from shared.ptq.cells import Cell, Results
    from shared.ptq.cost import Anatomy, Memory
    from shared.ptq.models import Source
    from shared.ptq.text import Windows

Model = Annotated[str, typer.Argument(metavar="MODEL", help="a folder with safetensors, or a hub id; comes first")]
Text = Annotated[list[Path], typer.Option("--text", help="UTF-8 text to calibrate and measure on")]
Dataset = Annotated[str, typer.Option("--dataset", help="a corpus of `bitlaw data`, or NAME[:CONFIG][@REVISION]")]
Methods = Annotated[list[str], typer.Option("--methods", help="rtn, gptq, awq, guided, lnq, sparsegpt, llm_int8, ...")]
Formats = Annotated[list[str], typer.Option("--formats", help="INT4, NF4, MXFP4, INT3:mse, ...; none: prune alone")]
Groups = Annotated[list[str], typer.Option("--groups", help="inputs that share a scale, channel or tensor")]
Save = Annotated[list[str], typer.Option("--save", metavar="CELL", help="METHOD-FORMAT-GROUP: write its model")]
BaseLaw = Annotated[
    Path | None, typer.Option("--base-law", metavar="FIT.json", help="of `bitlaw fit --out`: gives N_eff")
]
LISTS = ("--methods", "--formats", "--groups", "--save", "--text")
# 262,144 tokens to measure on, as in the pool (shared/evaluate/losses.py).
MEASURED_TOKENS = 262_144
MOST_CONTEXT = 2048
# Memory is predicted within a fifth (tests/test_ptq_command.py): beyond that a run is refused.
SURELY = 1.2


class Lists(TyperCommand):
    """Options of lists take several words: `--methods rtn gptq awq` as well as commas and repetition."""

    def parse_args(self, context: Any, args: list[str]) -> list[str]:
        spread: list[str] = []
        option = bare = ""
        for word in args:
            if word.startswith("-"):
                spread += [bare] if bare else []
                option = bare = word if word in LISTS else ""
                spread += [] if option else [word]
            else:
                spread += [option, word] if option else [word]
                bare = ""
        spread += [bare] if bare else []  # without a word, for click to complain
        return super().parse_args(context, spread)


def ptq(
    model: Model,
    text: Text = [],  # noqa: B006
    dataset: Dataset = "",
    methods: Methods = ["rtn", "gptq", "awq"],  # noqa: B006
    formats: Formats = ["INT6", "INT5", "INT4", "INT3"],  # noqa: B006
    groups: Groups = ["channel"],  # noqa: B006
    calibration: Annotated[int, typer.Option("--calibration", min=1, help="windows")] = 128,
    windows: Annotated[int, typer.Option("--windows", help="to measure on; 0: 262,144 tokens", min=0)] = 0,
    context: Annotated[int, typer.Option("--context", help="of a window; 0: the model's, up to 2048", min=0)] = 0,
    head: Annotated[bool, typer.Option("--head", help="also the head (and with it a tied embedding)")] = False,
    device: Annotated[str, typer.Option("--device", help="auto, cpu or cuda")] = "auto",
    revision: Annotated[str, typer.Option("--revision", help="of a hub id")] = "main",
    out: Annotated[Path | None, typer.Option("--out", help="default: build/ptq/MODEL")] = None,
    save: Save = [],  # noqa: B006
    base_law: BaseLaw = None,
    tokens: Annotated[float | None, typer.Option("--D", help="tokens it was trained on, for --base-law")] = None,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="print memory and time, and stop")] = False,
) -> None:
    """Measure a causal language model at each method, format and group: loss, delta, penalty law. Resumes."""
    import torch

    from replications.commands.train import warn
    from shared.errors import BitlawError
    from shared.ptq import cost
    from shared.ptq.cells import Results, check_groups
    from shared.ptq.models import find_model, open_tokenizer
    from shared.train.device import pick

    cells, left_out = _cells(_words(methods), _words(formats), _words(groups))
    saved = _saved(_words(save), cells)
    law = _base_law(base_law, tokens)
    if bool(text) == bool(dataset):
        raise BitlawError("give text to calibrate and measure on: either --text FILE or --dataset NAME")
    where = pick(device)
    source = find_model(model, revision, weights=not dry_run)
    body = cost.anatomy(source, head)
    check_groups(cells, body.matrices)
    length = _context(context, source)
    found = _windows(source, text, dataset, length, calibration, max(2, windows or MEASURED_TOKENS // length))
    warnings = [left_out, _foreign(source), _shortage(found, calibration, windows)]
    _check_vocabulary(found, body, open_tokenizer(source), source)
    folder = out or Path("build/ptq") / Path(model).resolve().name
    if folder.exists() and not folder.is_dir():
        raise BitlawError(f"{folder} is a file: name a folder with --out")
    results = Results(folder)
    settings = _settings(source, found, head, where, weights=not dry_run)
    results.check(settings)
    for sentence in filter(None, warnings):
        warn(sentence)
    base = cost.resident_bytes(where)
    needs = cost.memory(body, cells, length, len(found.calibration), base)
    todo = [c for c in cells if results.row(c, warn) is None or (c in saved and not _model_folder(results, c).exists())]
    _show_cost(source, body, cells, todo, found, needs, where)
    if dry_run:
        return
    _check_memory(needs, where)
    try:
        base_S = _measure(source, body, results, settings, todo, saved, found, where, head)
    except (torch.OutOfMemoryError, MemoryError, RuntimeError) as error:
        if isinstance(error, RuntimeError) and "alloc" not in str(error) and "out of memory" not in str(error).lower():
            raise
        raise BitlawError(
            f"out of memory on {where} (predicted {_gib(needs.peak)}): give a smaller --context or --calibration, a "
            "larger device or a smaller model; finished cells are kept"
        ) from error
    _write(source, body, found.about, results, cells, base_S, law, tokens, cost.peak_bytes(where), needs)


def _cells(methods: list[str], formats: list[str], groups: list[str]) -> "tuple[list[Cell], str]":
    """The cells that make sense, and a sentence about the others. Raises BitlawError when none does."""
    from shared.ptq.cells import expand, sorted_out

    cells, others = sorted_out(methods, formats, groups)
    if not cells:
        expand(methods, formats, groups)  # raises the reason
    names: dict[str, list[str]] = {}
    for cell, reason in others.items():
        names.setdefault(reason, []).append(cell.name)
    said = "; ".join(f"{', '.join(several)} ({reason})" for reason, several in names.items())
    return cells, f"left out, {len(others)} of {len(cells) + len(others)} cells: {said}" if others else ""


def _foreign(source: "Source") -> str:
    if not source.foreign:
        return ""
    return (
        f"{source.name}: config.json asks for code of its own ({source.foreign}), which is never run: transformers' "
        f"class for '{source.config.model_type}' stands in, and may compute something else"
    )


def _shortage(found: "Windows", calibration: int, windows: int) -> str:
    """What the text did not give of what was asked for."""
    pairs = ((len(found.calibration), calibration, "to calibrate"), (len(found.evaluation), windows, "to measure"))
    short = [f"{has} of {asked} windows {what}" for has, asked, what in pairs if has < asked]
    return f"{found.about}: has text for {' and '.join(short)} ({found.context} tokens each)" if short else ""


def _settings(source: "Source", found: "Windows", head: bool, device: "torch.device", weights: bool) -> dict[str, Any]:
    """What a folder's results are of, the first to be named first; without `weights` the model is not known."""
    settings: dict[str, Any] = {
        "context": found.context,
        "calibration_windows": len(found.calibration),
        "windows": len(found.evaluation),
        "head": head,
        "device": device.type,
        "text": found.about,
        "text_sha256": found.sha256,
    }
    return {**settings, "model": source.name, "model_sha256": source.sha256} if weights else settings


def _words(given: list[str]) -> list[str]:
    return [word for part in given for word in part.split(",") if word]


def _saved(names: list[str], cells: "Sequence[Cell]") -> "list[Cell]":
    from shared.errors import BitlawError, nearest
    from shared.ptq.methods import find_method

    by_name = {cell.name: cell for cell in cells}
    for name in names:
        if name not in by_name:
            hint = nearest(name, list(by_name)) or f": choose of {', '.join(by_name)}"
            raise BitlawError(f"--save {name}: is no cell of this run{hint}")
        if find_method(by_name[name].method).module:
            raise BitlawError(f"--save {name}: it rounds activations too, which no plain model does: leave it out")
    return [by_name[name] for name in names]


def _base_law(path: Path | None, tokens: float | None) -> "tuple[Law, Fit] | None":
    if path is None:
        return None
    from replications.laws import saved
    from replications.penalty import check_base_law
    from shared.errors import BitlawError

    try:
        law, result = saved(path)
    except BitlawError as error:
        raise BitlawError(f"--base-law {error}") from error
    check_base_law(law, tokens)
    return law, result


def _context(asked: int, source: "Source") -> int:
    from shared.errors import BitlawError

    if asked and source.context and asked > source.context:
        raise BitlawError(f"--context {asked}: {source.name} takes {source.context} positions at most")
    return asked or min(source.context or MOST_CONTEXT, MOST_CONTEXT)


def _windows(
    source: "Source", text: list[Path], dataset: str, context: int, calibration: int, windows: int
) -> "Windows":
    from shared.ptq.models import open_tokenizer
    from shared.ptq.text import from_dataset, from_files

    tokenizer = open_tokenizer(source)
    if text:
        return from_files(text, tokenizer, context, calibration, windows)
    return from_dataset(dataset, tokenizer, context, calibration, windows)


def _check_vocabulary(found: "Windows", body: "Anatomy", tokenizer: Any, source: "Source") -> None:
    from shared.errors import BitlawError

    largest = int(max(found.calibration.max(), found.evaluation.max()))
    if largest >= body.vocabulary:
        raise BitlawError(
            f"{source.name}: its tokenizer gives token {largest}, the model knows {body.vocabulary}: they do not "
            "belong together"
        )


def _model_folder(results: "Results", cell: "Cell") -> Path:
    return results.folder / "models" / cell.file


def _show_cost(
    source: "Source",
    body: "Anatomy",
    cells: "Sequence[Cell]",
    todo: "Sequence[Cell]",
    found: "Windows",
    needs: "Memory",
    device: "torch.device",
) -> None:
    from rich.console import Console

    from replications.commands.train import duration
    from shared.ptq import cost

    console = Console(width=None if sys.stdout.isatty() else 200, highlight=False)
    speed = cost.measured_speed(device)
    context, used, measured = found.context, len(found.calibration), len(found.evaluation)
    each = [cost.seconds(body, cell, context, used, measured, speed) for cell in todo]
    total = sum(each) + cost.losses_seconds(body, context, measured, speed)
    what = (
        "head left alone" if not body.head else "head quantized" + (", and the embedding with it" if body.tied else "")
    )
    console.print(
        f"{source.name}: {source.config.model_type}, {len(body.groups)} blocks, N = {body.blocks:,} in their matrices "
        f"of {body.total:,} parameters; {what}"
    )
    console.print(f"text: {found.about}; {used} windows of {context} tokens to calibrate, {measured} others to measure")
    console.print(
        f"memory: {_gib(needs.peak)} at most (model {_gib(needs.model)}, evaluation {_gib(needs.evaluation)} or "
        f"quantization {_gib(needs.quantization)}, this process {_gib(needs.baseline)})"
    )
    console.print(f"time: {duration(total)} for {len(todo)} cells of {len(cells)} on {device} (rough)")


def _gib(count: float) -> str:
    return f"{count / 2**30:.2f} GiB"


def _check_memory(needs: "Memory", device: "torch.device") -> None:
    from shared.errors import BitlawError
    from shared.ptq.cost import available_bytes

    free = available_bytes(device)
    wanted = needs.peak - needs.baseline
    if free is not None and wanted > SURELY * free:
        raise BitlawError(
            f"out of memory: {_gib(wanted)} are needed and {_gib(free)} are free on {device}: give a smaller --context "
            "or --calibration, a larger device or a smaller model"
        )


def _measure(
    source: "Source",
    body: "Anatomy",
    results: "Results",
    settings: dict[str, Any],
    todo: "Sequence[Cell]",
    saved: "Sequence[Cell]",
    found: "Windows",
    device: "torch.device",
    head: bool,
) -> "Tensor":
    """Every cell that is not there yet; returns the losses (S,) of the model as it is."""
    import gc

    from replications.commands.measured import bar
    from shared.ptq.cells import row_of, window_losses
    from shared.ptq.cost import batch_of
    from shared.ptq.methods import find_method
    from shared.ptq.models import open_model, open_tokenizer, release
    from shared.ptq.save import save_model
    from shared.ptq.sequential import quantize

    batch = batch_of(body, found.context)
    batches = -(-len(found.evaluation) // batch)
    steps = batches + len(body.groups) + bool(head)
    base_S = results.base()
    with bar(steps * len(todo) + (batches if base_S is None else 0), "opening the model") as tell:
        if base_S is None:
            base_S = window_losses(open_model(source, device), found.evaluation, batch, lambda: tell("unquantized"))
            results.keep_base(base_S, settings)
        for cell in todo:
            gc.collect()  # the model before it holds itself
            release()
            begun = time.perf_counter()

            def step(name: str = cell.name) -> None:
                tell(name)

            loaded = open_model(source, device)
            made = quantize(
                loaded, find_method(cell.method), cell.quantizer, found.calibration, batch, with_head=head, tell=step
            )
            losses_S = window_losses(loaded, found.evaluation, batch, step)
            row = row_of(cell, made, losses_S, base_S, begun)
            if cell in saved:
                save_model(loaded, open_tokenizer(source), _model_folder(results, cell), row)
            results.keep(cell, row)
            del loaded
    return base_S


def _write(
    source: "Source",
    body: "Anatomy",
    text: str,
    results: "Results",
    cells: "Sequence[Cell]",
    base_S: "Tensor",
    law: "tuple[Law, Fit] | None",
    tokens: float | None,
    peak: float,
    needs: "Memory",
) -> None:
    """table.csv, results.json and the figure, of every cell of this call; and what the terminal shows."""
    import pandas as pd
    from rich.table import Table

    from replications.commands.laws import console
    from replications.commands.train import warn
    from replications.penalty import effective_size, figure, penalties
    from shared.evaluate.losses import mean
    from shared.files import replacing, write_json
    from shared.report.figures import style

    base = mean(base_S)
    rows = [row for cell in cells if (row := results.row(cell, warn))]
    at_base = effective_size(*law, base.value, tokens) if law else None
    for row in rows:
        if law and at_base:
            size = effective_size(*law, row["loss"], tokens)
            row["n_eff"] = size["value"]
            row["n_eff_low"], row["n_eff_high"] = size["low"], size["high"]
            row["n_eff_share"] = size["value"] / at_base["value"] if size["value"] and at_base["value"] else None
    fitted = penalties(rows, base.value)
    with replacing(results.folder / "table.csv") as temporary:
        pd.DataFrame(rows).to_csv(temporary, index=False, float_format="%.6g")
    write_json(
        results.folder / "results.json",
        {
            "model": source.name,
            "text": text,
            "settings": results.settings(),
            "base": {"loss": base.value, "loss_se": base.se, "n_base_law": at_base},
            "N": body.blocks,
            "parameters": body.total,
            "cells": rows,
            "penalty_laws": fitted,
            "base_law": None if law is None else {"law": law[0].name, "D": tokens, "status": law[1].status},
            "memory": {"baseline_bytes": needs.baseline, "predicted_bytes": needs.peak, "measured_bytes": peak},
        },
    )
    with style.theme():
        style.save(figure(rows, source.name), results.folder, "delta")
    table = Table("cell", box=None, padding=(0, 2, 0, 0))
    for heading in ("bits/weight", "relative MSE", "loss", "delta", "+- (se)", *(["N_eff", "N_eff/N"] if law else [])):
        table.add_column(heading, justify="right", no_wrap=True)
    for row in rows:
        numbers = [f"{row['bits_per_weight']:.3f}", f"{row['relative_mse']:.3g}", f"{row['loss']:.5f}"]
        numbers += [f"{row['delta']:+.5f}", f"{row['delta_se']:.5f}"]
        if law:
            numbers += [_or_none(row["n_eff"], "{:.3g}"), _or_none(row["n_eff_share"], "{:.3f}")]
        table.add_row(row["cell"], *numbers)
    print(f"unquantized: {base.value:.5f} nats per token, se {base.se:.5f}")
    console().print(table)
    for one in fitted:
        constants = ", ".join(
            f"{name} {e['value']:.4g} [{e['low']:.3g}, {e['high']:.3g}]" for name, e in one.get("constants", {}).items()
        )
        note = "; ".join(one["reasons"]) if one["status"] == "FAILED" else constants
        print(f"{one['law']}, {one['method']} {one['kind']} {one['group_size']}: {one['status']}, {note}")
    if not fitted:
        print("no penalty law: it needs three bit widths of one kind of format, method and group")
    print(f"{results.folder}: table.csv, results.json, delta.svg; memory {_gib(peak)} at most")


def _or_none(value: float | None, form: str) -> str:
    return "none" if value is None else form.format(value)
