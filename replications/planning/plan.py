"""`plan(Budget(...)) -> Plan`: what each law expects under a budget."""

import math
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path

import numpy as np

from replications.planning import cost, frontier
from replications.planning.budget import SMALLEST_D, SMALLEST_N, Budget, option, short
from replications.planning.fitted import fitted_views
from replications.planning.published import WITHOUT, published_views
from replications.planning.result import LawPlan, Plan
from replications.planning.search import Case
from replications.planning.spread import paragraph, spreads
from replications.planning.view import View
from shared.errors import BitlawError, nearest

ASSUMPTIONS = (
    "N counts block parameters without embeddings, as the laws do",
    "losses of different laws are of different data and tokenizers: compare choices, delta and N_eff / N, not losses",
    "published constants have no draws, so their laws have no intervals",
    "rounding costs training in 16 bits; training in few bits is counted as its paper counts it (Kumar, Sun: 6 N D P / "
    "16), else by the passes that are quantized",
)


def plan(
    budget: Budget, *, laws: Sequence[str] = (), fits: Sequence[Path] = (), reports: Path = Path("reports")
) -> Plan:
    """Each law's best point and Pareto front; `laws` are names or beginnings of names, all without.

    `fits` are files of `bitlaw fit --out`, planned with beside the published laws and ours of `reports`.
    Raises BitlawError, with the nearest possible, for a budget that nothing fits, a target that no law reaches, formats
    that no law knows, an unknown law, a file that is no fit.
    """
    found, without = fitted_views(reports, fits)
    views = _chosen([*published_views(), *found], laws)
    _check(views, budget)
    answers = tuple(frontier.answer(view, budget) for view in views)
    if not any(answer.best for answer in answers):
        _unreached(views, answers, budget)
    spread = spreads(answers, budget)
    return Plan(
        asdict(budget), frontier.axis(budget), answers, spread, paragraph(answers, spread, budget),
        {**WITHOUT, **without}, ASSUMPTIONS,
    )  # fmt: skip


def _chosen(views: list[View], names: Sequence[str]) -> list[View]:
    if not names:
        return views
    kept: dict[str, View] = {}
    for name in names:
        some = [view for view in views if view.name == name] or [v for v in views if v.name.startswith(name)]
        if not some:
            known = [view.name for view in views]
            hint = nearest(name, known) or f": the laws are {', '.join(known)}"
            raise BitlawError(f"--law '{name}' is unknown or has no constants{hint}")
        kept |= {view.name: view for view in some}
    return list(kept.values())


def _check(views: Sequence[View], budget: Budget) -> None:
    """Raises BitlawError where no law knows an allowed format, or where nothing that one knows fits the limits."""
    cases = [Case(view, setting, budget) for view in views for setting in frontier.known_settings(view, budget)[0]]
    if not cases:
        known = sorted({s.format for v in views for s in frontier.known_settings(v, Budget(tokens=1e12, N=1e9))[0]})
        raise BitlawError(
            f"no law knows {', '.join(budget.formats)}: the nearest possible is one of {', '.join(known)}"
        )
    if any(case.sizes()[1] >= case.sizes()[0] for case in cases):
        return
    N = np.array([budget.N or SMALLEST_N])
    D = np.array([budget.D or SMALLEST_D])
    least = {
        "memory": (lambda case: case.memory(N), " GiB"),
        "train_flops": (lambda case: case.train_flops(N, D), ""),
        "inference_flops": (lambda case: N * cost.forward(budget, case.streams), ""),
        "inference_bits": (lambda case: cost.moved(budget, case.setting, case.streams, N), ""),
    }
    for name, (needs, unit) in least.items():
        limit = getattr(budget, name)
        if limit is None:
            continue
        cheapest = min(cases, key=lambda case: float(needs(case)[0]))
        lowest = float(needs(cheapest)[0])
        if lowest > limit:
            what = f"{short(N[0])} parameters" + (f" on {short(D[0])} tokens" if name == "train_flops" else "")
            raise BitlawError(
                f"--{option(name)} {limit:g} is under what {what} need in any allowed format: the nearest possible is "
                f"{_up(lowest):.4g}{unit} ({cheapest.setting}, {cheapest.view.name})"
            )
    raise BitlawError("each limit can be kept in some format but not all in one: allow more --formats, or raise one")


def _up(value: float) -> float:
    """To four digits, and no lower: what is said to be possible must be."""
    step = 10.0 ** (math.floor(math.log10(value)) - 3)
    return math.ceil(value / step) * step


def _unreached(views: Sequence[View], answers: Sequence[LawPlan], budget: Budget) -> None:
    """Raises BitlawError: no law answers."""
    if budget.target_loss is None:
        advice = "lower the limits" if any(answer.past for answer in answers) else "allow wider --formats"
        raise BitlawError(f"no law answers: {answers[0].why}; {advice}")
    said = frontier.nearest_target(views, answers, budget)
    limits = "with any N and D" if not budget.trained else "under this budget"
    raise BitlawError(
        f"no law reaches a loss of {budget.target_loss:g} {limits}: the nearest possible --target-loss is {said}"
    )
