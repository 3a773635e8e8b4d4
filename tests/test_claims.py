"""Verdicts at their boundaries, and the papers' claims on pools whose truth is known."""

import json
import math
import re
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
from judged import judged
from simulated_pool import Truth, fit_table, simulate, write_pool

from replications import papers
from replications.comparison import evidence
from replications.kumar_precision.law import LAW as KUMAR
from replications.undertrained_qid.law import LAW as OUYANG
from shared.errors import BitlawError
from shared.laws.noise import seed_noise
from shared.laws.settings import read_yaml
from shared.laws.study import CELL
from shared.report.claim import (
    Claim,
    Cost,
    Interval,
    Region,
    in_order,
    judge,
    ledger,
    measured,
    needs_runs,
    out_of_reach,
    recomputed,
)
from shared.report.evidence import read_seen

RANGE = Region("between 0.8 and 1.2", 0.8, 1.2)
CLAIM = Claim("X1", "paper", "something is about one", "Table 1", "measured", RANGE)
COST = Cost(trunks=4, hours_per_trunk=0.5)
KUMAR_LIKE = Truth(KUMAR, {"C_T": 5.0, "gamma_D": 0.5, "gamma_N": 0.35, "gamma_post": 0.55})
OUYANG_LIKE = Truth(OUYANG, {"k": 1.0, "beta": 0.5316, "alpha": 0.2276, "gamma": 5.4812}, seed_cv=0.01)


@pytest.mark.parametrize(
    ("low", "high", "verdict"),
    [
        (0.81, 1.19, "holds"),
        (0.8, 1.19, "inconclusive"),  # an interval that touches the edge is not inside
        (0.81, 1.2, "inconclusive"),
        (0.5, 0.8, "fails"),  # and one that only touches it from outside is outside: the region is open
        (1.2, 1.5, "fails"),
        (0.5, 0.8000001, "inconclusive"),
        (0.1, 3.0, "inconclusive"),
        (-2.0, -1.0, "fails"),
        (float("nan"), 1.0, "inconclusive"),
        (1.0, float("inf"), "inconclusive"),
    ],
)
def test_verdicts_at_the_edges(low: float, high: float, verdict: str) -> None:
    assert judge(RANGE, low, high) == verdict


def test_signs_are_open_half_lines() -> None:
    positive = Region("> 0", 0.0, math.inf)
    assert judge(positive, 1e-9, 5.0) == "holds"
    assert judge(positive, 0.0, 5.0) == "inconclusive"
    assert judge(positive, -5.0, 0.0) == "fails"


def test_a_claim_about_several_quantities_needs_all_of_them() -> None:
    good, wide, bad = Interval(1.0, 0.9, 1.1, "a"), Interval(1.0, 0.7, 1.1, "b"), Interval(1.5, 1.4, 1.6, "c")
    assert measured(CLAIM, [good, good], scale="", cost=COST).verdict == "holds"
    undecided = measured(CLAIM, [good, wide], scale="", cost=COST)
    assert (undecided.verdict, undecided.value, undecided.low) == ("inconclusive", 1.0, 0.7)
    failed = measured(CLAIM, [good, wide, bad], scale="", cost=COST)
    assert (failed.verdict, failed.value) == ("fails", 1.5)
    assert failed.detail.startswith("c: 1.5 [1.4, 1.6], the one that decides of 3 (1 hold)")
    assert measured(CLAIM, [], scale="", cost=COST).verdict == "needs runs"


def test_inconclusive_says_what_could_be_seen_and_what_would_decide() -> None:
    # Half-width 0.3 at a distance of 0.15 from the edge: four times the trunks, so 12 more of half an hour.
    found = measured(CLAIM, [Interval(1.05, 0.75, 1.35)], scale="0.1M", cost=COST)
    assert found.smallest_visible_effect == pytest.approx(0.3)
    assert "an effect under 0.3 cannot be seen" in found.detail
    assert "12 more trunks like these 4 (about 6 hours) would decide it" in found.detail
    on_edge = measured(CLAIM, [Interval(1.2, 0.9, 1.5)], scale="0.1M", cost=COST)
    assert "more seeds would not decide it" in on_edge.detail
    by_law = measured(CLAIM, [Interval(1.05, 0.75, 1.35)], scale="", cost=replace(COST, seeds_limit=False))
    assert "the law's lack of fit limits it" in by_law.detail
    assert "hours" not in measured(CLAIM, [Interval(1.05, 0.75, 1.35)], scale="", cost=Cost(4, None)).detail


def test_the_ledger_counts_what_chance_may_have_decided() -> None:
    sure = Claim("X2", "paper", "a number", "Eq. 1", "recomputed", RANGE)
    findings = [
        measured(CLAIM, [Interval(1.0, 0.9, 1.1)], scale="", cost=COST),
        measured(CLAIM, [Interval(2.0, 1.9, 2.1)], scale="", cost=COST),
        measured(CLAIM, [Interval(1.0, 0.1, 2.1)], scale="", cost=COST),
        recomputed(sure, 1.3, "it is 1.3"),
        needs_runs(CLAIM, "no rows"),
    ]
    written = ledger("paper", findings)
    assert [entry["verdict"] for entry in written["claims"]] == [
        "holds",
        "fails",
        "inconclusive",
        "fails",
        "needs runs",
    ]
    assert (written["tested"], written["expected_false_verdicts"]) == (3, pytest.approx(0.15))
    assert set(written["claims"][0]) == {
        "id", "statement", "source", "evidence", "region", "verdict", "value", "low", "high", "detail",
        "smallest_visible_effect", "scale",
    }  # fmt: skip


def test_findings_are_told_by_their_numbers() -> None:
    named = [replace(CLAIM, id=id) for id in ("K10", "K2", "K7b", "K7a", "K1")]
    found = in_order([needs_runs(claim, "") for claim in named])
    assert [finding.claim.id for finding in found] == ["K1", "K2", "K7a", "K7b", "K10"]


def test_what_is_out_of_reach_says_why() -> None:
    found = out_of_reach(CLAIM, "a 70B model")
    assert (found.verdict, found.detail, found.value) == ("out of reach", "a 70B model", None)


NAMES = [*papers.PAPERS, papers.GUIDE.name]


@pytest.mark.parametrize("name", NAMES)
def test_every_claim_states_its_region_and_why_it_waits(name: str) -> None:
    for finding in judged(name).values():
        claim = finding.claim
        assert claim.paper == name
        assert claim.region.low < claim.region.high
        assert claim.statement
        assert claim.source
        assert claim.region.text
        assert finding.detail
        if claim.evidence == "recomputed":
            assert finding.verdict in ("holds", "fails")
            assert finding.value is not None
            assert math.isfinite(finding.value)
            assert finding.low == finding.value == finding.high
        else:
            assert finding.verdict in ("needs runs", "out of reach")


def test_no_two_claims_of_the_suite_share_an_id() -> None:
    ids = [id for name in NAMES for id in judged(name)]
    assert len(set(ids)) == len(ids) > 150


@pytest.mark.parametrize("name", NAMES)
def test_every_numbered_claim_is_judged_and_nothing_else(name: str) -> None:
    listed = read_yaml(Path(__file__).with_name("numbered_claims.yaml"))
    assert set(listed) == {*NAMES, "ours"}
    theirs, ours = (dict(listed[key]) for key in (name, "ours"))  # type: ignore[call-overload]
    judged_here = {re.sub("[a-z]$", "", id) for id in judged(name)}
    assert set(theirs) <= judged_here <= {*theirs, *ours}
    for prefix in {re.sub("[0-9]+$", "", number) for number in theirs}:  # no number of a paper is skipped
        numbers = sorted(
            int(number.removeprefix(prefix)) for number in theirs if re.fullmatch(prefix + "[0-9]+", number)
        )
        assert numbers == list(range(1, len(numbers) + 1))


@pytest.mark.parametrize("name", [name for name in NAMES if not papers.find(name).fitted])
def test_a_paper_without_runs_is_judged_by_what_it_publishes(tmp_path: Path, name: str) -> None:
    target = papers.write_claims(papers.find(name), tmp_path)
    assert target == tmp_path / name / "claims.json"
    written = json.loads(target.read_text())
    assert written["tested"] == 0
    assert {claim["id"]: claim["verdict"] for claim in written["claims"]} == {
        id: finding.verdict for id, finding in judged(name).items()
    }
    assert papers.verdict_lines(target)[-1] == "of 0 tested, 0 may be false by chance"
    with pytest.raises(BitlawError, match=f"{name} has no law that is fitted to our tables") as error:
        papers.write_fit(papers.find(name), tmp_path, tmp_path / "params.yaml")
    assert "\n" not in str(error.value)


def test_what_the_pool_shows_reaches_the_claims(tmp_path: Path) -> None:
    (tmp_path / "comparison").mkdir()
    step = {
        "value": -0.1,
        "low": -0.2,
        "high": -0.05,
        "scale": "0.1M",
        "note": "",
        "label": "S",
        "trunks": 3,
        "by_law": False,
    }
    found = {
        "pool/step/a": step,
        "pool/step/b": {**step, "high": 0.1, "label": "M"},
        "pool/forms/gap": {**step, "value": -9, "low": -12, "high": -5},
    }
    path = tmp_path / "comparison" / "evidence.json"
    path.write_text(json.dumps(found))
    read = read_seen(path)
    guide = judged("comparison", dict(read))
    assert guide["G2b"].verdict == "inconclusive"
    assert guide["G2b"].detail.startswith("M: -0.1 [-0.2, 0.1], the one that decides of 2 (1 hold)")
    assert guide["G13"].verdict == "needs runs"
    assert judged("comparison", {"pool/step/a": read["pool/step/a"]})["G2b"].verdict == "holds"
    written = json.loads(papers.write_claims(papers.find("precision_predictor"), tmp_path).read_text())
    assert next(claim for claim in written["claims"] if claim["id"] == "S3b")["verdict"] == "fails"
    path.write_text('{"pool/step/a": {"worth": 1}}')
    with pytest.raises(BitlawError, match="is no file of evidence"):
        read_seen(path)


def test_evidence_of_a_pool_whose_law_is_known() -> None:
    """An exponential law: its form is not worse than the others, and steps between horizons are those of the losses."""
    generator = np.random.default_rng(3)
    _, rows = simulate(KUMAR_LIKE, {"S": 3, "M": 2}, generator)
    table = fit_table(rows)
    found = evidence.forms(table, seed_noise(table, CELL))
    assert found["pool/forms/exponential"].value > 2
    assert found["pool/forms/gap"].low < found["pool/forms/gap"].value < -2
    losses = pd.DataFrame(
        [
            (2, N, D, trunk, 3.0 + 0.5 * np.log(D / 4e6) + shift, 0.0, 0.0)
            for N in (1e5, 2e5) for trunk, shift in (("a", 0.0), ("b", 0.1)) for D in (4e6, 8e6)
        ],
        columns=["bits", "N", "D", "trunk_id", "loss", "loss_se", "delta_se"],
    )  # fmt: skip
    steps = list(evidence._steps(losses))
    assert [step[2].value for step in steps] == pytest.approx([0.5, 0.5])
    assert steps[0][1] == (1e5, 4e6, 8e6)


def test_refits_on_published_runs_reach_the_claims(tmp_path: Path) -> None:
    (tmp_path / "published").mkdir()
    refit = {"value": 0.1, "low": 0.05, "high": 0.15, "scale": "Quartet, 30M-200M", "note": "21 rows"}
    path = tmp_path / "published" / "refits.json"
    path.write_text(json.dumps({"quartet/forward/gamma_D": refit}))
    written = json.loads(papers.write_claims(papers.find("qat_scaling"), tmp_path).read_text())
    found = next(claim for claim in written["claims"] if claim["id"] == "C2c")
    assert (found["verdict"], found["value"], found["scale"]) == ("holds", 0.1, "Quartet, 30M-200M")
    assert found["detail"] == "quartet/forward/gamma_D: 0.1 [0.05, 0.15]; 21 rows"
    assert written["tested"] == 1
    for wrong in ('{"quest/n": 3}', '{"quest/n": {"value": 1}}', "[]"):
        path.write_text(wrong)
        with pytest.raises(BitlawError, match=r"refits\.json: is no file of refits"):
            papers.write_claims(papers.find("qat_scaling"), tmp_path)


def test_the_guide_is_judged_by_all_papers() -> None:
    found = judged("comparison")
    decided = {id: finding.verdict for id, finding in found.items() if finding.claim.evidence == "recomputed"}
    holds, fails = ("G6", "G10a", "G12a", "G14a"), ("G1a", "G2a", "G5", "G8", "G9a", "G11")
    assert decided == dict.fromkeys(holds, "holds") | dict.fromkeys(fails, "fails")
    assert found["G1a"].value == 0
    assert "compression_laws: published by QuEST, W4A4" in found["G1a"].detail
    assert re.search(r"changes by \+\S+ at 1B, -\S+ at 8B, -\S+ at 70B", found["G2a"].detail)
    assert {f"G{n}" for n in range(1, 15)} <= {id.rstrip("ab") for id in found}


def verdicts(tmp_path: Path, name: str, truth: Truth, seeds: dict[str, int]) -> dict[str, dict[str, Any]]:
    """The claims of a paper on a simulated pool, by id."""
    write_pool(tmp_path, simulate(truth, seeds, np.random.default_rng(4), phases=("cooled", "trunk")))
    params = tmp_path / "params.yaml"
    params.write_text("fit: {n_starts: 8, n_boot: 200, seed: 1, condition_limit: 1.0e+8, signal_to_noise: 4}\n")
    paper = papers.find(name)
    papers.write_fit(paper, tmp_path / "reports", params)
    target = papers.write_claims(paper, tmp_path / "reports")
    return {claim["id"]: claim for claim in json.loads(target.read_text())["claims"]}


def test_kumar_claims_hold_where_the_law_is_true(tmp_path: Path) -> None:
    found = verdicts(tmp_path, "kumar_precision", KUMAR_LIKE, {"S": 3, "M": 1, "W": 1})
    assert {found[id]["verdict"] for id in ("K1a", "K1b", "K1c", "K1d")} == {"holds"}
    assert found["K1c"]["value"] > 0.99
    assert found["K1a"]["scale"] == "0.11-0.75M parameters, 2-16M tokens"


def test_kumar_claims_fail_where_it_is_false(tmp_path: Path) -> None:
    upside_down = replace(KUMAR_LIKE, constants={"C_T": 20.0, "gamma_D": -0.4, "gamma_N": -0.4, "gamma_post": 0.9})
    found = verdicts(tmp_path, "kumar_precision", upside_down, {"S": 3, "M": 1, "W": 1})
    assert (found["K1a"]["verdict"], found["K1b"]["verdict"]) == ("fails", "fails")
    assert found["K1a"]["high"] < 0 < found["K1b"]["low"]


def test_a_power_of_the_bits_is_no_exponential(tmp_path: Path) -> None:
    found = verdicts(tmp_path, "kumar_precision", OUYANG_LIKE, {"S": 3, "M": 1, "W": 1})
    assert found["K1d"]["verdict"] == "fails"
    assert found["K1d"]["low"] > 0.1


def test_published_constants_decide_what_needs_no_runs(tmp_path: Path) -> None:
    found = verdicts(tmp_path, "kumar_precision", KUMAR_LIKE, {"S": 1})
    waiting = dict.fromkeys(("K1a", "K1b", "K1c", "K1d"), "needs runs")
    decided = {"K2": "fails", "K3a": "holds", "K3b": "holds"}
    assert {id: found[id]["verdict"] for id in waiting | decided} == waiting | decided
    assert found["K2"]["value"] == pytest.approx(0.5068 / 0.3439, rel=1e-5)
    assert "N^0.163" in found["K2"]["detail"]
    assert found["K3b"]["value"] == pytest.approx(4310, rel=0.001)
    assert found["K2"]["evidence"] == "recomputed"


def test_ouyang_signs_and_numbers_are_judged_apart(tmp_path: Path) -> None:
    found = verdicts(tmp_path, "undertrained_qid", OUYANG_LIKE, {"S": 3, "S4": 3, "M": 3, "W": 3})
    assert {found[id]["verdict"] for id in ("O1a", "O1b", "O1c", "O1e", "O1f", "O1g")} == {"holds"}
    assert found["O5"]["verdict"] == "fails"  # Table 1 does not follow Eq. 8
    assert found["O5"]["value"] == pytest.approx(10.3e12, rel=0.01)
    (tmp_path / "steeper").mkdir()
    steeper = replace(OUYANG_LIKE, constants={**OUYANG_LIKE.constants, "k": 30.0, "gamma": 8.5})
    found = verdicts(tmp_path / "steeper", "undertrained_qid", steeper, {"S": 3, "S4": 3, "M": 3, "W": 3})
    assert (found["O1e"]["verdict"], found["O1f"]["verdict"]) == ("holds", "fails")


def test_a_foreign_fit_file_gets_a_sentence(tmp_path: Path) -> None:
    folder = tmp_path / "kumar_precision"
    folder.mkdir()
    (folder / "fit.json").write_text('{"parts": [{"phase": "cooled"}]}')
    with pytest.raises(BitlawError, match="is not what `bitlaw replicate fit kumar_precision` writes"):
        papers.write_claims(papers.find("kumar_precision"), tmp_path)
