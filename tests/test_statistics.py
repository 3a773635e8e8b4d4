"""Kurtosis of what products read, and change of weights, against numbers by hand."""

import pytest
import torch

from shared.evaluate.statistics import input_kurtosis, weight_change
from shared.model import Decoder, Shape
from shared.model.transformer import Block
from shared.quantize.training import PRODUCTS, Precision, attach

SHAPE = Shape(2, 32, 64, 16, 64, 16)


def model(precision: Precision | None = None) -> Decoder:
    made = Decoder(SHAPE)
    if precision:
        attach(made, precision)
    made.initialise(1)
    return made.eval()


@torch.no_grad()
def test_kurtosis_is_the_fourth_moment_over_the_second_squared() -> None:
    made = model()
    windows_ST = torch.randint(0, 64, (3, 17), generator=torch.Generator().manual_seed(0))
    found = input_kurtosis(made, windows_ST)
    assert set(found) == set(PRODUCTS)
    x_BTD = made.embed_tokens(windows_ST[:, :-1])
    first = made.layers[0]
    last = made.layers[1]
    assert isinstance(first, Block)
    assert isinstance(last, Block)
    reads = first.input_layernorm(x_BTD, torch.float32).double()
    second = last.input_layernorm(first(x_BTD, made.cos_TK[:16], made.sin_TK[:16], torch.float32, False), torch.float32)
    both = torch.cat([reads.flatten(), second.double().flatten()])
    assert found["qkv"] == pytest.approx(float((both**4).mean() / (both**2).mean() ** 2), rel=1e-6)


@torch.no_grad()
def test_the_model_is_as_before_and_casts_are_seen_through() -> None:
    windows_ST = torch.randint(0, 64, (2, 17), generator=torch.Generator().manual_seed(0))
    plain, cast = model(), model(Precision(activations="INT2@token"))
    before = plain(windows_ST[:, :-1])
    first = input_kurtosis(plain, windows_ST)
    assert torch.equal(plain(windows_ST[:, :-1]), before)
    assert all("product" not in vars(block) for block in plain.layers)
    assert input_kurtosis(cast, windows_ST)["down"] != pytest.approx(first["down"], rel=1e-3)


def test_weight_change_is_relative_and_by_product() -> None:
    before = model().state_dict()
    after = {name: value * 1.5 if ".down_proj." in name else value for name, value in before.items()}
    found = weight_change(before, after)
    assert found["down"] == pytest.approx(0.25, rel=1e-6)
    assert found["qkv"] == found["o"] == found["gate_up"] == 0.0
    norms = {n: float(v.double().square().sum()) for n, v in before.items() if n.startswith("layers.") and v.dim() == 2}
    moved = sum(norm for name, norm in norms.items() if ".down_proj." in name)
    assert found["all"] == pytest.approx(0.25 * moved / sum(norms.values()), rel=1e-6)
