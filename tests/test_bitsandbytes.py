"""bitsandbytes' NF4 and FP4 against our formats; LLM.int8() against its definition and against the library's layer."""

import importlib.util
import sys
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from shared.errors import BitlawError
from shared.formats import format_named
from shared.model import Decoder, Shape
from shared.quantize import fake_quantize
from shared.quantize.bitsandbytes_backend import (
    BLOCKS,
    KINDS,
    LLMInt8Linear,
    LLMInt8Product,
    four_bit,
    functional,
    llm_int8_linear,
    llm_int8_weight,
)
from shared.quantize.quantizer import named_quantizer
from shared.quantize.rtn import round_to_nearest

installed = pytest.mark.skipif(importlib.util.find_spec("bitsandbytes") is None, reason="bitsandbytes is not installed")


def normal(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


# --- NF4 and FP4 --------------------------------------------------------------------------------------------------


@installed
@pytest.mark.parametrize("block", BLOCKS)
@pytest.mark.parametrize("kind", KINDS)
def test_four_bits_equal_our_formats(kind: str, block: int) -> None:
    q = named_quantizer(f"{kind.upper()}@{block}")
    weight_OI = normal(16, 8192) * torch.exp2(normal(16, 1, seed=1) * 8)  # rows of very different sizes
    weight_OI[3] = 0.0
    made = four_bit(weight_OI, kind, block)
    assert torch.equal(made.weight, fake_quantize(weight_OI, q))
    assert made.bits_per_weight == q.bits_per_value(8192)
    assert made.squared_error == round_to_nearest(weight_OI, q).squared_error


@installed
@pytest.mark.parametrize("kind", KINDS)
def test_four_bits_keep_every_code_and_round_ties_as_we_do(kind: str) -> None:
    levels = torch.tensor(format_named(kind.upper()).levels)
    middles = (levels[1:] + levels[:-1]) / 2
    near = torch.cat((middles, *(torch.nextafter(middles, torch.full_like(middles, end)) for end in (-2.0, 2.0))))
    row = torch.zeros(64)
    row[: len(levels)] = levels
    row[16 : 16 + len(near)] = near
    for size in (1.0, 4.0, 2.0**-20):
        made = four_bit((row * size).unsqueeze(0), kind).weight[0]
        assert torch.equal(made[: len(levels)], levels * size)
        assert torch.equal(made, fake_quantize(row * size, named_quantizer(f"{kind.upper()}@64")))


@installed
@pytest.mark.parametrize("shape", [(5, 22), (5, 21), (1, 7)])
@pytest.mark.parametrize("block", [32, 2048])
def test_blocks_run_through_the_rows_and_the_last_may_be_short(shape: tuple[int, int], block: int) -> None:
    weight_OI = normal(*shape)
    made = four_bit(weight_OI, "nf4", block)
    count = weight_OI.numel()
    flat = nn.functional.pad(weight_OI.flatten(), (0, -count % block))
    expected = fake_quantize(flat, named_quantizer(f"NF4@{block}"))[:count].view(shape)
    torch.testing.assert_close(made.weight, expected, rtol=1e-6, atol=0)
    assert made.bits_per_weight == pytest.approx(4 + 32 * -(-count // block) / count)


@installed
@pytest.mark.parametrize("kind", KINDS)
def test_double_quantization_is_its_definition(kind: str) -> None:
    """Codes by the true scales; these less their mean in the nearest of 256 values, per 256 of them.

    On the CPU the library looks the nearest value up on a grid of 2^-15, so decisions that close are left out.
    """
    weight_OI = normal(128, 512) * (1 + normal(128, 1, seed=1).abs())
    blocks_N = weight_OI.view(-1, 64)
    largest_N = blocks_N.abs().amax(1)
    centred = (largest_N - largest_N.mean()).view(-1, 256)
    over_M1 = centred.abs().amax(1, keepdim=True)
    code_K = functional().create_dynamic_map()
    nearest = ((centred / over_M1).unsqueeze(-1) - code_K).abs().argmin(-1)
    middles = (code_K[1:] + code_K[:-1]) / 2
    clear_N = ((centred / over_M1).unsqueeze(-1) - middles).abs().amin(-1).flatten() > 2.0**-15
    assert clear_N.float().mean() > 0.98
    scales_N = (code_K[nearest] * over_M1).flatten() + largest_N.mean()
    units = fake_quantize(weight_OI, named_quantizer(f"{kind.upper()}@64")).view(-1, 64) / largest_N.unsqueeze(1)
    made = four_bit(weight_OI, kind, 64, double_quantization=True)
    expected = units * scales_N.unsqueeze(1)
    torch.testing.assert_close(made.weight.view(-1, 64)[clear_N], expected[clear_N], rtol=1e-5, atol=1e-7)
    count = 128 * 512
    assert made.bits_per_weight == 4 + (8 * count / 64 + 32 * count / 64 / 256 + 32) / count
    assert four_bit(weight_OI, kind).bits_per_weight - made.bits_per_weight > 0.37
    assert not torch.equal(made.weight, four_bit(weight_OI, kind).weight)


# --- LLM.int8() ---------------------------------------------------------------------------------------------------


def outlying(rows: int, inputs: int, columns: tuple[int, ...] = (3, 17)) -> Tensor:
    """Normal activations, and in a few columns one token in four about 20 times as large."""
    x_RI = normal(rows, inputs, seed=2)
    for column in columns:
        x_RI[column % 4 :: 4, column] += 20.0
    return x_RI


def by_definition(x_RI: Tensor, weight_OI: Tensor, threshold: float) -> Tensor:
    """INT8 per token and output but for the outlier columns, which stay FP16; products in float64."""
    x_RI, weight_OI = x_RI.half().float(), weight_OI.half().float()
    over_RI = x_RI.abs() >= (threshold or torch.inf)
    outlier_I = over_RI.any(0)
    stored_OI = int8_by_definition(weight_OI, weight_OI)
    inner_RI = int8_by_definition(x_RI.masked_fill(outlier_I, 0.0), x_RI.masked_fill(over_RI, 0.0))
    return inner_RI @ stored_OI.T + x_RI[:, outlier_I].double() @ stored_OI[:, outlier_I].T


def int8_by_definition(x_RI: Tensor, scaling_RI: Tensor) -> Tensor:
    """Codes in FP32, in this order: FP16 numbers often fall on ties."""
    largest_R1 = scaling_RI.abs().amax(1, keepdim=True)
    return torch.round(x_RI * (127 / largest_R1)).double() * largest_R1.double() / 127


def close(one: Tensor, other: Tensor) -> None:
    """Within 1e-4 of the largest: the library's 127^-2 on the CPU, 6.200124e-5, is 1.8e-5 too large."""
    assert (one - other).abs().max() <= 1e-4 * other.abs().max()


@installed
@pytest.mark.parametrize("threshold", [0.0, 2.5, 6.0, 1e4, float("inf")])
def test_llm_int8_is_its_definition(threshold: float) -> None:
    weight_OI = normal(24, 40) * 0.1
    for rows in (1, 2, 50):
        x_RI = outlying(rows, 40)
        out_RO = llm_int8_linear(x_RI, weight_OI, threshold)
        close(out_RO.double(), by_definition(x_RI, weight_OI, threshold))


@installed
@pytest.mark.parametrize("threshold", [2.5, 6.0, float("inf")])
def test_llm_int8_is_the_librarys_layer_in_evaluation(threshold: float) -> None:
    """Bit for bit in FP16, with a bias. In training mode their layer does something else on the CPU."""
    functional()
    library: Any = importlib.import_module("bitsandbytes")
    layer = nn.Linear(40, 24)
    nn.init.normal_(layer.weight, generator=torch.Generator().manual_seed(0))
    theirs = library.nn.Linear8bitLt(40, 24, has_fp16_weights=False, threshold=threshold)
    theirs.load_state_dict(layer.state_dict())
    theirs = theirs.to("cpu").eval()
    x = outlying(12, 40).half().view(3, 4, 40)
    with torch.no_grad():
        expected = theirs(x)
        trained = theirs.train()(x)
    actual = llm_int8_linear(x, layer.weight, threshold, layer.bias)
    assert actual.dtype == torch.float16
    assert torch.equal(actual, expected)
    assert not torch.equal(trained, expected)


@installed
def test_outliers_stay_in_16_bits() -> None:
    """They would spoil the scale of their token, and all tokens of the call take their columns in 16 bits."""
    weight_OI, x_RI = normal(24, 40), outlying(50, 40)
    exact = x_RI @ weight_OI.T
    error = {t: (llm_int8_linear(x_RI, weight_OI, t) - exact).square().mean().item() for t in (0.0, 1e-6, 6.0)}
    assert error[1e-6] < error[6.0] < 0.5 * error[0.0]
    weights_only = x_RI.half().float() @ llm_int8_weight(weight_OI).weight.T
    close(llm_int8_linear(x_RI, weight_OI, 1e-6), weights_only)
    # Token 2 has no outlier of its own, and depends on who keeps it company.
    alone = llm_int8_linear(x_RI[2:3], weight_OI)
    assert x_RI[2].abs().max() < 6
    assert not torch.allclose(alone, llm_int8_linear(x_RI, weight_OI)[2:3], rtol=1e-4)
    assert torch.equal(alone, llm_int8_linear(x_RI[2:3], weight_OI, 0.0))


@installed
def test_without_outliers_a_threshold_changes_nothing() -> None:
    weight_OI, x_RI = normal(24, 40), outlying(50, 40)
    plain = llm_int8_linear(x_RI, weight_OI, 0.0)
    assert torch.equal(plain, llm_int8_linear(x_RI, weight_OI, float("inf")))
    assert not torch.equal(plain, llm_int8_linear(x_RI, weight_OI))
    close(plain, fake_quantize(x_RI.half(), named_quantizer("INT8@token")) @ llm_int8_weight(weight_OI).weight.T)


@installed
@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16])
def test_the_layer_computes_the_function(dtype: torch.dtype) -> None:
    layer = nn.Linear(40, 24)
    x = outlying(12, 40).to(dtype).view(2, 6, 40)
    before = x.clone()
    ours = LLMInt8Linear(layer.weight, layer.bias)
    out = ours(x)
    assert (out.dtype, out.shape) == (dtype, (2, 6, 24))
    assert torch.equal(out, llm_int8_linear(x, layer.weight, bias_O=layer.bias))
    assert torch.equal(x, before)
    assert ours.codes_OI.dtype == torch.int8
    assert torch.equal(ours.stored_OI, llm_int8_weight(layer.weight).weight)
    assert ours.bits_per_weight == llm_int8_weight(layer.weight).bits_per_weight == 8 + 32 / 40
    other = LLMInt8Linear(torch.zeros(24, 40), torch.zeros(24))
    assert not other(x).any()
    other.load_state_dict(ours.state_dict())
    assert torch.equal(other(x), out)


@installed
def test_a_model_runs_with_layers_replaced() -> None:
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(32, 64), nn.ReLU(), nn.Linear(64, 8, bias=False))
    x = normal(5, 7, 32)
    expected = model(x)
    for name, layer in list(model.named_children()):
        if isinstance(layer, nn.Linear):
            setattr(model, name, LLMInt8Linear(layer.weight, layer.bias))
    assert not list(model.parameters())
    difference = (model(x) - expected).norm() / expected.norm()
    assert 1e-4 < difference < 0.02


@installed
def test_our_decoder_runs_with_products_replaced() -> None:
    model = Decoder(Shape(2, 64, 96, vocabulary=128, context=16)).eval()
    model.initialise(0)
    tokens = torch.randint(128, (2, 16), generator=torch.Generator().manual_seed(0))
    x = outlying(12, 64).view(2, 6, 64)
    block: Any = model.layers[0]
    weights = [block.q_proj.weight, block.k_proj.weight]
    alone = torch.cat([llm_int8_linear(x, weight) for weight in weights], -1)
    close(LLMInt8Product()(x, weights), alone)
    with torch.no_grad():
        expected = model(tokens)
        for block in model.layers:
            for name in ("qkv", "o", "gate_up", "down"):
                block.casts[name] = LLMInt8Product()
        both = model(tokens)
        for block in model.layers:
            block.casts.clear()
            for layer in block.children():
                if hasattr(layer, "weight") and layer.weight.dim() == 2:
                    layer.weight.copy_(llm_int8_weight(layer.weight).weight)
        weights_only = model(tokens)
    error = [((made - expected).norm() / expected.norm()).item() for made in (both, weights_only)]
    assert 1e-4 < error[1] < error[0] < 0.02
    # A layer in a block's place is not called there, so it must not look like a plain one.
    model.layers[0].o_proj = LLMInt8Linear(torch.zeros(64, 64))
    with pytest.raises(AttributeError, match="weight"):
        model(tokens)


@installed
def test_weights_are_int8_per_output() -> None:
    weight_OI = normal(24, 40).half().float()
    made = llm_int8_weight(weight_OI)
    torch.testing.assert_close(made.weight, fake_quantize(weight_OI, named_quantizer("INT8@channel")))
    assert made.squared_error == pytest.approx((made.weight - weight_OI).square().sum().item(), rel=1e-5)


# --- What is refused ----------------------------------------------------------------------------------------------


@installed
def test_what_is_refused() -> None:
    weight_OI, x_RI = normal(8, 64), normal(3, 64)
    broken_OI = weight_OI.clone()
    broken_OI[0, 0] = torch.nan
    with pytest.raises(BitlawError, match="'nf5' is unknown, did you mean 'nf4'"):
        four_bit(weight_OI, "nf5")
    with pytest.raises(BitlawError, match="no blocks of 48: use 32, 64"):
        four_bit(weight_OI, block=48)
    for call in (four_bit, llm_int8_weight, LLMInt8Linear):
        with pytest.raises(BitlawError, match="the weight has NaN"):
            call(broken_OI)
    with pytest.raises(BitlawError, match=r"too large values for torch\.float16"):
        llm_int8_weight(weight_OI * 1e6)
    for threshold in (-1.0, float("nan")):
        with pytest.raises(BitlawError, match="threshold is"):
            llm_int8_linear(x_RI, weight_OI, threshold)
        with pytest.raises(BitlawError, match="threshold is"):
            LLMInt8Linear(weight_OI, threshold=threshold)
        with pytest.raises(BitlawError, match="threshold is"):
            LLMInt8Product(threshold)
    with pytest.raises(BitlawError, match="have 32 values, the layer takes 64"):
        llm_int8_linear(x_RI[:, :32], weight_OI)
    with pytest.raises(BitlawError, match="a layer's input has NaN"):
        llm_int8_linear(x_RI * 1e5, weight_OI)


def test_without_bitsandbytes_a_sentence_says_so(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("bitsandbytes", "bitsandbytes.functional"):
        monkeypatch.setitem(sys.modules, name, None)
    for call in (lambda: four_bit(normal(4, 64)), lambda: llm_int8_linear(normal(2, 8), normal(4, 8))):
        with pytest.raises(BitlawError, match=r"cannot be imported .*`pip install bitsandbytes=="):
            call()
