"""Runs beside each other, without a law: slopes and differences that were put in come back, and verdicts follow."""

from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from judged import judged
from simulated_low_precision import M1, of_multiplier, write_runs
from test_claims_trained import base, drawn_of

from replications.comparison import beside, multipliers
from shared.laws.fit import Fit
from shared.sweep.spec import RunSpec

__all__ = ["base"]  # a fixture
ONE = {"weights": "BINARY@channel"}
BOTH = {"weights": "BINARY@channel", "activations": "BINARY@token"}
PLAN = {("S", 8), ("S", 16), ("S", 32)}


@pytest.mark.parametrize(("slope", "verdict"), [(0.1, "holds"), (-0.1, "fails")])
def test_one_bit_falls_behind_or_catches_up(tmp_path: Path, slope: float, verdict: str) -> None:
    def law(spec: RunSpec) -> float:
        return (0.3 if spec.activations == "none" else 1.5) + slope * float(np.log(spec.tokens / (8 * M1)))

    found = beside.one_bit(drawn_of(write_runs(tmp_path / "runs.csv", [ONE, BOTH], law, plan=PLAN)))
    assert set(found) == {"pool/trained/one_bit/weights/S", "pool/trained/one_bit/weights and activations/S"}
    for seen in found.values():
        assert seen.value == pytest.approx(slope, abs=0.005)
        assert seen.low < seen.value < seen.high
    assert "behind by 0.300 at S, 8M tokens" in found["pool/trained/one_bit/weights/S"].note
    assert judged("undertrained_qid", dict(found))["O8"].verdict == verdict


def test_one_horizon_of_one_bit_says_nothing(tmp_path: Path) -> None:
    path = write_runs(tmp_path / "runs.csv", [ONE], lambda spec: 0.3, plan={("S", 8)})
    assert beside.one_bit(drawn_of(path)) == {}


@pytest.mark.parametrize(("more", "verdict"), [(0.03, "holds"), (-0.03, "fails")])
def test_floats_beside_integers_in_the_same_places(tmp_path: Path, more: float, verdict: str) -> None:
    ways = [
        {"weights": f"{form}@{a}", "activations": f"{form}@{b}"}
        for form in ("E2M1", "INT4")
        for a, b in (("channel", "token"), ("8", "8"))
    ]

    def law(spec: RunSpec) -> float:
        grouped = "@8" in spec.weights
        return 0.05 + (0.01 if grouped else more) * spec.weights.startswith("E2M1")

    found = beside.formats(drawn_of(write_runs(tmp_path / "runs.csv", ways, law, plan={("S", 16)})))
    (seen,) = found.values()
    assert seen.value == pytest.approx(more, abs=0.002)
    assert seen.note.startswith("1 seeds of FP4, 1 of INT4; in groups of 8: 0.0")
    assert judged("qat_scaling", dict(found))["C12"].verdict == verdict


@pytest.mark.parametrize("together", [1.0, 0.6])
def test_factors_of_one_stream_are_scored_on_joint_cells_of_another_horizon(
    tmp_path: Path, base: Fit, together: float
) -> None:
    """`together`: what the streams cost more than their product when they are cut at once."""
    gamma, bias = {"weights": 1.2, "activations": 1.6, "keys_values": 1.0}, 0.2
    places = {"weights": "channel", "activations": "tensor", "keys_values": "token"}

    def law(spec: RunSpec) -> float:
        cut = {name: str(getattr(spec, name)) for name in gamma if str(getattr(spec, name)) != "none"}
        shares = [1 - np.exp(-float(text[3 : text.index("@")]) / gamma[name] + bias) for name, text in cut.items()]
        return of_multiplier(spec, float(np.prod(shares)) * (together if len(shares) > 1 else 1.0))

    alone = [{name: f"INT{bits}@{place}"} for name, place in places.items() for bits in (2, 3, 4)]
    joint = [{name: f"INT{bits}@{place}" for name, place in places.items()} for bits in (3, 4)]
    first = write_runs(tmp_path / "a.csv", alone + joint, law, plan={("S", 8), ("M", 8)})
    second = write_runs(tmp_path / "b.csv", joint, law, plan={("S", 16)})
    both = tmp_path / "runs.csv"
    tables = [pd.read_csv(path, dtype=str, keep_default_na=False) for path in (first, second)]
    pd.concat(tables).drop_duplicates("run_id").to_csv(both, index=False)
    found = multipliers.kumar(drawn_of(both, 60), base)
    seen = found["pool/trained/kumar/one_at_a_time"]
    assert "on 2 joint cells" in seen.note
    apart = float(seen.note.split()[2])
    if together == 1.0:
        assert apart < 0.02
    else:
        assert seen.value > 1.25
        assert judged("kumar_precision", {"pool/trained/kumar/one_at_a_time": seen})["K5b"].verdict in (
            "fails", "inconclusive",
        )  # fmt: skip
    without = multipliers.kumar(drawn_of(first, 60), base)
    assert "pool/trained/kumar/one_at_a_time" not in without
