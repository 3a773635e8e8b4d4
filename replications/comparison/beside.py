"""Runs of low-precision training beside each other, without a law: models in one bit as tokens are added (Ouyang et
al., arXiv 2411.17691, Figure 14), and 4 bits as integers and as floats in the same places (Chen et al., arXiv
2505.14302). Names begin with `pool/trained/one_bit/` and `pool/trained/chen/formats/`."""

from dataclasses import replace

import numpy as np

from replications.comparison.drawn import Drawn, place, seen
from shared.report.evidence import Seen

ONE_BIT = {
    "weights": {"weights": "BINARY@channel"},
    "weights and activations": {"weights": "BINARY@channel", "activations": "BINARY@token"},
}
PLACES = {"per channel and token": ("channel", "token"), "in groups of 8": ("8", "8")}


def one_bit(drawn: Drawn) -> dict[str, Seen]:
    """d delta / d ln D at each size of 1-bit runs with two horizons or more: least squares with the cells' noise."""
    found: dict[str, Seen] = {}
    table = drawn.table
    for name, fields in ONE_BIT.items():
        mine = drawn.only(np.array([one == fields for one in table["fields"]], dtype=bool))
        for size, some in mine.table.groupby("size"):
            x, weight = np.log(some["D"].to_numpy(float)), 1 / some["sd"].to_numpy(float) ** 2
            if len(np.unique(x)) < 2:
                continue
            off = x - np.average(x, weights=weight)
            slope = mine.delta[:, some.index] @ (weight * off) / np.sum(weight * off**2)
            losses = ", ".join(f"{row['delta']:.3f} at {place(row)}" for _, row in some.sort_values("D").iterrows())
            found[f"pool/trained/one_bit/{name}/{size}"] = seen(
                slope, some, label=f"1-bit {name}, {size}", note=f"behind by {losses}"
            )
    return found


def formats(drawn: Drawn) -> dict[str, Seen]:
    """delta of E2M1 less that of INT4, weights and activations, at one size and horizon, the mean over the seeds of
    each. What base runs do to both cancels where the seeds are the same. The note says what it is in groups.
    """
    found = {words: _apart(drawn, *places) for words, places in PLACES.items()}
    whole, grouped = found.values()
    return {
        f"pool/trained/chen/formats/{where}": replace(item, note=item.note + _beside(grouped.get(where)))
        for where, item in whole.items()
    }


def _apart(drawn: Drawn, rows: str, columns: str) -> dict[str, Seen]:
    """By size and horizon."""
    found, table = {}, drawn.table
    sides = []
    for form in ("E2M1", "INT4"):
        fields = {"weights": f"{form}@{rows}", "activations": f"{form}@{columns}"}
        sides.append(table[np.array([one == fields for one in table["fields"]], dtype=bool)].reset_index())
    for pair in sides[0].merge(sides[1], on=["size", "D", "learning_rate"]).to_dict("records"):
        float_at, integer_at = int(pair["index_x"]), int(pair["index_y"])
        where = f"{pair['size']}, {pair['D'] / 2**20:g}M tokens"
        off = drawn.delta[:, float_at] - drawn.delta[:, integer_at]
        seeds = f"{pair['seeds_x']} seeds of FP4, {pair['seeds_y']} of INT4"
        found[where] = seen(off, table.loc[[float_at, integer_at]], label=where, note=seeds)
    return found


def _beside(item: Seen | None) -> str:
    return f"; in groups of 8: {item.value:.3g} [{item.low:.3g}, {item.high:.3g}], {item.note}" if item else ""
