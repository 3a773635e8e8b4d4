"""Decoder-only transformer: RMSNorm, rotary positions, SwiGLU, no biases, untied head.

Shape letters: B sequences, T positions, D width, F feed-forward width, H heads, K head size, V vocabulary.
Names of the matrices follow `transformers`' Llama, so that the export is a renaming.
"""

import math

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from shared.model.shape import Shape

NORM_EPSILON = 1e-6
ROTARY_BASE = 10_000.0


class Linear(nn.Module):
    """y = x W^T in the type of x; W is held in FP32 (the master weights)."""

    def __init__(self, inputs: int, outputs: int) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.empty(outputs, inputs))

    def forward(self, x: Tensor) -> Tensor:
        return F.linear(x, self.weight.to(x.dtype))


class RMSNorm(nn.Module):
    """x / rms(x) * gain, computed in FP32 and returned in `dtype` (Zhang and Sennrich, arXiv 1910.07467)."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.ones(width))

    def forward(self, x_BTD: Tensor, dtype: torch.dtype) -> Tensor:
        scale_BT1 = torch.rsqrt(x_BTD.pow(2).mean(-1, keepdim=True) + NORM_EPSILON)
        return (x_BTD * scale_BT1 * self.weight).to(dtype)


def rotate(x_BHTK: Tensor, cos_TK: Tensor, sin_TK: Tensor) -> Tensor:
    """Rotary positions in the split-halves form that `transformers` uses (Su et al., arXiv 2104.09864)."""
    first, second = x_BHTK.chunk(2, dim=-1)
    return x_BHTK * cos_TK + torch.cat((-second, first), dim=-1) * sin_TK


def causal_attention(q_BHTK: Tensor, k_BHTK: Tensor, v_BHTK: Tensor) -> Tensor:
    """Softmax(q k^T / sqrt(K)) v over the past.

    CUDA takes the fused kernel. On CPU the fused kernel's backward takes over half the training step at T = 256,
    two batched products around a compiled masked softmax do not (docs/log.md).
    """
    if q_BHTK.is_cuda:
        return F.scaled_dot_product_attention(q_BHTK, k_BHTK, v_BHTK, is_causal=True)
    T = q_BHTK.shape[-2]
    scores_BHTT = (q_BHTK @ k_BHTK.transpose(-1, -2)).float() / math.sqrt(q_BHTK.shape[-1])
    future_TT = torch.ones(T, T, dtype=torch.bool, device=q_BHTK.device).triu(1)
    weights_BHTT = scores_BHTT.masked_fill(future_TT, -math.inf).softmax(-1)
    return weights_BHTT.to(v_BHTK.dtype) @ v_BHTK


class Block(nn.Module):
    def __init__(self, shape: Shape) -> None:
        super().__init__()
        D, F_ = shape.d_model, shape.d_ff
        self.head_size = shape.head_size
        self.input_layernorm = RMSNorm(D)
        self.q_proj, self.k_proj, self.v_proj, self.o_proj = (Linear(D, D) for _ in range(4))
        self.post_attention_layernorm = RMSNorm(D)
        self.gate_proj, self.up_proj, self.down_proj = Linear(D, F_), Linear(D, F_), Linear(F_, D)

    def forward(self, x_BTD: Tensor, cos_TK: Tensor, sin_TK: Tensor, dtype: torch.dtype) -> Tensor:
        B, T, D = x_BTD.shape
        h_BTD = self.input_layernorm(x_BTD, dtype)
        q_BHTK, k_BHTK, v_BHTK = (
            projection(h_BTD).view(B, T, D // self.head_size, self.head_size).transpose(1, 2)
            for projection in (self.q_proj, self.k_proj, self.v_proj)
        )
        q_BHTK, k_BHTK = rotate(q_BHTK, cos_TK, sin_TK), rotate(k_BHTK, cos_TK, sin_TK)
        attended_BTD = causal_attention(q_BHTK, k_BHTK, v_BHTK).transpose(1, 2).reshape(B, T, D)
        x_BTD = x_BTD + self.o_proj(attended_BTD)
        h_BTD = self.post_attention_layernorm(x_BTD, dtype)
        gated_BTF = F.silu(self.gate_proj(h_BTD)) * self.up_proj(h_BTD)
        return x_BTD + self.down_proj(gated_BTF)


class Decoder(nn.Module):
    """tokens (B, T) -> logits (B, T, V). Matrices multiply in `dtype`; the residual stream stays FP32."""

    cos_TK: Tensor
    sin_TK: Tensor

    def __init__(self, shape: Shape) -> None:
        super().__init__()
        self.shape = shape
        self.embed_tokens = nn.Embedding(shape.vocabulary, shape.d_model)
        self.layers = nn.ModuleList(Block(shape) for _ in range(shape.n_layer))
        self.norm = RMSNorm(shape.d_model)
        self.lm_head = Linear(shape.d_model, shape.vocabulary)
        half = torch.arange(0, shape.head_size, 2).float() / shape.head_size
        angles = torch.outer(torch.arange(shape.context).float(), ROTARY_BASE**-half)
        angles_TK = torch.cat((angles, angles), dim=-1)
        self.register_buffer("cos_TK", angles_TK.cos(), persistent=False)
        self.register_buffer("sin_TK", angles_TK.sin(), persistent=False)

    def forward(self, tokens_BT: Tensor, dtype: torch.dtype = torch.float32) -> Tensor:
        T = tokens_BT.shape[1]
        cos_TK, sin_TK = self.cos_TK[:T].to(dtype), self.sin_TK[:T].to(dtype)
        x_BTD = self.embed_tokens(tokens_BT)
        for block in self.layers:
            x_BTD = block(x_BTD, cos_TK, sin_TK, dtype)
        return self.lm_head(self.norm(x_BTD, dtype))

    @torch.no_grad()
    def initialise(self, seed: int) -> None:
        """Normal weights of standard deviation .02, output projections .02 / sqrt(2 L) (GPT-2's rule).

        Drawn on the CPU from one generator in the order of `named_parameters`: the same on every device.
        """
        generator = torch.Generator().manual_seed(seed)
        for name, parameter in self.named_parameters():
            if parameter.dim() < 2:
                parameter.fill_(1.0)
                continue
            residual = name.endswith(("o_proj.weight", "down_proj.weight"))
            std = 0.02 / math.sqrt(2 * self.shape.n_layer) if residual else 0.02
            parameter.copy_(torch.randn(parameter.shape, generator=generator) * std)


def token_losses(logits_BTV: Tensor, targets_BT: Tensor) -> Tensor:
    """Cross-entropy of each token in nats, (B, T), computed in FP32."""
    return F.cross_entropy(logits_BTV.float().transpose(1, 2), targets_BT, reduction="none")
