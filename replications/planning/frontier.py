"""One law under a budget: its best point, its Pareto front, and how both move over its draws."""

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from replications.planning import cost
from replications.planning.budget import LARGEST_D, LARGEST_N, SMALLEST_D, Budget
from replications.planning.quantities import bits_of, points
from replications.planning.result import BestBits, Choice, LawPlan, Point, Silence
from replications.planning.search import REACH, Case, least_loss, least_size, least_training
from replications.planning.setting import Setting
from replications.planning.view import View
from shared.laws.law import Array

GRID = 61  # memories of a front before it is thinned
FRONT = 24  # points of a front that are kept
MOST_ABOVE = 10.0  # times the lowest loss, where no target is looked for any more
CHOICES = 100  # draws that choose anew
CHOICE_SIZES, CHOICE_TOKENS = 25, 7
ANY_ROW = np.array([4096.0])


@dataclass(frozen=True)
class Curve:
    """One setting's points N, D (n,) within the budget, with memory and what is traded against it."""

    case: Case
    N: Array
    D: Array
    memory: Array
    height: Array  # loss, or training FLOPs


def known_settings(view: View, budget: Budget) -> tuple[list[Setting], tuple[Silence, ...]]:
    """The settings that the law knows, and the others by reason. A law that does not see groups is asked about each
    format once, in the allowed group with the fewest bits."""
    known: dict[str, Setting] = {}
    silent: dict[str, list[str]] = {}
    for setting in budget.settings:
        read = view.read(setting, ANY_ROW)
        if isinstance(read, str):
            names = silent.setdefault(read, [])
            names += [] if setting.format in names else [setting.format]
            continue
        key = str(setting) if view.sees_groups else setting.format
        if key not in known or _bits(setting) < _bits(known[key]):
            known[key] = setting
    return list(known.values()), tuple(Silence(tuple(names), why) for why, names in silent.items())


def _bits(setting: Setting) -> float:
    return float(setting.bits_per_weight(ANY_ROW)[0])


def answer(view: View, budget: Budget) -> LawPlan:
    """The law's plan."""
    settings, silent = known_settings(view, budget)
    cases = [Case(view, setting, budget) for setting in settings]
    notes = view.notes if view.sees_groups else (*view.notes, "it does not see the group size")
    about = {
        "law": view.name, "title": view.title, "paper": view.paper, "origin": view.origin, "how": view.how,
        "status": view.status, "draws": view.draws, "silent": silent, "notes": notes,
    }  # fmt: skip
    if not cases:
        return LawPlan(**about, best=None, why="it knows none of the allowed formats")  # type: ignore[arg-type]
    fitting = [case for case in cases if case.sizes()[1] >= case.sizes()[0]]
    if not fitting:
        return LawPlan(**about, best=None, why="nothing that it knows fits the budget")  # type: ignore[arg-type]
    floor = view.floor
    bound = f"its E lies on a bound: it says nothing of losses under {_up(floor or 0.0):g}, that of its largest N and D"
    if budget.target_loss is not None and floor is not None and budget.target_loss < floor:
        return LawPlan(**about, best=None, why=bound, lowest_loss=floor)  # type: ignore[arg-type]
    curves, lowest, ended = _curves(fitting, budget)
    if not curves:
        why = "it says that every allowed format diverges"
        if lowest is not None:
            why = f"it reaches no lower loss than {_up(lowest):g}"
        if ended:
            why = f"its answer lies past the end of the search, {ended}"
        return LawPlan(**about, best=None, why=why, lowest_loss=lowest, past=bool(ended))  # type: ignore[arg-type]
    front = _front(curves)
    best = _best(front, budget)
    return LawPlan(
        **about,  # type: ignore[arg-type]
        best=best,
        why=None,
        front=tuple(front),
        choice=_choice(view, fitting, budget, best) if view.draws else None,
        readings=_readings(fitting, budget),
        best_bits=_best_bits(view, budget),
        lowest_loss=lowest,
        warning=bound if floor is not None and best.loss.value < floor else None,
    )


def axis(budget: Budget) -> str:
    """What fronts trade against memory."""
    return "loss" if budget.trained else "train_flops"


def _curves(cases: Sequence[Case], budget: Budget) -> tuple[list[Curve], float | None, str]:
    """A curve for each case that reaches the target inside the search, the lowest loss of all, and the end of the
    search at which one would. All curves have the same memories, so
    that at each the better setting is seen to be better; the best point itself is a curve of its own."""
    target, found, lowest, past = budget.target_loss, [], [], ""
    for case in cases:
        least = least_loss(case)
        if least is None:
            continue
        at = np.array([least])
        lowest.append(float(case.loss(at, case.best_tokens(at))[0]))
        if target is not None and lowest[-1] > target:
            continue
        best = least if target is None else _size(case, target, least)
        ends = [curve for N in dict.fromkeys((best, least)) if len((curve := _curve(case, np.array([N]), budget)).N)]
        found += [(case, ends)] if ends else []
        if not ends:
            at = np.array([best])
            past = _ended(best, float(_tokens(case, at, target)[0]), budget) or past
    if not found:
        return [], min(lowest) if lowest else None, past
    tops = [ends[0] for _, ends in found]
    if budget.target_loss is not None and budget.trained:
        start = min(float(curve.memory[0]) for curve in tops)
        end = min((ends[-1] for _, ends in found), key=lambda curve: float(curve.height[0])).memory[0]
    else:
        end = min(tops, key=lambda curve: float(curve.height[0])).memory[0]
        start = end / REACH
    curves = [curve for _, ends in found for curve in ends]
    if budget.N is None and start < end:
        memories = np.geomspace(start, end, GRID)
        curves += [_curve(case, case.sizes_at(memories), budget) for case, _ in found]
    return [curve for curve in curves if len(curve.N)], min(lowest), past


def _size(case: Case, target: float, least: float) -> float:
    """N at the target, given the one with the lowest loss, which reaches it."""
    return least_size(case, target, least) if case.budget.trained else least_training(case, target) or least


def _tokens(case: Case, N: Array, target: float | None) -> Array:
    """D (n,) of sizes: all that the budget allows, or as few as reach the target where nothing bounds them."""
    return case.best_tokens(N) if case.budget.trained or target is None else case.tokens_to_reach(N, target)


def _curve(case: Case, N: Array, budget: Budget) -> Curve:
    """What a case makes of sizes (n,): those that reach the target, with a finite loss, inside the search."""
    target = budget.target_loss
    D = _tokens(case, N, target)
    N, D = N[~np.isnan(D)], D[~np.isnan(D)]
    loss = case.loss(N, D)
    kept = np.isfinite(loss) & ((loss <= target) if target is not None else np.full(loss.shape, True))
    kept &= np.array([not _ended(n, d, budget) for n, d in zip(N, D, strict=True)], dtype=bool)
    N, D, loss = N[kept], D[kept], loss[kept]
    return Curve(case, N, D, case.memory(N), loss if budget.trained else case.train_flops(N, D))


def pareto(memory: Array, height: Array) -> Array:
    """Indices of what is not dominated (no other is as good in both and better in one), by rising memory."""
    order = np.lexsort((height, memory))
    kept, least = [], np.inf
    for i in order:
        if height[i] < least:
            kept.append(int(i))
            least = float(height[i])
    return np.array(kept, dtype=int)


def _front(curves: list[Curve]) -> list[Point]:
    """At most FRONT points, both ends among them, spread over ln memory."""
    memory, height = (np.concatenate([getattr(c, name) for c in curves]) for name in ("memory", "height"))
    owner = np.repeat(np.arange(len(curves)), [len(c.N) for c in curves])
    place = np.concatenate([np.arange(len(c.N)) for c in curves])
    # Settings of one memory differ in its last bits, by which a worse one must not stay on the front.
    kept = pareto(np.round(np.log(memory), 9), height)
    if len(kept) > FRONT:
        log = np.log(memory[kept])
        wanted = np.linspace(log[0], log[-1], FRONT)
        kept = kept[np.unique([int(np.argmin(np.abs(log - x))) for x in wanted])]
    found: list[Point] = []
    for i in kept:
        curve = curves[owner[i]]
        found += points(curve.case, curve.N[[place[i]]], curve.D[[place[i]]])
    return found


def _best(front: list[Point], budget: Budget) -> Point:
    """The lowest loss; with a target the least memory, or the least training where nothing else bounds it."""
    if budget.target_loss is None:
        return min(front, key=lambda point: point.loss.value)
    if budget.trained:
        return min(front, key=lambda point: point.memory)
    return min(front, key=lambda point: point.train_flops)


def _ended(N: float, D: float, budget: Budget) -> str:
    """The end of the search that a point stands at, in words; "" inside. A size or tokens that are given are no end."""
    ends = (("N", N, LARGEST_N, budget.N), ("D", D, LARGEST_D, budget.D))
    return " and ".join(f"{name} = {end:g}" for name, x, end, given in ends if given is None and x > end * (1 - 1e-6))


def _readings(cases: Sequence[Case], budget: Budget) -> tuple[Point, ...]:
    """Every setting of a given model."""
    if budget.N is None or budget.D is None:
        return ()
    N, D = np.array([budget.N]), np.array([budget.D])
    return tuple(point for case in cases for point in points(case, N, D, whole=True))


def _best_bits(view: View, budget: Budget) -> tuple[BestBits, ...]:
    C = budget.train_flops
    if budget.N is not None and budget.D is not None:
        C = cost.TRAIN * budget.N * budget.D
    return () if C is None else bits_of(view, C, budget.N, budget.D)


def _choice(view: View, cases: Sequence[Case], budget: Budget, best: Point) -> Choice | None:
    """What each draw would choose, on one grid of N and D for all."""
    goals, sizes, tokens, names = [], [], [], []
    for case in cases:
        low, high = case.sizes()
        n = np.geomspace(max(low, best.N / REACH), min(high, best.N * REACH), 1 if low == high else CHOICE_SIZES)
        n = n[n >= low]
        if not len(n) or n[0] > high * (1 + 1e-9):
            continue
        N, D = _pairs(case, n, budget)
        loss = case.loss(N, D, draws=CHOICES)
        goal = loss
        if budget.target_loss is not None:
            price = case.memory(N) if budget.trained else case.train_flops(N, D)
            goal = np.where(loss <= budget.target_loss, price, np.inf)
        goals.append(goal)
        sizes.append(N)
        tokens.append(D)
        names += [str(case.setting)] * len(N)
    if not goals:
        return None
    goal, N, D = np.concatenate(goals, axis=1), np.concatenate(sizes), np.concatenate(tokens)
    at = np.argmin(goal, axis=1)
    some = np.isfinite(goal[np.arange(len(at)), at])
    if not np.any(some):
        return Choice(len(at), (np.nan, np.nan), (np.nan, np.nan), {}, 1.0)
    chosen = [names[i] for i in at[some]]
    shares = {name: chosen.count(name) / len(at) for name in sorted(set(chosen), key=chosen.count, reverse=True)}
    low_N, high_N = np.quantile(N[at[some]], (0.025, 0.975))
    low_D, high_D = np.quantile(D[at[some]], (0.025, 0.975))
    return Choice(len(at), (float(low_N), float(high_N)), (float(low_D), float(high_D)), shares, float(np.mean(~some)))


def _pairs(case: Case, n: Array, budget: Budget) -> tuple[Array, Array]:
    """N and D of a grid: all tokens that the budget allows and quarters of them, or a range where it does not say."""
    if budget.D is not None:
        return n, np.full(n.shape, budget.D)
    if budget.trained:
        shares = 4.0 ** -np.arange(CHOICE_TOKENS)
        D = (case.most_tokens(n)[:, None] * shares).ravel()
    else:
        grid = np.geomspace(SMALLEST_D, LARGEST_D, 4 * CHOICE_TOKENS)
        D = np.tile(grid, len(n))
    N = np.repeat(n, len(D) // len(n))
    return N[D >= SMALLEST_D], D[D >= SMALLEST_D]


def nearest_target(views: Sequence[View], plans: Sequence[LawPlan], budget: Budget) -> str:
    """The lowest target that some law reaches inside the search, given one that none does, and the law."""
    lowest = {plan.law: plan.lowest_loss for plan in plans if plan.lowest_loss is not None}
    best: tuple[float, str] | None = None
    for view in sorted((view for view in views if view.name in lowest), key=lambda view: lowest[view.name]):
        least = lowest[view.name]
        if best is not None and least >= best[0]:
            break
        cases = [Case(view, setting, budget) for setting in known_settings(view, budget)[0]]
        found = min((t for case in cases if (t := _least_target(case, least)) is not None), default=None)
        if found is not None and (best is None or found < best[0]):
            best = found, view.name
    return (
        "none: every law says that every allowed format diverges" if best is None else f"{_up(best[0]):g} ({best[1]})"
    )


def _least_target(case: Case, start: float) -> float | None:
    """The lowest target from `start` on that the case reaches inside the search, to a millionth; None for none."""
    if case.sizes()[1] < case.sizes()[0] or (least := least_loss(case)) is None:
        return None

    def inside(target: float) -> bool:
        at = np.array([_size(case, target, least)])
        D = _tokens(case, at, target)
        return bool(case.loss(at, D)[0] <= target * (1 + 1e-9)) and not _ended(float(at[0]), float(D[0]), case.budget)

    at = np.array([least])
    low = max(start, float(case.loss(at, case.best_tokens(at))[0]))
    if inside(low):
        return low
    step = 1e-6
    while not inside(low * (1 + step)):
        step *= 2
        if step > MOST_ABOVE:
            return None
    high, low = low * (1 + step), low * (1 + step / 2)
    while high > low * (1 + 1e-6):
        middle = (low + high) / 2
        low, high = (low, middle) if inside(middle) else (middle, high)
    return high


def _up(loss: float) -> float:
    """To four digits, and no lower: what is said to be possible must be."""
    return math.ceil(loss * 1e4) / 1e4
