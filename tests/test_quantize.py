"""Integer formats against their oracle, round-to-nearest, and paired evaluation."""

import math

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from shared.errors import BitlawError
from shared.evaluate.losses import evaluator, mean, paired, validation_windows
from shared.evaluate.ptq import Cell, block_matrices, measure
from shared.formats.integer import Integer, integer, oracle
from shared.model import Decoder, Shape
from shared.quantize.rtn import round_to_nearest

BITS = range(2, 9)
SHAPE = Shape(n_layer=1, d_model=64, d_ff=96, vocabulary=64, context=16)
finite = st.floats(-400, 400, width=32)


@given(x=finite, bits=st.sampled_from(list(BITS)))
def test_cast_is_the_oracle(x: float, bits: int) -> None:
    form = Integer(bits)
    assert form.cast(torch.tensor(x)).item() == oracle(x, form)


@pytest.mark.parametrize("bits", BITS)
def test_every_value_and_every_tie(bits: int) -> None:
    form = Integer(bits)
    values = torch.arange(-form.limit, form.limit + 1).float()
    assert len(values) == 2**bits - 1
    assert torch.equal(form.cast(values), values)
    for tie in (values[:-1] + 0.5).tolist():
        cast = form.cast(torch.tensor(tie)).item()
        assert cast == oracle(tie, form)
        assert cast % 2 == 0


@given(x=finite, y=finite, bits=st.sampled_from(list(BITS)))
def test_cast_is_odd_monotone_and_idempotent(x: float, y: float, bits: int) -> None:
    form = Integer(bits)
    cast_x, cast_y, cast_minus = (form.cast(torch.tensor(v)) for v in (x, y, -x))
    assert cast_minus == -cast_x
    assert form.cast(cast_x) == cast_x
    assert (cast_x <= cast_y) or x > y


def test_names() -> None:
    assert [integer(f"INT{bits}").bits for bits in BITS] == list(BITS)
    for wrong in ("INT1", "INT9", "int4", "INT44", "FP4"):
        with pytest.raises(BitlawError, match="is unknown here"):
            integer(wrong)


@pytest.mark.parametrize("group_size", [None, 8, 16, 32, 64])
@pytest.mark.parametrize("bits", BITS)
def test_rtn_is_the_oracle_group_by_group(bits: int, group_size: int | None) -> None:
    weight_OI = torch.randn(5, 64, generator=torch.Generator().manual_seed(bits)) * 0.02
    form = Integer(bits)
    rounded = round_to_nearest(weight_OI, form, group_size)
    size = group_size or 64
    for row, expected_row in zip(rounded.weight, weight_OI, strict=True):
        for start in range(0, 64, size):
            group = expected_row[start : start + size]
            scale = group.abs().max() / form.limit
            expected = [oracle((w / scale).item(), form) * scale.item() for w in group]
            assert row[start : start + size].tolist() == pytest.approx(expected, rel=1e-6)
    assert rounded.bits_per_weight == bits + 32 / size
    error = (rounded.weight - weight_OI).double().square().sum().item()
    assert rounded.squared_error == pytest.approx(error)
    assert rounded.squared_norm == pytest.approx(weight_OI.double().square().sum().item())


def test_rtn_keeps_zeros_extremes_and_itself() -> None:
    weight_OI = torch.tensor([[0.0] * 8, [0.0] * 7 + [-3.0], [1e-30] * 8])
    rounded = round_to_nearest(weight_OI, Integer(3), 8).weight
    assert torch.equal(rounded[0], weight_OI[0])
    assert rounded[1, 7] == -3.0
    assert torch.allclose(rounded[2], weight_OI[2], rtol=1e-6)
    assert torch.allclose(round_to_nearest(rounded, Integer(3), 8).weight, rounded, rtol=1e-6)


def test_a_group_that_does_not_divide_is_refused() -> None:
    with pytest.raises(BitlawError, match="group_size 7 does not divide a matrix with 64 inputs"):
        round_to_nearest(torch.ones(2, 64), Integer(4), 7)


def test_more_bits_and_finer_groups_lose_less() -> None:
    weight_OI = torch.randn(64, 256, generator=torch.Generator().manual_seed(0))
    errors = [round_to_nearest(weight_OI, Integer(bits), None).squared_error for bits in BITS]
    assert errors == sorted(errors, reverse=True)
    groups = [round_to_nearest(weight_OI, Integer(4), g).squared_error for g in (8, 32, 128, None)]
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
        matrix.copy_(round_to_nearest(matrix, Integer(2), 32).weight)
    quantized = mean(evaluator(by_hand, compiled=False)(windows)).value
    assert rows[2]["loss"] == pytest.approx(quantized, abs=1e-6)


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
    ],
)
def test_bad_cells(cell: tuple[str, str, str], sentence: str) -> None:
    with pytest.raises(BitlawError, match=sentence):
        Cell(*cell)
