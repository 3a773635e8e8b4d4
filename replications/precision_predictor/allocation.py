"""Bits for each unit of a model (layer, output channel or group of weights) under a budget that is met to the last bit.

A rule says how much each further bit of each unit is worth; `fill` gives the bits away, dearest first. All units have
whole widths but one, the seam: of it the first weights (row by row) have a bit more, as many as bits are left. That is
the one fractional unit of the relaxed problem (a knapsack of divisible items), so that rounding costs nothing.

What is stored, and counted against the budget:
  codes      the width of each weight
  widths     a code for each unit, ceil(log2(number of widths)) bits; none when the allocation follows from the budget
  seam       its place, ceil(log2(weights + 1)) bits, and one more scale for the group of weights that it may cut
Scales are the same for every allocation, so `average` counts all but these; `Budget.total_bits` has them in it.

Pure numpy. Shape letters: O outputs, I inputs, U units, B widths, S steps of one bit (B - 1).
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from fractions import Fraction
from typing import Literal

import numpy as np
from numpy.typing import NDArray

from shared.errors import BitlawError

Array = NDArray[np.float64]
Integers = NDArray[np.int64]
Kind = Literal["layer", "channel", "group"]
KINDS: tuple[Kind, ...] = ("layer", "channel", "group")
# Multiples of it, less their whole part, spread evenly (Weyl): what breaks ties, so that equals are raised evenly.
GOLDEN = (math.sqrt(5) - 1) / 2


@dataclass(frozen=True)
class Units:
    """What gets a width of its own, in matrices of `shapes` (O, I), in their order and row by row.

    layer: a matrix; channel: a row; group: `group` weights of a row. Raises BitlawError when the group does not divide
    a row, the kind is unknown or there is no matrix.
    """

    kind: Kind
    shapes: tuple[tuple[int, int], ...]
    group: int = 32

    def __post_init__(self) -> None:
        if self.kind not in KINDS:
            raise BitlawError(f"unit '{self.kind}' is unknown: use {', '.join(KINDS)}")
        if not self.shapes:
            raise BitlawError("there is no matrix to give bits to")
        for _, inputs in self.shapes if self.kind == "group" else ():
            if self.group < 1 or inputs % self.group:
                raise BitlawError(
                    f"groups of {self.group} weights do not divide a row of {inputs}: choose another size"
                )

    def block(self, shape: tuple[int, int]) -> tuple[int, int]:
        """Rows and columns of a unit of a matrix."""
        return {"layer": shape, "channel": (1, shape[1]), "group": (1, self.group)}[self.kind]

    @property
    def sizes_U(self) -> Integers:
        """Weights of each unit."""
        blocks = [self.block(shape) for shape in self.shapes]
        pairs = zip(self.shapes, blocks, strict=True)
        return np.concatenate([np.full(o * i // (r * c), r * c, dtype=np.int64) for (o, i), (r, c) in pairs])

    @property
    def weights(self) -> int:
        return sum(outputs * inputs for outputs, inputs in self.shapes)

    def sums(self, values: Sequence[Array]) -> Array:
        """Of one value a weight, matrix by matrix (O, I): the sum over each unit (U,)."""
        parts = []
        for value_OI in values:
            (outputs, inputs), (rows, columns) = value_OI.shape, self.block((value_OI.shape[0], value_OI.shape[1]))
            blocks = value_OI.reshape(outputs // rows, rows, inputs // columns, columns)
            parts.append(blocks.astype(np.float64).sum((1, 3)).ravel())
        return np.concatenate(parts)

    def means(self, values: Sequence[Array]) -> Array:
        return self.sums(values) / self.sizes_U

    def spread(self, allocation: "Allocation") -> list[NDArray[np.int8]]:
        """The width of every weight, matrix by matrix (O, I)."""
        found, first = [], 0
        for outputs, inputs in self.shapes:
            rows, columns = self.block((outputs, inputs))
            grid = outputs // rows, inputs // columns
            last = first + grid[0] * grid[1]
            widths = allocation.widths_U[first:last].astype(np.int8).reshape(grid)
            bits_OI = np.repeat(np.repeat(widths, rows, 0), columns, 1)
            if allocation.seam_weights and first <= allocation.seam_unit < last:
                row, column = divmod(allocation.seam_unit - first, grid[1])
                inside = bits_OI[row * rows : (row + 1) * rows, column * columns : (column + 1) * columns]
                raised = inside.flatten()
                raised[: allocation.seam_weights] += 1
                inside[:] = raised.reshape(inside.shape)
            found.append(bits_OI)
            first = last
        return found


@dataclass(frozen=True)
class Allocation:
    """A width for each unit, and how many weights of which unit have one bit more."""

    widths_U: Integers
    seam_unit: int = 0
    seam_weights: int = 0

    def code_bits(self, sizes_U: Integers) -> int:
        return int(self.widths_U @ sizes_U) + self.seam_weights


@dataclass(frozen=True)
class Budget:
    """Bits of a whole model; code_bits + metadata_bits is the average times the weights, rounded down."""

    code_bits: int
    metadata_bits: int
    scale_bits: int

    @property
    def total_bits(self) -> int:
        return self.code_bits + self.metadata_bits + self.scale_bits


def budget(
    average: float,
    units: Units,
    b_min: int,
    b_max: int,
    *,
    stored: bool = True,
    scale_bits: int = 0,
    bits_of_a_scale: int = 16,
) -> Budget:
    """What is left for codes of `average` bits a weight, scales not counted.

    `stored`: whether the widths are; those of a uniform allocation follow from the average and the order of the
    weights. Raises BitlawError when the widths are no range, or nothing between them can spend the budget.
    """
    check_widths(b_min, b_max)
    whole = math.floor(Fraction(str(average)) * units.weights) if math.isfinite(average) else -1
    if not b_min * units.weights <= whole <= b_max * units.weights:
        raise BitlawError(f"a budget of {average:g} bits a weight is outside of {b_min} to {b_max}: choose one inside")
    if stored:
        metadata = metadata_bits(units, b_min, b_max, bits_of_a_scale)
    else:
        metadata = 0 if whole % units.weights == 0 else bits_of_a_scale
    codes = whole - metadata
    if codes < b_min * units.weights:
        what = f"the widths of {len(units.sizes_U)} units take" if stored else "the scale of a cut group takes"
        least = math.ceil((b_min + metadata / units.weights) * 1e4) / 1e4
        raise BitlawError(
            f"a budget of {average:g} bits a weight leaves less than {b_min} for the codes, as {what} {metadata} bits: "
            f"give {least:g} or more, or a smaller least width"
        )
    return Budget(codes, metadata, scale_bits)


def check_widths(b_min: int, b_max: int) -> None:
    if not 2 <= b_min <= b_max <= 8:
        raise BitlawError(f"widths from {b_min} to {b_max} bits: they must rise and lie between 2 and 8")


def metadata_bits(units: Units, b_min: int, b_max: int, bits_of_a_scale: int = 16) -> int:
    """Of stored widths: a code for each unit, the place of the seam and a second scale where it cuts a group."""
    if b_min == b_max:
        return 0
    code = math.ceil(math.log2(b_max - b_min + 1))
    return len(units.sizes_U) * code + math.ceil(math.log2(units.weights + 1)) + bits_of_a_scale


def fill(worth_US: Array, sizes_U: Integers, b_min: int, code_bits: int) -> Allocation:
    """Give every unit b_min, then one bit after the other, the step of greatest worth (per bit) first.

    Ties go to the lower width, then round the units evenly. The worth must not rise along S, or a unit's steps would
    not be taken in their order. Raises BitlawError when the bits are too few or too many, or a worth is not a number.
    """
    units, steps = worth_US.shape
    least = b_min * int(sizes_U.sum())
    most = least + steps * int(sizes_U.sum())
    if not least <= code_bits <= most:
        raise BitlawError(f"{code_bits} bits for codes are outside of {least} to {most}, which the widths can take")
    if np.isnan(worth_US).any():
        raise BitlawError("a sensitivity is not a number: calibrate a sound checkpoint")
    step_US = np.broadcast_to(np.arange(steps), (units, steps))
    turn_US = np.broadcast_to((np.arange(1, units + 1) * GOLDEN % 1.0)[:, None], (units, steps))
    order = np.lexsort((turn_US.ravel(), step_US.ravel(), -worth_US.ravel()))
    unit = order // steps if steps else order
    spent = np.cumsum(sizes_U[unit])
    left = code_bits - least
    taken = int(np.searchsorted(spent, left, side="right"))
    widths_U = b_min + np.bincount(unit[:taken], minlength=units).astype(np.int64)
    over = left - (int(spent[taken - 1]) if taken else 0)
    return Allocation(widths_U, int(unit[taken]), over) if over else Allocation(widths_U)


def uniform(sizes_U: Integers, b_min: int, b_max: int, code_bits: int) -> Allocation:
    """The same width everywhere; what is left of a fraction of a bit goes to units spread evenly over the model."""
    steps = np.broadcast_to(-np.arange(b_max - b_min, dtype=np.float64), (len(sizes_U), b_max - b_min))
    return fill(steps, sizes_U, b_min, code_bits)


def optimum(errors_UB: Array, sizes_U: Integers, b_min: int, code_bits: int) -> Allocation:
    """Least sum of errors, of each unit at each width from b_min up, where errors of different units add.

    Of the relaxed problem: on the lower convex hull of each unit's errors the best step is always the next one
    (Shoham and Gersho, 1988), and the sum of the hulls is a lower bound of every allocation with these bits.
    """
    return fill(hull_gains(errors_UB) / sizes_U[:, None], sizes_U, b_min, code_bits)


def hull_gains(errors_UB: Array) -> Array:
    """Falls of the lower convex hull of each unit's errors, step by step (U, S); they never rise along S.

    Convexity is an antitonic regression of the plain falls: min over i <= k of max over j >= k of their mean i..j.
    """
    steps = errors_UB.shape[1] - 1
    gains_US = np.full((len(errors_UB), steps), np.inf)
    for k in range(steps):
        for i in range(k + 1):
            means = [(errors_UB[:, i] - errors_UB[:, j + 1]) / (j + 1 - i) for j in range(k, steps)]
            gains_US[:, k] = np.minimum(gains_US[:, k], np.max(means, axis=0))
    return gains_US


def linear(sensitivity_U: Array, sizes_U: Integers, b_min: int, b_max: int, code_bits: int) -> Allocation:
    """The page's map b = b_min + (b_max - b_min) s, with s the sensitivity over the largest, rescaled to the budget.

    One factor on s brings the sum to the budget (s stays at most 1); then the widths are rounded down, and up where the
    fraction is largest. Raises BitlawError for sensitivities that are negative or not finite.
    """
    if not np.isfinite(sensitivity_U).all() or (sensitivity_U < 0).any():
        raise BitlawError("a sensitivity is negative or not finite: calibrate a sound checkpoint")
    # Units that nothing depends on still take what no other can hold.
    most = float(sensitivity_U.max()) or 1.0
    share_U = np.maximum(sensitivity_U / most, 1e-12)
    span = b_max - b_min
    extra = code_bits - b_min * int(sizes_U.sum())

    def wanted(log_factor: float) -> Array:
        return np.asarray(span * np.minimum(1.0, np.exp(log_factor) * share_U))

    low, high = -60.0, 60.0
    for _ in range(200):
        middle = (low + high) / 2
        low, high = (middle, high) if wanted(middle) @ sizes_U < extra else (low, middle)
    # How far the wanted width is above each whole one: what is a whole bit above is given in any case.
    return fill(wanted(high)[:, None] - np.arange(span), sizes_U, b_min, code_bits)
