"""A quantizer as data: format, group, scale rule, scale format, rounding; and quantize-dequantize.

Shape letters: R the leading dimensions, L the last one (a row), G groups in a row, E elements of a group.
"""

import math
import re
from copy import deepcopy
from dataclasses import dataclass, field
from typing import Any, get_args

import torch
from torch import Tensor

from shared.errors import BitlawError, nearest
from shared.formats import Format, format_named
from shared.formats.format import Rounding, whole

WHOLE_ROW = ("channel", "token")
E4M3 = format_named("E4M3FN")
SCALE_BITS = {"FP32": 32, "BF16": 16, "E8M0": 8, "E4M3": 8}
RULES = ("absmax", "minmax", "mean", "mse", "mx")
# Percentiles of |x| are rules too: p99, p99.9, p100.
PERCENTILE = re.compile(r"p(\d{1,2}(\.\d+)?|100)")
# Clip ratios of the rule mse: 1.00, 0.98, ..., 0.10 of the absmax (minmax) scale.
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
                  minmax: the range of the group and zero onto 0..limit of UINTk, with an integer zero point (GPTQ's
                  asymmetric grid); only these formats, and their default.
                  mean: mean magnitude, for BINARY (MSE-optimal, XNOR-Net, arXiv 1603.05279) and TERNARY (BitNet b1.58,
                  arXiv 2402.17764); the default of these two in `parse_quantizer`.
                  mse: of CLIP_RATIOS times absmax (UINTk: minmax) the one with the least squared error in the group;
                  about 25 times slower. Like mean it sums a group, so the last bit depends on the order of the sum,
                  which compiling changes.
                  p99.9: limit at the 99.9th percentile of |x| (nearest rank), absmax where that is zero.
                  mx: the power of two floor(log2 max) - floor(log2 limit) (OCP MX, microxcaling); saturates.
    scale_format  FP32; BF16 (nearest even); E8M0 (the next power of two up, so that nothing is clipped; rule mx has its
                  own); E4M3 (NVFP4: the nearest E4M3FN multiple of max|tensor| / (448 limit), which is FP32)
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
            if value not in known and not (what == "scale rule" and PERCENTILE.fullmatch(value)):
                raise BitlawError(f"{what} {value!r} is unknown{nearest(value, list(known))}: use {', '.join(known)}")
        if not (self.group in (*WHOLE_ROW, "tensor") or (isinstance(self.group, int) and self.group > 0)):
            raise BitlawError(f"group {self.group!r} must be a number of elements, channel, token or tensor")
        if self.scale_rule == "mean" and (self.format.limit != 1 or len(self.format.levels) > 2):
            raise BitlawError(f"scale rule 'mean' is for BINARY and TERNARY, not {self.format.name}: use absmax or mse")
        if self.scale_rule == "mx" and self.scale_format != "E8M0":
            raise BitlawError(
                f"scale rule 'mx' makes powers of two: give it scale format E8M0, not {self.scale_format}"
            )
        if (self.scale_rule == "minmax") != self.has_zero_point and self.scale_rule != "mse":
            raise BitlawError(
                f"scale rule {self.scale_rule!r} does not suit {self.format.name}: "
                f"use {'minmax' if self.has_zero_point else 'absmax'} or mse"
            )
        if self.rounding == "half_away" and self.format.kind == "codebook":
            raise BitlawError(f"rounding 'half_away' has no meaning in the code book {self.format.name}: use nearest")
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
        """Bits of an element with its share of scales and zero points.

        What the whole tensor shares counts when `rows` is given.
        Raises BitlawError when the group does not divide the row.
        """
        tensor = row_length * rows if rows else None
        extra = 32 / tensor if tensor and self.scale_format == "E4M3" else 0.0
        shared = SCALE_BITS[self.scale_format] + (self.format.bits if self.has_zero_point else 0)
        if self.group == "tensor":
            return self.format.bits + (shared / tensor if tensor else 0.0) + extra
        return self.format.bits + shared / self.group_size(row_length) + extra

    @property
    def has_zero_point(self) -> bool:
        """UINTk: each group has an integer zero point of k bits beside its scale."""
        return self.format.lowest is not None

    def group_size(self, row_length: int) -> int:
        """Elements that share a scale in a row of this length; BitlawError when they do not divide it."""
        if isinstance(self.group, str):
            return row_length
        if row_length % self.group:
            raise BitlawError(f"group_size {self.group} does not divide a row of {row_length} values ({self})")
        return self.group


def default_rule(form: Format) -> str:
    if form.lowest is not None:
        return "minmax"
    return "mean" if form.name in ("BINARY", "TERNARY") else "absmax"


_SHORT: dict[str, str] = {"nearest": "rne", "half_away": "away", "stochastic": "sr"}
_ROUNDINGS: dict[str, Rounding] = {
    "rne": "nearest",
    "away": "half_away",
    "sr": "stochastic",
}
_BYPASS = re.compile(r"none|BF16|FP16|FP32|INT(1[6-9]|[2-9]\d)|E(\d)M(\d+)(FN|IEEE)?")


def parse_quantizer(text: str) -> Quantizer | None:
    """`FORMAT@GROUP[:rule][:scale format][:rounding]` or `PRESET[:rounding]`; None where 16 bits or more bypass.

    Examples: INT4@channel, INT4@token, E2M1@8, INT3@32:mse, UINT4@128 (asymmetric), INT4@tensor:sr, BINARY@channel,
    INT4@32:bf16, INT8@token:p99.9, MXFP4, NVFP4:away.
    None for "none", BF16, FP16, FP32, INT16 and up, and ExMy with 1 + x + y >= 16 (with or without @).
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
        element, size, rule, scale = (
            name,
            int(group) if group.isdigit() else group,
            "",
            "FP32",
        )
        known = [*RULES, "p99.9", *(key.lower() for key in SCALE_BITS), *_ROUNDINGS]
    form = format_named(element)
    rule = rule or default_rule(form)
    rounding: Rounding = "nearest"
    for option in options:
        percentile = PERCENTILE.fullmatch(option) and name not in PRESETS
        if option not in known and not percentile:
            raise BitlawError(
                f"quantizer {text!r}: {option!r} is unknown{nearest(option, known)}: use {', '.join(known)}"
            )
        if option in RULES or percentile:
            rule = option
        elif option in _ROUNDINGS:
            rounding = _ROUNDINGS[option]
        else:
            scale = option.upper()
    if isinstance(size, str) and size not in (*WHOLE_ROW, "tensor"):
        raise BitlawError(f"quantizer {text!r}: group {size!r} must be a number of elements, channel, token or tensor")
    return Quantizer(form, size, rule, scale, rounding)


def named_quantizer(text: str) -> Quantizer:
    """`parse_quantizer` where a bypass makes no sense: BitlawError for 16 bits or more."""
    quantizer = parse_quantizer(text)
    if quantizer is None:
        raise BitlawError(f"{text!r} has 16 bits or more: there is nothing to quantize")
    return quantizer


def fake_quantize(x_RL: Tensor, quantizer: Quantizer, noise_RL: Tensor | None = None) -> Tensor:
    """x rounded to the quantizer's values, in FP32 whatever the type of x; a group of zeros stays zero.

    `noise_RL`, uniform in [0, 1), is what stochastic rounding needs. Raises BitlawError when the group does not divide
    L or the noise is missing or useless.
    """
    quantizer = constant(quantizer)
    check_noise(quantizer, noise_RL)
    x, scale, zero = with_scales(x_RL.float(), quantizer)
    noise = None if noise_RL is None else noise_RL.reshape(x.shape)
    rounded = cast_scaled(x, scale, zero, quantizer.format, quantizer.rounding, noise)
    return (rounded * scale).reshape(x_RL.shape)


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


def normalised(x: Tensor, scale: Tensor, form: Format) -> Tensor:
    """x / scale, and x itself where the scale is zero."""
    safe = torch.where(scale > 0, scale, torch.ones_like(scale))
    if form.kind != "codebook":
        return x / safe
    # bitsandbytes multiplies by the reciprocal; so do the code books, for equal codes. FP32 has none of 2^-128 and
    # less, so groups that small are taken 2^24 times as large, which is exact.
    lift = torch.where(safe < 2.0**-126, 2.0**24, 1.0)
    return x * lift * (1.0 / (safe * lift))


def cast_scaled(
    x: Tensor,
    scale: Tensor,
    zero: Tensor | None,
    form: Format,
    rounding: Rounding = "nearest",
    noise: Tensor | None = None,
) -> Tensor:
    """x in units of the scale as values of the format, less the zero point: times the scale it is x again, rounded."""
    ratio = normalised(x, scale, form)
    if zero is None:
        return form.cast(ratio, rounding, noise)
    # The zero point is whole, so rounding before the shift is exact and the range shifts instead of the values.
    return torch.minimum(torch.maximum(whole(ratio, rounding, noise), -zero), form.limit - zero)


def with_scales(x_RL: Tensor, quantizer: Quantizer) -> tuple[Tensor, Tensor, Tensor | None]:
    """x seen so that scales broadcast over it, these, and the zero points of UINTk.

    (R, G, E) and (R, G, 1), or (R, L) and (R, L) or ().
    """
    size = quantizer.group_size(x_RL.shape[-1])
    if quantizer.group == "tensor":
        scale, zero = scales(x_RL.reshape(1, -1), quantizer)
        return x_RL, scale.reshape(()), None if zero is None else zero.reshape(())
    x_RGE = x_RL.unflatten(-1, (-1, size))
    scale_RG1, zero_RG1 = scales(x_RGE, quantizer)
    if _spread(size, quantizer):
        return x_RL, scale_RG1.expand_as(x_RGE).reshape(x_RL.shape), None
    return x_RGE, scale_RG1, zero_RG1


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


def scales(x_RGE: Tensor, quantizer: Quantizer, shared: Tensor | None = None) -> tuple[Tensor, Tensor | None]:
    """The scale of each group, (R, G, 1), and for UINTk its zero point.

    `shared` is the `tensor_scale` of the whole tensor, when x is a part of it.
    """
    shared = tensor_scale(x_RGE, quantizer) if shared is None else shared
    if quantizer.scale_rule == "mean":
        return _stored(x_RGE.abs().mean(-1, keepdim=True), shared, quantizer), None
    if quantizer.scale_rule == "mx":
        # floor(log2 max) by its bits; one number a group, so the scalar bit cast costs nothing.
        bits = (_largest(x_RGE, quantizer).view(torch.int32) & 0x7F800000) - (quantizer.format.largest_exponent << 23)
        return bits.clamp_min(SMALLEST_E8M0_BITS).view(torch.float32), None
    if quantizer.scale_rule != "mse":
        return _shrunk(x_RGE, shared, quantizer, 1.0)
    best_RG1, zero_RG1 = _shrunk(x_RGE, shared, quantizer, CLIP_RATIOS[0])
    least_RG1 = _squared_error(x_RGE, best_RG1, zero_RG1, quantizer)
    for ratio in CLIP_RATIOS[1:]:
        scale_RG1, other_RG1 = _shrunk(x_RGE, shared, quantizer, ratio)
        error_RG1 = _squared_error(x_RGE, scale_RG1, other_RG1, quantizer)
        better = error_RG1 < least_RG1
        best_RG1 = torch.where(better, scale_RG1, best_RG1)
        least_RG1 = torch.where(better, error_RG1, least_RG1)
        if zero_RG1 is not None and other_RG1 is not None:
            zero_RG1 = torch.where(better, other_RG1, zero_RG1)
    return best_RG1, zero_RG1


def _squared_error(x_RGE: Tensor, scale_RG1: Tensor, zero_RG1: Tensor | None, quantizer: Quantizer) -> Tensor:
    """Of rounding to nearest, whatever the quantizer's rounding; (R, G, 1)."""
    rounded_RGE = cast_scaled(x_RGE, scale_RG1, zero_RG1, quantizer.format) * scale_RG1
    return (rounded_RGE - x_RGE).square().sum(-1, keepdim=True)


def _shrunk(x_RGE: Tensor, shared: Tensor | None, quantizer: Quantizer, ratio: float) -> tuple[Tensor, Tensor | None]:
    """Scale and zero point by absmax, a percentile, or minmax, with the range shrunk by a ratio."""
    limit = quantizer.format.limit
    if quantizer.has_zero_point:
        low_RG1 = x_RGE.amin(-1, keepdim=True).clamp_max(0.0) * ratio
        high_RG1 = x_RGE.amax(-1, keepdim=True).clamp_min(0.0) * ratio
        scale_RG1 = _stored((high_RG1 - low_RG1) / limit, shared, quantizer)
        return scale_RG1, torch.round(normalised(-low_RG1, scale_RG1, quantizer.format)).clamp(0.0, limit)
    most_RG1 = _largest(x_RGE, quantizer)
    if quantizer.scale_rule.startswith("p"):
        rank = math.ceil(float(quantizer.scale_rule[1:]) / 100 * x_RGE.shape[-1])
        within_RG1 = x_RGE.abs().kthvalue(max(rank, 1), dim=-1, keepdim=True).values
        most_RG1 = torch.where(within_RG1 > 0, within_RG1, most_RG1)
    return _stored(most_RG1 * ratio / limit, shared, quantizer), None


def _stored(scale_RG1: Tensor, shared: Tensor | None, quantizer: Quantizer) -> Tensor:
    """The scale as its format holds it."""
    if quantizer.scale_format == "BF16":
        return scale_RG1.to(torch.bfloat16).float()
    if quantizer.scale_format == "E8M0":
        # Up to the next power of two by its bits; a scale of zero stays zero.
        bits = (scale_RG1.view(torch.int32) + 0x007FFFFF) & 0x7F800000
        return torch.where(
            scale_RG1 > 0,
            bits.clamp_min(SMALLEST_E8M0_BITS).view(torch.float32),
            scale_RG1,
        )
    if shared is not None:  # E4M3
        scale_RG1 = E4M3.cast(scale_RG1 / shared) * shared
        # A view that inductor writes to memory first: else it computes this anew at every use (1.7 times slower).
        return scale_RG1.as_strided(scale_RG1.shape, scale_RG1.stride())
    return scale_RG1


def tensor_scale(x: Tensor, quantizer: Quantizer) -> Tensor | None:
    """What the E4M3 scales of a tensor are multiples of (NVFP4); None for other scale formats."""
    if quantizer.scale_format != "E4M3":
        return None
    shared = x.abs().amax() / (E4M3.limit * quantizer.format.limit)
    return torch.where(shared > 0, shared, torch.ones_like(shared))
