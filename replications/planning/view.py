"""A law with constants, as a plan reads it: which settings it knows, and the loss it expects of them."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Literal

import numpy as np

from replications.planning.cost import Streams
from replications.planning.setting import Setting
from shared.laws.law import Array, Law

Inputs = Mapping[str, float | Array]  # of a law, beside N and D
Domain = Mapping[str, tuple[float, float]]


@dataclass(frozen=True)
class Constants:
    """A law with its internal constants (P,) and their bootstrap draws (S, P); none of published ones."""

    law: Law
    theta: Array
    draws: Array | None = None


@dataclass(frozen=True)
class View:
    """`main` is a law of the loss, or of delta over `base`, a law of the unquantized loss.

    read      (setting, lengths of a model's rows (n,)) -> the inputs of `main` beside N and D, or why it is not known
    plain     the inputs of `main` at which nothing is quantized
    at_bits   inputs at any real bits (n,), where the cost falls with them too: what P* needs
    streams   what is quantized beside the weights, for the cost
    domain    where the constants come from: the smallest and largest of each input, N and D
    """

    name: str
    title: str
    paper: str
    origin: str  # published, ours, or a file
    how: Literal["rounded", "trained", "unquantized"]  # after training in 16 bits, or trained so
    main: Constants
    read: Callable[[Setting, Array], Inputs | str]
    base: Constants | None = None
    plain: Inputs = field(default_factory=dict)
    at_bits: Callable[[Array], Inputs] | None = None
    streams: Callable[[Setting], Streams] = lambda setting: Streams()
    domain: Domain = field(default_factory=dict)
    sees_groups: bool = False
    status: str = "published"
    notes: tuple[str, ...] = ()

    @property
    def draws(self) -> int:
        """How many bootstrap draws all its constants have."""
        counts = [0 if part.draws is None else len(part.draws) for part in (self.main, self.base) if part is not None]
        return min(counts)

    @property
    def floor(self) -> float | None:
        """The unquantized loss at the largest N and D that were fitted, where the fit left E on its bound: how low the
        loss can get is then no finding of it. None where E was found."""
        part = self.base or self.main
        if "E" not in part.law.parameters or not {"N", "D"} <= set(self.domain):
            return None
        k = part.law.parameters.index("E")
        low, high = part.law.bounds[k]
        if part.theta[k] > low + 1e-6 * (high - low):
            return None
        N, D = (np.array([self.domain[name][1]]) for name in ("N", "D"))
        return float(self.clean(N, D)[0])

    def loss(self, inputs: Inputs, N: Array, D: Array, draws: int | None = None) -> Array:
        """Nats per token at N, D (n,): (n,), or (S, n) for at most so many draws. Infinite where the law diverges."""
        most = None if draws is None else min(draws, self.draws)
        main = _predict(self.main, self._columns(inputs, N, D), most)
        if self.base is None:
            return main
        return main + _predict(self.base, {"N": N, "D": D}, most)

    def clean(self, N: Array, D: Array, draws: int | None = None) -> Array:
        """The same where nothing is quantized."""
        most = None if draws is None else min(draws, self.draws)
        if self.base is not None:
            return _predict(self.base, {"N": N, "D": D}, most)
        return _predict(self.main, self._columns(self.plain, N, D), most)

    def _columns(self, inputs: Inputs, N: Array, D: Array) -> dict[str, Array]:
        others = {name: np.broadcast_to(np.asarray(value, dtype=float), N.shape) for name, value in inputs.items()}
        return {"N": N, "D": D, **others}


def _predict(part: Constants, columns: Mapping[str, Array], draws: int | None) -> Array:
    theta = part.theta if draws is None else part.draws[:draws] if part.draws is not None else part.theta[None]
    with np.errstate(over="ignore", invalid="ignore", divide="ignore"):
        found = part.law.predict(theta, columns)
    return np.where(np.isnan(found), np.inf, found)
