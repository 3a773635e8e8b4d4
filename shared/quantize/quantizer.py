"""A quantizer as data: format, group, scale rule, scale format, rounding; and quantize-dequantize.

Shape letters: R the leading dimensions, L the last one (a row), G groups in a row, E elements of a group.
"""

import re
from copy import deepcopy
from dataclasses import dataclass, field
from typing import Any, get_args

import torch
from torch import Tensor

from shared.errors import BitlawError, nearest
from shared.formats import Format, format_named
from shared.formats.format import Rounding

WHOLE_ROW = ("channel", "token")
E4M3 = format_named("E4M3FN")
SCALE_BITS = {"FP32": 32, "BF16": 16, "E8M0": 8, "E4M3": 8}
RULES = ("absmax", "mean", "mse", "mx")
# Clip ratios of the rule mse: 1.00, 0.98, ..., 0.10 of the group's largest magnitude.
CLIP_RATIOS = tuple(1 - 0.02 * k for k in range(46))
# Smallest scale of a group under E8M0, 2^-127, as the bits of an FP32 number.
SMALLEST_E8M0_BITS = 0x00400000

PRESETS = {
    "MXFP4": ("E2M1", 32, "mx", "E8M0"),
    "MXFP6E2M3": ("E2M3", 32, "mx", "E8M0"),
    "MXFP6E3M2": ("E3M2", 32, "mx", "E8M0"),
    "MXFP8E4M3": ("E4M3FN", 32, "mx", "E8M0"),
    "MXFP8E5M2": ("E5M2IEEE", 32, "mx", "E8M0"),
    "MXINT8": ("E0M7", 32, "mx", "E8M0"),
    "NVFP4": ("E2M1", 16, "absmax", "E4M3"),
}


@dataclass(frozen=True)
class Quantizer:
    """What a tensor is rounded to, along its last dimension.

    group         a number of elements that share a scale; "channel" or "token" (the same: one scale a row; the words
                  say whether the rows are a weight's or activations'); "tensor" (one scale)
    scale_rule    absmax: limit of the format at the largest magnitude.
                  mean: mean magnitude, for BINARY (MSE-optimal, XNOR-Net, arXiv 1603.05279) and TERNARY (BitNet b1.58,
                  arXiv 2402.17764); the default of these two in `parse_quantizer`.
                  mse: of CLIP_RATIOS times absmax the one with the least squared error in the group.
                  mx: the power of two floor(log2 max) - floor(log2 limit) (OCP MX, microxcaling); saturates.
    scale_format  FP32; BF16 (nearest even); E8M0 (a power of two: rule mx); E4M3 (NVFP4: the nearest E4M3FN multiple
                  of max|tensor| / (448 limit), which is FP32 and one for the tensor)
    rounding      nearest (ties to even), half_away, stochastic

    Raises BitlawError for combinations that mean nothing.
    """

    format: Format
    group: int | str
    scale_rule: str = "absmax"
    scale_format: str = "FP32"
    rounding: Rounding = "nearest"
    text: str = field(init=False, repr=False, compare=False)

    def __post_init__(self) -> None:
        for value, known, what in (
            (self.scale_rule, RULES, "scale rule"),
            (self.scale_format, tuple(SCALE_BITS), "scale format"),
            (self.rounding, get_args(Rounding), "rounding"),
        ):
            if value not in known:
                raise BitlawError(f"{what} {value!r} is unknown{nearest(value, list(known))}: use {', '.join(known)}")
        if not (self.group in (*WHOLE_ROW, "tensor") or (isinstance(self.group, int) and self.group > 0)):
            raise BitlawError(f"group {self.group!r} must be a number of elements, channel, token or tensor")
        if self.scale_rule == "mean" and (self.format.limit != 1 or len(self.format.levels) > 2):
            raise BitlawError(f"scale rule 'mean' is for BINARY and TERNARY, not {self.format.name}: use absmax or mse")
        if (self.scale_rule == "mx") != (self.scale_format == "E8M0"):
            raise BitlawError("scale rule 'mx' and scale format 'E8M0' go together: give both or neither")
        if self.rounding == "half_away" and self.format.kind == "codebook":
            raise BitlawError(f"rounding 'half_away' has no meaning in the code book {self.format.name}: use nearest")
        if self.format.lowest is not None:
            raise BitlawError(f"format {self.format.name} needs a zero point, which quantizers do not have yet")
        if self.format != format_named(self.format.name):
            raise BitlawError(f"format {self.format.name!r} has other values than the format of that name: rename it")
        object.__setattr__(self, "text", self._canonical())
        if self.text not in _CONSTANTS:
            twin = _CONSTANTS[self.text] = object.__new__(Quantizer)
            twin.__dict__.update(self.__dict__, format=deepcopy(self.format))

    def __reduce__(self) -> tuple[Any, ...]:
        return parse_quantizer, (self.text,)  # a copy in another process is known there too

    def __str__(self) -> str:
        """The text that `parse_quantizer` reads, in its shortest form."""
        return self.text

    def _canonical(self) -> str:
        settings = (self.format.name, self.group, self.scale_rule, self.scale_format)
        named = next((name for name, preset in PRESETS.items() if preset == settings), None)
        parts = [named or f"{self.format.name}@{self.group}"]
        if not named:
            parts += [self.scale_rule] if self.scale_rule != default_rule(self.format) else []
            parts += [self.scale_format.lower()] if self.scale_format != "FP32" else []
        parts += [_SHORT[self.rounding]] if self.rounding != "nearest" else []
        return ":".join(parts)

    def bits_per_value(self, row_length: int, rows: int | None = None) -> float:
        """Bits an element takes with its share of the scales. What the whole tensor shares counts when `rows` is given.

        Raises BitlawError when the group does not divide the row.
        """
        tensor = row_length * rows if rows else None
        extra = 32 / tensor if tensor and self.scale_format == "E4M3" else 0.0
        if self.group == "tensor":
            return self.format.bits + (SCALE_BITS[self.scale_format] / tensor if tensor else 0.0) + extra
        return self.format.bits + SCALE_BITS[self.scale_format] / self.group_size(row_length) + extra

    def group_size(self, row_length: int) -> int:
        """Elements that share a scale in a row of this length; BitlawError when they do not divide it."""
        if isinstance(self.group, str):
            return row_length
        if row_length % self.group:
            raise BitlawError(f"group_size {self.group} does not divide a row of {row_length} values ({self})")
        return self.group


def default_rule(form: Format) -> str:
    return "mean" if form.name in ("BINARY", "TERNARY") else "absmax"


_SHORT: dict[str, str] = {"nearest": "rne", "half_away": "away", "stochastic": "sr"}
_ROUNDINGS: dict[str, Rounding] = {"rne": "nearest", "away": "half_away", "sr": "stochastic"}
_BYPASS = re.compile(r"none|BF16|FP16|FP32|INT(1[6-9]|[2-9]\d)|E(\d)M(\d+)(FN|IEEE)?")


def parse_quantizer(text: str) -> Quantizer | None:
    """`FORMAT@GROUP[:rule][:scale format][:rounding]` or `PRESET[:rounding]`; None where 16 bits or more bypass.

    Examples: INT4@channel, INT4@token, E2M1@8, INT3@32:mse, INT4@tensor:sr, BINARY@channel, INT4@32:bf16, MXFP4,
    NVFP4:away. None for "none", BF16, FP16, FP32, INT16 and up, and ExMy with 1 + x + y >= 16 (with or without @).
    Raises BitlawError, with the nearest known word.
    """
    head, *options = text.split(":")
    name, at, group = head.partition("@")
    bypass = _BYPASS.fullmatch(name)
    if bypass and (bypass[2] is None or 1 + int(bypass[2]) + int(bypass[3]) >= 16):
        return None
    size: int | str
    if name in PRESETS:
        if at:
            raise BitlawError(
                f"quantizer {text!r}: {name} has its own group of {PRESETS[name][1]}: leave out '@{group}'"
            )
        element, size, rule, scale = PRESETS[name]
        known: list[str] = list(_ROUNDINGS)
    else:
        if not at:
            near = nearest(name, list(PRESETS))
            raise BitlawError(
                f"quantizer {text!r} names no group{near}: write FORMAT@GROUP as in INT4@channel or INT4@32"
            )
        element, size, rule, scale = name, int(group) if group.isdigit() else group, "", "FP32"
        known = [*RULES, *(key.lower() for key in SCALE_BITS), *_ROUNDINGS]
    form = format_named(element)
    rule = rule or default_rule(form)
    rounding: Rounding = "nearest"
    for option in options:
        if option not in known:
            raise BitlawError(
                f"quantizer {text!r}: {option!r} is unknown{nearest(option, known)}: use {', '.join(known)}"
            )
        if option in RULES:
            rule = option
        elif option in _ROUNDINGS:
            rounding = _ROUNDINGS[option]
        else:
            scale = option.upper()
    if isinstance(size, str) and size not in (*WHOLE_ROW, "tensor"):
        raise BitlawError(f"quantizer {text!r}: group {size!r} must be a number of elements, channel, token or tensor")
    return Quantizer(form, size, rule, scale, rounding)


def fake_quantize(x_RL: Tensor, quantizer: Quantizer, noise_RL: Tensor | None = None) -> Tensor:
    """x rounded to the quantizer's values, in FP32 whatever the type of x; a group of zeros stays zero.

    `noise_RL`, uniform in [0, 1), is what stochastic rounding needs. Raises BitlawError when the group does not divide
    L or the noise is missing or useless.
    """
    quantizer = constant(quantizer)
    check_noise(quantizer, noise_RL)
    x, scale = with_scales(x_RL.float(), quantizer)
    noise = None if noise_RL is None else noise_RL.reshape(x.shape)
    return (quantizer.format.cast(normalised(x, scale, quantizer), quantizer.rounding, noise) * scale).reshape(
        x_RL.shape
    )


def constant(quantizer: Quantizer) -> Quantizer:
    """An equal quantizer whose numbers torch.compile takes for constants.

    Those of an argument become symbols from the second quantizer on that a compiled function meets ("automatic
    dynamic"): slower kernels, and with torch 2.13 wrong values (tests/test_quantize.py, test_one_compiled_function).
    What is reached through a global is constant; the text, which is compared at each call, picks the right one.
    """
    return _CONSTANTS[quantizer.text]


_CONSTANTS: dict[str, Quantizer] = {}


def check_noise(quantizer: Quantizer, noise: Tensor | None) -> None:
    if (noise is not None) != (quantizer.rounding == "stochastic"):
        raise BitlawError(f"quantizer {quantizer} takes {'no noise' if noise is not None else 'noise in [0, 1)'}")


def normalised(x: Tensor, scale: Tensor, quantizer: Quantizer) -> Tensor:
    """x / scale, and x itself where the scale is zero."""
    safe = torch.where(scale > 0, scale, torch.ones_like(scale))
    # bitsandbytes multiplies by the reciprocal; so do the code books, for equal codes.
    return x * (1.0 / safe) if quantizer.format.kind == "codebook" else x / safe


def with_scales(x_RL: Tensor, quantizer: Quantizer) -> tuple[Tensor, Tensor]:
    """x seen so that scales broadcast over it, and these: (R, G, E) and (R, G, 1), or (R, L) and (R, L) or ()."""
    size = quantizer.group_size(x_RL.shape[-1])
    if quantizer.group == "tensor":
        return x_RL, _scales(x_RL.reshape(1, -1), quantizer).reshape(())
    x_RGE = x_RL.unflatten(-1, (-1, size))
    scale_RG1 = _scales(x_RGE, quantizer)
    if _spread(size, quantizer):
        return x_RL, scale_RG1.expand_as(x_RGE).reshape(x_RL.shape)
    return x_RGE, scale_RG1


def _spread(size: int, quantizer: Quantizer) -> bool:
    """Whether to spread the scales over the row, and to take the largest magnitude by halves.

    Over groups shorter than one AVX-512 register inductor writes scalar loops. The C++ compiler vectorises them only
    when they hold no selections (integers), else spreading is 5 times faster (E2M1@8, docs/log.md).
    """
    return size < 16 and quantizer.format.kind != "integer"


def _largest(x_RGE: Tensor, quantizer: Quantizer) -> Tensor:
    """max |x| of each group, (R, G, 1)."""
    most_RGE = x_RGE.abs()
    if not _spread(x_RGE.shape[-1], quantizer):
        return most_RGE.amax(-1, keepdim=True)
    while (size := most_RGE.shape[-1]) > 1:
        half = (size + 1) // 2  # the halves overlap when the size is odd
        most_RGE = torch.maximum(most_RGE[..., :half], most_RGE[..., -half:])
    return most_RGE


def _scales(x_RGE: Tensor, quantizer: Quantizer) -> Tensor:
    """The scale of each group, (R, G, 1)."""
    form = quantizer.format
    if quantizer.scale_rule == "mean":
        return _stored(x_RGE.abs().mean(-1, keepdim=True), x_RGE, quantizer)
    most_RG1 = _largest(x_RGE, quantizer)
    if quantizer.scale_rule == "mx":
        # floor(log2 max) by its bits; one number a group, so the scalar bit cast costs nothing.
        bits = (most_RG1.view(torch.int32) & 0x7F800000) - (form.largest_exponent << 23)
        return bits.clamp_min(SMALLEST_E8M0_BITS).view(torch.float32)
    if quantizer.scale_rule == "absmax":
        return _stored(most_RG1 / form.limit, x_RGE, quantizer)
    best_RG1 = least_RG1 = None
    for ratio in CLIP_RATIOS:
        scale_RG1 = _stored(most_RG1 * ratio / form.limit, x_RGE, quantizer)
        error_RGE = form.cast(normalised(x_RGE, scale_RG1, quantizer)) * scale_RG1 - x_RGE
        error_RG1 = error_RGE.square().sum(-1, keepdim=True)
        if best_RG1 is None or least_RG1 is None:
            best_RG1, least_RG1 = scale_RG1, error_RG1
        else:
            better = error_RG1 < least_RG1
            best_RG1 = torch.where(better, scale_RG1, best_RG1)
            least_RG1 = torch.where(better, error_RG1, least_RG1)
    assert best_RG1 is not None
    return best_RG1


def _stored(scale_RG1: Tensor, x_RGE: Tensor, quantizer: Quantizer) -> Tensor:
    """The scale as its format holds it."""
    if quantizer.scale_format == "BF16":
        return scale_RG1.to(torch.bfloat16).float()
    if quantizer.scale_format == "E4M3":
        tensor = x_RGE.abs().amax() / (E4M3.limit * quantizer.format.limit)
        tensor = torch.where(tensor > 0, tensor, torch.ones_like(tensor))
        return E4M3.cast(scale_RG1 / tensor) * tensor
    return scale_RG1
