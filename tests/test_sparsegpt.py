"""SparseGPT against OBS in float64 with explicit inverses; magnitude pruning; what both cost and refuse."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from shared.errors import BitlawError
from shared.quantize import fake_quantize
from shared.quantize.calibration import Calibration, output_error
from shared.quantize.gptq import gptq
from shared.quantize.quantizer import named_quantizer, scales
from shared.quantize.sparsegpt import magnitude, sparsegpt

CASES = [("unstructured", 0.5), ("unstructured", 0.8), ("2:4", 0.5)]


def problem(outputs: int, inputs: int, seed: int, rows: int = 1024) -> tuple[Tensor, Tensor]:
    """Normal weights, and the second moments of correlated inputs of which some are far more active than others."""
    generator = torch.Generator().manual_seed(seed)
    weight_OI = torch.randn(outputs, inputs, generator=generator) * 0.02
    mixing_II = torch.randn(inputs, inputs, generator=generator) / inputs**0.5
    spread_I = torch.exp(0.7 * torch.randn(inputs, generator=generator))
    calibration = Calibration(inputs)
    calibration.add(torch.randn(rows, inputs, generator=generator) @ mixing_II * spread_I)
    return weight_OI, calibration.hessian_II


def damped(hessian_II: Tensor) -> Tensor:
    return hessian_II.double() + 0.01 * hessian_II.double().diagonal().mean() * torch.eye(len(hessian_II))


def by_definition(weight_OI: Tensor, hessian_II: Tensor, share: float, span: int, text: str | None) -> Tensor:
    """Algorithm 1 in float64 without its shortcuts: one column at a time, each time the inverse of what is left of H.

    A span of 4 is 2:4; else the columns among which the mask is chosen.
    """
    w_OI, h_II = weight_OI.double().clone(), damped(hessian_II)
    outputs, inputs = w_OI.shape
    inverses = [torch.linalg.inv(h_II[i:, i:]) for i in range(inputs)]
    pruned_OI = torch.zeros(outputs, inputs, dtype=torch.bool)
    out_OI = torch.zeros_like(w_OI)
    q = named_quantizer(text) if text else None
    for i in range(inputs):
        if i % span == 0:
            last = min(i + span, inputs)
            score_OE = w_OI[:, i:last] ** 2 / torch.stack([inverses[j][0, 0] for j in range(i, last)])
            if span == 4:
                pruned_OI[:, i:last].scatter_(1, score_OE.argsort(1)[:, :2], True)
            else:
                zeros = int(share * outputs * last) - int(share * outputs * i)
                chosen = torch.zeros(score_OE.numel(), dtype=torch.bool)
                chosen[score_OE.flatten().argsort()[:zeros]] = True
                pruned_OI[:, i:last] = chosen.view(score_OE.shape)
        out_OI[:, i] = w_OI[:, i]
        if q:
            size = q.group_size(inputs)
            if i % size == 0:
                scale, zero = scales(w_OI[:, i : i + size].float().unsqueeze(1), q)
            shift = 0.0 if zero is None else zero.flatten()
            cast = (w_OI[:, i] / scale.flatten()).float()
            cast = q.format.cast(cast) if zero is None else (cast.round() + shift).clamp(0, q.format.limit) - shift
            out_OI[:, i] = cast.double() * scale.flatten()
        out_OI[pruned_OI[:, i], i] = 0.0
        w_OI[:, i:] -= torch.outer((w_OI[:, i] - out_OI[:, i]) / inverses[i][0, 0], inverses[i][0])
    return out_OI


@pytest.mark.parametrize("text", [None, "INT4@channel", "INT3@8", "UINT4@6", "NF4@24"])
@pytest.mark.parametrize(("share", "span"), [(0.5, 24), (0.3, 7), (0.9, 128), (0.5, 4)])
def test_sparsegpt_is_its_definition(text: str | None, share: float, span: int) -> None:
    """In blocks of 10 columns, so that spans and groups lie within blocks and across their borders."""
    for seed in range(3):
        weight_OI, hessian_II = problem(5, 24, seed)
        expected = by_definition(weight_OI, hessian_II, share, span, text)
        pattern = "2:4" if span == 4 else "unstructured"
        q = named_quantizer(text) if text else None
        made = sparsegpt(weight_OI, hessian_II, share, pattern, q, block=10, mask_block=span)
        torch.testing.assert_close(made.weight, expected.float(), rtol=1e-3, atol=1e-6)


def test_one_pruned_weight_is_the_cheapest_one() -> None:
    """OBS without its formulas: for each candidate solve for the later weights, and take the least error."""
    for seed in range(5):
        weight_OI, hessian_II = problem(1, 8, seed)
        h_II, w_I = damped(hessian_II), weight_OI[0].double()
        found: list[tuple[float, Tensor]] = []
        for j in range(8):
            change_I = torch.zeros(8, dtype=torch.float64)
            change_I[j] = -w_I[j]
            change_I[j + 1 :] = torch.linalg.solve(h_II[j + 1 :, j + 1 :], h_II[j + 1 :, j] * w_I[j])
            found.append(((change_I @ h_II @ change_I).item(), w_I + change_I))
        best = min(found, key=lambda pair: pair[0])[1]
        made = sparsegpt(weight_OI, hessian_II, 1 / 8).weight[0]
        torch.testing.assert_close(made, best.float(), rtol=1e-4, atol=1e-7)
        assert int((made == 0).sum()) == 1


@pytest.mark.parametrize("block", [1, 5, 10, 24, 1000])
@pytest.mark.parametrize(("pattern", "share"), CASES)
def test_the_block_changes_the_work_and_not_the_result(block: int, pattern: str, share: float) -> None:
    weight_OI, hessian_II = problem(8, 72, 1)
    for text in (None, "INT4@6", "INT4@channel"):
        q = named_quantizer(text) if text else None
        one = sparsegpt(weight_OI, hessian_II, share, pattern, q, block=block, mask_block=36)
        other = sparsegpt(weight_OI, hessian_II, share, pattern, q, block=72, mask_block=36)
        torch.testing.assert_close(one.weight, other.weight, rtol=1e-3, atol=1e-5)


@settings(max_examples=25, deadline=None)
@given(st.integers(1, 9), st.integers(1, 40), st.floats(0, 1, exclude_max=True), st.integers(1, 50), st.integers(0, 99))
def test_the_share_of_zeros_is_exact(outputs: int, inputs: int, share: float, span: int, seed: int) -> None:
    weight_OI, hessian_II = problem(outputs, inputs, seed, rows=64)
    for made in (sparsegpt(weight_OI, hessian_II, share, mask_block=span), magnitude(weight_OI, share)):
        assert int((made.weight == 0).sum()) == int(share * outputs * inputs)


@pytest.mark.parametrize("text", [None, "NF4@16", "INT8@channel"])
def test_two_of_every_four_are_zero(text: str | None) -> None:
    weight_OI, hessian_II = problem(16, 144, 2)
    q = named_quantizer(text) if text else None
    for made in (sparsegpt(weight_OI, hessian_II, 0.5, "2:4", q), magnitude(weight_OI, 0.5, "2:4", q)):
        zeros = (made.weight.unflatten(1, (-1, 4)) == 0).sum(-1)
        # A kept weight may round to zero as well.
        assert (zeros == 2).all() if text is None else (zeros >= 2).all()
        assert zeros.float().mean() < 2.3


def test_shares_are_spread_freely_within_a_span_only() -> None:
    weight_OI, hessian_II = problem(16, 256, 3)
    made = sparsegpt(weight_OI, hessian_II, 0.5).weight
    for half_OE in (made[:, :128], made[:, 128:]):
        assert (half_OE == 0).float().mean() == 0.5
    assert (made == 0).float().mean(0).std() > 0.1


@pytest.mark.parametrize("text", [None, "INT4@16", "INT3@channel", "NVFP4"])
@pytest.mark.parametrize(("pattern", "share"), CASES)
def test_sparsegpt_beats_magnitude_and_one_pass_beats_two(pattern: str, share: float, text: str | None) -> None:
    q = named_quantizer(text) if text else None
    errors = {"magnitude": 0.0, "sparsegpt": 0.0, "then rounded": 0.0}
    for seed in range(4):
        weight_OI, hessian_II = problem(32, 160, seed)
        pruned_OI = sparsegpt(weight_OI, hessian_II, share, pattern).weight
        made = {
            "magnitude": magnitude(weight_OI, share, pattern, q).weight,
            "sparsegpt": sparsegpt(weight_OI, hessian_II, share, pattern, q).weight,
            "then rounded": fake_quantize(pruned_OI, q) if q else pruned_OI,
        }
        for name, made_OI in made.items():
            errors[name] += output_error(weight_OI, made_OI, hessian_II)
    assert errors["sparsegpt"] < errors["magnitude"]
    # At 80 % and 4 bits rounding adds a few percent only, and either order may win.
    if text and share == 0.5:
        assert errors["sparsegpt"] < errors["then rounded"]


@pytest.mark.parametrize(
    "text",
    ["INT4@channel", "INT4@tensor", "UINT4@32", "UINT3@tensor", "INT3@16:mse", "NVFP4", "NF4@80", "INT4@80:away"],
)
def test_a_share_of_zero_is_gptq(text: str) -> None:
    weight_OI, hessian_II = problem(16, 320, 4)
    q = named_quantizer(text)
    ours, theirs = sparsegpt(weight_OI, hessian_II, 0.0, quantizer=q), gptq(weight_OI, hessian_II, q)
    assert torch.equal(ours.weight, theirs.weight)
    assert (ours.bits_per_weight, ours.squared_error, ours.squared_norm) == (
        theirs.bits_per_weight,
        theirs.squared_error,
        theirs.squared_norm,
    )
    assert not torch.equal(sparsegpt(weight_OI, hessian_II, 0.1, quantizer=q).weight, theirs.weight)
    plain = sparsegpt(weight_OI, hessian_II, 0.0)
    assert torch.equal(plain.weight, weight_OI)
    assert plain.bits_per_weight == 16


@pytest.mark.parametrize(("pattern", "share"), CASES)
def test_joint_values_lie_on_the_grid(pattern: str, share: float) -> None:
    """The channel's scales are those of the untouched weight: its first column comes before any correction."""
    weight_OI, hessian_II = problem(16, 64, 5)
    q = named_quantizer("INT4@channel")
    scale_O1 = scales(weight_OI.unsqueeze(1), q)[0].squeeze(1)
    codes_OI = sparsegpt(weight_OI, hessian_II, share, pattern, q).weight / scale_O1
    assert torch.allclose(codes_OI, codes_OI.round(), atol=1e-5)
    assert codes_OI.abs().max() <= 7.00001
    assert len(codes_OI.round().unique()) > 10
    # The two levels of BINARY stay two beside the zeros of the mask.
    signs_OI = sparsegpt(weight_OI, hessian_II, share, pattern, named_quantizer("BINARY@channel")).weight
    sizes_O = weight_OI.abs().mean(1)
    kept_OI = signs_OI != 0
    torch.testing.assert_close(signs_OI.abs()[kept_OI], sizes_O.unsqueeze(1).expand_as(signs_OI)[kept_OI])
    assert int((~kept_OI).sum()) == int(share * 16 * 64)


def test_magnitude_is_its_definition() -> None:
    weight_OI = torch.tensor([[0.1, -0.4, 0.3, -0.2], [0.9, 0.8, -0.7, 0.6]])
    assert magnitude(weight_OI, 0.5).weight.tolist()[0] == [0.0, 0.0, 0.0, 0.0]
    assert magnitude(weight_OI, 0.5, "2:4").weight.eq(torch.tensor([[0, -0.4, 0.3, 0], [0.9, 0.8, 0, 0]])).all()
    q = named_quantizer("INT2@channel")
    rounded = magnitude(weight_OI, 0.5, "2:4", q)
    torch.testing.assert_close(rounded.weight, torch.tensor([[0, -0.4, 0.4, 0], [0.9, 0.9, 0, 0]]))
    assert rounded.squared_error == pytest.approx(0.1**2 * 2 + 0.2**2 + 0.1**2 + 0.7**2 + 0.6**2)
    stochastic = named_quantizer("INT4@channel:sr")
    one, other = (magnitude(weight_OI, 0.5, "2:4", stochastic, seed).weight for seed in (0, 0))
    assert torch.equal(one, other)


def test_bits_count_kept_weights_scales_and_the_mask() -> None:
    weight_OI, hessian_II = problem(8, 128, 6)
    for text, share, pattern, bits in (
        (None, 0.5, "unstructured", 8 + 1),
        (None, 0.5, "2:4", 8 + 1),
        (None, 0.75, "unstructured", 4 + 1),
        ("INT4@32", 0.5, "2:4", 2 + 1 + 32 / 32),
        ("INT4@32", 0.25, "unstructured", 3 + 1 + 32 / 32),
        ("UINT3@64", 0.5, "unstructured", 1.5 + 1 + 35 / 64),
        ("MXFP4", 0.5, "2:4", 2 + 1 + 8 / 32),
        ("INT4@channel", 0.0, "unstructured", 4 + 32 / 128),
    ):
        q = named_quantizer(text) if text else None
        for made in (sparsegpt(weight_OI, hessian_II, share, pattern, q), magnitude(weight_OI, share, pattern, q)):
            assert made.bits_per_weight == pytest.approx(bits, abs=1e-12)


def test_inputs_that_are_always_zero_go_first() -> None:
    weight_OI, hessian_II = problem(8, 64, 7)
    hessian_II[:32] = 0.0
    hessian_II[:, :32] = 0.0
    made = sparsegpt(weight_OI, hessian_II, 0.5)
    assert not made.weight[:, :32].any()
    torch.testing.assert_close(made.weight[:, 32:], weight_OI[:, 32:])


def test_what_is_refused() -> None:
    weight_OI, hessian_II = problem(8, 64, 8)
    q = named_quantizer("INT4@32")
    for share in (-0.1, 1.0, 1.5, float("nan")):
        with pytest.raises(BitlawError, match=r"must lie in \[0, 1\)"):
            sparsegpt(weight_OI, hessian_II, share)
        with pytest.raises(BitlawError, match=r"must lie in \[0, 1\)"):
            magnitude(weight_OI, share)
    broken_OI = weight_OI.clone()
    broken_OI[0, 0] = torch.nan
    odd_OI, odd_II = problem(8, 30, 8)
    for prune in (lambda *a: sparsegpt(a[0], a[1], *a[2:]), lambda *a: magnitude(a[0], *a[2:])):
        with pytest.raises(BitlawError, match="did you mean 'unstructured'"):
            prune(weight_OI, hessian_II, 0.5, "unstructuredd")
        with pytest.raises(BitlawError, match="2:4 keeps half of the weights"):
            prune(weight_OI, hessian_II, 0.4, "2:4")
        with pytest.raises(BitlawError, match="needs a multiple of 4 inputs, a matrix has 30"):
            prune(odd_OI, odd_II, 0.5, "2:4")
        with pytest.raises(BitlawError, match="the weight has NaN"):
            prune(broken_OI, hessian_II, 0.5)
        with pytest.raises(BitlawError, match="group_size 48 does not divide"):
            prune(weight_OI, hessian_II, 0.5, "unstructured", named_quantizer("INT4@48"))
    with pytest.raises(BitlawError, match="the calibration inputs have NaN"):
        sparsegpt(weight_OI, hessian_II * torch.nan, 0.5)
    with pytest.raises(BitlawError, match="is stochastic"):
        sparsegpt(weight_OI, hessian_II, 0.5, quantizer=named_quantizer("INT4@32:sr"))
    _, singular_II = problem(8, 64, 8, rows=10)
    with pytest.raises(BitlawError, match="singular even with damping 0"):
        sparsegpt(weight_OI, singular_II, 0.5, quantizer=q, damping=0.0)
    assert torch.isfinite(sparsegpt(weight_OI, singular_II, 0.5, quantizer=q).weight).all()
