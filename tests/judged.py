"""The claims of a paper without any run of ours, by id."""

from replications import papers
from shared.report.claim import Finding
from shared.report.refits import Refit


def judged(paper: str, refits: dict[str, Refit] | None = None) -> dict[str, Finding]:
    found = papers.find(paper)
    findings = found.judge(papers.NO_FIT, found.published().values(), refits or {})
    assert len({finding.claim.id for finding in findings}) == len(findings)
    return {finding.claim.id: finding for finding in findings}


def verdicts(paper: str) -> dict[str, str]:
    """Of what is recomputed."""
    return {id: f.verdict for id, f in judged(paper).items() if f.claim.evidence == "recomputed"}
