"""Quantizers against their definition, gradient estimators in float64, round-to-nearest, and paired evaluation."""

import copy
import math
import pickle
from collections.abc import Callable

import numpy as np
import pytest
import torch
import torch._dynamo
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from shared.errors import BitlawError
from shared.evaluate.losses import evaluator, mean, paired, validation_windows
from shared.evaluate.ptq import Cell, block_matrices, measure
from shared.formats import Format, format_named
from shared.formats.oracle import nearest_value
from shared.model import Decoder, Shape
from shared.quantize import (
    Quantizer,
    clipped_straight_through,
    fake_quantize,
    learned_clip,
    parse_quantizer,
    straight_through,
)
from shared.quantize.gradients import inside
from shared.quantize.quantizer import PRESETS, scales
from shared.quantize.rtn import round_to_nearest

BITS = range(2, 9)
SHAPE = Shape(n_layer=1, d_model=64, d_ff=96, vocabulary=64, context=16)
FAMILIES = [
    *(f"INT{bits}@{group}" for bits in BITS for group in ("channel", "token", "tensor", 8, 32)),
    *("BINARY@channel", "BINARY@16", "TERNARY@channel", "TERNARY@8", "TERNARY@8:absmax", "BINARY@8:absmax"),
    *("E2M1@8", "E2M1@channel", "E1M1@32", "E3M2@tensor", "E4M3@channel", "E0M3@16", "E3M0@8", "E8M1@channel"),
    *("NF4@64", "NF3@8", "FP4@32", "INT4@32:bf16", "INT4@32:e4m3", "INT4@32:away", "E2M1@8:away"),
    *PRESETS,
    *("MXFP4:away", "NVFP4:away"),
    *("UINT1@8", "UINT2@32", "UINT4@channel", "UINT8@tensor", "UINT3@16:bf16", "UINT4@8:e8m0", "UINT4@32:away"),
    *("INT4@32:e8m0", "E2M1@16:e8m0", "E4M3@channel:e8m0", "INT4@tensor:e4m3", "INT8@token:p90", "E2M1@32:p99.9"),
]


def quantizer(text: str) -> Quantizer:
    made = parse_quantizer(text)
    assert made is not None
    return made


def matrix(rows: int = 4, columns: int = 64, seed: int = 0) -> Tensor:
    """Normal values with a row of zeros, a block of zeros, an outlier and a row of tiny values."""
    x = torch.randn(rows, columns, generator=torch.Generator().manual_seed(seed))
    x[0] = 0.0
    x[1, :32] = 0.0
    x[2, 5] = 40.0
    x[3] *= 1e-3
    return x


def by_definition(x_RL: Tensor, q: Quantizer) -> Tensor:
    """Group by group, scales in exact powers or FP32, each value by the oracle's cast."""
    rows, length = x_RL.shape
    size = {"channel": length, "token": length, "tensor": rows * length}.get(str(q.group)) or int(q.group)
    form = q.format
    x = x_RL.reshape(-1, size)
    out = torch.zeros_like(x)
    tensor_scale = x.abs().max() / (448 * form.limit)
    for g, group in enumerate(x):
        most = group.abs().max()
        if not most:
            continue
        low, high = min(group.min(), torch.tensor(0.0)), max(group.max(), torch.tensor(0.0))
        if q.scale_rule == "mx":
            scale = torch.tensor(2.0 ** max(math.floor(math.log2(most)) - form.largest_exponent, -127))
        elif q.scale_rule == "mean":
            scale = group.abs().mean()
        elif q.scale_rule == "minmax":
            scale = (high - low) / form.limit
        elif q.scale_rule.startswith("p"):
            scale = sorted(group.abs().tolist())[math.ceil(float(q.scale_rule[1:]) / 100 * size) - 1] / form.limit
            scale = torch.tensor(scale) if scale else most / form.limit
        else:
            scale = most / form.limit
        if q.scale_format == "BF16":
            scale = scale.bfloat16().float()
        if q.scale_format == "E8M0" and q.scale_rule != "mx":
            scale = torch.tensor(2.0 ** math.ceil(math.log2(scale)))
        if q.scale_format == "E4M3":
            scale = nearest_value((scale / tensor_scale).item(), format_named("E4M3FN")) * tensor_scale
        zero = torch.round(-low / scale).item() if q.has_zero_point else 0.0
        for i, value in enumerate(group):
            if form.kind == "codebook":
                ratio = (value * (1 / scale)).item()
            else:
                ratio = (value / scale).item() if scale else value.item()
            if q.rounding == "half_away":
                ratio = math.nextafter(ratio, math.copysign(math.inf, ratio))
            if q.has_zero_point:  # half away and half even are those of the unshifted number
                rounded = min(max(round(ratio), -zero), form.limit - zero)
            else:
                rounded = nearest_value(ratio, form)
            out[g, i] = torch.tensor(rounded) * scale
    return out.reshape(x_RL.shape)


@pytest.mark.parametrize("text", FAMILIES)
def test_forward_is_the_oracle_cast(text: str) -> None:
    x = matrix()
    torch.testing.assert_close(fake_quantize(x, quantizer(text)), by_definition(x, quantizer(text)), rtol=4e-7, atol=0)
    assert not fake_quantize(x, quantizer(text))[0].any()


@pytest.mark.parametrize("bits", BITS)
@pytest.mark.parametrize("group", [8, 32, 64])
def test_integer_absmax_is_the_formula_bit_for_bit(bits: int, group: int) -> None:
    """The pool's rows of round-to-nearest rest on it: scale = max |w| / limit, round(w / scale) * scale."""
    w = matrix(8, 64, bits) * 0.02
    w[4] = 1e-44
    limit = 2 ** (bits - 1) - 1
    w_OGE = w.reshape(8, -1, group)
    scale = w_OGE.abs().amax(-1, keepdim=True) / limit
    safe = torch.where(scale > 0, scale, 1.0)
    expected = (torch.clamp(torch.round(w_OGE / safe), -limit, limit) * safe).reshape(w.shape)
    actual = fake_quantize(w, quantizer(f"INT{bits}@{group}"))
    assert torch.equal(actual.view(torch.int32), expected.view(torch.int32))


@pytest.mark.parametrize("text", FAMILIES)
def test_texts_are_canonical(text: str) -> None:
    assert str(quantizer(text)) == text
    assert quantizer(str(quantizer(text))) == quantizer(text)


def test_quantizers_are_values() -> None:
    q = quantizer("E2M1@8:mse")
    assert pickle.loads(pickle.dumps(q)) == copy.deepcopy(q) == q
    renamed = Format("INT4", "integer", 4, 6.0)
    with pytest.raises(BitlawError, match="format 'INT4' has other values"):
        Quantizer(renamed, 8)


def test_texts() -> None:
    assert str(quantizer("INT1@channel")) == "BINARY@channel"
    assert str(quantizer("INT4@32:absmax:fp32:rne")) == "INT4@32"
    assert str(quantizer("INT4@32:sr:mse")) == "INT4@32:mse:sr"
    assert str(quantizer("E2M1@32:mx:e8m0")) == "MXFP4"
    assert str(Quantizer(format_named("BINARY"), "channel")) == "BINARY@channel:absmax"
    for bypass in ("none", "BF16", "FP16", "FP32", "INT16@channel", "INT32@8", "E8M7", "E5M10@8", "E8M7IEEE@token"):
        assert parse_quantizer(bypass) is None


@pytest.mark.parametrize(
    ("text", "sentence"),
    [
        ("INT9@8", "format 'INT9' is unknown"),
        ("INT4", "names no group"),
        ("MXFP5", "names no group, did you mean 'MXFP4'"),
        ("INT4@row", "group 'row' must be"),
        ("INT4@0", "group 0 must be"),
        ("INT4@32:mze", "'mze' is unknown, did you mean 'mse'"),
        ("MXFP4@32", "has its own group of 32"),
        ("MXFP4:mse", "'mse' is unknown"),
        ("INT4@32:mean", "for BINARY and TERNARY"),
        ("INT4@32:mx", "give it scale format E8M0, not FP32"),
        ("INT4@32:minmax", "does not suit INT4: use absmax or mse"),
        ("UINT4@32:absmax", "does not suit UINT4: use minmax or mse"),
        ("INT4@32:p101", "'p101' is unknown"),
        ("MXFP4:p99", "'p99' is unknown"),
        ("NF4@64:away", "no meaning in the code book NF4"),
    ],
)
def test_bad_texts(text: str, sentence: str) -> None:
    with pytest.raises(BitlawError, match=sentence):
        parse_quantizer(text)


def test_bad_calls() -> None:
    x = torch.ones(2, 64)
    with pytest.raises(BitlawError, match="group_size 7 does not divide a row of 64 values"):
        fake_quantize(x, quantizer("INT4@7"))
    with pytest.raises(BitlawError, match="takes noise"):
        fake_quantize(x, quantizer("INT4@8:sr"))
    with pytest.raises(BitlawError, match="takes no noise"):
        fake_quantize(x, quantizer("INT4@8"), torch.zeros_like(x))
    with pytest.raises(BitlawError, match="scale rule 'abs' is unknown"):
        Quantizer(format_named("INT4"), 8, "abs")
    with pytest.raises(BitlawError, match="needs 8 gammas"):
        learned_clip(x, quantizer("INT4@8"), torch.ones(1))
    with pytest.raises(BitlawError, match="absmax scales in FP32"):
        learned_clip(x, quantizer("MXFP4"), torch.ones(2))


@pytest.mark.parametrize(
    ("text", "bits"),
    [
        *(("INT4@32", 5.0), ("INT4@channel", 4.125), ("INT4@tensor", 4.0), ("INT3@16:bf16", 4.0), ("INT4@8", 8.0)),
        *(("MXFP4", 4.25), ("MXFP6E2M3", 6.25), ("MXFP6E3M2", 6.25), ("MXFP8E4M3", 8.25), ("MXFP8E5M2", 8.25)),
        *(
            ("MXINT8", 8.25),
            ("NVFP4", 4.5),
            ("NF4@64", 4.5),
            ("BINARY@channel", 1.125),
            ("UINT4@32", 5.125),
        ),  # the facts, 6.2 and 6.3
    ],
)
def test_bits_count_the_scales(text: str, bits: float) -> None:
    assert quantizer(text).bits_per_value(256) == bits


def test_bits_of_what_a_tensor_shares() -> None:
    assert quantizer("INT4@tensor").bits_per_value(64, 8) == 4 + 32 / 512
    assert quantizer("NVFP4").bits_per_value(64, 8) == 4.5 + 32 / 512
    assert quantizer("TERNARY@64").bits_per_value(64) == math.log2(3) + 0.5


@pytest.mark.parametrize(
    "text", ["INT2@32", "INT3@channel", "INT4@tensor", "E2M1@16", "TERNARY@channel", "NF4@32", "INT3@32:bf16"]
)
def test_mse_scales_lose_less(text: str) -> None:
    x = matrix(8, 256, 3)
    best, plain = (fake_quantize(x, quantizer(f"{text}:{rule}")) for rule in ("mse", "absmax"))
    assert (best - x).square().sum() < (plain - x).square().sum()


@pytest.mark.parametrize("bits", [2, 4])
def test_asymmetric_grids_fit_skewed_groups(bits: int) -> None:
    x = torch.rand(8, 64, generator=torch.Generator().manual_seed(1)) + 0.2
    x[4:] *= -1.0
    errors = [
        (fake_quantize(x, quantizer(text)) - x).square().sum()
        for text in (f"UINT{bits}@16:mse", f"UINT{bits}@16", f"INT{bits}@16")
    ]
    assert errors == sorted(errors)
    kept = fake_quantize(x, quantizer(f"UINT{bits}@16"))
    assert (torch.sign(kept) * torch.sign(x) >= 0).all()  # zero is a value of the grid


def test_mse_scale_is_the_best_of_the_ratios() -> None:
    x = torch.randn(1, 128, generator=torch.Generator().manual_seed(1))
    errors = []
    for k in range(46):
        scale = (x.abs().max() * (1 - 0.02 * k)) / 3
        errors.append(((torch.round(x / scale).clamp(-3, 3) * scale - x) ** 2).sum().item())
    actual = ((fake_quantize(x, quantizer("INT3@channel:mse")) - x) ** 2).sum().item()
    assert actual == pytest.approx(min(errors), rel=1e-5)


def test_mean_is_the_best_scale_of_signs() -> None:
    x = torch.randn(4, 128, generator=torch.Generator().manual_seed(2))
    best = (fake_quantize(x, quantizer("BINARY@channel")) - x).square().sum(-1)
    for factor in (0.9, 0.99, 1.01, 1.1):
        other = x.abs().mean(-1, keepdim=True) * factor * torch.where(x >= 0, 1.0, -1.0)
        assert ((other - x).square().sum(-1) > best).all()


@given(power=st.integers(-100, 100), seed=st.integers(0, 100), text=st.sampled_from(["INT4@8", "MXFP4", "E4M3@32"]))
def test_powers_of_two_pass_through(power: int, seed: int, text: str) -> None:
    x = torch.randn(2, 32, generator=torch.Generator().manual_seed(seed))
    scaled = fake_quantize(x * 2.0**power, quantizer(text))
    assert torch.equal(scaled, fake_quantize(x, quantizer(text)) * 2.0**power)


@pytest.mark.parametrize("text", ["INT4@32:sr", "E2M1@8:sr", "INT4@token:sr", "E5M2@32:sr"])
def test_stochastic_quantizers_are_unbiased(text: str) -> None:
    x = matrix()
    samples = 2048
    total = torch.zeros_like(x, dtype=torch.float64)
    for k in range(samples):
        total += fake_quantize(x, quantizer(text), torch.full_like(x, (k + 0.5) / samples))
    step = 2 * x.abs().amax(-1, keepdim=True) / 3  # no step of these formats is wider
    assert ((total / samples - x).abs() <= step / samples).all()


# --- gradients: each estimator against its definition, written out in float64 -------------------------------------


def noisy(text: str, shape: tuple[int, ...]) -> Tensor | None:
    return torch.rand(shape, generator=torch.Generator().manual_seed(9)) if text.endswith(":sr") else None


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize(
    "text", ["INT4@32", "E2M1@8", "MXFP4", "NVFP4", "BINARY@channel", "INT2@tensor:mse", "INT4@8:sr"]
)
def test_straight_through_passes_the_gradient(text: str, dtype: torch.dtype) -> None:
    x = matrix().to(dtype).requires_grad_()
    grad = torch.randn(4, 64, generator=torch.Generator().manual_seed(1))
    y = straight_through(x, quantizer(text), noisy(text, (4, 64)))
    assert torch.equal(y, fake_quantize(x, quantizer(text), noisy(text, (4, 64))))
    assert y.dtype == torch.float32
    y.backward(grad)
    assert x.grad is not None
    assert torch.equal(x.grad, grad.to(dtype))


@pytest.mark.parametrize(
    "text", ["INT4@32", "E2M1@8", "MXFP4", "TERNARY@32", "INT2@channel:mse", "INT4@8:sr", "INT3@32:p90"]
)
def test_clipped_straight_through_stops_at_the_clip(text: str) -> None:
    q = quantizer(text)
    x = matrix().requires_grad_()
    grad = torch.randn(4, 64, generator=torch.Generator().manual_seed(1))
    y = clipped_straight_through(x, q, noisy(text, (4, 64)))
    assert torch.equal(y, fake_quantize(x, q, noisy(text, (4, 64))))
    y.backward(grad)
    size = 64 if isinstance(q.group, str) else q.group
    clips = {}
    for r in range(4):
        for g in range(64 // size):
            group = x.detach()[r, g * size : (g + 1) * size].double()
            if q.scale_rule == "mx":
                clip = 6.0 * 2.0 ** (math.floor(math.log2(group.abs().max() or 2.0**-200)) - 2)
            elif q.scale_rule == "mean":
                clip = group.abs().mean().item()
            elif q.scale_rule == "p90":
                clip = group.abs().sort().values[28].item() or group.abs().max().item()  # the 29th of 32
            elif q.scale_rule == "mse":
                clip = fake_quantize(x, q)[r].abs().max().item()  # INT2: the scale is the value
            else:
                clip = group.abs().max().item()
            clips[r, g] = clip
    clip_RL = torch.tensor([[clips[r, i // size] for i in range(64)] for r in range(4)], dtype=torch.float64)
    expected = torch.where(x.detach().double().abs() <= clip_RL * (1 + 2.0**-20), grad.double(), 0.0)
    assert x.grad is not None
    assert torch.equal(x.grad.double(), expected)
    if q.scale_rule != "absmax":
        assert (expected == 0).any()


def test_asymmetric_ranges_clip_at_both_ends() -> None:
    x = torch.tensor([[-1.0, -0.5, 0.0, 0.2, 0.3, 0.4, 0.5, 2.0]])
    q = quantizer("UINT2@8")
    assert inside(x, q).all()
    scale, zero = scales(x.unsqueeze(0), q)  # 3 / 3 = 1 and 1
    assert (scale.item(), zero.item() if zero is not None else None) == (1.0, 1.0)
    assert fake_quantize(x, q).tolist() == [[-1, 0, 0, 0, 0, 0, 0, 2]]
    shrunk = quantizer("UINT2@8:mse")
    clipped = ~inside(x, shrunk)[0]
    assert clipped.any()
    assert not clipped[1:7].any()


@pytest.mark.parametrize("gamma", [0.5, 0.83, 1.0, 1.3])
@pytest.mark.parametrize("text", ["INT4@32", "INT4@token", "INT3@tensor", "E2M1@32", "E4M3@8"])
def test_learned_clip(text: str, gamma: float) -> None:
    """Forward and both gradients against autograd of s round_ste(clamp(x / s, -M, M)) in float64."""
    q = quantizer(text)
    x_BTL = torch.randn(3, 4, 64, generator=torch.Generator().manual_seed(4))
    groups = 1 if isinstance(q.group, str) else 64 // q.group
    gamma_G = torch.linspace(gamma, gamma + 0.07 * (gamma != 1), groups).requires_grad_()
    grad = torch.randn(3, 4, 64, generator=torch.Generator().manual_seed(5))
    x = x_BTL.clone().requires_grad_()
    y = learned_clip(x, q, gamma_G)
    y.backward(grad)

    slow_x = x_BTL.double().requires_grad_()
    slow_gamma = gamma_G.detach().double().requires_grad_()
    shape = (1, 1, 1, 768) if q.group == "tensor" else (3, 4, groups, 64 // groups)
    x_BTGE = slow_x.reshape(shape)
    most = x_BTGE.detach().abs().amax(-1, keepdim=True)
    limit = q.format.limit
    scale = most * slow_gamma[:, None] / limit
    ratio = x_BTGE / scale
    clamped = torch.where(x_BTGE.abs() <= most * slow_gamma[:, None], ratio, limit * torch.sign(ratio).detach())
    cast = torch.tensor([nearest_value(float(torch.tensor(v)), q.format) for v in clamped.flatten().tolist()])
    rounded = clamped + (cast.double().reshape(shape) - clamped).detach()
    slow = (scale * rounded).reshape(3, 4, 64)
    slow.backward(grad.double())
    torch.testing.assert_close(y.double(), slow.detach(), rtol=1e-6, atol=0)
    assert x.grad is not None
    assert slow_x.grad is not None
    assert gamma_G.grad is not None
    torch.testing.assert_close(x.grad.double(), slow_x.grad, rtol=1e-12, atol=0)
    torch.testing.assert_close(gamma_G.grad.double(), slow_gamma.grad, rtol=1e-4, atol=1e-4)
    if gamma == 1.0:
        assert torch.equal(y, fake_quantize(x, q))
        assert torch.equal(x.grad, grad)


# Dynamo of torch 2.13 traces an autograd.Function by making an instance, which torch deprecates.
traced = pytest.mark.filterwarnings("ignore:.*should not be instantiated:DeprecationWarning")


@traced
@pytest.mark.parametrize("text", ["INT4@32", "E2M1@8", "MXFP4", "INT4@32:sr", "E8M1@32"])
def test_compiled_is_eager_bit_for_bit(text: str) -> None:
    """Subnormals included: a compiler that flushed them to zero would show with E8M1 and the tiny row."""
    q = quantizer(text)
    x = matrix(8, 64)
    x[5] *= 2.0**-130
    noise = noisy(text, (8, 64))
    compiled = torch.compile(lambda value: straight_through(value, q, noise), fullgraph=True)
    leaf = x.clone().requires_grad_()
    y = compiled(leaf)
    assert torch.equal(y, fake_quantize(x, q, noise))
    y.sum().backward()
    assert leaf.grad is not None
    assert torch.equal(leaf.grad, torch.ones_like(x))


@traced
@pytest.mark.parametrize("function", [fake_quantize, straight_through])
def test_one_compiled_function(function: Callable[..., Tensor]) -> None:
    """Of several quantizers: each is right, equal ones share a graph, and a new one costs the old ones nothing."""
    x = matrix(8, 64)
    compiled = torch.compile(function, fullgraph=True)
    torch._dynamo.reset()  # it gives up after eight graphs of one function
    texts = ["INT4@32", "INT2@8", "E2M1@8", "E4M3@8", "NVFP4", "UINT3@16", "INT8@token:p90"]
    graphs = torch._dynamo.utils.counters["stats"]["unique_graphs"]
    for text in [*texts, *texts]:
        assert torch.equal(compiled(x, quantizer(text)), fake_quantize(x, quantizer(text))), text
    assert torch._dynamo.utils.counters["stats"]["unique_graphs"] == graphs + len(texts)


@traced
def test_learned_clip_compiles() -> None:
    q = quantizer("INT4@32")
    x = matrix().requires_grad_()
    gammas = [torch.tensor([0.8, 1.1], requires_grad=True) for _ in range(2)]
    outputs = [
        run(x, gamma)
        for run, gamma in zip(
            (
                lambda value, gamma: learned_clip(value, q, gamma),
                torch.compile(lambda value, gamma: learned_clip(value, q, gamma), fullgraph=True),
            ),
            gammas,
            strict=True,
        )
    ]
    assert torch.equal(outputs[0], outputs[1])
    for output in outputs:
        output.sum().backward()
    torch.testing.assert_close(gammas[0].grad, gammas[1].grad)


# --- round to nearest ---------------------------------------------------------------------------------------------


def test_rtn_counts_bits_and_errors() -> None:
    weight_OI = torch.randn(5, 64, generator=torch.Generator().manual_seed(0)) * 0.02
    rounded = round_to_nearest(weight_OI, quantizer("INT3@16"))
    assert torch.equal(rounded.weight, fake_quantize(weight_OI, quantizer("INT3@16")))
    assert rounded.bits_per_weight == 3 + 32 / 16
    error = (rounded.weight - weight_OI).double().square().sum().item()
    assert rounded.squared_error == pytest.approx(error)
    assert rounded.squared_norm == pytest.approx(weight_OI.double().square().sum().item())


def test_rtn_draws_its_noise_from_a_seed() -> None:
    weight_OI = torch.randn(5, 64, generator=torch.Generator().manual_seed(0))
    first, same, other = (round_to_nearest(weight_OI, quantizer("INT3@16:sr"), seed).weight for seed in (1, 1, 2))
    assert torch.equal(first, same)
    assert not torch.equal(first, other)
    scale = weight_OI.unflatten(-1, (-1, 16)).abs().amax(-1) / 3
    assert ((first - weight_OI).unflatten(-1, (-1, 16)).abs().amax(-1) <= scale * 1.000001).all()


def test_rtn_keeps_zeros_extremes_and_itself() -> None:
    weight_OI = torch.tensor([[0.0] * 8, [0.0] * 7 + [-3.0], [1e-30] * 8])
    rounded = round_to_nearest(weight_OI, quantizer("INT3@8")).weight
    assert torch.equal(rounded[0], weight_OI[0])
    assert rounded[1, 7] == -3.0
    assert torch.allclose(rounded[2], weight_OI[2], rtol=1e-6)
    assert torch.allclose(round_to_nearest(rounded, quantizer("INT3@8")).weight, rounded, rtol=1e-6)


def test_more_bits_and_finer_groups_lose_less() -> None:
    weight_OI = torch.randn(64, 256, generator=torch.Generator().manual_seed(0))
    errors = [round_to_nearest(weight_OI, quantizer(f"INT{bits}@channel")).squared_error for bits in BITS]
    assert errors == sorted(errors, reverse=True)
    groups = [round_to_nearest(weight_OI, quantizer(f"INT4@{g}")).squared_error for g in (8, 32, 128, "channel")]
    assert groups == sorted(groups)


# --- evaluation -------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def model() -> Decoder:
    torch.manual_seed(0)
    made = Decoder(SHAPE)
    made.initialise(1)
    with torch.no_grad():
        for parameter in made.parameters():
            if parameter.dim() == 2:
                parameter.mul_(5.0)
    return made


@pytest.fixture(scope="module")
def windows() -> torch.Tensor:
    tokens = np.random.Generator(np.random.PCG64(0)).integers(0, 64, 4000).astype(np.uint16)
    return validation_windows(tokens, context=16, wanted=640)


def test_windows_are_spread_over_the_text_and_overlap_by_their_target() -> None:
    tokens = np.arange(1001, dtype=np.uint16)
    windows_ST = validation_windows(tokens, context=10, wanted=200)
    assert windows_ST.shape == (20, 11)
    assert windows_ST[:, 0].tolist() == [50 * i for i in range(20)]
    assert len(validation_windows(tokens, context=10, wanted=10**6)) == 100
    with pytest.raises(BitlawError, match="give more text"):
        validation_windows(tokens[:15], context=10)


def test_losses_are_those_of_the_definition(model: Decoder, windows: torch.Tensor) -> None:
    losses_S = evaluator(model, compiled=False)(windows)
    with torch.no_grad():
        logits = model(windows[3:4, :-1])[0].double()
    expected = -torch.log_softmax(logits, -1)[torch.arange(16), windows[3, 1:]].mean().item()
    assert losses_S[3].item() == pytest.approx(expected, rel=1e-5)
    estimate = mean(losses_S)
    assert estimate.value == pytest.approx(losses_S.mean().item())
    assert estimate.se == pytest.approx(losses_S.numpy().std(ddof=1) / math.sqrt(40))


def test_pairing_removes_what_sequences_share() -> None:
    generator = torch.Generator().manual_seed(0)
    base_S = torch.randn(500, generator=generator).double()
    other_S = base_S + 0.1 + 0.01 * torch.randn(500, generator=generator).double()
    delta = paired(other_S, base_S)
    assert abs(delta.value - 0.1) < 4 * delta.se
    assert delta.se < 0.1 * mean(other_S).se
    with pytest.raises(BitlawError, match="same sequences"):
        paired(other_S, base_S[:-1])


def test_a_cell_is_measured_and_leaves_the_model_as_it_was(model: Decoder, windows: torch.Tensor) -> None:
    before = {name: matrix.clone() for name, matrix in model.state_dict().items()}
    losses = evaluator(model, compiled=False)
    base_S = losses(windows)
    rows = {bits: measure(model, Cell("rtn", f"INT{bits}", "32"), losses, windows, base_S) for bits in (2, 8)}
    assert all(torch.equal(before[name], value) for name, value in model.state_dict().items())
    assert abs(float(str(rows[8]["delta"]))) < abs(float(str(rows[2]["delta"])))
    assert rows[8]["bits_per_weight"] == 9.0
    assert 0 < float(str(rows[8]["relative_mse"])) < 1e-4 < float(str(rows[2]["relative_mse"])) < 1
    by_hand = Decoder(SHAPE)
    by_hand.load_state_dict(before)
    for matrix in block_matrices(by_hand).values():
        matrix.copy_(round_to_nearest(matrix, quantizer("INT2@32")).weight)
    quantized = mean(evaluator(by_hand, compiled=False)(windows)).value
    assert rows[2]["loss"] == pytest.approx(quantized, abs=1e-6)


@pytest.mark.parametrize(
    ("form", "group", "bits"),
    [
        *(("NF4", "32", 5.0), ("MXFP4", "32", 4.25), ("UINT4", "32", 5.125), ("BINARY", "channel", None)),
        ("NVFP4", "16", None),
    ],
)
def test_a_cell_of_any_format(model: Decoder, windows: torch.Tensor, form: str, group: str, bits: float | None) -> None:
    losses = evaluator(model, compiled=False)
    row = measure(model, Cell("rtn", form, group), losses, windows, losses(windows))
    assert 0 < float(str(row["relative_mse"])) < 1
    assert bits is None or row["bits_per_weight"] == pytest.approx(bits)


def test_only_the_blocks_matrices_are_quantized(model: Decoder) -> None:
    names = set(block_matrices(model))
    assert len(names) == 7 * SHAPE.n_layer
    assert sum(matrix.numel() for matrix in block_matrices(model).values()) == SHAPE.n_blocks


@pytest.mark.parametrize(
    ("cell", "sentence"),
    [
        (("gptqq", "INT4", "8"), "method 'gptqq' is unknown"),
        (("rtn", "INT9", "8"), "format 'INT9' is unknown"),
        (("rtn", "INT4", "many"), "group_size 'many'"),
        (("rtn", "MXFP4", "16"), "MXFP4 has groups of 32"),
        (("rtn", "BF16", "channel"), "16 bits or more"),
    ],
)
def test_bad_cells(cell: tuple[str, str, str], sentence: str) -> None:
    with pytest.raises(BitlawError, match=sentence):
        Cell(*cell)
