"""Does the objective of LNQ never rise (arXiv 2505.07004, Proposition 4.1)? Its steps on the matrices of checkpoints.

The proposition is of exact arithmetic and code books of any values. Here a code book's entries are stored in FP32 or
FP16, and `shared.quantize.lnq` holds back a channel that a step would raise; a row has the objective that the step came
out with before that, summed over channels, beside the one that it began with.
"""

import math
from collections.abc import Mapping, Sequence
from typing import Any

from replications.precision_predictor.allocating import Bench
from shared.errors import BitlawError
from shared.quantize.lnq import Entries, lnq

KEY = ("checkpoint", "layer", "bits", "entries", "step")
BITS = (2, 3, 4)
ENTRIES: tuple[Entries, ...] = ("FP32", "FP16")
STEPS = ("code books", "codes")  # by turns

Row = Mapping[str, Any]


def steps(bench: Bench) -> list[dict[str, Any]]:
    """A row for each matrix, width, way to store and step: what the step is of, and the objective before and after."""
    rows = []
    for layer, weight_OI in bench.weights.items():
        hessians_gII = bench.known[layer].guided.hessians_gII
        for bits in BITS:
            for entries in ENTRIES:
                made = lnq(weight_OI, hessians_gII, bits, entries=entries)
                for k, (before, after) in enumerate(zip(made.objectives, made.proposed, strict=False)):
                    rows.append({
                        "layer": layer, "bits": bits, "entries": entries, "step": k + 1, "of": STEPS[k % 2],
                        "before": before, "proposed": after, "damping": made.damping,
                    })  # fmt: skip
    return rows


def summarise(rows: Sequence[Row]) -> dict[str, dict[str, Any]]:
    """By how entries are stored: {"steps", "matrices", "highest", "lowest"}, the last two the largest and the smallest
    change of a step, ln(proposed / before). Raises BitlawError for an objective that is not positive."""
    found: dict[str, dict[str, Any]] = {}
    for entries in ENTRIES:
        some = [row for row in rows if row["entries"] == entries]
        for row in some:
            if not (row["before"] > 0 and row["proposed"] > 0):
                raise BitlawError(
                    f"lnq.csv: {row['checkpoint']} {row['layer']} has no positive objective; run it again"
                )
        if some:
            changes = [math.log(row["proposed"] / row["before"]) for row in some]
            found[entries] = {
                "steps": len(some), "matrices": len({(row["checkpoint"], row["layer"]) for row in some}),
                "highest": max(changes), "lowest": min(changes),
            }  # fmt: skip
    return found
