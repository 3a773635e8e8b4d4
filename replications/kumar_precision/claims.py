"""Claims K1 to K3 of Kumar et al. (arXiv 2411.04330); the regions were fixed before the runs they are judged on.

K1 is judged on cooled checkpoints, round to nearest, per channel, by slopes that assume no law (shared/laws/slopes.py);
K2 and K3 are recomputed from Table 2.
"""

import math
from typing import Any

from replications.kumar_precision.law import d_crit
from shared.report.claim import Claim, Finding, Interval, Region, measured, needs_runs, recomputed
from shared.report.evidence import cost, part_of, scale

PAPER = "kumar_precision"
PHASE, GROUP_SIZE = "cooled", "channel"
N_FITTED = (30e6, 60e6, 110e6, 220e6)  # the paper's sizes

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
K2 = Claim(
    id="K2",
    paper=PAPER,
    statement="gamma_D and gamma_N are similar, so that delta is roughly a power of D/N",
    source="section 3, Table 2",
    evidence="recomputed",
    region=Region("gamma_D / gamma_N between 0.8 and 1.25", 0.8, 1.25),
)
K3A = Claim(
    id="K3a",
    paper=PAPER,
    statement="At 8 bits the data size past which more training hurts is out of reach",
    source="section 3, Eq. 13 with Table 2",
    evidence="recomputed",
    region=Region("D_crit / N at 8 bits above 1e5 (as far as the paper predicts) at 30M to 220M", 1e5, math.inf),
)
K3B = Claim(
    id="K3b",
    paper=PAPER,
    statement="At 5 bits it becomes relevant for D/N well above 1e3",
    source="section 3, Eq. 13 with Table 2",
    evidence="recomputed",
    region=Region("D_crit / N at 5 bits between 1e3 and 1e5 at 30M to 220M", 1e3, 1e5),
)


def judge(fit: dict[str, Any], published: dict[str, float]) -> list[Finding]:
    """All claims, from fit.json and the values of published.yaml."""
    return [*_k1(fit), _k2(published), *_k3(published)]


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


def _k2(published: dict[str, float]) -> Finding:
    ratio = published["gamma_D"] / published["gamma_N"]
    growth = published["gamma_D"] - published["gamma_N"]
    return recomputed(K2, ratio, f"the ratio is {ratio:.3g}: at fixed D/N, delta grows as N^{growth:.3f}")


def _k3(published: dict[str, float]) -> list[Finding]:
    found = []
    for claim, bits in ((K3A, 8), (K3B, 5)):
        ratios = [d_crit(published, N, bits) / N for N in N_FITTED]
        text = f"{ratios[0]:.3g} at 30M and {ratios[-1]:.3g} at 220M"
        with_bias = math.exp(-published["b"] / (published["gamma_D"] + published["beta"]))
        detail = f"{text}; with the bias b of Appendix K in the exponent, times {with_bias:.3g}"
        found.append(recomputed(claim, ratios[-1], detail))
    return found
