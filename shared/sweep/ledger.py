"""What runs leave behind, under `build/` (git-ignored): one folder a checkpoint, one a trunk.

    build/runs/<run_id>/    spec.json  checkpoint.safetensors  losses.safetensors  result.json
                            cells/<cell>.json  cells/<cell>.safetensors (its per-sequence losses)
    build/trunks/<trunk_id>/  claim  trunk.safetensors  branch.safetensors  progress.json

A checkpoint counts as finished once `result.json` is there: it is written last. So is a cell's json. Both carry a
checksum of what they say; those from before 2026-11-22 do not.
"""

import hashlib
import json
import re
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from torch import Tensor

from shared.errors import BitlawError
from shared.files import six_digits, write_json
from shared.sweep.spec import Run
from shared.train.state import DamagedFileError, load, save

Result = dict[str, Any]


@dataclass(frozen=True)
class Ledger:
    """The folder of one machine or of a cluster."""

    build: Path

    def run_folder(self, run_id: str) -> Path:
        """Raises BitlawError for what is no id: tables name runs, and no table may name another folder."""
        return self.build / "runs" / checked_id(run_id)

    def trunk_folder(self, trunk_id: str) -> Path:
        return self.build / "trunks" / checked_id(trunk_id)

    def finish(self, run: Run, weights: dict[str, Tensor], losses_S: Tensor | None, result: Result) -> None:
        """Publish a checkpoint: spec, weights, per-sequence losses (absent when diverged), then the result."""
        folder = self.run_folder(run.spec.run_id)
        write_json(folder / "spec.json", run.to_json())
        save(folder / "checkpoint.safetensors", weights, {"run_id": run.spec.run_id})
        if losses_S is not None:
            save(folder / "losses.safetensors", {"losses": losses_S.float()}, {"run_id": run.spec.run_id})
        write_json(folder / "result.json", sealed(result))

    def result(self, run_id: str, warn: Callable[[str], None]) -> Result | None:
        """The result of a finished run. A damaged one is named through `warn`, removed, and counts as not finished."""
        path = self.run_folder(run_id) / "result.json"
        return read_or_remove(path, ("run_id", run_id), "the run is done again", warn, unsealed=True)

    def weights(self, run_id: str) -> dict[str, Tensor]:
        """Raises DamagedFileError."""
        return self._tensors(run_id, "checkpoint.safetensors")

    def losses(self, run_id: str) -> Tensor:
        """Per-sequence validation losses (S,). Raises DamagedFileError."""
        return losses_in(self._tensors(run_id, "losses.safetensors"), self.run_folder(run_id) / "losses.safetensors")

    def _tensors(self, run_id: str, name: str) -> dict[str, Tensor]:
        path = self.run_folder(run_id) / name
        tensors, notes = load(path)
        if notes.get("run_id") != run_id:
            raise DamagedFileError(f"{path}: is of run {notes.get('run_id')}; remove it and run again")
        return tensors

    def whole(self, run_id: str, warn: Callable[[str], None]) -> bool:
        """Whether result, checkpoint and losses of a run are all at hand and undamaged; damage is named and removed."""
        result = self.result(run_id, warn)
        if result is None:
            return False
        try:
            self.weights(run_id)
            if not result["diverged"]:
                self.losses(run_id)
        except DamagedFileError as error:
            warn(f"{error} (done: the run is trained again)")
            (self.run_folder(run_id) / "result.json").unlink(missing_ok=True)
            return False
        return True

    def cell_file(self, run_id: str, cell: str) -> Path:
        """Raises BitlawError for what is no name of a cell."""
        if not re.fullmatch(r"[A-Za-z0-9._:+-]+", cell):
            raise BitlawError(f"cell {cell!r} cannot be the name of a file: its method or format is wrong")
        return self.run_folder(run_id) / "cells" / f"{cell}.json"

    def cell(self, run_id: str, cell: str, warn: Callable[[str], None]) -> Result | None:
        path = self.cell_file(run_id, cell)
        return read_or_remove(path, ("run_id", run_id), "the cell is measured again", warn, unsealed=True)

    def measured(self, run_id: str, cell: str, warn: Callable[[str], None]) -> bool:
        """A cell's row and losses are here and sound."""
        return self.cell(run_id, cell, warn) is not None and self.cell_losses(run_id, cell, warn) is not None

    def finish_cell(self, run_id: str, cell: str, row: Result, losses_S: Tensor) -> None:
        """Publish a measurement: per-sequence losses, then the row."""
        save(self.cell_file(run_id, cell).with_suffix(".safetensors"), {"losses": losses_S.float()}, {"run_id": run_id})
        write_json(self.cell_file(run_id, cell), sealed(row))

    def cell_losses(self, run_id: str, cell: str, warn: Callable[[str], None]) -> Tensor | None:
        """Per-sequence losses (S,) under a quantization, or None; damaged ones are named through `warn` and removed."""
        path = self.cell_file(run_id, cell).with_suffix(".safetensors")
        if not path.exists():
            return None
        try:
            return losses_in(load(path)[0], path)
        except DamagedFileError as error:
            warn(f"{error} (removed: the cell is measured again)")
            path.unlink(missing_ok=True)
            return None


def losses_in(tensors: dict[str, Tensor], path: Path) -> Tensor:
    """Raises DamagedFileError when the file is sound and holds something else."""
    if "losses" not in tensors:
        raise DamagedFileError(f"{path}: holds no losses; remove it and run again")
    return tensors["losses"]


def checked_id(name: str) -> str:
    if not re.fullmatch(r"[A-Za-z0-9_-]{1,64}", name):
        raise BitlawError(f"{name!r} is no run id (12 hexadecimal digits): restore the table that names it from git")
    return name


def sealed(value: Result) -> Result:
    """What is written to a JSON file, with the checksum of it."""
    value = six_digits(value)
    return value | {"sha256": seal(value)}


def seal(value: Result) -> str:
    text = json.dumps(value, sort_keys=True)
    return hashlib.sha256(text.encode()).hexdigest()


def read_or_remove(
    path: Path, owner: tuple[str, str], then: str, warn: Callable[[str], None], unsealed: bool = False
) -> Result | None:
    """What was left in a file, or None. A damaged one, or another owner's, is named through `warn` and removed.

    `owner` is a key and what it must say; `unsealed`: files without a checksum are taken as well.
    """
    if not path.exists():
        return None
    try:
        value = json.loads(path.read_text(encoding="utf-8"))
        if not isinstance(value, dict) or value.get(owner[0]) != owner[1]:
            raise BitlawError(f"it is not of {owner[0].removesuffix('_id')} {owner[1]}")
        if not (unsealed and "sha256" not in value) and value.pop("sha256", None) != seal(value):
            raise BitlawError("it does not match its checksum")
    except (ValueError, RecursionError) as error:
        warn(f"{path}: is damaged, {error} (removed: {then})")
        path.unlink(missing_ok=True)
        return None
    return value
