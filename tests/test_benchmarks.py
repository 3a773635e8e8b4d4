"""The harness around the benchmarks: spreads, the table, and the comparison of two runs. Nothing is timed."""

import ast
import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from benchmarks import compare, table
from benchmarks.fit import LOSS, chen_runs
from benchmarks.resample import CONSTANTS, TRUNKS, race, told, trunk_table
from benchmarks.turns import compared, in_turns, ratio, spread
from replications.papers import find
from shared.laws.chinchilla import LAW


def written(path: Path, benchmarks: dict[str, Any]) -> str:
    path.write_text(json.dumps({"machine": {}, "summary": {}, "benchmarks": benchmarks}))
    return str(path)


def row(value: float, noise: float | None = 0.01, name: str = "times_faster_than_scipy") -> dict[str, Any]:
    return {name: value, "seconds": 1.0} | ({} if noise is None else {f"{name}_spread": noise})


def test_the_order_turns() -> None:
    seen: list[str] = []
    seconds = in_turns({name: lambda name=name: seen.append(name) for name in "ab"}, rounds=2, warm_up=0)  # type: ignore[misc]
    assert seen == ["a", "b", "b", "a"]
    assert {name: len(times) for name, times in seconds.items()} == {"a": 2, "b": 2}


def test_a_spread_is_the_standard_error_of_the_median() -> None:
    """Against what medians of such rounds really scatter by."""
    generator = np.random.default_rng(0)
    rounds = [{"a": list(np.exp(0.1 * generator.standard_normal(25))), "b": [1.0] * 25} for _ in range(400)]
    scatter = np.std([np.log(ratio(one, "a", "b")) for one in rounds])
    assert np.mean([spread(one, "a", "b") for one in rounds]) == pytest.approx(scatter, rel=0.1)
    assert spread({"a": [2.0], "b": [1.0]}, "a", "b") == 0
    assert set(compared("x", rounds[0], "a", "b")) == {"x", "x_spread"}


@pytest.mark.parametrize(
    ("before", "after", "code"),
    [
        (row(4.0), row(4.0), 0),
        (row(4.0), row(8.0), 0),
        (row(4.0), row(3.5), 0),  # 14 % worse
        (row(4.0), row(3.0), 1),  # 33 % worse
        (row(4.0, 0.1), row(3.0, 0.1), 0),  # as far, and within the noise
        (row(4.0, None), row(3.2), 0),  # noise unknown: 5 % each
        (row(4.0, None), row(2.0), 1),
        (row(1.1, name="W4_ratio"), row(1.5, name="W4_ratio"), 1),  # a cost: more is worse
        (row(1.5, name="W4_ratio"), row(1.1, name="W4_ratio"), 0),
        (row(0.7, name="share_of_copy"), row(0.4, name="share_of_copy"), 1),
        ({"seconds": 1.0}, {"seconds": 9.0}, 0),  # no ratio
    ],
)
def test_a_loss_beyond_noise_fails(
    before: dict[str, Any], after: dict[str, Any], code: int, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    old, new = written(tmp_path / "old.json", {"t": before}), written(tmp_path / "new.json", {"t": after})
    assert compare.main(old, new) == code
    said = capsys.readouterr().out
    assert f"{code} worse by over 15 % beyond noise" in " ".join(said.split())


@given(old=st.floats(0.01, 100), new=st.floats(0.01, 100), noise=st.floats(0, 0.5))
def test_never_both_ways(old: float, new: float, noise: float) -> None:
    there = compare.changes({"t": row(old, noise)}, {"t": row(new, noise)})[0]
    back = compare.changes({"t": row(new, noise)}, {"t": row(old, noise)})[0]
    assert not (there.fails and back.fails)
    assert not compare.changes({"t": row(old, noise)}, {"t": row(old, noise)})[0].fails


def cut(benchmarks: dict[str, Any], by: float) -> dict[str, Any]:
    """As on a machine where we are so much slower, from a `make bench` that records no spreads."""
    return {
        name: {
            key: value / by if key.startswith("times_faster_than_") else value
            for key, value in numbers.items()
            if not key.endswith("_spread")
        }
        for name, numbers in benchmarks.items()
    }


TWO = {"t": row(4.0), "u": row(1.2, name="W4_ratio") | {"share_of_copy": 0.7}}


@pytest.mark.parametrize(
    ("new", "sentence"),
    [
        ({}, "not measured this time: t"),
        ({"t": TWO["t"]}, "not measured this time: u"),
        (TWO | {"t": {"seconds": 1.0}}, "t: times_faster_than_scipy is gone"),
        (TWO | {"u": row(1.2, name="W4_ratio")}, "u: share_of_copy is gone"),
        (TWO | {"t": row(float("nan"))}, "t: times_faster_than_scipy now is nan, no ratio"),
        (TWO | {"t": row(float("inf"))}, "t: times_faster_than_scipy now is inf, no ratio"),
        (TWO | {"t": row(0.0)}, "t: times_faster_than_scipy now is 0.0, no ratio"),
        (TWO | {"t": row(-4.0)}, "t: times_faster_than_scipy now is -4.0, no ratio"),
        (TWO | {"t": {"times_faster_than_scipy": None}}, "t: times_faster_than_scipy now is None, no ratio"),
        (TWO | {"t": {"times_faster_than_scipy": "4"}}, "t: times_faster_than_scipy now is '4', no ratio"),
        (TWO | {"t": row(4.0, float("inf"))}, "t: times_faster_than_scipy_spread now is inf, no standard error"),
        (TWO | {"t": row(4.0, -0.1)}, "t: times_faster_than_scipy_spread now is -0.1, no standard error"),
        (TWO | {"v": row(0.0)}, "v: times_faster_than_scipy now is 0.0, no ratio"),
        (cut(TWO, 3), "3 ratios, 1 worse by over 15 % beyond noise"),
    ],
)
def test_what_is_gone_or_no_number_fails(
    new: dict[str, Any], sentence: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    old = written(tmp_path / "old.json", TWO)
    assert compare.main(old, written(tmp_path / "new.json", new)) == 1
    assert sentence in " ".join(capsys.readouterr().out.split())


def test_a_ratio_that_was_none_before_fails(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for value in (0.0, None):
        old = written(tmp_path / "old.json", TWO | {"t": {"times_faster_than_scipy": value}})
        assert compare.main(old, written(tmp_path / "new.json", TWO)) == 1
        assert f"times_faster_than_scipy before is {value}, no ratio" in capsys.readouterr().out


def test_what_is_new_passes(tmp_path: Path) -> None:
    old = written(tmp_path / "old.json", TWO)
    more = {**TWO["t"], "times_faster_than_torch": 2.0, "times_faster_than_torch_spread": 0.1}
    assert compare.main(old, written(tmp_path / "new.json", TWO | {"t": more, "v": row(1.0)})) == 0


@pytest.mark.parametrize(("between", "most"), [(0.05, 0.001), (0.08, 0.01)])
def test_runs_of_the_same_code_hardly_ever_fail(between: float, most: float) -> None:
    """Rounds that agree, in two runs that do not."""
    generator = np.random.default_rng(0)
    runs = np.exp(between * generator.standard_normal((2, 20_000)))
    found = [compare.changes({"t": row(was)}, {"t": row(now)})[0].fails for was, now in runs.T]
    assert np.mean(found) <= most


def test_another_file_is_refused(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    old = written(tmp_path / "old.json", TWO)
    (tmp_path / "bad.json").write_text("[]")
    assert compare.main(old, str(tmp_path / "bad.json")) == 2
    assert "is no file of benchmarks" in capsys.readouterr().err


def test_the_committed_numbers_cut_to_a_third_fail(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = Path(__file__).parent.parent / "reports" / "benchmarks.json"
    known = json.loads(path.read_text())["benchmarks"]
    least = sum(key.startswith("times_faster_than_") for row in known.values() for key in row if "_spread" not in key)
    assert least > 30
    assert compare.main(str(path), written(tmp_path / "new.json", cut(known, 3))) == 1
    assert f"{least} worse by over 15 %" in " ".join(capsys.readouterr().out.split())


def test_the_table(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """From pytest-benchmark's JSON: ratios beside their peer and limit, powers of growth, and a file to compare."""
    growing = [(f"test_fit_by_rows[{n}]", {"rows": n, "seconds": 1e-6 * n**1.5}) for n in (10**4, 10**5, 10**6)]
    found = [("test_resamples", row(30.0)), ("test_fake_quantize[INT4@32]", row(0.8, name="share_of_copy")), *growing]
    raw = {
        "machine_info": {"cpu": {"brand_raw": "x", "count": 2}},
        "benchmarks": [{"name": name, "extra_info": info} for name, info in found],
    }
    (tmp_path / "raw.json").write_text(json.dumps(raw))
    table.main(str(tmp_path / "raw.json"), str(tmp_path / "out.json"))
    said = capsys.readouterr().out
    assert "scipy 30 +- 2%" in said
    assert "copy 80%" in said
    out = json.loads((tmp_path / "out.json").read_text())
    assert out["summary"]["resamples_times_faster_than_scipy_worst"] == 30
    assert out["summary"]["fit_seconds_by_rows_power"] == pytest.approx(1.5)
    assert compare.main(str(tmp_path / "out.json"), str(tmp_path / "out.json")) == 0


BENCHMARKS = [
    (path.name, node, path.read_text(encoding="utf-8"))
    for path in sorted((Path(__file__).parent.parent / "benchmarks").glob("*.py"))
    for node in ast.parse(path.read_text(encoding="utf-8")).body
    if isinstance(node, ast.FunctionDef) and node.name.startswith("test_")
]
# What puts a ratio to a peer, with its spread, into a benchmark's numbers.
PEERS = ("compared(", "told(", "beside_the_trainer(", '"times_faster_than_')
# Whose peer is the machine's limit.
LIMITS = ("test_share_of_the_gemm_peak",)


@pytest.mark.parametrize(("file", "node", "text"), BENCHMARKS, ids=[node.name for _, node, _ in BENCHMARKS])
def test_every_benchmark_has_a_peer(file: str, node: ast.FunctionDef, text: str) -> None:
    body = ast.get_source_segment(text, node) or ""
    assert "extra_info" in body
    assert any(word in body for word in PEERS) or node.name in LIMITS, f"{file}: {node.name}"


def test_resamples_beside_scipy() -> None:
    """The race at its smallest: two laws, a few resamples, one round; both sides reach the same constants."""
    few = trunk_table(TRUNKS, 3)
    found = told(race(LAW, CONSTANTS, few, resamples=8, share=4, rounds=1), 4)
    assert {"seconds", "times_faster_than_scipy", "times_faster_than_scipy_spread"} <= found.keys()
    assert found["times_faster_than_scipy"] > 0
    assert found["largest_difference_in_standard_errors"] < 0.1
    known = find("qat_scaling").published().values()
    chen = told(race(LOSS, known, chen_runs(), resamples=4, share=2, rounds=1), 2)
    assert chen["largest_difference_in_standard_errors"] < 0.1


def test_the_committed_numbers_compare_with_themselves() -> None:
    path = str(Path(__file__).parent.parent / "reports" / "benchmarks.json")
    assert compare.main(path, path) == 0
