"""Measure guided bit allocation: a model at equal total bits, allocated in several ways, rounded in several ways.

Methods (`METHODS`): RTN with absmax scales, RTN with the scale of least squared error, and GPTQ by GuidedQuant's
Hessians (arXiv 2505.07004). Scales are BF16, one a row, or one a group where groups are the units.

Allocations (`ALLOCATIONS`), each at every unit; the first five know nothing of the loss's gradients:

  uniform           the same width everywhere
  magnitude         least sum of |w|^2 4^-b: bits where the weights are large (reverse water-filling)
  magnitude_linear  the page's linear map of mean |w|
  error             least sum of squared rounding errors
  inputs            the same, each error times its input's mean square: diagonal of GPTQ's Hessian
  fisher            the same, each error times its Fisher diagonal (sensitivity.py, `sequence_OI`)
  fisher_position   with `position_OI` in its place
  fisher_linear     the page's linear map of the mean Fisher diagonal
  block             least sum of d H d^T by GuidedQuant's Hessians, pairs of weights in a row included
  measured          of layers only: the calibration loss with this layer alone at this width

Errors are those of the method itself with one width for the whole model (for GPTQ too: what it leaves after its
corrections), and all Hessians are those of the unquantized model: one pass of calibration serves everything.

Shape letters: O outputs, I inputs, g groups of outputs, C channels of such a group, E columns of a group of weights,
K columns of a block, S windows, U units, B widths.
"""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from replications.precision_predictor.allocation import (
    Allocation,
    Array,
    Kind,
    Units,
    budget,
    linear,
    optimum,
    uniform,
)
from replications.precision_predictor.sensitivity import Curvature, curvatures
from replications.precision_predictor.subject import Subject
from shared.errors import BitlawError, nearest
from shared.evaluate.losses import Estimate, paired
from shared.ptq.cells import batch_windows, window_losses
from shared.ptq.layers import block_list, matrices, weight_OI
from shared.ptq.text import Windows
from shared.quantize.gptq import BLOCK, inverse_factor
from shared.quantize.guided import grouped
from shared.quantize.quantizer import SCALE_BITS, Quantizer, fake_quantize, named_quantizer, scales

METHODS = {"rtn": "", "rtn_mse": ":mse", "guided": ""}  # and the scale rule of each
ALLOCATIONS = (
    *("uniform", "magnitude", "magnitude_linear", "error", "inputs"),
    *("fisher", "fisher_position", "fisher_linear", "block", "measured"),
)
COMPARED = ("uniform", "magnitude", "magnitude_linear")
SCALE = "BF16"
# Windows of the calibration text on which `measured` tries each layer at each width.
TRIED_WINDOWS = 4

Tell = Callable[[str], None]


@dataclass(frozen=True)
class Widths:
    """From and to which width, and weights of a group, where groups are the units or share a scale."""

    b_min: int = 2
    b_max: int = 8
    group: int = 32

    @property
    def all(self) -> range:
        return range(self.b_min, self.b_max + 1)


@dataclass(frozen=True)
class Trial:
    """One allocation that was measured: everything but the model's name."""

    unit: Kind
    method: str
    budget: float
    allocation: str
    total_bits: int
    metadata_bits: int
    bits_per_weight: float
    loss: Estimate
    delta: Estimate
    over_uniform: Estimate  # loss of uniform less this one's, on the same windows
    over_magnitude: Estimate  # the same by magnitude, `fisher_linear` against `magnitude_linear`: like with like
    shares: dict[int, float]  # of the weights, at each width


@dataclass
class Bench:
    """A model with what allocation needs to know of it. The model's weights change while it is measured."""

    model: Any
    layers: dict[str, nn.Module]
    weights: dict[str, Tensor]  # (O, I), unquantized copies
    known: dict[str, Curvature]
    windows: Windows
    batch: int
    base_S: Tensor
    rounded: dict[tuple[str, str, int], list[Tensor]] = field(default_factory=dict)  # method, scale group, width

    @property
    def shapes(self) -> tuple[tuple[int, int], ...]:
        return tuple((w.shape[0], w.shape[1]) for w in self.weights.values())

    def put(self, values: Sequence[Tensor]) -> None:
        with torch.no_grad():
            for layer, value_OI in zip(self.layers.values(), values, strict=True):
                weight_OI(layer).copy_(value_OI)

    def losses(self, windows_ST: Tensor) -> Tensor:
        """Of each window (S,), with the weights that are in the model now."""
        losses_S = window_losses(self.model, windows_ST, self.batch, lambda: None)
        if not bool(torch.isfinite(losses_S).all()):
            raise BitlawError("a quantized model's loss is not finite: use a sound checkpoint")
        return losses_S


def block_weights(model: nn.Module) -> dict[str, nn.Module]:
    """The layers of all blocks that hold a matrix, by name."""
    prefix, blocks = block_list(model)
    return {f"{prefix}.{k}.{name}": layer for k, block in enumerate(blocks) for name, layer in matrices(block).items()}


def open_bench(subject: Subject, windows: Windows) -> Bench:
    """Gather the curvature of the model and its losses. Raises BitlawError as `curvatures` does."""
    model, layers = subject.model, block_weights(subject.model)
    weights = {name: weight_OI(layer).float().clone() for name, layer in layers.items()}
    widest = max(len(w) for w in weights.values())
    batch = batch_windows(windows.context, model.get_input_embeddings().weight.shape[0], widest)
    bench = Bench(model, layers, weights, curvatures(model, windows.calibration), windows, batch, torch.empty(0))
    bench.base_S = bench.losses(windows.evaluation)
    return bench


def trials(
    bench: Bench,
    unit: Kind,
    method: str,
    average: float,
    allocations: Sequence[str],
    widths: Widths,
    tell: Tell = lambda what: None,
) -> Iterator[Trial]:
    """Each allocation at one budget; those that the others are compared with always among them.

    Raises BitlawError for a budget that cannot be met, and as `choose` does.
    """
    units = Units(unit, bench.shapes, widths.group)
    shared = scale_group(unit, widths.group)
    scale_bits = scale_count(bench.shapes, shared) * SCALE_BITS[SCALE]
    found: dict[str, Tensor] = {}
    check_allocations(allocations)
    names = [name for name in ALLOCATIONS if name in (*allocations, *COMPARED)]
    for name in names:
        if name == "measured" and unit != "layer":
            continue
        # Where nothing is stored, the units of a uniform allocation are the smallest that have a scale.
        over = (
            Units("group" if unit == "group" else "channel", bench.shapes, widths.group) if name == "uniform" else units
        )
        given = budget(
            average,
            over,
            widths.b_min,
            widths.b_max,
            stored=name != "uniform",
            scale_bits=scale_bits,
            bits_of_a_scale=SCALE_BITS[SCALE],
        )
        allocation = choose(bench, over, name, method, widths, given.code_bits)
        bits = over.spread(allocation)
        bench.put(mixed(bench, method, shared, [torch.from_numpy(b) for b in bits], widths))
        peer = "magnitude_linear" if name == "fisher_linear" else "magnitude"
        losses_S = found[name] = bench.losses(bench.windows.evaluation)
        spent = sum(int(b.astype(np.int64).sum()) for b in bits) + given.metadata_bits + scale_bits
        assert spent == given.total_bits, f"{name} spends {spent} of {given.total_bits} bits"
        counts = np.bincount(np.concatenate([b.ravel() for b in bits]), minlength=widths.b_max + 1)
        tell(name)
        yield Trial(
            unit=unit,
            method=method,
            budget=average,
            allocation=name,
            total_bits=given.total_bits,
            metadata_bits=given.metadata_bits,
            bits_per_weight=given.total_bits / units.weights,
            loss=Estimate(losses_S.mean().item(), losses_S.std().item() / len(losses_S) ** 0.5),
            delta=paired(losses_S, bench.base_S),
            over_uniform=paired(found["uniform"], losses_S),
            over_magnitude=paired(found.get(peer, losses_S), losses_S),
            shares={b: float(counts[b]) / units.weights for b in widths.all},
        )
    bench.put(list(bench.weights.values()))


def check_allocations(names: Sequence[str]) -> None:
    for name in names:
        if name not in ALLOCATIONS:
            hint = nearest(name, list(ALLOCATIONS)) or f": use {', '.join(ALLOCATIONS)}"
            raise BitlawError(f"allocation '{name}' is unknown{hint}")


def choose(bench: Bench, units: Units, name: str, method: str, widths: Widths, code_bits: int) -> Allocation:
    """The allocation of that name. Raises BitlawError for `measured` of other units than layers."""
    b_min, b_max, sizes_U = widths.b_min, widths.b_max, units.sizes_U
    if name == "uniform":
        return uniform(sizes_U, b_min, b_max, code_bits)
    if name == "magnitude_linear":
        mean_U = units.means([numbers(w.abs()) for w in bench.weights.values()])
        return linear(mean_U, sizes_U, b_min, b_max, code_bits)
    if name == "fisher_linear":
        mean_U = units.means([numbers(known.sequence_OI) for known in bench.known.values()])
        return linear(mean_U, sizes_U, b_min, b_max, code_bits)
    return optimum(errors(bench, units, name, method, widths), sizes_U, b_min, code_bits)


def errors(bench: Bench, units: Units, name: str, method: str, widths: Widths) -> Array:
    """What an allocation takes for the loss of each unit at each width (U, B)."""
    if name == "magnitude":
        squares_U = units.sums([numbers(w.square()) for w in bench.weights.values()])
        return squares_U[:, None] * 4.0 ** -np.array(widths.all, dtype=np.float64)
    shared = scale_group(units.kind, units.group)
    if name == "measured":
        return measured_errors(bench, units, method, shared, widths)
    pairs = list(zip(bench.weights.values(), bench.known.values(), strict=True))
    columns = []
    for bits in widths.all:
        at = rounded_at(bench, method, shared, bits)
        columns.append(
            units.sums([numbers(COSTS[name](r - w, known)) for r, (w, known) in zip(at, pairs, strict=True)])
        )
    return np.stack(columns, axis=1)


def measured_errors(bench: Bench, units: Units, method: str, shared: str, widths: Widths) -> Array:
    """Calibration loss with one layer at one width and all others as they are (U, B)."""
    if units.kind != "layer":
        raise BitlawError(f"allocation 'measured' tries one layer after the other: it is not for {units.kind} units")
    text_ST = bench.windows.calibration[:TRIED_WINDOWS]
    original = list(bench.weights.values())
    found = np.zeros((len(original), len(widths.all)))
    for column, bits in enumerate(widths.all):
        for number, tried in enumerate(rounded_at(bench, method, shared, bits)):
            bench.put([*original[:number], tried, *original[number + 1 :]])
            found[number, column] = bench.losses(text_ST).mean().item()
    bench.put(original)
    return found


# What a rounding error d (O, I) costs, weight by weight; of `block` the sum over a row is d H d^T.
COSTS: dict[str, Callable[[Tensor, Curvature], Tensor]] = {
    "error": lambda d_OI, known: d_OI.square(),
    "inputs": lambda d_OI, known: d_OI.square() * known.inputs_II.diagonal(),
    "fisher": lambda d_OI, known: d_OI.square() * known.sequence_OI,
    "fisher_position": lambda d_OI, known: d_OI.square() * known.position_OI,
    "block": lambda d_OI, known: d_OI * product(d_OI, known.guided_gII),
}


def product(d_OI: Tensor, hessians_gII: Tensor) -> Tensor:
    """Each row times its group's Hessian (O, I)."""
    return (d_OI.unflatten(0, (len(hessians_gII), -1)) @ hessians_gII).flatten(0, 1)


# --- rounding with a width for each weight --------------------------------------------------------------------------


def scale_group(unit: Kind, group: int) -> str:
    """Weights that share a scale: a group where groups are the units, else a row."""
    return str(group) if unit == "group" else "channel"


def scale_count(shapes: Sequence[tuple[int, int]], shared: str) -> int:
    return sum(outputs * (1 if shared == "channel" else inputs // int(shared)) for outputs, inputs in shapes)


def quantizer_of(method: str, shared: str, bits: int) -> Quantizer:
    """Raises BitlawError for an unknown method."""
    if method not in METHODS:
        raise BitlawError(f"method '{method}' is unknown{nearest(method, list(METHODS))}: use {', '.join(METHODS)}")
    return named_quantizer(f"INT{bits}@{shared}{METHODS[method]}:{SCALE.lower()}")


def rounded_at(bench: Bench, method: str, shared: str, bits: int) -> list[Tensor]:
    """Every matrix with one width; kept, as all allocations ask for it."""
    key = method, shared, bits
    if key not in bench.rounded:
        quantizer = quantizer_of(method, shared, bits)
        if method == "guided":
            whole = [torch.full_like(w, bits, dtype=torch.int8) for w in bench.weights.values()]
            bench.rounded[key] = _by_gptq(bench, shared, whole, range(bits, bits + 1))
        else:
            bench.rounded[key] = [fake_quantize(w, quantizer) for w in bench.weights.values()]
    return bench.rounded[key]


def mixed(bench: Bench, method: str, shared: str, bits: Sequence[Tensor], widths: Widths) -> list[Tensor]:
    """Every matrix with a width for each weight (O, I)."""
    if method == "guided":
        return _by_gptq(bench, shared, bits, widths.all)
    made = [torch.zeros_like(w) for w in bench.weights.values()]
    for width in widths.all:
        at = rounded_at(bench, method, shared, width)
        made = [torch.where(b.to(r.device) == width, r, m) for b, r, m in zip(bits, at, made, strict=True)]
    return made


def _by_gptq(bench: Bench, shared: str, bits: Sequence[Tensor], widths: range) -> list[Tensor]:
    quantizers = {b: quantizer_of("guided", shared, b) for b in widths}
    triples = zip(bench.weights.values(), bench.known.values(), bits, strict=True)
    return [mixed_gptq(w, known.guided_gII, b.to(w.device), quantizers) for w, known, b in triples]


@torch.no_grad()
def mixed_gptq(
    weight_OI: Tensor, hessians_gII: Tensor, bits_OI: Tensor, quantizers: dict[int, Quantizer], damping: float = 0.01
) -> Tensor:
    """`guided_gptq` (shared/quantize/guided.py) with a width for each weight, INT formats of one group and scale rule.

    With one width it is that function. A group's scale is taken when its first column is reached, as if all of it had
    the width of the weight. Raises BitlawError as `guided_gptq` does.
    """
    g, (outputs, inputs) = len(hessians_gII), weight_OI.shape
    parts = grouped(weight_OI, hessians_gII)
    size = next(iter(quantizers.values())).group_size(inputs)
    order_I = torch.arange(inputs, device=weight_OI.device)
    never_gI = torch.stack([h_II.diagonal() == 0 for _, h_II in parts])
    factors = [
        inverse_factor(h_II, never_I, order_I, damping) for (_, h_II), never_I in zip(parts, never_gI, strict=True)
    ]
    upper_gII = torch.stack(factors)
    left_IgC = weight_OI.float().T.reshape(inputs, g, -1).clone()
    left_IgC[never_gI.T] = 0.0
    bits_IgC = bits_OI.T.reshape(inputs, g, -1)
    rounded_IgC = torch.empty_like(left_IgC)
    block = BLOCK // size * size if size <= BLOCK else max(d for d in range(1, BLOCK + 1) if size % d == 0)
    scale_EgC = limit_EgC = left_IgC
    for start in range(0, inputs, block):
        stop = min(start + block, inputs)
        error_KgC = torch.empty_like(left_IgC[start:stop])
        for i in range(start, stop):
            if i % size == 0:
                scale_EgC, limit_EgC = _grids(left_IgC[i : i + size], bits_IgC[i : i + size], quantizers)
            scale_gC, limit_gC = scale_EgC[i % size], limit_EgC[i % size]
            ratio_gC = torch.where(scale_gC > 0, left_IgC[i] / scale_gC, left_IgC[i])
            rounded_IgC[i] = torch.minimum(torch.maximum(torch.round(ratio_gC), -limit_gC), limit_gC) * scale_gC
            error_gC = error_KgC[i - start] = (left_IgC[i] - rounded_IgC[i]) / upper_gII[:, i, i, None]
            left_IgC[i + 1 : stop] -= upper_gII[:, i, i + 1 : stop].T.unsqueeze(-1) * error_gC
        left_IgC[stop:] -= torch.einsum("gkj,kgc->jgc", upper_gII[:, start:stop, stop:], error_KgC)
    return rounded_IgC.reshape(inputs, outputs).T.contiguous()


def _grids(group_EgC: Tensor, bits_EgC: Tensor, quantizers: dict[int, Quantizer]) -> tuple[Tensor, Tensor]:
    """Scale and largest code of each weight of a group."""
    scale_EgC, limit_EgC = torch.zeros_like(group_EgC), torch.zeros_like(group_EgC)
    flat_O1E = group_EgC.flatten(1).T.unsqueeze(1)
    for width, quantizer in quantizers.items():
        here_EgC = bits_EgC == width
        if bool(here_EgC.any()):
            scale_gC = scales(flat_O1E, quantizer)[0].reshape(group_EgC.shape[1:])
            scale_EgC = torch.where(here_EgC, scale_gC, scale_EgC)
            limit_EgC = torch.where(here_EgC, quantizer.format.limit, limit_EgC)
    return scale_EgC, limit_EgC


def row_of(subject: Subject, trial: Trial) -> dict[str, Any]:
    """A row of trials.csv."""
    return {
        "checkpoint": subject.name,
        "N": subject.N,
        "D": subject.D,
        "unit": trial.unit,
        "method": trial.method,
        "budget": trial.budget,
        "allocation": trial.allocation,
        "total_bits": trial.total_bits,
        "metadata_bits": trial.metadata_bits,
        "bits_per_weight": trial.bits_per_weight,
        "loss": trial.loss.value,
        "loss_se": trial.loss.se,
        "delta": trial.delta.value,
        "delta_se": trial.delta.se,
        "over_uniform": trial.over_uniform.value,
        "over_uniform_se": trial.over_uniform.se,
        "over_magnitude": trial.over_magnitude.value,
        "over_magnitude_se": trial.over_magnitude.se,
        **{f"share_{bits}": trial.shares.get(bits, 0.0) for bits in range(2, 9)},
    }


def numbers(value: Tensor) -> Array:
    return value.double().cpu().numpy()
