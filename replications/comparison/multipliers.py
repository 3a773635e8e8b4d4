"""Effective parameters of our low-precision runs: the share eff of N with which an unquantized model of ours would have
the same loss, from each delta and Chinchilla's law on our unquantized runs,

    delta = A / (N eff)^alpha - A / N^alpha,   so that   eff = (1 + delta N^alpha / A)^(-1 / alpha),

and what Frantar et al. and Kumar et al. say of it. Names begin with `pool/trained/frantar/` and `pool/trained/kumar/`.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import pandas as pd
from scipy.optimize import least_squares

from replications.comparison.drawn import Drawn, ends, most_apart, place, ratio, seen
from replications.comparison.quantized import Evidence, size_term
from replications.compressed import WIDE
from replications.compression_laws.law import GROUPED, LOG_EFF
from replications.low_precision import of_paper
from shared.laws.chinchilla import LAW as CHINCHILLA
from shared.laws.fit import Fit
from shared.laws.law import Array
from shared.laws.study import FITTED, HELD_OUT, SHORT

STREAMS = {"w": "P_w", "a": "P_a", "kv": "P_kv"}
N_SOLVED = 150  # draws for which f of a stream is solved
LEAST_KEPT = 1e-6  # of 1 + delta N^alpha / A, where a quantized model is better than any size
WIDTHS = np.linspace(1.0, 24.0, 921)  # where P* is looked for, in bits
EDGE = 1e-9


@dataclass(frozen=True)
class Multipliers:
    """Cells with their eff and the term A / N^alpha, both (1 + draws, cells), and alpha (1 + draws,)."""

    cells: Drawn
    eff: Array
    term: Array
    alpha: Array

    def only(self, some: "pd.Series[bool] | Array") -> "Multipliers":
        at = np.flatnonzero(np.asarray(some, dtype=bool))
        return Multipliers(self.cells.only(some), self.eff[:, at], self.term[:, at], self.alpha)


def multipliers(cells: Drawn, base: Fit) -> Multipliers:
    n = min(len(cells.delta), 1 + len(base.draws))
    alpha = CHINCHILLA.to_raw(np.concatenate([base.theta[None], base.draws[: n - 1]]))[
        :, CHINCHILLA.parameters.index("alpha")
    ]
    alpha = np.maximum(alpha, 1e-3)  # where N does nothing no share of it is small enough
    term = size_term(base, cells.table["N"].to_numpy(float), n)
    kept = np.maximum(1 + cells.delta[:n] / term, LEAST_KEPT)
    eff = np.exp(np.clip(-np.log(kept) / alpha[:, None], *LOG_EFF))
    return Multipliers(Drawn(cells.table, cells.delta[:n]), eff, term, alpha)


def frantar(drawn: Drawn, base: Fit) -> Evidence:
    """eff of each compression, how much it differs over N and D, and whether two compressions multiply."""
    found: Evidence = {}
    tables = of_paper("compression_laws", drawn.table)
    if not tables:
        return found
    table = tables["multipliers"]
    mine = multipliers(drawn.of(table[table["use"] != SHORT]), base)
    of_cell: dict[tuple[str, str], Array] = {}
    for name, some in mine.cells.table.groupby(GROUPED):
        at = some.index.to_numpy()
        places = [place(row) for _, row in some.iterrows()]
        of_cell |= {(str(name), where): mine.eff[:, k] for k, where in zip(at, places, strict=True)}
        for k, where in zip(at, places, strict=True):
            found[f"pool/trained/frantar/cell/{name}/{where}"] = seen(
                mine.eff[:, k], some.loc[[k]], label=where, by_law=True
            )
        fitted = at[(some["use"] == FITTED).to_numpy()]
        if len(fitted):
            found[f"pool/trained/frantar/eff/{name}"] = seen(
                _pooled(mine, fitted), some.loc[fitted], label=str(name), by_law=True,
                note="one multiplier for all N and D, fitted to deltas with A and alpha of the unquantized runs",
            )  # fmt: skip
        apart = most_apart(mine.eff[:, at], places)
        if apart is not None:
            kind = _kind(str(name))
            found[f"pool/trained/frantar/spread/{kind}/{name}"] = ends(
                *apart[:3], some, label=f"{name}, {apart[3]}", by_law=True
            )
    for (name, where), joint in of_cell.items():
        parts = name.split("+")
        if len(parts) == 2 and all((part, where) in of_cell for part in parts):
            product = of_cell[parts[0], where] * of_cell[parts[1], where]
            here = mine.cells.table[[place(row) == where for _, row in mine.cells.table.iterrows()]]
            found[f"pool/trained/frantar/product/{name}/{where}"] = seen(
                ratio(joint, product), here[here[GROUPED].isin([name, *parts])], label=f"{name}, {where}", by_law=True
            )
    return found


def _kind(name: str) -> str:
    """W4A4 is quantized, 2:4 is sparse, sparse0.5+W4 is both."""
    return "both" if "+" in name else "quantized" if name.startswith(("W", "A")) else "sparse"


def _pooled(mine: Multipliers, at: Array) -> Array:
    """(1 + draws,) one multiplier of several cells: least squares of the deltas, linear in eff^-alpha - 1."""
    weight = 1 / mine.cells.table["sd"].to_numpy(float)[at] ** 2
    x, y = mine.term[:, at], mine.cells.delta[:, at]
    lost = np.sum(weight * x * y, axis=-1) / np.sum(weight * x * x, axis=-1)
    return np.asarray(np.exp(np.clip(-np.log(np.maximum(1 + lost, LEAST_KEPT)) / mine.alpha, *LOG_EFF)))


def kumar(drawn: Drawn, base: Fit) -> Evidence:
    """f of weights, activations and KV cache, their product, P*, and the additive form beside the effective N."""
    tables = of_paper("kumar_precision", drawn.table)
    if "Eq. 4" not in tables:
        return {}
    table = tables["Eq. 4"]
    mine = multipliers(drawn.of(table[table["use"] != SHORT]), base)
    found = {**_independent(mine), **_most_sensitive(mine), **_one_at_a_time(mine)}
    shares = {x: some for x in STREAMS if (some := share_of(mine.only(_alone(mine.cells.table, x)), x)) is not None}
    if "w" in shares:
        here = mine.cells.table[_alone(mine.cells.table, "w")]
        gain = shares["w"].at(8.0) / shares["w"].at(6.0)
        found["pool/trained/kumar/saturation"] = seen(
            gain, here, label="f_w(8) / f_w(6)", note=shares["w"].note, by_law=True
        )
        found |= _additive(mine.only(_alone(mine.cells.table, "w")))
    if set(shares) == set(STREAMS):
        product = np.prod([some.at(WIDTHS) for some in shares.values()], axis=0)
        best = WIDTHS[np.argmax(product / WIDTHS, axis=-1)]
        note = "; ".join(f"{x}: {some.note}" for x, some in shares.items())
        found["pool/trained/kumar/best_bits"] = seen(best, mine.cells.table, label="P*", note=note, by_law=True)
    return found


def _alone(table: pd.DataFrame, stream: str) -> "pd.Series[bool]":
    """Cells that cut this stream and no other."""
    others = [column for x, column in STREAMS.items() if x != stream]
    return (table[STREAMS[stream]] < WIDE) & (table[others] == WIDE).all(axis=1)


def _independent(mine: Multipliers) -> Evidence:
    """f of joint cells over the product of f of single ones with the same bits, at the same N and D."""
    found: Evidence = {}
    table = mine.cells.table
    for index, row in table.iterrows():
        cut = [x for x, column in STREAMS.items() if row[column] < WIDE]
        if len(cut) < 2:
            continue
        singles = []
        for x in cut:
            same = table[_alone(table, x) & (table[STREAMS[x]] == row[STREAMS[x]])]
            singles.append(same[(same["N"] == row["N"]) & (same["D"] == row["D"]) & (same["size"] == row["size"])])
        if all(len(some) == 1 for some in singles):
            at = [int(some.index[0]) for some in singles]
            bits = "".join(f"{x.upper()}{row[STREAMS[x]]:g}" for x in cut)
            joint = int(str(index))
            share = ratio(mine.eff[:, joint], np.prod(mine.eff[:, at], axis=-1))
            label = f"{bits}, {place(row)}"
            found[f"pool/trained/kumar/product/{label}"] = seen(
                share, table.loc[[joint, *at]], label=label, by_law=True
            )
    return found


def _most_sensitive(mine: Multipliers) -> Evidence:
    """ln f_w - ln f_a at 3 bits, weights per channel and activations per tensor, at one N and D."""
    found: Evidence = {}
    table = mine.cells.table
    for index, row in table[_alone(table, "w") & (table["P_w"] == 3)].iterrows():
        same = table[_alone(table, "a") & (table["P_a"] == 3) & (table["N"] == row["N"]) & (table["D"] == row["D"])]
        for other in same[same["size"] == row["size"]].index:
            off = np.log(mine.eff[:, int(str(index))]) - np.log(mine.eff[:, int(str(other))])
            found[f"pool/trained/kumar/sensitive/{place(row)}"] = seen(
                off, table.loc[[int(str(index)), other]], label=place(row), by_law=True
            )
    return found


@dataclass(frozen=True)
class Share:
    """f(P) = 1 - exp(-P / gamma + n) of one stream: gamma and n (1 + draws,)."""

    gamma: Array
    bias: Array
    note: str

    def at(self, bits: "float | Array") -> Array:
        """(1 + draws,) or (1 + draws, bits); zero where the form is not above zero."""
        P = np.asarray(bits, dtype=float)
        gamma, bias = (v.reshape(-1, *[1] * P.ndim) for v in (self.gamma, self.bias))
        return np.maximum(1 - np.exp(-P / gamma + bias), 0.0)


def share_of(mine: Multipliers, stream: str) -> Share | None:
    """Eq. 3's factor of one stream with the bias of Appendix K: least squares of the deltas of cells that cut it alone
    (fitted ones), for the measured deltas and for draws. None where there are not two widths and three cells."""
    found = shares_of(mine, (stream,))
    return found[stream] if found else None


def shares_of(mine: Multipliers, streams: Sequence[str]) -> dict[str, Share]:
    """The factors of several streams at once, from cells that cut any of them. Nothing where a stream has not two
    widths, or cells are not more than constants."""
    mine = mine.only((mine.cells.table["use"] == FITTED).to_numpy())
    bits = {x: mine.cells.table[STREAMS[x]].to_numpy(float) for x in streams}
    cut = {x: width < WIDE for x, width in bits.items()}
    if len(mine.cells.table) <= 2 * len(streams) or any(len(np.unique(bits[x][cut[x]])) < 2 for x in streams):
        return {}
    sd = mine.cells.table["sd"].to_numpy(float)
    lowest = {x: bits[x].min() for x in streams}

    def split(theta: Array) -> Array:
        """(streams, 2) gamma, and n from what is lost at the lowest width: in (0, 1), so that f is above zero at every
        cell."""
        gamma, lost = np.exp(theta[::2]), 1 / (1 + np.exp(-theta[1::2]))
        return np.stack([gamma, np.log(lost) + np.array(list(lowest.values())) / gamma], axis=-1)

    found, start = [], np.tile([0.0, -1.0], len(streams))
    ends_of = [np.tile(end, len(streams)) for end in ([np.log(0.1), -12.0], [np.log(20.0), 8.0])]
    for k in range(1 + min(N_SOLVED, len(mine.eff) - 1)):

        def off(theta: Array, k: int = k) -> Array:
            f = np.ones(len(sd))
            for x, (gamma, bias) in zip(streams, split(theta), strict=True):
                f = f * np.where(cut[x], np.maximum(1 - np.exp(-bits[x] / gamma + bias), EDGE), 1.0)
            return np.asarray((mine.term[k] * (f ** -mine.alpha[k] - 1) - mine.cells.delta[k]) / sd)

        solved = least_squares(off, start, bounds=ends_of, x_scale=1.0)
        start = solved.x if k == 0 else start
        found.append(split(solved.x))
    values = np.array(found)
    return {
        x: Share(gamma, bias, f"gamma_{x} = {gamma[0]:.3g}, n_{x} = {bias[0]:.3g} on {len(sd)} cells")
        for x, (gamma, bias) in zip(streams, values.transpose(1, 2, 0), strict=True)
    }


def _one_at_a_time(mine: Multipliers) -> Evidence:
    """Mean relative error on joint cells of factors that were fitted to one stream at a time over that of factors
    fitted to all cells together. Scored are joint cells clear of the noise at horizons where not every stream was cut
    alone; neither fit sees those horizons."""
    table = mine.cells.table
    alone = {x: _alone(table, x) for x in STREAMS}
    whole = set.intersection(*({*table.loc[some, "D"]} for some in alone.values()))
    joint = (table[list(STREAMS.values())] < WIDE).sum(axis=1) > 1
    scored = joint & ~table["D"].isin(whole) & (table["use"] == FITTED) & (table["delta"] > 2 * table["sd"])
    before = mine.only(table["D"].isin(whole).to_numpy())
    apart = {x: share_of(before.only(_alone(before.cells.table, x)), x) for x in STREAMS}
    together = shares_of(before, tuple(STREAMS))
    if not scored.any() or not together or None in apart.values():
        return {}
    hidden = mine.only(scored.to_numpy())
    n = min(1 + N_SOLVED, len(mine.eff))
    truth, errors = hidden.cells.delta[:n], []
    for shares in (apart, together):
        f = np.ones(truth.shape)
        for x, column in STREAMS.items():
            bits, share = hidden.cells.table[column].to_numpy(float), shares[x]
            f = f * np.where(bits < WIDE, np.maximum(share.at(bits), EDGE), 1.0) if share else f
        predicted = hidden.term[:n] * (f ** -hidden.alpha[:n, None] - 1)
        errors.append(np.mean(np.abs(predicted / truth - 1), axis=-1))
    note = f"relative errors {errors[0][0]:.2g} and {errors[1][0]:.2g} on {truth.shape[1]} joint cells"
    return {
        "pool/trained/kumar/one_at_a_time": seen(
            ratio(errors[0], errors[1]), hidden.cells.table, note=note, by_law=True
        )
    }


def _additive(mine: Multipliers) -> Evidence:
    """R^2 of held-out deltas by the effective N (its form above) less that by a power of P that is added whatever N
    and D are, C (P / 4)^-rate; both are fitted to the same cells of weights alone."""
    hidden = mine.only((mine.cells.table["use"] == HELD_OUT).to_numpy())
    share = share_of(mine, "w")
    if share is None or len(hidden.cells.table) < 3:
        return {}
    n = len(share.gamma)
    fitted = mine.only((mine.cells.table["use"] == FITTED).to_numpy())
    bits, sd = fitted.cells.table["P_w"].to_numpy(float), fitted.cells.table["sd"].to_numpy(float)
    unseen = hidden.cells.table["P_w"].to_numpy(float)
    rates = np.linspace(0.0, 20.0, 401)
    shape = (bits[None] / 4) ** -rates[:, None]
    level = (fitted.cells.delta[:n] / sd**2) @ shape.T / np.sum(shape**2 / sd**2, axis=-1)
    cost = np.sum(((fitted.cells.delta[:n, None] - level[..., None] * shape) / sd) ** 2, axis=-1)
    best = np.argmin(cost, axis=-1)
    added = level[np.arange(n), best][:, None] * (unseen[None] / 4) ** -rates[best][:, None]
    shrunk = hidden.term[:n] * (np.maximum(share.at(unseen), EDGE) ** -mine.alpha[:n, None] - 1)
    truth = hidden.cells.delta[:n]
    r2 = [1 - np.mean((truth - p) ** 2, axis=-1) / truth.var(axis=-1) for p in (shrunk, added)]
    note = f"R^2 of delta {r2[0][0]:.3f} and {r2[1][0]:.3f} on {truth.shape[1]} held-out cells, two constants each"
    return {"pool/trained/kumar/additive": seen(r2[0] - r2[1], hidden.cells.table, note=note, by_law=True)}
