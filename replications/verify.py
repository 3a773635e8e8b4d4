"""Rows of runs.csv trained again: the same loss to the last digit on the processor and torch of the row, and within the
scatter of seeds anywhere else.
"""

import random
from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np

from replications.design_compressed import noise_of
from shared.errors import BitlawError
from shared.sweep.launch import expected_seconds
from shared.sweep.spec import NUMERICS_VERSION, Run

DIGITS = 1e-5  # share of a loss that the table's six digits leave open
STANDARD_DEVIATIONS = 3.0
START_SECONDS = 60.0  # of a worker: imports and compilation
Row = Mapping[str, str]


@dataclass(frozen=True)
class Verdict:
    """`allowed` is the largest difference in nats per token; `exact` where the numbers should be the row's own."""

    run: Run
    recorded: float
    again: float
    exact: bool
    allowed: float

    @property
    def holds(self) -> bool:
        return abs(self.again - self.recorded) <= self.allowed


def chosen(runs: list[Run], rows: Mapping[str, Row], gflops: dict[str, float], seconds: float, seed: int) -> list[Run]:
    """Random runs that one worker after the other can train again in `seconds`, each from its start.

    Raises BitlawError when no row of the profile converged, or the shortest does not fit.
    """
    known = [
        run
        for run in runs
        if (row := rows.get(run.spec.run_id)) is not None
        and row["diverged"] != "True"
        and int(row["numerics_version"]) == NUMERICS_VERSION
    ]
    if not known:
        raise BitlawError("no row of this profile converged under the present numerics: there is nothing to verify")
    cost = {run.spec.run_id: expected_seconds([run], gflops) + START_SECONDS for run in known}
    left, found = seconds, []
    for run in random.Random(seed).sample(known, len(known)):
        if cost[run.spec.run_id] <= left:
            left -= cost[run.spec.run_id]
            found.append(run)
    if not found:
        least = min(cost.values()) / 60
        raise BitlawError(f"the shortest run takes about {least:.0f} minutes: allow more with --minutes")
    return found


def compared(
    runs: list[Run], rows: Mapping[str, Row], again: Mapping[str, Row], noise: dict[int, float]
) -> list[Verdict]:
    """`noise`: standard deviation over seeds by horizon, for rows of another machine."""
    found = []
    for run in runs:
        row, new = rows[run.spec.run_id], again[run.spec.run_id]
        exact = all(row[name] == new[name] for name in ("cpu_model", "torch_version", "device"))
        recorded, value = float(row["loss"]), float(new["loss"] or "nan")
        # Without a horizon of two seeds nothing says how far another machine may be off.
        sd = float(noise_of(np.array([float(run.spec.tokens)]), noise)[0]) if noise else 0.0
        allowed = DIGITS * recorded if exact else STANDARD_DEVIATIONS * sd
        found.append(Verdict(run, recorded, value, exact, allowed))
    return found
