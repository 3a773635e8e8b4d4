"""The few checkpoints that are in git: `reports/checkpoints/<run_id>.safetensors` and `index.json` beside them.

Tests, post-training quantization and the predictor use them; every other checkpoint is trained again when needed.
"""

from pathlib import Path

from torch import Tensor

from shared.errors import BitlawError
from shared.files import read_json, write_json
from shared.model import Decoder
from shared.sweep.ledger import Ledger
from shared.sweep.spec import Run
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
    """The runs whose checkpoints are in `folder`, by id."""
    return {run_id: Run.from_json(entry) for run_id, entry in read_json(folder / "index.json").items()}


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
