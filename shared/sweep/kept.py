"""The few checkpoints that are in git: `reports/checkpoints/<run_id>.safetensors` and `index.json` beside them.

Tests, post-training quantization and the predictor use them; every other checkpoint is trained again when needed.
`<run_id>.cells.npz` in `checkpoints` beside a measurements.csv holds what some quantizations add to a checkpoint's
loss, sequence by sequence: a difference between two methods has a standard error that the table's rows cannot tell.
"""

from collections.abc import Callable
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from shared.errors import BitlawError
from shared.evaluate.ptq import Cell
from shared.files import read_json, replacing, write_json
from shared.model import Decoder
from shared.sweep.ledger import Ledger
from shared.sweep.spec import Run
from shared.sweep.tables import read_arrays, read_base_losses, read_runs
from shared.train.state import checksum, load, save
from shared.train.trunk import low_precision


def keep(ledger: Ledger, runs: list[Run], folder: Path) -> int:
    """Copy finished checkpoints into `folder` and list them; returns their bytes.

    Raises BitlawError when one has not been trained here or diverged.
    """
    index, size = {}, 0
    for run in runs:
        run_id = run.spec.run_id
        result = ledger.result(run_id, lambda sentence: None)
        if result is None or result["diverged"]:
            raise BitlawError(f"run {run_id} ({run.label}) has no checkpoint in {ledger.build}: train it first")
        weights = ledger.weights(run_id)
        path = folder / f"{run_id}.safetensors"
        sha256 = checksum(weights)
        if not path.exists() or checksum(load(path)[0]) != sha256:
            save(path, weights, {"run_id": run_id})
        size += path.stat().st_size
        index[run_id] = run.to_json() | {"loss": result["loss"], "tensors_sha256": sha256}
    write_json(folder / "index.json", index)
    return size


def kept(folder: Path) -> dict[str, Run]:
    """The runs whose checkpoints are in `folder`, by id. Raises BitlawError when an id is not its run's."""
    path = folder / "index.json"
    index = read_json(path)
    if not isinstance(index, dict):
        raise BitlawError(f"{path}: is no list of checkpoints by run id: restore it from git")
    runs = {run_id: Run.from_json(entry) for run_id, entry in index.items()}
    for run_id, run in runs.items():
        # The id becomes a file's name: it is what its spec hashes to, or nothing.
        if run_id != run.spec.run_id:
            raise BitlawError(f"{path}: {run_id!r} is not the id of its spec ({run.spec.run_id}): restore it from git")
    return runs


def kept_weights(folder: Path, run_id: str) -> dict[str, Tensor]:
    """Raises BitlawError (DamagedFileError) when the file is absent or changed."""
    weights, notes = load(folder / f"{run_id}.safetensors")
    if notes.get("run_id") != run_id:
        raise BitlawError(f"{folder / run_id}.safetensors holds run {notes.get('run_id')}: restore it from git")
    return weights


def kept_model(folder: Path, run_id: str) -> Decoder:
    """A committed checkpoint as a model in FP32, with its casts if it was trained with any."""
    runs = kept(folder)
    if run_id not in runs:
        raise BitlawError(f"run {run_id!r} is not in {folder / 'index.json'}: choose one of {', '.join(sorted(runs))}")
    recipe = runs[run_id].spec.recipe
    model = low_precision(recipe.shape, recipe.precision, recipe.sparsity)
    model.load_state_dict(kept_weights(folder, run_id))
    return model.eval()


def restore(folder: Path, ledger: Ledger, runs: list[Run]) -> None:
    """Put kept checkpoints into a ledger that lacks them, with their rows of runs.csv and losses beside the folder.

    Raises BitlawError when a row, losses or a checkpoint is missing or damaged.
    """
    rows, losses = read_runs(folder.parent), read_base_losses(folder.parent)
    for run in runs:
        run_id = run.spec.run_id
        if ledger.result(run_id, lambda sentence: None) is not None:
            continue
        if (run_id,) not in rows or run_id not in losses:
            raise BitlawError(f"run {run_id} of {folder} has no row in runs.csv or losses in base_losses.npz beside it")
        # Texts as in the table, where they come back to as they are; what is computed with becomes what it was.
        known = {name: text or None for name, text in rows[(run_id,)].items()}
        result = known | {"diverged": known["diverged"] == "True", "loss": float(rows[(run_id,)]["loss"])}
        if result["base_run_id"] is None:
            del result["base_run_id"]
        ledger.finish(run, kept_weights(folder, run_id), torch.from_numpy(losses[run_id]), result)


def kept_cells(folder: Path, run_id: str) -> dict[str, NDArray[np.float32]]:
    """What quantizations of a checkpoint add to its validation losses (S,), nats per token, by the cell's name."""
    return read_arrays(folder / f"{run_id}.cells.npz")


def keep_cells(ledger: Ledger, folder: Path, cells: dict[str, list[Cell]], warn: Callable[[str], None]) -> int:
    """Copy what the cells of kept checkpoints add, by sequence, from the ledger into `folder`; returns how many."""
    count = 0
    for run_id, wanted in cells.items():
        base_S = ledger.losses(run_id).double()
        measured = {cell.name: ledger.cell_losses(run_id, cell.name, warn) for cell in wanted}
        deltas = {
            name: (losses_S.double() - base_S).float().numpy()
            for name, losses_S in measured.items()
            if losses_S is not None
        }
        count += len(deltas)
        known = kept_cells(folder, run_id)
        if all(np.array_equal(known.get(name, np.empty(0)), delta_S) for name, delta_S in deltas.items()):
            continue
        known |= deltas
        with replacing(folder / f"{run_id}.cells.npz") as temporary, temporary.open("wb") as opened:
            np.savez(opened, **{name: known[name] for name in sorted(known)})  # type: ignore[arg-type]
    return count
