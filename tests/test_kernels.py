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
from shared.model.transformer import RMSNorm, gated, mean_loss, rotate

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
@pytest.mark.parametrize(("T", "H", "K"), [(32, 1, 32), (64, 3, 64)])
def test_attention_with_its_rotations(T: int, H: int, K: int) -> None:
    model = Decoder(Shape(1, K * H, 32, head_size=K, vocabulary=32, context=T))
    qkv = random(2, T, 3, H, K).requires_grad_()
    exact = qkv.detach().double().requires_grad_()
    cos, sin = model.cos_TK.double(), model.sin_TK.double()
    q, k, v = exact.unbind(2)
    want = plain(rotate(q, cos, sin), rotate(k, cos, sin), v)
    out = kernels.rotary_attention(qkv, model.cos_TK, model.sin_TK)[0]
    assert off(out.detach(), want.detach()) < 2 * TOLERANCE
    g = random(2, T, H, K, seed=9)
    (got,) = torch.autograd.grad(out, qkv, g)
    (reference,) = torch.autograd.grad(want, exact, g.double())
    assert off(got, reference) < 4 * TOLERANCE


@needs_kernels
@pytest.mark.parametrize(("R", "outputs", "inputs"), [(4096, 192, 64), (4096, 64, 64), (512, 128, 320), (64, 32, 96)])
def test_gradient_to_weights_has_the_bits_of_torch(R: int, outputs: int, inputs: int) -> None:
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        g, x = random(R, outputs, seed=1), random(R, inputs, seed=2)
        assert kernels.part_rows(R, outputs, inputs) > 0
        assert torch.equal(kernels.weight_gradient(g, x), g.T @ x)
    finally:
        torch.set_num_threads(threads)


@needs_kernels
@pytest.mark.parametrize("part", [32, 64, 96, 704])
def test_sums_of_rows_in_parts(part: int) -> None:
    g, x = random(704, 160, seed=1), random(704, 96, seed=2)
    exact = g.double().T @ x.double()
    assert off(kernels.summed(g, x, part), exact) < 2.0**-9
    # Each part from zero on, then added in FP32: what the parts give one by one, but for a last rounding of each.
    parts = [kernels.summed(a, b, part).double() for a, b in zip(g.split(part), x.split(part), strict=True)]
    assert off(kernels.summed(g, x, part), torch.stack(parts).sum(0)) < TOLERANCE


@needs_kernels
def test_sizes_that_the_kernel_does_not_take_go_to_torch() -> None:
    g, x = random(40, 24, seed=1), random(40, 8, seed=2)
    assert kernels.part_rows(40, 24, 8) == 0
    assert torch.equal(kernels.weight_gradient(g, x), g.T @ x)


@needs_kernels
def test_linear_is_that_of_torch() -> None:
    x, w = random(2, 32, 64, seed=1).requires_grad_(), random(96, 64, seed=2).requires_grad_()
    g = random(2, 32, 96, seed=3)
    y = kernels.linear(x, w)
    assert torch.equal(y, F.linear(x, w))
    got, want = (torch.autograd.grad(out, (x, w), g) for out in (y, F.linear(x, w)))
    assert all(torch.equal(a, b) for a, b in zip(got, want, strict=True))


@needs_kernels
@pytest.mark.parametrize("D", [32, 64, 160, 256])
@pytest.mark.parametrize("lanes", [16, 32])
def test_norms_of_sums_and_their_gradients(D: int, lanes: int) -> None:
    layer, exact_layer = RMSNorm(D), RMSNorm(D).double()
    with torch.no_grad():
        layer.weight.copy_(random(D, seed=4).float())
        exact_layer.weight.copy_(layer.weight)
    x, delta = random(24, D).float().requires_grad_(), random(24, D, seed=1).requires_grad_()
    exact = [t.detach().double().requires_grad_() for t in (x, delta)]
    total, h, scale = kernels.added_norm(x, delta, layer.weight, lanes)
    exact_total = exact[0] + exact[1]
    want = exact_layer(exact_total, torch.float64)
    assert off(total.detach(), exact_total.detach()) < 1e-7
    assert off(scale.detach(), torch.rsqrt(exact_total.detach().pow(2).mean(-1) + 1e-6)) < 1e-6
    assert off(h.detach(), want.detach()) < 2.0**-8
    g_total, g = random(24, D, seed=2).float(), random(24, D, seed=3)
    wanted = torch.autograd.grad(
        (want, exact_total), (*exact, exact_layer.weight), (g.double(), g_total.double()), retain_graph=True
    )
    got = torch.autograd.grad((h, total), (x, delta, layer.weight), (g, g_total), retain_graph=True)
    assert all(off(a, b) < bound for a, b, bound in zip(got, wanted, (1e-6, TOLERANCE, 1e-6), strict=True))
    # Of the last norm nothing but the norm is read.
    (alone,) = torch.autograd.grad(want, exact[0], g.double())
    assert off(torch.autograd.grad(h, x, g)[0], alone) < 1e-6


@needs_kernels
def test_norm_of_an_embedding_and_its_gradient() -> None:
    tokens = torch.randint(0, 48, (96,), generator=torch.Generator().manual_seed(0))
    table, gain = random(48, 64).float().requires_grad_(), random(64, seed=1).float().requires_grad_()
    exact = table.detach().double().requires_grad_()
    x, h, _ = kernels.embedded_norm(tokens, table, gain)
    exact_x = exact[tokens]
    want = exact_x * torch.rsqrt(exact_x.pow(2).mean(-1, keepdim=True) + 1e-6) * gain.detach().double()
    assert torch.equal(x, table[tokens])
    assert off(h.detach(), want.detach()) < 2.0**-8
    g_x, g = random(96, 64, seed=2).float(), random(96, 64, seed=3)
    got = torch.autograd.grad((h, x), (table, gain), (g, g_x))
    (reference,) = torch.autograd.grad((want, exact_x), exact, (g.double(), g_x.double()))
    assert off(got[0], reference) < 1e-6
    assert torch.isfinite(got[1]).all()


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
@pytest.mark.parametrize("layers", [1, 2])
def test_a_model_with_kernels_agrees_with_one_without(layers: int) -> None:
    model = Decoder(Shape(layers, 64, 96, vocabulary=128, context=64))
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
