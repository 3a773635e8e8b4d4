"""Causal softmax attention: its definition, and the fast way to it on each kind of machine.

Shape letters: B sequences, T positions, H heads, K head size.
"""

import math

import torch
from torch import Tensor
from torch.nn import functional as F

from shared.model import kernels


def plain(q_BTHK: Tensor, k_BTHK: Tensor, v_BTHK: Tensor) -> Tensor:
    """Softmax(q k^T / sqrt(K)) v over the past, (B, T, H, K) in and out; the softmax in FP32, or in FP64."""
    q_BHTK, k_BHTK, v_BHTK = (x.transpose(1, 2) for x in (q_BTHK, k_BTHK, v_BTHK))
    T = q_BHTK.shape[-2]
    scores_BHTT = q_BHTK @ k_BHTK.transpose(-1, -2)
    wide = torch.float64 if scores_BHTT.dtype == torch.float64 else torch.float32
    scores_BHTT = scores_BHTT.to(wide) / math.sqrt(q_BHTK.shape[-1])
    future_TT = torch.ones(T, T, dtype=torch.bool, device=q_BHTK.device).triu(1)
    weights_BHTT = scores_BHTT.masked_fill(future_TT, -math.inf).softmax(-1)
    return (weights_BHTT.to(v_BHTK.dtype) @ v_BHTK).transpose(1, 2)


def fits(q_BTHK: Tensor) -> bool:
    """Whether the kernels take these sizes (heads or queries, keys and values may lie between the positions)."""
    T, K = q_BTHK.shape[1], q_BTHK.shape[-1]
    return q_BTHK.dtype == torch.bfloat16 and T % kernels.BLOCK == 0 and K % kernels.BLOCK == 0


def causal_attention(q_BTHK: Tensor, k_BTHK: Tensor, v_BTHK: Tensor, fast: bool) -> Tensor:
    """The same as `plain` up to rounding. `fast`: the kernels of `kernels.cpp` may be used.

    CUDA takes torch's fused kernel. On CPU that kernel's backward pass takes over half a training step at T = 256;
    ours, in BF16, keeps a head in the cache (docs/log.md has the timings of both).
    """
    if q_BTHK.is_cuda:
        q_BHTK, k_BHTK, v_BHTK = (x.transpose(1, 2) for x in (q_BTHK, k_BTHK, v_BTHK))
        return F.scaled_dot_product_attention(q_BHTK, k_BHTK, v_BHTK, is_causal=True).transpose(1, 2)
    if fast and fits(q_BTHK):
        out_BTHK: Tensor = kernels.attention(q_BTHK, k_BTHK, v_BTHK)[0]
        return out_BTHK
    return plain(q_BTHK, k_BTHK, v_BTHK)
