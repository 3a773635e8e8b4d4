"""`bitlaw predictor` and `bitlaw low-data`: fine-tune, round, and fit the law of what is lost."""

import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from replications.commands.measured import BASE_LAWS, bar, check_settings, clean_law, finish, read_rows, write_rows

if TYPE_CHECKING:
    import torch

    from replications.precision_predictor.finetune import Recipe
    from replications.precision_predictor.subject import Subject
    from shared.ptq.cells import Cell
    from shared.ptq.text import Windows

# Cooled checkpoints of the repository: 0.1M parameters after 4M and 32M tokens, and 0.4M after 32M.
DEFAULT = ["db3235969afb", "e917f2b43924", "26a9f235f1ca"]
ENGLISH = "english"
# Of a corpus of ours, which has tens of millions; a data set of the hub is taken whole, as on the page.
CORPUS_TOKENS = 2**17
PAGE_CONTEXT, FAST_CONTEXT = 512, 256
WINDOWS = 128
# The page's 5e-5 is for a model that others trained; ours take a tenth of the peak rate they were trained with.
PEAK_SHARE = 0.1
LOW_TOKENS = 10_000
Models = Annotated[list[str], typer.Argument(metavar="MODEL...", help="a committed run id, a folder or a hub id")]
Dataset = Annotated[str, typer.Option("--dataset", help="a corpus of `bitlaw data`, or NAME[:CONFIG][@REVISION]")]
Text = Annotated[list[Path], typer.Option("--text", help="UTF-8 text instead of a data set; repeatable")]
Context = Annotated[int, typer.Option("--context", min=0, help="of a block; 0: 512, or the model's")]
Evaluated = Annotated[int, typer.Option("--windows", min=2, help="to measure on")]
Epochs = Annotated[int, typer.Option("--epochs", min=1)]
Batch = Annotated[int, typer.Option("--batch", min=1, help="blocks")]
Accumulation = Annotated[int, typer.Option("--accumulation", min=1, help="batches of a step")]
Rate = Annotated[float, typer.Option("--learning-rate", help="0: 5e-5, and of our checkpoints a tenth of their peak")]
Optimizer = Annotated[str, typer.Option("--optimizer", help="adamw or adamw8bit (bitsandbytes)")]
TrainTokens = Annotated[int, typer.Option("--train-tokens", min=0, help="0: all; of our corpora 131,072")]
BTrain = Annotated[float, typer.Option("--b-train", min=9, max=64, help="bits that the weights were trained in")]
Device = Annotated[str, typer.Option("--device", help="auto, cpu or cuda")]
Revision = Annotated[str, typer.Option("--revision", help="of a hub id")]
DryRun = Annotated[bool, typer.Option("--dry-run", help="print the cost and stop")]
Out = Annotated[Path, typer.Option("--out", help="folder")]


def predictor(
    models: Models = DEFAULT,
    dataset: Dataset = ENGLISH,
    text: Text = [],  # noqa: B006
    bits: Annotated[str, typer.Option("--bits", help="default: 8,6,5,4,3,2")] = "",
    fast: Annotated[bool, typer.Option("--fast", help="the page's fast variant: context 256, 8 to 4 bits")] = False,
    method: Annotated[str, typer.Option("--method", help="rtn, gptq, awq, guided")] = "rtn",
    group: Annotated[str, typer.Option("--group", help="inputs that share a scale, or channel")] = "channel",
    context: Context = 0,
    windows: Evaluated = WINDOWS,
    no_finetune: Annotated[bool, typer.Option("--no-finetune", help="measure the model as it is")] = False,
    train_tokens: TrainTokens = 0,
    epochs: Epochs = 2,
    batch: Batch = 2,
    accumulation: Accumulation = 4,
    learning_rate: Rate = 0.0,
    optimizer: Optimizer = "adamw",
    seed: Annotated[int, typer.Option("--seed", min=0)] = 0,
    b_train: BTrain = 16.0,
    base_law: Annotated[str, typer.Option("--base-law", help=BASE_LAWS)] = "",
    N: Annotated[float, typer.Option("--N", min=0, help="of the effective parameters; 0: the blocks' weights")] = 0.0,
    D: Annotated[float, typer.Option("--D", min=0, help="tokens it was trained on; 0: as known of ours")] = 0.0,
    device: Device = "auto",
    revision: Revision = "main",
    out: Out = Path("build/predictor"),
    dry_run: DryRun = False,
) -> None:
    """Fine-tune models, measure them at each bit width, fit the gap law and its rivals, and derive N_eff. Resumes."""
    from replications.precision_predictor.figures_predictor import predictor_drawings
    from replications.precision_predictor.finetune import Recipe
    from replications.precision_predictor.forms import LEAST_WIDTHS
    from replications.precision_predictor.measure import BITS, FAST_BITS, parse_bits, size_of, windows_of
    from replications.precision_predictor.predictor import COLUMNS, KEY, lines, summarise
    from replications.precision_predictor.subject import open_subject
    from shared.errors import BitlawError
    from shared.ptq.cells import check_groups, expand
    from shared.ptq.layers import listed
    from shared.train.device import pick

    widths = parse_bits(bits, LEAST_WIDTHS) if bits else FAST_BITS if fast else BITS
    cells = expand([method], [f"INT{one}" for one in widths], [group])
    if len(models) > 1 and (N or D):
        raise BitlawError("--N and --D are of one model: give one")
    law = clean_law(base_law)
    dataset = "" if text else dataset
    where = pick(device)
    rows: list[dict[str, Any]] = []
    for name in models:
        subject = open_subject(name, where, revision)
        check_groups(cells, listed(subject.model, False))
        length = context or min(FAST_CONTEXT if fast else PAGE_CONTEXT, subject.context)
        found = windows_of(subject, dataset, text, length, _training(train_tokens, dataset), windows)
        recipe = Recipe(epochs, batch, accumulation, learning_rate or default_rate(name), optimizer, seed)
        about: dict[str, Any] = {
            "model": name, "parameters": sum(p.numel() for p in subject.model.parameters()), "text": found.about,
            "N": N or size_of(subject), "D": D or subject.D, "context": length, "windows": len(found.evaluation),
            "finetuned_tokens": 0 if no_finetune else found.calibration.numel(), "epochs": 0 if no_finetune else epochs,
            "learning_rate": 0.0 if no_finetune else recipe.learning_rate,
            "optimizer": "" if no_finetune else optimizer,
        }  # fmt: skip
        if dry_run:
            _show_cost(subject, found, recipe, len(cells), about)
            continue
        rows += _model_rows(subject, found, recipe, cells, about, out / _folder(name), where)
    if dry_run:
        return
    write_rows(out / "table.csv", COLUMNS, KEY, rows)
    finish(out, read_rows(out / "table.csv", COLUMNS, KEY), lambda all_rows: summarise(all_rows, law, b_train),
           lines, predictor_drawings)  # fmt: skip


def low_data(
    model: Annotated[str, typer.Argument(metavar="MODEL", help="a committed run id, a folder or a hub id")] = DEFAULT[
        1
    ],
    dataset: Dataset = ENGLISH,
    text: Text = [],  # noqa: B006
    low_tokens: Annotated[int, typer.Option("--low-tokens", min=1, help="of the small part")] = LOW_TOKENS,
    train_tokens: TrainTokens = 0,
    seeds: Annotated[int, typer.Option("--seeds", min=2, help="orders, and parts of the text")] = 5,
    context: Context = 0,
    windows: Evaluated = WINDOWS,
    epochs: Epochs = 2,
    batch: Batch = 2,
    accumulation: Accumulation = 4,
    learning_rate: Rate = 0.0,
    optimizer: Optimizer = "adamw",
    device: Device = "auto",
    revision: Revision = "main",
    out: Out = Path("build/low_data"),
    dry_run: DryRun = False,
) -> None:
    """Does the exponent differ after fine-tuning on 10k tokens and on all? By the page's bound of 0.2. Resumes."""
    from replications.precision_predictor import low_data as test
    from replications.precision_predictor.figures_predictor import low_data_drawings
    from replications.precision_predictor.finetune import Recipe
    from replications.precision_predictor.measure import BITS, windows_of
    from replications.precision_predictor.subject import open_subject
    from shared.train.device import pick

    dataset = "" if text else dataset
    subject = open_subject(model, pick(device), revision)
    length = context or min(PAGE_CONTEXT, subject.context)
    found = windows_of(subject, dataset, text, length, _training(train_tokens, dataset), windows)
    recipe = Recipe(epochs, batch, accumulation, learning_rate or default_rate(model), optimizer)
    arms = test.arms(found.calibration, low_tokens, seeds)
    if dry_run:
        _show_cost(subject, found, recipe, seeds * len(BITS), {"model": model, "finetuned_tokens": seeds * sum(
            arm.blocks_ST.numel() for arm in arms[:2])})  # fmt: skip
        return
    check_settings(out, {"model": model, "text_sha256": found.sha256, "recipe": str(recipe), "low_tokens": low_tokens})
    known = read_rows(out / "table.csv", test.COLUMNS, test.KEY)
    done = {(str(row["arm"]), int(row["seed"])) for row in known}
    todo = [arm for arm in arms if (arm.name, arm.seed) not in done]
    steps = sum(len(test.steps(arm, recipe)) for arm in todo)
    with bar(steps) as tell:
        for arm in todo:
            rows = test.measure(subject.model, arm, recipe, found, lambda what: tell(what))
            write_rows(out / "table.csv", test.COLUMNS, test.KEY, [{"model": model, **row} for row in rows])
    finish(out, read_rows(out / "table.csv", test.COLUMNS, test.KEY), test.summarise, test.lines, low_data_drawings)


def _training(asked: int, dataset: str) -> int:
    from shared.corpus.load import corpus_names

    return asked or (CORPUS_TOKENS if dataset in corpus_names() else 0)


def default_rate(name: str) -> float:
    from replications.precision_predictor.finetune import Recipe
    from replications.precision_predictor.subject import CHECKPOINTS
    from shared.sweep.kept import kept

    runs = kept(CHECKPOINTS) if (CHECKPOINTS / "index.json").exists() else {}
    return PEAK_SHARE * runs[name].spec.learning_rate if name in runs else Recipe().learning_rate


def _folder(name: str) -> str:
    """A file name for a model: the last part of a folder, a hub id whole."""
    path = Path(name)
    return path.resolve().name if path.is_dir() else name.replace("/", "--")


def _model_rows(
    subject: "Subject",
    found: "Windows",
    recipe: "Recipe",
    cells: "Sequence[Cell]",
    about: dict[str, Any],
    folder: Path,
    device: "torch.device",
) -> list[dict[str, Any]]:
    """Fine-tune unless that is done, measure what is not there yet, and return the rows of these cells."""

    from transformers.utils import logging

    from replications.commands.train import warn
    from replications.precision_predictor.finetune import finetune, schedule
    from replications.precision_predictor.measure import losses_of, sweep
    from shared.evaluate.losses import mean
    from shared.ptq.cells import Results
    from shared.ptq.models import find_model, open_model
    from shared.ptq.save import save_model

    logging.disable_progress_bar()
    results: Results = Results(folder)
    settings = {
        "model": about["model"], "text_sha256": found.sha256, "context": about["context"],
        "recipe": str(recipe) if about["finetuned_tokens"] else "none", "device": device.type,
    }  # fmt: skip
    results.check(settings)
    model, tuned = subject.model, folder / "model"
    todo = [cell for cell in cells if results.row(cell, warn) is None]
    steps = len(schedule(len(found.calibration), recipe)) if about["finetuned_tokens"] and not tuned.exists() else 0
    base_S = results.base()
    with bar(steps + len(todo)) as tell:
        if steps:
            results.keep_settings(settings)
            trained = finetune(model, found.calibration, recipe, folder / "training.safetensors",
                               lambda step, _: tell(f"{about['model']}: fine-tuning"))  # fmt: skip
            save_model(model, subject.tokenizer, tuned, {**settings, **vars(trained)})
        elif tuned.exists() and about["finetuned_tokens"]:
            model = open_model(find_model(str(tuned)), device)
        if base_S is None:
            base_S = losses_of(model, found.evaluation)
            results.keep_base(base_S, settings)
        for cell in todo:
            results.keep(cell, sweep(model, cell, found, base_S))
            tell(f"{about['model']}: {cell.name}")
    base = mean(base_S)
    rows = [row for cell in cells if (row := results.row(cell, warn))]
    return [{**about, "base_loss": base.value, "base_loss_se": base.se, **row} for row in rows]


def _show_cost(subject: "Subject", found: "Windows", recipe: "Recipe", cells: int, about: Mapping[str, Any]) -> None:
    """Time of one batch forward and back and of one batch of windows, times how many there are."""
    import torch

    from replications.commands.train import duration
    from replications.precision_predictor.measure import batch_of, losses_of
    from shared.model.transformer import token_losses

    ids_BT = found.calibration[: recipe.batch].to(next(subject.model.parameters()).device)
    took = []
    for _ in range(2):  # the first one warms up
        begun = time.perf_counter()
        token_losses(subject.model(input_ids=ids_BT).logits[:, :-1], ids_BT[:, 1:]).mean().backward()
        took.append(time.perf_counter() - begun)
    subject.model.zero_grad(set_to_none=True)
    some = found.evaluation[: batch_of(subject.model, found.context)]
    begun = time.perf_counter()
    losses_of(subject.model, some)
    measuring = (time.perf_counter() - begun) * len(found.evaluation) / len(some) * (cells + 1)
    training = took[-1] * recipe.epochs * about["finetuned_tokens"] / ids_BT.numel()
    weights = sum(p.numel() for p in subject.model.parameters())
    print(
        f"{about['model']}: {about['finetuned_tokens']:,} tokens x {recipe.epochs} epochs at {recipe.learning_rate:g} "
        f"({duration(training)}), {cells} widths on {len(found.evaluation)} windows of {found.context} "
        f"({duration(measuring)}); about {5 * 4 * weights / 2**30:.2f} GiB for weights, gradients, moments and a copy "
        f"({torch.get_num_threads()} threads, rough)"
    )
