"""The printed numbers of Chen et al. (arXiv 2505.14302) against its own law with the constants of Table 1.

The paper prints means over its runs, so that its law cannot give them to the digit. One yardstick for all: a printed
number counts as that of the law when the deltas that both imply differ by no more than the law's own error of 5 %
(claim C11). The value of such a claim is the law's delta (or ratio of deltas) over the printed one; the detail has both
numbers and the gap. A per-channel or per-token group of the 594M model is taken as its width, 1,536.
"""

import math
from collections.abc import Callable
from itertools import product

from replications.qat_scaling.law import LOSS, delta
from shared.laws.elasticity import effective_share
from shared.report.claim import Claim, Finding, Region, recomputed

PAPER = "qat_scaling"
SIZES = (74e6, 145e6, 297e6, 594e6)  # as printed
TOKENS = (10e9, 20e9, 50e9, 100e9)
GROUPS = (32.0, 64.0, 128.0, 256.0)
WIDTH = 1536.0  # of the 594M model
ERROR = 0.05  # of the law, relative (C11: 4.7 and 5.2 %)
W4A4 = ""  # the paper's main set of constants has no prefix

Values = dict[str, float]
Answer = tuple[float, str]
PARAMETERS = ("k", "gamma_N", "gamma_D", "gamma_G")


def constants(published: Values, setting: str) -> dict[str, float]:
    """The four constants of a setting: "" (W4A4), "W4A16", "W16A4", "W4A4_FC2_8bit" or "W16A4_FC2_8bit"."""
    return {name: published[f"{setting}/{name}" if setting else name] for name in PARAMETERS}


def fall_in_N(published: Values, setting: str) -> float:
    """Share of delta lost from 74M to 594M; the same at every D and G."""
    return 1 - (SIZES[-1] / SIZES[0]) ** -constants(published, setting)["gamma_N"]


def rise_in_D(published: Values, setting: str) -> float:
    """Share of delta gained from 10B to 100B tokens; the same at every N and G."""
    return 10 ** constants(published, setting)["gamma_D"] - 1


def gap(published: Values, setting: str, coarsest: float = WIDTH) -> float:
    """delta at `coarsest` less delta at G = 32, at 594M and 100B, in nats."""
    c = constants(published, setting)
    return delta(c, SIZES[-1], 1e11, coarsest) - delta(c, SIZES[-1], 1e11, 32)


def activations_over_weights(published: Values, G: float, ratio: float, suffix: str = "") -> list[float]:
    """R = delta_W16A4 / delta_W4A16 at D/N = `ratio`, at each size."""
    top, bottom = constants(published, "W16A4" + suffix), constants(published, "W4A16")
    return [delta(top, N, ratio * N, G) / delta(bottom, N, ratio * N, G) for N in SIZES]


def share(published: Values, setting: str, N: float, D: float, G: float) -> float:
    """N_eff / N of the law of the loss (the paper's EPM)."""
    theta = LOSS.internal({**published, **constants(published, setting)})
    return float(effective_share(LOSS, theta, {"N": N, "D": D, "G": G}))


def _against(value: float, printed: float, ratio: float, more: str = "") -> Answer:
    """`ratio`: of the delta that the law gives over that which the printed number implies."""
    return ratio, f"the law gives {value:.3g}, printed {printed:.3g}; the deltas differ by {ratio - 1:+.1%}{more}"


def _fall(setting: str, name: str) -> Callable[[Values], Answer]:
    def answer(c: Values) -> Answer:
        value = fall_in_N(c, setting)
        return _against(value, c[name], (1 - value) / (1 - c[name]))

    return answer


def _rise(setting: str, name: str) -> Callable[[Values], Answer]:
    def answer(c: Values) -> Answer:
        value = rise_in_D(c, setting)
        return _against(value, c[name], (1 + value) / (1 + c[name]))

    return answer


def _gap(setting: str, name: str) -> Callable[[Values], Answer]:
    def answer(c: Values) -> Answer:
        value = gap(c, setting)
        others = ", ".join(f"{gap(c, setting, G):.4f} at {G:g}" for G in (2048, 4096))
        return _against(value, c[name], value / c[name], f"; with another coarsest group {others}")

    return answer


def _half(c: Values) -> Answer:
    coarsest = delta(constants(c, W4A4), SIZES[-1], 1e11, WIDTH)
    return gap(c, W4A4) / coarsest, f"the coarsest loses {coarsest:.4f} nats"


def _gap_ratio(c: Values) -> Answer:
    value = gap(c, "W16A4") / gap(c, "W4A16")
    return _against(value, c["granularity_gap_ratio"], value / c["granularity_gap_ratio"])


def _additivity(c: Values) -> Answer:
    found = []
    for G in GROUPS:
        both, weights, activations = (
            delta(constants(c, setting), SIZES[-1], 1e11, G) for setting in (W4A4, "W4A16", "W16A4")
        )
        found.append(both / (weights + activations))
    return _nearest(found, c["additivity"], "over G at 594M and 100B")


def _nearest(found: list[float], printed: float, over: str) -> Answer:
    """That of the law's values which is nearest to the printed one, whose place is not printed."""
    ratio = min((value / printed for value in found), key=lambda ratio: abs(ratio - 1))
    return ratio, (
        f"the law gives {min(found):.3f} to {max(found):.3f} {over}, printed {printed:g}; the nearest differs by "
        f"{ratio - 1:+.1%}"
    )


def _dominant(c: Values) -> Answer:
    top, bottom = constants(c, "W16A4"), constants(c, "W4A16")
    found = {(N, D, G): delta(top, N, D, G) / delta(bottom, N, D, G) for N, D, G in product(SIZES, TOKENS, GROUPS)}
    at = min(found, key=lambda key: found[key])
    where = f"least at D/N = {at[1] / at[0]:.0f}, G = {at[2]:g}"
    return found[at], f"R is {found[at]:.2f} to {max(found.values()):.2f}, {where}"


def _ratio(G: float, ratio: float, name: str) -> Callable[[Values], Answer]:
    def answer(c: Values) -> Answer:
        return _nearest(activations_over_weights(c, G, ratio), c[name], "over the sizes")

    return answer


def _fc2(G: float, name: str) -> Callable[[Values], Answer]:
    def answer(c: Values) -> Answer:
        before, after = (delta(constants(c, s), SIZES[-1], 1e11, G) for s in (W4A4, "W4A4_FC2_8bit"))
        value = 1 - after / before
        return _against(value, c[name], (1 - value) / (1 - c[name]))

    return answer


def _fc2_ratio(c: Values) -> Answer:
    found = [R for G in GROUPS for r in (100, 1000) for R in activations_over_weights(c, G, r, "_FC2_8bit")]
    low, high = c["FC2_R_low"], c["FC2_R_high"]
    return _against(
        min(found), low, min(found) / low,
        f"; the largest is {max(found):.3g}, printed {high:.3g}, {max(found) / high - 1:+.1%}",
    )  # fmt: skip


def _learning_rates(factor: float) -> Callable[[Values], Answer]:
    def answer(c: Values) -> Answer:
        value = delta(constants(c, W4A4), SIZES[1], 20e9, 128)
        low, high = c["delta_over_learning_rates_low"] * factor, c["delta_over_learning_rates_high"] * factor
        edge = min((low, high), key=lambda end: abs(value / end - 1))
        return value, f"the law gives {value:.4f} nats; printed [{c['delta_over_learning_rates_low']:g}, " + (
            f"{c['delta_over_learning_rates_high']:g}], read as {low:g} to {high:g}; {value / edge - 1:+.1%} from "
            f"{edge:g}"
        )

    return answer


def _epm(c: Values) -> Answer:
    found = {(N, D, G): share(c, W4A4, N, D, G) for N, D, G in product(SIZES, TOKENS, (*GROUPS, WIDTH))}
    at = min(found, key=lambda key: found[key])
    where = f"least at {at[0] / 1e6:.0f}M, G = {at[2]:g}"
    return found[at], f"N_eff / N is {found[at]:.3f} to {max(found.values()):.3f}, {where}"


def _epm_gain(c: Values) -> Answer:
    found = [
        share(c, "W4A4_FC2_8bit", N, 1e11, G) - share(c, W4A4, N, 1e11, G) for N, G in product(SIZES, (*GROUPS, WIDTH))
    ]
    return min(found), f"the gain is {min(found):.3f} to {max(found):.3f} at 100B tokens"


def _alpha(c: Values) -> Answer:
    large = [share(c, W4A4, N, 1e11, 128) for N in (74e6, 595e6, 7e9, 70e9)]
    shown = ", ".join(f"{value:.3f}" for value in large)
    return c["alpha"] - c["gamma_N"], f"N_eff / N at 100B and G = 128 falls: {shown} at 74M, 595M, 7B, 70B"


def _claim(id: str, statement: str, text: str, low: float, high: float) -> Claim:
    return Claim(id, PAPER, statement, "text against Table 1", "recomputed", Region(text, low, high))


def _as_printed(id: str, statement: str) -> Claim:
    """The printed value within the law's own error."""
    text = f"delta of the law over that of the printed number within {ERROR:.0%}"
    return _claim(id, statement, text, 1 - ERROR, 1 + ERROR)


AUDIT: tuple[tuple[Claim, Callable[[Values], Answer]], ...] = (
    (
        _as_printed("C1a", "Table 1 gives the printed fall of delta_W4A4 from 74M to 594M"),
        _fall(W4A4, "W4A4_fall_in_N"),
    ),
    (
        _as_printed("C2a", "Table 1 gives the printed rise of delta_W4A4 from 10B to 100B"),
        _rise(W4A4, "W4A4_rise_in_D"),
    ),
    (
        _as_printed("C3a", "Table 1 gives the printed gap of W4A4 between coarsest and finest groups"),
        _gap(W4A4, "W4A4_granularity_gap"),
    ),
    (_claim("C3b", "The gap of W4A4 is about half of its coarsest error", "between 0.4 and 0.6", 0.4, 0.6), _half),
    (
        _as_printed("C4a", "Table 1 gives the printed fall of delta_W4A16 from 74M to 594M"),
        _fall("W4A16", "W4A16_fall_in_N"),
    ),
    (
        _as_printed("C4b", "Table 1 gives the printed fall of delta_W16A4 from 74M to 594M"),
        _fall("W16A4", "W16A4_fall_in_N"),
    ),
    (
        _as_printed("C5a", "Table 1 gives the printed rise of delta_W4A16 from 10B to 100B"),
        _rise("W4A16", "W4A16_rise_in_D"),
    ),
    (
        _as_printed("C5b", "Table 1 gives the printed rise of delta_W16A4 from 10B to 100B"),
        _rise("W16A4", "W16A4_rise_in_D"),
    ),
    (_as_printed("C6a", "Table 1 gives the printed gap of W16A4"), _gap("W16A4", "W16A4_granularity_gap")),
    (_as_printed("C6b", "The gap of W16A4 is nearly 8 times that of W4A16"), _gap_ratio),
    (_as_printed("C7a", "Table 1 gives the printed factor of additivity"), _additivity),
    (_claim("C8a", "Activations lose more than weights everywhere in the grid", "R > 1", 1.0, math.inf), _dominant),
    (_as_printed("C8b", "Table 1 gives the printed R at G = 32, D/N = 100"), _ratio(32, 100, "R_G32_DN100")),
    (_as_printed("C8c", "Table 1 gives the printed R at G = 32, D/N = 1000"), _ratio(32, 1000, "R_G32_DN1000")),
    (_as_printed("C8d", "Table 1 gives the printed R at G = 256, D/N = 1000"), _ratio(256, 1000, "R_G256_DN1000")),
    (
        _as_printed("C9a", "Table 1 gives the printed gain of 8 bits for FC2 at G = 32"),
        _fc2(32, "FC2_gain_G32"),
    ),
    (
        _as_printed("C9b", "Table 1 gives the printed gain of 8 bits for FC2 at G = 256"),
        _fc2(256, "FC2_gain_G256"),
    ),
    (
        _as_printed("C9c", "With 8 bits for FC2, the least R is the printed 0.85"),
        _fc2_ratio,
    ),
    (
        _claim("C13a", "delta over learning rates is 0.6 to 0.65, as printed", "0.6 to 0.65 nats", 0.6, 0.65),
        _learning_rates(1.0),
    ),
    (
        _claim(
            "C13b", "delta over learning rates is 0.06 to 0.065, as surely meant", "0.06 to 0.065 nats", 0.06, 0.065
        ),
        _learning_rates(0.1),
    ),
    (
        _claim("C14a", "N_eff / N is above 0.5 in the studied range", "least N_eff / N of W4A4 > 0.5", 0.5, math.inf),
        _epm,
    ),
    (
        _claim("C14b", "8 bits for FC2 add 0.06 to 0.14 to N_eff / N", "least gain above 0.055", 0.055, math.inf),
        _epm_gain,
    ),
    (
        _claim(
            "C15", "alpha exceeds gamma_N, so that relative damage grows with N", "alpha - gamma_N > 0", 0.0, math.inf
        ),
        _alpha,
    ),
)


def judge(published: Values) -> list[Finding]:
    """The recomputed claims, from the values of published.yaml."""
    return [recomputed(claim, *answer(published)) for claim, answer in AUDIT]
