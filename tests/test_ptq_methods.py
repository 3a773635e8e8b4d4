"""GPTQ against a slow definition and against auto-gptq's core class; AWQ against its definition; calibration."""

import importlib.util

import pytest
import torch
from torch import Tensor, nn

from shared.errors import BitlawError
from shared.quantize import fake_quantize
from shared.quantize.autogptq_backend import autogptq
from shared.quantize.awq import ALPHAS, awq, clipped, input_scales
from shared.quantize.calibration import Calibration, gathering, output_error
from shared.quantize.gptq import gptq
from shared.quantize.quantizer import named_quantizer, scales
from shared.quantize.rtn import round_to_nearest

reference = pytest.mark.skipif(importlib.util.find_spec("auto_gptq") is None, reason="auto-gptq is not installed")


def layer(outputs: int, inputs: int, seed: int, rows: int = 2048) -> tuple[Tensor, Calibration]:
    """Normal weights, and correlated inputs of which some are far more active than others."""
    generator = torch.Generator().manual_seed(seed)
    weight_OI = torch.randn(outputs, inputs, generator=generator) * 0.02
    mixing_II = torch.randn(inputs, inputs, generator=generator) / inputs**0.5
    spread_I = torch.exp(0.7 * torch.randn(inputs, generator=generator))
    calibration = Calibration(inputs)
    for x_RI in (torch.randn(rows, inputs, generator=generator) @ mixing_II * spread_I).split(512):
        calibration.add(x_RI)
    return weight_OI, calibration


def by_definition(weight_OI: Tensor, hessian_II: Tensor, text: str, damping: float = 0.01) -> Tensor:
    """Section 3.1 in float64: round a column, correct the later ones by the inverse of what is left of H."""
    q = named_quantizer(text)
    size = q.group_size(weight_OI.shape[1])
    w_OI = weight_OI.double().clone()
    h_II = hessian_II.double() + damping * hessian_II.diagonal().mean() * torch.eye(len(hessian_II))
    out_OI = torch.zeros_like(w_OI)
    for i in range(w_OI.shape[1]):
        if i % size == 0:
            scale, zero = scales(w_OI[:, i : i + size].float().unsqueeze(1), q)
        inverse = torch.linalg.inv(h_II[i:, i:])
        ratio = w_OI[:, i] / scale.flatten()
        if zero is None:
            cast = q.format.cast(ratio.float()).double()
        else:
            cast = torch.clamp(torch.round(ratio) + zero.flatten(), 0, q.format.limit) - zero.flatten()
        out_OI[:, i] = cast * scale.flatten()
        error_O = (w_OI[:, i] - out_OI[:, i]) / inverse[0, 0]
        w_OI[:, i:] -= torch.outer(error_O, inverse[0])
    return out_OI


def agreement(one: Tensor, other: Tensor, weight: Tensor) -> float:
    return ((one - other).abs() <= 1e-5 * weight.abs().max()).float().mean().item()


@pytest.mark.parametrize("text", ["INT4@channel", "INT3@16", "UINT4@32", "E2M1@8", "NF4@32", "INT2@48:mse"])
def test_gptq_is_its_definition(text: str) -> None:
    """Also inside a block: groups of 8 to 48 in blocks of 32, with scales from corrected weights."""
    weight_OI, calibration = layer(24, 96, 0)
    expected = by_definition(weight_OI, calibration.hessian_II, text)
    rounded = gptq(weight_OI, calibration.hessian_II, named_quantizer(text), block=32)
    assert agreement(rounded.weight, expected, weight_OI) > 0.995
    assert output_error(weight_OI, rounded.weight, calibration.hessian_II) == pytest.approx(
        output_error(weight_OI, expected, calibration.hessian_II), rel=0.02
    )


@pytest.mark.parametrize("block", [1, 5, 32, 128, 1000])
def test_the_block_changes_the_work_and_not_the_result(block: int) -> None:
    weight_OI, calibration = layer(16, 96, 1)
    for text in ("INT4@16", "UINT3@48", "INT4@channel"):
        small = gptq(weight_OI, calibration.hessian_II, named_quantizer(text), block=block).weight
        plain = gptq(weight_OI, calibration.hessian_II, named_quantizer(text), block=96).weight
        assert agreement(small, plain, weight_OI) > 0.995


@pytest.mark.parametrize("act_order", [False, True])
@pytest.mark.parametrize(
    "text",
    ["INT4@channel", "INT4@tensor", "UINT4@32", "UINT3@tensor", "INT3@16:mse", "MXFP4", "NVFP4", "NF4@64", "BINARY@8"],
)
def test_unrelated_inputs_leave_round_to_nearest(text: str, act_order: bool) -> None:
    """With a diagonal H no column can make up for another."""
    weight_OI, _ = layer(8, 64, 2)
    diagonal = torch.diag(torch.rand(64, generator=torch.Generator().manual_seed(0)) + 0.1)
    q = named_quantizer(text)
    rounded = gptq(weight_OI, diagonal, q, act_order=act_order, block=32)
    if text == "BINARY@8":  # its scale is a mean: the order of the sum is another
        torch.testing.assert_close(rounded.weight, fake_quantize(weight_OI, q), rtol=1e-6, atol=0)
    else:
        assert torch.equal(rounded.weight, fake_quantize(weight_OI, q))
    assert rounded.bits_per_weight == q.bits_per_value(64, 8)
    assert rounded.squared_error == pytest.approx(round_to_nearest(weight_OI, q).squared_error)


@pytest.mark.parametrize("text", ["INT4@32", "INT3@channel", "UINT2@32", "E2M1@16", "NVFP4"])
def test_gptq_beats_rounding_and_order_helps(text: str) -> None:
    errors: dict[str, float] = {"rtn": 0.0, "gptq": 0.0, "ordered": 0.0}
    for seed in range(3):
        weight_OI, calibration = layer(64, 128, seed)
        hessian_II, q = calibration.hessian_II, named_quantizer(text)
        errors["rtn"] += output_error(weight_OI, round_to_nearest(weight_OI, q).weight, hessian_II)
        errors["gptq"] += output_error(weight_OI, gptq(weight_OI, hessian_II, q).weight, hessian_II)
        errors["ordered"] += output_error(weight_OI, gptq(weight_OI, hessian_II, q, act_order=True).weight, hessian_II)
    assert errors["ordered"] < errors["gptq"] < errors["rtn"]


def test_gptq_values_lie_on_the_grid() -> None:
    """Act-order keeps contiguous groups: scales of the untouched weight, values whole multiples of them."""
    weight_OI, calibration = layer(16, 64, 3)
    q = named_quantizer("INT4@16")
    rounded = gptq(weight_OI, calibration.hessian_II, q, act_order=True).weight
    scale, _ = scales(weight_OI.unflatten(-1, (-1, 16)), q)
    codes = rounded.unflatten(-1, (-1, 16)) / scale
    assert torch.allclose(codes, codes.round(), atol=1e-5)
    assert codes.abs().max() <= 7.00001


@reference
@pytest.mark.parametrize(("group", "block", "least"), [(128, 128, 0.999), (32, 32, 0.98), (-1, 128, 0.999)])
def test_gptq_agrees_with_autogptq(group: int, block: int, least: float) -> None:
    shares = []
    for seed in range(2):
        weight_OI, calibration = layer(256, 512, seed, 4096)
        theirs = autogptq(weight_OI, calibration.hessian_II, 4, group, symmetric=False, act_order=False, block=block)
        q = named_quantizer(f"UINT4@{512 if group == -1 else group}")
        ours = gptq(weight_OI, calibration.hessian_II, q, block=block)
        shares.append(agreement(ours.weight, theirs.weight, weight_OI))
        assert ours.bits_per_weight == theirs.bits_per_weight
    assert min(shares) >= least


def test_inputs_that_are_always_zero_get_zero_weights() -> None:
    weight_OI, calibration = layer(8, 64, 4)
    assert calibration.squares_II is not None
    calibration.squares_II[5] = 0.0
    calibration.squares_II[:, 5] = 0.0
    rounded = gptq(weight_OI, calibration.hessian_II, named_quantizer("INT8@32"))
    assert not rounded.weight[:, 5].any()
    assert rounded.weight[:, 6].any()
    assert not gptq(weight_OI, torch.zeros(64, 64), named_quantizer("INT8@32")).weight.any()


def test_few_rows_are_damped() -> None:
    """A Hessian of rank 10 of 64 still factors, and the result is no worse than rounding."""
    weight_OI, calibration = layer(16, 64, 5, rows=10)
    q = named_quantizer("INT3@channel")
    hessian_II = calibration.hessian_II
    ours = output_error(weight_OI, gptq(weight_OI, hessian_II, q).weight, hessian_II)
    assert ours < output_error(weight_OI, round_to_nearest(weight_OI, q).weight, hessian_II)
    with pytest.raises(BitlawError, match="singular even with damping 0"):
        gptq(weight_OI, hessian_II, q, damping=0.0)
    barely = hessian_II - 0.05 * hessian_II.diagonal().mean() * torch.eye(64)
    assert torch.isfinite(gptq(weight_OI, barely, q).weight).all()  # needs the second damping


def test_what_gptq_and_awq_refuse() -> None:
    weight_OI, calibration = layer(8, 64, 6)
    broken = weight_OI.clone()
    broken[0, 0] = torch.nan
    q = named_quantizer("INT4@32")
    with pytest.raises(BitlawError, match="the weight has NaN"):
        gptq(broken, calibration.hessian_II, q)
    with pytest.raises(BitlawError, match="the weight has NaN"):
        awq([broken], calibration, q)
    with pytest.raises(BitlawError, match="the calibration inputs have NaN"):
        gptq(weight_OI, calibration.hessian_II * torch.nan, q)
    with pytest.raises(BitlawError, match="is stochastic"):
        gptq(weight_OI, calibration.hessian_II, named_quantizer("INT4@channel:sr"))
    with pytest.raises(BitlawError, match="group_size 48 does not divide"):
        gptq(weight_OI, calibration.hessian_II, named_quantizer("INT4@48"))
    with pytest.raises(BitlawError, match="no calibration input"):
        awq([weight_OI], Calibration(64), q)
    with pytest.raises(BitlawError, match="have 32 values, the layer takes 64"):
        calibration.add(torch.ones(2, 32))


# --- AWQ ----------------------------------------------------------------------------------------------------------


def test_awq_takes_the_best_alpha() -> None:
    """The definition, with outputs on real inputs instead of second moments."""
    generator = torch.Generator().manual_seed(7)
    x_RI = torch.randn(500, 64, generator=generator) * torch.exp(torch.randn(64, generator=generator))
    weights = [torch.randn(16, 64, generator=generator) * 0.02 for _ in range(3)]
    calibration = Calibration(64)
    calibration.add(x_RI)
    q = named_quantizer("INT3@16")
    rounded, scale_I = awq(weights, calibration, q, clip=False)
    errors = []
    for alpha in ALPHAS:
        s_I = x_RI.abs().mean(0) ** alpha
        s_I = s_I / (s_I.max() * s_I.min()).sqrt()
        change = [(x_RI / s_I) @ fake_quantize(w * s_I, q).T - x_RI @ w.T for w in weights]
        errors.append(sum(c.double().square().sum().item() for c in change))
    best = ALPHAS[errors.index(min(errors))]
    assert 0 < best < 0.95
    torch.testing.assert_close(scale_I, input_scales(calibration.mean_abs_I, best))
    total = sum(output_error(w, r.weight, calibration.hessian_II) for w, r in zip(weights, rounded, strict=True))
    assert total * 500 == pytest.approx(min(errors), rel=1e-3)
    for w, r in zip(weights, rounded, strict=True):
        torch.testing.assert_close(r.weight, fake_quantize(w * scale_I, q) / scale_I)
        assert r.bits_per_weight == 3 + 32 / 16


@pytest.mark.parametrize("text", ["INT3@16", "UINT3@32", "INT4@channel", "E2M1@16", "MXFP4"])
def test_awq_and_its_clip_never_lose_to_rounding(text: str) -> None:
    """Alpha 0 and ratio 1 are in the grids."""
    weight_OI, calibration = layer(32, 128, 8)
    hessian_II, q = calibration.hessian_II, named_quantizer(text)
    plain = output_error(weight_OI, fake_quantize(weight_OI, q), hessian_II)
    (scaled,), _ = awq([weight_OI], calibration, q, clip=False)
    assert output_error(weight_OI, scaled.weight, hessian_II) <= plain * (1 + 1e-6)
    separate = torch.block_diag(*[hessian_II[k : k + 16, k : k + 16] for k in range(0, 128, 16)])
    if text == "INT3@16":  # groups are searched alone, so only with unrelated groups the sum must fall
        narrow = fake_quantize(clipped(weight_OI, separate, q), q)
        wide = fake_quantize(weight_OI, q)
        assert output_error(weight_OI, narrow, separate) < output_error(weight_OI, wide, separate)


def test_layers_gather_their_inputs() -> None:
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(8, 16), nn.ReLU(), nn.Linear(16, 4))
    x = torch.randn(3, 5, 8)
    with gathering({"0": model[0], "2": model[2]}, {"0": 8, "2": 16}) as gathered:
        model(x)
        model(x)
    model(x)  # no longer counted
    hidden = torch.relu(model[0](x)).reshape(-1, 16)
    assert gathered["2"].rows == 30
    torch.testing.assert_close(gathered["2"].hessian_II, hidden.T @ hidden / 15)
    torch.testing.assert_close(gathered["0"].mean_abs_I, x.reshape(-1, 8).abs().mean(0))
