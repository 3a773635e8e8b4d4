"""The claims of Sun et al. (arXiv 2501.02423): what Eq. 1 decides is recomputed; what low-precision runs of
ours decide is looked up among the quantities of replications/comparison/evidence.py, and says without them which runs
it needs.

The paper publishes its design, but no losses. CB numbers follow section 2.6 of the notes on the paper.
"""

import math
from collections.abc import Callable, Mapping
from typing import Any

from replications.capybara_fp import optimum
from shared.report.claim import Claim, Finding, in_order, out_of_reach, recomputed, stating
from shared.report.evidence import seen
from shared.report.refits import Refit

PAPER = "capybara_fp"
BLOCK = 128  # the only group size that gives the printed D_crit
LAYOUTS = {"BF16": (8, 7), "E4M3": (4, 3), "E2M1": (2, 1)}
TOKENS, BUDGETS = (1e11, 1e12, 1e13, 1e14), (1e21, 1e24, 1e27, 1e30, 1e31)
# 7B as printed: layers, hidden, FFN and the non-embedding parameters of the same table.
SHAPE_7B, N_7B = (35, 4096, 10752), 7_083_130_880

Values = dict[str, float]
Answer = tuple[float, str]


def parameters(layers: int, hidden: int, ffn: int) -> int:
    """Of attention (4 matrices) and SwiGLU (3), without embeddings: it gives every other listed size exactly."""
    return layers * (4 * hidden**2 + 3 * hidden * ffn)


def layouts_reproduced(published: Values) -> tuple[int, list[str]]:
    """How many of the 16 layouts of Figure 5 are those of Eq. 1, and the others."""
    wrong = []
    for bits in range(1, 17):
        E, M = optimum.best_layout(published, bits)
        if published[f"E_of_FP{bits}"] != E:
            wrong.append(f"FP{bits} E{E}M{M}")
    return 16 - len(wrong), wrong


def _d_crit(layout: str) -> Callable[[Values], Answer]:
    def answer(c: Values) -> Answer:
        found = {B: optimum.critical_tokens(c, 1e9, *LAYOUTS[layout], B) / 1e12 for B in (BLOCK, 64, 32)}
        printed = c[f"D_crit_{layout}"] / 1e12
        shown = ", ".join(f"{value:.4g}T at B = {B}" for B, value in found.items())
        return found[BLOCK] / printed, f"{shown}; printed {printed:g}T, without B"

    return answer


def _trends(c: Values) -> Answer:
    def crit(N: float, E: float, M: float, B: float) -> float:
        return optimum.critical_tokens(c, N, E, M, B)

    at = crit(1e9, 4, 3, BLOCK)
    ratios = (
        crit(2e9, 4, 3, BLOCK) / at,
        crit(1e9, 5, 3, BLOCK) / at,
        crit(1e9, 4, 4, BLOCK) / at,
        at / crit(1e9, 4, 3, 256),
    )
    return min(ratios), "by twice N, one exponent bit, one mantissa bit and half the group: times " + ", ".join(
        f"{ratio:.2f}" for ratio in ratios
    )


def _ends(values: list[float], names: list[str]) -> Answer:
    """The value nearest to the edges of 4 to 8 bits."""
    nearest = min(values, key=lambda bits: min(bits - 4, 8 - bits))
    return nearest, ", ".join(f"{bits:.2f} bits at {name}" for bits, name in zip(values, names, strict=True))


def _for_tokens(c: Values) -> Answer:
    return _ends([optimum.best_bits_for_tokens(c, D, BLOCK) for D in TOKENS], [f"{D / 1e12:g}T tokens" for D in TOKENS])


def _for_cost(c: Values) -> Answer:
    return _ends([optimum.best_bits_for_cost(c, C, BLOCK) for C in BUDGETS], [f"C = {C:.0e}" for C in BUDGETS])


def _layouts(c: Values) -> Answer:
    right, wrong = layouts_reproduced(c)
    return float(right), f"{right} of 16 agree" + (f"; others: {', '.join(wrong)}" if wrong else "")


def _shape(c: Values) -> Answer:
    found = parameters(*SHAPE_7B)
    other = parameters(SHAPE_7B[0], SHAPE_7B[1], 11008)
    same = "gives it exactly" if other == N_7B else f"gives {other:,}"
    return found / N_7B, f"{found:,} against {N_7B:,}; an FFN of 11,008 {same}"


def _runs(c: Values) -> Answer:
    return c["rows_in_table"] - c["runs_in_text"], f"{c['rows_in_table']:.0f} rows, {c['runs_in_text']:.0f} runs"


_claim = stating(PAPER, "recomputed")


WITHIN = ("within 2 % of the printed value", 0.98, 1.02)  # it is printed with one to four digits
RECOMPUTED: tuple[tuple[Claim, Callable[[Values], Answer]], ...] = (
    (
        _claim(
            "CB1a",
            "An exponent bit matters a little more than a mantissa bit",
            "Eq. 1",
            "delta - nu > 0",
            0.0,
            math.inf,
        ),
        lambda c: (c["delta"] - c["nu"], f"delta {c['delta']}, nu {c['nu']}"),
    ),
    (
        _claim("CB1b", "Eq. 1 gives the best layouts of FP1 to FP16", "Figure 5", "all 16 layouts", 15.5, 16.5),
        _layouts,
    ),
    (_claim("CB2a", "D_crit of 1B parameters in BF16 is 1730T", "text", *WITHIN), _d_crit("BF16")),
    (_claim("CB2b", "D_crit of 1B parameters in E4M3 is 27T", "text", *WITHIN), _d_crit("E4M3")),
    (_claim("CB2c", "D_crit of 1B parameters in E2M1 is 0.4T", "text", *WITHIN), _d_crit("E2M1")),
    (
        _claim(
            "CB2d",
            "D_crit grows with N and the bits and falls with the group",
            "Eq. 1",
            "every ratio > 1",
            1.0,
            math.inf,
        ),
        _trends,
    ),
    (
        _claim("CB3a", "The best precision is 4 to 8 bits for 0.1T to 100T tokens", "text", "4 to 8 bits", 4.0, 8.0),
        _for_tokens,
    ),
    (
        _claim(
            "CB3b", "The best precision is 4 to 8 bits for budgets of 1e21 to 1e31", "text", "4 to 8 bits", 4.0, 8.0
        ),
        _for_cost,
    ),
    (
        _claim(
            "CB9",
            "The printed shape of the 7B model has its printed size",
            "settings",
            "ratio within 0.1 %",
            0.999,
            1.001,
        ),
        _shape,
    ),
    (
        _claim("CB10", "Table 3 lists as many runs as the text counts", "Table 3", "difference zero", -0.5, 0.5),
        _runs,
    ),
)

_measured = stating(PAPER, "measured")


# What would decide a claim that waits, and its cost on one core, as measured (seconds in reports/runs.csv).
GRID = (
    "eight cells on P2, P4 and P6 are needed, of two sizes, two horizons, two values of E, of M and of the block, and "
    "channels: S at 8M tokens takes about 2.5 minutes, M about 5.5"
)
# On our pool: the quantities of replications/comparison/evidence.py by the beginning of their names.
ON_POOL = (
    (
        _measured("CB1c", "delta > nu on our runs", "Eq. 1", "delta - nu > 0", 0.0, math.inf),
        "pool/trained/sun/difference",
        GRID,
    ),
    (
        _measured(
            "CB4a",
            "The penalty is proportional to log2 B",
            "Eq. 14",
            "exponent of log2 B between 0.8 and 1.2",
            0.8,
            1.2,
        ),
        "pool/trained/sun/kappa",
        GRID,
    ),
    (
        _measured("CB4b", "The penalty grows with D and falls with N", "Eq. 1", "both exponents > 0", 0.0, math.inf),
        "pool/trained/sun/grows/",
        GRID,
    ),
    (
        _measured(
            "CB5",
            "Its exponents of D and N are those of the loss without quantization",
            "fits of phi and eta",
            "phi / beta and eta / alpha between 0.8 and 1.25",
            0.8,
            1.25,
        ),
        "pool/trained/sun/tied/",
        GRID,
    ),
    (
        _measured(
            "CB6",
            "A whole channel counts as log2 B = 13.16 at every N and D",
            "text",
            "equivalent log2 B between 11 and 15",
            11.0,
            15.0,
        ),
        "pool/trained/sun/channel/",
        "one layout in blocks and per channel at one size and horizon is needed: S at 8M tokens, about five minutes",
    ),
    (
        _measured(
            "CB8",
            "Kumar's form with P = E + M + 1 is biased at E1M1",
            "Eq. 6",
            "mean residual at E1M1 under that form, in standard errors, above 2",
            2.0,
            math.inf,
        ),
        "pool/trained/sun/kumar_form",
        "E1M1 and layouts of two other widths per channel at one size and horizon are needed: S at 8M tokens, about "
        "eight minutes; and base runs that Chinchilla's law can be fitted to",
    ),
)
OUT_OF_REACH = (
    (
        _measured(
            "CB7",
            "The law extrapolates to 1.2B, 7B and 70B parameters",
            "12 validation runs",
            "relative error under 3 %",
            0.0,
            0.03,
        ),
        "runs of 1.2B to 70B parameters need a cluster, and the paper shows theirs in a figure without numbers",
    ),
)


def judge(fit: dict[str, Any], published: Values, refits: Mapping[str, Refit]) -> list[Finding]:
    """All claims, from the values of published.yaml and the quantities of the pool in `refits`."""
    return in_order(
        [
            *(recomputed(claim, *answer(published)) for claim, answer in RECOMPUTED),
            *(seen(claim, refits, prefix, missing) for claim, prefix, missing in ON_POOL),
            *(out_of_reach(claim, detail) for claim, detail in OUT_OF_REACH),
        ]
    )
