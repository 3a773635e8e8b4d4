"""How far laws disagree: ranges of what they choose and expect, and one paragraph that says it."""

import math
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence

from replications.planning.budget import Budget, short
from replications.planning.result import LawPlan, Point, Spread
from replications.planning.setting import element_bits

CHOSEN = ("N", "bits per weight")
DELTA = "delta, "
TOO_FAR = 10.0  # times beyond the data in N or D, from which the paragraph warns


def spreads(plans: Sequence[LawPlan], budget: Budget) -> tuple[Spread, ...]:
    """Ranges over laws of one kind: rounding after training and training are different questions, and our small runs
    are no second opinion on published constants. Quantities that one law alone knows have no range."""
    found: list[Spread] = []
    for how, ours in (("rounded", False), ("trained", False), ("rounded", True), ("trained", True)):
        some = [plan for plan in plans if plan.how == how and (plan.origin != "published") == ours and plan.best]
        among = f"{how}, {'fitted' if ours else 'published'}"
        quantities = _of_model(some) if budget.named else _of_choice(some)
        quantities |= _of_bits(some)
        found += [spread for name, values in quantities.items() if (spread := _spread(name, among, values))]
    return tuple(found)


def _of_choice(plans: Sequence[LawPlan]) -> dict[str, dict[str, float]]:
    found: dict[str, dict[str, float]] = {"N": {}, "D": {}, "bits per weight": {}, "delta": {}}
    for plan in plans:
        if plan.best is not None:
            found["N"][plan.law] = plan.best.N
            found["D"][plan.law] = plan.best.D
            found["bits per weight"][plan.law] = plan.best.bits_per_weight
            found["delta"][plan.law] = plan.best.delta.value
    return found


def _of_model(plans: Sequence[LawPlan]) -> dict[str, dict[str, float]]:
    """By format, at the coarsest allowed group: laws that see no group stand beside those that do."""
    found: dict[str, dict[str, float]] = {}
    for plan in plans:
        for name, point in _coarsest(plan.readings).items():
            found.setdefault(f"delta, {name}", {})[plan.law] = point.delta.value
            found.setdefault(f"N_eff / N, {name}", {})[plan.law] = point.N_eff_share.value
            if point.D_crit is not None:
                found.setdefault(f"D_crit, {name}", {})[plan.law] = point.D_crit.value
    return {name: values for name, values in found.items() if not name.endswith("BF16")}


def _coarsest(points: Iterable[Point]) -> Mapping[str, Point]:
    found: dict[str, Point] = {}
    for point in points:
        if point.format not in found or point.bits_per_weight < found[point.format].bits_per_weight:
            found[point.format] = point
    return found


def _of_bits(plans: Sequence[LawPlan]) -> dict[str, dict[str, float]]:
    found: dict[str, dict[str, float]] = {}
    for plan in plans:
        for best in plan.best_bits:
            found.setdefault(f"P*, {best.held} held", {})[plan.law] = best.bits.value
    return found


def _spread(name: str, among: str, values: Mapping[str, float]) -> Spread | None:
    finite = {law: value for law, value in values.items() if math.isfinite(value)}
    if len(finite) < 2:
        return None
    low, high = min(finite, key=lambda law: finite[law]), max(finite, key=lambda law: finite[law])
    return Spread(name, among, len(finite), finite[low], low, finite[high], high)


def paragraph(plans: Sequence[LawPlan], spread: Sequence[Spread], budget: Budget) -> str:
    """The disagreement in words."""
    some = [plan for plan in plans if plan.best is not None]
    if len(some) == 1:
        return f"Only {some[0].law} answers, so nothing says how far laws disagree. {_distance(some)}"
    rows = _of_one_format(spread) if budget.named else [row for row in spread if row.quantity in CHOSEN]
    said = [_past_critical(some, budget)] if budget.named else [_choice_of_formats(some)]
    return " ".join([*(sentence for sentence in said if sentence), *map(_sentence, rows), _distance(some)])


def _sentence(row: Spread) -> str:
    low, high = (_value(row.quantity, value) for value in (row.low, row.high))
    if low == high:
        return f"{row.quantity} ({row.among}): {low} by all {row.laws}."
    apart = f", {row.times:.3g} times apart" if row.times else ""
    return f"{row.quantity} ({row.among}) runs from {low} ({row.low_law}) to {high} ({row.high_law}){apart}."


def _of_one_format(spread: Sequence[Spread]) -> list[Spread]:
    """Of laws of one kind, delta in the format that most of them know, of these the one nearest to 4 bits."""
    found = []
    for among in dict.fromkeys(row.among for row in spread):
        deltas = [row for row in spread if row.among == among and row.quantity.startswith(DELTA)]
        if deltas:
            found.append(max(deltas, key=lambda r: (r.laws, -abs(element_bits(r.quantity[len(DELTA) :]) - 4))))
    return found


def _past_critical(plans: Sequence[LawPlan], budget: Budget) -> str:
    """Which laws that know INT4 say that the given tokens are too many."""
    known = [plan for plan in plans if "INT4" in _coarsest(plan.readings)]
    ends = {plan.law: _coarsest(plan.readings)["INT4"].D_crit for plan in known}
    past = {law: end.value for law, end in ends.items() if end is not None and end.value < (budget.D or 0.0)}
    if not known:
        return ""
    if not past:
        return f"None of the {len(known)} laws that know INT4 has D_crit below {short(budget.D or 0.0)} tokens."
    least = min(past, key=lambda law: past[law])
    return (
        f"Of {len(known)} laws that know INT4, {len(past)} say that {short(budget.D or 0.0)} tokens are past D_crit "
        f"there, so that fewer would leave a lower loss; the earliest D_crit is {short(past[least])} ({least})."
    )


def _value(quantity: str, value: float) -> str:
    return short(value) if quantity in ("N", "D") else f"{value:.3g}"


def _choice_of_formats(plans: Sequence[LawPlan]) -> str:
    choosing = [plan.best.format for plan in plans if plan.best is not None and plan.how != "unquantized"]
    said = ", ".join(f"{count} {name}" for name, count in Counter(choosing).most_common())
    return (
        f"Of {len(choosing)} laws of low precision that answer, by the format that each would choose: {said}."
        if choosing
        else ""
    )


def _distance(plans: Sequence[LawPlan]) -> str:
    far = {plan.law: furthest(plan.best.outside) for plan in plans if plan.best is not None}
    near, most = min(far, key=lambda law: far[law]), max(far, key=lambda law: far[law])
    if far[most] <= 1:
        return "All answers lie within what the laws were fitted on."
    beyond = sum(times > TOO_FAR for times in far.values())
    return (
        f"The nearest answer lies {_times(far[near])} ({near}), the furthest {_times(far[most])} ({most}); {beyond} of "
        f"{len(far)} lie more than {TOO_FAR:g} times outside."
    )


def _times(value: float) -> str:
    return "within its law's data" if value <= 1 else f"{value:.3g} times outside its law's data"


def furthest(outside: Mapping[str, float]) -> float:
    """The largest factor beyond the fitted range in either direction; 1 inside."""
    return max((max(factor, 1 / factor if factor else math.inf) for factor in outside.values()), default=1.0)
