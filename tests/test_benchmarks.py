"""The harness around the benchmarks: spreads, the table, and the comparison of two runs. Nothing is timed."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from benchmarks import compare, table
from benchmarks.turns import compared, in_turns, ratio, spread


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


def test_what_is_gone_is_told_and_another_file_refused(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    old = written(tmp_path / "old.json", {"t": row(1.0), "u": row(1.0)})
    assert compare.main(old, written(tmp_path / "new.json", {"t": row(1.0)})) == 0
    assert "not measured this time: u" in capsys.readouterr().out
    (tmp_path / "bad.json").write_text("[]")
    assert compare.main(old, str(tmp_path / "bad.json")) == 2
    assert "is no file of benchmarks" in capsys.readouterr().err


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


def test_the_committed_numbers_compare_with_themselves() -> None:
    path = str(Path(__file__).parent.parent / "reports" / "benchmarks.json")
    assert compare.main(path, path) == 0
