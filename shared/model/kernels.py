"""The CPU kernels of `kernels.cpp` as operators of torch, in BF16: attention, norms, SwiGLU, cross-entropy, and the
gradients to weights.

Shape letters: B sequences, T positions, H heads, K head size, D width, F feed-forward width, V vocabulary, R rows
(B T), I inputs and O outputs of a product.

They are compiled once per machine by the compiler that `torch.compile` needs as well. Each has a plain form beside its
caller, which is its definition, its form on every other machine, and its oracle in the tests.
"""

import ctypes
import sys
from collections.abc import Callable
from functools import cache
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from shared.native import built, instructions

SOURCE = Path(__file__).with_name("kernels.cpp")
# No -ffast-math: reassociation would undo the rounding inside the exponential, and linking it flushes denormals.
FLAGS = [
    "-std=c++20",
    "-O3",
    "-march=native",
    "-mprefer-vector-width=512",
    "-fopenmp-simd",
    "-fno-math-errno",
    "-fno-trapping-math",
    "-ffinite-math-only",
    "-fno-signed-zeros",
    "-fPIC",
    "-shared",
]
NEEDED = {"avx512f", "avx512bw", "avx512_bf16", "amx_tile", "amx_bf16"}
BLOCK = 32  # rows of a block of attention in kernels.cpp; positions and head sizes come in multiples of it


@cache
def usable() -> bool:
    """Whether this machine has what the kernels call: Linux, AVX-512 with BF16, and its tiles (AMX)."""
    if sys.platform != "linux" or not NEEDED.issubset(instructions().split()):
        return False
    return bool(library().supported())


@cache
def library() -> ctypes.CDLL:
    """`kernels.cpp`, compiled. Raises BitlawError without a C++ compiler, or when it fails."""
    opened = built(SOURCE, FLAGS)
    opened.supported.restype = ctypes.c_bool
    return opened


def call(name: str, *arguments: Tensor | int | None) -> None:
    """Call a kernel, all of whose arguments are pointers or integers of 64 bits."""
    function = getattr(library(), name)
    if function.argtypes is None:
        function.argtypes = [ctypes.c_void_p] * len(arguments)
    function(*[a.data_ptr() if isinstance(a, Tensor) else a for a in arguments])


LIBRARY = torch.library.Library("bitlaw", "FRAGMENT")


def operator(function: Callable[..., Any]) -> Callable[..., Any]:
    """An operator for tensors on the CPU. `torch.library.custom_op` checks more at each call: 20 us against 7, and .1
    to .2 ms within a step, whose data drive Python's code out of the caches."""
    name = function.__name__
    LIBRARY.define(name + torch.library.infer_schema(function, mutates_args=()))
    LIBRARY.impl(name, function, "CPU")
    packet: Callable[..., Any] = getattr(torch.ops.bitlaw, name)
    return packet


Context = Any  # torch's autograd context, which has no public type


@operator
def attention(q_BTHK: Tensor, k_BTHK: Tensor, v_BTHK: Tensor) -> tuple[Tensor, Tensor]:
    """Causal attention, (B, T, H, K), and the log-sum-exp of its scores, (B, H, T)."""
    q_BTHK, k_BTHK, v_BTHK = q_BTHK.contiguous(), k_BTHK.contiguous(), v_BTHK.contiguous()
    B, T, H, _ = q_BTHK.shape
    out_BTHK, lse_BHT = torch.empty_like(q_BTHK), torch.empty(B, H, T)
    call("attention", q_BTHK, k_BTHK, v_BTHK, None, None, out_BTHK, lse_BHT, *q_BTHK.shape, q_BTHK.stride(1))
    return out_BTHK, lse_BHT


@torch.library.register_fake("bitlaw::attention", lib=LIBRARY)
def _(q_BTHK: Tensor, k_BTHK: Tensor, v_BTHK: Tensor) -> tuple[Tensor, Tensor]:
    B, T, H, _ = q_BTHK.shape
    return q_BTHK.new_empty(q_BTHK.shape), q_BTHK.new_empty((B, H, T), dtype=torch.float32)


@operator
def attention_backward(
    g_BTHK: Tensor, q_BTHK: Tensor, k_BTHK: Tensor, v_BTHK: Tensor, out_BTHK: Tensor, lse_BHT: Tensor
) -> tuple[Tensor, Tensor, Tensor]:
    tensors = [x.contiguous() for x in (g_BTHK, q_BTHK, k_BTHK, v_BTHK)]
    outputs = [x.contiguous() for x in (out_BTHK, lse_BHT)]
    dq_BTHK, dk_BTHK, dv_BTHK = (torch.empty_like(tensors[1]) for _ in range(3))
    sizes = (*q_BTHK.shape, tensors[1].stride(1))
    call("attention_backward", *tensors, None, None, *outputs, dq_BTHK, dk_BTHK, dv_BTHK, *sizes)
    return dq_BTHK, dk_BTHK, dv_BTHK


@torch.library.register_fake("bitlaw::attention_backward", lib=LIBRARY)
def _(
    g_BTHK: Tensor, q_BTHK: Tensor, k_BTHK: Tensor, v_BTHK: Tensor, out_BTHK: Tensor, lse_BHT: Tensor
) -> tuple[Tensor, Tensor, Tensor]:
    return q_BTHK.new_empty(q_BTHK.shape), q_BTHK.new_empty(q_BTHK.shape), q_BTHK.new_empty(q_BTHK.shape)


def _keep_all(ctx: Context, inputs: tuple[Tensor, ...], output: tuple[Tensor, ...]) -> None:
    ctx.save_for_backward(*inputs, *output)


def _attention_gradient(ctx: Context, g_BTHK: Tensor, _: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    return attention_backward(g_BTHK, *ctx.saved_tensors)


torch.library.register_autograd("bitlaw::attention", _attention_gradient, setup_context=_keep_all, lib=LIBRARY)


@operator
def rotary_attention(qkv_BT3HK: Tensor, cos_TK: Tensor, sin_TK: Tensor) -> tuple[Tensor, Tensor]:
    """`attention` of one tensor's queries, keys and values, the first two rotated (`transformer.rotate`)."""
    qkv_BT3HK = qkv_BT3HK.contiguous()
    B, T, _, H, K = qkv_BT3HK.shape
    out_BTHK, lse_BHT = qkv_BT3HK.new_empty(B, T, H, K), torch.empty(B, H, T)
    angles = (cos_TK.contiguous(), sin_TK.contiguous())
    call("attention", *qkv_BT3HK.unbind(2), *angles, out_BTHK, lse_BHT, B, T, H, K, 3 * H * K)
    return out_BTHK, lse_BHT


@torch.library.register_fake("bitlaw::rotary_attention", lib=LIBRARY)
def _(qkv_BT3HK: Tensor, cos_TK: Tensor, sin_TK: Tensor) -> tuple[Tensor, Tensor]:
    B, T, _, H, K = qkv_BT3HK.shape
    return qkv_BT3HK.new_empty(B, T, H, K), qkv_BT3HK.new_empty((B, H, T), dtype=torch.float32)


@operator
def rotary_attention_backward(
    g_BTHK: Tensor, qkv_BT3HK: Tensor, cos_TK: Tensor, sin_TK: Tensor, out_BTHK: Tensor, lse_BHT: Tensor
) -> Tensor:
    g_BTHK, qkv_BT3HK = g_BTHK.contiguous(), qkv_BT3HK.contiguous()
    constant = [x.contiguous() for x in (cos_TK, sin_TK, out_BTHK, lse_BHT)]
    dqkv_BT3HK = torch.empty_like(qkv_BT3HK)
    sizes = (*g_BTHK.shape, qkv_BT3HK.stride(1))
    call("attention_backward", g_BTHK, *qkv_BT3HK.unbind(2), *constant, *dqkv_BT3HK.unbind(2), *sizes)
    return dqkv_BT3HK


@torch.library.register_fake("bitlaw::rotary_attention_backward", lib=LIBRARY)
def _(g_BTHK: Tensor, qkv_BT3HK: Tensor, cos_TK: Tensor, sin_TK: Tensor, out_BTHK: Tensor, lse_BHT: Tensor) -> Tensor:
    return qkv_BT3HK.new_empty(qkv_BT3HK.shape)


def _rotary_attention_gradient(ctx: Context, g_BTHK: Tensor, _: Tensor) -> tuple[Tensor, None, None]:
    return rotary_attention_backward(g_BTHK, *ctx.saved_tensors), None, None


torch.library.register_autograd(
    "bitlaw::rotary_attention", _rotary_attention_gradient, setup_context=_keep_all, lib=LIBRARY
)


@cache
def part_rows(rows: int, outputs: int, inputs: int) -> int:
    """How many rows torch's product for a gradient to weights sums up in tiles before an FP32 addition; 0 if unknown.

    oneDNN chooses by shape; values, and so golden losses, depend on it. Found by comparing bits: of two ways to split,
    one value in 10,000 is rounded differently.
    """
    if rows % BLOCK or outputs % BLOCK or inputs % BLOCK:
        return 0
    generator = torch.Generator().manual_seed(0)
    g_RO, x_RI = (torch.rand(rows, n, generator=generator).sub_(0.5).bfloat16() for n in (outputs, inputs))
    drawn = [(g_RO, x_RI.roll(number, 0)) for number in range(max(1, 2**18 // (outputs * inputs)))]
    wanted = [g.T @ x for g, x in drawn]
    usual = [n for n in (rows, 2048, 1024) if n <= rows]
    for part in dict.fromkeys((*usual, *range(rows, 0, -BLOCK))):
        if all(torch.equal(summed(g, x, part), want) for (g, x), want in zip(drawn, wanted, strict=True)):
            return part
    return 0


def summed(g_RO: Tensor, x_RI: Tensor, part: int) -> Tensor:
    """g^T x, (O, I), with sums of `part` rows added in FP32."""
    out_OI = g_RO.new_empty(g_RO.shape[1], x_RI.shape[1])
    call("weight_gradient", g_RO, x_RI, out_OI, *g_RO.shape, x_RI.shape[1], part)
    return out_OI


@operator
def weight_gradient(g_RO: Tensor, x_RI: Tensor) -> Tensor:
    """g^T x, (O, I), with the bits of torch's product: oneDNN transposes g value by value, for half of its time."""
    part = part_rows(*g_RO.shape, x_RI.shape[1]) if torch.get_num_threads() == 1 else 0
    return summed(g_RO.contiguous(), x_RI.contiguous(), part) if part else g_RO.T @ x_RI


@torch.library.register_fake("bitlaw::weight_gradient", lib=LIBRARY)
def _(g_RO: Tensor, x_RI: Tensor) -> Tensor:
    return g_RO.new_empty(g_RO.shape[1], x_RI.shape[1])


class _Linear(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Context, x_RI: Tensor, w_OI: Tensor) -> Tensor:
        ctx.save_for_backward(x_RI, w_OI)
        return x_RI @ w_OI.T

    @staticmethod
    def backward(ctx: Context, g_RO: Tensor) -> tuple[Tensor, Tensor]:
        x_RI, w_OI = ctx.saved_tensors
        return g_RO @ w_OI, weight_gradient(g_RO, x_RI)


def linear(x_BTI: Tensor, w_OI: Tensor) -> Tensor:
    """x W^T, (B, T, O), as torch gives it, with a faster gradient to W."""
    y_RO: Tensor = _Linear.apply(x_BTI.flatten(0, 1), w_OI)
    return y_RO.unflatten(0, x_BTI.shape[:2])


@operator
def embedded_norm(tokens_R: Tensor, table_VD: Tensor, gain_D: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """The tokens' rows x of a table, (R, D), FP32, x / rms(x) * gain in BF16, and 1 / rms(x), (R,)."""
    return _norm(tokens_R.contiguous(), table_VD.contiguous(), None, gain_D, lanes=16)


@torch.library.register_fake("bitlaw::embedded_norm", lib=LIBRARY)
def _(tokens_R: Tensor, table_VD: Tensor, gain_D: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    return _norm_outputs(len(tokens_R), table_VD)


@operator
def added_norm(x_RD: Tensor, delta_RD: Tensor, gain_D: Tensor, lanes: int) -> tuple[Tensor, Tensor, Tensor]:
    """s = x + delta, FP32, s / rms(s) * gain in BF16, and 1 / rms(s). Squares are added up in 16 or 32 lanes."""
    return _norm(None, x_RD.contiguous(), delta_RD.contiguous(), gain_D, lanes)


@torch.library.register_fake("bitlaw::added_norm", lib=LIBRARY)
def _(x_RD: Tensor, delta_RD: Tensor, gain_D: Tensor, lanes: int) -> tuple[Tensor, Tensor, Tensor]:
    return _norm_outputs(len(x_RD), x_RD)


def _norm(
    tokens_R: Tensor | None, x_RD: Tensor, delta_RD: Tensor | None, gain_D: Tensor, lanes: int
) -> tuple[Tensor, Tensor, Tensor]:
    outputs = _norm_outputs(len(x_RD if tokens_R is None else tokens_R), x_RD)
    call("norm", tokens_R, x_RD, delta_RD, gain_D, *outputs, *outputs[0].shape, lanes)
    return outputs


def _norm_outputs(R: int, x_RD: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    D = x_RD.shape[1]
    return x_RD.new_empty(R, D), x_RD.new_empty(R, D, dtype=torch.bfloat16), x_RD.new_empty(R)


@operator
def embedded_norm_backward(
    g_sum_RD: Tensor | None, g_RD: Tensor, tokens_R: Tensor, sum_RD: Tensor, scale_R: Tensor, gain_D: Tensor, V: int
) -> tuple[Tensor, Tensor]:
    """Gradients to table and gain."""
    dtable_VD, dgain_D = sum_RD.new_zeros(V, sum_RD.shape[1]), torch.empty_like(gain_D)
    g_sum_RD = None if g_sum_RD is None else g_sum_RD.contiguous()
    constant = (g_RD.contiguous(), tokens_R.contiguous(), sum_RD, scale_R, gain_D)
    call("norm_backward", g_sum_RD, *constant, dtable_VD, None, dgain_D, *sum_RD.shape)
    return dtable_VD, dgain_D


@torch.library.register_fake("bitlaw::embedded_norm_backward", lib=LIBRARY)
def _(
    g_sum_RD: Tensor | None, g_RD: Tensor, tokens_R: Tensor, sum_RD: Tensor, scale_R: Tensor, gain_D: Tensor, V: int
) -> tuple[Tensor, Tensor]:
    return sum_RD.new_empty(V, sum_RD.shape[1]), torch.empty_like(gain_D)


@operator
def added_norm_backward(
    g_sum_RD: Tensor | None, g_RD: Tensor, sum_RD: Tensor, scale_R: Tensor, gain_D: Tensor
) -> tuple[Tensor, Tensor, Tensor]:
    """Gradients to x, delta and gain."""
    dx_RD, ddelta_RD, dgain_D = torch.empty_like(sum_RD), torch.empty_like(g_RD), torch.empty_like(gain_D)
    g_sum_RD = None if g_sum_RD is None else g_sum_RD.contiguous()
    constant = (g_RD.contiguous(), None, sum_RD, scale_R, gain_D)
    call("norm_backward", g_sum_RD, *constant, dx_RD, ddelta_RD, dgain_D, *sum_RD.shape)
    return dx_RD, ddelta_RD, dgain_D


@torch.library.register_fake("bitlaw::added_norm_backward", lib=LIBRARY)
def _(
    g_sum_RD: Tensor | None, g_RD: Tensor, sum_RD: Tensor, scale_R: Tensor, gain_D: Tensor
) -> tuple[Tensor, Tensor, Tensor]:
    return torch.empty_like(sum_RD), g_RD.new_empty(g_RD.shape), torch.empty_like(gain_D)


def _keep_embedded(ctx: Context, inputs: tuple[Any, ...], output: tuple[Tensor, ...]) -> None:
    tokens_R, table_VD, gain_D = inputs
    ctx.set_materialize_grads(False)
    ctx.save_for_backward(tokens_R, output[0], output[2], gain_D)
    ctx.vocabulary = len(table_VD)


def _embedded_norm_gradient(
    ctx: Context, g_sum_RD: Tensor | None, g_RD: Tensor, _: Tensor | None
) -> tuple[None, Tensor, Tensor]:
    return None, *embedded_norm_backward(g_sum_RD, g_RD, *ctx.saved_tensors, ctx.vocabulary)


torch.library.register_autograd(
    "bitlaw::embedded_norm", _embedded_norm_gradient, setup_context=_keep_embedded, lib=LIBRARY
)


def _keep_added(ctx: Context, inputs: tuple[Any, ...], output: tuple[Tensor, ...]) -> None:
    ctx.set_materialize_grads(False)
    ctx.save_for_backward(output[0], output[2], inputs[2])


def _added_norm_gradient(
    ctx: Context, g_sum_RD: Tensor | None, g_RD: Tensor, _: Tensor | None
) -> tuple[Tensor, Tensor, Tensor, None]:
    return *added_norm_backward(g_sum_RD, g_RD, *ctx.saved_tensors), None


torch.library.register_autograd("bitlaw::added_norm", _added_norm_gradient, setup_context=_keep_added, lib=LIBRARY)


@operator
def cross_entropy(logits_RV: Tensor, target_R: Tensor) -> tuple[Tensor, Tensor]:
    """Loss of each row in nats, and its log-sum-exp; FP32."""
    logits_RV, target_R = logits_RV.contiguous(), target_R.contiguous()
    loss_R, lse_R = (torch.empty(len(logits_RV)) for _ in range(2))
    call("cross_entropy", logits_RV, target_R, loss_R, lse_R, *logits_RV.shape)
    return loss_R, lse_R


@torch.library.register_fake("bitlaw::cross_entropy", lib=LIBRARY)
def _(logits_RV: Tensor, target_R: Tensor) -> tuple[Tensor, Tensor]:
    R = logits_RV.shape[:1]
    return logits_RV.new_empty(R, dtype=torch.float32), logits_RV.new_empty(R, dtype=torch.float32)


@operator
def cross_entropy_backward(g_R: Tensor, logits_RV: Tensor, target_R: Tensor, lse_R: Tensor) -> Tensor:
    g_R, logits_RV, target_R = g_R.contiguous(), logits_RV.contiguous(), target_R.contiguous()
    out_RV = torch.empty_like(logits_RV)
    call("cross_entropy_backward", g_R, logits_RV, target_R, lse_R, out_RV, *logits_RV.shape)
    return out_RV


@torch.library.register_fake("bitlaw::cross_entropy_backward", lib=LIBRARY)
def _(g_R: Tensor, logits_RV: Tensor, target_R: Tensor, lse_R: Tensor) -> Tensor:
    return logits_RV.new_empty(logits_RV.shape)


def _keep_rows(ctx: Context, inputs: tuple[Tensor, ...], output: tuple[Tensor, ...]) -> None:
    ctx.save_for_backward(*inputs, output[1])


def _cross_entropy_gradient(ctx: Context, g_R: Tensor, _: Tensor) -> tuple[Tensor, None]:
    return cross_entropy_backward(g_R, *ctx.saved_tensors), None


torch.library.register_autograd("bitlaw::cross_entropy", _cross_entropy_gradient, setup_context=_keep_rows, lib=LIBRARY)


@operator
def swiglu(x_R2F: Tensor) -> Tensor:
    """silu(gate) * up of rows [gate, up]: (R, 2 F) -> (R, F)."""
    x_R2F = x_R2F.contiguous()
    R, width = x_R2F.shape
    out_RF = x_R2F.new_empty(R, width // 2)
    call("swiglu", x_R2F, out_RF, R, width // 2)
    return out_RF


@torch.library.register_fake("bitlaw::swiglu", lib=LIBRARY)
def _(x_R2F: Tensor) -> Tensor:
    return x_R2F.new_empty(x_R2F.shape[0], x_R2F.shape[1] // 2)


@operator
def swiglu_backward(g_RF: Tensor, x_R2F: Tensor) -> Tensor:
    g_RF, x_R2F = g_RF.contiguous(), x_R2F.contiguous()
    out_R2F = torch.empty_like(x_R2F)
    call("swiglu_backward", g_RF, x_R2F, out_R2F, *g_RF.shape)
    return out_R2F


@torch.library.register_fake("bitlaw::swiglu_backward", lib=LIBRARY)
def _(g_RF: Tensor, x_R2F: Tensor) -> Tensor:
    return x_R2F.new_empty(x_R2F.shape)


def _keep_input(ctx: Context, inputs: tuple[Tensor, ...], output: Tensor) -> None:
    ctx.save_for_backward(*inputs)


def _swiglu_gradient(ctx: Context, g_RF: Tensor) -> Tensor:
    return swiglu_backward(g_RF, *ctx.saved_tensors)


torch.library.register_autograd("bitlaw::swiglu", _swiglu_gradient, setup_context=_keep_input, lib=LIBRARY)
