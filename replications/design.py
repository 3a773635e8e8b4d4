"""Design of experiments: what a profile's runs would tell, before they are trained.

A pool is simulated: post-training deltas with a paper's published elasticities, at the level of the deltas that are
measured already, with their seed noise. Each paper's fit and claims are run on it, several times; the median half-width
of an interval is what to expect, and the shares of verdicts say which claims the pool can decide. Then each size, and
each further seed, is left out: what hardly widens any interval need not be trained. Only whole channels are simulated,
which the claims are judged on: other group sizes cost no training.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from replications.papers import HELD_OUT, PAPERS, Paper
from replications.pool import Expected
from shared.errors import BitlawError
from shared.laws.noise import SeedNoise, seed_noise
from shared.laws.settings import FitSettings, HeldOut, Selection, read_settings
from shared.laws.study import CELL, study

TRUTH = "kumar_precision"  # whose published elasticities a simulated pool has
PHASE, GROUP_SIZE = "cooled", "channel"
LEAST_SE = 1e-5  # nats per token, of a delta over the validation sequences
RELATIVE_SE = 0.01
# Where no cell has two seeds: S of the first pool had .06, half of it common to a trunk (docs/log.md, first slice).
ASSUMED = SeedNoise(cv={"": 0.06}, shared=0.5, cells=1, dof=2)
SETTINGS = FitSettings(n_starts=4, n_boot=100, seed=0, condition_limit=1e8, signal_to_noise=4)


@dataclass
class Expectation:
    """Median half-widths of 95 % intervals over the simulated pools, by paper and quantity: exponents of its law on
    cooled checkpoints ("gamma_D"), and claims ("K1a"). `verdicts` counts them, `true` holds what was simulated."""

    half_width: dict[tuple[str, str], float] = field(default_factory=dict)
    verdicts: dict[tuple[str, str], dict[str, int]] = field(default_factory=dict)
    true: dict[tuple[str, str], float] = field(default_factory=dict)


@dataclass(frozen=True)
class Saving:
    """What leaving some runs out saves and costs: hours, and by what factor the half-width of each exponent grows."""

    left_out: str
    runs: int
    hours: float
    widening: dict[tuple[str, str], float]
    lost: tuple[tuple[str, str], ...]  # quantities that cannot be told any more


@dataclass(frozen=True)
class Design:
    """`notes` say what was assumed."""

    runs: int
    cells: int
    hours: float
    expectation: Expectation
    savings: tuple[Saving, ...]
    notes: tuple[str, ...]


def design(
    want: Expected,
    hours: Callable[[list[Any]], float],
    measured: pd.DataFrame | None,
    *,
    pools: int = 10,
    seed: int = 0,
) -> Design:
    """Simulate the unquantized runs of `want` and the cells on them. `hours` is the training time of a list of runs,
    `measured` the pool's rows so far (tables.read_pool) or None.

    Raises BitlawError for a profile without cells.
    """
    grid = cells_of(want)
    if grid.empty:
        raise BitlawError("this profile measures no cell after training, so that there is nothing to simulate")
    levels, noise, notes = levels_and_noise(grid, measured)
    grid["level"] = levels
    base = [run for run in want.runs if run.spec == run.spec.base]
    whole = expect(grid, noise, pools, seed)
    savings = []
    for name, kept, members in _parts(grid, base):
        less = expect(grid[kept & (grid["phase"] == PHASE)], noise, pools, seed, claims=False)
        common = [key for key in whole.half_width if key in less.half_width]
        savings.append(
            Saving(
                left_out=name,
                runs=len(members),
                hours=hours(members) / 3600,
                widening={key: less.half_width[key] / whole.half_width[key] for key in common if whole.half_width[key]},
                lost=tuple(key for key in whole.half_width if key not in less.half_width and key not in whole.verdicts),
            )
        )
    other = len(want.runs) - len(base)
    if other:
        notes.append(f"{other} runs that train compressed are not simulated")
    return Design(len(base), len(grid), hours(base) / 3600, whole, tuple(savings), tuple(notes))


def cells_of(want: Expected) -> pd.DataFrame:
    """One row per unquantized checkpoint x cell per channel: the columns of `tables.read_pool` but delta and its se."""
    rows = []
    for run in want.runs:
        spec = run.spec
        if spec != spec.base:
            continue
        for cell in want.cells.get(spec.run_id, []):
            bits = cell.format.removeprefix("INT")
            if cell.method != "rtn" or not bits.isdigit() or cell.group_size != GROUP_SIZE:
                continue
            rows.append(
                {
                    "run_id": spec.run_id, "trunk_id": spec.trunk_id, "size": run.size, "corpus": run.corpus,
                    "N": float(spec.shape.n_blocks), "D": float(spec.tokens),
                    "phase": spec.phase, "seed": str(spec.seed), "method": cell.method,
                    "format": cell.format, "bits": float(bits), "group_size": cell.group_size,
                    "activation_format": "none", "kv_format": "none", "calibration": "none", "loss": 3.0,
                    "base_run_id": "", "diverged": False, "seconds": np.nan, "numerics_version": "simulated",
                }
            )  # fmt: skip
    table = pd.DataFrame(rows)
    table["row"] = np.arange(1, len(table) + 1)
    return table


def levels_and_noise(grid: pd.DataFrame, measured: pd.DataFrame | None) -> tuple[np.ndarray, SeedNoise, list[str]]:
    """The expected delta of each cell (n,), the noise of seeds, and what was assumed.

    The level of each format, group size and phase is the measured one (its mean logarithm, less what the published
    exponents make of N and D); of a format, group size or phase that is not measured, the published law's.
    """
    published = PAPERS[TRUTH].published().values()
    law = PAPERS[TRUTH].law
    assert law is not None
    notes = [f"elasticities in N and D: those that {TRUTH} publishes"]

    def predicted(table: pd.DataFrame) -> np.ndarray:
        return law.predict(law.internal(published), {name: table[name].to_numpy(float) for name in law.inputs})

    level = predicted(grid)
    known = pd.DataFrame() if measured is None else measured[(measured["delta"] > 2 * measured["delta_se"])]
    if known.empty:
        notes.append("no delta is measured yet: levels are the published law's, far outside its domain; "
                     "seed noise is 6 % of delta")  # fmt: skip
        return level, ASSUMED, notes
    keys = ["format", "group_size", "phase"]
    off = known.assign(off=np.log(known["delta"] / predicted(known))).groupby(keys)["off"].mean()
    found = grid[keys].merge(off.reset_index(), on=keys, how="left")["off"]
    if found.isna().any():
        notes.append(f"{int(found.isna().sum())} cells of a format, group or phase not measured yet have a mean level")
    noise = seed_noise(known, CELL)
    if not noise.cells:
        notes.append("no cell has two seeds: seed noise is 6 % of delta")
        noise = ASSUMED
    else:
        notes.append(
            f"seed noise measured in {noise.cells} cells, {noise.shared:.0%} of its variance common to a trunk"
        )
    return level * np.exp(found.fillna(off.mean()).to_numpy()), noise, notes


def expect(grid: pd.DataFrame, noise: SeedNoise, pools: int, seed: int, claims: bool = True) -> Expectation:
    """Fits, and claims if wanted, of every paper that is fitted to the pool, on `pools` simulated ones."""
    found = Expectation()
    widths: dict[tuple[str, str], list[float]] = {}
    held_out = read_settings(HELD_OUT, HeldOut)
    for paper in PAPERS.values():
        if not paper.fitted or paper.law is None:
            continue
        selection = read_settings(paper.file("experiment.yaml"), Selection, "fit")
        published = paper.published().values()
        for number in range(pools):
            pool = simulate(grid, noise, np.random.default_rng([seed, number]))
            result = study(paper.law, pool, selection, held_out, SETTINGS, "simulated pool")
            _constants(paper, result, widths)
            if claims:
                _claims(paper, result, published, widths, found.verdicts)
    found.half_width = {key: float(np.median(values)) for key, values in widths.items()}
    truth = PAPERS[TRUTH].published().values()
    found.true = {key: truth[key[1]] for key in found.half_width if key[0] == TRUTH and key[1] in truth}
    return found


def simulate(grid: pd.DataFrame, noise: SeedNoise, generator: np.random.Generator) -> pd.DataFrame:
    """`grid` with delta and delta_se: the level, seeds that trunks share in part, and validation error that all seeds
    of a cell share."""
    level = grid["level"].to_numpy()
    trunk, _ = pd.factorize(grid["trunk_id"])
    common = generator.standard_normal(int(trunk.max()) + 1)[trunk]
    own = generator.standard_normal(len(grid))
    off = noise.of(grid) * (np.sqrt(noise.shared) * common + np.sqrt(1 - noise.shared) * own)
    cell = grid.groupby(["N", "D", "format", "group_size", "phase"]).ngroup().to_numpy()
    error = np.hypot(RELATIVE_SE * level, LEAST_SE)
    return grid.assign(
        delta=level * (1 + off) + error * generator.standard_normal(int(cell.max()) + 1)[cell], delta_se=error
    )


def _constants(paper: Paper, result: Mapping[str, Any], widths: dict[tuple[str, str], list[float]]) -> None:
    for part in result["parts"]:
        if (part["phase"], part["group_size"]) == (PHASE, GROUP_SIZE):
            # The first constant is the level, a convention of units.
            for name, estimate in list(part["parameters"].items())[1:]:
                widths.setdefault((paper.name, name), []).append((estimate["high"] - estimate["low"]) / 2)


def _claims(
    paper: Paper,
    result: Mapping[str, Any],
    published: dict[str, float],
    widths: dict[tuple[str, str], list[float]],
    verdicts: dict[tuple[str, str], dict[str, int]],
) -> None:
    for finding in paper.judge(dict(result), published, {}):
        if finding.claim.evidence != "measured":
            continue
        key = (paper.name, finding.claim.id)
        counts = verdicts.setdefault(key, {})
        counts[finding.verdict] = counts.get(finding.verdict, 0) + 1
        if finding.low is not None and finding.high is not None:
            widths.setdefault(key, []).append((finding.high - finding.low) / 2)


def _parts(grid: pd.DataFrame, base: list[Any]) -> list[tuple[str, "pd.Series[bool]", list[Any]]]:
    """(name, rows that stay, runs that go): each size, each size's seeds beyond the first, each longest horizon."""
    found: list[tuple[str, pd.Series[bool], list[Any]]] = []
    for size in dict.fromkeys(run.size for run in base):
        mine = [run for run in base if run.size == size]
        found.append((f"size {size}", grid["size"] != size, mine))
        first = min(run.spec.seed for run in mine)
        more = [run for run in mine if run.spec.seed != first]
        if more:
            stays = (grid["size"] != size) | (grid["seed"] == str(first))
            found.append((f"seeds of {size} but the first", stays, more))
    return [part for part in found if part[1].any()]


def read_measured(reports: Path) -> pd.DataFrame | None:
    """The pool's rows so far, diverged runs left out; None while there are no tables."""
    from shared.laws.tables import read_pool

    tables = reports / "runs.csv", reports / "measurements.csv"
    if not all(path.exists() for path in tables):
        return None
    pool = read_pool(*tables)
    return pool[~pool["diverged"] & (pool["base_run_id"] == "") & (pool["method"] == "rtn")]
