"""The numeric search: the best N, D and bits of a law under a budget, by grids that zoom in.

Letters of shapes: n problems solved side by side, k points of a grid.
"""

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np

from replications.planning import cost
from replications.planning.budget import LARGEST_D, LARGEST_N, SMALLEST_D, SMALLEST_N, Budget
from replications.planning.setting import Setting
from replications.planning.view import View
from shared.laws.law import Array

POINTS, ROUNDS = 65, 4  # a round narrows a bracket 32 times: 4 to a millionth of it, its value to far less
LOWEST_BITS, HIGHEST_BITS = 1.0, 64.0
BISECTIONS = 45  # of ln N or ln D, to a trillionth
# Enough where only the place of a flat minimum is asked for: its N to a thousandth, its cost to a millionth.
FEW_ROUNDS, FEW_BISECTIONS = 3, 24
REACH = 1e3  # how far below the best size a frontier is drawn


def lowest(value: Callable[[Array], Array], low: Array, high: Array, rounds: int = ROUNDS) -> Array:
    """Where `value` ((n, k) -> (n, k)) is lowest between low and high (n,): (n,). Where it is infinite everywhere, or
    flat, some point of the range. A later round never ends at a worse point: each holds the last one's best."""
    low, high = np.broadcast_arrays(np.asarray(low, dtype=float), np.asarray(high, dtype=float))
    unit = np.linspace(0.0, 1.0, POINTS)
    rows = np.arange(len(low))
    best = low
    for _ in range(rounds):
        grid = low[:, None] + (high - low)[:, None] * unit
        grid[:, -1] = high
        at = np.argmin(value(grid), axis=1)
        best = grid[rows, at]
        low, high = grid[rows, np.maximum(at - 1, 0)], grid[rows, np.minimum(at + 1, POINTS - 1)]
    return best


@dataclass(frozen=True)
class Case:
    """One law, one setting, one budget: the loss and the limits, all of ln N and ln D."""

    view: View
    setting: Setting
    budget: Budget

    @property
    def streams(self) -> cost.Streams:
        return self.view.streams(self.setting)

    @property
    def flops(self) -> float:
        """Of training, for one parameter and token."""
        return cost.of_a_token(self.budget, self.streams)

    def loss(self, N: Array, D: Array, draws: int | None = None) -> Array:
        """At N, D (n,): (n,), or (S, n) for at most so many draws."""
        return self.view.loss(self.inputs(N), N, D, draws)

    def inputs(self, N: Array) -> dict[str, float | Array]:
        found = self.view.read(self.setting, cost.width(N, self.budget.aspect))
        assert not isinstance(found, str), "settings that a law does not know are left out before the search"
        return dict(found)

    def memory(self, N: Array) -> Array:
        return cost.memory(self.budget, self.setting, self.streams, N)

    def train_flops(self, N: Array, D: Array) -> Array:
        return self.flops * N * D

    def sizes(self) -> tuple[float, float]:
        """The smallest and largest N; the largest is under the smallest where nothing fits."""
        most = cost.largest(self.budget, self.setting, self.streams)
        if self.budget.train_flops is not None:
            most = min(most, self.budget.train_flops / (self.flops * (self.budget.D or SMALLEST_D)))
        if self.budget.N is not None:
            return self.budget.N, self.budget.N if most * (1 + 1e-12) >= self.budget.N else 0.0
        return SMALLEST_N, min(most, LARGEST_N)

    def sizes_at(self, memory: Array) -> Array:
        """The largest sizes within `sizes` that take no more than these GiB (n,); fewer than n where nothing does."""
        low, high = self.sizes()
        memory = memory[self.memory(np.full(memory.shape, low)) <= memory]
        start, end = np.full(memory.shape, np.log(low)), np.full(memory.shape, np.log(high))
        for _ in range(BISECTIONS):
            middle = (start + end) / 2
            fits = self.memory(np.exp(middle)) <= memory
            start, end = np.where(fits, middle, start), np.where(fits, end, middle)
        return np.unique(np.clip(np.exp(start), low, high))

    def most_tokens(self, N: Array) -> Array:
        """The tokens that the budget allows at N (n,)."""
        if self.budget.D is not None:
            return np.full(np.shape(N), self.budget.D)
        ends = [LARGEST_D if self.budget.tokens is None else self.budget.tokens]
        if self.budget.train_flops is not None:
            ends.append(self.budget.train_flops / (self.flops * N))  # type: ignore[arg-type]
        return np.broadcast_to(np.minimum.reduce([np.asarray(end) for end in np.broadcast_arrays(*ends)]), np.shape(N))

    def best_tokens(self, N: Array) -> Array:
        """D (n,) with the lowest loss that the budget allows: all of them, or fewer where more do harm."""
        most = self.most_tokens(N)
        if self.budget.D is not None:
            return most
        # Laws fall in D up to D_crit and rise beyond: where they still fall at the end, the end is best.
        harmed = self.loss(N, most * (1 - 1e-4)) < self.loss(N, most)
        if not np.any(harmed):
            return most
        some = N[harmed]
        start = np.full(some.shape, np.log(SMALLEST_D))
        found = lowest(lambda x: self._grid(some, x), start, np.log(most[harmed]))
        D = most.copy()
        D[harmed] = np.exp(found)
        return D

    def tokens_to_reach(self, N: Array, target: float, bisections: int = BISECTIONS) -> Array:
        """The fewest tokens (n,) with which the loss is at the target or lower; NaN where none are."""
        D = self.best_tokens(N)
        reached = self.loss(N, D) <= target
        if self.budget.D is not None:
            return np.where(reached, D, np.nan)
        low, high = np.full(N.shape, np.log(SMALLEST_D)), np.log(D)
        for _ in range(bisections):
            middle = (low + high) / 2
            hit = self.loss(N, np.exp(middle)) <= target
            low, high = np.where(hit, low, middle), np.where(hit, middle, high)
        return np.where(reached, np.exp(high), np.nan)

    def _grid(self, N: Array, log_D: Array) -> Array:
        """The loss at N (n,) and ln D (n, k)."""
        return self.loss(np.repeat(N, log_D.shape[1]), np.exp(log_D).ravel()).reshape(log_D.shape)


def best_size(case: Case, goal: Callable[[Array], Array], rounds: int = ROUNDS) -> float | None:
    """N where `goal` ((n,) -> (n,)) is lowest within the budget; None where nothing fits or nothing is finite."""
    low, high = case.sizes()
    if high < low:
        return None
    found = lowest(lambda x: goal(np.exp(x).ravel()).reshape(x.shape), np.log([low]), np.log([high]), rounds)
    N = np.clip(np.exp(found), low, high)
    return float(N[0]) if np.isfinite(goal(N)[0]) else None


def least_loss(case: Case) -> float | None:
    """The size with the lowest loss."""
    return best_size(case, lambda N: case.loss(N, case.best_tokens(N)))


def least_training(case: Case, target: float) -> float | None:
    """The size that reaches the target with the least training."""

    def goal(N: Array) -> Array:
        D = case.tokens_to_reach(N, target, FEW_BISECTIONS)
        return np.where(np.isnan(D), np.inf, np.log(case.train_flops(N, np.where(np.isnan(D), 1.0, D))))

    return best_size(case, goal, FEW_ROUNDS)


def least_size(case: Case, target: float, best: float) -> float:
    """The smallest size that reaches the target, given the size with the lowest loss, which does."""
    low, high = np.log(case.sizes()[0]), np.log(best)

    def reached(x: float) -> bool:
        N = np.array([np.exp(x)])
        return bool(case.loss(N, case.best_tokens(N))[0] <= target)

    if reached(low):
        return float(np.exp(low))
    for _ in range(BISECTIONS):
        middle = (low + high) / 2
        low, high = (low, middle) if reached(middle) else (middle, high)
    return min(float(np.exp(high)), best)


@dataclass(frozen=True)
class Optimum:
    """The best real number of bits with its N and D."""

    bits: float
    N: float
    D: float


def best_bits(view: View, C: float, N: float | None = None, D: float | None = None) -> Optimum | None:
    """Bits, N and D with the lowest loss at the cost C = (6 / 16) N D P (Kumar Eq. 5; Sun's k); N or D may be held.

    None for a law that knows no real bits, and where the loss still falls at the lowest bits (no optimum above 1)."""
    if view.at_bits is None:
        return None
    at_bits = view.at_bits

    def sizes(bits: Array) -> Array:
        """N (n,) at each number of bits."""
        per = C / (cost.TRAIN * bits / cost.SIXTEEN)  # N D
        if N is not None:
            return np.full(bits.shape, N)
        if D is not None:
            return per / D

        def value(x: Array) -> Array:
            flat, b = np.exp(x).ravel(), np.repeat(bits, x.shape[1])
            return view.loss(at_bits(b), flat, np.repeat(per, x.shape[1]) / flat).reshape(x.shape)

        return np.exp(lowest(value, np.zeros(bits.shape), np.log(per)))

    def loss(x: Array) -> Array:
        bits = np.exp(x).ravel()
        n = sizes(bits)
        d = C / (cost.TRAIN * bits / cost.SIXTEEN) / n
        return view.loss(at_bits(bits), n, d).reshape(x.shape)

    found = np.exp(lowest(loss, np.log([LOWEST_BITS]), np.log([HIGHEST_BITS])))
    if not LOWEST_BITS * 1.001 < found[0] < HIGHEST_BITS / 1.001:
        return None
    size = float(sizes(found)[0])
    return Optimum(float(found[0]), size, float(C / (cost.TRAIN * found[0] / cost.SIXTEEN) / size))
