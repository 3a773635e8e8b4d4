"""Decoder-only transformer: RMSNorm, rotary positions, SwiGLU, no biases, untied head.

Shape letters: B sequences, T positions, D width, F feed-forward width, H heads, K head size, V vocabulary.
Names of the matrices follow `transformers`' Llama, so that the export is a renaming.
"""

import math

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from shared.model import kernels
from shared.model.attention import causal_attention, fits
from shared.model.shape import Shape

NORM_EPSILON = 1e-6
ROTARY_BASE = 10_000.0


class Linear(nn.Module):
    """y = x W^T in the type of x; W is held in FP32 (the master weights)."""

    fast = False

    def __init__(self, inputs: int, outputs: int) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.empty(outputs, inputs))

    def forward(self, x: Tensor) -> Tensor:
        return multiplied(x, self.weight.to(x.dtype), self.fast)


def multiplied(x_BTI: Tensor, w_OI: Tensor, fast: bool) -> Tensor:
    """x W^T; `fast`: by the kernels of `kernels.cpp` where they have one, with the same bits."""
    return kernels.linear(x_BTI, w_OI) if fast and x_BTI.dtype == torch.bfloat16 else F.linear(x_BTI, w_OI)


class RMSNorm(nn.Module):
    """x / rms(x) * gain, computed in FP32 and returned in `dtype` (Zhang and Sennrich, arXiv 1910.07467)."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.ones(width))

    def forward(self, x_BTD: Tensor, dtype: torch.dtype) -> Tensor:
        scale_BT1 = torch.rsqrt(x_BTD.pow(2).mean(-1, keepdim=True) + NORM_EPSILON)
        return (x_BTD * scale_BT1 * self.weight).to(dtype)


def rotate(x_BTHK: Tensor, cos_TK: Tensor, sin_TK: Tensor) -> Tensor:
    """Rotary positions in the split-halves form that `transformers` uses (Su et al., arXiv 2104.09864)."""
    first, second = x_BTHK.chunk(2, dim=-1)
    cos_T1K, sin_T1K = cos_TK.unsqueeze(1), sin_TK.unsqueeze(1)
    return x_BTHK * cos_T1K + torch.cat((-second, first), dim=-1) * sin_T1K


class Block(nn.Module):
    """Attention and SwiGLU around the residual stream.

    `casts` is the seam for low-precision training: a module under the name of a product ("qkv", "o", "gate_up",
    "down") computes it in place of a plain one, and a module under "query", "key" or "value" casts what attention
    reads. It is empty in a model that is not quantized. Matrices that read the same input are multiplied as one.
    """

    fast = False

    def __init__(self, shape: Shape) -> None:
        super().__init__()
        D, F_ = shape.d_model, shape.d_ff
        self.head_size = shape.head_size
        self.input_layernorm = RMSNorm(D)
        self.q_proj, self.k_proj, self.v_proj, self.o_proj = (Linear(D, D) for _ in range(4))
        self.post_attention_layernorm = RMSNorm(D)
        self.gate_proj, self.up_proj, self.down_proj = Linear(D, F_), Linear(D, F_), Linear(F_, D)
        self.casts = nn.ModuleDict()

    def product(self, name: str, x_BTI: Tensor, *layers: Linear) -> Tensor:
        """x times the layers' matrices, side by side: (B, T, I) -> (B, T, sum of outputs)."""
        weights: list[Tensor] = [layer.weight for layer in layers]
        if name in self.casts:
            y_BTO: Tensor = self.casts[name](x_BTI, weights)
            return y_BTO
        weights = [weight.to(x_BTI.dtype) for weight in weights]
        return multiplied(x_BTI, torch.cat(weights) if len(weights) > 1 else weights[0], self.fast)

    def cast(self, name: str, x_BTHK: Tensor) -> Tensor:
        return self.casts[name](x_BTHK) if name in self.casts else x_BTHK

    def reads_rounded(self) -> bool:
        """Whether products read what a norm gives rounded to BF16; a cast fused with the norm reads it unrounded."""
        casts = [self.casts[name] for name in ("qkv", "gate_up") if name in self.casts]
        return all(getattr(cast, "weights_only", False) for cast in casts)

    def attend(self, h_BTD: Tensor, cos_TK: Tensor, sin_TK: Tensor, fast: bool) -> Tensor:
        B, T, D = h_BTD.shape
        qkv_BT3D = self.product("qkv", h_BTD, self.q_proj, self.k_proj, self.v_proj)
        qkv_BT3HK = qkv_BT3D.view(B, T, 3, D // self.head_size, self.head_size)
        if fast and fits(qkv_BT3HK) and not any(name in self.casts for name in ("query", "key", "value")):
            attended_BTHK: Tensor = kernels.rotary_attention(qkv_BT3HK, cos_TK, sin_TK)[0]
        else:
            q_BTHK, k_BTHK, v_BTHK = qkv_BT3HK.unbind(2)
            cos_TK, sin_TK = cos_TK.to(h_BTD.dtype), sin_TK.to(h_BTD.dtype)
            q_BTHK = self.cast("query", rotate(q_BTHK, cos_TK, sin_TK))
            k_BTHK = self.cast("key", rotate(k_BTHK, cos_TK, sin_TK))
            attended_BTHK = causal_attention(q_BTHK, k_BTHK, self.cast("value", v_BTHK), fast)
        return self.product("o", attended_BTHK.reshape(B, T, D), self.o_proj)

    def feed_forward(self, h_BTD: Tensor, fast: bool) -> Tensor:
        gate_up_BT2F = self.product("gate_up", h_BTD, self.gate_proj, self.up_proj)
        return self.product("down", gated(gate_up_BT2F, fast), self.down_proj)

    def forward(self, x_BTD: Tensor, cos_TK: Tensor, sin_TK: Tensor, dtype: torch.dtype, fast: bool) -> Tensor:
        x_BTD = x_BTD + self.attend(self.input_layernorm(x_BTD, dtype), cos_TK, sin_TK, fast)
        return x_BTD + self.feed_forward(self.post_attention_layernorm(x_BTD, dtype), fast)


def gated(gate_up_BT2F: Tensor, fast: bool) -> Tensor:
    """silu(gate) * up (Shazeer, arXiv 2002.05202)."""
    if fast and gate_up_BT2F.dtype == torch.bfloat16:
        out_RF: Tensor = kernels.swiglu(gate_up_BT2F.flatten(0, 1))
        return out_RF.view(*gate_up_BT2F.shape[:2], -1)
    gate_BTF, up_BTF = gate_up_BT2F.chunk(2, dim=-1)
    return F.silu(gate_BTF) * up_BTF


class Decoder(nn.Module):
    """tokens (B, T) -> logits (B, T, V). Matrices multiply in `dtype`; the residual stream stays FP32.

    `fast` lets products in BF16 on a CPU use our kernels; whoever sets it has asked `kernels.usable()`. Modules with an
    attribute of that name are told.
    """

    cos_TK: Tensor
    sin_TK: Tensor

    def __init__(self, shape: Shape) -> None:
        super().__init__()
        self.shape, self._fast = shape, False
        self.embed_tokens = nn.Embedding(shape.vocabulary, shape.d_model)
        self.layers = nn.ModuleList(Block(shape) for _ in range(shape.n_layer))
        self.norm = RMSNorm(shape.d_model)
        self.lm_head = Linear(shape.d_model, shape.vocabulary)
        half = torch.arange(0, shape.head_size, 2).float() / shape.head_size
        angles = torch.outer(torch.arange(shape.context).float(), ROTARY_BASE**-half)
        angles_TK = torch.cat((angles, angles), dim=-1)
        self.register_buffer("cos_TK", angles_TK.cos(), persistent=False)
        self.register_buffer("sin_TK", angles_TK.sin(), persistent=False)

    @property
    def fast(self) -> bool:
        return self._fast

    @fast.setter
    def fast(self, fast: bool) -> None:
        self._fast = fast
        for module in self.modules():
            if module is not self and hasattr(module, "fast"):
                module.fast = fast  # type: ignore[assignment]

    def forward(self, tokens_BT: Tensor, dtype: torch.dtype = torch.float32) -> Tensor:
        T = tokens_BT.shape[1]
        cos_TK, sin_TK = self.cos_TK[:T], self.sin_TK[:T]
        rounded = all(block.reads_rounded() for block in self.layers if isinstance(block, Block))
        if self.fast and rounded and dtype == torch.bfloat16 and self.shape.d_model % kernels.BLOCK == 0:
            return self.lm_head(self.fast_hidden(tokens_BT, cos_TK, sin_TK))
        x_BTD = self.embed_tokens(tokens_BT)
        for block in self.layers:
            x_BTD = block(x_BTD, cos_TK, sin_TK, dtype, self.fast)
        return self.lm_head(self.norm(x_BTD, dtype))

    def fast_hidden(self, tokens_BT: Tensor, cos_TK: Tensor, sin_TK: Tensor) -> Tensor:
        """What the head reads, (B, T, D) in BF16: sums and norms by the kernels, with the bits of the compiled form."""
        B, T = tokens_BT.shape
        blocks = [block for block in self.layers if isinstance(block, Block)]
        gains = [block.input_layernorm.weight for block in blocks] + [self.norm.weight]
        x_RD, h_RD, _ = kernels.embedded_norm(tokens_BT.flatten(), self.embed_tokens.weight, gains[0])
        for number, block in enumerate(blocks):
            delta_BTD = block.attend(h_RD.view(B, T, -1), cos_TK, sin_TK, True)
            gain_D = block.post_attention_layernorm.weight
            # torch.compile keeps only the first of these sums in two vectors.
            x_RD, h_RD, _ = kernels.added_norm(x_RD, delta_BTD.flatten(0, 1), gain_D, 16 if number else 32)
            delta_BTD = block.feed_forward(h_RD.view(B, T, -1), True)
            x_RD, h_RD, _ = kernels.added_norm(x_RD, delta_BTD.flatten(0, 1), gains[number + 1], 16)
        return h_RD.view(B, T, -1)

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


def mean_loss(logits_BTV: Tensor, targets_BT: Tensor, fast: bool) -> Tensor:
    """Mean cross-entropy in nats per token."""
    if fast and logits_BTV.dtype == torch.bfloat16:
        loss_R: Tensor = kernels.cross_entropy(logits_BTV.flatten(0, 1), targets_BT.flatten())[0]
        return loss_R.mean()
    return F.cross_entropy(logits_BTV.float().flatten(0, 1), targets_BT.flatten())
