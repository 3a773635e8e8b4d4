"""The methods of `bitlaw ptq`, one entry each: the matrices that read one input, and what is known of that input, in;
rounded matrices out.

Shape letters: O outputs, I inputs.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor, nn

from shared.errors import BitlawError, nearest
from shared.formats.names import names
from shared.quantize.autogptq_backend import autogptq as autogptq_matrix
from shared.quantize.autogptq_backend import core_class
from shared.quantize.awq import awq as awq_matrices
from shared.quantize.bitsandbytes_backend import LLMInt8Linear, functional, llm_int8_weight
from shared.quantize.calibration import Calibration
from shared.quantize.gptq import gptq as gptq_matrix
from shared.quantize.guided import guided_gptq
from shared.quantize.lnq import lnq as lnq_matrix
from shared.quantize.quantizer import PRESETS, Quantizer
from shared.quantize.rtn import Rounded, round_to_nearest
from shared.quantize.sparsegpt import magnitude as magnitude_matrix
from shared.quantize.sparsegpt import sparsegpt as sparsegpt_matrix

Needs = Literal["nothing", "inputs", "gradients"]


@dataclass(frozen=True)
class Known:
    """Of the input that some matrices read: `calibration`, and for each of them `guided_gII`, its guided Hessians."""

    calibration: Calibration | None = None
    guided_gII: tuple[Tensor, ...] = ()

    @property
    def hessian_II(self) -> Tensor:
        return self.inputs.hessian_II

    @property
    def inputs(self) -> Calibration:
        """Raises BitlawError where nothing was gathered."""
        if self.calibration is None:
            raise BitlawError("this method needs calibration inputs")
        return self.calibration


# Matrices, what is known of their input, quantizer (None: 16 bits), seed.
Quantize = Callable[[Sequence[Tensor], Known, Quantizer | None, int], list[Rounded]]


@dataclass(frozen=True)
class Work:
    """What quantizing takes, read off the code and measured (tests/test_ptq_command.py): for the prediction only.

    copies    FP32 numbers for each weight that are in memory at once beside the model's own
    squares   matrices as large as the second moments, beside these and beside the second moments' own sums
    factor    such matrices while they are factored, when there is one copy of the weights only
    entry_copies  copies for each entry of a code book, beside the others
    single    one matrix at a time is worked on, not all that share an input
    passes    times each weight is read or written; products: of the weights with an I x I matrix; cubes: operations
              over I^3; column_seconds: of Python for each input
    """

    copies: float
    squares: float = 0.0
    factor: float = 0.0
    entry_copies: float = 0.0
    single: bool = True
    passes: float = 0.0
    products: float = 0.0
    cubes: float = 0.0
    column_seconds: float = 0.0

    def numbers(self, weights: int, inputs: int, bits: float) -> float:
        """FP32 numbers in memory at once for matrices of so many weights that read so many inputs."""
        square = inputs**2
        copies = self.copies + (self.entry_copies * 2.0**bits if self.entry_copies else 0.0)
        return max(copies * weights + self.squares * square, weights + self.factor * square)


@dataclass(frozen=True)
class Method:
    """`refuses` says why a quantizer does not suit the method, or None. `module` takes the layer's place where inputs
    are rounded too: made of weight (O, I) and bias (O,)."""

    name: str
    about: str
    needs: Needs
    quantize: Quantize
    refuses: Callable[[Quantizer | None], str | None]
    work: Work
    module: Callable[[Tensor, Tensor | None], nn.Module] | None = None


def rtn(weights_OI: Sequence[Tensor], _: Known, quantizer: Quantizer | None, seed: int) -> list[Rounded]:
    return [round_to_nearest(weight_OI, _given(quantizer), seed + k) for k, weight_OI in enumerate(weights_OI)]


def gptq(weights_OI: Sequence[Tensor], known: Known, quantizer: Quantizer | None, _: int) -> list[Rounded]:
    hessian_II = known.hessian_II
    return [gptq_matrix(weight_OI, hessian_II, _given(quantizer)) for weight_OI in weights_OI]


def gptq_act_order(weights_OI: Sequence[Tensor], known: Known, quantizer: Quantizer | None, _: int) -> list[Rounded]:
    hessian_II = known.hessian_II
    return [gptq_matrix(weight_OI, hessian_II, _given(quantizer), act_order=True) for weight_OI in weights_OI]


def awq(weights_OI: Sequence[Tensor], known: Known, quantizer: Quantizer | None, _: int) -> list[Rounded]:
    return awq_matrices(weights_OI, known.inputs, _given(quantizer))[0]


def autogptq(weights_OI: Sequence[Tensor], known: Known, quantizer: Quantizer | None, _: int) -> list[Rounded]:
    quantizer, hessian_II = _given(quantizer), known.hessian_II
    size = quantizer.group if isinstance(quantizer.group, int) else -1
    bits, symmetric = round(quantizer.format.bits), not quantizer.has_zero_point
    return [autogptq_matrix(weight_OI, hessian_II, bits, size, symmetric=symmetric) for weight_OI in weights_OI]


def guided(weights_OI: Sequence[Tensor], known: Known, quantizer: Quantizer | None, _: int) -> list[Rounded]:
    pairs = zip(weights_OI, known.guided_gII, strict=True)
    return [guided_gptq(weight_OI, hessians_gII, _given(quantizer)) for weight_OI, hessians_gII in pairs]


def lnq(weights_OI: Sequence[Tensor], known: Known, quantizer: Quantizer | None, _: int) -> list[Rounded]:
    bits = round(_given(quantizer).format.bits)
    pairs = zip(weights_OI, known.guided_gII, strict=True)
    return [lnq_matrix(weight_OI, hessians_gII, bits) for weight_OI, hessians_gII in pairs]


def magnitude(pattern: str) -> Quantize:
    def prune(weights_OI: Sequence[Tensor], _: Known, quantizer: Quantizer | None, seed: int) -> list[Rounded]:
        pairs = enumerate(weights_OI)
        return [magnitude_matrix(weight_OI, 0.5, pattern, quantizer, seed + k) for k, weight_OI in pairs]

    return prune


def sparsegpt(pattern: str) -> Quantize:
    def prune(weights_OI: Sequence[Tensor], known: Known, quantizer: Quantizer | None, _: int) -> list[Rounded]:
        hessian_II = known.hessian_II
        return [sparsegpt_matrix(weight_OI, hessian_II, 0.5, pattern, quantizer) for weight_OI in weights_OI]

    return prune


def llm_int8(weights_OI: Sequence[Tensor], _: Known, __: Quantizer | None, ___: int) -> list[Rounded]:
    return [llm_int8_weight(weight_OI) for weight_OI in weights_OI]


def _given(quantizer: Quantizer | None) -> Quantizer:
    if quantizer is None:
        raise BitlawError("16 bits and more leave nothing to quantize")
    return quantizer


def _anything(quantizer: Quantizer | None) -> str | None:
    return "16 bits or more leave nothing to quantize" if quantizer is None else None


def _nearest_only(quantizer: Quantizer | None) -> str | None:
    if quantizer is not None and quantizer.rounding == "stochastic":
        return "it rounds to nearest: leave out ':sr'"
    return _anything(quantizer)


def _also_nothing(quantizer: Quantizer | None) -> str | None:
    """Pruning alone is `none`; its zeros need a format that has one."""
    if quantizer is not None and float(quantizer.format.cast(torch.zeros(1))) != 0.0:
        return f"{quantizer.format.name} has no zero"
    return None if quantizer is None else _nearest_only(quantizer)


def _plain_integers(quantizer: Quantizer | None) -> str | None:
    core_class()  # BitlawError where auto-gptq is not installed
    plain = quantizer is not None and _is_plain(quantizer) and quantizer.format.bits in (2, 3, 4, 8)
    return None if plain else "it knows INT and UINT of 2, 3, 4 and 8 bits with FP32 scales, per channel or group"


def _bits_only(quantizer: Quantizer | None) -> str | None:
    plain = quantizer is not None and _is_plain(quantizer) and quantizer.group == "channel"
    suits = plain and quantizer is not None and not quantizer.has_zero_point and 2 <= quantizer.format.bits <= 4
    return None if suits else "it makes a code book for each channel: INT2, INT3 and INT4 with channel name the bits"


def _int8_channel(quantizer: Quantizer | None) -> str | None:
    if quantizer is None or quantizer.text != "INT8@channel":
        return "it is INT8 with group channel"
    functional()  # BitlawError where bitsandbytes is not installed; and its own memory is there before the model's
    return None


def _is_plain(quantizer: Quantizer) -> bool:
    """An integer format with the default scales and rounding, not one scale for the whole tensor."""
    if quantizer.format.kind != "integer" or quantizer.group == "tensor":
        return False
    return quantizer.scale_rule in ("absmax", "minmax") and (quantizer.scale_format, quantizer.rounding) == (
        "FP32",
        "nearest",
    )


# The errors are summed in FP64 (shared/quantize/rtn.py): of 5 copies 4. Floating-point formats take 6.6.
_RTN = Work(copies=5.5, passes=30)
_MAGNITUDE = Work(copies=6.2, passes=30)
_MAGNITUDE_2_4 = Work(copies=10, passes=60)  # the order of each four is of 8 bytes
_INT8 = Work(copies=5.2, passes=30)
_GPTQ = Work(copies=8.3, squares=2, factor=5, passes=150, products=0.5, cubes=2, column_seconds=1e-4)
_SPARSEGPT = Work(copies=7.8, squares=2, factor=5, passes=150, products=0.5, cubes=2, column_seconds=1e-4)
_AUTOGPTQ = Work(copies=6.1, squares=2, factor=4, passes=150, products=0.5, cubes=2, column_seconds=1e-4)
# One group of output channels at a time, of four.
_GUIDED = Work(copies=1.5, squares=6.2, passes=150, products=0.5, cubes=8, column_seconds=4e-4)
_AWQ = Work(copies=11.2, squares=2, single=False, passes=600, products=21)
_LNQ = Work(copies=7, entry_copies=2.6, squares=10.5, passes=4000, products=20, cubes=2, column_seconds=5e-3)
METHODS = {
    method.name: method
    for method in (
        Method("rtn", "round to nearest", "nothing", rtn, _anything, _RTN),
        Method("gptq", "GPTQ, columns in their order (arXiv 2210.17323)", "inputs", gptq, _nearest_only, _GPTQ),
        Method("gptq_act_order", "GPTQ, most active first", "inputs", gptq_act_order, _nearest_only, _GPTQ),
        Method("awq", "AWQ with clipping (arXiv 2306.00978)", "inputs", awq, _nearest_only, _AWQ),
        Method("autogptq", "auto-gptq 0.7.1's core, its defaults", "inputs", autogptq, _plain_integers, _AUTOGPTQ),
        Method("guided", "GPTQ by guided Hessians (arXiv 2505.07004)", "gradients", guided, _nearest_only, _GUIDED),
        Method("lnq", "LNQ code books by guided Hessians", "gradients", lnq, _bits_only, _LNQ),
        Method(
            "magnitude", "half of the weights zero", "nothing", magnitude("unstructured"), _also_nothing, _MAGNITUDE
        ),
        Method("magnitude_2_4", "two of four zero", "nothing", magnitude("2:4"), _also_nothing, _MAGNITUDE_2_4),
        Method(
            "sparsegpt", "half zero (arXiv 2301.00774)", "inputs", sparsegpt("unstructured"), _also_nothing, _SPARSEGPT
        ),
        Method("sparsegpt_2_4", "two of four zero", "inputs", sparsegpt("2:4"), _also_nothing, _SPARSEGPT),
        Method("llm_int8", "LLM.int8(), activations too", "nothing", llm_int8, _int8_channel, _INT8, LLMInt8Linear),
    )
}


def find_method(name: str) -> Method:
    """Raises BitlawError for an unknown method, with the option that takes it when it is a format."""
    if name not in METHODS:
        form = name.upper()
        if form in (*names(), *PRESETS, "INT1"):
            raise BitlawError(
                f"method '{name}' is a format, no method: give --formats {form}, and --methods rtn or gptq"
            )
        hint = nearest(name, list(METHODS)) or f": use {', '.join(METHODS)}"
        raise BitlawError(f"method '{name}' is unknown{hint}")
    return METHODS[name]
