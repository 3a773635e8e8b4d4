"""The CPU kernels against their plain forms in float64. Shape letters as in shared/model/kernels.py."""

import math
import os
from pathlib import Path

import pytest
import torch
from torch import Tensor
from torch.nn import functional as F

from shared.errors import BitlawError
from shared.model import Decoder, Shape, kernels
from shared.model.attention import causal_attention, plain
from shared.model.transformer import gated, mean_loss

needs_kernels = pytest.mark.skipif(not kernels.usable(), reason="this processor has no AMX")
# A value rounded to BF16 is off by up to 2^-9 of itself; what attention rounds inside adds about as much again.
TOLERANCE = 2.0**-8


def random(*shape: int, seed: int = 0, scale: float = 1.0) -> Tensor:
    return (torch.randn(*shape, generator=torch.Generator().manual_seed(seed)) * scale).bfloat16()


def off(value: Tensor, exact: Tensor) -> float:
    return float((value.double() - exact).norm() / exact.norm())


@needs_kernels
@pytest.mark.parametrize(("T", "H", "K"), [(32, 1, 32), (256, 2, 32), (96, 3, 64), (64, 2, 128)])
@pytest.mark.parametrize("scale", [1.0, 6.0])
def test_attention_and_its_gradient(T: int, H: int, K: int, scale: float) -> None:
    inputs = [random(2, T, H, K, seed=seed, scale=scale).requires_grad_() for seed in range(3)]
    exact = [x.detach().double().requires_grad_() for x in inputs]
    g_BTHK = random(2, T, H, K, seed=9)
    out, want = causal_attention(inputs[0], inputs[1], inputs[2], fast=True), plain(*exact)
    assert off(out.detach(), want.detach()) < TOLERANCE
    got = torch.autograd.grad(out, inputs, g_BTHK)
    for one, reference in zip(got, torch.autograd.grad(want, exact, g_BTHK.double()), strict=True):
        assert off(one, reference) < 4 * TOLERANCE


@needs_kernels
def test_attention_reads_only_the_past() -> None:
    q, k, v = (random(1, 64, 1, 32, seed=seed) for seed in range(3))
    before = causal_attention(q, k, v, fast=True)
    k2, v2 = k.clone(), v.clone()
    k2[:, 40:], v2[:, 40:] = 100.0, -100.0
    after = causal_attention(q, k2, v2, fast=True)
    assert torch.equal(before[:, :40], after[:, :40])
    assert not torch.equal(before[:, 40:], after[:, 40:])


@needs_kernels
def test_attention_at_extreme_scores_is_finite() -> None:
    q, k, v = (random(1, 32, 1, 32, seed=seed, scale=200.0).requires_grad_() for seed in range(3))
    out = causal_attention(q, k, v, fast=True)
    out.sum().backward()
    assert all(torch.isfinite(x).all() for x in (out, q.grad, k.grad, v.grad) if x is not None)
    assert q.grad is not None


@needs_kernels
def test_cross_entropy_and_its_gradient() -> None:
    logits = random(2, 16, 1024, scale=4.0).requires_grad_()
    target = torch.randint(0, 1024, (2, 16), generator=torch.Generator().manual_seed(1))
    exact = logits.detach().double().requires_grad_()
    loss = mean_loss(logits, target, fast=True)
    want = F.cross_entropy(exact.flatten(0, 1), target.flatten())
    assert loss.item() == pytest.approx(want.item(), rel=1e-6)
    (got,) = torch.autograd.grad(loss, logits)
    (reference,) = torch.autograd.grad(want, exact)
    assert off(got, reference) < TOLERANCE


@needs_kernels
def test_swiglu_and_its_gradient() -> None:
    x = random(2, 16, 384, scale=5.0).requires_grad_()
    exact = x.detach().double().requires_grad_()
    out, want = gated(x, fast=True), gated(exact, fast=False)
    assert off(out.detach(), want.detach()) < TOLERANCE
    g = random(2, 16, 192, seed=3)
    (got,) = torch.autograd.grad(out, x, g)
    (reference,) = torch.autograd.grad(want, exact, g.double())
    assert off(got, reference) < TOLERANCE


@needs_kernels
def test_a_loss_that_is_not_a_number_stays_one() -> None:
    logits = random(1, 4, 64)
    logits[0, 1] = math.nan
    assert not math.isfinite(mean_loss(logits, torch.zeros(1, 4, dtype=torch.long), fast=True).item())


@needs_kernels
def test_a_model_with_kernels_agrees_with_one_without() -> None:
    model = Decoder(Shape(2, 64, 96, vocabulary=128, context=64))
    model.initialise(1)
    tokens = torch.randint(0, 128, (2, 64), generator=torch.Generator().manual_seed(0))
    grads = []
    for fast, dtype in ((True, torch.bfloat16), (False, torch.float32)):
        model.fast = fast
        model.zero_grad()
        mean_loss(model(tokens, dtype), tokens.roll(-1, 1), fast).backward()
        grads.append(torch.cat([p.grad.flatten() for p in model.parameters() if p.grad is not None]))
    assert off(grads[0], grads[1].double()) < 0.02


def test_other_machines_take_the_plain_form(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(kernels, "instructions", lambda: "flags: avx2 avx512f")
    kernels.usable.cache_clear()
    assert not kernels.usable()
    kernels.usable.cache_clear()


@needs_kernels
def test_a_compiler_that_fails_is_named(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    broken = tmp_path / "kernels.cpp"
    broken.write_text("this is no C++")
    monkeypatch.setattr(kernels, "SOURCE", broken)
    monkeypatch.setitem(os.environ, "XDG_CACHE_HOME", str(tmp_path))
    kernels.library.cache_clear()
    try:
        with pytest.raises(BitlawError, match="compiler failed"):
            kernels.library()
    finally:
        kernels.library.cache_clear()
    assert not list((tmp_path / "bitlaw").glob("*"))
