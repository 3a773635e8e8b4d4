"""Two `reports/benchmarks.json`, before and after: exits 1 when a ratio got worse by over 15 % beyond the noise, and
when a benchmark or a ratio of before is missing or is no number.

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
# Of a ratio that has no spread: as large as that of a median of nine rounds that scatter by 12 %.
UNKNOWN = 0.05
# The scatter of ln ratio from run to run, which no round inside a run shows (where memory lies, what the machine does
# for minutes). The whole bench ran twice on one quiet machine, and its shares of the GEMM peak were .14 and .15, .34
# and .35 (docs/log.md, "The bench, whole"): ln(.15 / .14) / sqrt(2) is .05.
BETWEEN = 0.05
Rows = dict[str, dict[str, Any]]


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


def is_ratio(name: str) -> bool:
    """To a peer (`times_faster_than_PEER`, `..._ratio`) or to a limit (`share_of_LIMIT`)."""
    return name.endswith("_ratio") or (name.startswith(("times_faster_than_", "share_of_")) and "_spread" not in name)


def rows(path: Path) -> Rows:
    """{benchmark: its numbers}. Raises BitlawError for a file that `benchmarks.table` did not write."""
    values = read_json(path)
    found = values.get("benchmarks") if isinstance(values, dict) else None
    if not isinstance(found, dict) or not all(isinstance(row, dict) for row in found.values()):
        raise BitlawError(f"{path}: is no file of benchmarks; `make bench` writes one")
    return found


def faults(old: Rows, new: Rows) -> list[str]:
    """What cannot be compared, in words: each of them fails."""
    found = [f"not measured this time: {name}" for name in sorted(old.keys() - new.keys())]
    for benchmark in sorted(new):
        before, after = old.get(benchmark, {}), new[benchmark]
        ratios = {name for name in (*before, *after) if is_ratio(name)}
        found += [f"{benchmark}: {name} is gone" for name in sorted(ratios - after.keys())]
        for when, row in (("before", before), ("now", after)):
            for name in sorted(ratios & row.keys()):
                if not is_positive(row[name]):
                    found.append(f"{benchmark}: {name} {when} is {row[name]!r}, no ratio")
                elif not is_error(row.get(f"{name}_spread", UNKNOWN)):
                    found.append(f"{benchmark}: {name}_spread {when} is {row[f'{name}_spread']!r}, no standard error")
    return found


def is_positive(value: Any) -> bool:
    return is_error(value) and value > 0


def is_error(value: Any) -> bool:
    """0 is the standard error of a single round."""
    return isinstance(value, int | float) and not isinstance(value, bool) and 0 <= value < math.inf


def changes(old: Rows, new: Rows) -> list[Change]:
    """Every sound ratio that both have, the greatest loss first."""
    found = []
    for benchmark in sorted(old.keys() & new.keys()):
        before, after = old[benchmark], new[benchmark]
        for name in sorted(name for name in before.keys() & after.keys() if is_ratio(name)):
            if not (is_positive(before[name]) and is_positive(after[name])):
                continue
            was, now = float(before[name]), float(after[name])
            loss = (now / was if better_when_lower(name) else was / now) - 1
            found.append(Change(benchmark, name, was, now, loss, NORMAL * math.hypot(*_errors(before, after, name))))
    return sorted(found, key=lambda change: -change.loss)


def _errors(before: dict[str, Any], after: dict[str, Any], name: str) -> list[float]:
    """Standard errors of ln ratio: of each run inside, and from run to run."""
    inside = [row.get(f"{name}_spread", UNKNOWN) for row in (before, after)]
    return [*(float(one) if is_error(one) else UNKNOWN for one in inside), BETWEEN, BETWEEN]


def main(old_file: str, new_file: str) -> int:
    try:
        old, new = rows(Path(old_file)), rows(Path(new_file))
    except BitlawError as error:
        print(f"bench-compare: {error}", file=sys.stderr)
        return 2
    found, unsound = changes(old, new), faults(old, new)
    for fault in unsound:
        print(fault)
    failing = [change for change in found if change.fails]
    shown = failing or found[:5]
    table = Table("benchmark", "ratio", title="worse by over 15 % beyond noise" if failing else "greatest losses")
    for heading in ("before", "now", "worse by", "noise"):
        table.add_column(heading, justify="right", no_wrap=True)
    for change in shown:
        numbers = (f"{change.old:.3g}", f"{change.new:.3g}", f"{change.loss:+.0%}", f"{math.expm1(change.noise):.0%}")
        table.add_row(change.benchmark, change.ratio, *numbers)
    Console(width=None if sys.stdout.isatty() else 160).print(table)
    told = f", {len(unsound)} missing or no number" if unsound else ""
    print(f"bench-compare: {len(found)} ratios, {len(failing)} worse by over 15 % beyond noise{told}")
    return 1 if failing or unsound else 0


if __name__ == "__main__":
    if len(sys.argv) != 3:
        sys.exit("usage: python -m benchmarks.compare OLD.json NEW.json")
    sys.exit(main(sys.argv[1], sys.argv[2]))
