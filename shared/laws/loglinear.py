"""Laws that are a product of powers and exponentials: linear in their parameters once the logarithm is taken.

prediction = exp(level + sum_k slope_k * feature_k), where the features are zero at a reference point, so that the
level is the logarithm of the prediction there.
"""

from collections.abc import Callable

import numpy as np

from shared.laws.law import Array, Columns, Law

# The reference point lies between our pool (0.1M parameters, 1M tokens) and the papers' models (100M, 10B).
REFERENCE_N = 1e6
REFERENCE_D = 1e7
REFERENCE_BITS = 4.0
LEVEL_BOUNDS = (-30.0, 10.0)  # 1e-13 to 2e4 nats at the reference point


def log_linear(
    *,
    name: str,
    source: str,
    inputs: tuple[str, ...],
    parameters: tuple[str, ...],
    features: Callable[[Columns], Array],
    slope_bounds: list[tuple[float, float]],
    start_box: list[tuple[float, float]],
    to_raw: Callable[[Array], Array],
    from_raw: Callable[[Array], Array],
) -> Law:
    """A `Law` on delta from its features, of shape (n, P - 1); the first internal parameter is the level.

    `start_box` is where starting slopes are drawn; it lies inside `slope_bounds`.
    """
    bounds = np.array([LEVEL_BOUNDS, *slope_bounds])
    box = np.array(start_box)

    def design(columns: Columns) -> Array:
        x = features(columns)
        return np.concatenate([np.ones((*x.shape[:-1], 1)), x], axis=-1)

    def predict(theta: Array, columns: Columns) -> Array:
        return np.exp(theta @ design(columns).T)

    def gradient(theta: Array, columns: Columns) -> Array:
        x = design(columns)
        return np.exp(theta @ x.T)[..., None] * x

    def both(theta: Array, columns: Columns) -> tuple[Array, Array]:
        x = design(columns)
        value = np.exp(theta @ x.T)
        return value, value[..., None] * x

    def starts(generator: np.random.Generator, n: int, columns: Columns, target: Array, error: Array) -> Array:
        slopes = generator.uniform(box[:, 0], box[:, 1], size=(n, len(box)))
        # Far from the best level the gradient vanishes and a start is wasted, so each level is set to the mean misfit
        # in logarithms; what noise made negative counts as a thousandth of its size, for this purpose only.
        positive = np.maximum(target, 1e-3 * np.hypot(target, error)).clip(np.finfo(float).tiny)
        level = np.mean(np.log(positive) - slopes @ features(columns).T, axis=-1)
        return np.clip(np.concatenate([level[:, None], slopes], axis=-1), bounds[:, 0], bounds[:, 1])

    return Law(
        name=name,
        source=source,
        inputs=inputs,
        parameters=parameters,
        target="delta",
        predict=predict,
        gradient=gradient,
        bounds=bounds,
        starts=starts,
        to_raw=to_raw,
        from_raw=from_raw,
        both=both,
    )
