"""The guide's statements (a blog survey of the five papers): G1 to G14, judged by the papers' published numbers.

What our pool decides is looked up among the quantities of evidence.py; the rest says which runs it needs.
"""

import math
from collections.abc import Callable, Mapping

import numpy as np

from replications.capybara_fp import optimum as sun_optimum
from replications.comparison.elasticities import published_rows
from replications.kumar_precision import optimum as kumar_optimum
from replications.kumar_precision.law import LAW as KUMAR
from shared.laws.settings import Published
from shared.report.claim import Claim, Finding, Region, in_order, recomputed
from shared.report.evidence import seen
from shared.report.refits import Refit, refitted

PAPER = "comparison"
SIZES = (1e9, 8e9, 70e9)

Papers = Mapping[str, Published]
Answer = tuple[float, str]


def _rises_with_tokens(papers: Papers) -> Answer:
    """Of the five papers' laws; Quartet's is none of them."""
    rows = [row for row in published_rows(papers, without=("quartet",)) if row["D"]]
    value = {f"{row['paper']}: {row['label']}": round(row["D"]["value"], 6) for row in rows}
    zero = [name for name, slope in value.items() if slope == 0]
    return min(value.values()), (
        f"d ln delta / d ln D is above zero for {len(value) - len(zero)} laws and zero by form for multipliers "
        f"of N ({'; '.join(zero)})"
    )


def _kumar_at_4_bits(c: Mapping[str, float], N: float, D: float) -> float:
    """What depends on D of the loss after rounding to 4 bits: B / D^beta + delta (Eq. 2, without b)."""
    at = {"N": np.array([N]), "D": np.array([D]), "bits": np.array([4.0])}
    return float(c["B"] * D ** -c["beta"] + KUMAR.predict(KUMAR.internal(c), at)[0])


def _still_stronger(papers: Papers) -> Answer:
    c = papers["kumar_precision"].values()
    change = {N: _kumar_at_4_bits(c, N, 1e12) - _kumar_at_4_bits(c, N, 1e11) for N in SIZES}
    return max(change.values()), "from 100B to 1T tokens Kumar's 4-bit loss changes by " + ", ".join(
        f"{value:+.4f} at {N / 1e9:g}B" for N, value in change.items()
    )


def _four_bits(papers: Papers) -> Answer:
    kumar, sun = papers["kumar_precision"].values(), papers["capybara_fp"].values()
    best = kumar_optimum.best_bits(kumar_optimum.share(kumar, biases=True)) or math.nan
    others = [sun_optimum.best_bits_for_tokens(sun, D, 128) for D in (1e11, 1e12, 1e13)]
    return others[1], (
        f"Kumar {best:.1f}; Sun {others[0]:.1f}, {others[1]:.1f} and {others[2]:.1f} at 0.1T, 1T and 10T tokens; QuEST "
        "has its largest eff / bits at 4; Chen studies 4 bits only"
    )


def _parameters_first(papers: Papers) -> Answer:
    c = papers["kumar_precision"].values()
    N, D = kumar_optimum.optimum_ratios(kumar_optimum.share(c, biases=True), c, 8)
    return N / D, f"from 16 to 8 bits N* times {N:.3f} and D* times {D:.3f}: both rise, parameters more"


def _weight_only(papers: Papers) -> Answer:
    known = [name for name in papers["compression_laws"].numbers if name.startswith("eff_")]
    weights = [name for name in known if "weights" in name]
    return len(weights) / len(known), f"{len(weights)} of the {len(known)} known multipliers are of weights alone"


def _sum(papers: Papers) -> Answer:
    factor = papers["qat_scaling"].values()["additivity"]
    return factor, f"the paper prints {factor} times the sum"


def _weights_against_activations(papers: Papers) -> Answer:
    laws = papers["qat_scaling"].laws
    margins = {
        name: sign * (laws["W4A16"][name].value - laws["W16A4"][name].value)
        for name, sign in (("gamma_N", 1), ("gamma_D", 1), ("gamma_G", -1))
    }
    return min(margins.values()), ", ".join(f"{name} by {value:.3f}" for name, value in margins.items())


def _misprint(papers: Papers) -> Answer:
    c = papers["capybara_fp"].values()
    # The guide's d^gamma instead of d gamma, as a logarithm: the number itself overflows.
    right = c["alpha"] * math.log(1e9) + c["delta"] * math.log(4.5) + c["nu"] * math.log(3.5) - math.log(7)
    guide = (c["gamma"] * math.log(c["d"]) + right) / (2 * c["beta"]) / math.log(10)
    paper = math.log10(sun_optimum.critical_tokens(c, 1e9, 4, 3, 128))
    return guide - paper, f"with d^gamma D_crit is 1e{guide:.0f} tokens, with d gamma 1e{paper:.1f}"


def _layouts(papers: Papers) -> Answer:
    c = papers["capybara_fp"].values()
    found = {bits: sun_optimum.best_layout(c, bits) for bits in (4, 8, 16)}
    right = sum(found[bits] == layout for bits, layout in ((4, (2, 1)), (8, (4, 3)), (16, (8, 7))))
    return float(right), ", ".join(f"FP{bits} E{E}M{M}" for bits, (E, M) in found.items())


def _larger_in_fewer_bits(papers: Papers) -> Answer:
    f = kumar_optimum.share(papers["kumar_precision"].values(), biases=True)
    value = {bits: 16 / bits * f(bits) / f(16) for bits in (8, 6, 5, 4)}
    return value[8], "N_eff at equal N P, over that of 16 bits: " + ", ".join(
        f"{ratio:.2f} at {bits}" for bits, ratio in value.items()
    )


def _claim(id: str, statement: str, source: str, text: str, low: float, high: float) -> Claim:
    return Claim(id, PAPER, statement, f"guide; {source}", "recomputed", Region(text, low, high))


RECOMPUTED: tuple[tuple[Claim, Callable[[Papers], Answer]], ...] = (
    (
        _claim(
            "G1a",
            "By all papers' laws the loss added by quantization grows with D",
            "all published laws",
            "least d ln delta / d ln D > 0",
            0.0,
            math.inf,
        ),
        _rises_with_tokens,
    ),
    (
        _claim(
            "G2a",
            "A checkpoint of 1T tokens is still stronger in 4 bits than one of 100B",
            "Kumar Eq. 2 and Table 2",
            "change of the 4-bit loss < 0 at 1B, 8B and 70B",
            -math.inf,
            0.0,
        ),
        _still_stronger,
    ),
    (
        _claim(
            "G5",
            "The optimum of 7 to 8 bits would be 4 in other studies",
            "Sun's law at 1T tokens",
            "3.5 to 4.5 bits",
            3.5,
            4.5,
        ),
        _four_bits,
    ),
    (
        _claim(
            "G6",
            "At a fixed budget scale parameters before tokens when precision falls",
            "Kumar Table 2",
            "N* rises more than D* from 16 to 8 bits",
            1.0,
            math.inf,
        ),
        _parameters_first,
    ),
    (
        _claim(
            "G8",
            "Frantar et al. focus on weights alone",
            "abstract and public summaries",
            "over 0.9 of the multipliers are of weights alone",
            0.9,
            1.1,
        ),
        _weight_only,
    ),
    (
        _claim("G9a", "delta_W4A4 is the sum of its parts", "Chen", "factor between 0.95 and 1.05", 0.95, 1.05),
        _sum,
    ),
    (
        _claim(
            "G10a",
            "delta_W4A16 falls faster with N and rises faster with D; delta_W16A4 depends more on G",
            "Chen Table 1",
            "each difference of exponents > 0",
            0.0,
            math.inf,
        ),
        _weights_against_activations,
    ),
    (
        _claim(
            "G11",
            "D_crit is as the guide prints it, with d^gamma",
            "Sun",
            "log10 of D_crit within 0.01 of the paper's",
            -0.01,
            0.01,
        ),
        _misprint,
    ),
    (
        _claim("G12a", "The best layouts are E2M1, E4M3 and E8M7", "Sun Eq. 1", "all three", 2.5, 3.5),
        _layouts,
    ),
    (
        _claim(
            "G14a",
            "At equal N P a larger model in 8 bits beats a smaller one in 16",
            "Kumar Table 2",
            "ratio of N_eff > 1",
            1.0,
            math.inf,
        ),
        _larger_in_fewer_bits,
    ),
)
ON_PUBLISHED_RUNS = (
    (
        Claim(
            "G7",
            PAPER,
            "A compression's multiplier is constant in N and D",
            "guide; Frantar's form against QuEST and Quartet",
            "refitted",
            Region("d ln delta / d ln D within 0.05 of zero", -0.05, 0.05),
        ),
        (*(f"quest/gamma_D/{bits}" for bits in (2, 3, 4)), "quartet/forward/gamma_D"),
    ),
)


def _measured(id: str, statement: str, text: str, low: float, high: float) -> Claim:
    return Claim(id, PAPER, statement, "guide", "measured", Region(text, low, high))


# On our pool: the quantities of evidence.py by the beginning of their names.
ON_POOL = (
    (
        _measured(
            "G2b",
            "A checkpoint trained longer is still better after rounding to 4 bits",
            "d L / d ln D < 0 after rounding to 4 bits, at every N and horizon",
            -math.inf,
            0.0,
        ),
        "pool/step/",
        "two horizons of one size, rounded to 4 bits, are needed",
    ),
    (
        _measured(
            "G3", "ln delta is linear in the bits", "AICc of the best other form less that of this > 2", 2.0, math.inf
        ),
        "pool/forms/exponential",
        "no cooled rows per channel that can be fitted",
    ),
    (
        _measured("G9b", "delta_W4A4 is the sum of its parts on our runs", "factor between 0.95 and 1.05", 0.95, 1.05),
        "pool/parts/sum/",
        "W4A4, W4A16 and W16A4 at one N, D and group are needed",
    ),
    (
        _measured(
            "G10b",
            "Activations dominate on our runs",
            "delta_W16A4 - delta_W4A16 > 0 nats (their ratio > 1)",
            0.0,
            math.inf,
        ),
        "pool/parts/activations/",
        "W4A4, W4A16 and W16A4 at one N, D and group are needed",
    ),
    (
        _measured(
            "G13",
            "Past D_crit more tokens make the quantized model worse",
            "d L / d ln D > 0 after rounding to 2 or 3 bits, on steps to the longest horizon that begin past D_crit",
            0.0,
            math.inf,
        ),
        "pool/past/",
        "no step to a longest horizon begins past our D_crit at 2 or 3 bits",
    ),
    (
        _measured(
            "G14b",
            "At equal N P a larger model in fewer bits beats a smaller one on our runs",
            "loss of the smaller less that of the larger > 0 at equal N P and D",
            0.0,
            math.inf,
        ),
        "pool/equal_NP/",
        "no two measured models have N P within 2 % at one D",
    ),
    (
        _measured(
            "G1b",
            "The loss added by training in 4 bits grows with D and falls with N on our runs",
            "gamma_D and gamma_N of W4A4 > 0; for rounding see K1a, K1b and O1a to O1e",
            0.0,
            math.inf,
        ),
        "pool/trained/chen/W4A4/gamma_",
        "W4A4 runs of two sizes and two horizons are needed: `bitlaw train cpu --paper qat_scaling`",
    ),
    (
        _measured(
            "G4",
            "Weights, activations and attention act independently and multiply N_eff",
            "joint over product of single multipliers between 0.9 and 1.1",
            0.9,
            1.1,
        ),
        "pool/trained/kumar/product/",
        "runs with weights, activations or keys and values alone and together are needed: `bitlaw train cpu --paper "
        "kumar_precision`",
    ),
    (
        _measured(
            "G12b",
            "E2M1 is the best layout of 4 bits on our runs",
            "loss of E1M2 less that of E2M1 > 0",
            0.0,
            math.inf,
        ),
        "pool/trained/sun/layout/",
        "runs in E1M2 and E2M1 are needed: `bitlaw train cpu --paper capybara_fp`",
    ),
)


def judge(papers: Papers, refits: Mapping[str, Refit]) -> list[Finding]:
    """All statements, from every paper's published.yaml, and the refits on published runs and quantities of the pool in
    `refits`."""
    return in_order(
        [
            *(recomputed(claim, *answer(papers)) for claim, answer in RECOMPUTED),
            *(refitted(claim, refits, names) for claim, names in ON_PUBLISHED_RUNS),
            *(seen(claim, refits, prefix, missing) for claim, prefix, missing in ON_POOL),
        ]
    )
