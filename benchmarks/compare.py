"""Two `reports/benchmarks.json`, before and after: exits 1 when a ratio got worse by over 15 % beyond the noise.

Only ratios are compared: to a peer or to the machine's limit in the same run, so that another machine, or a busier one,
changes them little. Each has its standard error beside it (`NAME_spread`, benchmarks/turns.py). A ratio fails when even
the near end of the 95 % interval of its change, old to new, is a loss of over 15 %.
"""

import math
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.table import Table

from shared.errors import BitlawError
from shared.files import read_json

ALLOWED = 0.15
NORMAL = 1.96
# Of a ratio that was recorded before spreads were: as large as that of a median of nine rounds that scatter by 12 %.
UNKNOWN = 0.05


@dataclass(frozen=True)
class Change:
    """One ratio. `loss` is by how much it got worse, 0.2 for 20 % (negative: better); `noise` is half the 95 % interval
    of ln(1 + loss)."""

    benchmark: str
    ratio: str
    old: float
    new: float
    loss: float
    noise: float

    @property
    def fails(self) -> bool:
        return math.log1p(self.loss) - self.noise > math.log1p(ALLOWED)


def better_when_lower(name: str) -> bool:
    """`..._ratio` is a cost over that of another thing; all other ratios are speeds or shares."""
    return name.endswith("_ratio")


def rows(path: Path) -> dict[str, dict[str, Any]]:
    """{benchmark: its numbers}. Raises BitlawError for a file that `benchmarks.table` did not write."""
    values = read_json(path)
    found = values.get("benchmarks") if isinstance(values, dict) else None
    if not isinstance(found, dict) or not all(isinstance(row, dict) for row in found.values()):
        raise BitlawError(f"{path}: is no file of benchmarks; `make bench` writes one")
    return found


def changes(old: dict[str, dict[str, Any]], new: dict[str, dict[str, Any]]) -> list[Change]:
    """Every ratio that both have, the greatest loss first. What a ratio is, its `_spread` in the new file says."""
    found = []
    for benchmark in sorted(old.keys() & new.keys()):
        before, after = old[benchmark], new[benchmark]
        for spread in (name for name in sorted(after) if name.endswith("_spread")):
            name = spread.removesuffix("_spread")
            if name not in before or name not in after:
                continue
            was, now = float(before[name]), float(after[name])
            loss = (now / was if better_when_lower(name) else was / now) - 1
            noise = NORMAL * math.hypot(float(before.get(spread, UNKNOWN)), float(after[spread]))
            found.append(Change(benchmark, name, was, now, loss, noise))
    return sorted(found, key=lambda change: -change.loss)


def main(old_file: str, new_file: str) -> int:
    try:
        old, new = rows(Path(old_file)), rows(Path(new_file))
    except BitlawError as error:
        print(f"bench-compare: {error}", file=sys.stderr)
        return 2
    found = changes(old, new)
    gone = sorted(old.keys() - new.keys())
    if gone:
        print(f"not measured this time: {', '.join(gone)}")
    failing = [change for change in found if change.fails]
    shown = failing or found[:5]
    table = Table("benchmark", "ratio", title="worse by over 15 % beyond noise" if failing else "greatest losses")
    for heading in ("before", "now", "worse by", "noise"):
        table.add_column(heading, justify="right", no_wrap=True)
    for change in shown:
        numbers = (f"{change.old:.3g}", f"{change.new:.3g}", f"{change.loss:+.0%}", f"{math.expm1(change.noise):.0%}")
        table.add_row(change.benchmark, change.ratio, *numbers)
    Console(width=None if sys.stdout.isatty() else 160).print(table)
    print(f"bench-compare: {len(found)} ratios, {len(failing)} worse by over 15 % beyond noise")
    return 1 if failing else 0


if __name__ == "__main__":
    if len(sys.argv) != 3:
        sys.exit("usage: python -m benchmarks.compare OLD.json NEW.json")
    sys.exit(main(sys.argv[1], sys.argv[2]))
