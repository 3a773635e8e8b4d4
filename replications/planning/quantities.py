"""What a law says of one model: loss, delta, N_eff / N, D_crit, with intervals over its draws."""

from dataclasses import replace

import numpy as np

from replications.planning import cost
from replications.planning.result import BestBits, Point, Range
from replications.planning.search import Case, Optimum, best_bits
from replications.planning.setting import SIXTEEN
from replications.planning.view import Constants, View
from shared.laws.law import Array
from shared.laws.result import INTERVAL, beyond

SHARES = np.linspace(np.log(1e-6), np.log(10.0), 2001)  # ln N_eff / N, among which it is interpolated
TOKENS = np.linspace(np.log(1e6), np.log(1e20), 2001)  # ln D, among which the least loss is looked for
COARSE = 10  # for draws every tenth of these will do
DRAWS_OF_BITS = 50


def points(case: Case, N: Array, D: Array, *, whole: bool = False) -> list[Point]:
    """A point for each of N, D (n,). `whole` adds D_crit, and intervals of N_eff / N, which take longer."""
    budget, setting, streams = case.budget, case.setting, case.streams
    loss, clean = case.loss(N, D), case.view.clean(N, D)
    ends = delta_ends = None
    if case.view.draws:
        drawn = case.loss(N, D, draws=case.view.draws)
        ends, delta_ends = _ends(drawn), _ends(drawn - case.view.clean(N, D, draws=case.view.draws))
    bits, moved = cost.bits_per_weight(budget, setting, N), cost.moved(budget, setting, streams, N)
    memory, train = case.memory(N), case.train_flops(N, D)
    group = None if setting.group is None else str(setting.group)
    return [
        Point(
            float(N[i]), float(D[i]), setting.format, group, str(setting), float(bits[i]), float(memory[i]),
            float(train[i]), cost.forward(budget, streams) * float(N[i]), float(moved[i]),
            _range(loss[i], ends, i), _range(loss[i] - clean[i], delta_ends, i),
            share(case, float(N[i]), float(D[i]), draws=whole), outside(case, float(N[i]), float(D[i])),
            critical(case, float(N[i])) if whole else None,
        )
        for i in range(len(N))
    ]  # fmt: skip


def share(case: Case, N: float, D: float, *, draws: bool) -> Range:
    """N_eff / N: the share of N that would have the same loss at the same D unquantized; zero under 1e-6."""
    at, tokens = np.array([N]), np.array([D])
    most = case.view.draws if draws and case.view.draws else None
    if np.array_equal(case.loss(at, tokens, draws=most), case.view.clean(at, tokens, draws=most)):
        return Range(1.0) if most is None else Range(1.0, 1.0, 1.0)  # nothing is quantized
    grid, of_grid = N * np.exp(SHARES), np.full(SHARES.shape, D)
    value = _share(case.loss(at, tokens), case.view.clean(grid, of_grid)[None])[0]
    if not (draws and case.view.draws):
        return Range(value)
    few = slice(None, None, COARSE)
    found = _share(
        case.loss(at, tokens, draws=case.view.draws)[:, 0],
        case.view.clean(grid[few], of_grid[few], draws=case.view.draws),
    )
    return _range(value, _ends(np.array(found)[:, None]), 0)


def _share(goals: Array, clean: Array) -> list[float]:
    """For losses (S,) and unquantized ones (S, k) over SHARES, which fall."""
    found = []
    shares = np.linspace(SHARES[0], SHARES[-1], clean.shape[1])
    for goal, row in zip(goals, clean, strict=True):
        log = np.interp(goal, row[::-1], shares[::-1], right=-np.inf) if np.isfinite(goal) else -np.inf
        found.append(float(np.exp(log)))
    return found


def critical(case: Case, N: float) -> Range | None:
    """D_crit in tokens at this size, None where more tokens help up to 1e20."""
    at = np.full(TOKENS.shape, N)
    value = _turn(case.loss(at, np.exp(TOKENS))[None])[0]
    if not np.isfinite(value):
        return None
    if not case.view.draws:
        return Range(value)
    few = slice(None, None, COARSE)
    return _range(value, _ends(_turn(case.loss(at[few], np.exp(TOKENS[few]), draws=case.view.draws))[:, None]), 0)


def _turn(loss: Array) -> Array:
    """The D (S,) of least loss (S, k) over TOKENS, refined by a parabola; infinite at the end."""
    loss = np.where(np.isfinite(loss), loss, 1e300)
    tokens = np.linspace(TOKENS[0], TOKENS[-1], loss.shape[1])
    at = np.clip(np.argmin(loss, axis=1), 1, len(tokens) - 2)
    rows = np.arange(len(loss))
    left, middle, right = (loss[rows, at + step] for step in (-1, 0, 1))
    bend = left - 2 * middle + right
    shift = np.where(bend > 0, (left - right) / (2 * np.where(bend > 0, bend, 1.0)), 0.0)
    found = np.exp(tokens[at] + np.clip(shift, -1, 1) * (tokens[1] - tokens[0]))
    ends = np.argmin(loss, axis=1)
    return np.where((ends == len(tokens) - 1) | (middle >= 1e300), np.inf, found)


def outside(case: Case, N: float, D: float) -> dict[str, float]:
    """How far the point lies outside of what the constants were fitted on. In BF16 only N and D count."""
    at: dict[str, float] = {"N": N, "D": D}
    if case.setting.format != SIXTEEN:
        at |= {name: float(np.ravel(value)[0]) for name, value in case.inputs(np.array([N])).items()}
    domain = {name: ends for name, ends in case.view.domain.items() if name in at}
    return beyond(domain, at)


def bits_of(view: View, C: float, N: float | None, D: float | None) -> tuple[BestBits, ...]:
    """P* with everything free, and with the given size or tokens held."""
    found = []
    for held, kept in (("C", {}), ("C and N", {"N": N}), ("C and D", {"D": D})):
        if held != "C" and None in kept.values():
            continue
        best = best_bits(view, C, **kept)
        if best is not None:
            found.append(BestBits(held, C, _drawn_bits(view, best, C, kept), best.N, best.D))
    return tuple(found)


def _drawn_bits(view: View, best: Optimum, C: float, kept: dict[str, float | None]) -> Range:
    if not view.draws or view.main.draws is None:
        return Range(best.bits)
    values = []
    for theta in view.main.draws[:DRAWS_OF_BITS]:
        other = best_bits(replace(view, main=Constants(view.main.law, theta)), C, **kept)
        values.append(other.bits if other else np.nan)
    found = np.array(values)[~np.isnan(values)]
    return _range(best.bits, _ends(found[:, None]) if len(found) else None, 0)


def _range(value: float, ends: tuple[Array, Array] | None, i: int) -> Range:
    return Range(float(value)) if ends is None else Range(float(value), float(ends[0][i]), float(ends[1][i]))


def _ends(values: Array) -> tuple[Array, Array]:
    """The ends (n,) of the 95 % interval over draws (S, n), at draws themselves: some may be infinite, between which
    nothing can be interpolated."""
    ordered, last = np.sort(values, axis=0), len(values) - 1
    return ordered[int(np.floor(INTERVAL[0] * last))], ordered[int(np.ceil(INTERVAL[1] * last))]
