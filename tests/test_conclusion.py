"""The sentence that says of a paper what replicated."""

from shared.report.conclusion import conclusion
from shared.report.results import Claim


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
