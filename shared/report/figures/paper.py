"""The figures that papers with a law of delta(N, D, bits) share; each paper's `figures.py` says which it wants."""

from collections.abc import Sequence
from dataclasses import dataclass

import pandas as pd

from shared.report.figures.deltas import delta_figure
from shared.report.figures.forest import Mark, Row, forest_figure
from shared.report.figures.gallery import Drawing
from shared.report.figures.slopes import local_slopes, slope_figure
from shared.report.results import PaperFit

PHASES = {
    "cooled": "cooled checkpoints (learning rate brought to zero over the last fifth of the steps)",
    "trunk": "trunk checkpoints (learning rate still at its peak)",
}


@dataclass(frozen=True)
class Material:
    """What a paper's figures are drawn from: its fit, and the measured points of each phase, per channel."""

    fit: PaperFit
    points: dict[str, pd.DataFrame]  # phase -> points.points


def delta_drawing(material: Material, phase: str, law: str) -> Drawing:
    """Delta against D of one phase; `law` is the formula, as text."""
    points, part = material.points[phase], material.fit.part(phase)
    unseen = int((points["low"] <= 0).sum())
    hidden = int((points["high"] <= 0).sum())
    caption = (
        f"Delta against training tokens D, {PHASES[phase]}, weights rounded to nearest per channel: the mean over "
        "seeds with its 95 % interval (validation sequences and seeds). "
    )
    if part:
        caption += f"Lines and bands: {law}, fitted to the filled points. "
    else:
        caption += "No law is fitted to them yet. "
    caption += (
        f"Of {len(points)} points, {unseen} are not distinct from zero: a hollow triangle stands at the upper end of "
        "the interval"
    )
    caption += f" (not drawn, their whole interval is negative: {hidden})." if hidden else "."
    return Drawing(
        name=f"delta_{phase}",
        caption=caption,
        alt=f"Delta against training tokens on logarithmic axes, {phase} checkpoints, one panel for each bit width, "
        "one colour and marker for each model size.",
        figure=delta_figure(points, part),
    )


def slope_drawing(material: Material, phase: str, exponent: str) -> Drawing:
    """Local elasticities of one phase; `exponent` names the law's parameter that they estimate."""
    part = material.fit.part(phase)
    slopes = local_slopes(part)
    crossing = int(((slopes["low"] <= 0) & (slopes["high"] >= 0)).sum())
    published = material.fit.published["elasticities"].get("D")
    caption = (
        f"Measured d ln delta / d ln D between neighbouring horizons, without any law, against D/N; {PHASES[phase]}. "
        f"If the law holds, all points scatter around {exponent}: the line with its 95 % band is our fit, the dashes "
        f"are the published value. {crossing} of {len(slopes)} intervals hold zero; the longest are cut by the frame."
    )
    return Drawing(
        name=f"elasticity_{phase}",
        caption=caption,
        alt=f"Local elasticity of delta in D against tokens per parameter, {phase} checkpoints, one panel for each bit "
        "width, with the fitted and the published exponent as horizontal lines.",
        figure=slope_figure(part, published["value"] if published else None),
    )


def constants_drawing(material: Material, panels: Sequence[tuple[str, str]]) -> Drawing:
    """Published and fitted constants; `panels` are (parameter, title)."""
    published = {
        name: Mark(value=estimate["value"], low=estimate.get("low"), high=estimate.get("high"))
        for name, estimate in material.fit.published["parameters"].items()
    }
    rows = [Row("published", "published", published)]
    for part in material.fit.parts:
        marks = {
            name: Mark(e["value"], e["low"], e["high"], e.get("loo_low"), e.get("loo_high"))
            for name, e in part.parameters.items()
        }
        rows.append(Row(part.name, part.phase, marks))
    return Drawing(
        name="constants",
        caption="Constants of the law, published (diamond and dashes) and fitted to our runs: 95 % bootstrap interval "
        "(thin) and the range when each size is left out in turn (broad, pale). Panels have scales of their own; "
        "leading constants trade off against exponents and mean little alone.",
        alt="Published and fitted constants side by side, one panel for each constant, one row for each fit.",
        figure=forest_figure(panels, rows),
    )
