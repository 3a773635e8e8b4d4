"""The sentence that says of a paper what replicated."""

from pathlib import Path

import pytest

from replications.papers import GUIDE, PAPERS, Paper
from shared.report.conclusion import WORDS, conclusion, disagreements
from shared.report.prose import section
from shared.report.results import Claim, read_claims

REPORTS = Path(__file__).parent.parent / "reports"


def claim(id: str, statement: str, verdict: str, evidence: str = "measured", scale: str = "") -> Claim:
    return Claim(id, statement, "Eq. 1", evidence, "x > 0", verdict, 1.0, 0.5, 1.5, "", None, scale)


def test_each_claim_is_named_once_under_its_verdict() -> None:
    found = [
        claim("K1", "It falls with the model size", "holds", scale="0.11-0.38M parameters, 2-16M tokens"),
        claim("K2", "AWQ shows the same", "fails", scale="0.11-0.85M parameters, 2-16M tokens"),
        claim("K3", "A law", "needs runs"),
        claim("K4", "Its exponent is 2", "inconclusive", scale="0.11M parameters, 2M tokens"),
    ]
    assert conclusion(found) == (
        "At 0.11 to 0.85 million parameters, replicated: “It falls with the model size” (K1); "
        "not replicated: “AWQ shows the same” (K2); undecided: “Its exponent is 2” (K4); untested: “A law” (K3)."
    )


def test_only_our_own_runs_count() -> None:
    found = [
        claim("K1", "Printed", "holds", evidence="recomputed"),
        claim("K2", "Theirs", "fails", evidence="refitted"),
        claim("K3", "A 70B model", "out of reach"),
    ]
    assert conclusion(found) == ""


def test_one_size_and_no_scale() -> None:
    one = claim("K1", "It falls", "holds", scale="0.11M parameters, 2M tokens")
    assert conclusion([one]).startswith("At 0.11 million parameters, replicated: “It falls” (K1)")
    assert conclusion([claim("K1", "It falls", "needs runs")]).startswith("At our models' parameters, untested")


@pytest.mark.parametrize(
    ("text", "wrong"),
    [
        ("- **Replicated**: it falls (K1).\n- **Not replicated**: AWQ does (K2). **Both** rest on INT4.", []),
        ("- **Replicated**: it falls (K1, K2).", ["K2 is called replicated, and is fails"]),
        ("- **Replicated**: it falls (K1).", ["K2 fails and is not named"]),
        (
            "- **Replicated**: FC2 in W4 (K1)\n- **Not replicated**: (K2)\n- **Undecided**: (K9)",
            ["K9 is called undecided"],
        ),
        (
            "- **Proven**: (K1)\n- **Not replicated**: (K2)",
            ["an item begins with 'Proven'", "K1 holds and is not named"],
        ),
        ("- **Replicated**: (K1)\n- **Not replicated**: (K2)\n- **Untested**: (K3)", []),
    ],
)
def test_words_agree_with_the_verdicts(text: str, wrong: list[str]) -> None:
    claims = [
        claim("K1", "It falls", "holds"), claim("K2", "AWQ", "fails"), claim("K3", "A law", "needs runs"),
        claim("K4", "Printed", "holds", evidence="recomputed"),
    ]  # fmt: skip
    found = disagreements(text, claims)
    assert len(found) == len(wrong)
    assert all(one.startswith(start) for one, start in zip(found, wrong, strict=True))


@pytest.mark.parametrize("paper", [*PAPERS.values(), GUIDE], ids=lambda paper: paper.name)
def test_the_committed_words_agree_with_the_committed_verdicts(paper: Paper) -> None:
    words = section(paper.file("README.md").read_text(encoding="utf-8"), WORDS)
    assert words
    assert disagreements(words, read_claims(REPORTS / paper.name / "claims.json")) == []
