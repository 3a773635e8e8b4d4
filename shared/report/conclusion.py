"""A paper in plain words: which of its claims hold on our own runs, which fail, and which stay open.

The words are a person's: the section "In plain words" of the paper's README, a list whose items begin with
**Replicated**, **Not replicated** or **Undecided** and name the claims they speak of, such as (K1a, K1c). They stand
only as long as they agree with the verdicts (`disagreements`); else the claims' own statements are listed.
"""

import re
from collections.abc import Sequence

from shared.report.prose import blocks
from shared.report.results import NEEDS_RUNS, Claim

SAYING = (("holds", "replicated"), ("fails", "not replicated"), ("inconclusive", "undecided"), (NEEDS_RUNS, "untested"))
WORDS = "In plain words"
ID = r"[A-Z]{1,2}\d+[a-z]?"
NAMED = re.compile(rf"\(({ID}(?:, {ID})*)\)")  # in brackets: FC2 and W4 in a sentence are no claims
NUMBER = r"(\d+(?:\.\d+)?)"


def conclusion(claims: Sequence[Claim]) -> str:
    """One sentence, or '' for a paper none of whose claims our runs can decide. Other groups' runs and what a paper's
    own constants imply are not what replicates here, so only `measured` claims count."""
    ours = _ours(claims)
    pieces = []
    for verdict, word in SAYING:
        found = [f"“{claim.statement}” ({claim.id})" for claim in ours if claim.verdict == verdict]
        if found:
            pieces.append(f"{word}: {', '.join(found)}")
    if not pieces:
        return ""
    return f"At {_parameters(ours)} parameters, {'; '.join(pieces)}."


def disagreements(text: str, claims: Sequence[Claim]) -> list[str]:
    """What a section `WORDS` says that the verdicts do not, and the decided claims it leaves out, in words."""
    verdicts = {claim.id: claim.verdict for claim in _ours(claims)}
    said: dict[str, str] = {}
    wrong = []
    words = {word: verdict for verdict, word in SAYING}
    for item in (item for block in blocks(text) if block.kind == "list" for item in block.items):
        lead = item[0].text.rstrip(":").casefold()
        if lead not in words:
            wrong.append(f"an item begins with '{item[0].text}', not with one of {', '.join(words)}")
            continue
        named = NAMED.findall("".join(span.text for span in item))
        for id in (id for some in named for id in some.split(", ")):
            said[id] = lead
            if verdicts.get(id) != words[lead]:
                wrong.append(f"{id} is called {lead}, and is {verdicts.get(id, 'no measured claim')}")
    return wrong + [
        f"{id} {verdict} and is not named"
        for id, verdict in verdicts.items()
        if verdict in ("holds", "fails") and id not in said
    ]


def _ours(claims: Sequence[Claim]) -> list[Claim]:
    return [claim for claim in claims if claim.evidence == "measured" and claim.verdict != "out of reach"]


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
