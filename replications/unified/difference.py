"""A law of the loss as what it says of delta: its loss less that of the unquantized model of the same N and D.

The pool's deltas are differences of two runs of one seed; what a law of the unquantized loss gets wrong (3 % at these
sizes, more than 4 bits cost) cancels in them. So all laws of the loss share one base, Chinchilla's law on our
unquantized runs, and are fitted to deltas by the constants of their penalty alone.
"""

from collections.abc import Mapping
from dataclasses import replace

import numpy as np

from shared.laws.fit import hold
from shared.laws.law import Array, Columns, Law

# Names that the laws have for A, B and E.
ALIASES = {"n": "A", "d": "B", "epsilon": "E"}


def difference(law: Law, base: Mapping[str, float]) -> Law:
    """`law` with target delta. The constants A, alpha, B, beta and E that it has are held at `base`, so that
    its parameters are those of its penalty; its gradient in these is that of the loss.

    Raises BitlawError where `hold` does. Rows at the law's unquantized setting have delta 0.
    """
    known = {name: base[ALIASES.get(name, name)] for name in law.parameters if ALIASES.get(name, name) in base}

    def predict(theta: Array, columns: Columns) -> Array:
        return law.predict(theta, columns) - unquantized(columns)

    def unquantized(columns: Columns) -> Array:
        """(n,), whatever the penalty's constants are."""
        clean = {name: np.full_like(v, law.unquantized.get(name, 0.0)) if name in law.unquantized else v
                 for name, v in columns.items()}  # fmt: skip
        return law.predict(stays, clean)

    def both(theta: Array, columns: Columns) -> tuple[Array, Array]:
        value, slope = law.both(theta, columns) if law.both else (
            law.predict(theta, columns), law.gradient(theta, columns)
        )  # fmt: skip
        return value - unquantized(columns), slope

    def starts(generator: np.random.Generator, n: int, columns: Columns, target: Array, error: Array) -> Array:
        loss = base["A"] * columns["N"] ** -base["alpha"] + base["B"] * columns["D"] ** -base["beta"] + base["E"]
        return np.clip(law.starts(generator, n, columns, target + loss, error), *held.bounds.T)

    held = hold(law, known)
    stays = np.where(np.isin(law.parameters, list(known)), held.bounds[:, 0], np.clip(0.0, *held.bounds.T))
    made = replace(held, target="delta", predict=predict, both=both, starts=starts, unquantized={})
    return freed(made)


def freed(law: Law) -> Law:
    """`law` with its free constants alone: those whose bounds leave them no room stay where they are, and count no
    more among its parameters (as a fit counts degrees of freedom)."""
    free = law.bounds[:, 1] > law.bounds[:, 0]
    if free.all():
        return law
    stays = law.bounds[:, 0].copy()
    raw_held = law.to_raw(stays)[~free]

    def full(theta: Array) -> Array:
        found = np.empty((*theta.shape[:-1], len(free)), dtype=theta.dtype)
        found[..., ~free], found[..., free] = stays[~free], theta
        return found

    def from_raw(raw: Array) -> Array:
        found = np.empty((*raw.shape[:-1], len(free)))
        found[..., ~free], found[..., free] = raw_held, raw
        return law.from_raw(found)[..., free]

    def both(theta: Array, columns: Columns) -> tuple[Array, Array]:
        value, slope = law.both(full(theta), columns) if law.both else (
            law.predict(full(theta), columns), law.gradient(full(theta), columns)
        )  # fmt: skip
        return value, slope[..., free]

    return replace(
        law,
        parameters=tuple(name for name, some in zip(law.parameters, free, strict=True) if some),
        predict=lambda theta, columns: law.predict(full(theta), columns),
        gradient=lambda theta, columns: law.gradient(full(theta), columns)[..., free],
        both=both,
        bounds=law.bounds[free],
        starts=lambda generator, n, columns, target, error: law.starts(generator, n, columns, target, error)[..., free],
        to_raw=lambda theta: law.to_raw(full(theta))[..., free],
        from_raw=from_raw,
    )
