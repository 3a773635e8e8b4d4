"""The chosen form on published runs: errors of their formats, laws and constants, and who is below whom."""

from dataclasses import asdict

import numpy as np
import pandas as pd
import pytest

from replications.unified import published
from replications.unified.error import mid_rise, pruned_energy
from replications.unified.forms import INPUT, STREAMS, Form
from replications.unified.results import ranked, statement
from replications.unified.select import Candidate, Selection
from shared.laws.compare import Comparison, Error, Score

SELECTION = Selection(
    (),
    tuple(Candidate(Form("additive", "energy", one), 0.1, {}) for one in ("free", "ratio", "fixed")),
)


def test_errors_of_published_formats() -> None:
    """FP4 is .0126849 (number_formats.md); without rotation a run has the error of one with it."""
    families = ["bf16", "quest_int", "no_hadamard", "quest_weight_only", "quest_fp4", "quest_2:4_int4"]
    table = pd.DataFrame({"family": families, "P_w": [16, 4, 4, 4, 16, 4], "P_a": [16, 4, 4, 16, 16, 4]})
    found = published.with_errors(table)
    weights, activations = found[INPUT].to_numpy(), found[STREAMS["a"]].to_numpy()
    four = mid_rise(4)
    assert found["P_w"].tolist() == [16, 4, 4, 4, 4, 4]
    assert weights[:4] == pytest.approx([0, four, four, four])
    assert activations == pytest.approx([0, four, four, 0, 0.0126849, four], rel=1e-4)
    assert weights[5] == pytest.approx(four + pruned_energy(0.5, "2:4") - four * pruned_energy(0.5, "2:4"))


def test_constants_are_counted_with_the_base() -> None:
    exponents = {"g": 0.8, "a": 0.3, "b": 0.2}
    laws = {law.name: law for law in published.unified(SELECTION, (), exponents)}
    assert {name: len(law.parameters) for name, law in laws.items()} == {
        "unified": 9, "unified_3": 8, "unified_2": 7, published.TRANSFERRED: 6,
    }  # fmt: skip
    with_streams = published.unified(SELECTION, ("a",), exponents)
    assert [len(law.parameters) for law in with_streams] == [10, 9, 8, 7]


def test_transferred_exponents_stay_where_they_are() -> None:
    law = published.unified(SELECTION, (), {"g": 0.8, "a": 0.3, "b": 0.2})[-1]
    constants = {"A": 400.0, "alpha": 0.35, "B": 2000.0, "beta": 0.37, "E": 1.8, "k": 0.02}
    N, D, e = np.array([1e8, 1e8, 4e8]), np.array([1e9, 1e9, 4e9]), np.array([0.0, 0.01, 0.02])
    loss = law.predict(law.internal(constants), {"N": N, "D": D, INPUT: e})
    clean = 400 / N**0.35 + 2000 / D**0.37 + 1.8
    np.testing.assert_allclose(loss - clean, 0.02 * e**0.8 * D**0.3 / N**0.2, atol=1e-12)


def test_each_paper_meets_the_form_with_as_many_constants() -> None:
    def score(law: str, constants: int, value: float) -> Score:
        return Score(law, constants, 0.0, 0.0, {"leave one size out": Error(value, 0.9 * value, 1.1 * value, 10)})

    scores = (score("unified", 9, 0.002), score("frantar", 10, 0.003), score("unified_2", 7, 0.006),
              score("kumar_eq3_bias", 7, 0.004), score("twin", 7, 0.0060001), score("few", 6, 0.1))  # fmt: skip
    found = published.against(Comparison(scores, "leave one size out", "unified", True, "", ()))
    assert {row["paper"]: (row["unified"], row["verdict"]) for row in found} == {
        "frantar": ("unified", "below"),
        "kumar_eq3_bias": ("unified_2", "above"),
        "twin": ("unified_2", "the same"),
    }


def test_the_whole_of_the_runs_and_their_parts_are_told_apart() -> None:
    """Runs of a part are among all of them, so that pairs of both are not one count."""
    pair = {"paper": "frantar", "paper_constants": 21, "verdict": "below"}
    of_published = {
        "comparisons": {
            "quest/all 104 runs": {"against": [{**pair, "verdict": "above"}, pair]},
            "quest/int": {"against": [pair, pair, {**pair, "verdict": "the same"}]},
            "quartet/forward": {"against": [pair]},
        }
    }
    summary = {
        "verdict_parts": 2,
        "without_verdict": [],
        "below": 2,
        "verdicts": 2,
        "below_beyond_chance": 1,
        "above_beyond_chance": 0,
    }
    found = {"summary": {**summary, "counts": True}, "form": asdict(SELECTION.form)}
    said = statement(found, of_published)
    assert "is below in 1 of 2 (law, split) pairs, above frantar (21 constants); on those of" in said
    assert "in 2 of 3." in said
    assert said.endswith("So no form counts: it would have to be below in all, on every paper's part.")
    for one in of_published["comparisons"].values():
        for row in one["against"]:
            row["verdict"] = "below"
    assert statement(found, of_published).endswith("So it counts.")


def test_laws_on_published_runs_win_tie_or_are_behind() -> None:
    def score(law: str, value: float, behind: Error | None) -> Score:
        return Score(law, 7, 0.0, 0.0, {"leave one size out": Error(value, 0.9 * value, 1.1 * value, 10)}, behind)

    scores = (
        score("a", 0.1, None),
        score("b", 0.2, Error(0.1, -0.01, 0.2, 10)),
        score("c", 0.3, Error(0.2, 0.1, 0.3, 10)),
    )
    part = ranked("quest/int", Comparison(scores, "leave one size out", "a", True, "", ()).to_json())
    assert part["part"] == "quest/int, leave one size out"
    assert part["clear_cells"] == 10
    assert [(row["law"], row["place"]) for row in part["laws"]] == [("a", "wins"), ("b", "ties"), ("c", "behind")]
    assert part["laws"][0]["behind_low"] is None
    assert part["laws"][2]["behind_low"] == 0.1
