"""Profile intervals: how far a constant can go before the best fit with it held there costs significantly more.

The constant's coordinate is moved and all others are fitted again; the end is where the cost has risen by half the
square of Student's t, times what one degree of freedom costs by chance (Bates and Watts 1988, Nonlinear regression
analysis, section 6.1; for Huber's cost Schrader and Hettmansperger 1980). A coordinate is the raw constant, or its
logarithm where that is linear in the internal parameters. All constants and both sides are solved as one batch.
"""

from collections.abc import Callable

import numpy as np

from shared.laws.law import Array, Columns, Law
from shared.laws.solve import Misfit, solve

ROUNDS = 16
CLOSE = 0.01  # of the rise that is sought
FAR = 60.0  # times the expected half-width; an end beyond that is taken as open


def profiles(
    law: Law,
    columns: Columns,
    target: Array,
    weight: Array,
    misfit: Misfit,
    theta: Array,
    cost: float,
    rise: float,
) -> list[tuple[float | None, float | None]]:
    """(low, high) of each raw constant, where the cost exceeds `cost` by `rise`.

    An end on a bound of the law is that bound; an end that is never reached is None; so are both ends of a constant
    that is held.
    """
    axes, spread = _axes(law, columns, weight, misfit, theta, rise)
    P = len(theta)
    which = np.array([k for k in range(P) if np.isfinite(spread[k]) and spread[k] > 0 for _ in (0, 1)], dtype=int)
    ends: list[list[float | None]] = [[None, None] for _ in range(P)]
    if not len(which):
        return [(low, high) for low, high in ends]
    side = np.tile([-1.0, 1.0], len(which) // 2)
    across, unit = axes[which], np.linalg.pinv(axes)[:, which].T
    at = np.tile(theta, (len(which), 1))
    done = np.zeros(len(which), dtype=bool)
    inside, beyond = np.zeros(len(which)), np.full(len(which), np.inf)  # distances known to cost less and more
    step = np.ones(len(which))  # in units of the expected half-width
    for _ in range(ROUNDS):
        todo = np.flatnonzero(~done)
        if not len(todo):
            break
        reached = np.sum(across[todo] * (at[todo] - theta), axis=-1) / (side[todo] * spread[which[todo]])
        trial = at[todo] + ((step[todo] - reached) * side[todo] * spread[which[todo]])[:, None] * unit[todo]
        found = solve(law, columns, trial, target, weight, misfit=misfit, across=across[todo])
        gone = np.sum(across[todo] * (found.theta - theta), axis=-1) / (side[todo] * spread[which[todo]])
        rises = (found.cost - cost) / rise
        for j, i in enumerate(todo):
            k, high = which[i], side[i] > 0
            if not gone[j] >= min(inside[i], step[i]) - 1e-6 * step[i]:
                # Not where it was sent, nor held by a bound on the way there: rounding moved it, for the data say
                # nothing about this constant.
                done[i] = True
                continue
            stopped = gone[j] < step[i] * (1 - 1e-6) and rises[j] < 1  # a bound is in the way
            if stopped or abs(rises[j] - 1) < CLOSE:
                ends[k][int(high)] = float(law.to_raw(found.theta[j])[k])
                done[i] = True
                continue
            if not np.isfinite(rises[j]):
                rises[j] = 16.0
            if rises[j] < 1:
                inside[i], at[i] = step[i], found.theta[j]
                wanted = step[i] / np.sqrt(max(rises[j], 0.05))
                step[i] = wanted if wanted < beyond[i] else (step[i] + beyond[i]) / 2
            else:
                beyond[i] = step[i]
                wanted = step[i] / np.sqrt(rises[j])
                step[i] = wanted if wanted > inside[i] else (inside[i] + step[i]) / 2
            done[i] = step[i] > FAR
    return [(low, high) for low, high in ends]


def _axes(law: Law, columns: Columns, weight: Array, misfit: Misfit, theta: Array, rise: float) -> tuple[Array, Array]:
    """The slopes (P, P) of each raw constant, or of its logarithm, in internal parameters, and the expected
    half-width of its interval (P,) in that coordinate (NaN where the data say nothing)."""
    slope = _slopes(law.to_raw, theta)
    raw = law.to_raw(theta)
    for k in np.flatnonzero(raw > 0):
        logarithmic = slope[k] / raw[k]
        elsewhere = np.clip(theta + 0.01, *law.bounds.T)
        # Whichever is the same elsewhere is linear, as a share of itself: a constant may be 1e-26.
        moved = _slopes(law.to_raw, elsewhere)[k]
        change = np.linalg.norm(moved / law.to_raw(elsewhere)[k] - logarithmic) * np.linalg.norm(slope[k])
        if change < np.linalg.norm(moved - slope[k]) * np.linalg.norm(logarithmic):
            slope[k] = logarithmic
    gradient = law.gradient(theta, columns)
    prediction = law.predict(theta, columns)
    if misfit.log:
        gradient = gradient / prediction[:, None]
    free = law.bounds[:, 1] > law.bounds[:, 0]
    normal = np.zeros((len(theta), len(theta)))
    if misfit.huber is not None:
        # Half of the rows inside the corner: the search corrects the guess.
        weight = weight * 0.5
    part = (gradient[:, free] * weight[:, None]).T @ gradient[:, free]
    normal[np.ix_(free, free)] = np.linalg.pinv(part, hermitian=True)
    variance = np.einsum("kp,pq,kq->k", slope, normal, slope)
    return slope, np.sqrt(np.where(variance > 0, 2 * rise * variance, np.nan))


def _slopes(function: Callable[[Array], Array], theta: Array) -> Array:
    """(P, P) by central differences."""
    h = 1e-5 * np.maximum(1, np.abs(theta))
    return np.stack(
        [
            (function(theta + h[p] * e) - function(theta - h[p] * e)) / (2 * h[p])
            for p, e in enumerate(np.eye(len(theta)))
        ],
        axis=-1,
    )
