"""Bits under a budget: to the last bit, never outside, uniform for equals, the optimum of what can be tried out."""

import itertools

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from replications.precision_predictor.allocation import (
    Allocation,
    Array,
    Kind,
    Units,
    budget,
    fill,
    hull_gains,
    linear,
    metadata_bits,
    optimum,
    uniform,
)
from shared.errors import BitlawError

SHAPES = ((4, 8), (8, 8), (6, 24), (1, 16))


def units_of(kind: Kind) -> Units:
    return Units(kind, SHAPES, 4)


def random_errors(units: int, widths: int, seed: int) -> Array:
    """Falling and not convex."""
    return np.random.default_rng(seed).exponential(size=(units, widths)).cumsum(1)[:, ::-1].copy()


# --- the budget ---------------------------------------------------------------------------------------------------


@settings(max_examples=60, deadline=None)
@given(
    kind=st.sampled_from(["layer", "channel", "group"]),
    rule=st.sampled_from(["uniform", "optimum", "linear"]),
    b_min=st.integers(2, 5),
    span=st.integers(0, 3),
    place=st.floats(0, 1),
    scale_bits=st.integers(0, 1000),
    seed=st.integers(0, 10**6),
)
def test_the_budget_is_met_to_the_last_bit(
    kind: Kind, rule: str, b_min: int, span: int, place: float, scale_bits: int, seed: int
) -> None:
    units, b_max = units_of(kind), b_min + span
    stored = rule != "uniform"
    spare = metadata_bits(units, b_min, b_max) / units.weights if span else 0.0
    average = round(min(b_min + spare, b_max) + place * max(0.0, b_max - b_min - spare), 4)
    average = min(max(average, b_min), b_max)
    try:
        given_ = budget(average, units, b_min, b_max, stored=stored, scale_bits=scale_bits)
    except BitlawError:
        # Only for want of room for what describes the widths.
        assert average < b_min + metadata_bits(units, b_min, b_max) / units.weights + 1e-3
        return
    sizes_U = units.sizes_U
    generator = np.random.default_rng(seed)
    if rule == "uniform":
        found = uniform(sizes_U, b_min, b_max, given_.code_bits)
    elif rule == "optimum":
        found = optimum(random_errors(len(sizes_U), span + 1, seed), sizes_U, b_min, given_.code_bits)
    else:
        found = linear(generator.lognormal(0, 3, len(sizes_U)), sizes_U, b_min, b_max, given_.code_bits)
    bits = np.concatenate([b.ravel() for b in units.spread(found)]).astype(int)
    assert bits.sum() + given_.metadata_bits + scale_bits == given_.total_bits
    assert given_.total_bits - scale_bits == int(average * units.weights + 1e-9)
    assert found.code_bits(sizes_U) == given_.code_bits
    assert bits.min() >= b_min
    assert bits.max() <= b_max
    # All of a unit has one width, but in one unit.
    assert (units.means([b.astype(float) for b in units.spread(found)]) % 1 > 1e-9).sum() <= 1


def test_metadata_is_counted() -> None:
    """Three bits for each of 2 to 8, 9 for a place among 256 weights, 16 for the scale that a cut needs."""
    units = units_of("channel")
    assert units.weights == 256
    assert metadata_bits(units, 2, 8) == 19 * 3 + 9 + 16
    assert metadata_bits(units, 2, 3) == 19 + 9 + 16
    assert metadata_bits(units, 4, 4) == 0
    given_ = budget(3, units, 2, 8, scale_bits=19 * 16)
    assert given_.code_bits == 3 * 256 - (19 * 3 + 9 + 16)
    assert given_.total_bits == 3 * 256 + 19 * 16
    whole, part = budget(3, units, 2, 8, stored=False), budget(2.5, units, 2, 8, stored=False)
    assert (whole.code_bits, whole.metadata_bits) == (3 * 256, 0)
    assert (part.code_bits, part.metadata_bits) == (640 - 16, 16)


@pytest.mark.parametrize(
    ("average", "b_min", "b_max", "sentence"),
    [
        (1.9, 2, 8, "a budget of 1.9 bits a weight is outside of 2 to 8: choose one inside"),
        (8.1, 2, 8, "a budget of 8.1 bits a weight is outside of 2 to 8: choose one inside"),
        (float("nan"), 2, 8, "a budget of nan bits a weight is outside of 2 to 8"),
        (2.1, 2, 8, "leaves less than 2 for the codes, as the widths of 19 units take 82 bits: give 2.3204 or more"),
        (3, 5, 4, "widths from 5 to 4 bits: they must rise"),
        (3, 1, 4, "widths from 1 to 4 bits: they must rise and lie between 2 and 8"),
    ],
)
def test_what_cannot_be_spent_is_refused(average: float, b_min: int, b_max: int, sentence: str) -> None:
    with pytest.raises(BitlawError) as caught:
        budget(average, units_of("channel"), b_min, b_max)
    assert sentence in str(caught.value)
    assert "\n" not in str(caught.value)


def test_bad_units_and_sensitivities_are_refused() -> None:
    sizes_U = np.array([4, 4])
    for call, sentence in (
        (lambda: Units("row", SHAPES), "unit 'row' is unknown"),  # type: ignore[arg-type]
        (lambda: Units("group", SHAPES, 3), "groups of 3 weights do not divide a row of 8"),
        (lambda: Units("layer", ()), "no matrix"),
        (lambda: fill(np.ones((2, 1)), sizes_U, 2, 15), "15 bits for codes are outside of 16 to 24"),
        (lambda: fill(np.full((2, 1), np.nan), sizes_U, 2, 18), "not a number"),
        (lambda: linear(np.array([1.0, -1.0]), sizes_U, 2, 4, 20), "negative or not finite"),
    ):
        with pytest.raises(BitlawError, match=sentence):
            call()


# --- the rules ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", ["layer", "channel", "group"])
@pytest.mark.parametrize("average", [2.0, 2.3, 3.0, 4.75, 8.0])
def test_equal_sensitivities_give_uniform(kind: Kind, average: float) -> None:
    """At a whole number of bits one width for all; else the widths below and above it, as `uniform` has them."""
    units = units_of(kind)
    sizes_U = units.sizes_U
    bits = int(average * units.weights)
    even = uniform(sizes_U, 2, 8, bits)
    errors_UB = sizes_U[:, None] * 4.0 ** -np.arange(2, 9.0)
    for found in (optimum(errors_UB, sizes_U, 2, bits), linear(np.full(len(sizes_U), 0.3), sizes_U, 2, 8, bits)):
        np.testing.assert_array_equal(found.widths_U, even.widths_U)
        assert (found.seam_unit, found.seam_weights) == (even.seam_unit, even.seam_weights)
    assert set(even.widths_U) <= {int(average), min(int(average) + 1, 8)}
    if average == int(average):
        assert set(even.widths_U) == {int(average)}
        assert even.seam_weights == 0


def test_uniform_is_spread_over_the_model() -> None:
    """Half a bit goes to every other unit, not to the first half of them."""
    widths_U = uniform(np.full(1000, 8), 2, 8, 8 * 2500).widths_U
    for part in widths_U.reshape(10, 100):
        assert abs((part == 3).sum() - 50) <= 1


@settings(max_examples=60, deadline=None)
@given(seed=st.integers(0, 10**6), extra=st.integers(0, 12), convex=st.booleans())
def test_optimum_is_that_of_all_allocations(seed: int, extra: int, convex: bool) -> None:
    """Four units of one weight, widths 2 to 5, every allocation of so many bits tried out.

    Of convex errors the optimum itself; else no worse than what hulls promise, and that bound is below the best.
    """
    errors_UB = random_errors(4, 4, seed)
    if convex:
        falls = np.sort(np.random.default_rng(seed).exponential(size=(4, 3)), axis=1)[:, ::-1]
        errors_UB = np.concatenate([np.zeros((4, 1)), -falls.cumsum(1)], axis=1)
    sizes_U, least = np.ones(4, dtype=np.int64), 8
    best = min(
        sum(errors_UB[u, w] for u, w in enumerate(widths))
        for widths in itertools.product(range(4), repeat=4)
        if sum(widths) == extra
    )
    found = optimum(errors_UB, sizes_U, 2, least + extra)
    assert found.code_bits(sizes_U) == least + extra
    reached = errors_UB[np.arange(4), found.widths_U - 2].sum()
    gains = np.sort(hull_gains(errors_UB).ravel())[::-1]
    bound = errors_UB[:, 0].sum() - gains[:extra].sum()
    assert bound <= best + 1e-9
    if convex:
        assert reached == pytest.approx(best, abs=1e-9)


@settings(max_examples=40, deadline=None)
@given(seed=st.integers(0, 10**6), extra=st.integers(0, 33))
def test_a_seam_is_no_worse_than_whole_units(seed: int, extra: int) -> None:
    """Units of 5, 1, 3 and 2 weights: with the seam's share of its unit's fall, no allocation of whole units and no
    more bits loses less."""
    falls = np.sort(np.random.default_rng(seed).exponential(size=(4, 3)), axis=1)[:, ::-1]
    errors_UB = np.concatenate([np.zeros((4, 1)), -falls.cumsum(1)], axis=1)
    sizes_U = np.array([5, 1, 3, 2])
    best = min(
        sum(errors_UB[u, w] for u, w in enumerate(widths))
        for widths in itertools.product(range(4), repeat=4)
        if np.dot(widths, sizes_U) <= extra
    )
    found = optimum(errors_UB, sizes_U, 2, 22 + extra)
    reached = errors_UB[np.arange(4), found.widths_U - 2].sum()
    if found.seam_weights:
        unit, at = found.seam_unit, found.widths_U[found.seam_unit] - 2
        reached -= found.seam_weights / sizes_U[unit] * falls[unit, at]
    assert reached <= best + 1e-9


def test_hull_is_convex_and_below() -> None:
    errors_UB = random_errors(50, 7, 3)
    gains_US = hull_gains(errors_UB)
    assert (np.diff(gains_US, axis=1) <= 1e-12).all()
    hull_UB = errors_UB[:, :1] - np.concatenate([np.zeros((50, 1)), gains_US.cumsum(1)], axis=1)
    assert (hull_UB <= errors_UB + 1e-9).all()
    np.testing.assert_allclose(hull_UB[:, -1], errors_UB[:, -1])
    # By hand: 10, 9.9, 0: the first step is half of the way down.
    np.testing.assert_allclose(hull_gains(np.array([[10.0, 9.9, 0.0]])), [[5.0, 5.0]])


def test_the_pages_map_is_linear_where_nothing_is_clipped() -> None:
    """Units of one size, sensitivities 0.25 to 1: the map itself spends 2 + 6 * mean(s), and gives 2 + 6 s rounded."""
    sensitivity_U = np.array([0.5, 1.0, 1 / 3, 1 / 6])
    found = linear(sensitivity_U * 7.0, np.full(4, 10), 2, 8, 200)
    np.testing.assert_array_equal(found.widths_U, [5, 8, 4, 3])
    scarce = linear(sensitivity_U, np.full(4, 10), 2, 8, 140)  # half of the factor: 3.5, 5, 3, 2.5
    assert scarce.widths_U.tolist() in ([4, 5, 3, 2], [3, 5, 3, 3])
    nothing = linear(np.zeros(4), np.full(4, 10), 2, 8, 120)
    np.testing.assert_array_equal(nothing.widths_U, [3, 3, 3, 3])


def test_units_and_their_weights() -> None:
    """Sums over blocks and widths spread back over them; the seam raises the first weights of its unit, row by row."""
    shapes = ((2, 4), (1, 4))
    values = [np.arange(8.0).reshape(2, 4), np.full((1, 4), 10.0)]
    assert Units("layer", shapes).sums(values).tolist() == [28, 40]
    assert Units("channel", shapes).sums(values).tolist() == [6, 22, 40]
    assert Units("group", shapes, 2).sums(values).tolist() == [1, 5, 9, 13, 20, 20]
    assert Units("group", shapes, 2).sizes_U.tolist() == [2] * 6
    layer = Units("layer", shapes).spread(Allocation(np.array([2, 5]), 0, 5))
    assert [part.tolist() for part in layer] == [[[3, 3, 3, 3], [3, 2, 2, 2]], [[5, 5, 5, 5]]]
    groups = Units("group", shapes, 2).spread(Allocation(np.array([2, 3, 4, 5, 6, 7]), 3, 1))
    assert [part.tolist() for part in groups] == [[[2, 2, 3, 3], [4, 4, 6, 5]], [[6, 6, 7, 7]]]
