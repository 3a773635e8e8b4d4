"""How much of the benefit of exact second derivatives their surrogates keep, on a few rows of one small matrix.

The page's guidance map G_ij = |d2L / dw_i dw_j| has a number for each pair of weights. For some hundred weights it can
be had (sensitivity.py, `second_derivatives`), and the best allocation by it found: the others are judged against that.
The rows are rounded to nearest with one scale each, and everything else stays as it is. All take the same bits, codes
of weights and of widths together: uniform widths need none of the latter. Scales are the same for all.

  exact           least d H d / 2 over all allocations that exchanging bits between two units can reach
  hessian_blocks  least sum of d H d over units: pairs inside a unit only
  page            least sum of d_i^2 times sum over j of |H_ij|: the row sums of the page's G, a bound of d H d
and those of allocating.py that work on units of a row.

Shape letters: n weights, U units, E weights of a unit, B widths, S windows, O outputs, I inputs.
"""

import math
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from scipy.stats import spearmanr
from torch import Tensor

from replications.precision_predictor.allocating import COSTS, Bench, Widths, numbers, quantizer_of
from replications.precision_predictor.allocation import Array, Integers, Units, optimum, uniform
from replications.precision_predictor.sensitivity import Curvature, second_derivatives
from shared.evaluate.losses import paired
from shared.quantize.quantizer import fake_quantize

WEIGHTS = 512  # at most, whose second derivatives are found
GROUP = 32  # weights of a unit: the code of its width costs .09 bits a weight
TEXT_WINDOWS = 4
CRITERIA = (
    *("exact", "hessian_blocks", "page", "block", "fisher", "fisher_position"),
    *("inputs", "error", "magnitude", "uniform"),
)


@dataclass(frozen=True)
class Part:
    """Some rows of a matrix: unquantized, at each width, and their second derivatives."""

    layer: str
    weight_OI: Tensor
    errors_Bn: Array  # rounded less unquantized
    hessian_nn: Array

    @property
    def units(self) -> Units:
        return Units("group", ((self.weight_OI.shape[0], self.weight_OI.shape[1]),), GROUP)


def small_part(bench: Bench, widths: Widths) -> Part:
    """The last of the smallest matrices, its first rows."""
    smallest = min(w.numel() for w in bench.weights.values())
    name = [name for name, w in bench.weights.items() if w.numel() == smallest][-1]
    whole_OI = bench.weights[name]
    rows = min(len(whole_OI), max(1, WEIGHTS // whole_OI.shape[1]))
    weight_OI = whole_OI[:rows]
    rounded = [fake_quantize(weight_OI, quantizer_of("rtn", "channel", bits)) for bits in widths.all]
    text_ST = bench.windows.calibration[:TEXT_WINDOWS]
    return Part(
        name,
        weight_OI,
        np.stack([numbers(r - weight_OI).ravel() for r in rounded]),
        numbers(second_derivatives(bench.model, bench.layers[name], rows, text_ST)),
    )


def surrogates(bench: Bench, budgets: tuple[float, ...], widths: Widths) -> list[dict[str, Any]]:
    """A row for each budget and criterion.

    `quadratic` is d H d / 2 and `loss_change` what the evaluation text says, nats a token; `rank_correlation` is that
    of the criterion's weights of d_i^2 with the diagonal of H; `inside_rows` the share of H's squares between weights
    of one output channel.
    """
    part = small_part(bench, widths)
    rows = []
    for average in budgets:
        found = {name: _widths(part, bench.known[part.layer], name, average, widths) for name in CRITERIA[1:]}
        start_U = min(found.values(), key=lambda widths_U: quadratic(part, widths_U, widths.b_min))
        found["exact"] = exchanged(part, start_U, widths.b_min, widths.b_max)
        losses = {name: _losses(bench, part, found[name], widths.b_min) for name in CRITERIA}
        for name in CRITERIA:
            change, gain = paired(losses[name], bench.base_S), paired(losses["uniform"], losses[name])
            rows.append(
                {
                    "matrix": part.layer,
                    "weights": part.weight_OI.numel(),
                    "budget": average,
                    "criterion": name,
                    "quadratic": quadratic(part, found[name], widths.b_min),
                    "loss_change": change.value,
                    "loss_change_se": change.se,
                    "over_uniform": gain.value,
                    "over_uniform_se": gain.se,
                    "rank_correlation": _correlation(part, bench.known[part.layer], name),
                    "inside_rows": inside_rows(part),
                }
            )
    return rows


def quadratic(part: Part, widths_U: Integers, b_min: int) -> float:
    """d H d / 2 of a width for each unit."""
    d_n = _error(part, widths_U, b_min)
    return float(d_n @ part.hessian_nn @ d_n) / 2


def exchanged(part: Part, start_U: Integers, b_min: int, b_max: int) -> Integers:
    """Move a bit from one unit to another as long as d H d falls, the best exchange first."""
    d_BUE = part.errors_Bn.reshape(len(part.errors_Bn), -1, GROUP)
    units = np.arange(d_BUE.shape[1])
    hessian_UEUE = part.hessian_nn.reshape(len(units), GROUP, len(units), GROUP)
    inside_UEE = hessian_UEUE[units, :, units, :]
    widths_U = start_U.copy()
    while True:
        now_UE = d_BUE[widths_U - b_min, units]
        pull_UE = (part.hessian_nn @ now_UE.ravel()).reshape(now_UE.shape)
        up_UE = d_BUE[np.minimum(widths_U + 1, b_max) - b_min, units] - now_UE
        down_UE = d_BUE[np.maximum(widths_U - 1, b_min) - b_min, units] - now_UE

        def alone(move_UE: Array, pull_UE: Array = pull_UE) -> Array:
            own_U = np.einsum("ue,uef,uf->u", move_UE, inside_UEE, move_UE)
            return np.asarray((move_UE * pull_UE).sum(1) + own_U / 2)

        change_UU = alone(up_UE)[:, None] + alone(down_UE)[None]
        change_UU += np.einsum("ue,uevf,vf->uv", up_UE, hessian_UEUE, down_UE, optimize=True)
        change_UU[widths_U == b_max] = np.inf
        change_UU[:, widths_U == b_min] = np.inf
        np.fill_diagonal(change_UU, np.inf)
        raised, lowered = np.unravel_index(int(change_UU.argmin()), change_UU.shape)
        if not change_UU[raised, lowered] < -1e-12:
            return widths_U
        widths_U[raised] += 1
        widths_U[lowered] -= 1


def inside_rows(part: Part) -> float:
    """Share of the squared second derivatives that lies between weights of one output channel."""
    inputs = part.weight_OI.shape[1]
    squares = (part.hessian_nn**2).reshape(-1, inputs, len(part.hessian_nn) // inputs, inputs)
    rows = np.arange(len(squares))
    return float(squares[rows, :, rows, :].sum() / squares.sum())


def _widths(part: Part, known: Curvature, name: str, average: float, widths: Widths) -> Integers:
    """Whole widths only: what a seam would spend is left, fewer bits than a unit has weights."""
    units, sizes_U = part.units, part.units.sizes_U
    whole_bits = int(average * units.weights)
    if name == "uniform":
        return uniform(sizes_U, widths.b_min, widths.b_max, whole_bits // GROUP * GROUP).widths_U
    stored = len(sizes_U) * math.ceil(math.log2(len(widths.all)))
    code_bits = max((whole_bits - stored) // GROUP * GROUP, widths.b_min * units.weights)
    if name == "magnitude":
        squares_U = units.sums([numbers(part.weight_OI.square())])
        errors_UB = squares_U[:, None] * 4.0 ** -np.array(widths.all, dtype=np.float64)
    else:
        shape = part.weight_OI.shape
        errors_UB = np.stack([units.sums([_cost(part, known, name, d).reshape(shape)]) for d in part.errors_Bn], axis=1)
    return optimum(errors_UB, sizes_U, widths.b_min, code_bits).widths_U


def _cost(part: Part, known: Curvature, name: str, d_n: Array) -> Array:
    """Of each weight, so that the sums over units are what the criterion takes for their loss."""
    if name == "page":
        return np.asarray(d_n**2 * np.abs(part.hessian_nn).sum(1))
    if name == "hessian_blocks":
        units = np.arange(len(d_n) // GROUP)
        blocks_UEE = part.hessian_nn.reshape(len(units), GROUP, len(units), GROUP)[units, :, units, :]
        d_UE = d_n.reshape(-1, GROUP)
        return np.asarray(d_UE * np.einsum("uef,uf->ue", blocks_UEE, d_UE)).ravel()
    # The costs of a whole matrix, of which the other rows are not rounded.
    rows = len(part.weight_OI)
    whole_OI = torch.zeros(known.outputs, known.inputs)
    whole_OI[:rows] = torch.from_numpy(d_n).float().reshape(rows, -1)
    return numbers(COSTS[name](whole_OI.to(part.weight_OI.device), known)[:rows]).ravel()


def _correlation(part: Part, known: Curvature, name: str) -> float | None:
    if name == "page":
        weights_n = np.abs(part.hessian_nn).sum(1)
    elif name in ("fisher", "fisher_position", "inputs"):
        weights_n = _cost(part, known, name, np.ones(len(part.hessian_nn)))
    else:
        return None
    return float(spearmanr(weights_n, np.diag(part.hessian_nn)).statistic)


def _error(part: Part, widths_U: Integers, b_min: int) -> Array:
    return part.errors_Bn[np.repeat(widths_U - b_min, GROUP), np.arange(part.errors_Bn.shape[1])]


def _losses(bench: Bench, part: Part, widths_U: Integers, b_min: int) -> Tensor:
    """Of the evaluation windows (S,), with these rows rounded."""
    changed = {name: w.clone() for name, w in bench.weights.items()}
    rows, inputs = part.weight_OI.shape
    d_OI = torch.from_numpy(_error(part, widths_U, b_min)).reshape(rows, inputs)
    changed[part.layer][:rows] += d_OI.to(part.weight_OI)
    bench.put(list(changed.values()))
    losses_S = bench.losses(bench.windows.evaluation)
    bench.put(list(bench.weights.values()))
    return losses_S
