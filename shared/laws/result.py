"""What a fit returns: values, intervals, diagnostics and residuals, and their plain form for files."""

from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from typing import Annotated, Any, Literal

import numpy as np
from pydantic import AllowInfNan, BaseModel, ConfigDict, Field, ValidationError

from shared.checked import place
from shared.errors import BitlawError
from shared.laws.law import Array, Columns, Law
from shared.laws.noise import NO_NOISE, SeedNoise

Status = Literal["CONVERGED", "BOUND_HIT", "WEAKLY_IDENTIFIED", "FAILED"]

INTERVAL = (0.025, 0.975)
ARRAYS = ("theta", "draws", "start_costs")
KEPT = 200  # draws in a file that goes into git: the ends of a 95 % interval rest on five of them each


@dataclass(frozen=True)
class Estimate:
    """A value, its percentile 95 % interval and standard error over the resamples, its range when each size is left
    out in turn (None: under three sizes), and the ends of its profile interval (None: open on that side, or not
    computed)."""

    value: float
    low: float
    high: float
    loo_low: float | None = None
    loo_high: float | None = None
    se: float | None = None
    profile_low: float | None = None
    profile_high: float | None = None


@dataclass(frozen=True)
class Residual:
    """One cell or row: its inputs, the mean of its rows, the law's value and the standard deviation that weighted it
    (in a recipe without weights: the typical size of a residual there)."""

    inputs: dict[str, float]
    rows: int
    target: float
    predicted: float
    sigma: float


@dataclass(frozen=True)
class Fit:
    """The result of `fit`. `theta` (P,) and `draws` (resamples, P) are internal; `parameters` are the paper's."""

    law: str
    status: Status
    reasons: tuple[str, ...]  # why the status is not CONVERGED, and what to know about the noise
    parameters: dict[str, Estimate]
    theta: Array
    draws: Array
    failed_draws: int
    start_costs: Array
    share_of_starts_within_1pct: float
    condition_number: float
    bound_hits: tuple[str, ...]
    chi2_per_dof: float  # against measurement and seed noise alone, tau = 0; NaN where there is no such noise
    tau: float
    noise: SeedNoise
    seed_sd: float  # median over cells of one seed's standard deviation, nats per token
    residuals: tuple[Residual, ...]  # a sample of them where there are very many
    rows: int
    domain: dict[str, tuple[float, float]]
    recipe: str = "weighted"
    objective: float = float("nan")  # the sum that the recipe minimises
    rms: float = float("nan")  # root mean square of target - prediction, or of their logarithms if the recipe has them
    fixed: dict[str, float] = field(default_factory=dict)
    groups: tuple[str, ...] = ()  # of a law with one constant for each group, in the order of its codes
    resampling: str = "trunks"

    def to_json(self) -> dict[str, Any]:
        """Plain values, all draws included."""
        return {**self.summary(), **{name: getattr(self, name).tolist() for name in ARRAYS}}

    def kept(self) -> dict[str, Any]:
        """As `to_json`, with at most KEPT of the draws, taken evenly."""
        draws = self.draws[:: max(1, -(-len(self.draws) // KEPT))]
        return {**self.to_json(), "draws": draws.tolist()}

    def summary(self) -> dict[str, Any]:
        """Plain values without the arrays: what `bitlaw fit --json` prints."""
        plain = {name: getattr(self, name) for name in self.__dataclass_fields__ if name not in ARRAYS}
        plain["parameters"] = {name: asdict(value) for name, value in self.parameters.items()}
        plain["residuals"] = [asdict(value) for value in self.residuals]
        plain["noise"] = asdict(self.noise)
        return plain

    @classmethod
    def from_json(cls, values: Mapping[str, Any]) -> "Fit":
        """Raises BitlawError when `values` are not those of `to_json`."""
        try:
            parsed = dict(_Saved.model_validate(values))
            for name in ARRAYS:
                parsed[name] = np.array(parsed[name], dtype=float)
            parsed["draws"] = parsed["draws"].reshape(-1, len(parsed["theta"]))
            for name in ("chi2_per_dof", "objective", "rms", "condition_number"):
                if parsed[name] is None:  # a file has no word for what is not finite
                    parsed[name] = float("inf" if name == "condition_number" else "nan")
            parsed["parameters"] = {name: Estimate(**value) for name, value in parsed["parameters"].items()}
            parsed["residuals"] = tuple(Residual(**value) for value in parsed["residuals"])
            parsed["noise"] = SeedNoise(**parsed["noise"])
            return cls(**parsed)
        except ValidationError as error:
            fault = error.errors(include_url=False, include_context=False)[0]
            said = f"{place(fault['loc'])}: {fault['msg'].lower()}"
            raise BitlawError(f"these values are not a saved fit ({said}); save one with Fit.to_json") from error
        except (TypeError, ValueError) as error:
            raise BitlawError(f"these values are not a saved fit ({error}); save one with Fit.to_json") from error

    def check(self, law: Law) -> None:
        """Raises BitlawError when these are not constants and inputs of `law`."""
        P = len(law.parameters)
        lacking = [name for name in law.inputs if name not in self.domain]
        if self.theta.shape != (P,) or self.draws.shape[1:] != (P,) or set(self.parameters) != set(law.parameters):
            raise BitlawError(f"these are not the {P} constants of {law.name}; fit it again")
        if lacking:
            raise BitlawError(f"the fitted range of {', '.join(lacking)} is missing; fit {law.name} again")


Loose = Annotated[float, AllowInfNan(True)] | None


class _Saved(BaseModel):
    """What `Fit.to_json` writes; what predictions are computed from is finite."""

    model_config = ConfigDict(allow_inf_nan=False)

    law: str
    status: Status
    reasons: tuple[str, ...] = ()
    parameters: dict[str, dict[str, Loose]]
    theta: list[float] = Field(min_length=1)
    draws: list[list[float]]
    failed_draws: int
    start_costs: list[Loose]
    share_of_starts_within_1pct: Loose
    condition_number: Loose = None
    bound_hits: tuple[str, ...] = ()
    chi2_per_dof: Loose = None
    tau: Loose
    noise: dict[str, Any]
    seed_sd: Loose
    residuals: list[dict[str, Any]]
    rows: int
    domain: dict[str, tuple[float, float]]
    recipe: str = "weighted"
    objective: Loose = None
    rms: Loose = None
    fixed: dict[str, float] = {}
    groups: tuple[str, ...] = ()
    resampling: str = "trunks"


def interval(values: Array) -> tuple[Array, Array]:
    """The percentile 95 % interval over the first axis."""
    if len(values) == 0:
        empty = np.full(np.shape(values)[1:], np.nan)
        return empty, empty
    low, high = np.quantile(values, INTERVAL, axis=0)
    return low, high


def predicted(law: Law, result: Fit, columns: Columns) -> tuple[Array, Array, Array]:
    """The fitted law at raw inputs (n,): value, low and high (n,) of the law itself, without measurement noise."""
    low, high = interval(law.predict(result.draws, columns))
    return law.predict(result.theta, columns), low, high


def outside(result: Fit, at: Mapping[str, float]) -> dict[str, float]:
    """How far inputs lie outside the fitted domain (`beyond`). The codes of groups are never outside."""
    return beyond(result.domain, at)


def beyond(domain: Mapping[str, tuple[float, float]], at: Mapping[str, float]) -> dict[str, float]:
    """How far inputs lie outside a domain: the factor beyond the nearest value in it (D = 4 times the largest: 4; N = a
    third of the smallest: 1/3). Inputs inside are absent. An input whose nearest value is zero has factor infinity.
    """
    found = {}
    for name, (low, high) in domain.items():
        edge = high if at[name] > high else low if at[name] < low else None
        if edge is not None:
            found[name] = at[name] / edge if edge else float("inf")
    return found


def estimates(law: Law, theta: Array, draws: Array, loo: Array) -> dict[str, Estimate]:
    """The raw constants of `theta` with what their resamples (draws, P) and leave-one-out fits (sizes, P) say."""
    value, raw, left = law.to_raw(theta), law.to_raw(draws), law.to_raw(loo)
    low, high = interval(raw)
    return {
        name: Estimate(
            value=float(value[i]),
            low=float(low[i]),
            high=float(high[i]),
            loo_low=float(left[:, i].min()) if len(left) else None,
            loo_high=float(left[:, i].max()) if len(left) else None,
            se=float(np.std(raw[:, i], ddof=1)) if len(raw) > 1 else None,
        )
        for i, name in enumerate(law.parameters)
    }


__all__ = [
    "NO_NOISE",
    "Estimate",
    "Fit",
    "Residual",
    "Status",
    "beyond",
    "estimates",
    "interval",
    "outside",
    "predicted",
]
