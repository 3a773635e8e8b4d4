"""How the penalty depends on the bits: a power of the gap (the page), an exponential and a power of the bits, fitted to
the same measurements of one model, and which of them describes them best.

    gap          delta = eta (b_train - b)^delta             the page's law, with L_base as measured
    exponential  delta = C e^(-b / gamma_post)               Kumar et al., arXiv 2411.04330, Eq. 2
    power        delta = k / b^gamma                         Ouyang et al., arXiv 2411.17691, Eq. 7

in nats per token. Each has two constants. They are fitted by least squares of the logarithm (shared/laws/fit.py) to the
widths whose penalty is clear of zero: from 8 bits to 2 it grows ten-thousandfold, and squares of the loss itself, which
the page takes (`as_the_page`), see the lowest width alone. Scored by AICc and by the widths that a fit has not seen.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import pandas as pd
from scipy.optimize import OptimizeWarning, curve_fit
from scipy.stats import t as student

from replications.penalty import EXPONENTIAL, POWER
from replications.precision_predictor.law import B_TRAIN, full
from shared.errors import BitlawError
from shared.laws.fit import fit, hold
from shared.laws.law import Array, Law

RECIPE, N_STARTS, SEED = "least-squares-log", 16, 1
LEAST_WIDTHS = 4  # three to fit two constants with something left, one to predict
LEAST_TO_DECIDE = 6  # widths; of five, one with a large error of its own names the form (a choice of ours)
DECIDED = 2.0  # of AICc: "substantial support" ends there (Burnham and Anderson 2002, section 2.6)
CLEAR = 2.0  # standard errors above zero from which a delta has a logarithm worth fitting


@dataclass(frozen=True)
class Form:
    """`bits`, `measured` and `predicted` of the widths that are fitted, `rms` of ln(predicted / measured); `aicc` is
    NaN under five widths; `unseen` holds for each width ln(predicted / measured) by a fit without it. `law` and `theta`
    predict at other widths."""

    name: str
    constants: dict[str, dict[str, float | None]]
    law: Law
    theta: Array
    bits: Array
    measured: Array
    predicted: Array
    aicc: float
    unseen: Array

    @property
    def rms(self) -> float:
        return float(np.sqrt(np.mean(np.log(self.predicted / self.measured) ** 2)))

    @property
    def unseen_error(self) -> float:
        """Mean |ln(predicted / measured)| over the widths."""
        return float(np.mean(np.abs(self.unseen)))

    def at(self, bits: Array) -> Array:
        """delta in nats/token at these bits."""
        return self.law.predict(self.theta, columns_of(self.law, bits))


def laws(b_train: float = B_TRAIN) -> dict[str, Law]:
    """The three forms as laws of delta with two free constants, of a table with N = D = 1."""
    return {
        "gap": hold(full(b_train), {"beta": 0.0}),
        "exponential": hold(EXPONENTIAL, {"gamma_D": 0.0, "gamma_N": 0.0}),
        "power": POWER,
    }


FREE = {"gap": ("eta", "delta"), "exponential": ("C_T", "gamma_post"), "power": ("k", "gamma")}


def columns_of(law: Law, bits: Array) -> dict[str, Array]:
    ones = np.ones(len(bits))
    return {name: np.asarray(bits, dtype=float) if name == "bits" else ones for name in law.inputs}


def widths_of(rows: Sequence[Mapping[str, Any]], name: str) -> pd.DataFrame:
    """bits, loss, delta and delta_se of one model's rows, from few bits to many, and whether delta is `clear` of zero.

    Raises BitlawError for a width that stands twice.
    """
    table = pd.DataFrame([{key: float(row[key]) for key in ("bits", "loss", "delta", "delta_se")} for row in rows])
    if table.empty or table["bits"].duplicated().any():
        raise BitlawError(f"{name}: a penalty law needs rows of one model, each bit width once")
    table["clear"] = table["delta"] > CLEAR * table["delta_se"]
    return table.assign(N=1.0, D=1.0).sort_values("bits", ignore_index=True)


def lacking(table: pd.DataFrame) -> str:
    """Why no law can be fitted to a table of `widths_of`, or nothing."""
    if table["clear"].sum() >= LEAST_WIDTHS:
        return ""
    return (
        f"{table['clear'].sum()} bit widths have a penalty clear of zero, {LEAST_WIDTHS} are the least: "
        "measure more windows or fewer bits"
    )


def table_of(rows: Sequence[Mapping[str, Any]], name: str) -> pd.DataFrame:
    """`widths_of` what a law can be fitted to. Raises BitlawError as it does, and under four widths clear of zero."""
    table = widths_of(rows, name)
    if reason := lacking(table):
        raise BitlawError(f"{name}: {reason}")
    return table


def fit_form(name: str, table: pd.DataFrame, b_train: float = B_TRAIN) -> Form:
    """One form on the clear rows of `table_of`. Each is a straight line in ln delta, so that Student's intervals and
    the fits without a width are those of a linear regression."""
    law = laws(b_train)[name]
    rows = table[table["clear"]].reset_index(drop=True)
    bits, measured = rows["bits"].to_numpy(), rows["delta"].to_numpy()
    found = fit(law, rows, recipe=RECIPE, n_starts=N_STARTS, n_boot=2, seed=SEED, name="measurements")
    x, y = _across(name, bits, b_train), np.log(measured)
    level, (low, high) = _student(x, y)
    slope: tuple[float | None, float | None] = low, high
    if name == "exponential":  # its constant is one over the slope, and open where that may be zero
        slope = 1 / high if high > 0 else None, 1 / low if low > 0 else None
    constants: dict[str, dict[str, float | None]] = {
        key: {"value": found.parameters[key].value, "low": ends[0], "high": ends[1]}
        for key, ends in zip(FREE[name], (level, slope), strict=True)
    }
    unseen = np.empty(len(x))
    for i in range(len(x)):
        rest = np.arange(len(x)) != i
        unseen[i] = np.polyval(np.polyfit(x[rest], y[rest], 1), x[i]) - y[i]
    predicted = law.predict(found.theta, columns_of(law, bits))
    aicc = _aicc(np.log(predicted / measured), len(FREE[name]) + 1)
    return Form(name, constants, law, found.theta, bits, measured, predicted, aicc, unseen)


def _across(name: str, bits: Array, b_train: float) -> Array:
    """What ln delta is a line of: its slope is delta, 1 / gamma_post and gamma."""
    return {"gap": np.log(b_train - bits), "exponential": -bits, "power": -np.log(bits)}[name]


def _student(x: Array, y: Array) -> tuple[tuple[float, float], tuple[float, float]]:
    """95 % ends of exp(intercept) and of the slope of a line by least squares."""
    (slope, level), n, mean = np.polyfit(x, y, 1), len(x), x.mean()
    spread = np.sum((x - mean) ** 2)
    noise = np.sqrt(np.sum((y - level - slope * x) ** 2) / (n - 2))
    half = student.ppf(0.975, n - 2) * noise * np.array([np.sqrt(1 / n + mean**2 / spread), np.sqrt(1 / spread)])
    constant = float(np.exp(level - half[0])), float(np.exp(level + half[0]))
    return constant, (float(slope - half[1]), float(slope + half[1]))


def _aicc(residual: Array, k: int) -> float:
    """Of a normal residual with `k` constants, its spread among them (Hurvich and Tsai 1989)."""
    n = len(residual)
    if n <= k + 1:
        return float("nan")
    return float(n * np.log(2 * np.pi * np.mean(residual**2)) + n + 2 * k + 2 * k * (k + 1) / (n - k - 1))


def as_the_page(table: pd.DataFrame, base_loss: float, b_train: float = B_TRAIN) -> dict[str, Any]:
    """scipy's curve_fit of L_base + eta (b_train - b)^delta to the losses, all widths alike, from scipy's own start
    (1, 1), and where that ends badly from the line through the logarithms. Intervals are Student's, from its
    covariance."""
    import warnings

    bits, losses = table["bits"].to_numpy(), table["loss"].to_numpy()

    def law(b: Array, eta: float, delta: float) -> Array:
        return base_loss + eta * (b_train - b) ** delta

    clear = table["clear"].to_numpy()
    power, level = np.polyfit(np.log(b_train - bits[clear]), np.log(table["delta"].to_numpy()[clear]), 1)
    tried: dict[str, Any] = {}
    for start, guess in (("1, 1", (1.0, 1.0)), ("line", (float(np.exp(level)), float(power)))):
        try:
            with warnings.catch_warnings():
                warnings.simplefilter("error", OptimizeWarning)
                warnings.simplefilter("ignore", RuntimeWarning)
                found, covariance = curve_fit(law, bits, losses, p0=guess, maxfev=10_000)
        except (RuntimeError, OptimizeWarning) as error:
            tried[start] = {"status": "FAILED", "reason": " ".join(str(error).split())[:120]}
            continue
        half = student.ppf(0.975, len(bits) - 2) * np.sqrt(np.diag(covariance))
        tried[start] = {
            "status": "CONVERGED",
            **{
                name: {"value": float(v), "low": float(v - h), "high": float(v + h)}
                for name, v, h in zip(("eta", "delta"), found, half, strict=True)
            },
            "rms": float(np.sqrt(np.mean((law(bits, *found) - losses) ** 2))),
        }
    best = min(tried.values(), key=lambda one: one.get("rms", np.inf))
    return {**best, "from_ones": tried["1, 1"]}


def choose(forms: Sequence[Form]) -> dict[str, Any]:
    """{"best", "decided", "statement"}: decided when AICc (by more than 2) and the widths left out name the same form.

    Under five widths there is no AICc, and under six nothing is decided: the logarithms are not weighted, so that of
    so few points one with a large error of its own can name the form.
    """
    widths = len(forms[0].bits)
    by_unseen = sorted(forms, key=lambda form: form.unseen_error)
    by_aicc = sorted(forms, key=lambda form: form.aicc)
    error = ", ".join(f"{form.name} {form.unseen_error:.3g}" for form in by_unseen)
    if not np.isfinite([form.aicc for form in forms]).all():
        best, decided, why = by_unseen[0].name, False, "under five widths there is no AICc"
    else:
        best, lead = by_aicc[0].name, by_aicc[1].aicc - by_aicc[0].aicc
        decided = widths >= LEAST_TO_DECIDE and lead > DECIDED and by_unseen[0].name == best
        others = ", ".join(f"{form.name} +{form.aicc - by_aicc[0].aicc:.3g}" for form in by_aicc[1:])
        few = f"{widths} widths, {LEAST_TO_DECIDE} are the least to decide; " if widths < LEAST_TO_DECIDE else ""
        why = f"{few}AICc: {best}, {others}"
    said = best if decided else f"undecided (nearest: {best})"
    return {"best": best, "decided": decided, "statement": f"{said}; {why}; |ln error| of a width left out: {error}"}
