"""Design of the low-precision runs: which interval to expect of each constant of the papers' laws.

Unlike deltas after training, which share their checkpoint, a low-precision run takes a path of its own: its loss is off
by what another seed would change, even beside a base run of the same seed (docs/log.md, "Orders"). So a row's noise is
the scatter of base losses over seeds at its horizon. The truth is the law with its published exponents, its other
constants fitted to the runs that are there; intervals follow from Fisher's information (shared/laws/information.py).
"""

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from replications.compressed import VIEWS, View, compression_of, rows_of
from replications.papers import PAPERS
from replications.pool import Expected
from replications.trained import MIN_STEPS, TOKENS_PER_STEP, runs_of
from shared.errors import BitlawError
from shared.laws.chinchilla import LAW as BASE_LAW
from shared.laws.fit import fit
from shared.laws.information import half_widths
from shared.laws.law import Array, Law
from shared.sweep.spec import COMPRESSION

# Constants of the base: told by unquantized runs, which no design of compressed ones changes.
OF_BASE = ("A", "alpha", "B", "beta", "E", "n", "d", "epsilon")
# Published constants that a truth keeps; all others of a law are fitted to what is measured.
KEPT = {
    "kumar_precision": ("gamma_w", "gamma_a", "gamma_kv", "n_w", "n_a", "n_kv"),
    "qat_scaling": ("gamma_N", "gamma_D", "gamma_G"),
    "capybara_fp": ("delta", "nu"),
    "compression_laws": (),
}


@dataclass(frozen=True)
class Expected95:
    """Half of the expected 95 % interval of a constant, and by what factor it grows without each part of the runs."""

    paper: str
    view: str
    constant: str
    true: float
    half_width: float
    without: dict[str, float]


@dataclass(frozen=True)
class CompressedDesign:
    """`noise`: standard deviation over seeds in nats per token at each horizon; `parts`: runs and hours of each."""

    runs: int
    hours: float
    noise: dict[int, float]
    parts: dict[str, tuple[int, float]]
    expected: tuple[Expected95, ...]
    notes: tuple[str, ...]


def design_compressed(
    want: Expected, hours: Callable[[list[Any]], float], measured: pd.DataFrame
) -> CompressedDesign | None:
    """What the compressed runs of `want` would tell; None when it has none. `measured` are the rows of runs.csv.

    Raises BitlawError while no base horizon has two seeds.
    """
    runs = [run for run in want.runs if run.spec.cooled and run.spec.tokens >= MIN_STEPS * run.spec.batch_tokens]
    compressed = [run for run in runs if run.spec != run.spec.base]
    if not compressed:
        return None
    noise = training_noise(measured)
    table = planned(runs)
    parts = {name: [run for run in compressed if name in parts_of(run)] for run in compressed for name in parts_of(run)}
    expected: list[Expected95] = []
    notes: list[str] = []
    for view in VIEWS:
        found = rows_of(view, table)
        if found is None:
            continue
        law, rows = found
        try:
            theta, said = truth(view, law, rows, measured)
        except BitlawError as error:
            notes.append(f"{view.paper}, {view.name}: no truth to simulate ({error})")
            continue
        if said:
            notes.append(f"{view.paper}, {view.name}: {said}")
        expected += expect(view, law, theta, rows, noise, list(parts))
    notes.append(
        "noise: the scatter of base losses over seeds at each horizon, at the nearest one where none has seeds"
    )
    return CompressedDesign(
        len(compressed),
        hours(compressed) / 3600,
        noise,
        {name: (len(some), hours(some) / 3600) for name, some in parts.items()},
        tuple(expected),
        tuple(notes),
    )


def read_runs(reports: Path) -> pd.DataFrame | None:
    """The runs so far; None while there is no table."""
    path = reports / "runs.csv"
    return runs_of(path) if path.exists() else None


def parts_of(run: Any) -> tuple[str, ...]:
    """The parts that a run belongs to: its horizon, its size, and its seed beyond the first."""
    spec = run.spec
    found = (f"D = {spec.tokens >> 20}M", f"size {run.size}")
    return (*found, "seeds but the first") if spec.seed != 1 else found


def planned(runs: list[Any]) -> pd.DataFrame:
    """Runs as rows with the columns that views read, and the parts that they belong to."""
    return pd.DataFrame(
        [
            {name: getattr(run.spec, name) for name in COMPRESSION}
            | {"n_blocks": run.spec.shape.n_blocks, "tokens": run.spec.tokens, "seed": run.spec.seed}
            | {"d_model": run.spec.d_model, "d_ff": run.spec.d_ff, "size": run.size}
            | {"parts": parts_of(run), "compressed": run.spec != run.spec.base}
            for run in runs
        ]
    )


def training_noise(measured: pd.DataFrame) -> dict[int, float]:
    """Standard deviation over seeds of cooled base losses by horizon, pooled over sizes. BitlawError without any."""
    base = measured[(measured["base_run_id"].fillna("") == "") & measured["cooled"] & ~measured["diverged"]]
    found: dict[int, tuple[float, int]] = {}
    for (tokens, _), some in base.groupby(["tokens", "n_blocks"]):
        if len(some) > 1:
            squares, dof = found.get(int(tokens), (0.0, 0))
            spread = some["loss"].astype(float)
            found[int(tokens)] = squares + float(((spread - spread.mean()) ** 2).sum()), dof + len(some) - 1
    if not found:
        raise BitlawError("no base run has two seeds yet, so that the noise of a low-precision run is not known")
    return {tokens: float(np.sqrt(squares / dof)) for tokens, (squares, dof) in sorted(found.items())}


def noise_of(D: Array, noise: dict[int, float]) -> Array:
    """(n,) standard deviation at the nearest horizon, by ratio."""
    known = np.array(list(noise))
    nearest = np.abs(np.log(D[:, None] / known)).argmin(axis=1)
    return np.array(list(noise.values()))[nearest]


def truth(view: View, law: Law, rows: pd.DataFrame, measured: pd.DataFrame) -> tuple[Array, str]:
    """theta (P,): published exponents, the rest fitted to measured rows of the view's groups; and what to know of it.

    Where nothing is measured, or the fit makes the penalty nothing (its level on a bound, as when the unquantized law
    misses the losses by more than that), levels are the published ones. Raises BitlawError."""
    of_paper = PAPERS[view.paper].published()
    published = of_paper.values() | {name: c.value for name, c in of_paper.laws.get(view.name, {}).items()}
    cooled = measured[measured["cooled"] & ~measured["diverged"] & (measured["tokens"] >= MIN_STEPS * TOKENS_PER_STEP)]
    known = rows_of(view, cooled)
    held = {name: published[name] for name in KEPT[view.paper] if name in law.parameters}
    hits: set[str] = set()
    if known is not None and not law.grouped:
        own_law, table = known
        found = fit(own_law, table, fixed=held, n_boot=20, n_starts=16, name=f"runs.csv ({view.name})")
        hits = set(found.bound_hits) - set(OF_BASE)
        if not hits:
            return found.theta, ""
    said = f"levels as published: the runs so far put {', '.join(sorted(hits))} on a bound" if hits else ""
    # Multipliers are of the order of QuEST's.
    plain = cooled[cooled.apply(lambda row: not compression_of(row.to_dict()), axis=1)]
    table = plain.assign(N=plain["n_blocks"].astype(float), D=plain["tokens"].astype(float))
    base = {name: e.value for name, e in fit(BASE_LAW, table, n_boot=20, n_starts=16).parameters.items()}
    constants = {name: 0.7 if name.startswith("eff_") else published.get(name, np.nan) for name in law.parameters}
    constants |= {name: base[name] for name in base if name in constants}
    constants |= {
        own: base[name] for own, name in SUN_NAMES.items() if own in constants and view.paper == "capybara_fp"
    }
    return law.internal(constants), said


SUN_NAMES = {"n": "A", "alpha": "alpha", "d": "B", "beta": "beta", "epsilon": "E"}


def expect(
    view: View, law: Law, theta: Array, rows: pd.DataFrame, noise: dict[int, float], parts: list[str]
) -> list[Expected95]:
    """Intervals with all rows, and without the compressed ones of each part."""
    columns = {name: rows[name].to_numpy(float) for name in law.inputs}
    sd = noise_of(columns["D"], noise)
    whole = half_widths(law, theta, columns, sd)
    raw = law.raw(theta)
    less = {}
    for part in parts:
        stays = ~(rows["compressed"] & rows["parts"].map(lambda some, part=part: part in some)).to_numpy()
        less[part] = half_widths(law, theta, {name: column[stays] for name, column in columns.items()}, sd[stays])
    return [
        Expected95(
            view.paper,
            view.name,
            name,
            raw[name],
            width,
            {part: float(some[name] / width) for part, some in less.items()},
        )
        for name, width in whole.items()
        if name not in OF_BASE and np.isfinite(width)
    ]
