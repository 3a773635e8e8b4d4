"""Progressive decoding: nested widths, schedules, cached decoding against plain definitions, and text metrics.

Shape letters: O outputs, I inputs, S windows, T positions, P prefix, t decode steps, W tokens of a text.
"""

from collections.abc import Iterator
from fractions import Fraction
from itertools import pairwise
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from ptq_models import CONTEXT, VOCABULARY
from ptq_models import model as random_model
from torch import Tensor

from replications.precision_predictor import scheduler
from replications.precision_predictor.decoding import (
    agreement,
    check_cache,
    check_prefix,
    generate,
    prefill_cache,
    rouge_l,
    step_losses,
)
from replications.precision_predictor.nested import RATIOS, Switch, nest, nested
from replications.precision_predictor.schedules import (
    CHORD,
    FULL,
    OWN_PREFILL,
    REVERSE,
    SPREAD,
    Schedule,
    class_schedules,
    classes,
    controls,
    default_losses,
    default_texts,
    parse_schedule,
)
from shared.errors import BitlawError
from shared.model.transformer import token_losses
from shared.ptq.layers import listed, weight_OI

KINDS = ("llama", "gpt2", "gpt_neox")
WIDTHS, HIGHEST, GROUP, PREFIX = (2, 3, 4, 5, 6), 6, 16, 8
STEPS = CONTEXT - PREFIX


@pytest.fixture(autouse=True)
def one_thread() -> None:
    torch.set_num_threads(1)


@pytest.fixture(scope="module", params=KINDS)
def switch(request: pytest.FixtureRequest) -> Iterator[Switch]:
    with nested(random_model(request.param), WIDTHS, GROUP) as made:
        yield made


def windows(count: int = 3) -> Tensor:
    return torch.randint(0, VOCABULARY, (count, CONTEXT + 1), generator=torch.Generator().manual_seed(1))


def schedule(text: str) -> Schedule:
    return parse_schedule(text, STEPS, HIGHEST)


def losses(switch: Switch, text: str, batch: int = 8) -> Tensor:
    return step_losses(switch.model, switch, windows(), PREFIX, schedule(text), batch)


# --- nested weights -----------------------------------------------------------------------------------------------


def normal(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def test_lower_widths_are_leading_bits_of_one_code() -> None:
    made = nest(normal(6, 32), WIDTHS, GROUP)
    assert made.codes_OGE.dtype == torch.uint8
    assert int(made.codes_OGE.max()) < 2**HIGHEST
    for width in WIDTHS:
        top_OGE = made.codes_OGE >> (HIGHEST - width)
        weight_OGE = made.weight(width).unflatten(1, (-1, GROUP))
        for o in range(6):
            for g in range(2):
                pairs = set(zip(top_OGE[o, g].tolist(), weight_OGE[o, g].tolist(), strict=True))
                assert len(pairs) == len({code for code, _ in pairs}) <= 2**width  # the leading bits say the value
                ordered = [value for _, value in sorted(pairs)]
                assert ordered == sorted(ordered)


def test_widths_lose_less_the_more_bits_and_at_most_what_a_shared_range_costs() -> None:
    weight_OI = normal(64, 32)
    together = nest(weight_OI, WIDTHS, GROUP)
    shared = [(together.weight(width) - weight_OI).square().sum().item() for width in WIDTHS]
    assert all(low > 2 * high for low, high in pairwise(shared))
    for width, error in zip(WIDTHS, shared, strict=True):
        alone = (nest(weight_OI, (width,), GROUP).weight(width) - weight_OI).square().sum().item()
        assert alone <= error * (1 + 1e-5)  # the same grid, with a range of its own
        assert error <= 1.5 * alone
    # Below the best symmetric uniform quantizer of a normal no grid of four levels goes (0.1188), but the range and
    # the scale here are those of 16 weights each.
    assert 0.07 < shared[0] / weight_OI.square().sum().item() < 0.1188


def test_scales_are_least_squares_and_a_group_of_zeros_stays_zero() -> None:
    weight_OI = normal(4, 32)
    weight_OI[1] = 0.0
    made = nest(weight_OI, WIDTHS, GROUP)
    for width in WIDTHS:
        rounded_OI = made.weight(width)
        assert torch.equal(rounded_OI[1], torch.zeros(32))
        # At the best scale the error is orthogonal to what is scaled.
        inner_OG = (rounded_OI * (weight_OI - rounded_OI)).unflatten(1, (-1, GROUP)).sum(-1)
        assert inner_OG.abs().max() < 1e-4
    assert made.stored_bits == 6 + 5 * 32 / 16
    assert 0 < min(RATIOS) < max(RATIOS) == 1.0


@pytest.mark.parametrize(
    ("widths", "group", "word"), [((), 16, "one or more"), ((9,), 16, "8 bits"), ((4,), 5, "divide")]
)
def test_nested_widths_that_cannot_be(widths: tuple[int, ...], group: int, word: str) -> None:
    with pytest.raises(BitlawError, match=word):
        nest(normal(2, 32), widths, group)


def test_a_switch_sets_every_matrix_and_gives_the_weights_back() -> None:
    model = random_model("gpt2")  # Conv1D, whose weights lie the other way round
    before = {name: value.clone() for name, value in model.state_dict().items()}
    names = [m.name for m in listed(model, with_head=False)]
    with nested(model, WIDTHS, None) as switch:
        for width in (3, 2, 3):
            switch.use(width)
            for name in names:
                assert torch.equal(weight_OI(model.get_submodule(name)), switch.matrices[name].weight(width))
        with pytest.raises(BitlawError, match="no width of 7 bits"):
            switch.use(7)
        assert switch.relative_mse(2) > 4 * switch.relative_mse(3) / 2 > 0
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())


# --- schedules ----------------------------------------------------------------------------------------------------


def test_schedules_by_their_texts() -> None:
    assert parse_schedule("uniform:4", 3, 6) == Schedule("uniform:4", 6, (4, 4, 4))
    assert parse_schedule("uniform:4@4", 2, 6).prefill == 4
    assert parse_schedule("static:4:3:2", 5, 6).widths == (4, 4, 3, 3, 3)
    assert parse_schedule("reverse:static:4:3:2", 5, 6).widths == (3, 3, 3, 4, 4)
    assert parse_schedule("spread:4:3:2", 6, 6).widths == (3, 3, 4, 3, 3, 4)
    assert parse_schedule("linear:6:2", 9, 6).widths == (6, 6, 5, 5, 4, 4, 3, 3, 2)
    assert parse_schedule("uniform:16@16", 2, 6).used == {FULL}
    assert parse_schedule("linear:5:3", 1, 6).widths == (5,)
    assert parse_schedule("linear:6:2", 192, 6).bits == 4
    assert parse_schedule("linear:5:3", 192, 6).bits == 4
    assert parse_schedule("static:5:4:64", 192, 6).bits == Fraction(13, 3)


@given(high=st.integers(1, 8), low=st.integers(1, 8), steps=st.integers(1, 60), many=st.integers(0, 60))
def test_schedules_never_rise_and_their_bits_are_counted(high: int, low: int, steps: int, many: int) -> None:
    high, low, many = max(high, low), min(high, low), min(many, steps)
    linear = parse_schedule(f"linear:{high}:{low}", steps, 8)
    static = parse_schedule(f"static:{high}:{low}:{many}", steps, 8)
    spread = parse_schedule(f"spread:{high}:{low}:{many}", steps, 8)
    for made in (linear, static):
        assert all(a >= b for a, b in pairwise(made.widths))
        back = parse_schedule(f"reverse:{made.name}", steps, 8)
        assert back.widths == made.widths[::-1]
        assert back.bits == made.bits
    assert linear.widths[0] == high
    assert steps == 1 or linear.widths[-1] == low
    assert steps == 1 or abs(linear.bits - Fraction(high + low, 2)) <= Fraction(1, 2)
    assert static.bits == spread.bits == low + Fraction((high - low) * many, steps)
    for made in (linear, static, spread):
        assert [width for width, a, b in made.segments for _ in range(a, b)] == list(made.widths)
        assert all(a[0] != b[0] for a, b in pairwise(made.segments))


@given(width=st.integers(1, 8), steps=st.integers(1, 40), many=st.integers(0, 40))
def test_high_equal_to_low_is_uniform(width: int, steps: int, many: int) -> None:
    uniform = parse_schedule(f"uniform:{width}", steps, 8)
    for text in (f"linear:{width}:{width}", *(f"{k}:{width}:{width}:{min(many, steps)}" for k in ("static", "spread"))):
        assert parse_schedule(text, steps, 8).widths == uniform.widths


def test_what_a_schedule_is_compared_with_has_its_average_bits() -> None:
    names = default_losses(192, 6)
    for name in names:
        mine = parse_schedule(name, 192, 6)
        for control, mix in controls(mine, names, 6).items():
            assert sum(mix.values()) == 1
            bits = sum(weight * parse_schedule(other, 192, 6).bits for other, weight in mix.items())
            assert bits == mine.bits, (name, control)
    found = controls(parse_schedule("static:5:4:64", 192, 6), names, 6)
    assert found[CHORD] == {"uniform:4": Fraction(2, 3), "uniform:5": Fraction(1, 3)}
    assert found[REVERSE] == {"reverse:static:5:4:64": 1}
    assert found[SPREAD] == {"spread:5:4:64": 1}
    assert controls(parse_schedule("linear:6:2", 192, 6), names, 6)[CHORD] == {"uniform:4": 1}
    assert controls(parse_schedule("uniform:3", 192, 6), names, 6) == {OWN_PREFILL: {"uniform:3@3": 1}}
    assert controls(parse_schedule("uniform:3@3", 192, 6), names, 6) == {}


def test_defaults_fit_every_length_and_every_highest_width() -> None:
    for steps in (1, 2, 24, 192):
        for highest in (3, 6, 8):
            for name in (*default_losses(steps, highest), *default_texts(steps, highest)):
                assert len(parse_schedule(name, steps, highest).widths) == steps
    assert classes(255) == (0, 85, 170, 255)  # the paper's
    assert class_schedules(4, 3, 255)[1] == "static:4:3:85"


@pytest.mark.parametrize(
    ("text", "steps", "words"),
    [
        ("", 4, "schedule is empty"),
        ("  ", 4, "schedule is empty"),
        ("uniform:4", 0, "no decode step"),
        ("statik:4:3:2", 4, "did you mean 'static'"),
        ("static:3:4:2", 4, r"low \(4 bits\) is above high \(3\)"),
        ("linear:2:6", 4, "above high"),
        ("static:4:3:5", 4, "5 steps are high, and there are 4"),
        ("static:4:3", 4, "static:HIGH:LOW:STEPS"),
        ("uniform:four", 4, "not 'four'"),
        ("uniform:4@x", 4, "the prefill must be"),
        ("uniform:7", 4, "has 7 bits"),
        ("uniform:0", 4, "has 0 bits"),
        ("reverse:", 4, "unknown"),
    ],
)
def test_bad_schedules_say_so_in_one_sentence(text: str, steps: int, words: str) -> None:
    with pytest.raises(BitlawError, match=words) as caught:
        parse_schedule(text, steps, HIGHEST)
    assert "\n" not in str(caught.value)


def test_an_empty_schedule_and_prefixes_that_leave_nothing() -> None:
    with pytest.raises(BitlawError, match="is empty: give it at least one decode step"):
        Schedule("mine", 4, ())
    with pytest.raises(BitlawError, match="leaves nothing of a context of 32"):
        check_prefix(32, 32)
    with pytest.raises(BitlawError, match="at least one"):
        check_prefix(0, 32)
    assert check_prefix(31, 32) == 1


# --- decoding -----------------------------------------------------------------------------------------------------


@torch.no_grad()
def token_by_token(switch: Switch, windows_ST: Tensor, made: Schedule) -> Tensor:
    """The definition: one token after another, each by the weights of its step, on the cache as it is then."""
    switch.use(made.prefill)
    cache = switch.model(input_ids=windows_ST[:, :PREFIX], use_cache=True).past_key_values
    found = []
    for t, width in enumerate(made.widths):
        switch.use(width)
        out = switch.model(input_ids=windows_ST[:, PREFIX + t, None], past_key_values=cache, use_cache=True)
        cache = out.past_key_values
        found.append(token_losses(out.logits, windows_ST[:, PREFIX + t + 1, None]))
    return torch.cat(found, dim=1).double()


@pytest.mark.parametrize("text", ["static:4:2:10", "linear:6:2", "reverse:linear:6:2", "spread:5:3:7", "uniform:3@2"])
def test_one_pass_a_segment_is_token_by_token_decoding(switch: Switch, text: str) -> None:
    found_St = losses(switch, text, batch=2)
    torch.testing.assert_close(found_St, token_by_token(switch, windows(), schedule(text)), atol=1e-4, rtol=0)


@pytest.mark.parametrize("width", [FULL, 4, 2])
@torch.no_grad()
def test_cached_decoding_at_one_width_is_the_full_forward(switch: Switch, width: int) -> None:
    found_St = losses(switch, f"uniform:{width}@{width}")
    switch.use(width)
    logits_STV = switch.model(input_ids=windows()[:, :-1], use_cache=False).logits
    plain_St = token_losses(logits_STV, windows()[:, 1:])[:, PREFIX:].double()
    torch.testing.assert_close(found_St, plain_St, atol=1e-4, rtol=0)


def test_high_equal_to_low_decodes_exactly_as_uniform(switch: Switch) -> None:
    uniform_St = losses(switch, "uniform:3")
    for text in ("static:3:3:10", "linear:3:3", "spread:3:3:5", "reverse:static:3:3:1"):
        assert torch.equal(losses(switch, text), uniform_St)
    prompts_SP = windows()[:, :PREFIX]
    same_SW = [generate(switch.model, switch, prompts_SP, schedule(t), 8) for t in ("static:3:3:10", "uniform:3")]
    assert torch.equal(*same_SW)


def test_the_past_keeps_the_precision_it_was_computed_at(switch: Switch) -> None:
    early_St, late_St, low_St = (losses(switch, t) for t in ("static:5:2:12", "reverse:static:5:2:12", "uniform:2"))
    # What comes later changes nothing before it ...
    torch.testing.assert_close(late_St[:, :12], low_St[:, :12], atol=1e-4, rtol=0)
    assert (late_St[:, 12:] - low_St[:, 12:]).abs().max() > 1e-2
    # ... and after the switch the same weights still read other keys and values.
    assert (early_St[:, 12:] - low_St[:, 12:]).abs().max() > 1e-3
    assert (losses(switch, "uniform:2@2") - low_St).abs().max() > 1e-3  # the prefill's


def test_generated_text_is_the_most_likely_next_token_each_time(switch: Switch) -> None:
    prompts_SP, made = windows()[:, :PREFIX], schedule("static:5:2:9")
    text_SW = generate(switch.model, switch, prompts_SP, made, batch=2)
    assert text_SW.shape == (3, STEPS + 1)
    # By the definition on the text that came out: the least loss at each step is that of the token that was chosen.
    given_ST = torch.cat([prompts_SP, text_SW], dim=1)
    chosen_St = token_by_token(switch, given_ST, made)
    for other in (1, 7, 200):
        swapped_ST = given_ST.clone()
        swapped_ST[:, -1] = (given_ST[:, -1] + other) % VOCABULARY
        assert (token_by_token(switch, swapped_ST, made)[:, -1] >= chosen_St[:, -1] - 1e-6).all()
    switch.use(made.prefill)
    with torch.no_grad():
        first_S = switch.model(input_ids=prompts_SP).logits[:, -1].argmax(-1)
    assert torch.equal(text_SW[:, 0], first_S)
    switch.use(FULL)
    hub_SW = switch.model.generate(
        prompts_SP,
        max_new_tokens=STEPS + 1,
        min_new_tokens=STEPS + 1,
        do_sample=False,
        eos_token_id=None,
        pad_token_id=0,
    )[:, PREFIX:]
    assert torch.equal(generate(switch.model, switch, prompts_SP, schedule("uniform:16@16"), 8), hub_SW)


def test_a_schedule_of_another_length_is_refused(switch: Switch) -> None:
    with pytest.raises(BitlawError, match="has 5 steps, the windows have 24"):
        step_losses(switch.model, switch, windows(), PREFIX, parse_schedule("uniform:4", 5, 6), 8)


def test_a_model_without_a_cache_is_refused() -> None:
    from transformers import MambaConfig, MambaForCausalLM, OpenAIGPTConfig, OpenAIGPTLMHeadModel

    small: dict[str, Any] = {"vocab_size": 50}
    first = OpenAIGPTLMHeadModel(OpenAIGPTConfig(n_embd=32, n_layer=1, n_head=2, n_positions=32, **small))
    state = MambaForCausalLM(MambaConfig(hidden_size=32, num_hidden_layers=1, state_size=4, **small))
    for model in (first.eval(), state.eval()):
        with pytest.raises(BitlawError, match="keeps no cache of keys and values"):
            check_cache(model)
    for kind in KINDS:
        check_cache(random_model(kind))


# --- text metrics -------------------------------------------------------------------------------------------------


def slow_subsequence(a: list[int], b: list[int]) -> int:
    table = [[0] * (len(b) + 1) for _ in range(len(a) + 1)]
    for i, x in enumerate(a):
        for j, y in enumerate(b):
            table[i + 1][j + 1] = table[i][j] + 1 if x == y else max(table[i][j + 1], table[i + 1][j])
    return table[-1][-1]


@settings(max_examples=40)
@given(seed=st.integers(0, 10_000), words=st.integers(1, 12), others=st.integers(1, 12), kinds=st.integers(1, 5))
def test_rouge_l_is_the_longest_common_subsequence(seed: int, words: int, others: int, kinds: int) -> None:
    maker = torch.Generator().manual_seed(seed)
    texts_SW = torch.randint(0, kinds, (3, words), generator=maker)
    references_SW = torch.randint(0, kinds, (3, others), generator=maker)
    found_S = rouge_l(texts_SW, references_SW)
    for text, reference, value in zip(texts_SW.tolist(), references_SW.tolist(), found_S, strict=True):
        assert value == pytest.approx(2 * slow_subsequence(text, reference) / (words + others))


def test_agreement_counts_to_the_first_difference() -> None:
    texts_SW = torch.tensor([[1, 2, 3, 4], [1, 2, 0, 4], [0, 2, 3, 4]])
    assert agreement(texts_SW, torch.tensor([[1, 2, 3, 4]]).expand(3, -1)).tolist() == [4, 2, 0]


# --- the learned scheduler ----------------------------------------------------------------------------------------


def test_labels_are_the_fewest_high_steps_that_reach_all_high() -> None:
    rouge_SK = np.array([[0.5, 0.6, 0.7, 0.5], [0.1, 0.2, 0.3, 0.3], [0.1, 0.2, 0.3, 0.4], [0.39996, 0.0, 0.0, 0.4]])
    assert scheduler.labels(rouge_SK).tolist() == [0, 2, 3, 0]


def test_the_scheduler_reads_the_last_block_and_learns_what_can_be_read(switch: Switch) -> None:
    half_S = np.arange(200) % 2  # two kinds of prompts, of four tokens each
    prompts_SP = torch.randint(0, 4, (200, 4), generator=torch.Generator().manual_seed(2))
    prompts_SP += 100 * torch.from_numpy(half_S)[:, None]
    keys, values = prefill_cache(switch.model, switch, prompts_SP, 4, batch=64)
    assert keys.shape == values.shape
    assert keys.shape[0] == 200
    assert keys.shape[2] == 4
    switch.use(4)
    with torch.no_grad():
        last = switch.model(input_ids=prompts_SP[:64], use_cache=True).past_key_values.layers[-1]
    torch.testing.assert_close(last.keys, keys[:64])
    learned = scheduler.train(keys[:160], values[:160], 3 * half_S[:160], classes=4)
    chosen_S = learned.choose(keys[160:], values[160:])
    assert (chosen_S == 3 * half_S[160:]).mean() > 0.8
    assert learned.prior_K.tolist() == [0.5, 0, 0, 0.5]
    again = scheduler.train(keys[:160], values[:160], 3 * half_S[:160], classes=4)
    assert np.array_equal(again.choose(keys[160:], values[160:]), chosen_S)  # seeded
    with pytest.raises(BitlawError, match="10 prompts cannot train"):
        scheduler.train(keys[:10], values[:10], half_S[:10], classes=4)
