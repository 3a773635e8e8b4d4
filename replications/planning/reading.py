"""Which settings each kind of law knows, as its inputs; for the others a sentence that says why not.

Every function makes a `View.read`: (setting, lengths of rows (n,)) -> inputs beside N and D, or a reason.
"""

from collections.abc import Callable, Mapping

import numpy as np

from replications.planning.cost import Streams
from replications.planning.setting import SIXTEEN, Setting
from replications.planning.view import Inputs
from shared.laws.law import Array

Read = Callable[[Setting, Array], Inputs | str]
SIXTEEN_BITS = 16.0
PASSES = 3.0  # forward, and two backward: of inputs and of weights


def integers(names: tuple[str, ...], sixteen: float) -> Read:
    """Integers of the same bits for each input of `names`; `sixteen` stands for BF16."""

    def read(setting: Setting, row: Array) -> Inputs | str:
        if setting.format == SIXTEEN:
            return dict.fromkeys(names, sixteen)
        bits = setting.integer_bits
        if bits is None:
            return "the law knows only integer bits"
        return dict.fromkeys(names, float(bits))

    return read


def floats_as_bits(setting: Setting, row: Array) -> Inputs | str:
    """Kumar's Appendix N: weights in ExMy, by their bits alone."""
    if setting.format == SIXTEEN:
        return {"bits": 16.0}
    if setting.layout is None or setting.element != setting.format:
        return "these constants are of plain ExMy weights"
    return {"bits": setting.bits}


def sixteen_alone(setting: Setting, row: Array) -> Inputs | str:
    """A law without quantization."""
    return {} if setting.format == SIXTEEN else "the law knows no quantization"


def only(form: str) -> Read:
    """Chen's settings: one format, and the elements that share a scale. In BF16 nothing is lost (G = 1)."""

    def read(setting: Setting, row: Array) -> Inputs | str:
        if setting.format not in (SIXTEEN, form):
            return f"these constants are of {form} alone"
        return {"G": setting.elements(row)}

    return read


def layouts(channel: float | None) -> Read:
    """Sun's E, M and B. `channel` elements are what a whole channel counts as; None: as many as it has."""

    def read(setting: Setting, row: Array) -> Inputs | str:
        if setting.format == SIXTEEN:
            return {"E": 8.0, "M": 7.0, "B": 1.0}
        if setting.layout is None:
            return "the law knows only exponent and mantissa bits"
        if setting.element != setting.format:
            return "the law's scales are in high precision, a block format's are not"
        if setting.format.endswith(("FN", "IEEE")):
            return "the law's formats have no code for infinity or NaN"
        B = setting.elements(row) if channel is None or setting.group != "channel" else channel
        return {"E": float(setting.layout[0]), "M": float(setting.layout[1]), "B": B}

    return read


def named_groups(codes: Mapping[str, int], of: Mapping[str, str]) -> Read:
    """A law with a constant for each compression: `of` maps formats to groups, `codes` groups to their codes."""

    def read(setting: Setting, row: Array) -> Inputs | str:
        if setting.format == SIXTEEN:
            return {"compression": 0.0}
        group = of.get(setting.format)
        if group is None or group not in codes:
            known = ", ".join(name for name in of if of[name] in codes)
            return f"it has a multiplier for {known} only"
        return {"compression": float(codes[group])}

    return read


def weights_alone(setting: Setting) -> Streams:
    """Products take 16-bit activations: no pass is cheaper."""
    return Streams()


def forward_pass(setting: Setting) -> Streams:
    """Weights and activations in the same bits going forward, 16 bits going back."""
    return Streams(trained=(setting.bits + 2 * SIXTEEN_BITS) / PASSES, used=setting.bits)


def every_pass(setting: Setting) -> Streams:
    return Streams(trained=setting.bits, used=setting.bits)


def with_cache(setting: Setting) -> Streams:
    """Kumar's Eq. 4 and 5: weights, activations and the KV cache; all of training is counted in these bits."""
    return Streams(trained=setting.bits, used=setting.bits, cache=setting.bits)


def weights_and_gradients(setting: Setting) -> Streams:
    """Sun's P2, P4 and P6, which his cost counts as all of training; activations stay in 16 bits going forward."""
    return Streams(trained=setting.bits)


def all_in(*names: str) -> Callable[[Array], Inputs]:
    """`View.at_bits` of a law of integers: the same bits for each input."""
    return lambda bits: dict.fromkeys(names, bits)


def best_layout(delta: float, nu: float, B: float) -> Callable[[Array], Inputs]:
    """Sun's inputs at real bits P: E = delta P / (delta + nu) - 1/2, M = nu P / (delta + nu) - 1/2 lose least (facts,
    2.4). Under one bit more than a half these would be negative; the law takes them from zero."""

    def inputs(bits: Array) -> Inputs:
        share = delta / (delta + nu)
        return {
            "E": np.maximum(share * bits - 0.5, 0.0),
            "M": np.maximum((1 - share) * bits - 0.5, 0.0),
            "B": np.full(np.shape(bits), B),
        }

    return inputs
