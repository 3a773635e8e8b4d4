"""The claims of Ouyang et al. (arXiv 2411.17691); the regions were fixed before the runs they are judged on.

O1 is judged on trunk checkpoints, which like the paper's lie along one training run; the value on cooled checkpoints
is in the detail. Signs and numbers are separate claims: an exponent may have the right sign and another size. A number
counts as reproduced within 20 % of the paper's one-factor law. What the paper's constants and its Table 1 decide is
recomputed in audit.py.
"""

import math
from collections.abc import Mapping
from typing import Any

from replications.undertrained_qid import audit
from shared.report.claim import Claim, Finding, Interval, Region, in_order, measured, needs_runs, out_of_reach
from shared.report.evidence import cost, part_of, scale, seen
from shared.report.refits import Refit

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


def _waiting(id: str, statement: str, source: str, region: Region) -> Claim:
    return Claim(id, PAPER, statement, source, "measured", region)


# On our pool: the quantities of replications/comparison/evidence.py by the beginning of their names.
ON_POOL = (
    (
        _waiting(
            "O4",
            "The curve of delta against D is nearly the same on another text",
            "Figure 8",
            Region("delta on the second text over that on the first between 0.8 and 1.25", 0.8, 1.25),
        ),
        "pool/second/trunk/",
        "two checkpoints measured on a second text are needed: `bitlaw statistics cpu`",
    ),
    (
        _waiting(
            "O7",
            "Late in training weights change less between checkpoints than rounding changes them",
            "Figure 12",
            Region("mean squared change over the last doubling of D over that of rounding < 1", 0.0, 1.0),
        ),
        "pool/change/",
        "neighbouring trunk checkpoints of two sizes must be at hand: `bitlaw statistics cpu`",
    ),
    (
        _waiting(
            "O3",
            "AWQ and bitsandbytes at 4 bits show the same trend",
            "Figure 9",
            Region("d ln delta / d ln D > 0 and d ln delta / d ln N < 0 for each", 0.0, math.inf),
        ),
        "pool/methods/trunk/",
        "two horizons or sizes of AWQ in 4 bits or of NF4 on trunk checkpoints are needed: `bitlaw measure cpu`",
    ),
    (
        _waiting(
            "O8",
            "A model trained in 1 bit is comparable to an unquantized one early and falls behind later",
            "Figure 14",
            Region("d (L_1bit - L_16bit) / d ln D > 0", 0.0, math.inf),
        ),
        "pool/trained/one_bit/",
        "1-bit runs at two horizons are needed: S at 16M, three minutes",
    ),
)
OUT_OF_REACH = (
    (
        _waiting(
            "O2",
            "The joint law fits all GPTQ measurements of the Pythia suite",
            "Eq. 8, Figure 6",
            Region("R^2 of the joint law on the paper's measurements at least 0.9", 0.9, math.inf),
        ),
        "the paper's losses are published in figures only, and its 1,500 quantized checkpoints reach 12B parameters",
    ),
)


def judge(fit: dict[str, Any], published: dict[str, float], refits: Mapping[str, Refit]) -> list[Finding]:
    """All claims, from fit.json, the values of published.yaml and the quantities of the pool in `refits`."""
    return in_order(
        [
            *_o1(fit),
            *audit.judge(published),
            *(seen(claim, refits, prefix, missing) for claim, prefix, missing in ON_POOL),
            *(out_of_reach(claim, detail) for claim, detail in OUT_OF_REACH),
        ]
    )


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


def _text(estimate: dict[str, float]) -> str:
    return f"{estimate['value']:.3g} [{estimate['low']:.3g}, {estimate['high']:.3g}]"
