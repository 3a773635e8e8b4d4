"""A scaling law as data: its formula, gradient, parameters and bounds."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray

Array = NDArray[np.float64]
Columns = Mapping[str, Array]
# Of the inputs and targets of all laws, as tables hold them.
UNITS = {
    "N": "parameters without embeddings",
    "D": "training tokens",
    "bits": "bits of a weight",
    "P_w": "bits of weights in training",
    "P_a": "bits of activations in training",
    "P_kv": "bits of keys and values in training",
    "P_post": "bits of a weight after training",
    "G": "elements that share a scale",
    "B": "elements that share a scale",
    "E": "exponent bits",
    "M": "mantissa bits",
    "compression": "names of groups",
    "relative_mse": "share of the weights' squares that their format loses",
    "relative_mse_a": "share of the activations' squares that their format loses",
    "relative_mse_kv": "share of the squares of keys and values that their format loses",
    "relative_mse_b": "share of the squares lost of what backward products alone cast",
    "trained": "1: trained in the format, 0: rounded after training",
    "loss": "nats per token",
    "delta": "nats per token, over the unquantized loss",
}


@dataclass(frozen=True)
class Law:
    """A law in two coordinates: raw ones, which the paper prints, and internal ones, in which the fit is well scaled.

    ``theta`` below is internal, of shape (..., P) for P parameters; ``columns`` maps each input to raw values of
    shape (n,): N in parameters, D in tokens, bits in bits.
    """

    name: str
    source: str  # paper and equation
    inputs: tuple[str, ...]
    parameters: tuple[str, ...]  # P names, as reported
    target: str  # the column that is predicted; its standard error is the column `<target>_se`, in nats per token
    predict: Callable[[Array, Columns], Array]  # (..., P) -> (..., n), in nats per token
    gradient: Callable[[Array, Columns], Array]  # (..., P) -> (..., n, P)
    bounds: Array  # (P, 2), internal
    starts: Callable[[np.random.Generator, int, Columns, Array, Array], Array]
    # (generator, how many, columns, target (n,), standard error (n,)) -> internal (how many, P)
    to_raw: Callable[[Array], Array]  # internal (..., P) -> raw (..., P)
    from_raw: Callable[[Array], Array]
    both: Callable[[Array, Columns], tuple[Array, Array]] | None = None  # predict and gradient in one go
    at_least_zero: tuple[str, ...] = ()  # inputs that may be zero; the others are above it
    # The setting of inputs at which nothing is quantized: what a law of the loss counts its delta from.
    unquantized: Mapping[str, float] = field(default_factory=dict)
    grouped: str | None = None  # the input that holds codes 0, 1, ... of `groups`; 0 is the unquantized one
    groups: tuple[str, ...] = ()

    @property
    def units(self) -> dict[str, str]:
        """Of the inputs and the target, where they are known."""
        return {name: UNITS[name] for name in (*self.inputs, self.target) if name in UNITS}

    def raw(self, theta: Array) -> dict[str, float]:
        """One internal vector (P,) as the paper's named constants."""
        return dict(zip(self.parameters, map(float, self.to_raw(theta)), strict=True))

    def internal(self, constants: Mapping[str, float]) -> Array:
        """The paper's named constants as one internal vector (P,)."""
        return self.from_raw(np.array([constants[name] for name in self.parameters], dtype=float))
