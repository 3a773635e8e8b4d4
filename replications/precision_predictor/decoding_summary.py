"""What the rows of `bitlaw decode` say: gains at equal average bits, where bits matter, and the page's sum over steps.

Pure: a table in, a dictionary out. Every quantity is {value, low, high, runs, ...}. With two models or more the
interval is Student's over the models' values, which for a gain are differences paired over windows inside each model;
with one model it is that of its windows (1.96 standard errors). Models of one trunk share most of their training, and
all are judged on the same windows, so that the interval speaks of such checkpoints and not of models at large.

The page's penalty as a sum over steps (read with D_t, "the remaining tokens after position t", T - t):

    mean over t of eta (D_t / N)^beta (16 - b(t))^delta

It is fitted (scipy's curve_fit, as the page does) to the penalties of uniform widths only, and predicts the schedules.
Printed as b~(t) - b_inf, the gap would grow with the bits of a step; it is read as 16 bits less those of the step.
With D_t the training tokens D, the other reading, no step differs from another. `memoryless` has no law at all: at
each step the penalty that the uniform width has there; what it misses is what the cache carries from step to step.
"""

import warnings
from collections.abc import Callable, Iterable, Mapping
from typing import Any

import numpy as np
import pandas as pd
from numpy.typing import NDArray
from scipy.optimize import OptimizeWarning, curve_fit

from replications.precision_predictor.schedules import FULL, parse_schedule
from shared.errors import BitlawError
from shared.laws.means import half_width

Array = NDArray[np.float64]
Estimate = dict[str, Any]
GAP = 12.0  # 16 bits to 4: the level is fitted there
NORMAL = 1.96
CLEAR = 3.0
NUMBERS = {"N", "D", "prefix", "steps", "highest", "bits", "value", "se"}
TEXTS = {"run", "group", "part", "name", "against", "at"}


def summarise(table: Iterable[Mapping[str, Any]]) -> dict[str, Any]:
    """Of the rows that `bitlaw decode` writes (decoding_rows.py), as numbers or as texts.

    Raises BitlawError for a table without rows, with other columns, and of runs that cannot be compared.
    """
    rows = _frame(table)
    settings = rows[["group", "prefix", "steps", "highest"]].drop_duplicates()
    if len(settings) > 1:
        raise BitlawError("the table of decoding mixes runs of different group, prefix or steps: keep one kind")
    whole = rows[rows["at"] == ""]
    steps, highest = int(rows["steps"].iloc[0]), int(rows["highest"].iloc[0])
    runs = rows.drop_duplicates("run").set_index("run")
    return {
        "about": {
            "group": settings["group"].iloc[0],
            **{name: int(settings[name].iloc[0]) for name in ("prefix", "steps", "highest")},
            "intervals": _intervals(len(runs)),
        },
        "runs": {
            str(run): {
                "N": int(one["N"]),
                "D": None if pd.isna(one["D"]) else int(one["D"]),
                "loss": _one(whole, str(run), "loss"),
            }
            for run, one in runs.iterrows()
        },
        "penalty": _by_name(whole, "penalty"),
        "gain": _by_name(whole, "gain"),
        "relative_gain": _relative(whole),
        "split": _split(whole),
        "early": _early(rows, steps),
        "sum_over_steps": sum_over_steps(rows, steps, highest),
        "nesting": _by_name(whole, "nesting"),
        "relative_mse": _by_name(whole, "relative_mse"),
        "stored_bits": _by_name(whole, "stored_bits"),
        "rouge": _by_name(whole, "rouge"),
        "agreement": _by_name(whole, "agreement"),
        "rouge_gain": _by_name(whole, "rouge_gain"),
        "rouge_split": _split(whole, "rouge_gain"),
        "scheduler": _by_name(whole, "scheduler"),
        "scheduler_gain": _by_name(whole, "scheduler_gain"),
        "scheduler_share": _by_name(whole, "scheduler_share"),
        "scheduler_hit": _by_name(whole, "scheduler_hit"),
    }


def _frame(table: Iterable[Mapping[str, Any]]) -> pd.DataFrame:
    rows = pd.DataFrame(list(table))
    if rows.empty:
        raise BitlawError("the table of decoding is empty: run `bitlaw decode`")
    if missing := sorted((NUMBERS | TEXTS) - set(rows.columns)):
        raise BitlawError(f"the table of decoding has no column '{missing[0]}': write it with `bitlaw decode`")
    try:
        numbers = {name: pd.to_numeric(rows[name].replace("", None)).astype(float) for name in sorted(NUMBERS)}
    except (ValueError, TypeError) as error:
        raise BitlawError(f"the table of decoding holds what is no number ({error}): write it again") from error
    return rows.assign(**numbers, **{name: rows[name].fillna("").astype(str) for name in sorted(TEXTS)})


def _intervals(runs: int) -> str:
    if runs == 1:
        return "95 % over the windows of one model (1.96 standard errors)"
    return f"95 %, Student's over {runs} models; differences are paired over the same windows inside each"


def estimate(values: Iterable[float], se: float | None = None) -> Estimate:
    """Mean with its interval over models; of one model, by its standard error where there is one."""
    found = np.array(list(values), dtype=float)
    count, value = len(found), float(found.mean())
    of_one = float("nan") if se is None or not np.isfinite(se) else NORMAL * se
    half = half_width(found) if count > 1 else of_one
    ends = (None, None) if np.isnan(half) else (value - half, value + half)
    return {"value": value, "low": ends[0], "high": ends[1], "runs": count}


def _one(whole: pd.DataFrame, run: str, part: str) -> float | None:
    found = whole[(whole["run"] == run) & (whole["part"] == part)]["value"]
    return float(found.iloc[0]) if len(found) else None


def _by_name(whole: pd.DataFrame, part: str) -> dict[str, Estimate]:
    """`name`, or `name against control`: over the models, and each model's own value and standard error."""
    found: dict[str, Estimate] = {}
    for (name, against), some in whole[whole["part"] == part].groupby(["name", "against"], sort=True):
        key = f"{name} against {against}" if against else str(name)
        found[key] = {
            **estimate(some["value"], some["se"].iloc[0]),
            "bits": None if some["bits"].isna().all() else float(some["bits"].mean()),
            "each": {
                row["run"]: {"value": float(row["value"]), "se": None if pd.isna(row["se"]) else float(row["se"])}
                for row in some.to_dict("records")
            },
        }
    return found


def _relative(whole: pd.DataFrame) -> dict[str, Estimate]:
    """Each gain over the penalty of its control, model by model: checkpoints differ tenfold in their penalties."""
    penalty = whole[whole["part"] == "penalty"].set_index(["run", "name"])["value"]
    found = {}
    for (name, against), some in whole[whole["part"] == "gain"].groupby(["name", "against"], sort=True):
        mine = np.array([penalty[run, name] for run in some["run"]])
        control = some["value"].to_numpy() + mine
        share = some["value"].to_numpy() / control
        se = float(some["se"].iloc[0] / abs(control[0])) if len(some) == 1 else None
        found[f"{name} against {against}"] = estimate(share, se)
    return found


def _split(whole: pd.DataFrame, part: str = "gain") -> dict[str, dict[str, Estimate]]:
    """A gain over the chord in two: `order`, half of what the reverse order loses; `unevenness`, the rest.

    Unevenness has nothing to do with where the bits go: penalties are convex in the bits, so that widths that differ
    lose more on average than the one between them, in whatever order.
    """
    found = {}
    table = whole[whole["part"] == part].pivot_table(index="run", columns=["name", "against"], values="value")
    for name in sorted({str(name) for name, _ in table.columns}):
        if (name, "chord") in table.columns and (name, "reverse") in table.columns:
            both = table[[(name, "chord"), (name, "reverse")]].dropna()
            order = both[(name, "reverse")] / 2
            found[name] = {"order": estimate(order), "unevenness": estimate(both[(name, "chord")] - order)}
    return found


def _early(rows: pd.DataFrame, steps: int) -> dict[str, Estimate]:
    """ln of the penalty in the first third of the steps over that in the last third, at each uniform width.

    Models whose penalty is not at least CLEAR standard errors above zero in both are left out, and so is a width
    without any model.
    """
    found = {}
    for name, some in _uniform_steps(rows).groupby("name", sort=True):
        logs = []
        for _, one in some.groupby("run"):
            first, last = one[one["step"] < steps / 3], one[one["step"] >= 2 * steps / 3]
            # Standard errors of rows of the same windows are taken as if they moved together, which is cautious.
            if all(part["value"].mean() > CLEAR * part["se"].mean() for part in (first, last)):
                logs.append(float(np.log(first["value"].mean() / last["value"].mean())))
        if logs:
            found[str(name)] = estimate(logs)
    return found


def _uniform_steps(rows: pd.DataFrame) -> pd.DataFrame:
    """Penalties by step of the uniform widths with the default prefill; columns `width` and `step` added."""
    some = rows[(rows["part"] == "penalty") & (rows["at"] != "") & rows["name"].str.fullmatch(r"uniform:\d+")]
    return some.assign(width=some["name"].str.removeprefix("uniform:").astype(int), step=some["at"].astype(int))


def sum_over_steps(rows: pd.DataFrame, steps: int, highest: int) -> dict[str, Any]:
    """The page's sum under both readings of D_t, and `memoryless`, against the measured penalties of the schedules.

    `error`: root mean square over steps and schedules of predicted less measured, over the mean measured penalty.
    `ratio`: predicted over measured mean penalty, of all schedules together. `carried`: by schedule, measured over
    `memoryless` less one: what the cache carries from the steps before, below zero where it helps.
    """
    uniform = _uniform_steps(rows)
    scheduled = rows[(rows["part"] == "penalty") & (rows["at"] != "")]
    scheduled = scheduled[~scheduled["name"].str.startswith("uniform:")].assign(step=lambda t: t["at"].astype(int))
    if uniform.empty or scheduled.empty:
        return {}
    starts = np.array(sorted(uniform["step"].unique()))
    ends = np.append(starts[1:], steps)
    widths = {
        name: np.array(parse_schedule(name, steps, highest).widths) for name in sorted(scheduled["name"].unique())
    }
    training = _training_law(rows)
    readings: dict[str, list[dict[str, Any]]] = {"remaining": [], "training": [], "memoryless": []}
    curves: dict[str, dict[str, list[Array]]] = {}
    betas, deltas = [], []
    for run, mine in uniform.groupby("run", sort=True):
        N = float(mine["N"].iloc[0])
        table = mine.pivot_table(index="width", columns="step", values="value")
        predictors: dict[str, Callable[[int, int, int], float]] = {
            "memoryless": lambda width, _, k, table=table: float(table.loc[width].iloc[k])  # type: ignore[misc]
        }
        law = _remaining_law(mine, starts, ends, steps)
        if law is not None:
            betas.append(law[1])
            deltas.append(law[2])
            predictors["remaining"] = lambda width, t, _, law=law: _law(law, width, (steps - t) / (steps / 2))  # type: ignore[misc]
        D = mine["D"].iloc[0]
        if training is not None and not pd.isna(D):
            predictors["training"] = lambda width, _, __, ratio=D / N: _law(training, width, ratio)  # type: ignore[misc]
        theirs = scheduled[scheduled["run"] == run].pivot_table(index="name", columns="step", values="value")
        for reading, predict in predictors.items():
            squares, predicted_sum, measured_sum = [], 0.0, 0.0
            for name, measured in theirs.iterrows():
                if not set(widths[str(name)]) <= set(table.index):
                    continue
                predicted = np.array(
                    [
                        np.mean([predict(int(widths[str(name)][t]), t, k) for t in range(a, b)])
                        for k, (a, b) in enumerate(zip(starts, ends, strict=True))
                    ]
                )
                squares += list((predicted - measured.to_numpy()) ** 2)
                predicted_sum += float(predicted.sum())
                measured_sum += float(measured.sum())
                seen = curves.setdefault(str(name), {"measured": []})
                seen.setdefault(reading, []).append(predicted)
                if reading == "memoryless":
                    seen["measured"].append(measured.to_numpy())
            scale = measured_sum / max(len(squares), 1)
            if squares and scale > 0:
                readings[reading].append(
                    {
                        "run": run,
                        "error": float(np.sqrt(np.mean(squares)) / scale),
                        "ratio": predicted_sum / measured_sum,
                    }
                )
    found: dict[str, Any] = {
        reading: {key: estimate(one[key] for one in each) for key in ("error", "ratio")}
        for reading, each in readings.items()
        if each
    }
    if betas:
        found["remaining"] |= {"beta": estimate(betas), "delta": estimate(deltas)}
    if training is not None:
        found.setdefault("training", {})["law"] = dict(zip(("ln_level", "beta", "delta"), training, strict=True))
    found["carried"] = {
        name: estimate(
            float(seen.mean() / alone.mean()) - 1 for seen, alone in zip(by["measured"], by["memoryless"], strict=True)
        )
        for name, by in curves.items()
    }
    found["by_step"] = {
        "first_step": starts.tolist(),
        "uniform": {
            str(width): some.groupby("step")["value"].mean().tolist() for width, some in uniform.groupby("width")
        },
        "schedules": {
            name: {kind: np.mean(each, axis=0).tolist() for kind, each in by.items()} for name, by in curves.items()
        },
    }
    return found


def _law(theta: Iterable[float], width: float, ratio: float) -> float:
    """Penalty at a width; `ratio` is D_t / N in the unit that the level was fitted in. 16 bits lose nothing."""
    level, beta, delta = theta
    return float(np.exp(level) * ratio**beta * ((FULL - width) / GAP) ** delta) if width < FULL else 0.0


def _remaining_law(mine: pd.DataFrame, starts: Array, ends: Array, steps: int) -> tuple[float, ...] | None:
    """(level, beta, delta) of one model: D_t = T - t in units of T / 2, averaged over the steps of each row."""
    place = np.searchsorted(starts, mine["step"])
    remaining = np.arange(steps, 0, -1) / (steps / 2)

    def predict(gap: Array, level: float, beta: float, delta: float) -> Array:
        by_place = np.array([np.mean(remaining[a:b] ** beta) for a, b in zip(starts, ends, strict=True)])
        return np.asarray(np.exp(level) * by_place[place] * gap**delta)

    return _fitted(predict, mine)


def _training_law(rows: pd.DataFrame) -> tuple[float, ...] | None:
    """(level, beta, delta) over the models: D_t = D, the tokens of training; None where fewer than two are known."""
    some = rows[(rows["part"] == "penalty") & (rows["at"] == "") & rows["name"].str.fullmatch(r"uniform:\d+")]
    some = some.assign(width=some["name"].str.removeprefix("uniform:").astype(int)).dropna(subset=["D"])
    ratio = (some["D"] / some["N"]).to_numpy(dtype=float)
    if len(np.unique(ratio)) < 2:
        return None
    return _fitted(lambda gap, level, beta, delta: np.exp(level) * ratio**beta * gap**delta, some)


def _fitted(predict: Callable[..., Array], some: pd.DataFrame) -> tuple[float, ...] | None:
    """scipy's curve_fit of a penalty by gap, weighted by its standard errors; None where it does not converge."""
    gap = (FULL - some["width"].to_numpy(dtype=float)) / GAP
    penalty, se = some["value"].to_numpy(dtype=float), some["se"].to_numpy(dtype=float)
    start = (float(np.log(max(np.median(penalty), 1e-6))), 0.0, 8.0)
    sigma = np.maximum(se, 1e-3 * np.abs(penalty).max())
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", OptimizeWarning)
            theta, _ = curve_fit(predict, gap, penalty, p0=start, sigma=sigma, maxfev=5000)
    except RuntimeError:
        return None
    return tuple(float(value) for value in theta) if np.isfinite(theta).all() else None
