"""What Table 2 of Kumar et al. (arXiv 2411.04330) says of the paper's own claims, and the errors that this shows.

Every claim here is recomputed from published constants; none has an interval.
"""

import itertools
import math
from collections.abc import Callable

import numpy as np

from replications.kumar_precision import optimum
from replications.kumar_precision.law import d_crit
from shared.report.claim import Claim, Finding, Region, recomputed, stating

PAPER = "kumar_precision"
BUDGETS = (1e18, 1e21, 1e24)  # parameters, tokens and sixteenths of 16 bits, times 6
N_FITTED = (30e6, 60e6, 110e6, 220e6)  # the paper's sizes
SATURATION = Region("f(8) / f(6) of the weights under 1.1", 1.0, 1.1)
ABOUT_7_TO_8 = Region("P* from 6.5 to 8.5 bits", 6.5, 8.5)

Values = dict[str, float]
Answer = tuple[float, str]  # the quantity, and the detail that the ledger prints


def _k2(c: Values) -> Answer:
    ratio, growth = c["gamma_D"] / c["gamma_N"], c["gamma_D"] - c["gamma_N"]
    return ratio, f"the ratio is {ratio:.3g}: at fixed D/N, delta grows as N^{growth:.3f}"


def _k3(bits: float) -> Callable[[Values], Answer]:
    def answer(c: Values) -> Answer:
        ratios = [d_crit(c, N, bits) / N for N in N_FITTED]
        biased = math.exp(-c["b"] / (c["gamma_D"] + c["beta"]))
        return (
            ratios[0] if bits < 5 else ratios[-1],
            f"{ratios[0]:.3g} at 30M and {ratios[-1]:.3g} at 220M; with the bias b of Appendix K in the exponent, "
            f"times {biased:.3g}",
        )

    return answer


def _k4a(c: Values) -> Answer:
    f = optimum.share_of_weights(c, biases=True)
    return f(8) / f(6), f"f is {f(3):.3f}, {f(6):.3f}, {f(7):.3f}, {f(8):.3f} at 3, 6, 7 and 8 bits"


def _zero(x: str) -> Callable[[Values], Answer]:
    def answer(c: Values) -> Answer:
        zero = c[f"gamma_{x}"] * c[f"n_{x}"]
        return 1 - math.exp(-3 / c[f"gamma_{x}"] + c[f"n_{x}"]), f"the factor is zero at {zero:.2f} bits"

    return answer


def _k6d(c: Values) -> Answer:
    f = {bits: 1 - math.exp(-bits / c["gamma_kv"] + c["n_kv"]) for bits in (4, 5, 8, 16)}
    return f[8] / f[4], (
        f"the factor is {f[4]:.3f}, {f[5]:.3f} and {f[8]:.3f} at 4, 5 and 8 bits: from 4 to 5 bits times "
        f"{f[5] / f[4]:.3f}, from 5 to 8 times {f[8] / f[5]:.3f}, from 8 to 16 times {f[16] / f[8]:.4f}"
    )


def _k8c(c: Values) -> Answer:
    """P* by minimising Eq. 5 at each budget, N, D and P free under C = 6/16 N D P."""
    f = optimum.share(c, biases=True)
    bits = np.linspace(4, 12, 401)
    share = np.array([f(b) for b in bits])
    best = []
    for C in BUDGETS:
        tokens_N = C * 16 / 6 / bits[:, None]  # N D at this cost
        N = np.geomspace(1e5, 1e15, 8000)[None, :]
        loss = c["A"] * (N * share[:, None]) ** -c["alpha"] + c["B"] * (tokens_N / N) ** -c["beta"]
        best.append(float(bits[np.argmin(loss.min(axis=-1))]))
    shown = ", ".join(f"{b:.2f} at {C:.0e}" for b, C in zip(best, BUDGETS, strict=True))
    return max(best) / min(best), f"P* in bits by compute, minimised on a grid: {shown}"


def _ratios(which: int) -> Callable[[Values], Answer]:
    def answer(c: Values) -> Answer:
        f = optimum.share(c, biases=True)
        (n8, d8), (n7, d7), (n4, d4) = (optimum.optimum_ratios(f, c, bits) for bits in (8, 7, 4))
        return (n8, d8)[which], (
            f"from 16 to 8 bits N* times {n8:.3f} and D* times {d8:.3f}, to 7 bits {n7:.3f} and {d7:.3f}, to 4 bits "
            f"{n4:.3g} and {d4:.3f}; D* is below its 16-bit value only under "
            f"{optimum.bits_where_data_falls(f):.2f} bits"
        )

    return answer


def _k7c(c: Values) -> Answer:
    printed = optimum.printed_eq6_data_ratio(c, 8)
    direct = optimum.optimum_ratios(optimum.share_of_bar(optimum.gamma_bar(c)), c, 8)[1]
    return printed / direct, (
        f"Eq. 6 gives D* times {printed:.3f} and minimising Eq. 5 with the same f gives {direct:.3f}: the printed form "
        "is lower by 8 / 16, because Eq. 16 makes N* D* = C instead of C / P"
    )


def _k7d(c: Values) -> Answer:
    root = optimum.printed_eq7_root(c) or 0.0
    true = optimum.best_bits(optimum.share_of_bar(optimum.gamma_bar(c))) or 0.0
    return root / true, f"Eq. 7 as printed has its root at {root:.2f} bits; the optimum with the same f is {true:.2f}"


def _k7e(c: Values) -> Answer:
    root = optimum.printed_eq28_root(c)
    return (0.0, "it has no root") if root is None else (1.0, f"its root is {root:.2f} bits")


def _k8a(c: Values) -> Answer:
    best = optimum.best_bits(optimum.share(c, biases=True)) or 0.0
    return best, f"{best:.3f} bits at every compute, because P* maximises f(P) / P whatever alpha, beta and C are"


def _k8b(c: Values) -> Answer:
    best = optimum.best_bits(optimum.share(c, biases=False)) or 0.0
    bar = optimum.gamma_bar(c)
    with_bar = optimum.best_bits(optimum.share_of_bar(bar)) or 0.0
    return best, (
        f"{best:.2f} bits with three gammas, {with_bar:.2f} with their mean {bar:.4f}: the claim needs the biases that "
        "the main text leaves out"
    )


def _k8d(c: Values) -> Answer:
    f = optimum.share(c, biases=True)
    best = optimum.best_bits(f) or 16.0
    gain = (f(best) / best) / (f(16) / 16)
    return gain, f"N_eff D is {gain:.2f} times that of 16 bits at equal cost"


def _k9(biases: bool) -> Callable[[Values], Answer]:
    def answer(c: Values) -> Answer:
        times = 1 / optimum.share(c, biases=biases)(4)
        return times, f"1 / f(4) = {times:.2f}"

    return answer


def _k10(c: Values) -> Answer:
    f = optimum.share(c, biases=True)
    best = [optimum.best_bits_at(f, c, 8e9, 8e9 * ratio) for ratio in (20, 200, 2000, 20000)]
    steps = [after - before for before, after in itertools.pairwise(best)]
    return max(steps) / min(steps), (
        f"{best[0]:.1f}, {best[1]:.1f}, {best[2]:.1f} and {best[3]:.1f} bits at D/N = 20, 200, 2000 and 20000 (8B; "
        "the same at 70B): almost equal steps"
    )


def _k14(c: Values) -> Answer:
    f = optimum.share(c, biases=True)
    return 2 * f(8) / f(16), f"N_eff / N_0 is {f(16):.3f} for N_0 at 16 bits and {2 * f(8):.3f} for 2 N_0 at 8 bits"


_claim = stating(PAPER, "recomputed")


def _with(id: str, statement: str, source: str, region: Region) -> Claim:
    return Claim(id, PAPER, statement, source, "recomputed", region)


AUDIT: tuple[tuple[Claim, Callable[[Values], Answer]], ...] = (
    (
        _claim(
            "K2",
            "gamma_D and gamma_N are similar, so that delta is roughly a power of D/N",
            "section 3, Table 2",
            "gamma_D / gamma_N between 0.8 and 1.25",
            0.8,
            1.25,
        ),
        _k2,
    ),
    (
        _claim(
            "K3a",
            "At 8 bits the data size past which more training hurts is out of reach",
            "section 3, Eq. 13 with Table 2",
            "D_crit / N at 8 bits above 1e5 (as far as the paper predicts) at 30M to 220M",
            1e5,
            math.inf,
        ),
        _k3(8),
    ),
    (
        _claim(
            "K3b",
            "At 5 bits the data size past which more training hurts is at D/N well above 1e3",
            "section 3, Eq. 13 with Table 2",
            "D_crit / N at 5 bits between 1e3 and 1e5 at 30M to 220M",
            1e3,
            1e5,
        ),
        _k3(5),
    ),
    (
        _claim(
            "K3c",
            "Below 5 bits the data size past which more training hurts is near",
            "section 3, Eq. 13 with Table 2",
            "D_crit / N at 4 bits under 1e4 at 30M to 220M",
            0.0,
            1e4,
        ),
        _k3(4),
    ),
    (_with("K4a", "Table 2: the gain of more bits saturates at about 6 to 7", "Eq. 3, Table 2", SATURATION), _k4a),
    (
        _claim(
            "K6b",
            "Table 2 agrees that activations of 3 bits diverge",
            "Appendix K; runs with P_a or P_kv of 3 bits are left out",
            "the factor of 3-bit activations at or below zero",
            -math.inf,
            0.0,
        ),
        _zero("a"),
    ),
    (
        _claim(
            "K6c",
            "Table 2 agrees that a KV cache of 3 bits diverges",
            "Appendix K; runs with P_a or P_kv of 3 bits are left out",
            "the factor of a 3-bit KV cache at or below zero",
            -math.inf,
            0.0,
        ),
        _zero("kv"),
    ),
    (
        _with(
            "K6d",
            "Table 2 agrees that a KV cache is sensitive at about 4 to 5 bits, and not at high bits",
            "text, with Appendix K",
            # "Gains little" is under 1.1 for the weights of K4a: the same yardstick.
            Region("its factor at 8 bits over that at 4 bits above 1.1", 1.1, math.inf),
        ),
        _k6d,
    ),
    (
        _claim(
            "K7a",
            "When training moves to 8 bits, the best N rises",
            "Eq. 6",
            "N*(8) / N*(16) > 1 at equal cost",
            1.0,
            math.inf,
        ),
        _ratios(0),
    ),
    (
        _claim(
            "K7b",
            "When training moves to 8 bits, the best D falls",
            "Eq. 6",
            "D*(8) / D*(16) < 1 at equal cost",
            0.0,
            1.0,
        ),
        _ratios(1),
    ),
    (
        _claim(
            "K7c",
            "Eq. 6 is the optimum of Eq. 5",
            "Eq. 5, 6, 16 and 17",
            "D*(8) / D*(16) by Eq. 6 over the same by minimising, within 1 %",
            0.99,
            1.01,
        ),
        _k7c,
    ),
    (
        _claim("K7d", "Eq. 7 gives P*", "Eq. 7", "its root over the optimum, within 1 %", 0.99, 1.01),
        _k7d,
    ),
    (_claim("K7e", "Eq. 28 gives P*", "Eq. 28", "it has a root (1) and not none (0)", 0.5, 1.5), _k7e),
    (
        _with("K8a", "With the biases of Appendix K, Table 2 gives P* of about 7 to 8 bits", "Table 2", ABOUT_7_TO_8),
        _k8a,
    ),
    (
        _with(
            "K8b",
            "Without the biases, as Eq. 4 is printed, Table 2 gives the same",
            "Eq. 4 to 7 with Table 2",
            ABOUT_7_TO_8,
        ),
        _k8b,
    ),
    (
        _claim(
            "K8c",
            "The compute-optimal precision is the same at every compute",
            "section 4.3, with Table 2",
            "largest over smallest P* at 1e18 to 1e24 within 1 %",
            0.99,
            1.01,
        ),
        _k8c,
    ),
    (
        _claim(
            "K8d",
            "16 bits are more than compute-optimal training needs",
            "text, with Table 2",
            "f(P) / P at P* over that at 16 bits > 1",
            1.0,
            math.inf,
        ),
        _k8d,
    ),
    (
        _claim(
            "K9a",
            "Below 4 bits the model must be more than 4 times as large, with the biases",
            "text, with Table 2",
            "1 / f(4) > 4",
            4.0,
            math.inf,
        ),
        _k9(True),
    ),
    (
        _claim(
            "K9b",
            "Below 4 bits the model must be more than 4 times as large, without the biases",
            "text, with Table 2",
            "1 / f(4) > 4",
            4.0,
            math.inf,
        ),
        _k9(False),
    ),
    (
        _claim(
            "K10",
            "At fixed N the best precision grows like the logarithm of compute",
            "Appendix E.2.2",
            "its steps for each factor of 10 in D within 25 % of each other",
            0.8,
            1.25,
        ),
        _k10,
    ),
    (
        _claim(
            "K14",
            "2 N_0 parameters in 8 bits have a higher N_eff than N_0 in 16",
            "footnote 3",
            "ratio of N_eff > 1",
            1.0,
            math.inf,
        ),
        _k14,
    ),
)


def judge(published: Values) -> list[Finding]:
    """The recomputed claims, from the values of published.yaml."""
    return [recomputed(claim, *answer(published)) for claim, answer in AUDIT]
