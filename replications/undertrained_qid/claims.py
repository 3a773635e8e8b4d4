"""Claims O1 and O5 of Ouyang et al. (arXiv 2411.17691); the regions were fixed before the runs they are judged on.

O1 is judged on trunk checkpoints, which like the paper's lie along one training run; the value on cooled checkpoints
is in the detail. Signs and numbers are separate claims: an exponent may have the right sign and another size. A number
counts as reproduced within 20 % of the paper's one-factor law.
"""

import math
from typing import Any

from replications.undertrained_qid.law import tokens_to_reach
from shared.report.claim import Claim, Finding, Interval, Region, measured, needs_runs, recomputed
from shared.report.evidence import cost, part_of, scale

PAPER = "undertrained_qid"
PHASE, OTHER_PHASE, GROUP_SIZE = "trunk", "cooled", "channel"
BETA, ALPHA, GAMMA = 0.5316, 0.2276, 5.4812  # Eq. 5-7
SHARE = 0.2


def _sign(id: str, statement: str, name: str) -> Claim:
    return Claim(id, PAPER, statement, "Eq. 5-8", "measured", Region(f"{name} > 0", 0.0, math.inf))


def _number(id: str, statement: str, name: str, value: float) -> Claim:
    low, high = value * (1 - SHARE), value * (1 + SHARE)
    region = Region(f"{name} within 20 % of {value}: {low:.4g} to {high:.4g}", low, high)
    return Claim(id, PAPER, statement, "Eq. 5-8", "measured", region)


EXPONENTS = (
    ("beta", _sign("O1a", "Degradation rises with the training tokens", "beta")),
    ("beta", _number("O1b", "Its exponent in D is about 0.53", "beta", BETA)),
    ("alpha", _sign("O1c", "It falls with the model size", "alpha")),
    ("alpha", _number("O1d", "Its exponent in N is about 0.23", "alpha", ALPHA)),
    ("gamma", _sign("O1e", "It falls with the bits of a weight", "gamma")),
    ("gamma", _number("O1f", "Its exponent in P is about 5.5", "gamma", GAMMA)),
)
DRIFT = SHARE * BETA
O1G = Claim(
    id="O1g",
    paper=PAPER,
    statement="One power of D serves the whole range of horizons",
    source="Eq. 5",
    evidence="measured",
    region=Region(
        f"change of d ln delta / d ln D each time D doubles within {DRIFT:.2g} (20 % of {BETA})", -DRIFT, DRIFT
    ),
)
O5 = Claim(
    id="O5",
    paper=PAPER,
    statement="By the joint law a 70B model needs over 17T tokens to lose 0.2 nats at 4 bits",
    source="Table 1, against Eq. 8",
    evidence="recomputed",
    region=Region("D above 17e12 tokens", 17e12, math.inf),
)


def judge(fit: dict[str, Any], published: dict[str, float]) -> list[Finding]:
    """All claims, from fit.json and the values of published.yaml."""
    return [*_o1(fit), _o5(published)]


def _o1(fit: dict[str, Any]) -> list[Finding]:
    part, other = part_of(fit, PHASE, GROUP_SIZE), part_of(fit, OTHER_PHASE, GROUP_SIZE)
    if part is None:
        claims = [*(claim for _, claim in EXPONENTS), O1G]
        return [needs_runs(claim, f"no {PHASE} rows per channel that can be fitted") for claim in claims]
    found = []
    for name, claim in EXPONENTS:
        estimate = part["parameters"][name]
        note = f"fit {part['status']}"
        if other:
            note += f"; on {OTHER_PHASE} checkpoints {_text(other['parameters'][name])}"
        interval = Interval(estimate["value"], estimate["low"], estimate["high"])
        found.append(measured(claim, [interval], scale=scale(part), cost=cost(fit, part, by_law=True), note=note))
    drift = part["law_free"]["D_drift"]
    intervals = [Interval(drift["value"], drift["low"], drift["high"])] if drift else []
    note = ""
    if other and other["law_free"]["D_drift"]:
        note = f"on {OTHER_PHASE} checkpoints {_text(other['law_free']['D_drift'])}"
    price = cost(fit, part, by_law=False)
    return [*found, measured(O1G, intervals, scale=scale(part), cost=price, note=note)]


def _o5(published: dict[str, float]) -> Finding:
    tokens = tokens_to_reach(published, 0.2, 70e9, 4)
    table = published["tokens_70B_4bit_0.2"]
    detail = f"Eq. 8 gives {tokens / 1e12:.3g}T where Table 1 prints {table / 1e12:.4g}T: the table does not follow it"
    return recomputed(O5, tokens, detail)


def _text(estimate: dict[str, float]) -> str:
    return f"{estimate['value']:.3g} [{estimate['low']:.3g}, {estimate['high']:.3g}]"
