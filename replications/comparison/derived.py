"""What laws of different form agree or disagree about: delta, N_eff / N, D_crit and the best precision, from published
constants, one table. What our own fits say (own.py) stands beside it, with intervals; published constants have none.
"""

from collections.abc import Iterator, Mapping
from dataclasses import asdict, dataclass

import numpy as np

from replications.capybara_fp import optimum as sun_optimum
from replications.capybara_fp.law import LAW as SUN
from replications.comparison.elasticities import POINT, QUEST_GROUPS, readings
from replications.kumar_precision import optimum as kumar_optimum
from replications.kumar_precision.law import EQ4_BIAS, d_crit
from replications.qat_scaling.law import LOSS as CHEN
from shared.laws.elasticity import critical_tokens, delta_of, effective_share
from shared.laws.settings import Published

N_OF_D_CRIT = 1e9


@dataclass(frozen=True)
class Quantity:
    """`value` is None where the law puts no bound; an end that is None while the other is a number is open."""

    paper: str
    quantity: str  # delta, N_eff / N, D_crit, P*
    setting: str
    value: float | None
    unit: str
    low: float | None = None
    high: float | None = None


def derived(published: Mapping[str, Published]) -> list[dict[str, object]]:
    """All quantities as plain rows, for derived.json."""
    found = [*_deltas(published), *_shares(published), *_critical(published), *_best_bits(published)]
    return [asdict(quantity) for quantity in found]


def _deltas(published: Mapping[str, Published]) -> Iterator[Quantity]:
    where = f"N = {POINT['N']:.0e}, D = {POINT['D']:.0e}"
    for reading in readings(published):
        theta = reading.theta(published)
        if theta is not None and reading.whole:
            columns = {name: np.array([reading.point()[name]]) for name in reading.law.inputs}
            value = float(delta_of(reading.law, theta, columns)[0])
            yield Quantity(reading.paper, "delta", f"{reading.label}; {where}", value, "nats per token")


def _shares(published: Mapping[str, Published]) -> Iterator[Quantity]:
    f = kumar_optimum.share(published["kumar_precision"].values(), biases=True)
    for bits in (8, 6, 5, 4):
        yield Quantity("kumar_precision", "N_eff / N", f"W = A = KV in {bits} bits (Eq. 4, biases)", f(bits), "")
    quest = published["compression_laws"].laws["quest"]
    for group in QUEST_GROUPS[1:]:
        yield Quantity("compression_laws", "N_eff / N", f"QuEST, {group}", quest[f"eff_{group}"].value, "")
    chen = published["qat_scaling"].values()
    for G in (32.0, 128.0, 256.0):
        value = float(effective_share(CHEN, CHEN.internal(chen), {"N": 595e6, "D": 1e11, "G": G}))
        yield Quantity("qat_scaling", "N_eff / N", f"W4A4, G = {G:g}, 595M, 100B", value, "")
    sun = SUN.internal(published["capybara_fp"].values())
    for name, (E, M) in {"E2M1": (2.0, 1.0), "E4M3": (4.0, 3.0)}.items():
        value = float(effective_share(SUN, sun, {"N": 595e6, "D": 1e11, "E": E, "M": M, "B": 128.0}))
        yield Quantity("capybara_fp", "N_eff / N", f"{name}, B = 128, 595M, 100B", value, "")


def _critical(published: Mapping[str, Published]) -> Iterator[Quantity]:
    kumar = published["kumar_precision"].values()
    for bits in (3, 4, 5):
        biased = {**kumar, "C_T": kumar["C_T"] * float(np.exp(kumar["b"]))}
        for name, constants in (("without b", kumar), ("with b", biased)):
            value = d_crit(constants, N_OF_D_CRIT, bits)
            yield Quantity("kumar_precision", "D_crit", f"1B rounded to {bits} bits, {name}", value, "tokens")
    sun = published["capybara_fp"].values()
    for name, layout in {"E2M1": (2, 1), "E4M3": (4, 3)}.items():
        value = sun_optimum.critical_tokens(sun, N_OF_D_CRIT, *layout, 128)
        yield Quantity("capybara_fp", "D_crit", f"1B trained in {name}, B = 128", value, "tokens")
    chen = CHEN.internal(published["qat_scaling"].values())
    tokens = float(critical_tokens(CHEN, chen, {"N": N_OF_D_CRIT, "G": 128.0}))
    yield Quantity(
        "qat_scaling", "D_crit", "1B trained in W4A4, G = 128", tokens if np.isfinite(tokens) else None, "tokens"
    )
    eq4 = EQ4_BIAS.internal(kumar)
    tokens = float(critical_tokens(EQ4_BIAS, eq4, {"N": N_OF_D_CRIT, "P_w": 4.0, "P_a": 4.0, "P_kv": 4.0}))
    yield Quantity(
        "kumar_precision", "D_crit", "1B trained in 4 bits (Eq. 4)", tokens if np.isfinite(tokens) else None, "tokens"
    )


def _best_bits(published: Mapping[str, Published]) -> Iterator[Quantity]:
    kumar = published["kumar_precision"].values()
    for biases, name in ((True, "with biases"), (False, "without biases")):
        best = kumar_optimum.best_bits(kumar_optimum.share(kumar, biases=biases))
        yield Quantity("kumar_precision", "P*", f"compute-optimal training, {name}", best, "bits")
    sun = published["capybara_fp"].values()
    for D in (1e11, 1e12, 1e13, 1e14):
        best = sun_optimum.best_bits_for_tokens(sun, D, 128)
        yield Quantity("capybara_fp", "P*", f"cost-optimal training on {D / 1e12:g}T tokens, B = 128", best, "bits")
    quest = published["compression_laws"].laws["quest"]
    per_bit = {bits: quest[f"eff_W{bits}A{bits}"].value / bits for bits in (1, 2, 3, 4, 8)}
    best_width = max(per_bit, key=lambda bits: per_bit[bits])
    yield Quantity("compression_laws", "P*", "QuEST, largest eff / bits of W = A", float(best_width), "bits")
