"""The effective parameters behind a penalty: the N at which a clean law of the loss has lost as much.

The page writes N_eff(b) = N - eta' (b_train - b)^delta and lets eta' "absorb constants". Here N_eff is derived first,

    L(N_eff, D) = L(N, D) + delta(b)

with a law L of unquantized training; eta' is then the least-squares fit of the page's form to that curve, with what it
misses, beside the first order eta / |dL/dN|. Only differences of L are used, so that N_eff = N where nothing is lost
and a text with another entropy than the law's runs shifts nothing.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import pandas as pd

from shared.errors import BitlawError
from shared.laws.chinchilla import LAW as CHINCHILLA
from shared.laws.fit import fit
from shared.laws.law import Array, Law
from shared.laws.result import Fit, interval
from shared.laws.study import FITTED

LARGEST_N, HALVINGS = 1e15, 80
N_BOOT, SEED = 400, 1


@dataclass(frozen=True)
class CleanLaw:
    """A law of the loss of unquantized models; `theta` (1 + draws, P), the fitted vector first. `smallest_N` that it
    was fitted to, where that is known (a published law or a fit of a file does not say)."""

    law: Law
    theta: Array
    source: str
    smallest_N: float | None = None

    @classmethod
    def of(cls, law: Law, found: Fit, source: str, smallest_N: float | None = None) -> "CleanLaw":
        return cls(law, np.concatenate([found.theta[None], found.draws]), f"{source}, {found.status}", smallest_N)

    def loss(self, N: Array | float, D: float) -> Array:
        """(1 + draws,) for N of that shape or one N."""
        N = np.broadcast_to(np.asarray(N, dtype=float), len(self.theta))
        known = {**self.law.unquantized, "D": D}
        columns = {name: np.full(1, known.get(name, 1.0)) for name in self.law.inputs}
        return np.array(
            [self.law.predict(theta, columns | {"N": n[None]})[0] for theta, n in zip(self.theta, N, strict=True)]
        )


def clean_of_pool(rows: pd.DataFrame) -> CleanLaw:
    """Chinchilla's law fitted to the unquantized runs behind `rows` of `study.select`: cooled, of those a fit may see.

    Raises BitlawError when they are too few.
    """
    used = rows[(rows["phase"] == "cooled") & (rows["use"] == FITTED)].drop_duplicates("run_id")
    base = used.assign(loss=used["loss"].astype(float) - used["delta"].astype(float))
    base = base[["N", "D", "loss", "trunk_id"]].sort_values(["N", "D", "trunk_id"], ignore_index=True)
    found = fit(CHINCHILLA, base, n_boot=N_BOOT, seed=SEED, name="unquantized runs")
    source = f"Chinchilla's law on {len(base)} cooled runs of ours"
    return CleanLaw.of(CHINCHILLA, found, source, float(base["N"].min()))


def effective_sizes(clean: CleanLaw, N: float, D: float, delta: float) -> Array:
    """(1 + draws,) N_eff by bisection in ln N; zero where a model of one parameter still loses less."""
    goal = clean.loss(N, D) + delta
    low = np.zeros(len(goal))
    high = np.full(len(goal), np.log(N if delta >= 0 else LARGEST_N))
    for _ in range(HALVINGS):
        middle = (low + high) / 2
        worse = clean.loss(np.exp(middle), D) > goal
        low, high = np.where(worse, middle, low), np.where(worse, high, middle)
    return np.where(clean.loss(1.0, D) < goal, 0.0, np.exp(high))


def effective_parameters(
    clean: CleanLaw,
    N: float,
    D: float,
    bits: Sequence[float],
    delta: Sequence[float],
    eta: float,
    power: float,
    b_train: float,
) -> dict[str, Any]:
    """{"source", "smallest_N", "sizes": a row for each width, "eta_prime", "first_order", "residual"}.

    `extrapolated` marks a size below the smallest N that the law was fitted to; None where the law does not know it.

    `residual` is the root mean square of N_eff less the page's line, over N; `negative_at` the widths at which that
    line leaves no parameters. Intervals are over the law's resamples alone.

    Raises BitlawError for no N or D above zero.
    """
    if not (N > 0 and D > 0):
        raise BitlawError("the effective parameters need N and D above zero: give --N and --D")
    sizes_kb = np.stack([effective_sizes(clean, N, D, one) for one in delta], axis=-1)
    gap_b = (b_train - np.asarray(bits, dtype=float)) ** power
    lost_kb = N - sizes_kb
    prime_k = lost_kb @ gap_b / (gap_b @ gap_b)
    step = 1e-4
    slope_k = -(clean.loss(N * np.exp(step), D) - clean.loss(N * np.exp(-step), D)) / (2 * step * N)
    line_b = N - prime_k[0] * gap_b
    with np.errstate(divide="ignore"):  # a resample in which N does nothing: infinite, and left out of the interval
        first_k = eta / slope_k
    first_b = N - first_k[0] * gap_b
    low_b, high_b = interval(sizes_kb[1:])
    rows = [
        {
            "bits": float(b), "n_eff": float(sizes_kb[0, i]), "low": float(low_b[i]), "high": float(high_b[i]),
            "share": float(sizes_kb[0, i] / N), "page": float(line_b[i]), "first_order": float(first_b[i]),
            "extrapolated": None if clean.smallest_N is None else bool(sizes_kb[0, i] < clean.smallest_N),
        }
        for i, b in enumerate(bits)
    ]  # fmt: skip
    return {
        "source": clean.source,
        "smallest_N": clean.smallest_N,
        "N": N,
        "D": D,
        "sizes": rows,
        "eta_prime": _with_ends(prime_k),
        "first_order": _with_ends(first_k),
        "residual": float(np.sqrt(np.mean((sizes_kb[0] - line_b) ** 2)) / N),
        "residual_first_order": float(np.sqrt(np.mean((sizes_kb[0] - first_b) ** 2)) / N),
        "negative_at": [float(b) for b, n in zip(bits, line_b, strict=True) if n <= 0],
    }


def _with_ends(values: Array) -> dict[str, float]:
    low, high = interval(values[1:][np.isfinite(values[1:])])
    return {"value": float(values[0]), "low": float(low), "high": float(high)}
