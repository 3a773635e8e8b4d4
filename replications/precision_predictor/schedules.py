"""Which width every decode step has: schedules as short texts, and what each one is compared with.

    uniform:4          4 bits at every step
    linear:6:2         from 6 bits at the first step to 2 at the last, rounded to whole bits
    static:4:3:64      4 bits for the first 64 steps, then 3 (PMPD's static schedule, arXiv 2410.13461)
    spread:4:3:64      as many steps of 4 bits as static:4:3:64 has, evenly between those of 3
    reverse:S          the schedule S with its last step first
    S@4                prefill at 4 bits; without it, at the highest width of the model (PMPD's default)

16 bits are the weights as they are. Average bits are those of the decode steps, each step one token, as PMPD counts
them; the prefill is not in it.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from fractions import Fraction
from itertools import groupby

from shared.errors import BitlawError, nearest

FULL = 16
ARGUMENTS = {"uniform": ("B",), "linear": ("HIGH", "LOW"), "static": ("HIGH", "LOW", "STEPS")}
ARGUMENTS["spread"] = ARGUMENTS["static"]
CHORD, REVERSE, SPREAD, OWN_PREFILL = "chord", "reverse", "spread", "own prefill"
CLASSES = 4  # of the learned scheduler: high for 0, T//3, 2T//3 or T steps


@dataclass(frozen=True)
class Schedule:
    """Bits of the prefill, and of each decode step. Raises BitlawError when there is no step."""

    name: str
    prefill: int
    widths: tuple[int, ...]

    def __post_init__(self) -> None:
        if not self.widths:
            raise BitlawError(f"schedule '{self.name}' is empty: give it at least one decode step")

    @property
    def bits(self) -> Fraction:
        """The mean over decode steps, exactly."""
        return Fraction(sum(self.widths), len(self.widths))

    @property
    def segments(self) -> list[tuple[int, int, int]]:
        """(width, first step, step after the last) of each run of equal widths."""
        found, start = [], 0
        for width, run in groupby(self.widths):
            end = start + len(list(run))
            found.append((width, start, end))
            start = end
        return found

    @property
    def used(self) -> set[int]:
        return {self.prefill, *self.widths}


def parse_schedule(text: str, steps: int, highest: int) -> Schedule:
    """A schedule of `steps` decode steps in a model whose highest width is `highest`.

    Raises BitlawError for a text that is empty or names no schedule, for widths that the model has not, for a low
    width above the high one, and for more high steps than there are.
    """
    body, at, prefill_text = text.strip().partition("@")
    if not body:
        raise BitlawError("the schedule is empty: write one such as uniform:4, linear:6:2 or static:4:3:64")
    if steps < 1:
        raise BitlawError(f"schedule '{text}' is empty: the prefix leaves no decode step, give a shorter one")
    prefill = _whole(prefill_text, text, "the prefill") if at else highest
    schedule = Schedule(text.strip(), prefill, _widths(body, text, steps))
    for width in sorted(schedule.used):
        if width != FULL and not 1 <= width <= highest:
            raise BitlawError(f"schedule '{text}' has {width} bits: this model has 1 to {highest}, and 16 unquantized")
    return schedule


def _widths(body: str, text: str, steps: int) -> tuple[int, ...]:
    kind, *words = body.split(":")
    if kind == "reverse":
        return _widths(body.partition(":")[2], text, steps)[::-1]
    if kind not in ARGUMENTS:
        known = [*ARGUMENTS, "reverse"]
        raise BitlawError(f"schedule '{text}': '{kind}' is unknown{nearest(kind, known)}: use {', '.join(known)}")
    if len(words) != len(ARGUMENTS[kind]):
        raise BitlawError(f"schedule '{text}' does not have the form {':'.join((kind, *ARGUMENTS[kind]))}")
    high, *rest = [_whole(word, text, name) for word, name in zip(words, ARGUMENTS[kind], strict=True)]
    if kind == "uniform":
        return (high,) * steps
    low = rest[0]
    if low > high:
        raise BitlawError(f"schedule '{text}': low ({low} bits) is above high ({high}); for a rise write reverse:")
    if kind == "linear":
        # Whole numbers, halves up: high at the first step, low at the last.
        last = max(steps - 1, 1)
        return tuple(low + (2 * (high - low) * (last - t) + last) // (2 * last) for t in range(steps))
    many = rest[1]
    if not 0 <= many <= steps:
        raise BitlawError(f"schedule '{text}': {many} steps are high, and there are {steps}")
    if kind == "static":
        return (high,) * many + (low,) * (steps - many)
    return tuple(high if (t + 1) * many // steps > t * many // steps else low for t in range(steps))


def _whole(word: str, text: str, what: str) -> int:
    if not (word.isascii() and word.isdigit()):
        raise BitlawError(f"schedule '{text}': {what} must be a whole number, not '{word}'")
    return int(word)


def controls(schedule: Schedule, known: Sequence[str], highest: int) -> dict[str, dict[str, Fraction]]:
    """What a schedule is measured against: {control: {schedule of `known`: its weight}}, all at equal average
    bits of the decoding steps; the prefill is not counted.

    chord        the uniform widths on either side of the average, mixed in the proportion that gives it: what is lost
                 on average when that share of the requests is served at each. A whole average is that width itself.
    reverse      the same widths, last step first
    spread       the same widths, evenly spread over the steps
    own prefill  for uniform widths: prefill at this width rather than at the highest
    """
    found: dict[str, dict[str, Fraction]] = {}
    one = Fraction(1)
    if schedule.prefill != highest or FULL in schedule.widths:
        return found
    if len(set(schedule.widths)) == 1:
        found[OWN_PREFILL] = {f"{schedule.name}@{schedule.widths[0]}": one} if schedule.widths[0] < highest else {}
    else:
        floor = int(schedule.bits)
        part = schedule.bits - floor
        mixed = {f"uniform:{floor}": 1 - part, f"uniform:{floor + 1}": part}
        found[CHORD] = {name: weight for name, weight in mixed.items() if weight}
        found[REVERSE] = {f"reverse:{schedule.name}": one}
        if schedule.name.startswith("static:"):
            found[SPREAD] = {schedule.name.replace("static:", "spread:"): one}
    return {name: mix for name, mix in found.items() if mix and all(each in known for each in mix)}


def classes(steps: int) -> tuple[int, ...]:
    """High steps that the learned scheduler chooses from: 0, T//3, 2T//3, T (facts, section 4.1)."""
    return tuple(k * steps // (CLASSES - 1) for k in range(CLASSES))


def class_schedules(high: int, low: int, steps: int) -> list[str]:
    """One schedule a class, from all low to all high."""
    return [f"static:{high}:{low}:{h}" for h in classes(steps)]


def default_losses(steps: int, highest: int) -> list[str]:
    """Schedules whose teacher-forced loss is measured: the uniform widths, the page's, PMPD's, and their opposites."""
    uniform = [f"uniform:{b}" for b in range(2, highest + 1)]
    own = [f"uniform:{b}@{b}" for b in range(2, highest)]
    half, first = steps // 2, min(64, steps)
    one_way = [
        *("linear:6:2", "linear:5:3"),
        *(f"static:{high}:{low}:{half}" for high, low in ((4, 3), (3, 2), (4, 2))),
        *(f"static:{high}:4:{first}" for high in (5, 6)),
    ]
    both = [text for name in one_way for text in (name, f"reverse:{name}")]
    return _within([*uniform, *own, *both, f"spread:5:4:{first}"], steps, highest)


def default_texts(steps: int, highest: int) -> list[str]:
    """Schedules that text is generated by: every uniform width, and those with a question of their own."""
    half, first = steps // 2, min(64, steps)
    one_way = ["linear:6:2", "linear:5:3", f"static:4:3:{half}", f"static:3:2:{half}", f"static:5:4:{first}"]
    both = [text for name in one_way for text in (name, f"reverse:{name}")]
    return _within([*(f"uniform:{b}" for b in range(2, highest + 1)), "uniform:3@3", *both], steps, highest)


def _within(texts: list[str], steps: int, highest: int) -> list[str]:
    """Those that a model with this highest width can have."""
    most = {text: max(_widths(text.partition("@")[0], text, steps)) for text in texts}
    return [text for text, width in most.items() if width <= highest]
