"""What the rows of `bitlaw predictor` say: the penalty law of each model, the form of its bits, effective parameters.

Rows come from `bitlaw predictor` (one for each model and width) and nothing here opens a model. Intervals of one model
are those of its fit; across models they are Student's, over the models' differences.
"""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from replications.precision_predictor.effective import CleanLaw, effective_parameters
from replications.precision_predictor.forms import FREE, Form, as_the_page, choose, fit_form, lacking, widths_of
from replications.precision_predictor.law import B_TRAIN
from shared.errors import BitlawError
from shared.laws.means import half_width

COLUMNS = (
    "model", "N", "D", "parameters", "text", "finetuned_tokens", "epochs", "learning_rate", "optimizer", "context",
    "windows", "method", "group_size", "bits", "bits_per_weight", "relative_mse", "base_loss", "base_loss_se", "loss",
    "loss_se", "delta", "delta_se",
)  # fmt: skip
KEY = ("model", "finetuned_tokens", "method", "group_size", "bits")
LEAST_MODELS = 3
CURVE = 60
Row = Mapping[str, Any]


def student_interval(values: Sequence[float]) -> dict[str, Any]:
    """The mean with its 95 % interval, infinitely wide under two values."""
    n = len(values)
    mean = float(np.mean(values)) if n else float("nan")
    half = half_width(np.array(values, dtype=float)) if n > 1 else float("inf")
    return {"value": mean, "low": mean - half, "high": mean + half, "n": n}


def summarise(rows: Sequence[Row], clean: CleanLaw | None = None, b_train: float = B_TRAIN) -> dict[str, Any]:
    """{"b_train", "models": [...], "across": ...}, plain values; `across` is None under three models with a law.

    N_eff needs a clean law, and N and D in the rows; a model without them says so. A model with too few widths clear of
    zero has {"missing": reason} in place of its laws and is not in `across`. Raises BitlawError without rows and for a
    width that a model has twice.
    """
    if not rows:
        raise BitlawError("no row of the predictor is there: run `bitlaw predictor` first")
    grouped: dict[tuple[str, ...], list[Row]] = {}
    for row in rows:
        grouped.setdefault(tuple(str(row[name]) for name in KEY[:-1]), []).append(row)
    models, fitted = [], []
    for key, some in sorted(grouped.items()):
        found, forms = _model(some, clean, b_train, key[0])
        models.append(found)
        if forms:
            fitted.append(forms)
    across = _across([model for model in models if "missing" not in model], fitted)
    return {"b_train": b_train, "models": models, "across": across}


def _model(
    rows: Sequence[Row], clean: CleanLaw | None, b_train: float, name: str
) -> tuple[dict[str, Any], dict[str, Form]]:
    first = rows[0]
    table = widths_of(rows, name)
    base = float(first["base_loss"])
    N, D = (float(first[key]) if first[key] is not None else None for key in ("N", "D"))
    about = {
        **{key: first[key] for key in ("model", "text", "finetuned_tokens", "method", "group_size", "windows")},
        "N": N,
        "D": D,
        "base_loss": base,
        "base_loss_se": float(first["base_loss_se"]),
        "measured": table[["bits", "loss", "delta", "delta_se", "clear"]].to_dict("records"),
    }
    if reason := lacking(table):
        return {**about, "missing": reason, "n_eff": {"missing": "without a law of the penalty there is no eta'"}}, {}
    forms = {form: fit_form(form, table, b_train) for form in FREE}
    least = min((form.aicc for form in forms.values()), default=float("nan"))
    bits = np.linspace(table["bits"].min(), table["bits"].max(), CURVE)
    gap = forms["gap"].constants
    sizes: dict[str, Any] = {}
    if clean is None or N is None or D is None:
        needed = "a clean law (--base-law)" if clean is None else "the tokens it was trained on (--D)"
        sizes = {"missing": f"the effective parameters need {needed}"}
    else:
        eta, power = (gap[key]["value"] for key in ("eta", "delta"))
        assert eta is not None
        assert power is not None
        sizes = effective_parameters(
            clean, N, D, list(table["bits"]), list(table["delta"]), float(eta), float(power), b_train
        )
    return {
        **about,
        "page": as_the_page(table, base, b_train),
        "forms": {
            key: {
                "constants": form.constants,
                "aicc": form.aicc - least,
                "rms": form.rms,
                "unseen_error": form.unseen_error,
                "unseen": dict(zip((f"{b:g}" for b in form.bits), form.unseen.tolist(), strict=True)),
                "curve": {"bits": bits.tolist(), "delta": form.at(bits).tolist()},
            }
            for key, form in forms.items()
        },
        "choice": choose(list(forms.values())),
        "n_eff": sizes,
    }, forms


def _across(models: list[dict[str, Any]], fitted: list[dict[str, Form]]) -> dict[str, Any] | None:
    """Over models: by how much the gap leads the best other form (AICc above zero: the gap is better; error of widths
    left out below zero: better), and the spread of the constants."""
    if len(fitted) < LEAST_MODELS:
        return None
    others = [name for name in FREE if name != "gap"]
    lead = [min(forms[name].aicc for name in others) - forms["gap"].aicc for forms in fitted]
    error = [forms["gap"].unseen_error - min(forms[name].unseen_error for name in others) for forms in fitted]
    chosen = [model["choice"]["best"] if model["choice"]["decided"] else "undecided" for model in models]
    return {
        "models": len(fitted),
        "gap_lead_aicc": student_interval([one for one in lead if np.isfinite(one)]),
        "gap_excess_unseen_error": student_interval(error),
        "chosen": {name: chosen.count(name) for name in sorted(set(chosen))},
        "delta": student_interval([_value(forms["gap"], "delta") for forms in fitted]),
        "ln_eta_at_4": student_interval([float(np.log(forms["gap"].at(np.array([4.0]))[0])) for forms in fitted]),
        "page_delta": student_interval([m["page"]["delta"]["value"] for m in models if "delta" in m["page"]]),
    }


def _value(form: Form, name: str) -> float:
    value = form.constants[name]["value"]
    assert value is not None
    return value


def lines(summary: Mapping[str, Any]) -> list[str]:
    """For the terminal."""
    said = []
    for model in summary["models"]:
        said.append(
            f"{model['model']}, {model['method']}: L_base {model['base_loss']:.4f} +- {model['base_loss_se']:.4f}"
        )
        if "missing" in model:
            said.append(f"  no law: {model['missing']}")
            continue
        page, gap = model["page"], model["forms"]["gap"]["constants"]
        if page["status"] == "CONVERGED":
            said.append(f"  the page's curve_fit: eta {_shown(page['eta'])}, delta {_shown(page['delta'])}")
        else:
            said.append(f"  the page's curve_fit: {page['status']}, {page.get('reason', '')}")
        said.append(f"  of the logarithm:     eta {_shown(gap['eta'])}, delta {_shown(gap['delta'])}")
        for name, form in model["forms"].items():
            constants = ", ".join(f"{key} {_shown(value)}" for key, value in form["constants"].items())
            said.append(
                f"  {name:<11} off by {form['rms']:.2f} (rms of ln), {form['unseen_error']:.2f} unseen; {constants}"
            )
        said.append(f"  form: {model['choice']['statement']}")
        sizes = model["n_eff"]
        if "missing" in sizes:
            said.append(f"  {sizes['missing']}")
            continue
        each = ", ".join(
            f"{one['bits']:g} bits {one['share']:.3f}{' (extrapolated)' if one['extrapolated'] else ''}"
            for one in sizes["sizes"]
        )
        said.append(f"  N_eff / N by {sizes['source']}: {each}")
        said.append(
            f"  eta' {_shown(sizes['eta_prime'])} (first order {_shown(sizes['first_order'])}); the page's line misses "
            f"N_eff by {sizes['residual']:.1%} of N"
            + (
                f", below zero at {', '.join(f'{b:g}' for b in sizes['negative_at'])} bits"
                if sizes["negative_at"]
                else ""
            )
        )
    across = summary["across"]
    if across:
        said.append(
            f"over {across['models']} models: AICc lead of the gap {_shown(across['gap_lead_aicc'])} "
            f"(n = {across['gap_lead_aicc']['n']} with an AICc); chosen: {across['chosen']}"
        )
    return said


def _shown(item: Mapping[str, Any]) -> str:
    ends = ", ".join("open" if item[end] is None else f"{item[end]:.3g}" for end in ("low", "high"))
    return f"{item['value']:.4g} [{ends}]"
