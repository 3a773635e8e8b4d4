"""Sensitivities against hand-written gradients in float64; rounding with mixed widths; trials on a tiny model."""

import copy
import itertools
from dataclasses import replace
from types import SimpleNamespace
from typing import Any

import numpy as np
import ptq_models
import pytest
import torch
from torch import Tensor, nn

from replications.precision_predictor import allocating
from replications.precision_predictor.allocating import Bench, Widths, mixed_gptq, open_bench, quantizer_of, trials
from replications.precision_predictor.allocation import Array, Units, uniform
from replications.precision_predictor.allocation_surrogates import (
    CRITERIA,
    GROUP,
    Part,
    exchanged,
    quadratic,
    surrogates,
)
from replications.precision_predictor.sensitivity import Curvature, curvatures, second_derivatives
from replications.precision_predictor.subject import Subject
from shared.errors import BitlawError
from shared.model.transformer import token_losses
from shared.ptq.text import Windows
from shared.quantize.guided import GuidedCalibration, guided_gptq
from shared.quantize.rtn import round_to_nearest

VOCABULARY, WIDTH = 6, 4


class Bigram(nn.Module):
    """logits = W e(token): its gradients can be written down."""

    def __init__(self) -> None:
        super().__init__()
        generator = torch.Generator().manual_seed(0)
        self.embedding = torch.randn(VOCABULARY, WIDTH, generator=generator)
        self.layers = nn.ModuleList([nn.Sequential(nn.Linear(WIDTH, VOCABULARY, bias=False))])
        weight = self.layers[0][0].weight  # type: ignore[index]
        weight.data = torch.randn(VOCABULARY, WIDTH, generator=generator)

    def forward(self, input_ids: Tensor, use_cache: bool) -> Any:
        return SimpleNamespace(logits=self.layers[0](self.embedding[input_ids]))


def windows_of(count: int, length: int, vocabulary: int, seed: int = 1) -> Tensor:
    return torch.randint(0, vocabulary, (count, length), generator=torch.Generator().manual_seed(seed))


def by_hand(model: Bigram, windows_ST: Tensor) -> tuple[Array, Array, Array]:
    """position_OI, sequence_OI and the second derivatives of the mean loss (n, n), of softmax regression in float64.

    dl_t/dz = p - onehot, dz/dW = x; d2l/dW2 = (diag(p) - p p^T) x x^T. The last token of a window predicts nothing.
    """
    weight_OI = model.layers[0][0].weight.detach().double().numpy()  # type: ignore[index]
    embedding = model.embedding.double().numpy()
    position, sequence = np.zeros(weight_OI.shape), np.zeros(weight_OI.shape)
    hessian = np.zeros((weight_OI.size, weight_OI.size))
    predictions = windows_ST.shape[0] * (windows_ST.shape[1] - 1)
    for window_T in windows_ST.numpy():
        whole = np.zeros(weight_OI.shape)
        for token, target in itertools.pairwise(window_T):
            x = embedding[token]
            z = weight_OI @ x
            p = np.exp(z - z.max()) / np.exp(z - z.max()).sum()
            slope = np.outer(p - np.eye(VOCABULARY)[target], x)
            position += slope**2
            whole += slope
            hessian += np.kron(np.diag(p) - np.outer(p, p), np.outer(x, x)) / predictions
        sequence += whole**2
    return position / windows_ST.numel(), sequence / windows_ST.numel(), hessian


# --- sensitivities ------------------------------------------------------------------------------------------------


def test_sensitivities_are_those_written_by_hand() -> None:
    model, windows_ST = Bigram(), windows_of(5, 9, VOCABULARY)
    position, sequence, hessian = by_hand(model, windows_ST)
    found = curvatures(model, windows_ST)["layers.0.0"]
    np.testing.assert_allclose(found.position_OI.numpy(), position, rtol=1e-4, atol=1e-7)
    np.testing.assert_allclose(found.sequence_OI.numpy(), sequence, rtol=1e-4, atol=1e-7)
    x_RI = model.embedding[windows_ST].flatten(0, 1)
    torch.testing.assert_close(found.inputs_II, x_RI.T @ x_RI / len(x_RI))
    # GuidedQuant's blocks, one for some outputs, have the mean of `position` over these on their diagonals.
    grouped = found.guided_gII.diagonal(dim1=1, dim2=2).numpy()
    np.testing.assert_allclose(grouped, position.reshape(len(grouped), -1, WIDTH).mean(1), rtol=1e-4, atol=1e-7)
    exact = second_derivatives(model, model.layers[0][0], VOCABULARY, windows_ST)  # type: ignore[index]
    np.testing.assert_allclose(exact.numpy(), hessian, rtol=1e-4, atol=1e-6)
    some = second_derivatives(model, model.layers[0][0], 2, windows_ST)  # type: ignore[index]
    np.testing.assert_allclose(some.numpy(), hessian[: 2 * WIDTH, : 2 * WIDTH], rtol=1e-4, atol=1e-6)
    assert all(p.requires_grad and p.grad is None for p in model.parameters())


@pytest.mark.parametrize("kind", ["llama", "gpt2"])
def test_sensitivities_through_attention(kind: str) -> None:
    """Of every matrix: the squared gradient of a window's summed loss, found in float64, window by window."""
    model, windows_ST = ptq_models.model(kind), windows_of(2, 12, ptq_models.VOCABULARY)
    found = curvatures(model, windows_ST)
    exact = copy.deepcopy(model).double()
    squares = {name: torch.zeros(known.outputs, known.inputs).double() for name, known in found.items()}
    for window_1T in windows_ST.split(1):
        exact.zero_grad()
        token_losses_double(exact, window_1T).sum().backward()
        for name in squares:
            grad = exact.get_submodule(name).weight.grad
            squares[name] += (grad if kind == "llama" else grad.T).square() / windows_ST.numel()
    for name, known in found.items():
        torch.testing.assert_close(known.sequence_OI, squares[name].float(), rtol=2e-3, atol=1e-8)


def token_losses_double(model: Any, windows_BT: Tensor) -> Tensor:
    logits_BTV = model(input_ids=windows_BT, use_cache=False).logits[:, :-1]
    return nn.functional.cross_entropy(logits_BTV.transpose(1, 2), windows_BT[:, 1:], reduction="none")


@pytest.mark.parametrize("kind", ["llama", "gpt2"])
def test_second_derivatives_by_differences(kind: str) -> None:
    """Of a query matrix's first row, by central differences of gradients (RMSNorm stays in FP32: no small steps)."""
    model, windows_ST = ptq_models.model(kind, width=8), windows_of(1, 10, ptq_models.VOCABULARY)
    name = "model.layers.0.self_attn.q_proj" if kind == "llama" else "transformer.h.0.attn.c_attn"
    found = second_derivatives(model, model.get_submodule(name), 1, windows_ST)
    exact = copy.deepcopy(model).double()
    weight = exact.get_submodule(name).weight
    step, rows = 3e-3, []
    for i in range(8):
        at = (0, i) if kind == "llama" else (i, 0)
        slopes = []
        for sign in (1, -1):
            weight.data[at] += sign * step
            exact.zero_grad()
            token_losses_double(exact, windows_ST).mean().backward()
            slopes.append((weight.grad if kind == "llama" else weight.grad.T)[0].clone())
            weight.data[at] -= sign * step
        rows.append((slopes[0] - slopes[1]) / (2 * step))
    expected = torch.stack(rows)
    torch.testing.assert_close(found, expected, rtol=1e-2, atol=1e-2 * expected.abs().max().item())


def test_no_gradient_is_said() -> None:
    with pytest.raises(BitlawError, match="no gradient reached a layer"):
        _ = Curvature(4, 4).sequence_OI


# --- rounding -----------------------------------------------------------------------------------------------------


def problem(outputs: int = 16, inputs: int = 48) -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(0)
    weight_OI = torch.randn(outputs, inputs, generator=generator) * 0.05
    seen = GuidedCalibration(inputs, outputs, 4)
    x_RI = torch.randn(300, inputs, generator=generator) @ torch.randn(inputs, inputs, generator=generator)
    seen.add(x_RI, torch.randn(300, outputs, generator=generator).exp())
    return weight_OI, seen.hessians_gII


def same(one: Tensor, other: Tensor) -> float:
    return ((one - other).abs() <= 1e-5 * other.abs().max()).float().mean().item()


@pytest.mark.parametrize("shared", ["channel", "16"])
def test_one_width_is_guided_gptq(shared: str) -> None:
    weight_OI, hessians = problem()
    quantizer = quantizer_of("guided", shared, 3)
    expected = guided_gptq(weight_OI, hessians, quantizer).weight
    every = {b: quantizer_of("guided", shared, b) for b in range(2, 9)}
    found = mixed_gptq(weight_OI, hessians, torch.full(weight_OI.shape, 3), every)
    assert same(found, expected) > 0.995


def test_a_row_does_not_see_the_widths_of_others() -> None:
    """Rows of GPTQ are independent: each is what it would be with its width everywhere."""
    weight_OI, hessians = problem()
    every = {b: quantizer_of("guided", "channel", b) for b in range(2, 9)}
    widths_O = torch.arange(16) % 4 + 2
    found = mixed_gptq(weight_OI, hessians, widths_O[:, None].expand(16, 48), every)
    for width in range(2, 6):
        expected = guided_gptq(weight_OI, hessians, every[width]).weight
        rows = widths_O == width
        assert same(found[rows], expected[rows]) > 0.995


def test_groups_have_the_values_of_their_widths() -> None:
    """At most 2^b - 1 values in a group of b bits; what they leave goes to later groups, so that outputs err less."""
    weight_OI, hessians = problem()
    every = {b: quantizer_of("guided", "16", b) for b in range(2, 9)}
    bits_OG = torch.randint(2, 5, (16, 3), generator=torch.Generator().manual_seed(2))
    bits_OI = bits_OG.repeat_interleave(16, 1)
    found = mixed_gptq(weight_OI, hessians, bits_OI, every)
    for row in range(16):
        for group in range(3):
            values = found[row, group * 16 : group * 16 + 16].unique()
            assert len(values) <= 2 ** int(bits_OG[row, group]) - 1
    nearest = torch.zeros_like(weight_OI)
    for width, quantizer in every.items():
        nearest = torch.where(bits_OI == width, round_to_nearest(weight_OI, quantizer).weight, nearest)

    def error(rounded: Tensor) -> float:
        d_OI = rounded - weight_OI
        return float((d_OI * allocating.product(d_OI, hessians)).sum())

    assert error(found) < 0.9 * error(nearest)


# --- trials -------------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def bench() -> Bench:
    model = ptq_models.model("llama")
    text = windows_of(7, ptq_models.CONTEXT + 1, 64)
    windows = Windows(text[:3, :-1], text[3:], "random tokens")
    return open_bench(Subject("tiny", model, None, ptq_models.CONTEXT), windows)


@pytest.mark.parametrize("method", ["rtn", "guided"])
@pytest.mark.parametrize("unit", ["layer", "channel", "group"])
def test_all_allocations_take_the_same_bits(bench: Bench, unit: Any, method: str) -> None:
    """And leave the model as it was."""
    widths = Widths(2, 8, 8)
    found = {t.allocation: t for t in trials(bench, unit, method, 3.5, allocating.ALLOCATIONS, widths)}
    assert set(found) == set(allocating.ALLOCATIONS) - (set() if unit == "layer" else {"measured"})
    weights = sum(w.numel() for w in bench.weights.values())
    scales = sum(w.numel() // (8 if unit == "group" else w.shape[1]) for w in bench.weights.values())
    assert {t.total_bits for t in found.values()} == {int(3.5 * weights) + 16 * scales}
    for trial in found.values():
        codes = sum(bits * share for bits, share in trial.shares.items()) * weights
        assert round(codes) + trial.metadata_bits + 16 * scales == trial.total_bits
        assert sum(trial.shares.values()) == pytest.approx(1)
        even = found["uniform"].delta.value
        assert trial.over_uniform.value == pytest.approx(even - trial.delta.value, abs=1e-9)
    assert found["fisher_linear"].over_magnitude.value == pytest.approx(
        found["magnitude_linear"].delta.value - found["fisher_linear"].delta.value, abs=1e-9
    )
    torch.testing.assert_close(bench.losses(bench.windows.evaluation), bench.base_S)


def test_a_whole_number_of_bits_is_plain_rounding(bench: Bench) -> None:
    """Uniform at 3 bits, and any allocation between 3 and 3 bits, is the model rounded to INT3, without metadata."""
    found = list(trials(bench, "channel", "rtn", 3, ["fisher", "fisher_linear"], Widths(3, 3)))
    quantizer = quantizer_of("rtn", "channel", 3)
    plain = [round_to_nearest(w, quantizer) for w in bench.weights.values()]
    bench.put([one.weight for one in plain])
    expected = bench.losses(bench.windows.evaluation)
    bench.put(list(bench.weights.values()))
    weights = sum(w.numel() for w in bench.weights.values())
    bits = sum(one.bits_per_weight * one.weight.numel() for one in plain)
    uneven = next(iter(trials(bench, "channel", "rtn", 3, [], Widths(2, 8))))
    for trial in (*found, uneven):
        assert trial.loss.value == pytest.approx(expected.mean().item(), abs=1e-12)
        assert trial.metadata_bits == 0
        assert trial.bits_per_weight == pytest.approx(bits / weights)
    assert [t.allocation for t in found] == ["uniform", "magnitude", "magnitude_linear", "fisher", "fisher_linear"]


def test_more_bits_go_where_the_loss_is_steep(bench: Bench) -> None:
    """By gradients, and not by magnitude: a matrix with a millionth of its gradients gets the fewest, with a million
    times these the most."""
    units = Units("layer", bench.shapes)
    name = list(bench.weights)[3]

    def width(rule: str, factor: float) -> int:
        changed = replace(bench, known={**bench.known, name: copy.deepcopy(bench.known[name])})
        sums = changed.known[name].sequences_OI
        assert sums is not None
        sums *= factor
        return int(allocating.choose(changed, units, rule, "rtn", Widths(), 4 * units.weights).widths_U[3])

    for rule in ("fisher", "fisher_linear"):
        assert (width(rule, 1e-6), width(rule, 1e6)) == (2, 8)
    for rule in ("magnitude", "magnitude_linear", "error", "inputs"):
        assert width(rule, 1e-6) == width(rule, 1e6)


def test_unknown_names_are_refused(bench: Bench) -> None:
    for method, allocation, unit, sentence in (
        ("gtpq", "fisher", "layer", "method 'gtpq' is unknown"),
        ("rtn", "fischer", "layer", "allocation 'fischer' is unknown, did you mean 'fisher'"),
    ):
        with pytest.raises(BitlawError, match=sentence):
            list(trials(bench, unit, method, 3, [allocation], Widths()))  # type: ignore[arg-type]
    with pytest.raises(BitlawError, match="not for channel units"):
        allocating.choose(bench, Units("channel", bench.shapes), "measured", "rtn", Widths(), 10**6)
    with pytest.raises(BitlawError, match="groups of 12 weights do not divide"):
        list(trials(bench, "group", "rtn", 3, ["fisher"], Widths(2, 8, 12)))


# --- exact second derivatives -------------------------------------------------------------------------------------


def random_part(rows: int = 4, seed: int = 0) -> Part:
    generator = np.random.default_rng(seed)
    half = generator.normal(size=(rows * GROUP, rows * GROUP))
    weight_OI = torch.from_numpy(generator.normal(size=(rows, GROUP))).float()
    rounded = [round_to_nearest(weight_OI, quantizer_of("rtn", "channel", bits)).weight for bits in (2, 3, 4)]
    errors = np.stack([(r - weight_OI).double().numpy().ravel() for r in rounded])
    return Part("any", weight_OI, errors, half @ half.T / rows / GROUP)


@pytest.mark.parametrize("seed", range(4))
def test_no_exchange_of_bits_is_left_that_helps(seed: int) -> None:
    """Tried out one by one; the sum of the bits stays."""
    part = random_part(seed=seed)
    start = uniform(part.units.sizes_U, 2, 4, 3 * part.weight_OI.numel()).widths_U
    found = exchanged(part, start, 2, 4)
    least = quadratic(part, found, 2)
    assert found.sum() == start.sum()
    assert least <= quadratic(part, start, 2)
    for raised in range(4):
        for lowered in range(4):
            other = found.copy()
            other[raised] += 1
            other[lowered] -= 1
            if raised != lowered and other.min() >= 2 and other.max() <= 4:
                assert quadratic(part, other, 2) >= least - 1e-9


def test_surrogates_of_a_tiny_model(bench: Bench, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("replications.precision_predictor.allocation_surrogates.WEIGHTS", 64)
    rows = surrogates(bench, (3.0,), Widths())
    assert [row["criterion"] for row in rows] == list(CRITERIA)
    least = min(row["quadratic"] for row in rows)
    assert rows[0]["quadratic"] == pytest.approx(least)
    assert rows[-1]["over_uniform"] == 0
    assert {row["weights"] for row in rows} == {64}
    assert 0 < rows[0]["inside_rows"] < 1
    torch.testing.assert_close(bench.losses(bench.windows.evaluation), bench.base_S)


def test_losses_are_those_of_the_model(bench: Bench) -> None:
    windows_ST = bench.windows.evaluation
    with torch.no_grad():
        logits = bench.model(input_ids=windows_ST[:, :-1], use_cache=False).logits
    torch.testing.assert_close(bench.base_S, token_losses(logits, windows_ST[:, 1:]).mean(-1).double())
