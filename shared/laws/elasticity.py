"""Elasticities: what papers have in common whatever the form of their law.

d ln delta / d ln D and d ln delta / d ln N, d ln delta per bit and per doubling of a group, at a stated point; what
follows from them, such as the effective share of N; and the same slope measured between neighbouring horizons without
any law.
"""

from collections.abc import Callable, Mapping

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from shared.laws.cells import Cells
from shared.laws.law import Array, Columns, Law
from shared.laws.result import interval

# These inputs are counted in steps of one, these by doublings; every other input by its natural logarithm.
LINEAR_INPUTS = ("bits", "P_w", "P_a", "P_kv", "P_post", "E", "M")
DOUBLED_INPUTS = ("G", "B")
STEP = 1e-4
BISECTIONS = 80
LEAST_SHARE = 1e-12  # of N
MOST_TOKENS = 1e25  # beyond, what tokens still gain is rounding
CLEAR = 2.0  # standard errors above zero from which a delta has a logarithm worth showing
Z = 1.959964


def delta_of(law: Law, theta: Array, columns: Columns) -> Array:
    """What quantization costs in nats per token, (..., n): the prediction of a law of delta, and that of a law of the
    loss minus the same where nothing is quantized. A law that knows no quantization gives its loss."""
    predicted = law.predict(theta, columns)
    return predicted - law.predict(theta, _unquantized(law, columns)) if law.unquantized else predicted


def slope(law: Law, theta: Array, name: str, at: Mapping[str, float]) -> Array:
    """d ln delta / d ln `name` (per unit of a linear input, per doubling of a doubled one) at one point, for `theta`
    (..., P): shape (...). NaN where delta is not above zero: it has no logarithm."""
    ends = []
    for sign in (1, -1):
        if name in LINEAR_INPUTS:
            moved = at[name] + sign * STEP
        else:
            moved = at[name] * (2.0 if name in DOUBLED_INPUTS else np.e) ** (sign * STEP)
        delta = delta_of(law, theta, _point(law, {**at, name: moved}))[..., 0]
        ends.append(np.log(np.where(delta > 0, delta, np.nan)))
    return (ends[0] - ends[1]) / (2 * STEP)


def elasticities(law: Law, theta: Array, draws: Array | None, at: Mapping[str, float]) -> dict[str, dict[str, float]]:
    """{"D": {"value", "low", "high"}, ...} for each input that is a quantity; one that is not counted by its natural
    logarithm carries "at". Without draws, values only. `at` may hold more than the law's inputs."""
    found = {}
    for name in law.inputs:
        if name == law.grouped:
            continue
        found[name] = {"value": float(slope(law, theta, name, at))}
        if draws is not None:
            low, high = interval(slope(law, draws, name, at))
            found[name] |= {"low": float(low), "high": float(high)}
        if name in LINEAR_INPUTS + DOUBLED_INPUTS:
            found[name]["at"] = at[name]
    return found


def effective_share(law: Law, theta: Array, at: Mapping[str, float]) -> Array:
    """N_eff / N of a law of the loss, shape (...): the share of N that would have the same loss at the same D if
    nothing were quantized. By bisection, so that it needs no closed form; zero where no N is small enough."""
    goal = law.predict(theta, _point(law, at))[..., 0]

    def too_large(share: Array) -> NDArray[np.bool_]:
        """Whether this share of N still has a lower loss than the quantized model."""
        return _at_each(law, theta, {**at, **law.unquantized}, "N", at["N"] * share) < goal

    low, high = np.full(goal.shape, np.log(LEAST_SHARE)), np.full(goal.shape, np.log(1e3))
    share = np.exp(_bisect(low, high, lambda middle: too_large(np.exp(middle))))
    return np.where(share <= 2 * LEAST_SHARE, 0.0, share)


def critical_tokens(law: Law, theta: Array, at: Mapping[str, float]) -> Array:
    """D_crit of a law of the loss, shape (...): the D in tokens beyond which more of them raise the quantized model's
    loss; infinite where none does. `at` needs no D."""

    def rises(log_D: Array) -> NDArray[np.bool_]:
        ends = [_at_each(law, theta, at, "D", np.exp(log_D + step)) for step in (-0.01, 0.01)]
        return ends[1] > ends[0]

    shape = theta.shape[:-1]
    low, high = np.zeros(shape), np.full(shape, np.log(MOST_TOKENS))
    found = _bisect(low, high, rises)
    return np.where(found > np.log(MOST_TOKENS) - 1e-6, np.inf, np.exp(found))


def _bisect(low: Array, high: Array, above: Callable[[Array], NDArray[np.bool_]]) -> Array:
    """Where `above` turns from False to True, elementwise."""
    for _ in range(BISECTIONS):
        middle = (low + high) / 2
        hit = above(middle)
        low, high = np.where(hit, low, middle), np.where(hit, middle, high)
    return high


def _at_each(law: Law, theta: Array, at: Mapping[str, float], name: str, values: Array) -> Array:
    """The prediction for each parameter vector (..., P) at its own value (...) of one input."""
    flat = np.atleast_1d(values).ravel()
    rows = theta.reshape(-1, theta.shape[-1])
    columns = {key: np.full(1, at.get(key, 1.0)) for key in law.inputs}
    found = [law.predict(rows[i], columns | {name: flat[i, None]})[0] for i in range(len(flat))]
    return np.array(found).reshape(np.shape(values))


def _point(law: Law, at: Mapping[str, float]) -> dict[str, Array]:
    return {name: np.array([at[name]], dtype=float) for name in law.inputs}


def _unquantized(law: Law, columns: Columns) -> dict[str, Array]:
    return {**columns, **{name: np.full(len(columns[name]), value) for name, value in law.unquantized.items()}}


def local_elasticities(cells: Cells) -> list[dict[str, float | None]]:
    """d ln delta / d ln D between neighbouring horizons of each (N, bits), in order, with 95 % intervals.

    The interval is normal, from the validation error and the seed noise of both ends taken as independent; what a
    trunk's horizons share cancels in truth, so it is rather too wide. Where an end is not two standard errors above
    zero the slope has no meaning, and value, low and high are None.
    """
    sd = cells.measured_sd(np.abs(cells.target))
    table = pd.DataFrame({name: cells.columns[name] for name in ("N", "bits", "D")})
    table = table.assign(delta=cells.target, sd=sd).sort_values(["N", "bits", "D"])
    found: list[dict[str, float | None]] = []
    for (N, bits), some in table.groupby(["N", "bits"], sort=True):
        D, delta, spread = (some[name].to_numpy() for name in ("D", "delta", "sd"))
        for i in range(len(D) - 1):
            step: dict[str, float | None] = {"N": N, "bits": bits, "D_from": D[i], "D_to": D[i + 1]}
            step |= {"value": None, "low": None, "high": None}
            ends = slice(i, i + 2)
            if np.all(delta[ends] > CLEAR * spread[ends]):
                width = np.log(D[i + 1] / D[i])
                value = float(np.log(delta[i + 1] / delta[i]) / width)
                half = float(Z * np.linalg.norm(spread[ends] / delta[ends]) / width)
                step |= {"value": value, "low": value - half, "high": value + half}
            found.append(step)
    return found
