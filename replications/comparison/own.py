"""What our own fits say of D_crit and N_eff / N after rounding: Eq. 2 of Kumar et al. on our deltas, with Chinchilla's
law on the unquantized runs that they start from.

    D_crit      where d L / d ln D = 0:   beta B D^-beta = gamma_D C_T D^gamma_D / N^gamma_N exp(-P / gamma_post)
    N_eff / N   = (1 + delta N^alpha / A)^(-1 / alpha): the share of N with the same loss, unquantized

Intervals are percentiles over the draws of both fits, taken as independent: they share trunks, but a delta is a
difference in which most of what a trunk is cancels.
"""

from dataclasses import dataclass

import numpy as np
import pandas as pd

from replications.kumar_precision.law import LAW as EQ2
from shared.errors import BitlawError
from shared.laws.chinchilla import LAW as CHINCHILLA
from shared.laws.fit import Fit, fit
from shared.laws.law import Array
from shared.laws.noise import seed_noise
from shared.laws.result import interval
from shared.laws.study import CELL, FITTED, REFERENCE

PHASE, GROUP_SIZE = "cooled", "channel"
BITS = (2, 3, 4, 6)
N_BOOT, SEED = 1000, 1


@dataclass(frozen=True)
class Own:
    """Both fits, or None where there are too few rows; `reason` then says why."""

    clean: Fit | None
    rounded: Fit | None
    reason: str

    @property
    def note(self) -> str:
        """The status of both fits."""
        found = {"Chinchilla's law": self.clean, "Eq. 2": self.rounded}
        return ", ".join(f"{name} {one.status}" for name, one in found.items() if one)

    def critical_tokens(self, N: float, bits: float) -> Array:
        """(1 + draws,) D_crit in tokens, the fitted one first; infinite where more tokens always help."""
        clean, rounded = self._constants()
        up = rounded["gamma_D"] * rounded["C_T"] * N ** -rounded["gamma_N"] * np.exp(-bits / rounded["gamma_post"])
        down = clean["beta"] * clean["B"]
        total = rounded["gamma_D"] + clean["beta"]
        rises = (up > 0) & (total > 0)
        with np.errstate(over="ignore"):
            found = (down / np.where(rises, up, 1.0)) ** (1 / np.where(rises, total, 1.0))
        return np.where(rises, found, np.inf)

    def share(self, N: float, D: float, bits: float) -> Array:
        """(1 + draws,) N_eff / N."""
        clean, rounded = self._constants()
        delta = (
            rounded["C_T"] * D ** rounded["gamma_D"] * N ** -rounded["gamma_N"] * np.exp(-bits / rounded["gamma_post"])
        )
        alpha = np.maximum(clean["alpha"], 1e-6)  # where N does nothing no share of it is small enough: zero
        return np.exp(-np.log1p(delta * N ** clean["alpha"] / clean["A"]) / alpha)

    def _constants(self) -> tuple[dict[str, Array], dict[str, Array]]:
        if self.clean is None or self.rounded is None:
            raise BitlawError(f"our own D_crit and N_eff need both fits: {self.reason}")
        n = min(len(self.clean.draws), len(self.rounded.draws))
        found = []
        for law, result in ((CHINCHILLA, self.clean), (EQ2, self.rounded)):
            raw = law.to_raw(np.concatenate([result.theta[None], result.draws[:n]]))
            found.append(dict(zip(law.parameters, raw.T, strict=True)))
        return found[0], found[1]


def fit_own(rows: pd.DataFrame, base: pd.DataFrame) -> Own:
    """`rows` of `study.select` (fitted here: cooled, per channel, of those that fits may see) and `base`, unquantized
    cooled runs with N, D, loss and trunk_id."""
    table = rows[(rows["phase"] == PHASE) & (rows["use"] == FITTED)]
    noise = seed_noise(table, CELL) if len(table) else None
    table = table[table["group_size"] == GROUP_SIZE]
    try:
        clean = fit(CHINCHILLA, base, n_boot=N_BOOT, seed=SEED, name="unquantized runs")
        rounded = fit(EQ2, table, noise=noise, n_boot=N_BOOT, seed=SEED, name="measurements") if noise else None
    except BitlawError as error:
        return Own(None, None, str(error))
    return Own(clean, rounded, "" if rounded else "there is no measurement to fit")


def derived_rows(own: Own, sizes: list[float]) -> list[dict[str, object]]:
    """Rows of derived.json: D_crit at each size and N_eff / N at the reference point, where both fits are there."""
    if own.clean is None or own.rounded is None:
        return []
    found = []
    for N in sizes:
        for bits in BITS:
            setting = f"{N / 1e6:.3g}M rounded to {bits} bits, per channel; {own.note}"
            found.append(_row("D_crit", setting, own.critical_tokens(N, bits), "tokens"))
    N, D = REFERENCE["N"], REFERENCE["D"]
    for bits in BITS:
        setting = f"{N / 1e6:.3g}M, {D / 1e6:.3g}M tokens, rounded to {bits} bits, per channel"
        found.append(_row("N_eff / N", setting, own.share(N, D, bits), ""))
    return found


def _row(quantity: str, setting: str, values: Array, unit: str) -> dict[str, object]:
    low, high = (float(end) for end in interval(values[1:]))
    ends = {"value": float(values[0]), "low": low, "high": high}
    known = {end: value if np.isfinite(value) else None for end, value in ends.items()}
    return {"paper": "ours", "quantity": quantity, "setting": setting, **known, "unit": unit}
