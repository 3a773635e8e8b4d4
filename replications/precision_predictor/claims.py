"""The statements of the page (S), of GuidedQuant (GQ, arXiv 2505.07004) and of progressive decoding (PD, 2410.13461).

The page contradicts itself and its sources in places; where published numbers decide, they do so here. GuidedQuant's
claims about its own tables are recomputed from those tables; that says nothing about other models.
"""

import math
from collections.abc import Callable, Mapping
from typing import Any

from shared.report.claim import Claim, Finding, in_order, out_of_reach, recomputed, stating
from shared.report.evidence import seen
from shared.report.refits import Refit

PAPER = "precision_predictor"
SIZES, BITS = ("7B", "13B", "70B"), (2, 3, 4)
RIVALS = ("squeezellm", "gptvq", "gptq")

Values = dict[str, float]
Answer = tuple[float, str]


def perplexity(published: Values, size: str, bits: int, method: str) -> float | None:
    """Of Llama-2 on WikiText-2, where the paper's tables have it."""
    return published.get(f"guidedquant_{size}/{bits}_{method}")


def _models(c: Values) -> Answer:
    return c["kumar_largest_model"], (
        "arXiv 2411.04330 is by Kumar et al., not Deletang et al., and its largest model has 1.7B parameters"
    )


def _ratio(c: Values) -> Answer:
    slope = min(c["kumar_gamma_D"], c["kumar_gamma_N"])
    return slope, (
        f"delta rises as D^{c['kumar_gamma_D']} / N^{c['kumar_gamma_N']}: with D/N, as the page's formula has it, and "
        "its sentence on failure modes has the opposite"
    )


def _gap_form(c: Values) -> Answer:
    """The slope per bit of a power of the gap is -delta / gap: it must match Kumar's at 4 bits and at 8."""
    per_bit = 1 / c["kumar_gamma_post"]
    at_4, at_8 = per_bit * (16 - 4), per_bit * (16 - 8)
    return at_4 / at_8, (
        f"Kumar's law loses {per_bit:.2f} of ln delta per bit at every width; a power of 16 - b needs the exponent "
        f"{at_4:.1f} at 4 bits and {at_8:.1f} at 8"
    )


def _beats(c: Values) -> Answer:
    worst, where = math.inf, ""
    for size in SIZES:
        for bits in BITS:
            guided = c[f"guidedquant_{size}/{bits}_guided"]
            for method in RIVALS:
                other = perplexity(c, size, bits, method)
                if other is not None and (size, bits) != ("70B", 4) and other - guided < worst:
                    worst, where = other - guided, f"{size} at {bits} bits against {method}"
    return worst, f"least gain {worst:.2f} ({where}); at 4 bits and 70B all but GPTQ are equal"


def _lnq(c: Values) -> Answer:
    gains = {
        f"{size} at {bits} bits": c[f"guidedquant_{size}/{bits}_gptvq"] - c[f"guidedquant_{size}/{bits}_lnq"]
        for size in SIZES
        for bits in BITS
    }
    where = min(gains, key=lambda key: gains[key])
    return gains[where], f"least gain {gains[where]:.2f} ({where})"


def _one_group(c: Values) -> Answer:
    none, one, four = (c[f"guidedquant_7B/2_{name}"] for name in ("lnq", "guided_g1", "guided_g4"))
    share = (none - one) / (none - four)
    return share, f"perplexity {none} without, {one} with one group, {four} with four"


def _descent(size: str) -> Callable[[Values], Answer]:
    def answer(c: Values) -> Answer:
        mine, gptq = c[f"guidedquant_{size}/2_guided"], c[f"guidedquant_{size}/2_guided_by_gptq"]
        return gptq - mine, f"{mine} by coordinate descent, {gptq} by GPTQ, at 2 bits"

    return answer


def _gain_by_bits(c: Values) -> Answer:
    steps = []
    for size in SIZES:
        gains = [math.log(c[f"guidedquant_{size}/{b}_lnq"] / c[f"guidedquant_{size}/{b}_guided"]) for b in BITS]
        steps += [gains[0] - gains[1], gains[1] - gains[2]]
    return min(steps), "gain in ln perplexity, each width against the next, at 7B, 13B, 70B: " + ", ".join(
        f"{step:.3f}" for step in steps
    )


_claim = stating(PAPER, "recomputed")


RECOMPUTED: tuple[tuple[Claim, Callable[[Values], Answer]], ...] = (
    (
        _claim(
            "S2",
            "The law was found by Deletang et al. on models of the size of PaLM-2",
            "page, where the field is now",
            "largest model above 1e10 parameters",
            1e10,
            math.inf,
        ),
        _models,
    ),
    (
        _claim(
            "S3a",
            "A power of the gap b_train - b_inf is the form that Kumar et al. found",
            "page, how it works",
            "the exponent that matches their slope is the same at 4 and at 8 bits, within 10 %",
            0.9,
            1.1,
        ),
        _gap_form,
    ),
    (
        _claim(
            "S4",
            "If D/N is tiny, the penalty explodes",
            "page, failure modes",
            "exponents of D and 1/N in Kumar's Table 2 below zero",
            -math.inf,
            0.0,
        ),
        _ratio,
    ),
    (
        _claim(
            "GQ1",
            "LNQ with GuidedQuant beats SqueezeLLM, GPTVQ 1D and GPTQ at every width and size but 4 bits, 70B",
            "arXiv 2505.07004, tables",
            "least gain in perplexity > 0",
            0.0,
            math.inf,
        ),
        _beats,
    ),
    (
        _claim(
            "GQ2",
            "LNQ is nowhere worse than GPTVQ 1D",
            "arXiv 2505.07004, tables",
            "least gain in perplexity not below zero",
            -1e-9,
            math.inf,
        ),
        _lnq,
    ),
    (
        _claim(
            "GQ3",
            "One group keeps most of the gain",
            "arXiv 2505.07004, tables",
            "share of the gain of four groups above 0.8",
            0.8,
            math.inf,
        ),
        _one_group,
    ),
    (
        _claim(
            "GQ5a",
            "Coordinate descent assigns better than GPTQ at 7B",
            "arXiv 2505.07004, tables",
            "gain in perplexity > 0",
            0.0,
            math.inf,
        ),
        _descent("7B"),
    ),
    (
        _claim(
            "GQ5b",
            "Coordinate descent assigns worse than GPTQ at 70B",
            "arXiv 2505.07004, tables",
            "gain in perplexity < 0",
            -math.inf,
            0.0,
        ),
        _descent("70B"),
    ),
    (
        _claim(
            "GQ6",
            "The gain of guidance grows as bits fall",
            "arXiv 2505.07004, tables",
            "each step from 4 to 3 to 2 bits > 0",
            0.0,
            math.inf,
        ),
        _gain_by_bits,
    ),
)

_measured = stating(PAPER, "measured")


PAGE = "page"
GUIDED, PROGRESSIVE = "arXiv 2505.07004", "arXiv 2410.13461"
DECODE = "losses and texts under schedules of bits are needed: `bitlaw decode`"
ALLOCATE = "allocations at equal bits are needed: `bitlaw allocate`"
# On our pool: the quantities of replications/comparison/evidence.py by the beginning of their names.
ON_POOL = (
    (
        _measured(
            "GQ4", "The objective of LNQ never rises", GUIDED, "largest rise over steps at most zero", -math.inf, 1e-9
        ),
        "page/GQ4/",
        "steps of LNQ on checkpoints are needed: `bitlaw allocate`",
    ),
    (
        _measured(
            "S5",
            "Training in 32 bits and rounding to 2 is worse than training in 16 and rounding to 2",
            PAGE,
            "delta of FP32 weights over that of the same in BF16, less one, above 0.05",
            0.05,
            math.inf,
        ),
        "page/S5/",
        "the same weights have to be rounded from FP32 and from BF16: `bitlaw numerics`",
    ),
    (
        _measured(
            "S6",
            "Stochastic rounding lowers the penalty",
            PAGE,
            "delta of stochastic over that of nearest rounding < 1",
            0.0,
            1.0,
        ),
        "page/S6/",
        "the same weights have to be rounded both ways: `bitlaw numerics`",
    ),
    (
        _measured(
            "S7",
            "A linear drop of the bits over generation beats uniform 4 bits at the same mean",
            PAGE,
            "gain of the drop over the penalty of uniform, mean over steps, > 0",
            0.0,
            math.inf,
        ),
        "page/S7/",
        DECODE,
    ),
    (
        _measured(
            "S7b",
            "The same judged by the text: greedy output nearer to that of the unquantized model",
            PAGE + "; stated after the losses were seen",
            "Rouge-L of the drop less that of uniform > 0",
            0.0,
            math.inf,
        ),
        "page/S7b/",
        DECODE,
    ),
    (
        _measured(
            "S8",
            "Bits allocated by gradients recover accuracy at 2.5 bits",
            PAGE + "; allocated by the best solution under the budget",
            "ln of uniform's penalty over that of the allocation at equal mean bits > 0",
            0.0,
            math.inf,
        ),
        "page/S8/2.5/",
        ALLOCATE,
    ),
    (
        _measured(
            "S8b",
            "The same at 3 bits",
            PAGE + "; split from S8 by budget after the numbers were seen",
            "ln of uniform's penalty over that of the allocation at equal mean bits > 0",
            0.0,
            math.inf,
        ),
        "page/S8/3/",
        ALLOCATE,
    ),
    (
        _measured(
            "S8c",
            "The same at 2.5 bits by the page's own map, linear in the sensitivity",
            PAGE,
            "ln of uniform's penalty over that of the allocation at equal mean bits > 0",
            0.0,
            math.inf,
        ),
        "page/S8b/2.5/",
        ALLOCATE,
    ),
    (
        _measured(
            "S8d",
            "The page's own map at 3 bits",
            PAGE,
            "ln of uniform's penalty over that of the allocation at equal mean bits > 0",
            0.0,
            math.inf,
        ),
        "page/S8b/3/",
        ALLOCATE,
    ),
    (
        _measured(
            "S9",
            "4-bit blocks with more bits for the first 64 tokens lose less",
            PAGE + "; its attribution to Llama 3 is unverified; 6 bits first were in the region until they had failed",
            "gain of 5 bits for the first 64 tokens over the penalty of uniform bits, and of the same bits spread, > 0",
            0.0,
            math.inf,
        ),
        "page/S9/",
        DECODE,
    ),
    (
        _measured(
            "PD3",
            "Early tokens are more sensitive: high bits first beats low bits first",
            PROGRESSIVE,
            "gain over the penalty of low bits first, mean over steps, > 0",
            0.0,
            math.inf,
        ),
        "page/PD3/",
        DECODE,
    ),
    (
        _measured(
            "PD3b",
            "A prefill in high bits beats one in the bits of the decoding",
            PROGRESSIVE,
            "gain over the penalty with a prefill of its own bits > 0",
            0.0,
            math.inf,
        ),
        "page/PD3b/",
        DECODE,
    ),
    (
        _measured(
            "PD3c",
            "High bits first, judged by the text",
            PROGRESSIVE + "; stated after the losses were seen",
            "Rouge-L of high first less that of low first > 0",
            0.0,
            math.inf,
        ),
        "page/PD3c/",
        DECODE,
    ),
    (
        _measured("PD7", "A learned scheduler beats random ones", PROGRESSIVE, "gain > 0", 0.0, math.inf),
        "page/PD7/",
        DECODE,
    ),
    (
        _measured(
            "S1",
            "The more tokens, the more fragile: not only because of the decay of the learning rate",
            PAGE + "; disputed by arXiv 2510.06213",
            "d ln delta / d ln D > 0 on trunk checkpoints, whose learning rate has not decayed",
            0.0,
            math.inf,
        ),
        "pool/trunk/",
        "no trunk rows per channel that can be fitted",
    ),
    (
        _measured(
            "S3b",
            "A power of the gap describes our measurements better than an exponential or a power of the bits",
            PAGE,
            "AICc of the best other form less that of the power of the gap > 2",
            2.0,
            math.inf,
        ),
        "pool/forms/gap",
        "no cooled rows per channel that can be fitted",
    ),
    (
        _measured(
            "S10",
            "The exponents are the same at every size and number of tokens",
            PAGE,
            "any two exponents, each of D at one N or of N at one D, within 20 % of their mean of each other",
            -0.2,
            0.2,
        ),
        "pool/same/",
        "slopes at two sizes or two horizons are needed",
    ),
)
OUT_OF_REACH = (
    (
        _measured(
            "GQ7",
            "The Fisher matrix of Llama-2-7B is block-diagonal by output channel",
            GUIDED,
            "share of its squares inside the blocks above 0.5",
            0.5,
            math.inf,
        ),
        "full blocks would need over 110 TB and 13,000 GPU hours, and the model cannot be fetched here",
    ),
    (
        _measured(
            "PD1",
            "Linear layers are up to 1.41 times as fast as uniform ones",
            PROGRESSIVE,
            "speed-up > 1",
            1.0,
            math.inf,
        ),
        "a GPU's latency",
    ),
    (
        _measured(
            "PD2", "An NPU is up to 1.54 times as fast as with uniform bits", PROGRESSIVE, "speed-up > 1", 1.0, math.inf
        ),
        "an NPU's throughput",
    ),
    (
        _measured(
            "PD4",
            "Prefill in high precision raises Rouge-L of a 2-bit Vicuna-7B by 4.3",
            PROGRESSIVE,
            "gain > 0",
            0.0,
            math.inf,
        ),
        "a 7B chat model and CNN/DM",
    ),
    (
        _measured(
            "PD5",
            "Up to 33 % fewer mean bits without loss on summaries",
            PROGRESSIVE,
            "share of bits saved > 0.2",
            0.2,
            1.0,
        ),
        "chat models of 1.4B to 7B and their tasks",
    ),
    (
        _measured(
            "PD6",
            "0.47 bits fewer on MT-Bench by the learned scheduler",
            PROGRESSIVE,
            "bits saved > 0.3",
            0.3,
            math.inf,
        ),
        "chat models of 1.4B to 7B and MT-Bench",
    ),
    (
        _measured(
            "PD8", "MobileLLaMA's Rouge-L is 23 % above dense-and-sparse", PROGRESSIVE, "gain > 0.1", 0.1, math.inf
        ),
        "a 1.4B chat model and its tasks",
    ),
)


def judge(fit: dict[str, Any], published: Values, refits: Mapping[str, Refit]) -> list[Finding]:
    """All statements, from the values of published.yaml and what was measured on the pool (in `refits`); the rest needs
    runs, or what is out of reach here."""
    return in_order(
        [
            *(recomputed(claim, *answer(published)) for claim, answer in RECOMPUTED),
            *(seen(claim, refits, prefix, missing) for claim, prefix, missing in ON_POOL),
            *(out_of_reach(claim, detail) for claim, detail in OUT_OF_REACH),
        ]
    )
