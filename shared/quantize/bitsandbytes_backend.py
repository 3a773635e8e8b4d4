"""bitsandbytes 0.50.2: NF4 and FP4 of a weight matrix, and LLM.int8() (Dettmers et al., arXiv 2208.07339) of a layer.

The library takes seconds to import, so that waits until it is asked for.

What LLM.int8() is in the library, not only in the paper:
- Each token is scaled by its largest magnitude below the threshold, also when that stands in an outlier column.
- An outlier column is one where *any* token of the call reaches the threshold; all tokens of the call then take it in
  16 bits. So a result depends on what else is in the batch: evaluate with one batch size.
- The outliers' weights are the INT8 ones, dequantized (the paper keeps them in 16 bits).
- A threshold of 0 means no outliers, like infinity; a tiny one makes every column an outlier.
- On the CPU `Linear8bitLt` computes so in evaluation only; in training mode it leaves activations alone and ignores
  the threshold, without a word.

Shape letters: O outputs, I inputs, R rows (tokens of a call), B sequences, T positions.
"""

import logging
import warnings
from typing import Any

import torch
from torch import Tensor, nn

from shared.errors import BitlawError, nearest
from shared.quantize.quantizer import SCALE_BITS
from shared.quantize.rtn import Rounded

KINDS = ("nf4", "fp4")
BLOCKS = (32, 64, 128, 256, 512, 1024, 2048, 4096)
# Scales that share a second scale under double quantization (`functional.quantize_4bit`), and their bits.
SCALE_BLOCK = 256
SCALE_CODE_BITS = 8
# The paper's section 3.2, and the default of transformers' BitsAndBytesConfig.
THRESHOLD = 6.0
INT8_MAX = 127.0


def functional() -> Any:
    """`bitsandbytes.functional`. Raises BitlawError where it cannot be imported."""
    logger = logging.getLogger("bitsandbytes.backends.cpu.ops")
    level = logger.level
    logger.setLevel(logging.ERROR)  # else it asks for a package of faster kernels that would come from the hub
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            import bitsandbytes.functional
    except ImportError as error:
        raise BitlawError(
            f"bitsandbytes cannot be imported ({error}): install what bitlaw itself depends on, "
            "`pip install bitsandbytes==0.50.2`, or use method rtn with NF4, FP4 or INT8"
        ) from error
    finally:
        logger.setLevel(level)
    return bitsandbytes.functional


@torch.no_grad()
def four_bit(weight_OI: Tensor, kind: str = "nf4", block: int = 64, double_quantization: bool = False) -> Rounded:
    """Quantize as bitsandbytes does, in FP32; blocks run through the matrix row by row, the last may be short.

    `double_quantization` (QLoRA, arXiv 2305.14314) stores the scales, less their mean, in 8 bits of a fixed code, with
    an FP32 scale for each 256 of them. Bits count 4 a weight and the FP32 scale of each block, or 8 bits for it, the
    FP32 scales of scales and their FP32 mean. The code books are constants of the formats and not counted.
    Raises BitlawError for an unknown kind or block, and a weight that is not finite.
    """
    if kind not in KINDS:
        raise BitlawError(f"4-bit kind {kind!r} is unknown{nearest(kind, list(KINDS))}: use nf4 or fp4")
    if block not in BLOCKS:
        raise BitlawError(f"bitsandbytes has no blocks of {block}: use {', '.join(map(str, BLOCKS))}")
    _check(weight_OI, torch.float32, "the weight")
    library = functional()
    plain_OI = weight_OI.float().contiguous()
    # bitsandbytes compiles the dequantization of odd rows and blocks from 2048 up: minutes for the same numbers.
    with torch.compiler.set_stance("force_eager"):
        packed, state = library.quantize_4bit(
            plain_OI, blocksize=block, compress_statistics=double_quantization, quant_type=kind
        )
        made_OI = library.dequantize_4bit(packed, state)
    blocks = -(-plain_OI.numel() // block)
    if double_quantization:
        scale_bits = SCALE_CODE_BITS * blocks + SCALE_BITS["FP32"] * (-(-blocks // SCALE_BLOCK) + 1)
    else:
        scale_bits = SCALE_BITS["FP32"] * blocks
    return _measured(made_OI, weight_OI, 4 + scale_bits / plain_OI.numel())


@torch.no_grad()
def llm_int8_weight(weight_OI: Tensor) -> Rounded:
    """The weights as LLM.int8() stores them: FP16 rounded to 255 levels, an FP32 scale for each output."""
    codes_OI, scale_O = _int8(weight_OI)
    return _measured(_dequantized(codes_OI, scale_O), weight_OI, _int8_bits(weight_OI))


@torch.no_grad()
def llm_int8_linear(x: Tensor, weight_OI: Tensor, threshold: float = THRESHOLD, bias_O: Tensor | None = None) -> Tensor:
    """x (..., I) times the transposed weight, (..., O) in x's type, by LLM.int8() as described above.

    Operands go through FP16 as in the library; an FP32 x gives FP32 sums and outputs.
    Raises BitlawError for a threshold that is negative or NaN, widths that differ, and numbers beyond FP16.
    """
    codes_OI, scale_O = _int8(weight_OI)
    return _product(x, codes_OI, scale_O, threshold, bias_O)


class LLMInt8Linear(nn.Module):
    """In place of a linear layer in evaluation: `llm_int8_linear` with the weight quantized once. No gradients.

    It has no `weight`: code that multiplies by that itself would leave the activations alone. Blocks of our own decoder
    do; they take `LLMInt8Product`.
    """

    codes_OI: Tensor
    scale_O: Tensor
    bias_O: Tensor | None

    def __init__(self, weight_OI: Tensor, bias_O: Tensor | None = None, threshold: float = THRESHOLD) -> None:
        """Raises BitlawError for a bad threshold and a weight beyond FP16."""
        super().__init__()
        _check_threshold(threshold)
        self.threshold = threshold
        with torch.no_grad():
            codes_OI, scale_O = _int8(weight_OI)
        self.register_buffer("codes_OI", codes_OI)
        self.register_buffer("scale_O", scale_O)
        self.register_buffer("bias_O", None if bias_O is None else bias_O.detach().clone())

    @property
    def stored_OI(self) -> Tensor:
        """The weights that the codes stand for, FP32."""
        return _dequantized(self.codes_OI, self.scale_O)

    @property
    def bits_per_weight(self) -> float:
        return _int8_bits(self.codes_OI)

    @torch.no_grad()
    def forward(self, x: Tensor) -> Tensor:
        return _product(x, self.codes_OI, self.scale_O, self.threshold, self.bias_O)


class LLMInt8Product(nn.Module):
    """One of a decoder block's products by LLM.int8(): `block.casts["qkv"] = LLMInt8Product()`, also o, gate_up, down.

    The weights stay in the block and are quantized at each call. No gradients.
    """

    def __init__(self, threshold: float = THRESHOLD) -> None:
        """Raises BitlawError for a bad threshold."""
        super().__init__()
        _check_threshold(threshold)
        self.threshold = threshold

    @torch.no_grad()
    def forward(self, x_BTI: Tensor, weights: list[Tensor]) -> Tensor:
        """x times the matrices side by side, (B, T, sum of outputs)."""
        return llm_int8_linear(x_BTI, torch.cat(weights), self.threshold)


def _int8(weight_OI: Tensor) -> tuple[Tensor, Tensor]:
    """Codes, INT8, and the largest magnitude of each output, FP32."""
    _check(weight_OI, torch.float16, "the weight")
    codes_OI, scale_O, _ = functional().int8_vectorwise_quant(weight_OI.detach().half().contiguous())
    return codes_OI, scale_O


def _product(x: Tensor, codes_OI: Tensor, scale_O: Tensor, threshold: float, bias_O: Tensor | None) -> Tensor:
    _check_threshold(threshold)
    if x.shape[-1] != codes_OI.shape[1]:
        raise BitlawError(f"inputs have {x.shape[-1]} values, the layer takes {codes_OI.shape[1]}")
    _check(x, torch.float16, "a layer's input")
    library = functional()
    # A copy: the library sets the outliers to zero for a while, in place.
    half_RI = x.reshape(-1, x.shape[-1]).to(torch.float16, copy=True)
    codes_RI, scale_R, outliers = library.int8_vectorwise_quant(half_RI, threshold=threshold)
    bias = None if bias_O is None else bias_O.to(x.dtype)
    operator = torch.ops.bitsandbytes.int8_mixed_scaled_mm
    out_RO, _ = operator(half_RI.to(x.dtype), codes_RI, codes_OI, scale_R, scale_O, outliers, bias)
    return out_RO.view(*x.shape[:-1], -1)


def _dequantized(codes_OI: Tensor, scale_O: Tensor) -> Tensor:
    return codes_OI * (scale_O / INT8_MAX).unsqueeze(1)


def _int8_bits(weight_OI: Tensor) -> float:
    return 8 + SCALE_BITS["FP32"] / weight_OI.shape[1]


def _check_threshold(threshold: float) -> None:
    if not threshold >= 0:
        raise BitlawError(f"LLM.int8() threshold is {threshold}: use a magnitude of activations, 0 for no outliers")


def _check(x: Tensor, form: torch.dtype, what: str) -> None:
    most = x.detach().abs().amax().item() if x.numel() else 0.0
    if not most <= torch.finfo(form).max:
        raise BitlawError(f"{what} has NaN, infinite or too large values for {form}: quantize a sound checkpoint")


def _measured(made_OI: Tensor, weight_OI: Tensor, bits: float) -> Rounded:
    error = (made_OI - weight_OI).double().square().sum().item()
    return Rounded(made_OI, bits, error, weight_OI.double().square().sum().item())
