"""Gradient estimators: the forward pass is `fake_quantize`, bit for bit; the backward pass is a definition.

Shape letters: R the leading dimensions, L the last one (a row), G groups in a row.
"""

from typing import Any

import torch
from torch import Tensor

from shared.errors import BitlawError
from shared.quantize.quantizer import (
    Quantizer,
    cast_scaled,
    check_noise,
    constant,
    fake_quantize,
    normalised,
    with_scales,
)

# A learned clip stays positive; below this share of absmax everything but the largest values would be clipped.
SMALLEST_GAMMA = 2.0**-10


class _StraightThrough(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, quantizer: Quantizer, noise: Tensor | None) -> Tensor:
        ctx.dtype = x.dtype
        return fake_quantize(x, quantizer, noise)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, None, None]:
        return grad.to(ctx.dtype), None, None


class _Clipped(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, quantizer: Quantizer, noise: Tensor | None) -> Tensor:
        ctx.save_for_backward(x)
        ctx.quantizer = quantizer
        return fake_quantize(x, quantizer, noise)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, None, None]:
        (x,) = ctx.saved_tensors
        return torch.where(inside(x, ctx.quantizer), grad, 0.0).to(x.dtype), None, None


def straight_through(x_RL: Tensor, quantizer: Quantizer, noise_RL: Tensor | None = None) -> Tensor:
    """Forward `fake_quantize`, gradient identity (the STE of Bengio et al., arXiv 1308.3432)."""
    return _StraightThrough.apply(x_RL, constant(quantizer), noise_RL)


def clipped_straight_through(x_RL: Tensor, quantizer: Quantizer, noise_RL: Tensor | None = None) -> Tensor:
    """Forward `fake_quantize`; the gradient is identity where `inside`, zero where the value was clipped."""
    return _Clipped.apply(x_RL, constant(quantizer), noise_RL)


def inside(x_RL: Tensor, quantizer: Quantizer) -> Tensor:
    """Where x is in the format's range, with a margin of 2^-20: the scale's own rounding never clips the maximum."""
    x, scale, zero = with_scales(x_RL.float(), quantizer)
    bound = scale * (1 + 2.0**-20)
    if zero is None:
        return (x.abs() <= quantizer.format.limit * bound).reshape(x_RL.shape)
    return ((x >= -zero * bound) & (x <= (quantizer.format.limit - zero) * bound)).reshape(x_RL.shape)


class _LearnedClip(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, gamma: Tensor, quantizer: Quantizer) -> Tensor:
        ctx.save_for_backward(x, gamma)
        ctx.quantizer = quantizer
        x_RGE, clip_RG1, _ = _clipped_groups(x, gamma, quantizer)
        scale_RG1 = clip_RG1 / quantizer.format.limit
        return (cast_scaled(x_RGE, scale_RG1, None, quantizer.format) * scale_RG1).reshape(x.shape)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, Tensor, None]:
        x, gamma = ctx.saved_tensors
        form = ctx.quantizer.format
        x_RGE, clip_RG1, most_RG1 = _clipped_groups(x, gamma, ctx.quantizer)
        grad_RGE = grad.reshape(x_RGE.shape)
        kept = x_RGE.abs() <= clip_RG1
        v_RGE = normalised(x_RGE, clip_RG1 / form.limit, form)
        by_scale_RGE = torch.where(kept, form.cast(v_RGE) - v_RGE, torch.sign(x_RGE) * form.limit)
        by_gamma_RG = (grad_RGE * by_scale_RGE).sum(-1) * (most_RG1 / form.limit).squeeze(-1)
        grad_x = torch.where(kept, grad_RGE, 0.0).reshape(x.shape).to(x.dtype)
        return grad_x, by_gamma_RG.reshape(-1, gamma.numel()).sum(0).reshape(gamma.shape).to(gamma.dtype), None


def learned_clip(x_RL: Tensor, quantizer: Quantizer, gamma_G: Tensor) -> Tensor:
    """Learned activation clipping (Chen et al., arXiv 2505.14302): absmax scales times a learned gamma.

    s = gamma max|X| / M with M the format's limit, x_q = s cast(clamp(x / s, -M, M)). `gamma_G` has one entry for each
    group of the row (one in all for token, channel or tensor), shared over R, starting at 1.
    Gradients, with the rounding straight through and max|X| held constant:
        d x_q / d x = 1 where |x| <= gamma max|X|, else 0
        d x_q / d s = cast(x / s) - x / s inside, M sign(x) outside (LSQ's, arXiv 1902.08153)
        d s / d gamma = max|X| / M
    Raises BitlawError for other scale rules or formats of scale, stochastic rounding, or a gamma of another size.
    """
    quantizer = constant(quantizer)
    check_noise(quantizer, None)
    if (quantizer.scale_rule, quantizer.scale_format) != ("absmax", "FP32"):
        raise BitlawError(f"learned clipping needs absmax scales in FP32, not {quantizer}")
    groups = 1 if quantizer.group == "tensor" else x_RL.shape[-1] // quantizer.group_size(x_RL.shape[-1])
    if gamma_G.numel() != groups:
        raise BitlawError(f"learned clipping with {quantizer} needs {groups} gammas for {x_RL.shape[-1]} values a row")
    return _LearnedClip.apply(x_RL, gamma_G, quantizer)


def _clipped_groups(x_RL: Tensor, gamma: Tensor, quantizer: Quantizer) -> tuple[Tensor, Tensor, Tensor]:
    """x (R, G, E), its clip gamma * max|X| (R, G, 1) and max|X|; for "tensor" (1, 1, numel)."""
    whole = quantizer.group == "tensor"
    size = x_RL.numel() if whole else quantizer.group_size(x_RL.shape[-1])
    x_RGE = x_RL.float().reshape(1, 1, -1) if whole else x_RL.float().unflatten(-1, (-1, size))
    most_RG1 = x_RGE.abs().amax(-1, keepdim=True)
    return x_RGE, most_RG1 * gamma.float().clamp_min(SMALLEST_GAMMA).unsqueeze(-1), most_RG1
