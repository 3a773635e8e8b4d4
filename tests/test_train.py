"""Training: batches, schedules, golden losses, and resuming with the same numbers."""

import itertools
import math
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from shared.errors import BitlawError
from shared.model import Shape
from shared.train import trunk
from shared.train.batches import Batches, order
from shared.train.recipe import Recipe, branch_fraction, trunk_fraction
from shared.train.state import DamagedFileError, load, save

SHAPE = Shape(n_layer=1, d_model=32, d_ff=64, vocabulary=64, context=16)
RECIPE = Recipe(SHAPE, seed=1, learning_rate=0.01, batch_tokens=64, warmup_steps=3, compile=False)
HORIZONS = {640: (True, True), 1280: (True, True)}
# Losses of the first 20 steps, single thread, this file's text; another processor may differ in the last digits.
GOLDEN = [
    4.17303, 4.10526, 3.99512, 3.90491, 3.77663, 3.67603, 3.54513, 3.50757, 3.35143, 3.15516,
    3.07926, 2.93154, 2.87528, 2.88213, 2.64149, 2.62956, 2.40804, 2.31195, 2.24049, 2.25365,
]  # fmt: skip


@pytest.fixture(scope="module")
def tokens() -> np.ndarray:
    """A text with structure: a noisy walk over the vocabulary, from a fixed linear congruence."""
    state = 1
    out: list[int] = []
    for i in range(4001):
        state = (1103515245 * state + 12345) % 2**31
        out.append((out[-1] + 1 + (state >> 16) % 3) % 64 if i else 0)
    return np.array(out, np.uint16)


@pytest.fixture(autouse=True)
def one_thread() -> None:
    torch.set_num_threads(1)


def batches(tokens: np.ndarray, seed: int = 1) -> Batches:
    return Batches(tokens, context=16, sequences=4, seed=seed)


def train(
    tokens: np.ndarray, folder: Path, recipe: Recipe = RECIPE, **options: Any
) -> dict[tuple[int, bool], trunk.Checkpoint]:
    made = trunk.run(recipe, batches(tokens, recipe.seed), HORIZONS, folder, torch.device("cpu"), **options)
    return {(c.tokens, c.cooled): c for c in made}


@given(n=st.integers(1, 500), seed=st.integers(0, 2**31), epoch=st.integers(0, 5))
def test_every_pass_sees_each_window_once(n: int, seed: int, epoch: int) -> None:
    assert sorted(order(n, seed, epoch)) == list(range(n))


def test_batches_depend_on_seed_and_step_only(tokens: np.ndarray) -> None:
    first, again, other = batches(tokens), batches(tokens), batches(tokens, seed=2)
    later = first(7)
    first(3)
    assert torch.equal(first(7)[0], later[0])
    assert torch.equal(again(7)[0], later[0])
    assert not torch.equal(other(7)[0], later[0])
    inputs_BT, targets_BT = later
    assert torch.equal(inputs_BT[:, 1:], targets_BT[:, :-1])


def test_a_pass_covers_the_text_and_the_next_has_another_order(tokens: np.ndarray) -> None:
    source = batches(tokens)
    steps = source.n_windows // 4
    seen = torch.cat([source(step)[0] for step in range(steps)])
    starts = {tuple(row.tolist()) for row in seen}
    assert len(seen) == steps * 4
    assert len(starts) > 0.9 * len(seen)
    assert source.repeats(2 * source.n_windows * 16) == 2.0
    assert list(order(50, 1, 0)) != list(order(50, 1, 1))


def test_too_little_text_is_one_sentence(tokens: np.ndarray) -> None:
    with pytest.raises(BitlawError, match="one batch needs 65"):
        Batches(tokens[:40], context=16, sequences=4, seed=1)


def test_schedules() -> None:
    recipe = replace(RECIPE, warmup_steps=10)
    assert [trunk_fraction(recipe, step) for step in (0, 4, 9, 10, 99)] == [0.1, 0.5, 1.0, 1.0, 1.0]
    tokens = 100 * 64
    assert recipe.branch_step(tokens) == 80
    fractions = [branch_fraction(recipe, tokens, step) for step in range(80, 100)]
    assert fractions[0] == 1.0
    assert fractions[5] == pytest.approx(0.5)
    assert all(a > b for a, b in itertools.pairwise(fractions))
    assert 0 < fractions[-1] < 0.03


def test_a_cosine_falls_from_the_end_of_the_warm_up() -> None:
    recipe = replace(RECIPE, warmup_steps=10, decay="cosine")
    tokens = 110 * 64
    assert recipe.branch_step(tokens) == 10
    fractions = [branch_fraction(recipe, tokens, step) for step in range(10, 110)]
    assert fractions[0] == 1.0
    assert fractions[50] == pytest.approx(0.5)
    assert fractions[25] == pytest.approx(0.5 * (1 + math.sqrt(0.5)))
    assert all(a > b for a, b in itertools.pairwise(fractions))
    assert 0 < fractions[-1] < 0.001
    assert replace(recipe, warmup_steps=200).branch_step(tokens) == 109


@pytest.mark.parametrize(
    ("change", "sentence"),
    [
        ({"batch_tokens": 60}, "multiple of context"),
        ({"decay": "linear"}, "one of sqrt, cosine"),
        ({"compute": "fp8"}, "must be 'bf16' or 'fp32'"),
        ({"learning_rate": 0.0}, "between 0 and 1"),
        ({"accumulate": 3}, "multiple of context"),
    ],
)
def test_bad_recipes(change: dict[str, object], sentence: str) -> None:
    with pytest.raises(BitlawError, match=sentence):
        replace(RECIPE, **change)  # type: ignore[arg-type]


def test_a_horizon_is_whole_batches() -> None:
    with pytest.raises(BitlawError, match="no multiple of the batch"):
        RECIPE.steps(100)


def golden_losses(tokens: np.ndarray) -> list[float]:
    trainer = trunk.Trainer(RECIPE, batches(tokens), torch.device("cpu"))
    return [trainer.advance(trunk_fraction(RECIPE, step)) for step in range(20)]


def test_golden_losses_and_repetition(tokens: np.ndarray) -> None:
    losses = golden_losses(tokens)
    assert losses == golden_losses(tokens)
    assert losses == pytest.approx(GOLDEN, rel=2e-3)


def test_training_learns_and_cooling_helps(tokens: np.ndarray, tmp_path: Path) -> None:
    made = train(tokens, tmp_path)
    assert set(made) == {(640, True), (640, False), (1280, True), (1280, False)}
    assert made[1280, True].train_loss < 0.9 * math.log(64)
    assert made[640, False].lr_fraction == 1.0
    assert made[640, True].lr_fraction == 0.0
    assert not any(c.diverged for c in made.values())


def test_branches_leave_the_trunk_alone(tokens: np.ndarray, tmp_path: Path) -> None:
    both = train(tokens, tmp_path / "both")
    made = trunk.run(RECIPE, batches(tokens), {1280: (True, False)}, tmp_path / "one", torch.device("cpu"))
    alone = {c.tokens: c for c in made}
    for name, value in both[1280, False].weights.items():
        assert torch.equal(value, alone[1280].weights[name]), name


@pytest.mark.parametrize("stop_after", [1, 5, 8, 9, 10, 13, 17, 21, 22])
def test_stop_and_resume_is_bit_identical(tokens: np.ndarray, tmp_path: Path, stop_after: int) -> None:
    whole = train(tokens, tmp_path / "whole")
    taken = 0

    def tick(step: int) -> None:
        nonlocal taken
        taken += 1

    made: dict[tuple[int, bool], trunk.Checkpoint] = {}
    folder = tmp_path / "parts"
    stops = 0
    while len(made) < 4:
        goal = taken + stop_after
        horizons = {t: ((t, False) not in made, (t, True) not in made) for t in HORIZONS}
        try:
            for c in trunk.run(
                RECIPE,
                batches(tokens),
                horizons,
                folder,
                torch.device("cpu"),
                tick=tick,
                stop=lambda: taken >= goal,  # noqa: B023
            ):
                made[c.tokens, c.cooled] = c
        except trunk.StoppedError:
            stops += 1
    assert stops >= 1
    for key, checkpoint in whole.items():
        assert made[key].train_loss == checkpoint.train_loss
        for name, value in checkpoint.weights.items():
            assert torch.equal(value, made[key].weights[name]), (key, name)


def test_accumulation_is_the_same_gradient(tokens: np.ndarray) -> None:
    exact = replace(RECIPE, compute="fp32")
    one = trunk.Trainer(exact, batches(tokens), torch.device("cpu"))
    four = trunk.Trainer(replace(exact, accumulate=4), batches(tokens), torch.device("cpu"))
    for step in range(5):
        assert one.advance(trunk_fraction(exact, step)) == pytest.approx(
            four.advance(trunk_fraction(exact, step)), rel=1e-4
        )


def test_divergence_is_recorded_to_the_last_horizon(
    tokens: np.ndarray, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    healthy = trunk.Trainer.__init__

    def sick(trainer: trunk.Trainer, *arguments: object) -> None:
        healthy(trainer, *arguments)  # type: ignore[arg-type]
        mean_loss = trainer.batch_loss

        def broken(tokens_BT: torch.Tensor, targets_BT: torch.Tensor) -> torch.Tensor:
            return mean_loss(tokens_BT, targets_BT) * (math.nan if trainer.step >= 12 else 1.0)

        trainer.batch_loss = broken

    monkeypatch.setattr(trunk.Trainer, "__init__", sick)
    made = train(tokens, tmp_path)
    assert {key: c.diverged for key, c in made.items()} == {
        (640, True): False,
        (640, False): False,
        (1280, True): True,
        (1280, False): True,
    }
    assert all(torch.isfinite(value).all() for value in made[1280, False].weights.values())


def test_a_damaged_state_is_named_and_done_again(tokens: np.ndarray, tmp_path: Path) -> None:
    whole = train(tokens, tmp_path / "whole")
    folder = tmp_path / "hurt"
    train(tokens, folder)
    path = folder / "trunk.safetensors"
    path.write_bytes(path.read_bytes()[:-100])
    warnings: list[str] = []
    again = train(tokens, folder, warn=warnings.append)
    assert len(warnings) == 1
    assert "trunk.safetensors: is truncated" in warnings[0]
    assert torch.equal(again[1280, True].weights["lm_head.weight"], whole[1280, True].weights["lm_head.weight"])


def test_a_flipped_bit_is_found(tmp_path: Path) -> None:
    path = tmp_path / "x.safetensors"
    save(path, {"w": torch.arange(100.0)}, {"step": 3})
    assert load(path)[1] == {"step": 3}
    content = bytearray(path.read_bytes())
    content[-7] ^= 1
    path.write_bytes(content)
    with pytest.raises(DamagedFileError, match="checksum"):
        load(path)


def test_compiled_step_agrees_with_eager(tokens: np.ndarray) -> None:
    compiled = trunk.Trainer(replace(RECIPE, compile=True, compute="fp32"), batches(tokens), torch.device("cpu"))
    eager = trunk.Trainer(replace(RECIPE, compute="fp32"), batches(tokens), torch.device("cpu"))
    for step in range(3):
        assert compiled.advance(1.0) == pytest.approx(eager.advance(1.0), rel=1e-4), step
