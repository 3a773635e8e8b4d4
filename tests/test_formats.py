"""Number formats: the fast casts against their oracle, the facts' tables, and the properties every format has."""

import json
import math
import random
from itertools import pairwise

import numpy as np
import pytest
import torch
import typer
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray
from typer.testing import CliRunner

from replications.commands.formats import formats
from shared.errors import BitlawError
from shared.formats import Format, format_named
from shared.formats.gaussian import best_scale, gaussian_fit, mean_squared_error
from shared.formats.names import names
from shared.formats.oracle import decision_points, nearest_value, nearest_values, values
from shared.quantize import fake_quantize
from shared.quantize.quantizer import PRESETS, named_quantizer, scales

VARIANTS = [
    "E4M3FN",
    "E5M2IEEE",
    "E3M4IEEE",
    "E4M3IEEE",
    "E8M2FN",
    "E8M7IEEE",
    "E8M0FN",
    "E2M0FN",
    "E1M1IEEE",
    "E0M3FN",
]
ALL = names() + VARIANTS


def exists(name: str) -> bool:
    try:
        return bool(format_named(name))
    except BitlawError:  # no code but zero is left
        return False


EXISTING = names() + [n + v for n in names() if n[0] == "E" for v in ("FN", "IEEE") if exists(n + v)]
INFINITY = float("inf")
fp32 = st.floats(width=32, allow_nan=False, allow_infinity=False)


def hard_inputs(form: Format, count: int = 16) -> torch.Tensor:
    """Values of the format, the middles between neighbours, the FP32 numbers beside both, and beyond the range."""
    rng = random.Random(form.name)
    grid = values(form)
    if len(grid) > 4 * count:
        middle = len(grid) // 2
        some = rng.sample(range(len(grid)), count)
        near_zero = range(middle - count // 2, middle + count // 2)
        grid = [grid[i] for i in sorted({*some, *near_zero, *range(10), *range(len(grid) - 10, len(grid))})]
    points = grid + [(a + b) / 2 for a, b in pairwise(grid)]
    points += [rng.uniform(-1.3, 1.3) * min(form.limit, 2.0**126) for _ in range(count)]
    points += [rng.gauss(0, 1) for _ in range(count)] + [0.0, -0.0, 2.0**-149, 3e38, INFINITY, -INFINITY]
    x = torch.tensor(points)
    return torch.cat([x, torch.nextafter(x, torch.full_like(x, INFINITY)), torch.nextafter(x, -x)])


@pytest.mark.parametrize("name", ALL)
def test_cast_is_the_oracle(name: str) -> None:
    form = format_named(name)
    x = hard_inputs(form)
    expected = torch.tensor([nearest_value(v, form) for v in x.tolist()])
    assert torch.equal(form.cast(x), expected)
    assert np.array_equal(nearest_values(x.numpy(), form), expected)


def at_decisions(form: Format) -> NDArray[np.float32]:
    """All magnitudes, all ties, the FP32 numbers beside both, and FP32's ends: a monotone cast is fixed by them."""
    points = np.abs(np.concatenate([values(form), decision_points(form), [0.0, 2.0**-126, 3e38]]).astype(np.float32))
    points = np.unique(points)
    if form.name not in (*names(), *VARIANTS):  # two largest octaves; below, nothing differs from the plain format
        points = points[points >= 2.0 ** (form.largest_exponent - 1)]
    beside = [np.nextafter(points, np.float32(end)) for end in (INFINITY, -INFINITY)]
    return np.concatenate([points, *beside, np.array([INFINITY], np.float32)])


@pytest.mark.parametrize("name", EXISTING)
def test_all_codes_and_ties(name: str) -> None:
    """Of both signs up to 9 bits; above, what is negative is left to the other tests."""
    form = format_named(name)
    x = at_decisions(form)
    x = np.concatenate([x, -x]) if form.bits <= 9 else x
    assert np.array_equal(form.cast(torch.from_numpy(x)).numpy(), nearest_values(x, form))
    if form.kind != "codebook":
        assert np.array_equal(form.cast(torch.from_numpy(x), "half_away").numpy(), nearest_values(x, form, True))


@pytest.mark.parametrize("name", EXISTING)
def test_zeros_infinities_and_nan(name: str) -> None:
    """Infinities saturate, NaN stays; zero keeps its sign in signed floats and integers, and is +1 in BINARY."""
    form = format_named(name)
    x = torch.tensor([INFINITY, -INFINITY, math.nan, 0.0, -0.0])
    lowest = -form.limit if form.lowest is None else form.lowest
    for rounding in ("nearest", "half_away") if form.kind != "codebook" else ("nearest",):
        cast = form.cast(x, rounding)
        assert cast[:2].tolist() == [form.limit, lowest]
        assert cast[2].isnan()
        assert cast[3:].tolist() == ([1, 1] if name == "BINARY" else [0, 0])
        if form.kind == "float" or name[:3] == "INT":
            assert torch.signbit(cast[3:]).tolist() == [False, True]


@pytest.mark.parametrize("name", ALL)
def test_values_stay_and_nan_stays(name: str) -> None:
    form = format_named(name)
    grid = torch.tensor(values(form))
    assert grid.max() == form.limit
    assert len(grid) <= 2 ** (form.bits + 1e-9)
    noise = torch.rand(grid.shape, generator=torch.Generator().manual_seed(0))
    assert torch.equal(form.cast(grid), grid)
    assert torch.equal(form.cast_stochastic(grid, noise), grid)
    assert form.cast(torch.tensor([math.nan, 1.0])).isnan().tolist() == [True, False]


# The facts' table 6.1, and 2.2 for the formats without reserved codes.
@pytest.mark.parametrize(
    ("name", "limit", "smallest_normal", "smallest", "count"),
    [
        ("E1M1", 3, 2, 1, 7),
        ("E2M1", 6, 1, 0.5, 15),
        ("E2M3", 7.5, 1, 0.125, 63),
        ("E3M2", 28, 0.25, 0.0625, 63),
        ("E4M3", 480, 2**-6, 2**-9, 255),
        ("E4M3FN", 448, 2**-6, 2**-9, 253),
        ("E5M2IEEE", 57344, 2**-14, 2**-16, 247),
        ("E4M3IEEE", 240, 2**-6, 2**-9, 239),
        ("E3M4IEEE", 15.5, 0.25, 2**-6, 223),
        ("E0M7", 127 / 64, 2, 1 / 64, 255),
    ],
)
def test_the_facts_table(name: str, limit: float, smallest_normal: float, smallest: float, count: int) -> None:
    form = format_named(name)
    grid = values(form)
    assert form.limit == limit
    assert form.smallest_normal == smallest_normal
    assert min(value for value in grid if value > 0) == smallest
    assert len(grid) == count


def test_known_values() -> None:
    assert values(format_named("E2M1"))[7:] == [0, 0.5, 1, 1.5, 2, 3, 4, 6]
    assert values(format_named("E1M1"))[3:] == [0, 1, 2, 3]
    assert values(format_named("INT3")) == [-3, -2, -1, 0, 1, 2, 3]
    assert values(format_named("INT2")) == values(format_named("TERNARY")) == [-1, 0, 1]
    assert values(format_named("UINT2")) == [0, 1, 2, 3]
    assert format_named("INT1") is not None
    assert values(format_named("INT1")) == [-1, 1]
    assert format_named("TERNARY").bits == math.log2(3)
    assert [format_named(name).largest_exponent for name in ("E2M1", "E2M3", "E3M2", "E4M3FN", "E5M2IEEE", "E0M7")] == [
        *(2, 2, 4, 8, 15, 0)  # emax, the facts 6.2
    ]


# QuEST's notebook and base_linear.py (the facts, 6.3): 2^b levels without zero, at the clip it uses.
@pytest.mark.parametrize(
    ("bits", "clip", "mse"),
    [
        *((1, 0.79788456, 0.36338), (2, 1.49353462, 0.118846), (3, 2.05106835, 0.0374397)),
        *((4, 2.51393058, 0.0115429), (8, 3.88493868, 8.782e-5)),
    ],
)
def test_gaussian_error_of_quest_grids(bits: int, clip: float, mse: float) -> None:
    grid = np.arange(-(2**bits - 1), 2**bits, 2) / (2**bits - 1)
    assert mean_squared_error(clip * grid) == pytest.approx(mse, rel=2e-5)
    best = best_scale(grid)
    assert best.mse <= mean_squared_error(clip * grid) + 1e-15
    if bits <= 4:
        assert best.clip == pytest.approx(clip, rel=1e-4)


def test_gaussian_error_of_formats() -> None:
    """FP4 .0126849 and the ternary clip 1.22400895 (the facts, 6.3); one bit has the closed form 1 - 2 / pi."""
    assert gaussian_fit(format_named("E2M1")).mse == pytest.approx(0.0126849, rel=2e-6)
    assert gaussian_fit(format_named("TERNARY")).clip == pytest.approx(1.22400895, rel=1e-4)
    assert gaussian_fit(format_named("BINARY")).mse == pytest.approx(1 - 2 / math.pi, abs=1e-12)
    x = torch.randn(2_000_000, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    for name in ("INT4", "NF4", "E3M2", "UINT2"):
        form = format_named(name)
        fit = gaussian_fit(form)
        scale = fit.clip / (form.limit - (form.limit // 2 if name == "UINT2" else 0))
        shift = form.limit // 2 if name == "UINT2" else 0
        cast = (form.cast((x / scale + shift).float()).double() - shift) * scale
        assert (cast - x).square().mean().item() == pytest.approx(fit.mse, rel=5e-3)


runner = CliRunner()
app = typer.Typer()
app.command()(formats)


def test_the_command_prints_a_format() -> None:
    facts = json.loads(runner.invoke(app, ["E2M1", "--json"]).stdout)
    assert facts["values"][7:] == [0, 0.5, 1, 1.5, 2, 3, 4, 6]
    assert facts["gaussian_mse"] == pytest.approx(0.0126849, rel=1e-5)
    assert facts["bits_per_value"]["FP32"]["32"] == 5.0
    printed = runner.invoke(app, ["E4M3FN"]).stdout
    assert "448" in printed
    assert "253 in all" in printed
    block = json.loads(runner.invoke(app, ["NVFP4", "--json"]).stdout)
    assert (block["quantizer"], block["group"]) == ("NVFP4", 16)
    shared = 32 / 4096**2  # the tensor's FP32 scale
    assert block["bits_per_value"] == {"E4M3": {"16": pytest.approx(4.5 + shared, rel=1e-12)}}
    printed = " ".join(runner.invoke(app, ["NVFP4"]).stdout.split())
    assert "FP32: 1.9e-06 bits a value in a tensor of 4096 x 4096" in printed
    assert "E4M3 scale: 4.50000191 in groups of 16" in printed
    whole = json.loads(runner.invoke(app, ["INT4@tensor", "--json"]).stdout)
    assert whole["bits_per_value"] == {"FP32": {"tensor": pytest.approx(4 + shared, rel=1e-12)}}
    assert json.loads(runner.invoke(app, ["MXFP4", "--json"]).stdout)["bits_per_value"] == {"E8M0": {"32": 4.25}}


def test_the_command_lists_the_formats() -> None:
    rows = json.loads(runner.invoke(app, ["--json"]).stdout)
    assert {"INT1", "E2M1", "NF4", "TERNARY", "UINT4"} - {row["name"] for row in rows} == {"INT1"}  # named BINARY
    assert "MXFP8E4M3" in runner.invoke(app, []).stdout


@pytest.mark.parametrize("wrong", ["NF5", "MXFP5@", "INT4@x", "BF16@8"])
def test_the_command_refuses(wrong: str) -> None:
    assert isinstance(runner.invoke(app, [wrong]).exception, BitlawError)


@pytest.mark.parametrize(
    ("wrong", "hint"),
    [
        ("MXFP6", "MXFP6E2M3 or MXFP6E3M2"),
        ("MXFP8", "MXFP8E4M3 or MXFP8E5M2"),
        ("mxfp6_e2m3", "MXFP6E2M3"),
        ("NVFP", "NVFP4"),
    ],
)
def test_the_command_suggests_by_beginnings(wrong: str, hint: str) -> None:
    error = runner.invoke(app, [wrong]).exception
    assert isinstance(error, BitlawError)
    assert f"format {wrong!r} is unknown, did you mean {hint}?" in str(error)


@pytest.mark.parametrize(
    ("wrong", "hint"),
    [("INT9", ""), ("E2M11", ""), ("E9M1", ""), ("E0M0", ""), ("int4", ""), ("NF5", "NF"), ("E1M0FN", ""), ("", "")],
)
def test_unknown_formats(wrong: str, hint: str) -> None:
    with pytest.raises(BitlawError, match=f"format {wrong!r} is unknown.*{hint}.*bitlaw formats"):
        format_named(wrong)
    with pytest.raises(BitlawError, match="did you mean 'E2M1'"):
        format_named("E2M1FP")


@settings(deadline=None)  # the first look at a format lists its values
@given(x=fp32, y=fp32, name=st.sampled_from(ALL))
def test_idempotent_monotone_odd_and_within_range(x: float, y: float, name: str) -> None:
    form = format_named(name)
    cast_x, cast_y, cast_minus = (form.cast(torch.tensor(v)).item() for v in (x, y, -x))
    assert form.cast(torch.tensor(cast_x)).item() == cast_x
    assert cast_x in values(form)
    assert (cast_x <= cast_y) if x <= y else (cast_x >= cast_y)
    symmetric = [-value for value in reversed(values(form))] == values(form)
    if symmetric and (form.kind != "codebook" or name == "BINARY") and (name != "BINARY" or x):
        assert cast_minus == -cast_x


@settings(deadline=None)
@given(x=st.floats(-8, 8, width=32), name=st.sampled_from(ALL))
def test_half_away_differs_only_at_ties(x: float, name: str) -> None:
    form = format_named(name)
    if form.kind == "codebook":
        return
    nearest, away = form.cast(torch.tensor(x)).item(), form.cast(torch.tensor(x), "half_away").item()
    assert abs(nearest - min(max(x, -form.limit), form.limit)) == abs(away - min(max(x, -form.limit), form.limit)) or (
        form.lowest == 0 and x < 0
    )
    assert abs(away) >= abs(nearest)


@settings(deadline=None)
@given(
    seed=st.integers(0, 10**6),
    power=st.integers(-120, 120),
    text=st.sampled_from([*PRESETS, "INT4@16", "TERNARY@16", "E4M3FN@channel", "E2M1@32:e8m0", "INT8@16:bf16"]),
)
def test_quantizers_are_odd_monotone_and_within_range(seed: int, power: int, text: str) -> None:
    """Monotone within a group; what MX rounds once stays, as its scale depends on the largest exponent only."""
    q = named_quantizer(text)
    x = torch.randn(2, 64, generator=torch.Generator().manual_seed(seed)) * 2.0**power
    size = q.group_size(64)
    x = x.unflatten(-1, (-1, size)).sort(-1).values.flatten(-2)
    y = fake_quantize(x, q)
    y_RGE = y.unflatten(-1, (-1, size))
    assert torch.equal(fake_quantize(-x, q), -y)
    assert (y_RGE.diff(dim=-1) >= 0).all()
    assert (y_RGE.abs() <= scales(x.unflatten(-1, (-1, size)), q)[0] * q.format.limit).all()
    if q.scale_rule == "mx":
        assert torch.equal(fake_quantize(y, q), y)


def test_groups_with_nan_or_infinity() -> None:
    """Absmax: the whole group is NaN. MX: they stay, and the rest of their group is zero. Other groups do not change;
    but the scale that NVFP4's groups share is one beside a NaN, and beside an infinity the whole tensor is NaN."""
    nan, inf = math.nan, INFINITY
    x = torch.tensor([[1.0, 2.0, 3.0, nan, 1.0, 2.0, -inf, 3.0, 1.0, 2.0, 3.0, 4.0]])
    for text in ("INT4@4", "E2M1@4", "E2M1@4:bf16", "E2M1@4:e8m0"):
        y = fake_quantize(x, named_quantizer(text))
        assert y[0, :8].isnan().all()
        assert torch.equal(y[:, 8:], fake_quantize(x[:, 8:], named_quantizer(text)))
    y = fake_quantize(x, named_quantizer("E2M1@4:mx:e8m0"))
    assert torch.equal(
        y.nan_to_num(99.0), torch.tensor([[0, 0, 0, 99, 0, 0, -INFINITY, 0, 1, 2, 3, 4]]).nan_to_num(99.0)
    )
    q = named_quantizer("E2M1@4:e4m3")
    assert fake_quantize(x[:, 4:], q).isnan().all()
    assert fake_quantize(x, q).isnan().tolist() == [[True] * 4 + [False] * 8]


def test_half_away_at_ties() -> None:
    x = torch.tensor([0.5, 1.5, 2.5, -0.5, -2.5, 0.49999997])
    assert format_named("INT8").cast(x, "half_away").tolist() == [1, 2, 3, -1, -3, 0]
    x = torch.tensor([0.25, 0.75, 1.25, 1.75, 2.5, 3.5, 5.0, -5.0, 0.24999999])
    assert format_named("E2M1").cast(x, "half_away").tolist() == [0.5, 1, 1.5, 2, 3, 4, 6, -6, 0]
    assert format_named("E2M1").cast(x).tolist() == [0, 1, 1, 2, 2, 4, 4, -4, 0]


@pytest.mark.parametrize(
    "name", ["INT2", "INT4", "INT8", "UINT4", "TERNARY", "BINARY", "E2M1", "E3M0", "E4M3", "E0M3", "E8M1", "NF4", "FP4"]
)
def test_stochastic_rounding_is_unbiased_within_range(name: str) -> None:
    """Over evenly spread noise the mean is x within one step over the number of samples; only neighbours occur."""
    form = format_named(name)
    grid = torch.tensor(values(form))
    within = grid[(grid.abs() <= 16)]
    low, high = within[0].item(), within[-1].item()
    x_P = torch.linspace(low, high, 101)
    samples = 4096
    noise_S1 = ((torch.arange(samples) + 0.5) / samples)[:, None]
    cast_SP = form.cast_stochastic(x_P.expand(samples, -1), noise_S1.expand(-1, 101))
    above = torch.bucketize(x_P, within).clamp(1, len(within) - 1)
    step_P = within[above] - within[above - 1]
    assert ((cast_SP.mean(0) - x_P).abs() <= step_P / samples + 1e-6).all()
    assert ((cast_SP - x_P).abs() <= step_P * (1 + 1e-6)).all()
