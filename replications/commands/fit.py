"""`bitlaw fit` and `bitlaw predict`: any law on anybody's runs, and what it expects of another one."""

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from replications.commands.laws import (
    ALL,
    Boot,
    Json,
    LawNames,
    Map,
    RecipeName,
    Reference,
    Seed,
    TableFile,
    Where,
    choose,
    console,
    print_json,
    read,
    scatter,
)

if TYPE_CHECKING:
    import pandas as pd
    from matplotlib.figure import Figure

    from shared.laws.law import Law
    from shared.laws.result import Fit


def fit(
    table: TableFile,
    law: LawNames,
    columns: Map = [],  # noqa: B006
    where: Where = "",
    recipe: RecipeName = "",
    fix: Annotated[list[str], typer.Option("--fix", metavar="NAME=VALUE", help="hold a constant; repeatable")] = [],  # noqa: B006
    reference: Reference = "",
    starts: Annotated[int, typer.Option("--starts", min=1, max=100_000, help="a recipe with a grid has its own")] = 64,
    resamples: Boot = 1000,
    seed: Seed = 0,
    out: Annotated[Path | None, typer.Option("--out", help="folder for fit.json, draws.csv and figures")] = None,
    json: Json = False,
) -> None:
    """Fit laws to a table of runs: constants with 95 % intervals, status, diagnostics."""
    from shared.errors import BitlawError
    from shared.files import sha256_file
    from shared.laws.fit import fit as solve

    if out is not None and out.exists() and not out.is_dir():
        raise BitlawError(f"--out {out}: is a file; name a folder")
    found = read(table, columns, where)
    held = _held(fix)
    results: list[Fit] = []
    for one, rows in choose(law, found, reference, table):
        try:
            result = solve(
                one, rows, recipe=recipe or None, noise=scatter(one, rows, recipe, str(table)), n_starts=starts,
                n_boot=resamples, seed=seed, name=str(table), fixed=held, profile=True,
            )  # fmt: skip
        except BitlawError as error:
            if ALL not in law:
                raise
            typer.echo(f"{one.name}: not fitted ({error})", err=True)
            continue
        results.append(result)
        if not json:
            _show(result)
        if out is not None:
            folder = out / one.name if len(law) > 1 or ALL in law else out
            about = {"table": str(table), "sha256": sha256_file(table), "map": columns, "where": where}
            _save(folder, one, result, rows, about)
            if not json:
                print(f"{folder}: fit.json, draws.csv, fit.svg, residuals.svg")
    if not results:
        raise BitlawError(f"{table}: no law could be fitted; the lines above say why")
    if json:
        shown = [_plain(result) for result in results]
        print_json(shown if ALL in law or len(law) > 1 else shown[0])


def predict(
    context: typer.Context,
    file: Annotated[Path, typer.Argument(metavar="FIT.json", help="what `bitlaw fit --out` wrote, or a fits.json")],
    part: Annotated[str, typer.Option("--part", help="which fit of a fits.json, such as cooled/channel")] = "",
    json: Json = False,
) -> None:
    """What a fitted law expects at the inputs given as options: bitlaw predict FIT.json --N 1e9 --D 2e10 --bits 4."""
    import numpy as np

    from replications.laws import saved
    from shared.laws.fit import outside, predicted

    law, result = saved(file, part)
    at = _inputs(context.args, law)
    value, low, high = (float(v[0]) for v in predicted(law, result, {k: np.array([v]) for k, v in at.items()}))
    away = outside(result, at)
    given = {name: law.groups[int(v)] if name == law.grouped else v for name, v in at.items()}
    warning = "; ".join(_away(name, at[name], factor) for name, factor in away.items())
    if result.status != "CONVERGED":
        warning = "; ".join(part for part in (warning, f"the fit is {result.status}") if part)
    if json:
        inside = not away
        print_json(
            {"law": law.name, "target": law.target, "at": given, "value": value, "low": low, "high": high,
             "inside": inside, "outside": away, "warning": warning or None}
        )  # fmt: skip
        return
    ends = f"[{low:.5g}, {high:.5g}]" if low <= high else "without an interval: no resample converged"
    print(f"{law.target} {value:.5g} {ends} nats per token ({law.name}, 95 %)")
    if warning:
        print(f"warning: {warning}")


def _held(fix: list[str]) -> dict[str, float]:
    from shared.errors import BitlawError

    held = {}
    for one in fix:
        name, _, text = one.partition("=")
        try:
            held[name.strip()] = float(text)
        except ValueError as error:
            raise BitlawError(f"--fix {one}: write NAME=NUMBER, such as --fix E=1.7") from error
    return held


def _inputs(words: list[str], law: "Law") -> dict[str, float]:
    """`--N 1e9 --D=2e10 ...` for every input of the law."""
    import math

    from shared.errors import BitlawError, nearest
    from shared.laws.tables import alike

    given: dict[str, str] = {}
    rest = [part for word in words for part in (word.split("=", 1) if word.startswith("--") else [word])]
    while rest:
        name = rest.pop(0)
        if not name.startswith("--") or not rest:
            raise BitlawError(
                f"'{name}' has no value: write --{law.inputs[0]} VALUE for each of {', '.join(law.inputs)}"
            )
        given[name[2:]] = rest.pop(0)
    for name in given:
        if name not in law.inputs:
            hint = alike(name, list(law.inputs)) or ":"
            raise BitlawError(f"{law.name} has no input '{name}'{hint} its inputs are {', '.join(law.inputs)}")
    at = {}
    for name in law.inputs:
        if name not in given:
            raise BitlawError(f"{law.name} needs --{name}")
        if name == law.grouped:
            if given[name] not in law.groups:
                hint = nearest(given[name], list(law.groups)) or f": use one of {', '.join(law.groups)}"
                raise BitlawError(f"the fit has no group '{given[name]}'{hint}")
            at[name] = float(law.groups.index(given[name]))
            continue
        try:
            at[name] = float(given[name])
        except ValueError as error:
            raise BitlawError(f"--{name} {given[name]}: is not a number") from error
        if not math.isfinite(at[name]):
            raise BitlawError(f"--{name} {given[name]}: must be finite")
        if not (at[name] >= 0 if name in law.at_least_zero else at[name] > 0):
            raise BitlawError(f"--{name} {given[name]}: must be above zero")
    return at


def _away(name: str, value: float, factor: float) -> str:
    if factor > 1:
        return f"{name} = {value:.4g} is {factor:.3g} times the largest fitted value"
    return f"{name} = {value:.4g} is {1 / factor if factor else float('inf'):.3g} times below the smallest fitted value"


def _plain(result: "Fit") -> dict[str, Any]:
    """What is printed: everything but residuals."""
    shown = result.summary()
    del shown["residuals"]
    return shown


def _show(result: "Fit") -> None:
    from rich.table import Table

    print(
        f"{result.law}: {result.status}, {result.rows} rows by {result.recipe}, objective {result.objective:.8g}, "
        f"rms {result.rms:.3g}, {result.share_of_starts_within_1pct:.0%} of {len(result.start_costs)} starts within "
        f"1 %, condition number {result.condition_number:.2g}"
    )
    table = Table("constant", box=None, padding=(0, 2, 0, 0))
    for heading in ("value", "95 % (resamples)", "95 % (profile)", "one size left out"):
        table.add_column(heading, justify="right", no_wrap=True)
    profiled = any(e.profile_low is not None or e.profile_high is not None for e in result.parameters.values())
    for name, e in result.parameters.items():
        held = name in result.fixed
        table.add_row(
            name + (" (held)" if held else ""),
            f"{e.value:.5g}",
            f"{e.low:.4g} to {e.high:.4g}" if e.low <= e.high else "none converged",
            _ends(e.profile_low, e.profile_high) if not profiled or held else _open(e.profile_low, e.profile_high),
            _ends(e.loo_low, e.loo_high),
        )
    console().print(table)
    print(f"resampled: {result.resampling}")
    for reason in result.reasons:
        print(f"note: {reason}")
    print()


def _ends(low: float | None, high: float | None) -> str:
    return "" if low is None and high is None else _open(low, high)


def _open(low: float | None, high: float | None) -> str:
    return f"{'open' if low is None else f'{low:.4g}'} to {'open' if high is None else f'{high:.4g}'}"


def _save(folder: Path, law: "Law", result: "Fit", rows: "pd.DataFrame", about: dict[str, Any]) -> None:
    import pandas as pd

    from shared.files import replacing, write_json
    from shared.report.figures import style

    write_json(folder / "fit.json", {**result.to_json(), "input": about})
    with replacing(folder / "draws.csv") as temporary:
        draws = pd.DataFrame(law.to_raw(result.draws), columns=list(law.parameters))
        draws.to_csv(temporary, index=False, float_format="%.6g")
    with style.theme():
        style.save(_fit_figure(law, result), folder, "fit")
        style.save(_residual_figure(law, result), folder, "residuals")


def _fit_figure(law: "Law", result: "Fit") -> "Figure":
    """Measured against predicted."""
    from matplotlib.figure import Figure

    from shared.report.figures.style import FAINT, tidy

    figure = Figure(figsize=(4.4, 4.0), layout="constrained")
    axes = figure.subplots()
    predicted = [r.predicted for r in result.residuals]
    measured = [r.target for r in result.residuals]
    axes.plot(predicted, measured, ls="none", marker="o", ms=3.2, alpha=0.7)
    ends = [min(*predicted, *measured), max(*predicted, *measured)]
    axes.plot(ends, ends, color=FAINT, lw=1, zorder=1)
    if ends[0] > 0:
        axes.set(xscale="log", yscale="log")
    axes.set(xlabel=f"predicted {law.target} (nats per token)", ylabel=f"measured {law.target} (nats per token)")
    axes.set_title(f"{law.name}, {result.rows} rows", loc="left")
    tidy(axes)
    return figure


def _residual_figure(law: "Law", result: "Fit") -> "Figure":
    """Residuals over their standard deviation against each input that varies."""
    from matplotlib.figure import Figure

    from shared.report.figures.style import FAINT, tidy

    inputs = [name for name, (low, high) in result.domain.items() if high > low]
    figure = Figure(figsize=(3.0 * len(inputs) + 0.6, 3.2), layout="constrained")
    size = [(r.target - r.predicted) / r.sigma if r.sigma else 0.0 for r in result.residuals]
    for axes, name in zip(figure.subplots(1, len(inputs), squeeze=False, sharey=True)[0], inputs, strict=True):
        axes.plot([r.inputs[name] for r in result.residuals], size, ls="none", marker="o", ms=3.2, alpha=0.7)
        axes.axhline(0, color=FAINT, lw=1, zorder=1)
        low, high = result.domain[name]
        if low > 0 and high / low > 20:
            axes.set_xscale("log")
        if name == law.grouped:
            axes.set_xticks(range(len(law.groups)), law.groups, rotation=90)
        axes.set_xlabel(name)
        tidy(axes)
    figure.axes[0].set_ylabel("(measured - predicted) / typical size")
    return figure
