"""The planner: what it finds by search against closed forms, and what must hold under any budget."""

import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from replications.capybara_fp import optimum as sun_optimum
from replications.kumar_precision import optimum as kumar_optimum
from replications.kumar_precision.law import d_crit
from replications.laws import find as find_law
from replications.planning.budget import LARGEST_D, LARGEST_N, Budget, count, short
from replications.planning.cost import memory
from replications.planning.frontier import answer, pareto
from replications.planning.plan import plan
from replications.planning.published import published_views
from replications.planning.reading import sixteen_alone
from replications.planning.result import SCHEMA, Point
from replications.planning.search import best_bits, lowest
from replications.planning.setting import BLOCKS, FORMATS, Setting, element_bits
from replications.planning.view import Constants, View
from shared.errors import BitlawError
from shared.files import six_digits
from shared.laws.settings import Published, read_settings

CLOSE = 0.005  # the half a percent
NOWHERE = Path("no-such-folder")  # published constants alone
VIEWS = {view.name: view for view in published_views()}
PAPERS = Path(__file__).parent.parent / "replications"


def constants(paper: str) -> dict[str, float]:
    return read_settings(PAPERS / paper / "published.yaml", Published).values()


def made(budget: Budget, *laws: str) -> dict[str, Point]:
    """The best point of each law."""
    return {law.law: law.best for law in plan(budget, laws=laws, reports=NOWHERE).laws if law.best is not None}


@pytest.mark.parametrize("C", [1e20, 5.76e23, 1e26])
def test_chinchilla(C: float) -> None:
    """N = G (C / 6)^(beta / s), D = (C / 6)^(alpha / s) / G, G = (alpha A / (beta B))^(1 / s), s = alpha + beta."""
    law = read_settings(PAPERS / "comparison" / "published.yaml", Published).laws["chinchilla"]
    c = {name: constant.value for name, constant in law.items()}
    total = c["alpha"] + c["beta"]
    G = (c["alpha"] * c["A"] / (c["beta"] * c["B"])) ** (1 / total)
    found = made(Budget(train_flops=C), "chinchilla")["chinchilla"]
    assert pytest.approx(G * (C / 6) ** (c["beta"] / total), rel=CLOSE) == found.N
    assert pytest.approx((C / 6) ** (c["alpha"] / total) / G, rel=CLOSE) == found.D
    assert found.train_flops == pytest.approx(C)


@pytest.mark.parametrize(("law", "printed", "biases"), [("kumar-all", 7.0, True), ("kumar-all-printed", 3.47, False)])
@pytest.mark.parametrize("C", [1e19, 1e25])
def test_best_bits_of_kumar(law: str, printed: float, biases: bool, C: float) -> None:
    c = constants("kumar_precision")
    f = kumar_optimum.share(c, biases=biases)
    found = best_bits(VIEWS[law], C)
    assert found is not None
    assert found.bits == pytest.approx(printed, rel=CLOSE)
    assert found.bits == pytest.approx(kumar_optimum.best_bits(f), rel=CLOSE)
    at_16 = Budget(train_flops=C, formats=("BF16",))
    whole = made(at_16, law)[law]
    N, D = kumar_optimum.optimum_ratios(f, c, found.bits)
    assert pytest.approx((N, D), rel=CLOSE) == (found.N / whole.N, found.D / whole.D)


@pytest.mark.parametrize("ratio", [20, 200, 2000])
def test_best_bits_of_kumar_at_a_given_size(ratio: float) -> None:
    c = constants("kumar_precision")
    N, D = 8e9, 8e9 * ratio
    expected = kumar_optimum.best_bits_at(kumar_optimum.share(c, biases=True), c, N, D)
    found = best_bits(VIEWS["kumar-all"], 6 * N * D, N=N)
    assert found is not None
    assert found.bits == pytest.approx(expected, rel=CLOSE)


# The facts, 2.5: B = 128.
@pytest.mark.parametrize(
    ("D", "bits"), [(1e10, 3.52), (1e11, 4.27), (1e12, 5.18), (1e13, 6.28), (1e14, 7.62), (1e15, 9.25)]
)
def test_best_bits_of_sun_for_tokens(D: float, bits: float) -> None:
    found = best_bits(VIEWS["sun"], 1e25, D=D)
    assert found is not None
    assert found.bits == pytest.approx(bits, rel=CLOSE)
    assert found.bits == pytest.approx(sun_optimum.best_bits_for_tokens(constants("capybara_fp"), D, 128), rel=CLOSE)


@pytest.mark.parametrize(
    ("C", "bits"), [(1e21, 4.19), (1e24, 5.01), (1e27, 5.98), (1e30, 7.14), (1e31, 7.58), (1e33, 8.53)]
)
def test_best_bits_of_sun_for_a_cost(C: float, bits: float) -> None:
    c = constants("capybara_fp")
    found = best_bits(VIEWS["sun"], C)
    assert found is not None
    assert found.bits == pytest.approx(bits, rel=CLOSE)
    assert found.bits == pytest.approx(sun_optimum.best_bits_for_cost(c, C, 128), rel=CLOSE)
    held = best_bits(VIEWS["sun"], C, N=found.N)
    assert held is not None
    assert held.bits == pytest.approx(sun_optimum.best_bits_for_size(c, found.N, C, 128), rel=CLOSE)


def test_critical_tokens_of_a_given_model() -> None:
    found = plan(Budget(N=1e9, D=1e12, formats=("INT4", "E4M3", "E2M1"), groups=(128,)), reports=NOWHERE)
    readings = {law.law: {point.format: point for point in law.readings} for law in found.laws}
    kumar, sun = constants("kumar_precision"), constants("capybara_fp")
    expected = {
        ("kumar-rounding", "INT4"): d_crit(kumar, 1e9, 4),
        ("kumar-rounding-b", "INT4"): d_crit({**kumar, "C_T": kumar["C_T"] * np.exp(kumar["b"])}, 1e9, 4),
        ("sun", "E4M3"): sun_optimum.critical_tokens(sun, 1e9, 4, 3, 128),
        ("sun", "E2M1"): sun_optimum.critical_tokens(sun, 1e9, 2, 1, 128),
    }
    for (law, name), tokens in expected.items():
        critical = readings[law][name].D_crit
        assert critical is not None
        assert critical.value == pytest.approx(tokens, rel=CLOSE)
        assert critical.low is None, "published constants have no draws"
    assert readings["kumar-all"]["INT4"].D_crit is None, "N_eff alone has no critical tokens"
    f = kumar_optimum.share(kumar, biases=True)
    assert readings["kumar-all"]["INT4"].N_eff_share.value == pytest.approx(f(4), rel=CLOSE)
    assert readings["quest-weights"]["INT4"].N_eff_share.value == pytest.approx(0.8404, rel=CLOSE)


def test_extrapolation_is_said() -> None:
    point = made(Budget(N=2.2e9, D=1e9, formats=("INT4",)), "kumar-rounding")["kumar-rounding"]
    assert point.outside == pytest.approx({"N": 10.0, "D": 1 / 1.5})
    inside = made(Budget(N=1e8, D=1e10, formats=("INT4",)), "kumar-rounding")["kumar-rounding"]
    assert inside.outside == {}


def test_tokens_past_the_critical_ones_are_not_spent() -> None:
    budget = Budget(tokens=1e14, N=1e9, formats=("INT3",))
    point = made(budget, "kumar-rounding")["kumar-rounding"]
    assert pytest.approx(d_crit(constants("kumar_precision"), 1e9, 3), rel=CLOSE) == point.D
    assert made(replace(budget, tokens=1e10), "kumar-rounding")["kumar-rounding"].D == 1e10


def test_a_target_alone_takes_the_least_training() -> None:
    """Chinchilla's law: at the least C that reaches L, the best loss of C is L."""
    found = made(Budget(target_loss=2.2), "chinchilla")["chinchilla"]
    assert found.loss.value == pytest.approx(2.2, abs=1e-6)
    back = made(Budget(train_flops=found.train_flops), "chinchilla")["chinchilla"]
    assert back.loss.value == pytest.approx(2.2, abs=1e-6)
    assert pytest.approx((found.N, found.D), rel=CLOSE) == (back.N, back.D)


@pytest.mark.parametrize("laws", [["chinchilla"], ["quest"]])
def test_a_target_that_no_law_reaches_names_the_lowest_that_one_does(laws: list[str]) -> None:
    """Also where a law reaches it in principle, past the end of the search; a little lower is not possible."""
    least = float(VIEWS["chinchilla"].loss({}, np.array([LARGEST_N]), np.array([LARGEST_D]))[0])
    targets = {"chinchilla": [1.0, least, least * (1 + 1e-9)], "quest": [0.1, 0.8094, 0.9]}
    for target in targets[laws[0]]:
        with pytest.raises(BitlawError, match="the nearest possible --target-loss is ") as error:
            plan(Budget(target_loss=target), laws=laws, reports=NOWHERE)
        offered = float(str(error.value).split(" is ")[-1].split(" ")[0])
        assert target < offered
        points = made(Budget(target_loss=offered), *laws)
        assert points
        assert all(point.N < LARGEST_N and point.D < LARGEST_D for point in points.values())
        with pytest.raises(BitlawError):
            plan(Budget(target_loss=offered - 3e-4), laws=laws, reports=NOWHERE)


def test_an_answer_past_the_end_of_the_search_is_none() -> None:
    said = r"no law answers: its answer lies past the end of the search, N = 1e\+16.*; lower the limits"
    with pytest.raises(BitlawError, match=said):
        plan(Budget(train_flops=1e60), laws=["chinchilla"], reports=NOWHERE)
    assert made(Budget(N=1e9, D=1e20), "chinchilla")


def test_every_published_law_says_which_N_and_D_it_was_fitted_on() -> None:
    for view in VIEWS.values():
        assert {"N", "D"} <= set(view.domain), view.name
        assert all(0 < low < high for low, high in (view.domain["N"], view.domain["D"]))
    outside = made(Budget(N=8e9, D=15e12), "chinchilla")["chinchilla"].outside
    assert outside == {"D": pytest.approx(15e12 / 317.7e9)}


def test_an_irreducible_loss_on_its_bound_promises_nothing(tmp_path: Path) -> None:
    """A fit with E = 0 would reach any target; it answers down to the loss at its largest N and D."""
    law = find_law("chinchilla").law
    constants = {"A": 20.0, "alpha": 0.2, "B": 60.0, "beta": 0.25, "E": 0.0}
    theta = law.internal(constants)
    main = Constants(law, theta)
    domain = {"N": (1e5, 1e6), "D": (1e6, 1e7)}
    view = View("mine", "", "", "ours", "unquantized", main, sixteen_alone, domain=domain, sees_groups=True)
    floor = 20 * 1e6**-0.2 + 60 * 1e7**-0.25
    assert view.floor == pytest.approx(floor)
    low, at = (answer(view, Budget(target_loss=target)) for target in (0.5, floor * 1.01))
    assert low.best is None
    assert low.lowest_loss == view.floor
    assert "its E lies on a bound" in str(low.why)
    assert at.best is not None
    assert at.warning is None
    far = answer(view, Budget(train_flops=1e25))
    assert far.best is not None
    assert far.best.loss.value < floor
    assert "its E lies on a bound" in str(far.warning)
    found = replace(view, main=Constants(law, law.internal({**constants, "E": 0.3})))
    assert found.floor is None
    assert answer(found, Budget(target_loss=0.5)).best is not None


def test_a_target_under_limits_takes_the_least_memory() -> None:
    budget = Budget(train_flops=1e23, memory=40.0, target_loss=2.3)
    point = made(budget, "chen-W4A16")["chen-W4A16"]
    assert point.loss.value == pytest.approx(2.3, abs=1e-5)
    smaller = replace(budget, memory=point.memory * 0.99)
    with pytest.raises(BitlawError, match=r"nearest possible --target-loss is 2\.3"):
        plan(smaller, laws=["chen-W4A16"], reports=NOWHERE)


def test_the_cache_and_embeddings_take_their_memory() -> None:
    plain = made(Budget(tokens=1e11, memory=8.0, formats=("INT4",)), "ouyang")["ouyang"]
    crowded = Budget(tokens=1e11, memory=8.0, formats=("INT4",), embedding=1e9, context=1e5)
    point = made(crowded, "ouyang")["ouyang"]
    assert point.memory == pytest.approx(8.0)
    assert point.N < plain.N
    width = (128 * point.N / 12) ** (1 / 3)
    cache = 2 * width * (width / 128) * 1e5 * 16  # a key and a value of each layer
    weights = point.N * (4 + 16 / width)
    assert (weights + cache + 16e9) / 2**33 == pytest.approx(8.0)


def test_pareto_keeps_what_nothing_dominates() -> None:
    x, y = np.array([1.0, 2.0, 2.0, 3.0, 4.0]), np.array([5.0, 4.0, 3.0, 3.0, 1.0])
    assert pareto(x, y).tolist() == [0, 2, 4]


def test_zoom_finds_the_least() -> None:
    goals = np.array([0.1234567, 2.7, 5.0])
    found = lowest(lambda x: (x - goals[:, None]) ** 2, np.zeros(3), np.full(3, 5.0))
    assert found == pytest.approx(goals, abs=1e-5)


LAWS = ("kumar-rounding", "chen-W4A4", "sun")
GROUPS = (32, "channel")
amount = st.floats(0.0, 1.0)


@settings(max_examples=8, deadline=None)
@given(a=amount, b=amount, more=st.floats(1.0, 30.0), what=st.sampled_from(["memory", "train_flops", "tokens"]))
def test_a_larger_budget_is_never_worse(a: float, b: float, more: float, what: str) -> None:
    budget = Budget(
        memory=0.1 * 1e4**a,
        train_flops=1e20 * 1e6**b,
        tokens=1e10 * 1e4**a,
        formats=("BF16", "INT4", "E2M1"),
        groups=GROUPS,
    )
    larger = replace(budget, **{what: getattr(budget, what) * more})
    first, second = made(budget, *LAWS), made(larger, *LAWS)
    assert set(first) == set(second) == set(LAWS)
    for law in LAWS:
        assert second[law].loss.value <= first[law].loss.value * (1 + 1e-8)


@settings(max_examples=8, deadline=None)
@given(a=amount, b=amount, context=st.sampled_from([0.0, 1e4]), target=st.sampled_from([None, 3.5]))
def test_fronts_keep_the_budget_and_dominate_nothing(a: float, b: float, context: float, target: float | None) -> None:
    budget = Budget(
        memory=0.5 * 1e3**a,
        train_flops=1e21 * 1e4**b,
        context=context,
        target_loss=target,
        formats=("INT4", "E3M2", "INT2"),
        groups=GROUPS,
    )
    for law in plan(budget, laws=LAWS, reports=NOWHERE).laws:
        assert law.best is not None
        assert law.best in law.front
        points = [(point.memory, point.loss.value) for point in law.front]
        for point in law.front:
            assert point.memory <= budget.memory  # type: ignore[operator]
            assert point.train_flops <= budget.train_flops * (1 + 1e-12)  # type: ignore[operator]
            assert target is None or point.loss.value <= target
            mine = (point.memory, point.loss.value)
            assert not any(other != mine and other[0] <= mine[0] and other[1] <= mine[1] for other in points)


@settings(max_examples=30, deadline=None)
@given(
    N=st.floats(1e6, 1e13),
    name=st.sampled_from(FORMATS),
    group=st.sampled_from([32, 128, "channel"]),
    grow=st.floats(1.01, 10),
)
def test_memory_rises_with_size_and_holds_every_bit(N: float, name: str, group: int | str, grow: float) -> None:
    setting = Setting(name, None, 0) if name == "BF16" else Setting(name, group, 16)
    budget = Budget(tokens=1e9, N=1e9)
    from replications.planning.cost import Streams

    small, large = memory(budget, setting, Streams(), np.array([N, N * grow]))
    assert small < large
    assert small >= N * element_bits(name) / 2**33


def test_bits_and_layouts_are_those_of_the_formats() -> None:
    """setting.py reads names without torch; shared/ is what they mean."""
    from shared.formats.names import format_named, names
    from shared.quantize.quantizer import PRESETS, parse_quantizer

    for name in [*names(), "E4M3FN", "E5M2IEEE"]:
        form, setting = format_named(name), Setting(name, 32, 16)
        assert element_bits(name) == form.bits
        assert setting.layout == ((form.exponent, form.mantissa) if form.kind == "float" else None)
        assert setting.integer_bits == (form.bits if form.kind == "integer" and form.bits % 1 == 0 else None)
    assert set(BLOCKS) == set(PRESETS)
    for text, setting in {
        "INT4@128:bf16": Setting("INT4", 128, 16),
        "UINT4@64:bf16": Setting("UINT4", 64, 16),
        "INT3@channel": Setting("INT3", "channel", 32),
        **{name: Setting(name, *BLOCKS[name][1:]) for name in BLOCKS},
    }.items():
        quantizer = parse_quantizer(text)
        assert quantizer is not None
        row = np.array([4096.0])
        assert setting.bits_per_weight(row)[0] == pytest.approx(quantizer.bits_per_value(4096))


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        ({"memory": -3.0, "tokens": 1e12}, "--memory is -3: the nearest possible is a number above 0"),
        ({"N": 8e9, "D": -1.0}, "--D is -1: the nearest possible is 1e"),
        ({"N": 8e9, "tokens": float("nan")}, "--tokens is nan"),
        ({"memory": 16.0}, "add --train-flops, --tokens"),
        ({"tokens": 1e12}, "add --memory, --train-flops"),
        ({"N": 8e9, "D": 2e12, "tokens": 1e12}, "the nearest possible is D 1e"),
        ({"N": 8e9, "tokens": 1e12, "formats": ()}, "no format is allowed; the nearest possible is one of BF16"),
        ({"N": 8e9, "tokens": 1e12, "formats": ("INT44",)}, "did you mean 'INT4'"),
        ({"N": 8e9, "tokens": 1e12, "formats": ("NF4",)}, "no law knows NF4: the nearest possible is one of BF16"),
        ({"N": 8e9, "tokens": 1e12, "groups": (0,)}, "group '0' is none"),
        ({"N": 8e9, "tokens": 1e12, "groups": ("row",)}, "group 'row' is none"),
        ({"memory": 1e-9, "tokens": 1e12}, "--memory 1e-09 is under what 10k parameters need"),
        ({"N": 8e9, "memory": 1.0, "tokens": 1e12}, r"--memory 1 is under what 8B.*is 1\.8.* GiB \(INT2@channel"),
        ({"N": 8e9, "D": 1e12, "train_flops": 1e20}, "--train-flops 1e[+]20 is under what 8B parameters on 1T tokens"),
        ({"train_flops": 1e21, "target_loss": 1.0}, "no law reaches a loss of 1 under this budget: the nearest"),
        ({"target_loss": 0.001}, "no law reaches a loss of 0.001 with any N and D: the nearest possible"),
        ({"N": 8e9, "tokens": 1e12, "train_cost": "free"}, "use bits or flops"),
    ],
)  # fmt: skip
def test_bad_budgets(arguments: dict[str, object], said: str) -> None:
    with pytest.raises(BitlawError, match=said) as error:
        plan(Budget(**arguments), reports=NOWHERE)  # type: ignore[arg-type]
    assert "\n" not in str(error.value)


def test_the_nearest_possible_is_possible() -> None:
    """What a sentence offers works when it is taken."""
    with pytest.raises(BitlawError) as error:
        plan(Budget(train_flops=1e22, target_loss=1.0), laws=["sun"], reports=NOWHERE)
    offered = float(str(error.value).split(" is ")[-1].split(" ")[0])
    point = made(Budget(train_flops=1e22, target_loss=offered), "sun")["sun"]
    assert point.loss.value <= offered
    with pytest.raises(BitlawError) as error:
        plan(Budget(N=8e9, memory=1.0, tokens=1e12), reports=NOWHERE)
    memory_offered = float(str(error.value).split(" is ")[-1].split(" ")[0])
    assert made(Budget(N=8e9, memory=memory_offered, tokens=1e12))


def test_an_unknown_law_has_a_hint() -> None:
    with pytest.raises(BitlawError, match="did you mean 'ouyang'"):
        plan(Budget(N=8e9, D=15e12), laws=["oyang"], reports=NOWHERE)


def test_disagreement_is_said_and_laws_that_are_silent_say_why() -> None:
    found = plan(Budget(N=8e9, D=15e12), reports=NOWHERE)
    rows = {(row.quantity, row.among): row for row in found.spread}
    row = rows["delta, INT4", "trained, published"]
    assert row.laws >= 5
    assert row.times is not None
    assert row.times > 2
    assert row.low_law != row.high_law
    assert row.low_law in found.disagreement
    assert "past D_crit" in found.disagreement
    assert "times outside" in found.disagreement
    why = {silence.why for law in found.laws for silence in law.silent if law.law == "sun"}
    assert any("exponent and mantissa" in reason for reason in why)
    assert "ours" in found.without
    assert "bitlaw replicate plan-base" in found.without["ours"]
    known = {format for law in found.laws for format in [point.format for point in law.readings]}
    silent = {format for law in found.laws for silence in law.silent for format in silence.settings}
    assert known | silent == set(FORMATS)


def test_the_plan_is_plain_json() -> None:
    found = plan(Budget(N=8e9, D=15e12, formats=("INT4", "INT2")), laws=["kumar"], reports=NOWHERE)
    plain = json.loads(json.dumps(six_digits(found.to_json()), allow_nan=False))
    assert plain["schema"] == SCHEMA
    assert plain["axis"] == "loss"
    assert plain["budget"]["N"] == 8e9
    law = next(law for law in plain["laws"] if law["law"] == "kumar-rounding")
    assert law["readings"][0]["D_crit"]["low"] is None
    assert {"N", "D", "format", "group", "memory", "loss", "delta", "N_eff_share", "outside"} <= set(law["best"])
    diverges = next(law for law in plain["laws"] if law["law"] == "kumar-all")
    assert diverges["readings"][1]["loss"]["value"] is None, "f is not above zero in two bits"
    assert all("times" in row for row in plain["spread"])


@pytest.mark.parametrize(
    ("text", "value"), [("8B", 8e9), ("15T", 1.5e13), ("1.2e24", 1.2e24), ("350M", 3.5e8), ("-3", -3.0), ("2 T", 2e12)]
)
def test_counts(text: str, value: float) -> None:
    assert count(text, "N") == pytest.approx(value)


def test_a_count_that_is_none() -> None:
    for text in ("eight", "8Q", "", "1.2.3"):
        with pytest.raises(BitlawError, match="write a number"):
            count(text, "N")
    assert [short(value) for value in (8e9, 1.5e13, 1.29e15, 350.0, 1e24)] == ["8B", "15T", "1290T", "350", "1e+24"]
