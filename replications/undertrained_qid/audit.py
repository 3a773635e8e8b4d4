"""What the constants and Table 1 of Ouyang et al. (arXiv 2411.17691) say of each other; no claim has an interval."""

import math
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np

from replications.undertrained_qid.law import LAW, tokens_to_reach
from shared.report.claim import Claim, Finding, recomputed, stating

PAPER = "undertrained_qid"
SIZES = {"1B": 1e9, "7B": 7e9, "70B": 70e9, "405B": 405e9}
LEVELS = (0.2, 0.3, 0.4, 0.5)
BITS = (2, 3, 4)

Values = dict[str, float]
Answer = tuple[float, str]


@dataclass(frozen=True)
class BitLaw:
    """delta = k D^beta / N^alpha at one bit width, and the largest |ln| by which it misses the table."""

    k: float
    beta: float
    alpha: float
    largest_miss: float


def per_bit_law(published: Values, bits: int) -> BitLaw:
    """The law behind the 16 entries of Table 1 at `bits`: least squares of ln delta."""
    rows = [
        (math.log(level), math.log(N), math.log(published[f"tokens_{size}_{bits}bit_{level}"]))
        for size, N in SIZES.items()
        for level in LEVELS
    ]
    log_delta, log_N, log_D = np.array(rows).T
    design = np.stack([np.ones_like(log_D), log_D, -log_N], axis=-1)
    log_k, beta, alpha = map(float, np.linalg.lstsq(design, log_delta, rcond=None)[0])
    miss = float(np.max(np.abs(log_delta - (log_k + beta * log_D - alpha * log_N))))
    return BitLaw(math.exp(log_k), beta, alpha, miss)


def largest_ratio(published: Values, bits: int) -> tuple[float, str]:
    """Table 1 over the joint law at `bits`, where they differ most, and which entry that is."""
    found = {
        f"{size}, delta = {level}": published[f"tokens_{size}_{bits}bit_{level}"]
        / tokens_to_reach(published, level, N, bits)
        for size, N in SIZES.items()
        for level in LEVELS
    }
    where = max(found, key=lambda entry: abs(math.log(found[entry])))
    return found[where], where


def delta(published: Values, N: float, D: float, bits: float) -> float:
    """The joint law (Eq. 8), in nats per token."""
    columns = {"N": np.array([N]), "D": np.array([D]), "bits": np.array([bits])}
    return float(LAW.predict(LAW.internal(published), columns)[0])


def _o2b(c: Values) -> Answer:
    pairs = {name: (c[name], c[f"{name}_alone"]) for name in ("alpha", "beta", "gamma")}
    worst = max(abs(joint / alone - 1) for joint, alone in pairs.values())
    shown = ", ".join(f"{name} {joint} against {alone}" for name, (joint, alone) in pairs.items())
    return worst, f"{shown}: at most {worst:.2%} apart"


def _o2c(c: Values) -> Answer:
    by_bits = {bits: largest_ratio(c, bits) for bits in BITS}
    shown = "; ".join(f"{bits} bits: times {ratio:.2f} ({where})" for bits, (ratio, where) in by_bits.items())
    worst = max((ratio for ratio, _ in by_bits.values()), key=lambda ratio: abs(math.log(ratio)))
    return worst, f"Table 1 over the joint law where they differ most: {shown}"


def _o2d(c: Values) -> Answer:
    laws = {bits: per_bit_law(c, bits) for bits in BITS}
    shown = "; ".join(
        f"{bits} bits: {law.k:.4g} D^{law.beta:.4f} / N^{law.alpha:.4f}, miss {law.largest_miss:.1g}"
        for bits, law in laws.items()
    )
    return max(law.largest_miss for law in laws.values()), shown


def _o2e(c: Values) -> Answer:
    betas = [per_bit_law(c, bits).beta for bits in BITS]
    return max(betas) / min(betas), f"exponents of D behind the table: {', '.join(f'{b:.4f}' for b in betas)}"


def _o5(size: str) -> Callable[[Values], Answer]:
    def answer(c: Values) -> Answer:
        tokens, table = tokens_to_reach(c, 0.2, SIZES[size], 4), c[f"tokens_{size}_4bit_0.2"]
        return tokens, (
            f"Eq. 8 gives {tokens / 1e12:.3g}T where Table 1 prints {table / 1e12:.4g}T: the table does not follow it"
        )

    return answer


def _o6(N: float, D: float) -> Callable[[Values], Answer]:
    def answer(c: Values) -> Answer:
        found = [delta(c, N, D, bits) for bits in (4, 3, 2)]
        return found[0], f"{found[0]:.3g} nats at 4 bits, {found[1]:.3g} at 3, {found[2]:.3g} at 2"

    return answer


_claim = stating(PAPER, "recomputed")


AUDIT: tuple[tuple[Claim, Callable[[Values], Answer]], ...] = (
    (
        _claim(
            "O2b",
            "One-factor laws and the joint law have the same exponents",
            "Eq. 5-8",
            "each pair within 5 %",
            -math.inf,
            0.05,
        ),
        _o2b,
    ),
    (
        _claim("O2c", "Table 1 follows the joint law", "Table 1, Eq. 8", "ratio within 5 %", 1 / 1.05, 1.05),
        _o2c,
    ),
    (
        _claim(
            "O2d",
            "Three laws, one for each bit width, give Table 1",
            "Table 1",
            "largest |ln miss| of delta under 0.02: rounding the smallest entry to 0.0011 allows that much",
            -math.inf,
            0.02,
        ),
        _o2d,
    ),
    (
        _claim(
            "O2e",
            "One exponent of D serves all bit widths of Table 1",
            "Table 1, Eq. 8",
            "largest over smallest under 1.05",
            0.0,
            1.05,
        ),
        _o2e,
    ),
    (
        _claim(
            "O5",
            "By the joint law a 70B model needs over 17T tokens to lose 0.2 nats at 4 bits",
            "Table 1, against Eq. 8",
            "D above 17e12 tokens",
            17e12,
            math.inf,
        ),
        _o5("70B"),
    ),
    (
        _claim(
            "O5b",
            "By the joint law a 405B model needs nearly 50T tokens to lose 0.2 nats at 4 bits",
            "Table 1, against Eq. 8",
            "D between 45e12 and 50e12 tokens",
            45e12,
            50e12,
        ),
        _o5("405B"),
    ),
    (
        _claim(
            "O6a",
            "At 100T tokens low-bit rounding may not be desirable: a 7B model loses over 0.5 nats at 4 bits",
            "Eq. 8; 0.5 is the highest level of Table 1",
            "delta above 0.5 nats",
            0.5,
            math.inf,
        ),
        _o6(7e9, 1e14),
    ),
    (
        _claim(
            "O6b",
            "Up to 1e12 tokens it is acceptable: a 7B model loses under 0.2 nats at 4 bits",
            "Eq. 8; 0.2 is the lowest level of Table 1",
            "delta under 0.2 nats",
            -math.inf,
            0.2,
        ),
        _o6(7e9, 1e12),
    ),
)


def judge(published: Values) -> list[Finding]:
    """The recomputed claims, from the values of published.yaml."""
    return [recomputed(claim, *answer(published)) for claim, answer in AUDIT]
