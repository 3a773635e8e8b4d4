"""What claims about mechanisms need of a checkpoint itself: rows of `reports/statistics.csv`.

kurtosis  of what each product reads (Chen et al., arXiv 2505.14302: the input of FC2), on 64 validation windows
change    of the weights to the trunk's next horizon, relative and squared as `relative_mse` of measurements.csv
          (Ouyang et al., arXiv 2411.17691, Figure 12)
copying   what a repeated half of a window is easier by, in nats (replications/copying.py)
second    delta of rounding to nearest on the validation part of another corpus (their Figure 8), at the longest D
"""

from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch

from replications.pool import Expected
from shared.corpus.load import load_corpus
from shared.evaluate.losses import evaluator, paired, validation_windows
from shared.evaluate.ptq import Cell, measure_losses
from shared.evaluate.statistics import copying, input_kurtosis, weight_change
from shared.model import Decoder
from shared.sweep.ledger import Ledger
from shared.sweep.spec import Run
from shared.train.trunk import low_precision

COLUMNS = (
    "run_id", "size", "corpus", "n_blocks", "tokens", "cooled", "seed", "weights", "activations", "quantity", "of",
    "value", "se", "numerics_version",
)  # fmt: skip
KEY = ("run_id", "quantity", "of")
WINDOWS = 64
SECOND = {"python": "english", "english": "python"}
SECOND_CELLS = tuple(Cell("rtn", form, "channel") for form in ("INT4", "INT3", "INT2"))


@dataclass(frozen=True)
class Job:
    """One checkpoint and the quantities wanted of it; `after` is the trunk's checkpoint at the next horizon."""

    run: Run
    quantities: tuple[str, ...]
    after: Run | None


def jobs(want: Expected, ledger: Ledger, have: set[tuple[str, ...]], warn: Callable[[str], None]) -> list[Job]:
    """What is not in `have` (run_id, quantity) of the runs whose checkpoints are here."""
    here = {run.spec.run_id: run for run in want.runs if ledger.whole(run.spec.run_id, warn)}
    longest = {run.size: max(r.spec.tokens for r in here.values() if r.size == run.size) for run in here.values()}
    found = []
    for run in here.values():
        spec, after = run.spec, None
        wanted = ["copying", *(["kurtosis"] if spec.cooled else [])]
        if spec == spec.base:
            after = here.get(replace(spec, tokens=2 * spec.tokens).run_id) if not spec.cooled else None
            wanted += ["change"] if after else []
            wanted += ["second"] if spec.tokens == longest[run.size] else []
        left = tuple(quantity for quantity in wanted if (spec.run_id, quantity) not in have)
        if left:
            found.append(Job(run, left, after))
    return found


def measure(job: Job, ledger: Ledger, root: Path) -> list[dict[str, Any]]:
    """Rows of one checkpoint. Raises BitlawError when a corpus is missing or a checkpoint damaged."""
    run, spec = job.run, job.run.spec
    result = ledger.result(spec.run_id, lambda sentence: None)
    if result is None or result["diverged"]:
        return []
    weights = ledger.weights(spec.run_id)
    torch.set_num_threads(spec.threads)
    model = low_precision(spec.shape, spec.recipe.precision, spec.recipe.sparsity)
    model.load_state_dict(weights)
    values: dict[tuple[str, str], tuple[float, float | None]] = {}
    windows_ST = validation_windows(load_corpus(run.corpus, root).val, spec.context, WINDOWS * spec.context)
    if "copying" in job.quantities:
        values["copying", "validation"] = copying(model, windows_ST), None
    if "kurtosis" in job.quantities:
        values |= {("kurtosis", of): (value, None) for of, value in input_kurtosis(model, windows_ST).items()}
    if "change" in job.quantities and job.after is not None:
        change = weight_change(weights, ledger.weights(job.after.spec.run_id))
        values |= {("change", of): (value, None) for of, value in change.items()}
    if "second" in job.quantities:
        values |= {("second", of): seen for of, seen in _second(model, run, root).items()}
    known = {name: result[name] for name in COLUMNS if name in result}
    known |= {"weights": spec.weights, "activations": spec.activations}
    return [known | {"quantity": q, "of": of, "value": v, "se": se} for (q, of), (v, se) in values.items()]


def _second(model: Decoder, run: Run, root: Path) -> dict[str, tuple[float, float | None]]:
    """Delta in nats a token and its standard error, by cell, on the other corpus's validation windows."""
    windows_ST = validation_windows(load_corpus(SECOND[run.corpus], root).val, run.spec.context)
    losses = evaluator(model, compiled=False)
    base_S = losses(windows_ST).double()
    found: dict[str, tuple[float, float | None]] = {}
    for cell in SECOND_CELLS:
        _, losses_S = measure_losses(model, cell, losses, windows_ST, base_S)
        delta = paired(losses_S, base_S)
        found[f"{SECOND[run.corpus]} {cell.format}@{cell.group_size}"] = (delta.value, delta.se)
    return found
