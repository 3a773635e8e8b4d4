"""The model: counts, causality, types, and agreement with transformers."""

import pytest
import torch

from shared.errors import BitlawError
from shared.model import Decoder, Shape
from shared.model.exchange import from_transformers, to_transformers
from shared.model.transformer import token_losses

SHAPE = Shape(n_layer=2, d_model=64, d_ff=96, vocabulary=128, context=32)


def model_of(shape: Shape = SHAPE, seed: int = 1) -> Decoder:
    model = Decoder(shape)
    model.initialise(seed)
    # Gains differ from one, so that a gain left out of an export is seen.
    for parameter in model.parameters():
        if parameter.dim() == 1:
            torch.nn.init.normal_(parameter, mean=1.0, std=0.1)
    return model


def test_the_counts_are_those_of_the_matrices() -> None:
    model = model_of()
    counts = {name: p.numel() for name, p in model.named_parameters()}
    blocks = sum(n for name, n in counts.items() if name.startswith("layers.") and "norm" not in name)
    assert blocks == SHAPE.n_blocks
    assert counts["embed_tokens.weight"] == SHAPE.n_embedding
    assert counts["lm_head.weight"] == SHAPE.n_head
    assert sum(counts.values()) == SHAPE.n_blocks + SHAPE.n_embedding + SHAPE.n_head + SHAPE.n_norms


@pytest.mark.parametrize(
    ("sizes", "n_blocks"),
    [
        ((2, 64, 192), 106_496),
        ((4, 64, 192), 212_992),
        ((2, 128, 320), 376_832),
        ((3, 128, 320), 565_248),
        ((4, 128, 384), 851_968),
        ((1, 256, 640), 753_664),
    ],
)
def test_the_designs_sizes(sizes: tuple[int, int, int], n_blocks: int) -> None:
    assert Shape(*sizes).n_blocks == n_blocks


def test_a_token_sees_only_its_past() -> None:
    model = model_of()
    tokens_BT = torch.randint(0, 128, (2, 32), generator=torch.Generator().manual_seed(0))
    changed_BT = tokens_BT.clone()
    changed_BT[:, 20] = (changed_BT[:, 20] + 1) % 128
    with torch.no_grad():
        before, after = model(tokens_BT), model(changed_BT)
    assert torch.equal(before[:, :20], after[:, :20])
    assert not torch.allclose(before[:, 20:], after[:, 20:])


@pytest.mark.parametrize("shape", [SHAPE, Shape(1, 128, 64, vocabulary=128, context=16)])
def test_logits_equal_transformers_and_the_way_back_is_exact(shape: Shape) -> None:
    model = model_of(shape)
    tokens_BT = torch.randint(0, 128, (3, shape.context), generator=torch.Generator().manual_seed(0))
    llama = to_transformers(model)
    with torch.no_grad():
        ours, theirs = model(tokens_BT), llama(tokens_BT).logits
    assert (ours - theirs).abs().max() <= 1e-5
    back = from_transformers(llama)
    for name, value in model.state_dict().items():
        assert torch.equal(value, back.state_dict()[name]), name


def test_an_unlike_llama_is_refused() -> None:
    llama = to_transformers(model_of())
    llama.config.num_key_value_heads = 1
    with pytest.raises(BitlawError, match="key and value heads is 1"):
        from_transformers(llama)


def test_bf16_products_stay_close_to_fp32() -> None:
    model = model_of()
    tokens_BT = torch.randint(0, 128, (2, 32), generator=torch.Generator().manual_seed(0))
    targets_BT = tokens_BT.roll(-1, 1)
    with torch.no_grad():
        exact = token_losses(model(tokens_BT), targets_BT).mean()
        rounded = token_losses(model(tokens_BT, torch.bfloat16), targets_BT).mean()
    assert exact != rounded
    assert abs(exact - rounded) < 0.01


def test_the_seed_decides_the_weights() -> None:
    first, again, other = (Decoder(SHAPE) for _ in range(3))
    first.initialise(7)
    again.initialise(7)
    other.initialise(8)
    assert all(torch.equal(a, b) for a, b in zip(first.parameters(), again.parameters(), strict=True))
    assert not torch.equal(first.lm_head.weight, other.lm_head.weight)


def test_bad_shapes_are_one_sentence() -> None:
    with pytest.raises(BitlawError, match="n_layer is 0"):
        Shape(0, 64, 64)
    with pytest.raises(BitlawError, match="multiple of an even head_size"):
        Shape(1, 48, 64)


def test_meta_device_places_everything() -> None:
    with torch.device("meta"):
        model = Decoder(SHAPE)
    assert {p.device.type for p in model.parameters()} == {"meta"}
