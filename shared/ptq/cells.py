"""A cell of a run: one method, one format, one group; measured on the same windows as the model without it.

Shape letters: S windows, B windows of a batch, T positions.
"""

import math
import re
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from shared.errors import BitlawError
from shared.evaluate.losses import mean, paired
from shared.files import read_json, write_json
from shared.formats.names import beginning
from shared.model.transformer import token_losses
from shared.ptq.layers import Matrix
from shared.ptq.methods import find_method
from shared.ptq.sequential import Quantized
from shared.quantize.quantizer import PRESETS, Quantizer, parse_quantizer
from shared.quantize.sparsegpt import PLAIN_BITS
from shared.sweep.ledger import read_or_remove, seal, sealed
from shared.train.state import DamagedFileError, load, save

# Of a batch: tokens, logits, and outputs of the widest layer. As many windows as stay below all, and at least one.
BATCH_TOKENS = 8192
# Tensors of 4 and 8 MiB: on a CPU wider batches are no faster, and take memory.
BATCH_LOGITS = 2**21
BATCH_OUTPUTS = 2**20


@dataclass(frozen=True)
class Cell:
    """`format` may carry options of a quantizer (INT4:mse, MXFP4); `group` is inputs, channel or tensor."""

    method: str
    format: str
    group: str

    @property
    def quantizer(self) -> Quantizer | None:
        """None for "none" (pruning alone) and 16 bits or more. Raises BitlawError for an unknown format."""
        head, *options = self.format.split(":")
        if "@" in head:
            raise BitlawError(f"format {self.format}: give '{head.partition('@')[2]}' with --groups")
        if head not in PRESETS and (hint := beginning(head, PRESETS)):
            raise BitlawError(f"format {head!r} is unknown{hint} (`bitlaw formats` lists them)")
        return parse_quantizer(":".join([head if head in PRESETS else f"{head}@{self.group}", *options]))

    @property
    def name(self) -> str:
        return f"{self.method}-{self.format}-{self.group}"

    @property
    def file(self) -> str:
        return re.sub(r"[^A-Za-z0-9._-]", "_", self.name)


def expand(methods: Sequence[str], formats: Sequence[str], groups: Sequence[str]) -> list[Cell]:
    """Every combination once, in order; a preset such as MXFP4 has its own group, and so one cell a method.

    Raises BitlawError for an unknown method, format or group, and for a format that a method does not take.
    """
    cells, left_out = sorted_out(methods, formats, groups)
    for cell, reason in left_out.items():
        raise BitlawError(f"method {cell.method} does not take {cell.format} with group {cell.group}: {reason}")
    return cells


def sorted_out(
    methods: Sequence[str], formats: Sequence[str], groups: Sequence[str]
) -> tuple[list[Cell], dict[Cell, str]]:
    """As `expand`, but cells whose method does not take their format come apart, with the reasons.

    Raises BitlawError for an unknown method, format or group.
    """
    cells: dict[Cell, None] = {}
    left_out: dict[Cell, str] = {}
    for name in methods:
        method = find_method(name)
        for form in formats:
            preset = PRESETS.get(form.split(":")[0])
            for group in [str(preset[1])] if preset else ["channel"] if form == "none" else groups:
                cell = Cell(name, form, group)
                reason = method.refuses(cell.quantizer)
                if reason:
                    left_out[cell] = reason
                else:
                    cells[cell] = None
    return list(cells), left_out


def check_groups(cells: Sequence[Cell], matrices: Sequence[Matrix]) -> None:
    """Raises BitlawError when a group does not divide the inputs of a matrix, with the sizes that divide all."""
    shared = math.gcd(*(matrix.inputs for matrix in matrices))
    sizes = [str(size) for size in range(1, shared + 1) if shared % size == 0]
    for cell in cells:
        group = cell.quantizer.group if cell.quantizer else None
        for matrix in matrices:
            if isinstance(group, int) and matrix.inputs % group:
                raise BitlawError(
                    f"{cell.name}: groups of {group} do not divide the {matrix.inputs} inputs of {matrix.name}; "
                    f"{', '.join(sizes)} divide those of every layer, and channel takes whole rows"
                )


def batch_windows(context: int, vocabulary: int, widest: int) -> int:
    """Windows of a batch for a model with these tokens and its widest layer's outputs."""
    return max(1, min(BATCH_TOKENS, BATCH_LOGITS // vocabulary, BATCH_OUTPUTS // widest) // context)


@torch.no_grad()
def window_losses(model: Any, windows_ST: Tensor, batch: int, tell: Callable[[], None]) -> Tensor:
    """Mean loss of each window (S,), nats/token, float64; windows (S, T + 1). `tell` is called after each batch."""
    device = next(model.parameters()).device
    parts = []
    for windows_BT in windows_ST.split(batch):
        windows_BT = windows_BT.to(device)
        logits_BTV = model(input_ids=windows_BT[:, :-1], use_cache=False).logits
        parts.append(token_losses(logits_BTV, windows_BT[:, 1:]).mean(-1).cpu())
        del logits_BTV
        tell()
    return torch.cat(parts).double()


def row_of(cell: Cell, made: Quantized, losses_S: Tensor, base_S: Tensor, begun: float) -> dict[str, Any]:
    """What is kept of a measured cell. Raises BitlawError when its loss is not finite."""
    loss, delta = mean(losses_S), paired(losses_S, base_S)
    if not math.isfinite(loss.value):
        raise BitlawError(f"{cell.name}: the quantized model's loss is not finite: leave this cell out")
    return {
        "cell": cell.name,
        "method": cell.method,
        "format": cell.format,
        "group_size": cell.group,
        "bits": cell.quantizer.format.bits if cell.quantizer else PLAIN_BITS,
        "bits_per_weight": made.bits_per_weight,
        "weights": made.weights,
        "relative_mse": made.relative_mse,
        "loss": loss.value,
        "loss_se": loss.se,
        "delta": delta.value,
        "delta_se": delta.se,
        "seconds": time.perf_counter() - begun,
    }


@dataclass(frozen=True)
class Results:
    """The folder of a run: settings.json, base_losses.safetensors and cells/NAME.json, each whole or absent.

    Each carries a checksum. A damaged cell is named, removed and measured again, as in the ledger. Folders from before
    2026-11-22 (base_losses.npy, cells without a checksum) are refused in one sentence: nobody can tell whether they are
    whole, and they may have taken hours, so that they are neither taken nor removed.
    """

    folder: Path

    @property
    def _base(self) -> Path:
        return self.folder / "base_losses.safetensors"

    def _file(self, cell: Cell) -> Path:
        return self.folder / "cells" / f"{cell.file}.json"

    def settings(self) -> dict[str, Any] | None:
        """What the folder's results are of. Raises BitlawError when it is damaged, or from before checksums."""
        path = self.folder / "settings.json"
        if (self.folder / "base_losses.npy").exists():
            raise BitlawError(
                f"{self.folder}: holds results from before 2026-11-22, without checksums: choose another --out, or "
                "remove the folder to measure again"
            )
        # `bitlaw decode` and others keep tables here, and settings without a checksum.
        cells = self._base.exists() or (self.folder / "cells").exists()
        if not path.exists() and not cells:
            return None
        found = read_json(path)
        if not isinstance(found, dict):
            raise BitlawError(f"{path}: is damaged (it is no object): remove {self.folder}, it is measured again")
        if ("sha256" in found or cells) and found.pop("sha256", None) != seal(found):
            raise BitlawError(
                f"{path}: is damaged (it does not match its checksum): remove {self.folder}, it is measured again"
            )
        return found

    def check(self, settings: dict[str, Any]) -> None:
        """Raises BitlawError when the folder holds results of other settings, and names the first: never mixed.

        NAME_sha256 is told by NAME; names alone make no difference, the same text may lie elsewhere.
        """
        before = self.settings()
        if before is None:
            return
        told = {key: key.removesuffix("_sha256") for key in settings}
        names = {name for key, name in told.items() if name != key}
        for key, name in told.items():
            if key in names or before.get(key) == settings[key]:
                continue
            old, new = before.get(name), settings.get(name)
            values = f"{old}, not {new}" if old != new else f"its content is not that of the {name} before"
            raise BitlawError(
                f"{self.folder}: holds results with another {name.replace('_', ' ')} ({values}): choose another --out"
            )

    def base(self) -> Tensor | None:
        """Losses (S,) of the model as it is. Raises DamagedFileError."""
        if not self._base.exists():
            return None
        tensors, notes = load(self._base)
        if "losses" not in tensors or notes != {"settings": seal(self.settings() or {})}:
            raise DamagedFileError(f"{self._base}: is not of this folder's settings; remove it and run again")
        return tensors["losses"]

    def keep_settings(self, settings: dict[str, Any]) -> None:
        write_json(self.folder / "settings.json", sealed(settings))

    def keep_base(self, losses_S: Tensor, settings: dict[str, Any]) -> None:
        """The settings go first: no losses stand without them."""
        self.keep_settings(settings)
        save(self._base, {"losses": losses_S}, {"settings": seal(self.settings() or {})})

    def row(self, cell: Cell, warn: Callable[[str], None]) -> dict[str, Any] | None:
        """A measured cell; a damaged one, or another's, is named through `warn`, removed and counts as not measured."""
        return read_or_remove(self._file(cell), ("cell", cell.name), "the cell is measured again", warn)

    def keep(self, cell: Cell, row: dict[str, Any]) -> None:
        write_json(self._file(cell), sealed(row))
