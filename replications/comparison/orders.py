"""Which of two ways to train in low precision costs more: the orders that all papers rest on, over paired seeds.

Both runs of a pair have the same seed, hence the same initial weights and batches as each other and as their base run:
the difference of their losses is that of their deltas, and what the seed did to all of them cancels. Stated before the
runs; no law is fitted here.
"""

from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path

import numpy as np
import pandas as pd

from replications.compressed import compression_of
from replications.copying import read_comparable
from shared.laws.means import half_width
from shared.laws.tables import RUNS

FLOATS = ("weights", "weights_backward", "activations_backward")  # P2, P4 and P6 of Sun et al.


def integers(bits: int, *names: str, group: str = "channel") -> dict[str, str]:
    """Weights in groups along their inputs or per row; activations in groups or per token."""
    return {n: f"INT{bits}@{'token' if n == 'activations' and group == 'channel' else group}" for n in names}


def floats(name: str, block: str) -> dict[str, str]:
    return {n: f"{name}@{'token' if n.startswith('activations') and block == 'channel' else block}" for n in FLOATS}


@dataclass(frozen=True)
class Order:
    """`worse` should cost more than `better`: both as the columns of runs.csv that are not at their default."""

    name: str
    statement: str
    worse: Mapping[str, str]
    better: Mapping[str, str]


BOTH = ("weights", "activations")
ORDERS = (
    *(
        Order(f"W{low} above W{high}", f"weights per channel: {low} bits cost more than {high}",
              integers(low, "weights"), integers(high, "weights"))
        for low, high in ((2, 3), (3, 4), (4, 6), (6, 8))
    ),
    *(
        Order(f"W4A4 above {name}, {group}", f"4-bit weights and activations cost more than {name}, {group}",
              integers(4, *BOTH, group=group), integers(4, kind, group=group))
        for group in ("channel", "8")
        for name, kind in (("W4A16", "weights"), ("W16A4", "activations"))
    ),
    *(
        Order(f"{name}: channel above g8", f"{name} per channel or token costs more than in groups of 8",
              integers(4, *kinds), integers(4, *kinds, group="8"))
        for name, kinds in (("W4A4", BOTH), ("W4A16", ("weights",)), ("W16A4", ("activations",)))
    ),
    Order("E2M1: channel above b8", "E2M1 on P2, P4 and P6 costs more per channel or token than in blocks of 8",
          floats("E2M1", "channel"), floats("E2M1", "8")),
)  # fmt: skip


@dataclass(frozen=True)
class Seen:
    """Mean over seeds of loss(worse) - loss(better) in nats per token, with Student's interval over the seeds."""

    name: str
    statement: str
    size: str
    tokens: float
    seeds: int
    worse: float | None  # mean delta of each side
    better: float | None
    value: float | None
    low: float | None
    high: float | None
    verdict: str  # holds, reversed, undecided, needs runs


def judge(runs: Path) -> list[dict[str, object]]:
    """Every order at every size and horizon of cooled runs that have both sides; the others once, as `needs runs`.

    Raises BitlawError for a bad table.
    """
    table = read_comparable(runs, RUNS)
    table = table[table["cooled"].astype(bool) & ~table["diverged"].astype(bool)].copy()
    table["delta"] = pd.to_numeric(table["delta"], errors="coerce")
    return [asdict(seen) for order in ORDERS for seen in _judged(order, table)]


def _judged(order: Order, table: pd.DataFrame) -> list[Seen]:
    key = ["corpus", "size", "n_blocks", "tokens", "seed"]
    sides = [_matching(table, side).set_index(key)["delta"] for side in (order.worse, order.better)]
    pairs = pd.concat(sides, axis=1, join="inner", keys=("worse", "better")).reset_index()
    found = [_seen(order, str(size), float(tokens), rows) for (_, size, _, tokens), rows in pairs.groupby(key[:4])]
    return found or [Seen(order.name, order.statement, "", 0.0, 0, None, None, None, None, None, "needs runs")]


def _matching(table: pd.DataFrame, side: Mapping[str, str]) -> pd.DataFrame:
    """Runs compressed in exactly this way: nothing else of theirs is compressed."""
    return table[np.array([compression_of(row) == side for row in table.to_dict("records")], dtype=bool)]


def _seen(order: Order, size: str, tokens: float, rows: pd.DataFrame) -> Seen:
    differences = (rows["worse"] - rows["better"]).to_numpy(float)
    n, mean = len(differences), float(differences.mean())
    worse, better = float(rows["worse"].mean()), float(rows["better"].mean())
    if n < 2:
        return Seen(order.name, order.statement, size, tokens, n, worse, better, mean, None, None, "undecided")
    half = half_width(differences)
    verdict = "holds" if mean - half > 0 else "reversed" if mean + half < 0 else "undecided"
    return Seen(order.name, order.statement, size, tokens, n, worse, better, mean, mean - half, mean + half, verdict)
