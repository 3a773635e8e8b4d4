"""The claims of Frantar et al. (arXiv 2502.16440). Its text could not be read: F1 to F5 are those of its abstract.

QuEST fitted the same form and printed its multipliers; they decide what can be recomputed. That the multipliers are
constants is tested on published runs: under this form d ln delta / d ln D is zero.
"""

import math
from collections.abc import Callable, Mapping
from typing import Any

from shared.report.claim import Claim, Finding, Region, in_order, recomputed, stating
from shared.report.evidence import seen
from shared.report.refits import Refit, refitted

PAPER = "compression_laws"
BITS = (1, 2, 3, 4, 8)

Values = dict[str, float]
Answer = tuple[float, str]


def _weights(c: Values) -> Answer:
    shown = ", ".join(f"{c[f'quest/eff_W{bits}']:.2f} at {bits}" for bits in (1, 2, 3, 4))
    return c["quest/eff_W4"], f"QuEST, weights only: {shown} bits; a summary of the paper says {c['eff_weights_4bit']}"


def _per_bit(c: Values) -> Answer:
    each = {bits: c[f"quest/eff_W{bits}A{bits}"] / bits for bits in BITS}
    best = max(each, key=lambda bits: each[bits])
    return float(best), "eff / bits is " + ", ".join(f"{value:.3f} at {bits}" for bits, value in each.items())


def _agreement(c: Values) -> Answer:
    pairs = {
        "weights 4": (c["quest/eff_W4"], c["eff_weights_4bit"]),
        "full 4": (c["quest/eff_W4A4"], c["eff_full_4bit"]),
        "full 1": (c["quest/eff_W1A1"], c["eff_full_1bit"]),
    }
    worst = max(pairs.values(), key=lambda pair: abs(pair[0] - pair[1]))
    return worst[0] - worst[1], "QuEST against the paper: " + "; ".join(
        f"{name}: {ours:.3f} and {theirs:.3f}" for name, (ours, theirs) in pairs.items()
    )


_claim = stating(PAPER, "recomputed")


RECOMPUTED: tuple[tuple[Claim, Callable[[Values], Answer]], ...] = (
    (
        _claim(
            "F3a",
            "Weights alone can be quantized at little loss of effective parameters",
            "abstract",
            "eff at 4 bits > 0.8",
            0.8,
            math.inf,
        ),
        _weights,
    ),
    (
        _claim(
            "F4a",
            "Weights and activations have diminishing returns under 4 bits",
            "abstract",
            "eff / bits is largest at 4 bits",
            3.5,
            4.5,
        ),
        _per_bit,
    ),
    (
        _claim(
            "F6", "Another group's runs give the same multipliers", "public summaries", "each within 0.05", -0.05, 0.05
        ),
        _agreement,
    ),
)


def _refitted(id: str, statement: str, text: str, low: float, high: float) -> Claim:
    return Claim(id, PAPER, statement, "abstract", "refitted", Region(text, low, high))


ON_PUBLISHED_RUNS = (
    (
        _refitted(
            "F2a",
            "The multiplier of a compression does not depend on D",
            "d ln delta / d ln D within 0.05 of zero, as one multiplier makes it, on QuEST and Quartet",
            -0.05,
            0.05,
        ),
        (*(f"quest/gamma_D/{bits}" for bits in (2, 3, 4)), "quartet/forward/gamma_D"),
    ),
    (
        _refitted("F3b", "Weights alone: eff at 4 bits above 0.8", "eff of W4 on QuEST > 0.8", 0.8, math.inf),
        ("quest/eff_weight_only/4",),
    ),
    (
        _refitted(
            "F4b",
            "Full quantization to 4 bits keeps over half of the parameters",
            "eff of W4A4 on QuEST > 0.5",
            0.5,
            math.inf,
        ),
        ("quest/eff/4",),
    ),
)


def _measured(id: str, statement: str, text: str, low: float, high: float) -> Claim:
    return Claim(id, PAPER, statement, "abstract", "measured", Region(text, low, high))


# What would decide a claim that waits, and its cost on one core, as measured (seconds in reports/runs.csv).
BASE_LAW = "and base runs that Chinchilla's law can be fitted to"
CELLS = (
    "runs of one compression at two sizes or horizons are needed: S at 8M tokens takes about 2.5 minutes, M about 5.5; "
    + BASE_LAW
)
# On our pool: the quantities of replications/comparison/evidence.py by the beginning of their names.
ON_POOL = (
    (
        _measured(
            "F1",
            "Sparsity acts as a constant multiplier on N",
            "largest over smallest eff of one sparsity over N and D under 1.25",
            0.0,
            1.25,
        ),
        "pool/trained/frantar/spread/sparse/",
        CELLS,
    ),
    (
        _measured(
            "F2b",
            "Quantization acts as a constant multiplier on N",
            "largest over smallest eff of one format over N and D under 1.25",
            0.0,
            1.25,
        ),
        "pool/trained/frantar/spread/quantized/",
        CELLS,
    ),
    (
        _measured(
            "F5",
            "Compressions combine in one law",
            "eff of sparse and quantized over the product of both between 0.9 and 1.1",
            0.9,
            1.1,
        ),
        "pool/trained/frantar/product/",
        "at one size and horizon a sparse run, a quantized run and one that is both are needed: S at 8M tokens, about "
        "eight minutes; " + BASE_LAW,
    ),
)


def judge(fit: dict[str, Any], published: Values, refits: Mapping[str, Refit]) -> list[Finding]:
    """All claims, from the values of published.yaml, and the refits on published runs and quantities of the pool in
    `refits`."""
    return in_order(
        [
            *(recomputed(claim, *answer(published)) for claim, answer in RECOMPUTED),
            *(refitted(claim, refits, names) for claim, names in ON_PUBLISHED_RUNS),
            *(seen(claim, refits, prefix, missing) for claim, prefix, missing in ON_POOL),
        ]
    )
