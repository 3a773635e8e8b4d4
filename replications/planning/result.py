"""What a plan returns, and its plain form for `--json`.

The schema is these dataclasses by their field names, under `schema` = SCHEMA; a field is added without a new number,
never renamed or removed. N in parameters, D in tokens, memory in GiB, FLOPs counted in 16-bit ones, losses and deltas
in nats per token. What is infinite or not known is null.
"""

from dataclasses import asdict, dataclass, field
from typing import Any

SCHEMA = "bitlaw.plan/1"


@dataclass(frozen=True)
class Range:
    """A value and its 95 % interval over bootstrap draws; without draws (published constants) the ends are None."""

    value: float
    low: float | None = None
    high: float | None = None


@dataclass(frozen=True)
class Point:
    """One model: its size, tokens and number format, with what it costs and what a law expects of it.

    outside   how far each input lies outside of what the law's constants were fitted on (as `bitlaw predict`)
    D_crit    tokens beyond which more of them raise the loss; None: none do. Only for a given model.
    """

    N: float
    D: float
    format: str
    group: str | None
    setting: str
    bits_per_weight: float
    memory: float
    train_flops: float
    inference_flops: float
    inference_bits: float
    loss: Range
    delta: Range
    N_eff_share: Range
    outside: dict[str, float]
    D_crit: Range | None = None


@dataclass(frozen=True)
class Choice:
    """How the best point moves over the draws, on a grid of sizes: 95 % intervals of N and D, the share of the draws
    that choose each setting, and the share that does not reach the target (`none`)."""

    draws: int
    N: tuple[float, float]
    D: tuple[float, float]
    settings: dict[str, float]
    none: float


@dataclass(frozen=True)
class BestBits:
    """P*: the best real number of bits at the cost (6 / 16) N D P = C; `held` is C, C and N, or C and D."""

    held: str
    C: float
    bits: Range
    N: float
    D: float


@dataclass(frozen=True)
class Silence:
    """Settings of which a law says nothing, and why."""

    settings: tuple[str, ...]
    why: str


@dataclass(frozen=True)
class LawPlan:
    """One law's answer. `best` is None where it has none; `why` then says so. `front` is the Pareto front over memory
    and `Plan.axis`; `readings` has every setting the law knows, for a given model."""

    law: str
    title: str
    paper: str
    origin: str
    how: str
    status: str
    draws: int
    best: Point | None
    why: str | None
    front: tuple[Point, ...] = ()
    choice: Choice | None = None
    readings: tuple[Point, ...] = ()
    best_bits: tuple[BestBits, ...] = ()
    silent: tuple[Silence, ...] = ()
    notes: tuple[str, ...] = ()
    lowest_loss: float | None = None  # under the budget, whatever the target
    past: bool = False  # the answer would lie past the end of the search
    warning: str | None = None  # what `best` itself cannot be trusted in


@dataclass(frozen=True)
class Spread:
    """How far laws of one kind are apart about one quantity; `to_json` adds `times`, high over low."""

    quantity: str
    among: str  # rounded or trained; published, or fitted (ours, and files)
    laws: int
    low: float
    low_law: str
    high: float
    high_law: str

    @property
    def times(self) -> float | None:
        return self.high / self.low if self.low > 0 else None


@dataclass(frozen=True)
class Plan:
    """All laws' answers. `axis` is what the fronts trade against memory: loss, or train_flops where only a target
    bounds the training."""

    budget: dict[str, Any]
    axis: str
    laws: tuple[LawPlan, ...]
    spread: tuple[Spread, ...]
    disagreement: str
    without: dict[str, str]  # laws that cannot be planned with, and why
    assumptions: tuple[str, ...]
    schema: str = field(default=SCHEMA)

    def to_json(self) -> dict[str, Any]:
        """Plain values; `shared.files.six_digits` makes what is not finite null."""
        plain = asdict(self)
        for row, spread in zip(plain["spread"], self.spread, strict=True):
            row["times"] = spread.times
        return plain
