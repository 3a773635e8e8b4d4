"""What a run needs: peak memory and time, from the model's configuration alone.

Weights are never loaded for it: the model is built on torch's "meta" device, which has shapes and no values.
"""

import re
import resource
import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from shared.ptq.cells import Cell, batch_windows
from shared.ptq.layers import Matrix, block_list, head, listed, matrices, sharing, tied, weight_OI
from shared.ptq.methods import Work, find_method
from shared.ptq.models import Source, empty_model
from shared.ptq.sequential import guided_groups

FLOAT = 4  # bytes
READ_RATE = 1e9  # bytes/s from disk or the page cache, with the check for NaN
# FP32 copies of a batch's logits, and of the widest layer's outputs for its tokens, that are there at once.
LOGIT_COPIES = 3.0
WIDE_COPIES = 5.0
BACKWARD_COPIES = 3.0
# Of torch and its libraries when they first compute.
FIRST_USE = 12 * 2**20
# Numbers that are copied to measure the speed: what a run of a small model takes most memory for.
COPIED = 2**23
# Rule mse tries 46 scales.
MSE_TIMES = 46.0


@dataclass(frozen=True)
class Anatomy:
    """Shapes of a model: for each block the groups of matrices that read one input; N as `blocks`."""

    groups: tuple[tuple[tuple[Matrix, ...], ...], ...]
    head: Matrix | None  # when it is quantized
    total: int  # all parameters, a tied head once
    blocks: int  # weights of the blocks' matrices
    vocabulary: int
    width: int
    tied: bool

    @property
    def matrices(self) -> list[Matrix]:
        found = [matrix for groups in self.groups for group in groups for matrix in group]
        return [*found, self.head] if self.head else found

    @property
    def widest(self) -> int:
        return max(matrix.outputs for groups in self.groups for group in groups for matrix in group)

    @property
    def forward(self) -> float:
        """Floating point operations of a token."""
        return 2.0 * (self.blocks + self.width * self.vocabulary)


@dataclass(frozen=True)
class Memory:
    """Bytes: `baseline` is the process before the model is opened; the peak is the larger of the two phases, or that of
    `measured_speed`."""

    baseline: float
    model: float
    evaluation: float  # a batch
    quantization: float  # kept activations, second moments of a block, and what a method works in

    @property
    def peak(self) -> float:
        run = FIRST_USE + self.model + max(self.evaluation, self.quantization)
        return self.baseline + max(run, 2 * FLOAT * COPIED)


@dataclass(frozen=True)
class Speed:
    """Of this machine, measured: floating point operations and copied bytes a second."""

    flops: float
    copy: float


def anatomy(source: Source, with_head: bool) -> Anatomy:
    """From the configuration. Raises BitlawError when the model has no blocks with matrices."""
    model = empty_model(source)
    prefix, blocks = block_list(model)
    by_name = {matrix.name: matrix for matrix in listed(model, with_head)}
    layers = {
        f"{prefix}.{k}.{name}": layer for k, block in enumerate(blocks) for name, layer in matrices(block).items()
    }
    groups: list[list[tuple[Matrix, ...]]] = [[] for _ in blocks]
    for names in _sharing(model, layers):
        block = int(names[0][len(prefix) + 1 :].split(".")[0])
        groups[block].append(tuple(by_name[name] for name in names))
    embedding = model.get_input_embeddings().weight
    return Anatomy(
        groups=tuple(tuple(found) for found in groups),
        head=by_name[head(model)[0]] if with_head else None,
        total=sum(p.numel() for p in model.parameters()),
        blocks=sum(weight_OI(layer).numel() for layer in layers.values()),
        vocabulary=embedding.shape[0],
        width=source.config.get_text_config().hidden_size,
        tied=tied(model),
    )


def _sharing(model: Any, layers: dict[str, torch.nn.Module]) -> list[tuple[str, ...]]:
    """Groups by a pass without values; a model that needs values (experts) counts each matrix alone: an upper bound."""
    ids = torch.zeros(1, 8, dtype=torch.long, device="meta")
    try:
        return sharing(layers, lambda: model(input_ids=ids, attention_mask=torch.ones_like(ids), use_cache=False))
    except (RuntimeError, NotImplementedError):
        return [(name,) for name in layers]


def batch_of(model: Anatomy, context: int) -> int:
    """Windows that go through the model at once."""
    return batch_windows(context, model.vocabulary, model.widest)


def memory(model: Anatomy, cells: Sequence[Cell], context: int, calibration: int, baseline: float) -> Memory:
    """The peak over all cells; `calibration` in windows."""
    tokens = batch_of(model, context) * context
    wide = WIDE_COPIES * tokens * model.widest
    logits = LOGIT_COPIES * tokens * model.vocabulary
    most = 0.0
    for name, bits in {(cell.method, cell.quantizer.format.bits if cell.quantizer else 0.0) for cell in cells}:
        method = find_method(name)
        for groups in model.groups:
            kept = hessians = 0.0
            if method.needs != "nothing":
                kept = calibration * context * model.width
                hessians = sum(group[0].inputs ** 2 for group in groups)
            if method.needs == "gradients":
                # Each matrix has its own g, and for every token g roots.
                hessians = sum(guided_groups(m.outputs) * m.inputs**2 for group in groups for m in group)
                kept += calibration * context * sum(guided_groups(m.outputs) for m in model.matrices)
            working = max(
                method.work.numbers(sum(m.weights for m in group), group[0].inputs, bits)
                for group in ([(m,) for group in groups for m in group] if method.work.single else groups)
            )
            most = max(most, kept + hessians + max(working, wide if method.needs != "nothing" else 0.0))
        if model.head:
            several = guided_groups(model.head.outputs) if method.needs == "gradients" else 1
            known = several * model.head.inputs**2 if method.needs != "nothing" else 0
            most = max(most, method.work.numbers(model.head.weights, model.head.inputs, bits) + known)
        if method.needs == "gradients":
            # One window's activations of the whole model, with their gradients on the way back.
            outputs = sum(matrix.outputs for matrix in model.matrices)
            most = max(most, context * (BACKWARD_COPIES * outputs + LOGIT_COPIES * model.vocabulary))
        if method.needs != "nothing":
            # The first pass, which finds the blocks' arguments, makes logits too.
            most = max(most, tokens * model.vocabulary + wide)
    return Memory(baseline, FLOAT * model.total, FLOAT * max(wide, logits), FLOAT * most)


def seconds(model: Anatomy, cell: Cell, context: int, calibration: int, evaluation: int, speed: Speed) -> float:
    """Opening the model, quantizing and measuring one cell."""
    method = find_method(cell.method)
    took = FLOAT * model.total / READ_RATE + losses_seconds(model, context, evaluation, speed)
    times = MSE_TIMES if cell.quantizer and cell.quantizer.scale_rule == "mse" else 1.0
    if method.needs != "nothing":
        tokens = calibration * context
        squares = sum(group[0].inputs ** 2 for groups in model.groups for group in groups)
        took += (2 * 2 * model.blocks + 2 * squares) * tokens / speed.flops
    return took + sum(rounding_seconds(method.work, m.weights, m.inputs, speed, times) for m in model.matrices)


def rounding_seconds(work: Work, weights: int, inputs: int, speed: Speed, times: float = 1.0) -> float:
    """Of one matrix with so many weights and input channels, its statistics at hand; `times` more passes."""
    copied = work.passes * times * FLOAT * weights / speed.copy
    computed = (2 * work.products * weights * inputs + work.cubes * inputs**3) / speed.flops
    return copied + computed + work.column_seconds * inputs


def losses_seconds(model: Anatomy, context: int, windows: int, speed: Speed) -> float:
    """Of one pass over the evaluation windows."""
    tokens = windows * context
    return model.forward * tokens / speed.flops + 2 * LOGIT_COPIES * FLOAT * model.vocabulary * tokens / speed.copy


def measured_speed(device: torch.device) -> Speed:
    """By a product of 768 x 768 matrices and a copy of 32 MiB: a tenth of a second."""
    a = torch.rand(768, 768, device=device)
    flops = 2 * 768**3 / _fastest(lambda: a @ a, device)
    b = torch.rand(COPIED, device=device)
    return Speed(flops, FLOAT * b.numel() / _fastest(b.clone, device))


def _fastest(call: Callable[[], object], device: torch.device) -> float:
    least = float("inf")
    for _ in range(4):
        begun = time.perf_counter()
        call()
        if device.type == "cuda":
            torch.cuda.synchronize(device)
        least = min(least, time.perf_counter() - begun)
    return least


def resident_bytes(device: torch.device) -> float:
    """What is in memory now: of the process, or of this process on a CUDA device."""
    if device.type == "cuda":
        return float(torch.cuda.memory_allocated(device))
    return _status("VmRSS")


def peak_bytes(device: torch.device) -> float:
    """The most that was in memory so far."""
    if device.type == "cuda":
        return float(torch.cuda.max_memory_allocated(device))
    return _status("VmHWM")


def available_bytes(device: torch.device) -> float | None:
    """What could still be taken, where the system says."""
    if device.type == "cuda":
        return float(torch.cuda.mem_get_info(device)[0])
    try:
        found = re.search(r"^MemAvailable:\s+(\d+) kB", Path("/proc/meminfo").read_text(), re.MULTILINE)
    except OSError:
        return None
    return float(found[1]) * 1024 if found else None


def _status(key: str) -> float:
    """Of this process by the kernel's account; elsewhere the peak stands for both."""
    try:
        # Not ru_maxrss on Linux: a child that was started by vfork begins with its parent's peak.
        found = re.search(rf"^{key}:\s+(\d+) kB", Path("/proc/self/status").read_text(), re.MULTILINE)
    except OSError:
        found = None
    if found:
        return float(found[1]) * 1024
    most = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return float(most) * (1 if sys.platform == "darwin" else 1024)
