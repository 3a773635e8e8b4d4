"""Variants of the predictor: low data, the engineer's decision, numerics, the surface.

Shape letters: S windows or blocks, T positions, O outputs, I inputs, R rows.
"""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
import torch
import typer
from ptq_models import CONTEXT, VOCABULARY, tokenizer
from ptq_models import model as tiny_model
from torch import nn
from typer.testing import CliRunner

from replications.commands.engineer import engineer as engineering
from replications.commands.numerics import numerics as numeric
from replications.precision_predictor import engineer, low_data, numerics, surface
from replications.precision_predictor.effective import CleanLaw
from replications.precision_predictor.figures_predictor import (
    engineer_drawings,
    low_data_drawings,
    numerics_drawings,
    surface_drawings,
)
from replications.precision_predictor.finetune import Recipe
from replications.precision_predictor.kernels import QUANTIZERS, Int4Linear, Int8Linear, refuses, replace_layers
from replications.precision_predictor.measure import BITS
from replications.precision_predictor.subject import Subject
from shared.errors import BitlawError
from shared.files import six_digits
from shared.laws.chinchilla import LAW as CHINCHILLA
from shared.ptq.text import Windows
from shared.quantize.quantizer import fake_quantize, named_quantizer
from shared.report.figures import style
from shared.report.figures.gallery import Drawing, write_gallery


@pytest.fixture(autouse=True)
def one_thread() -> None:
    torch.set_num_threads(1)


def blocks(count: int, length: int = CONTEXT, seed: int = 0) -> torch.Tensor:
    return torch.randint(0, VOCABULARY, (count, length), generator=torch.Generator().manual_seed(seed))


def saved(drawings: list[Drawing], folder: Path) -> None:
    with style.theme():
        write_gallery(folder, drawings)


# Low data


def low_rows(low: float, full: float, spread: float, seeds: int = 4) -> list[dict[str, Any]]:
    """Penalties that are exact powers of the gap, with exponents around `low` and `full`."""
    found = []
    for seed in range(seeds):
        off = spread * (seed - (seeds - 1) / 2)
        for arm, power in ((low_data.LOW, low + off), (low_data.FULL, full - off)):
            for bits in BITS:
                delta = 1e-6 * ((16 - bits) / 4) ** power
                found.append({"model": "m", "arm": arm, "seed": seed, "tokens": 10, "bits": bits, "base_loss": 3.0,
                              "loss": 3 + delta, "loss_se": 0.1, "delta": delta, "delta_se": 1e-12})  # fmt: skip
    return found


@pytest.mark.parametrize(
    ("low", "full", "spread", "verdict"),
    [(9.0, 8.0, 0.01, "different"), (8.1, 8.0, 0.01, "not different"), (8.3, 8.0, 0.3, "undecided")],
)
def test_the_page_s_bound_needs_the_whole_interval(
    low: float, full: float, spread: float, verdict: str, tmp_path: Path
) -> None:
    found = low_data.summarise(low_rows(low, full, spread))
    one = found["models"][0]["log"]
    assert one["difference"]["value"] == pytest.approx(low - full, abs=1e-6)
    assert one["verdict"] == verdict
    assert any(verdict in line for line in low_data.lines(found))
    if verdict == "different":
        assert one["closer_to_1"]["verdict"] == "no"
        saved(low_data_drawings(six_digits(found)), tmp_path)


def test_all_arms_are_fitted_to_the_same_widths(tmp_path: Path) -> None:
    """Penalties with a kink at 8 bits, which is clear in one arm alone: it must not bend that arm's exponent."""
    rows = low_rows(8.0, 8.0, 0.0)
    for row in rows:
        if row["bits"] == 8:
            row["delta"] *= 0.01
            row["delta_se"] = row["delta"] * (0.1 if (row["arm"], row["seed"]) == (low_data.LOW, 2) else 1.0)
    found = low_data.summarise(rows)
    [model] = found["models"]
    assert model["bits_used"] == [2, 3, 4, 5, 6]
    assert model["log"]["low"]["value"] == pytest.approx(8.0, abs=1e-6)
    assert model["log"]["difference"]["high"] == pytest.approx(0.0, abs=1e-6)
    assert "clear of zero in all: 2, 3, 4, 5, 6 bits" in low_data.lines(found)[0]
    saved(low_data_drawings(six_digits(found)), tmp_path)
    for row in rows:
        if row["bits"] in (5, 6) and row["seed"] == 0:
            row["delta_se"] = 1.0
    with pytest.raises(BitlawError, match=r"3 bit widths .* in both parts of every seed, 4 are the least"):
        low_data.summarise(rows)


def test_arms_are_small_parts_and_the_whole() -> None:
    text_ST = blocks(20)
    found = low_data.arms(text_ST, 3 * CONTEXT, 2)
    assert [(arm.name, arm.seed, len(arm.blocks_ST)) for arm in found] == [
        ("low", 0, 3), ("full", 0, 20), ("low", 1, 3), ("full", 1, 20),
    ]  # fmt: skip
    assert not torch.equal(found[0].blocks_ST, found[2].blocks_ST)
    with pytest.raises(BitlawError, match="to train on: give fewer, or more text"):
        low_data.arms(text_ST, 20 * CONTEXT, 2)


def test_low_data_needs_two_seeds() -> None:
    with pytest.raises(BitlawError, match="both parts of two seeds; 1 are there"):
        low_data.summarise(low_rows(9, 8, 0.1, seeds=1))


def test_an_arm_trains_a_copy() -> None:
    model = tiny_model("llama")
    seen: list[str] = []
    before = [parameter.clone() for parameter in model.parameters()]
    arm = low_data.arms(blocks(8), 2 * CONTEXT, 1)[0]
    windows = Windows(blocks(8), blocks(4, CONTEXT + 1), "random")
    recipe = Recipe(1, 2, 1, 1e-2)
    rows = low_data.measure(model, arm, recipe, windows, seen.append)
    assert [row["bits"] for row in rows] == list(BITS)
    assert len(seen) == len(low_data.steps(arm, recipe))
    assert all(torch.equal(one, two) for one, two in zip(model.parameters(), before, strict=True))


# Kernels and the decision


@pytest.mark.parametrize(("bits", "kind"), [(8, Int8Linear), (4, Int4Linear)])
def test_a_kernel_computes_with_the_rounded_weights(bits: int, kind: type[nn.Module]) -> None:
    generator = torch.Generator().manual_seed(0)
    weight_OI, bias_O = torch.randn(48, 64, generator=generator), torch.randn(48, generator=generator)
    x_RI = torch.randn(2, 5, 64, generator=generator).bfloat16()
    expected = x_RI.float() @ fake_quantize(weight_OI, named_quantizer(QUANTIZERS[bits])).T + bias_O
    assert torch.allclose(kind(weight_OI, bias_O)(x_RI).float(), expected, atol=0.02 * float(expected.abs().max()))


@pytest.mark.parametrize("kind", ["llama", "gpt2"])
def test_a_model_with_kernels_is_near_the_model(kind: str) -> None:
    """INT8 with BF16 activations: logits within what BF16 keeps; generation with a cache runs."""
    model, ids_BT = tiny_model(kind), blocks(2, 8)
    exact = model(input_ids=ids_BT).logits
    made = replace_layers(tiny_model(kind), 8)
    assert (made(input_ids=ids_BT).logits.float() - exact).abs().mean() < 0.05 * exact.abs().mean()
    assert len(engineer.token_milliseconds(made, ids_BT[:1], 3)) == 3


def test_three_bits_have_no_kernel() -> None:
    assert refuses(tiny_model("llama"), 3) == "torch has no 3-bit kernel"
    assert "takes 16k outputs and 32k inputs" in str(refuses(tiny_model("llama", width=48), 4))
    with pytest.raises(BitlawError, match="no 3-bit kernel"):
        replace_layers(tiny_model("llama"), 3)


def row(bits: int, p95: float | None, delta: float, memory: float = 2.0) -> dict[str, Any]:
    return {"model": "m", "precision": f"INT{bits}", "bits": bits, "kernel": "a kernel" if p95 else "simulated: none",
            "p50_ms": p95, "p95_ms": p95, "p95_low_ms": p95, "p95_high_ms": p95, "memory_mib": memory, "delta": delta,
            "delta_se": 0.01}  # fmt: skip


@pytest.mark.parametrize(
    ("four", "three", "bits", "said"),
    [
        (10.0, None, 4, "3 bits have no measured speed"),
        (90.0, None, None, "neither width is known to keep the bound"),
        (10.0, 8.0, 4, "both are fast enough"),
        (90.0, 60.0, 3, "4 bits miss the bound of 70 ms"),
        (90.0, 80.0, None, "neither"),
    ],
)
def test_the_decision(four: float, three: float | None, bits: int | None, said: str) -> None:
    found = engineer.decide([row(4, four, 0.05), row(3, three, 0.3)], 70.0)
    assert found["bits"] == bits
    assert said in found["why"]
    assert found["cost_of_3"]["value"] == pytest.approx(0.25)


@pytest.mark.parametrize(
    ("command", "names"), [(engineering, ["000000000000"]), (numeric, ["aaaaaaaaaaaa", "bbb", "ccc"])]
)
def test_a_dry_run_of_models_that_do_not_exist_says_so(command: Callable[..., None], names: list[str]) -> None:
    app = typer.Typer()
    app.command()(command)
    found = CliRunner().invoke(app, [*names, "--device", "cpu", "--dry-run"])
    assert isinstance(found.exception, BitlawError)
    assert names[0] in str(found.exception)
    assert not found.output


def test_the_engineer_s_figure_says_what_is_scored() -> None:
    decision = engineer.decide([row(4, 10.0, 0.05), row(3, None, 0.3)], 70.0)
    with style.theme():
        [drawing] = engineer_drawings([row(4, 10.0, 0.05), row(3, None, 0.3)], decision)
    assert "scored with FP32 activations, while the kernel that is timed computes in BF16" in drawing.caption


def test_three_bits_where_nothing_is_lost() -> None:
    assert engineer.decide([row(4, 10.0, 0.05), row(3, 8.0, 0.05)], 70.0)["bits"] == 3


def test_latencies_of_another_runtime(tmp_path: Path) -> None:
    path = tmp_path / "l.csv"
    path.write_text("precision,p50_ms,p95_ms,runtime,memory_mib\nINT4,40,80,X,\nINT3,30,60,X,900\n")
    given = engineer.read_latencies(path)
    found = engineer.decide([row(4, 10.0, 0.05), row(3, None, 0.3)], 70.0, given)
    assert found["bits"] == 3
    assert found["options"]["3"]["memory_mib"] == 900
    as_json = tmp_path / "l.json"
    as_json.write_text(json.dumps([one.model_dump() for one in given]))
    assert engineer.read_latencies(as_json) == given


@pytest.mark.parametrize(
    ("name", "content", "said"),
    [
        ("a.csv", "precision,p50_ms,p95_ms\nINT5,1,2\n", "entry 1, precision"),
        ("a.csv", "precision,p50_ms,p95_ms\nINT4,1,2\nINT4,1,2\n", "INT4 stands twice"),
        ("a.csv", "precision,p50_ms,p95_ms\nINT4,3,2\n", "p95_ms is below p50_ms"),
        ("a.csv", "precision,p50_ms\nINT4,3\n", "entry 1, p95_ms: field required"),
        ("a.json", "[]", "holds no latency"),
        ("a.json", "{", "neither JSON nor CSV"),
        ("a.json", '{"INT4": 3}', "the file"),
    ],
)
def test_bad_latencies(name: str, content: str, said: str, tmp_path: Path) -> None:
    path = tmp_path / name
    path.write_text(content)
    with pytest.raises(BitlawError, match=said):
        engineer.read_latencies(path)


def test_the_percentile_s_interval_holds_what_it_should() -> None:
    """Ranks 90 and 99 of 100 for the 95th percentile: the binomial's 2.5 and 97.5 percent points."""
    assert engineer.percentile(list(np.arange(1.0, 101)), 0.95) == (pytest.approx(95.05), 90.0, 100.0)


def test_precisions_of_a_tiny_model(tmp_path: Path) -> None:
    subject = Subject("tiny", tiny_model("llama"), tokenizer(), 2 * CONTEXT)
    rows = engineer.measure(subject, engineer.DIALOG[:200], 4, 2, lambda what: None)
    by_name = {one["precision"]: one for one in rows}
    assert list(by_name) == list(engineer.PRECISIONS)
    assert by_name["FP32"]["delta"] == 0
    assert by_name["INT4"]["timed"] == 8
    assert "p95_ms" not in by_name["INT3"]
    assert by_name["INT3"]["kernel"] == "simulated: torch has no 3-bit kernel"
    assert by_name["INT3"]["memory_mib"] < by_name["INT4"]["memory_mib"] < by_name["BF16"]["memory_mib"]
    for one in rows:
        one.setdefault("p95_ms", None)
    decision = engineer.decide(rows, 1e6)
    assert decision["bits"] == 4
    assert engineer.lines(rows, decision)[-1].startswith("under 1e+06 ms: 4 bits")
    saved(engineer_drawings(rows, decision), tmp_path)
    with pytest.raises(BitlawError, match="64 positions"):
        engineer.measure(subject, engineer.DIALOG, 60, 1, lambda what: None)
    with pytest.raises(BitlawError, match="give a longer one"):
        engineer.measure(subject, "Hello.", 4, 1, lambda what: None)


# Numerics


def test_numerics_measure_and_restore(tmp_path: Path) -> None:
    model = tiny_model("llama")
    before = [parameter.clone() for parameter in model.parameters()]
    rows = numerics.measure(model, blocks(6, CONTEXT + 1), 2, lambda: None)
    assert all(torch.equal(one, two) for one, two in zip(model.parameters(), before, strict=True))
    assert len(rows) == 4 * len(BITS) + 1
    plain = [one for one in rows if (one["held"], one["rounding"]) == ("FP32", "nearest")]
    assert all(one["excess"] == 0 for one in plain)
    noisy = [one for one in rows if one["rounding"] == "stochastic" and one["bits"] == 4]
    assert noisy[0]["relative_mse"] > plain[BITS.index(4)]["relative_mse"]
    held = next(one for one in rows if one["bits"] == 16)
    assert held["delta"] != 0


def test_bf16_holds_what_bf16_can() -> None:
    model = tiny_model("llama")
    with numerics.held_in(model, numerics.BF16):
        assert all(torch.equal(p, p.bfloat16().float()) for p in model.parameters())
    assert not all(torch.equal(p, p.bfloat16().float()) for p in model.parameters())


def numeric_rows(ratio: float, held: float, models: int = 3) -> list[dict[str, Any]]:
    """Penalties of stochastic rounding `ratio` times those of nearest, of BF16 1 / `held` times, scattered a little."""
    found = []
    for k in range(models):
        wobble = 1 + 0.01 * (k - 1)
        ways = (("FP32", "nearest", 0, 1.0), ("BF16", "nearest", 0, wobble / held),
                ("FP32", "stochastic", 0, ratio * wobble), ("FP32", "stochastic", 1, ratio))  # fmt: skip
        for way, rounding, seed, times in ways:
            for bits in (16, *BITS) if way == "BF16" else BITS:
                delta = 1e-4 if bits == 16 else times * 1e-9 * (16 - bits) ** 7
                found.append({"model": f"m{k}", "N": 1, "D": 1, "held": way, "rounding": rounding, "seed": seed,
                              "bits": bits, "base_loss": 3.0, "loss": 3 + delta, "loss_se": 0.1, "delta": delta,
                              "delta_se": 1e-12, "excess": 0.0, "excess_se": 0.0, "relative_mse": 0.1})  # fmt: skip
    return found


@pytest.mark.parametrize(("ratio", "verdict"), [(2.0, "raises eta"), (0.5, "lowers eta"), (1.0, "undecided")])
def test_the_verdict_on_stochastic_rounding(ratio: float, verdict: str, tmp_path: Path) -> None:
    found = numerics.summarise(numeric_rows(ratio, 1.2))
    assert found["stochastic"]["eta_ratio"]["value"] == pytest.approx(ratio, rel=0.01)
    assert found["stochastic"]["verdict"] == verdict
    assert found["models"][0]["eta_stochastic"] == pytest.approx(1e-9 * found["models"][0]["eta_ratio"], rel=1e-5)
    assert found["bf16"]["by_bits"]["2"]["value"] == pytest.approx(0.2, abs=0.02)
    assert found["bf16"]["verdict"] == "worse from FP32 by 5 %"
    assert found["bf16"]["page_says_at_2"] == pytest.approx((30 / 14) ** 7 - 1, rel=1e-5)
    assert numerics.lines(found)[-1].startswith("  BF16 alone costs")
    saved(numerics_drawings(six_digits(found)), tmp_path)


def test_a_checkpoint_with_few_clear_widths_still_counts() -> None:
    rows = numeric_rows(2.0, 1.2)
    for one in rows:
        if one["model"] == "m0" and one["bits"] > 3:
            one["delta_se"] = 1.0
    found = numerics.summarise(rows)
    assert found["models"][0]["eta_nearest"] is None
    assert found["stochastic"]["eta_ratio"]["n"] == 3
    assert found["stochastic"]["by_bits"]["8"]["left_out"] == 1


def test_numerics_need_three_checkpoints() -> None:
    with pytest.raises(BitlawError, match="over 3 checkpoints and more; 2 are measured"):
        numerics.summarise(numeric_rows(2.0, 1.0, models=2))


# The surface

RAW = {"eta": 1e-9, "beta": 0.5, "delta": 6.0}


def pool(sizes: tuple[float, ...] = (1e5, 2e5, 4e5)) -> pd.DataFrame:
    """Cells of the page's own law, cooled and trunk."""
    cells = [
        {"N": N, "D": D, "bits": b, "phase": phase, "run_id": f"{N:g}-{D:g}-{phase}", "trunk_id": f"{N:g}", "seed": "1"}
        for N in sizes for D in (4e6, 8e6, 16e6, 32e6) for b in BITS for phase in ("cooled", "trunk")
    ]  # fmt: skip
    table = pd.DataFrame(cells)
    delta = surface.penalty(RAW, table["N"], table["D"], table["bits"])
    loss = 30 * table["N"] ** -0.2 + 500 * table["D"] ** -0.4 + 1 + delta
    return table.assign(delta=delta, delta_se=1e-12, loss=loss, group_size="channel", use="fitted")


def clean() -> CleanLaw:
    theta = CHINCHILLA.internal({"A": 30.0, "alpha": 0.2, "B": 500.0, "beta": 0.4, "E": 1.0})
    return CleanLaw(CHINCHILLA, np.stack([theta, theta]), "a law")


def scratch(rows: pd.DataFrame) -> pd.DataFrame:
    """Runs in 3 bits that lose half of what rounding does."""
    three = rows[(rows["bits"] == 3) & (rows["phase"] == "cooled")]
    return three.assign(base_run_id=three["run_id"], delta=three["delta"] / 2)[
        ["N", "D", "phase", "seed", "base_run_id", "loss", "delta", "delta_se"]
    ]


def test_the_surface_recovers_its_law(tmp_path: Path) -> None:
    rows = pool()
    found = surface.summarise(rows, scratch(rows), clean())
    for phase in ("cooled", "trunk"):
        values = {name: one["value"] for name, one in found["phases"][phase]["constants"].items()}
        assert values == pytest.approx(RAW, rel=1e-5)
        for over in ("N", "D"):
            assert found["stability"][phase][over]["beta"]["value"] == pytest.approx(0, abs=1e-6)
    assert found["misfit"]["mean_abs"] < 1e-6
    assert found["constant_penalty"]["3"] == pytest.approx((13 / 12) ** 12, rel=1e-4)
    assert all(
        item["rounded"]["value"] == pytest.approx(2 * item["trained"]["value"]) for item in found["scratch"]["each"]
    )
    assert found["scratch"]["trained_rises_with_D"]["value"] == pytest.approx(0.5, abs=1e-6)
    for curve in found["iso_loss"]["curves"]:
        for D, N in zip(curve["D"], curve["N"], strict=True):
            if N is not None:
                exact = 30 * N**-0.2 + 500 * D**-0.4 + 1
                lost = surface.penalty(RAW, np.array([N]), np.array([D]), np.array([curve["bits"]]))[0]
                assert exact + lost * (curve["bits"] < 16) == pytest.approx(curve["loss"], rel=1e-4)
    drawings = surface_drawings(six_digits(found))
    saved(drawings, tmp_path)
    for drawing in drawings[:2]:  # 16 bits lie on 8: drawn last, and dashed
        for axes in drawing.figure.axes:
            assert [line.get_label() for line in axes.lines if line.get_linestyle() == "--"] == ["16 bits"]
            assert axes.lines[-1].get_label() == "16 bits"
    legend = drawings[2].figure.axes[0].get_legend()
    assert legend is not None
    assert [item.get_text() for item in legend.get_texts()][-2:] == ["trained in 3 bits", "rounded to 3 bits after"]
    assert any(line.startswith("3 bits, N = 0.1M") for line in surface.lines(found))


def test_the_surface_without_three_bit_runs_says_so(tmp_path: Path) -> None:
    rows = pool((1e5, 2e5))
    found = surface.summarise(rows, scratch(rows).iloc[:0], None)
    assert found["iso_loss"] is None
    assert "3-bit weights" in found["scratch"]["missing"]
    saved(surface_drawings(found), tmp_path)
    with pytest.raises(BitlawError, match="the surface needs"):
        surface.summarise(rows.iloc[:0], scratch(rows), None)


def test_the_regression_s_errors_allow_for_clusters() -> None:
    """Doubling every row of each cluster adds no knowledge: the intervals stay."""
    rows = pool()
    noise = np.random.default_rng(0).normal(0, 0.3, len(rows))
    rows = rows.assign(delta=rows["delta"] * np.exp(noise))
    once, twice = surface.regress(rows), surface.regress(pd.concat([rows, rows]))
    for name in ("beta", "delta"):
        assert twice[name]["high"] == pytest.approx(once[name]["high"], rel=1e-9)
        assert once[name]["low"] < RAW[name] < once[name]["high"]
