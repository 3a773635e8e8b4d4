"""Laws that are a constant plus a sum of exponentials, or a power of such a sum.

    prediction = constant + (sum_j exp(y_j))^power

Each y_j is the logarithm of one term of the printed law (A / N^alpha, B / D^beta, a cost of low precision). A law
states y_j and its slopes; the prediction, the gradient, the scaled coordinates and the starting points follow here.

A term that is absent at a row has y = -inf and finite slopes there; one that diverges has y = +inf.
Suffixes: B parameter vectors, n rows, P parameters, k terms.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass

import numpy as np

from shared.laws.law import Array, Columns, Law
from shared.laws.loglinear import REFERENCE_D, REFERENCE_N

Slopes = dict[int, Array | float]
LOG_N, LOG_D = float(np.log(REFERENCE_N)), float(np.log(REFERENCE_D))
LEVEL = (-100.0, 100.0)  # bounds of the logarithm of a term at the reference point
EXPONENT = (0.0, 3.0)  # bounds of an exponent of N or D whose term falls to zero
EXPONENT_STARTS = (0.05, 1.0)
CONSTANT = (0.0, 20.0)  # nats per token; a fit that ends at zero says so
SMALLEST_SHARE = 1e-4  # of the target that a term starts with, where least squares would make it negative


@dataclass(frozen=True)
class Term:
    """y of shape (..., n) and its slopes {index into theta: d y / d theta}, each broadcastable to (..., n)."""

    y: Array
    slopes: Mapping[int, Array | float]


@dataclass(frozen=True)
class Parameter:
    """One constant of a law, as printed and as fitted.

    The internal value is the printed one, or its logarithm (`log`) plus `reference[other] * internal value of other`
    summed over `reference`: the logarithm of a term at the reference point instead of at N = 1 and D = 1, so that it
    does not run with its exponents. `starts` is where starting values are drawn; None for the factor of a term, whose
    start follows from the others by linear least squares.
    """

    name: str
    bounds: tuple[float, float]  # internal
    starts: tuple[float, float] | None = None  # internal
    log: bool = False
    reference: Mapping[str, float] | None = None


def factor(name: str, **reference: float) -> Parameter:
    """The constant before a term, such as A: factor("A", alpha=-LOG_N) is fitted as ln A - alpha ln N_ref."""
    return Parameter(name, LEVEL, None, log=True, reference=reference)


def exponent(name: str) -> Parameter:
    return Parameter(name, EXPONENT, EXPONENT_STARTS)


def split(theta: Array) -> list[Array]:
    """The P parameters, each of shape (..., 1) so that it broadcasts against rows."""
    return [theta[..., i, None] for i in range(theta.shape[-1])]


def law_of_terms(
    *,
    name: str,
    source: str,
    inputs: tuple[str, ...],
    parameters: tuple[Parameter, ...],
    terms: Callable[[Array, Columns], list[Term]],
    constant: str | None = None,
    power: str | None = None,
    target: str = "loss",
    draw: Callable[[np.random.Generator, Array, Columns], None] | None = None,
    at_least_zero: tuple[str, ...] = (),
    unquantized: Mapping[str, float] | None = None,
    grouped: str | None = None,
    groups: tuple[str, ...] = (),
) -> Law:
    """A `Law` from its terms. `constant` and `power` name parameters.

    The k-th parameter without `starts` is the factor of the k-th term (all terms have one, or none). `draw` may
    overwrite drawn starts (B, P) in place, where a box does not describe them.
    """
    names = tuple(p.name for p in parameters)
    bounds = np.array([p.bounds for p in parameters])
    box = np.array([p.starts or (0.0, 0.0) for p in parameters])
    factors = [i for i, p in enumerate(parameters) if p.starts is None]
    at_constant = names.index(constant) if constant else None
    at_power = names.index(power) if power else None
    logarithmic = np.array([p.log for p in parameters])
    shear = np.zeros((len(names), len(names)))  # internal = logs + shear @ logs; shear^2 = 0, so its inverse is -shear
    for i, p in enumerate(parameters):
        for other, value in (p.reference or {}).items():
            shear[i, names.index(other)] = value

    def both(theta: Array, columns: Columns) -> tuple[Array, Array]:
        found = terms(theta, columns)
        n_rows = np.broadcast_shapes(*(term.y.shape for term in found))[-1]
        values = [np.exp(term.y) for term in found]
        total = np.broadcast_to(sum(values[1:], values[0]), (*theta.shape[:-1], n_rows))
        slopes_BPn = np.zeros((*theta.shape, n_rows), dtype=total.dtype)
        for term, value in zip(found, values, strict=True):
            for i, slope in term.slopes.items():
                slopes_BPn[..., i, :] += value * slope
        if at_power is not None:
            total, slopes_BPn = _raised(total, slopes_BPn, theta[..., at_power, None], at_power)
        if at_constant is not None:
            slopes_BPn[..., at_constant, :] += 1.0
            total = total + theta[..., at_constant, None]
        return total, np.moveaxis(slopes_BPn, -2, -1)

    def predict(theta: Array, columns: Columns) -> Array:
        values = [np.exp(term.y) for term in terms(theta, columns)]
        total = sum(values[1:], values[0])
        if at_power is not None:
            total = total ** theta[..., at_power, None]
        shift = 0.0 if at_constant is None else theta[..., at_constant, None]
        n_rows = len(next(iter(columns.values())))
        return np.broadcast_to(total + shift, (*theta.shape[:-1], n_rows))

    def starts(generator: np.random.Generator, n: int, columns: Columns, target: Array, error: Array) -> Array:
        theta = generator.uniform(box[:, 0], box[:, 1], size=(n, len(names)))
        positive = np.maximum(target, 1e-3 * np.hypot(target, error)).clip(np.finfo(float).tiny)
        if at_constant is not None:
            theta[:, at_constant] = np.minimum(theta[:, at_constant], 0.98 * positive.min())
        if draw is not None:
            draw(generator, theta, columns)
        if not factors:
            return np.clip(theta, bounds[:, 0], bounds[:, 1])
        goal = positive
        if at_power is not None:
            shift = 0.0 if at_constant is None else theta[:, at_constant, None]
            goal = (positive - shift) ** (1 / theta[:, at_power, None])
        found = terms(theta, columns)
        shapes_Bkn = np.stack([np.broadcast_to(term.y, (n, len(target))) for term in found], axis=1)
        levels, linear_constant = _factors(shapes_Bkn, goal, at_constant is not None and at_power is None)
        # +1 for a factor of its term, -1 for one that divides it.
        signs = np.array([float(np.ravel(term.slopes[i])[0]) for term, i in zip(found, factors, strict=True)])
        theta[:, factors] = signs * levels
        if linear_constant is not None:
            theta[:, at_constant] = linear_constant
        return np.clip(theta, bounds[:, 0], bounds[:, 1])

    def to_raw(theta: Array) -> Array:
        plain = theta - theta @ shear.T
        return np.where(logarithmic, np.exp(np.where(logarithmic, plain, 0.0)), plain)

    def from_raw(raw: Array) -> Array:
        plain = np.where(logarithmic, np.log(np.where(logarithmic, raw, 1.0)), raw)
        return plain + plain @ shear.T

    return Law(
        name=name,
        source=source,
        inputs=inputs,
        parameters=names,
        target=target,
        predict=predict,
        gradient=lambda theta, columns: both(theta, columns)[1],
        bounds=bounds,
        starts=starts,
        to_raw=to_raw,
        from_raw=from_raw,
        both=both,
        at_least_zero=at_least_zero,
        unquantized=unquantized or {},
        grouped=grouped,
        groups=groups,
    )


def _raised(total: Array, slopes_BPn: Array, power: Array, at_power: int) -> tuple[Array, Array]:
    """(sum)^power and its slopes from those of the sum."""
    raised = total**power
    slopes_BPn = slopes_BPn * (power * raised / total)[..., None, :]
    slopes_BPn[..., at_power, :] += raised * np.log(total)
    return raised, slopes_BPn


def _factors(shapes_Bkn: Array, goal: Array, with_constant: bool) -> tuple[Array, Array | None]:
    """Log factors (B, k) of the terms, and the constant (B,) where asked for: least squares of relative errors.

    What least squares makes negative starts small instead. `goal` is (n,) or (B, n).
    """
    n_starts, n_terms, n_rows = shapes_Bkn.shape
    goal = np.broadcast_to(goal, (n_starts, n_rows))
    if n_terms == 1 and not with_constant:
        return np.mean(np.log(goal) - np.clip(shapes_Bkn[:, 0], -700, 700), axis=-1)[:, None], None
    # Each term is scaled to one at its largest, lest exponentials overflow or squares underflow.
    largest = np.max(np.clip(shapes_Bkn, -700, 700), axis=-1)
    basis = np.exp(np.clip(shapes_Bkn, -700, 700) - largest[..., None])
    if with_constant:
        basis = np.concatenate([basis, np.ones((n_starts, 1, n_rows))], axis=1)
    relative = basis / goal[:, None, :]
    gram = relative @ relative.mT + 1e-12 * np.eye(basis.shape[1]) * np.max(relative**2, axis=(1, 2))[:, None, None]
    found = np.linalg.solve(gram, relative.sum(axis=-1)[..., None])[..., 0]
    smallest = SMALLEST_SHARE * np.mean(goal, axis=-1)
    levels = np.log(np.maximum(found[:, :n_terms], smallest[:, None])) - largest
    return levels, (np.maximum(found[:, n_terms], 0.0) if with_constant else None)
