"""Training in low precision: forward casts, gradients, bypass, resuming, sparsity, identity.

Shape letters: B sequences, T positions, I inputs, O outputs.
"""

from collections.abc import Callable
from dataclasses import fields, replace
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor
from torch.nn import functional as F

from shared.errors import BitlawError
from shared.model import Decoder, Shape
from shared.model.exchange import to_transformers
from shared.model.transformer import mean_loss
from shared.quantize import fake_quantize, parse_quantizer
from shared.quantize.sparsity import EVERY, Sparsity, mask_of
from shared.quantize.training import ROLES, Precision, Product, attach, baked, stochastic
from shared.sweep.spec import COMPRESSION, RunSpec
from shared.train import trunk
from shared.train.batches import Batches
from shared.train.recipe import Recipe

SHAPE = Shape(n_layer=2, d_model=32, d_ff=64, vocabulary=64, context=16)
RECIPE = Recipe(SHAPE, seed=1, learning_rate=0.01, batch_tokens=64, warmup_steps=3, compile=False)
CPU = torch.device("cpu")
INTEGER = Precision(weights="INT4@channel", activations="INT4@token", keys_values="INT4@token", queries="INT6@8")
SUN = Precision(weights="E2M1@8", weights_backward="E2M1@8", activations_backward="E2M1@8")


@pytest.fixture(autouse=True)
def one_thread() -> None:
    torch.set_num_threads(1)


@pytest.fixture(scope="module")
def text() -> np.ndarray:
    """A noisy walk over the vocabulary."""
    steps = np.random.default_rng(0).integers(1, 4, 4001)
    return (np.cumsum(steps) % 64).astype(np.uint16)


def batches(text: np.ndarray) -> Batches:
    return Batches(text, context=16, sequences=4, seed=1)


def after(recipe: Recipe, text: np.ndarray, steps: int = 12) -> trunk.Trainer:
    trainer = trunk.Trainer(recipe, batches(text), CPU)
    for _ in range(steps):
        trainer.advance(1.0)
    return trainer


def roles(**changed: str) -> dict[str, str]:
    defaults = {f.name: str(f.default) for f in fields(Precision)}
    return {role: changed.get(role, defaults[role]) for role in ROLES}


def tensors(seed: int = 0, inputs: int = 64) -> tuple[Tensor, list[Tensor], Tensor]:
    generator = torch.Generator().manual_seed(seed)
    x_BTI = torch.randn(2, 8, inputs, generator=generator)
    weights = [torch.randn(outputs, inputs, generator=generator) for outputs in (16, 32)]
    g_BTO = torch.randn(2, 8, 48, generator=generator)
    return x_BTI, weights, g_BTO


def fake(x: Tensor, text: str) -> Tensor:
    quantizer = parse_quantizer(text)
    return x if quantizer is None else fake_quantize(x, quantizer)


@pytest.mark.parametrize(
    ("weights", "activations"),
    [
        ("INT4@channel", "none"),
        ("none", "INT4@token"),
        ("INT3@8", "INT8@16"),
        ("INT2@channel", "INT4@tensor"),
        ("BINARY@channel", "none"),
        ("TERNARY@channel", "E4M3@token"),
        ("E2M1@8", "E2M1@8"),
        ("MXFP4", "MXFP4"),
        ("NVFP4", "NVFP4"),
        ("INT4@16:mse", "INT4@16:mse"),
    ],
)
def test_a_product_is_that_of_the_cast_tensors_and_its_gradient_passes_straight(weights: str, activations: str) -> None:
    x_BTI, list_OI, g_BTO = tensors()
    inputs = [x_BTI.requires_grad_(), *(w.requires_grad_() for w in list_OI)]
    product = Product(roles(weights=weights, activations=activations), 64, learn=False)
    y_BTO = product(x_BTI, list_OI)
    xq_BTI, wq_OI = fake(x_BTI.detach(), activations), torch.cat([fake(w.detach(), weights) for w in list_OI])
    assert torch.equal(y_BTO, F.linear(xq_BTI, wq_OI))
    dx, dw_first, dw_second = torch.autograd.grad(y_BTO, inputs, g_BTO)
    # By hand, in float64: the backward products read the cast tensors.
    g_RO, xq_RI = g_BTO.double().flatten(0, 1), xq_BTI.double().flatten(0, 1)
    assert torch.allclose(dx.double().flatten(0, 1), g_RO @ wq_OI.double(), atol=1e-4)
    assert torch.allclose(torch.cat([dw_first, dw_second]).double(), g_RO.T @ xq_RI, atol=1e-4)


@pytest.mark.parametrize("cast_roles", [ROLES, ROLES[:2], *((role,) for role in ROLES), ("weights", *ROLES[3::2])])
def test_each_of_the_six_inputs_is_cast_alone(cast_roles: tuple[str, ...]) -> None:
    """P1 to P6 of Sun et al., each on or off; what is not named reads the tensor itself."""
    named = {role: "E2M1@8" if role in cast_roles else "none" for role in ROLES}
    x_BTI, list_OI, g_BTO = tensors(1)
    inputs = [x_BTI.requires_grad_(), *(w.requires_grad_() for w in list_OI)]
    y_BTO = Product(named, 64, learn=False)(x_BTI, list_OI)
    x_RI, w_OI, g_RO = x_BTI.detach().flatten(0, 1), torch.cat(list_OI).detach(), g_BTO.flatten(0, 1)
    p1, p2, p3, p4, p5, p6 = (
        fake(t, named[role]).double() for t, role in zip((x_RI, w_OI, g_RO, w_OI, g_RO, x_RI), ROLES, strict=True)
    )
    assert torch.allclose(y_BTO.double().flatten(0, 1), p1 @ p2.T, atol=1e-4)
    dx, dw_first, dw_second = torch.autograd.grad(y_BTO, inputs, g_BTO)
    assert torch.allclose(dx.double().flatten(0, 1), p3 @ p4, atol=1e-4)
    assert torch.allclose(torch.cat([dw_first, dw_second]).double(), p5.T @ p6, atol=1e-4)


def test_forward_casts_written_as_six_are_the_plain_ones() -> None:
    """P4 = P2 and P6 = P1 said outright give what straight-through gives."""
    x_BTI, list_OI, g_BTO = tensors(2)
    both = {"weights": "INT4@channel", "activations": "INT4@8"}
    outright = both | {"weights_backward": "INT4@channel", "activations_backward": "INT4@8"}
    results = []
    for named in (both, outright):
        x, w = x_BTI.clone().requires_grad_(), [v.clone().requires_grad_() for v in list_OI]
        y = Product(roles(**named), 64, learn=False)(x, w)
        results.append((y.detach(), *torch.autograd.grad(y, [x, *w], g_BTO)))
    for one, other in zip(*results, strict=True):
        assert torch.allclose(one, other, atol=1e-5)


def test_keys_values_and_queries_are_cast() -> None:
    tokens = torch.randint(0, 64, (2, 16), generator=torch.Generator().manual_seed(0))
    outputs = {}
    for name, precision in {
        "none": Precision(),
        "kv": Precision(keys_values="INT3@token"),
        "qkv": Precision(keys_values="INT3@token", queries="INT3@token"),
        "16": Precision(keys_values="INT16@token", queries="BF16"),
    }.items():
        model = Decoder(SHAPE)
        attach(model, precision)
        model.initialise(1)
        outputs[name] = model(tokens)
    assert torch.equal(outputs["none"], outputs["16"])
    assert not torch.equal(outputs["none"], outputs["kv"])
    assert not torch.equal(outputs["kv"], outputs["qkv"])


def test_an_exception_changes_one_input_of_one_product() -> None:
    precision = Precision(activations="INT4@token", exceptions="down.activations=INT8@8, 1.qkv.weights=INT2@channel")
    assert precision.roles(0, "down")["activations"] == "INT8@8"
    assert precision.roles(0, "qkv") == precision.roles(0, "o")
    assert precision.roles(1, "qkv")["weights"] == "INT2@channel"
    model = Decoder(SHAPE)
    attach(model, precision)
    first, second = model.layers[0], model.layers[1]
    assert first.casts["down"].activations == parse_quantizer("INT8@8")  # type: ignore[union-attr, index]
    assert second.casts["qkv"].weights == parse_quantizer("INT2@channel")  # type: ignore[union-attr, index]
    assert first.casts["qkv"].weights is None  # type: ignore[union-attr, index]


@pytest.mark.parametrize(
    ("make", "sentence"),
    [
        (lambda: Precision(weights="INT4"), "names no group"),
        (lambda: Precision(weights="INT44@channel", activations="E2@8"), "E2"),
        (lambda: Precision(exceptions="fc2.activations=INT8@8"), "cannot be read"),
        (lambda: Precision(exceptions="down.activation=INT8@8"), "did you mean 'activations'"),
        (lambda: Precision(learned_clip=True), "needs quantized activations"),
        (lambda: Precision(activations="INT4@token", activations_backward="none", learned_clip=True), "forward casts"),
        (lambda: attach(Decoder(SHAPE), Precision(weights="INT4@24")), "24 does not divide"),
        (lambda: attach(Decoder(SHAPE), Precision(exceptions="7.down.weights=INT4@8")), "block 7 is not there"),
        (lambda: Sparsity(0.75, "2:4"), "keeps half"),
        (lambda: Sparsity(1.5), r"\[0, 1\)"),
        (lambda: Sparsity(0.5, "4:8"), "unknown"),
        (lambda: Sparsity(0.5, begin_step=9, end_step=9), "must come before"),
        (
            lambda: trunk.low_precision(SHAPE, Precision(weights="BINARY@channel"), Sparsity(0.5)),
            "BINARY has none",
        ),
    ],
)
def test_bad_settings_are_one_sentence(make: Callable[[], object], sentence: str) -> None:
    with pytest.raises(BitlawError, match=sentence) as raised:
        make()
    assert "\n" not in str(raised.value)


def test_sixteen_bits_and_more_are_bit_identical_to_no_quantization(text: np.ndarray) -> None:
    wide = Precision(
        weights="INT16@channel", activations="BF16", keys_values="INT32@token", queries="E8M7@8",
        weights_backward="INT16@8", activations_backward="FP16", gradients_to_inputs="FP32",
    )  # fmt: skip
    plain, bypassed = after(RECIPE, text), after(replace(RECIPE, precision=wide), text)
    for name, value in plain.tensors().items():
        assert torch.equal(bypassed.tensors()[name], value), name


@pytest.mark.parametrize(
    "recipe",
    [
        replace(RECIPE, precision=INTEGER),
        replace(RECIPE, precision=SUN),
        replace(RECIPE, precision=Precision(activations="INT4@16", learned_clip=True)),
        replace(RECIPE, precision=Precision(weights="INT4@channel:sr", gradients_to_weights="E2M1@32:sr")),
        replace(RECIPE, sparsity=Sparsity(0.75, begin_step=2, end_step=25)),
        replace(RECIPE, precision=Precision(weights="INT4@channel"), sparsity=Sparsity(0.5, "2:4", 2, 25)),
    ],
    ids=["integer", "sun", "learned clip", "stochastic", "sparse", "sparse 2:4 and W4"],
)
def test_stop_and_resume_is_bit_identical(recipe: Recipe, text: np.ndarray, tmp_path: Path) -> None:
    horizons = {640: (True, True), 1920: (True, True)}

    def made(folder: Path, stops: list[int]) -> dict[tuple[int, bool], trunk.Checkpoint]:
        found: dict[tuple[int, bool], trunk.Checkpoint] = {}
        while len(found) < 4:
            steps = 0

            def stop() -> bool:
                nonlocal steps
                steps += 1
                return bool(stops) and steps == stops[0]

            wanted = {t: ((t, False) not in found, (t, True) not in found) for t in horizons}
            try:
                for c in trunk.run(recipe, batches(text), wanted, folder, CPU, stop=stop):
                    found[c.tokens, c.cooled] = c
            except trunk.StoppedError:
                stops.pop(0)
        return found

    straight, broken = made(tmp_path / "a", []), made(tmp_path / "b", [3, 9, 4, 8])
    for key, checkpoint in straight.items():
        assert checkpoint.weights.keys() == broken[key].weights.keys()
        for name, value in checkpoint.weights.items():
            assert torch.equal(value, broken[key].weights[name]), (key, name)
        assert checkpoint.train_loss == broken[key].train_loss


def test_a_learned_clip_learns_and_is_saved(text: np.ndarray) -> None:
    recipe = replace(RECIPE, precision=Precision(activations="INT3@token", learned_clip=True))
    trainer = after(recipe, text, steps=30)
    gammas = {name: value for name, value in trainer.weights().items() if name.endswith("gamma_G")}
    assert len(gammas) == 4 * SHAPE.n_layer
    assert any((value != 1).all() for value in gammas.values())
    decay = {id(p): g["weight_decay"] for g in trainer.optimizer.param_groups for p in g["params"]}
    assert {decay[id(p)] for n, p in trainer.model.named_parameters() if n.endswith("gamma_G")} == {0.0}
    assert len(decay) == len(list(trainer.model.parameters()))


def test_low_precision_still_learns(text: np.ndarray) -> None:
    first = after(RECIPE, text, steps=1).loss
    for precision in (INTEGER, SUN, Precision(weights="MXFP4", activations="MXFP4")):
        assert after(replace(RECIPE, precision=precision), text, steps=60).loss < first - 0.5


@given(
    share=st.floats(0, 0.99), rows=st.integers(1, 9), groups=st.integers(1, 6), seed=st.integers(0, 99),
    pattern=st.sampled_from(["unstructured", "2:4"]),
)  # fmt: skip
@settings(max_examples=60, deadline=None)
def test_a_mask_drops_the_smallest(share: float, rows: int, groups: int, seed: int, pattern: str) -> None:
    share = min(share, 0.5) if pattern == "2:4" else share
    weight_OI = torch.randn(rows, 4 * groups, generator=torch.Generator().manual_seed(seed))
    mask_OI = mask_of(weight_OI, share, pattern)
    assert int((~mask_OI).sum()) == int(share * weight_OI.numel())
    if pattern == "2:4":
        kept = mask_OI.unflatten(-1, (-1, 4)).sum(-1)
        assert kept.min() >= 2
        if share == 0.5:
            assert kept.max() == 2
    elif mask_OI.any() and not mask_OI.all():
        assert weight_OI.abs()[~mask_OI].max() <= weight_OI.abs()[mask_OI].min()


def test_pruning_reaches_its_share_and_keeps_its_zeros(text: np.ndarray) -> None:
    sparsity = Sparsity(0.75, begin_step=2, end_step=30)
    assert sparsity.share(0) == 0.0
    assert sparsity.share(29) == sparsity.share(1000) == 0.75
    assert sum(map(sparsity.due, range(100))) == 28 // EVERY + 1
    trainer = after(replace(RECIPE, sparsity=sparsity), text, steps=29)
    halfway = trainer.weights()["layers.0.q_proj.weight"] == 0
    assert 0 < halfway.float().mean() < 0.75
    for _ in range(20):
        trainer.advance(1.0)
    weights = trainer.weights()
    for name, value in weights.items():
        if name.endswith("_proj.weight"):
            assert (value == 0).float().mean().item() == pytest.approx(0.75, abs=1 / value.numel())
            assert torch.equal(value == 0, ~weights[name.replace("weight", "mask_OI")])
        elif name.endswith(("embed_tokens.weight", "lm_head.weight")):
            assert (value != 0).all()
    assert (weights["layers.0.q_proj.weight"][halfway] == 0).all()


def test_two_of_four_holds_in_every_matrix(text: np.ndarray) -> None:
    trainer = after(replace(RECIPE, sparsity=Sparsity(0.5, "2:4", 2, 20)), text, steps=25)
    for name, value in trainer.weights().items():
        if name.endswith("_proj.weight"):
            assert ((value != 0).unflatten(-1, (-1, 4)).sum(-1) == 2).all()


def test_identity_of_compressed_runs() -> None:
    base = RunSpec("c" * 64, 2, 64, 192, 1, 0.004, 2**22, cooled=True)
    w4 = replace(base, weights="INT4@channel")
    assert w4.run_id != base.run_id
    assert w4.base == base == base.base
    assert replace(base, weights="INT16@channel", activations="BF16").run_id == base.run_id
    assert replace(base, weights="INT1@channel").run_id == replace(base, weights="BINARY@channel").run_id
    assert replace(base, weights="INT4@channel:rne").run_id == w4.run_id
    assert w4.recipe.precision.weights == "INT4@channel"
    assert len(COMPRESSION) == 14
    sparse = replace(w4, sparsity=0.5, sparsity_pattern="2:4")
    assert sparse.recipe.sparsity == Sparsity(0.5, "2:4")
    assert sparse.base == base
    with pytest.raises(BitlawError, match="keeps half"):
        replace(base, sparsity=0.25, sparsity_pattern="2:4")


def test_what_draws_random_numbers() -> None:
    assert not stochastic(INTEGER)
    assert stochastic(Precision(gradients_to_inputs="E2M1@8:sr"))
    assert stochastic(Precision(exceptions="down.activations=INT8@8:sr"))


def test_the_meta_device_takes_a_quantized_step() -> None:
    """Shapes and devices of the path that CUDA takes, without memory or arithmetic."""
    model = trunk.low_precision(SHAPE, replace(SUN, keys_values="INT4@token"), Sparsity(0.5)).to("meta")
    tokens = torch.zeros(2, 16, dtype=torch.long, device="meta")
    loss = mean_loss(model(tokens, torch.bfloat16), tokens, model.fast)
    loss.backward()
    assert loss.device.type == "meta"
    assert all(p.grad is not None and p.grad.device.type == "meta" for p in model.parameters())


def test_a_weight_quantized_model_is_exported_as_a_plain_one() -> None:
    tokens = torch.randint(0, 64, (2, 16), generator=torch.Generator().manual_seed(0))
    model = Decoder(SHAPE)
    attach(model, Precision(weights="INT3@channel", exceptions="down.weights=INT8@16"))
    model.initialise(1)
    plain = baked(model)
    assert not list(plain.layers[0].casts)  # type: ignore[arg-type]
    assert torch.equal(plain(tokens), model(tokens))
    assert not torch.equal(plain.layers[0].q_proj.weight, model.layers[0].q_proj.weight)  # type: ignore[union-attr, arg-type]
    llama = to_transformers(plain)
    assert torch.allclose(llama(tokens).logits, model(tokens), atol=1e-4)
    attach(model, INTEGER)
    with pytest.raises(BitlawError, match="casts more than weights"):
        baked(model)


# Dynamo itself makes an instance of the function that it traces.
@pytest.mark.filterwarnings("ignore:.*should not be instantiated:DeprecationWarning")
def test_six_inputs_compiled_are_the_eager_ones() -> None:
    """Several quantizers through one compiled function: each keeps its own numbers (see `constant`)."""
    x_BTI, list_OI, g_BTO = tensors(3)
    inputs = [x_BTI.requires_grad_(), *(w.requires_grad_() for w in list_OI)]
    made = [
        Product(roles(weights=text, weights_backward=text, activations_backward=text), 64, learn=False)
        for text in ("INT4@32", "E2M1@8", "INT2@8")
    ]
    compiled = torch.compile(lambda product, x, weights: product(x, weights), dynamic=False)
    for product in made:
        y_BTO, again_BTO = product(x_BTI, list_OI), compiled(product, x_BTI, list_OI)
        assert torch.equal(y_BTO, again_BTO)
        grads, others = (torch.autograd.grad(y, inputs, g_BTO) for y in (y_BTO, again_BTO))
        for one, other in zip(grads, others, strict=True):
            assert torch.allclose(one, other, atol=1e-5)
