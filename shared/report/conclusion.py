"""A paper in plain words: which of its claims hold on our own runs, which fail, and which stay open."""

import re
from collections.abc import Sequence

from shared.report.results import NEEDS_RUNS, Claim

SAYING = (("holds", "replicated"), ("fails", "not replicated"), ("inconclusive", "undecided"), (NEEDS_RUNS, "untested"))
NUMBER = r"(\d+(?:\.\d+)?)"


def conclusion(claims: Sequence[Claim]) -> str:
    """One sentence, or '' for a paper none of whose claims our runs can decide. Other groups' runs and what a paper's
    own constants imply are not what replicates here, so only `measured` claims count."""
    ours = [claim for claim in claims if claim.evidence == "measured" and claim.verdict != "out of reach"]
    pieces = []
    for verdict, word in SAYING:
        found = [f"“{claim.statement}” ({claim.id})" for claim in ours if claim.verdict == verdict]
        if found:
            pieces.append(f"{word}: {', '.join(found)}")
    if not pieces:
        return ""
    return f"At {_parameters(ours)} parameters, {'; '.join(pieces)}."


def _parameters(claims: Sequence[Claim]) -> str:
    """The range of N over the scales of the claims, such as '0.11 to 0.85 million'."""
    ends = [float(end) for claim in claims for end in _ends(claim.scale)]
    if not ends:
        return "our models'"
    low, high = min(ends), max(ends)
    return f"{low:g} million" if low == high else f"{low:g} to {high:g} million"


def _ends(scale: str) -> tuple[str, ...]:
    match = re.match(rf"{NUMBER}(?:-{NUMBER})?M parameters", scale)
    return tuple(end for end in match.groups() if end) if match else ()
