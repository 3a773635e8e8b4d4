"""The claims of Kumar et al. (arXiv 2411.04330); the regions were fixed before the runs they are judged on.

K1a to K1d are judged on cooled checkpoints, round to nearest, per channel, by slopes that assume no law
(shared/laws/slopes.py). What Table 2 decides is recomputed in audit.py. What low-precision training decides is looked
up among the quantities of replications/comparison/evidence.py; without them a claim says which runs it needs.
"""

import math
from collections.abc import Mapping
from typing import Any

from replications.kumar_precision import audit
from shared.report.claim import (
    Claim,
    Finding,
    Interval,
    Region,
    in_order,
    measured,
    needs_runs,
    out_of_reach,
)
from shared.report.evidence import cost, part_of, scale, seen
from shared.report.refits import Refit, refitted

PAPER = "kumar_precision"
PHASE, GROUP_SIZE = "cooled", "channel"

K1A = Claim(
    id="K1a",
    paper=PAPER,
    statement="The loss added by post-training quantization rises with the training tokens at every model size",
    source="section 3, Eq. 2",
    evidence="measured",
    region=Region("d ln delta / d ln D > 0 at each N", 0.0, math.inf),
)
K1B = Claim(
    id="K1b",
    paper=PAPER,
    statement="It falls with the model size at fixed tokens",
    source="section 3, Eq. 2",
    evidence="measured",
    region=Region("d ln delta / d ln N < 0 at each D", -math.inf, 0.0),
)
K1C = Claim(
    id="K1c",
    paper=PAPER,
    statement="It falls exponentially with the bits of a weight",
    source="section 3, Eq. 2 (R^2 = 0.97)",
    evidence="measured",
    region=Region("R^2 of ln delta against bits, within each (N, D), at least 0.95", 0.95, math.inf),
)
CURVATURE = 0.2 / 0.5907 / 6  # a fifth of the published slope, 1 / gamma_post, over the 6 bits from 2 to 8
K1D = Claim(
    id="K1d",
    paper=PAPER,
    statement="One exponential serves all bit widths",
    source="section 3, Eq. 2",
    evidence="measured",
    region=Region(
        f"second derivative of ln delta in bits within {CURVATURE:.2g}: under 20 % of the slope from 2 to 8 bits",
        -CURVATURE,
        CURVATURE,
    ),
)


def _measured(id: str, statement: str, source: str, region: Region) -> Claim:
    return Claim(id, PAPER, statement, source, "measured", region)


# What would decide a claim that waits, and its cost on one core, as measured (seconds in reports/runs.csv).
SINGLE = (
    "three runs that cut one stream alone are needed, for each of weights, activations and KV cache that the claim is "
    "about: S at 8M tokens, about 2.5 minutes each"
)
JOINT = (
    "at one size and horizon every stream cut alone, and together, in the same bits are needed (activations per "
    "tensor): S at 8M tokens, about 2.5 minutes each"
)
FURTHER = (
    "no run that was trained with low-precision weights is rounded and measured: `bitlaw measure cpu`, about five "
    "seconds a cell"
)
ON_POOL = (
    (
        _measured(
            "K3d",
            "Past D_crit more training raises the loss after rounding",
            "section 3, Eq. 13",
            Region(
                "d L / d ln D > 0 after rounding to 2 or 3 bits, on steps to the longest horizon that begin past "
                "D_crit",
                0.0,
                math.inf,
            ),
        ),
        "pool/past/",
        "no step to a longest horizon begins past our own D_crit at 2 or 3 bits",
    ),
    (
        _measured(
            "K1e",
            "GPTQ, AWQ and round to nearest all show that the added loss rises with the training tokens",
            "Appendix F",
            Region("d ln delta / d ln D > 0 at each N, for each of the three", 0.0, math.inf),
        ),
        "pool/methods/cooled/",
        "no size has rows of all three methods at two horizons; `bitlaw measure cpu` makes them",
    ),
    (
        _measured(
            "K4b",
            "Training weights in more than 6 to 7 bits gains little",
            "Eq. 3",
            # The form of f lies above one; an interval that touches one is the saturation itself.
            Region(audit.SATURATION.text, 0.0, audit.SATURATION.high),
        ),
        "pool/trained/kumar/saturation",
        SINGLE,
    ),
    (
        _measured(
            "K5",
            "The effects of P_w, P_a and P_kv are independent and multiply",
            "Eq. 4",
            Region("f of joint cells over the product of f of single ones between 0.9 and 1.1", 0.9, 1.1),
        ),
        "pool/trained/kumar/product/",
        JOINT,
    ),
    (
        _measured(
            "K6a",
            "Activations are the most sensitive at 3 bits: f_a < f_w",
            "text",
            Region("ln f_w - ln f_a at 3 bits > 0", 0.0, math.inf),
        ),
        "pool/trained/kumar/sensitive/",
        JOINT,
    ),
    (
        _measured(
            "K8e", "The compute-optimal training precision is about 7 to 8 bits", "Eq. 5 to 7", audit.ABOUT_7_TO_8
        ),
        "pool/trained/kumar/best_bits",
        SINGLE,
    ),
    (
        _measured(
            "K11",
            "The lower the training precision, the less is lost by rounding afterwards",
            "Eq. 9",
            Region("d delta / d P_w > 0 at equal P_post", 0.0, math.inf),
        ),
        "pool/further/by_bit/",
        FURTHER,
    ),
    (
        _measured(
            "K12",
            "N_eff instead of N in the law of delta fits substantially better",
            "Figure 21",
            Region("R^2 with N_eff less R^2 with N above 0.05", 0.05, math.inf),
        ),
        "pool/further/effective_N",
        FURTHER + "; two sizes and two horizons are needed",
    ),
    (
        _measured(
            "K16b",
            "Of six forms the one with an effective N predicts our held-out runs better than the additive one",
            "Table 1: R^2 0.82 against 0.71",
            Region("held-out R^2 of the effective N less that of the additive form > 0", 0.0, math.inf),
        ),
        "pool/trained/kumar/additive",
        "three weight-only runs at a held-out horizon are needed: S at 32M tokens, about ten minutes each",
    ),
    (
        _measured(
            "K5b",
            "Gammas fitted to one stream at a time predict about as well as gammas fitted to all runs",
            "text",
            Region("held-out error of the former over that of the latter under 1.25", 0.0, 1.25),
        ),
        "pool/trained/kumar/one_at_a_time",
        JOINT + "; and a second horizon of the joint cells, to be held out",
    ),
)
OUT_OF_REACH = (
    (
        _measured(
            "K13",
            "One unified form describes all of the paper's points",
            "Eq. 9: R^2 = 0.90 on over 1,000 points",
            Region("R^2 at least 0.9 on the paper's points", 0.9, math.inf),
        ),
        "the paper's 465 runs and their losses are not published",
    ),
    (
        _measured(
            "K15",
            "The trend fitted to integers predicts floating-point runs of 220M to 1.6B parameters down to 4 bits",
            "Figure 6",
            Region("predicted less measured loss within 0.05 nats", -0.05, 0.05),
        ),
        "runs of 220M to 1.6B parameters need a cluster, and the paper's losses are in a figure only",
    ),
)
ON_PUBLISHED_RUNS = (
    (
        Claim(
            "K17a",
            PAPER,
            "f(P) needs a positive bias n_w, with the sign exp(-P / gamma + n)",
            "Appendix K",
            "refitted",
            Region("n_w > 0 on QuEST's weight-only runs", 0.0, math.inf),
        ),
        ("quest/weight_only/n_w",),
    ),
    (
        Claim(
            "K17b",
            PAPER,
            "gamma_w is about 2.67 bits",
            "Table 2",
            "refitted",
            Region("gamma_w on QuEST's weight-only runs within 25 % of 2.6745", 0.75 * 2.6745, 1.25 * 2.6745),
        ),
        ("quest/weight_only/gamma_w",),
    ),
    (
        Claim(
            "K16a",
            PAPER,
            "The form with an effective N predicts held-out runs better than the additive one, on QuEST",
            "Table 1: R^2 0.82 against 0.71",
            "refitted",
            Region(
                "held-out R^2 of the effective N less that of the additive form > 0, each size left out in turn, on "
                "W = A and on weight-only runs",
                0.0,
                math.inf,
            ),
        ),
        tuple(f"quest/{name}/R2_effective_less_additive" for name in ("int", "weight_only")),
    ),
)


def judge(fit: dict[str, Any], published: dict[str, float], refits: Mapping[str, Refit]) -> list[Finding]:
    """All claims, from fit.json, the values of published.yaml, and the refits on published runs and quantities of the
    pool in `refits`."""
    return in_order(
        [
            *_k1(fit),
            *audit.judge(published),
            *(refitted(claim, refits, names) for claim, names in ON_PUBLISHED_RUNS),
            *(seen(claim, refits, prefix, missing) for claim, prefix, missing in ON_POOL),
            *(out_of_reach(claim, detail) for claim, detail in OUT_OF_REACH),
        ]
    )


def _k1(fit: dict[str, Any]) -> list[Finding]:
    part = part_of(fit, PHASE, GROUP_SIZE)
    if part is None:
        return [needs_runs(claim, f"no {PHASE} rows per channel that can be fitted") for claim in (K1A, K1B, K1C, K1D)]
    slopes = part["law_free"]
    counted = f"{slopes['clear_cells']} of {slopes['cells']} cells are clear of the noise"
    where, price = scale(part), cost(fit, part, by_law=False)
    at_N = [Interval(s["value"], s["low"], s["high"], f"N = {s['N'] / 1e6:.3g}M") for s in slopes["D_at_N"]]
    at_D = [Interval(s["value"], s["low"], s["high"], f"D = {s['D'] / 2**20:g}M") for s in slopes["N_at_D"]]
    r2, bend = slopes["bits_r2"], slopes["bits_curvature"]
    in_bits = [Interval(r2["value"], r2["low"], r2["high"])] if r2 else []
    bent = [Interval(bend["value"], bend["low"], bend["high"])] if bend else []
    per_bit = f"; ln delta changes by {slopes['bits']['value']:.3g} per bit" if r2 else ""
    return [
        measured(K1A, at_N, scale=where, cost=price, note=counted),
        measured(K1B, at_D, scale=where, cost=price, note=counted),
        measured(K1C, in_bits, scale=where, cost=price, note=counted + per_bit),
        measured(K1D, bent, scale=where, cost=price, note=counted),
    ]
