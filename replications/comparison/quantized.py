"""What training in low precision costs in our runs, as the claims of Chen et al. and Sun et al. ask it: exponents of
the papers' laws of delta, and ratios of cells at one N and D. Names begin with `pool/trained/chen/` and
`pool/trained/sun/`.

The laws are fitted to deltas, not to losses: a delta is the difference of two runs of one seed, in which what a law of
the unquantized loss gets wrong (3 % at these sizes, more than 4 bits cost) cancels.
"""

from dataclasses import replace

import numpy as np
import pandas as pd

from replications.comparison.drawn import Constants, Drawn, constants, ends, most_apart, place, ratio, seen, share
from replications.low_precision import of_paper, targets
from replications.qat_scaling.law import LAW as CHEN
from shared.laws.chinchilla import LAW as CHINCHILLA
from shared.laws.fit import Fit
from shared.laws.law import Array, Columns, Law
from shared.laws.loglinear import REFERENCE_D, REFERENCE_N, log_linear
from shared.laws.study import HELD_OUT
from shared.report.evidence import Seen

Evidence = dict[str, Seen]
NO_BIAS_GRID = np.geomspace(0.1, 20.0, 800)  # gamma of Kumar's form, in bits


def _sun_features(columns: Columns) -> Array:
    whole = columns["channel"]
    blocks = (1 - whole) * np.log(np.log2(np.maximum(columns["B"], 2.0)))
    return np.stack(
        [
            np.log(columns["D"] / REFERENCE_D), -np.log(columns["N"] / REFERENCE_N), blocks, whole,
            -np.log(columns["E"] + 0.5), -np.log(columns["M"] + 0.5),
        ],
        axis=-1,
    )  # fmt: skip


# Eq. 1's penalty with every exponent of its own, so that what the paper ties can be tested: D^phi / N^eta
# (log2 B)^kappa / (E + 1/2)^delta / (M + 1/2)^nu. A whole channel has a level of its own in place of (log2 B)^kappa.
SUN_FREE: Law = replace(
    log_linear(
        name="capybara_free",
        source="Sun et al., arXiv 2501.02423, Eq. 1, exponents untied",
        inputs=("N", "D", "E", "M", "B", "channel"),
        parameters=("level", "phi", "eta", "kappa", "channel", "delta", "nu"),
        features=_sun_features,
        slope_bounds=[(-3, 3), (-3, 3), (-5, 10), (-10, 15), (-5, 15), (-5, 15)],
        start_box=[(-0.2, 0.8), (-0.2, 0.8), (0.3, 2), (0, 4), (0.5, 4), (0.5, 4)],
        to_raw=lambda theta: theta,
        from_raw=lambda raw: raw,
    ),
    at_least_zero=("E", "M", "channel"),
)


def chen(drawn: Drawn, base: Fit | None) -> Evidence:
    """Constants of each way to quantize, their differences, the gain of an exception, and what is held out."""
    found: Evidence = {}
    fits: dict[str, Constants] = {}
    for name, table in of_paper("qat_scaling", drawn.table).items():
        one = constants(CHEN, drawn.of(table), name)
        if one is not None:
            fits[name] = one
            for key, values in one.values.items():
                found[f"pool/trained/chen/{name}/{key}"] = seen(
                    values, one.drawn.table, label=f"{key} of {name}", note=one.note, by_law=True
                )
    pairs = (("W4A16", "W16A4", "gamma_N"), ("W4A16", "W16A4", "gamma_D"), ("W16A4", "W4A16", "gamma_G"))
    for more, less, key in pairs:
        if more in fits and less in fits:
            a, b = fits[more], fits[less]
            n = min(len(a.theta), len(b.theta))
            found[f"pool/trained/chen/difference/{key}"] = seen(
                a.values[key][:n] - b.values[key][:n], pd.concat([a.drawn.table, b.drawn.table]),
                label=f"{key} of {more} less that of {less}", note=f"{a.note}; {b.note}", by_law=True,
            )  # fmt: skip
    return found | _parts(drawn) | _exceptions(drawn) | _held_out(drawn, fits, base)


def _parts(drawn: Drawn) -> Evidence:
    """W4A4 and its parts at each N, D and group where all three were trained: what activations lose more than weights
    (nats; R > 1 as a difference, which needs no delta above zero), and what both lose as a share of the sum."""
    found: Evidence = {}
    views = of_paper("qat_scaling", drawn.table)
    if not {"W4A4", "W4A16", "W16A4"} <= views.keys():
        return found
    key = ["size", "D", "learning_rate", "group"]
    at = {name: pd.MultiIndex.from_frame(views[name][key]) for name in ("W4A4", "W4A16", "W16A4")}
    of = {name: drawn.of(views[name]) for name in at}
    # Another way of rounding at the same place would be another question.
    alone = (set(index[~index.duplicated(keep=False)]) for index in at.values())
    for place_of in sorted(set.intersection(*alone)):
        both, weights, activations = (of[name].delta[:, at[name].get_loc(place_of)] for name in at)
        rows = pd.concat([of[name].table.iloc[[at[name].get_loc(place_of)]] for name in at])
        size, D, _, group = place_of
        groups = "per channel and token" if group == "channel" else f"groups of {group}"
        label = f"{size}, {D / 2**20:g}M tokens, {groups}"
        found[f"pool/parts/activations/{label}"] = seen(activations - weights, rows, label=label)
        found[f"pool/parts/sum/{label}"] = seen(share(both, weights + activations), rows, label=label)
    return found


def _exceptions(drawn: Drawn) -> Evidence:
    """The share of delta that 8 bits for the input of FC2 save. Both cells start from the same base run."""
    found: Evidence = {}
    table = drawn.table
    for index, row in table.iterrows():
        fields = dict(row["fields"])
        exception = str(fields.pop("exceptions", ""))
        if not exception.startswith("down.activations=INT8@") or "," in exception:
            continue
        rest = np.array([other == fields for other in table["fields"]], dtype=bool)
        same = table[rest & (table["N"] == row["N"]) & (table["D"] == row["D"]) & (table["size"] == row["size"])]
        same = same[same["learning_rate"] == row["learning_rate"]]
        if fields.get("weights", "").startswith("INT4") and fields.get("activations", "").startswith("INT4"):
            for other in same.index:
                saved = 1 - share(drawn.delta[:, int(str(index))], drawn.delta[:, int(str(other))])
                label = f"W4A4 {fields['weights'].partition('@')[2].partition(':')[0]}, {place(row)}"
                found[f"pool/trained/chen/FC2/{label}"] = seen(saved, table.loc[[index, other]], label=label)
    return found


def _held_out(drawn: Drawn, fits: dict[str, Constants], base: Fit | None) -> Evidence:
    """Mean relative error of Chen's law on held-out cells over that of a multiplier of N for each group, which is
    fitted to the same cells of that group (least squares; linear in eff^-alpha - 1)."""
    found: Evidence = {}
    if base is None:
        return found
    for name in ("W4A4", "W4A16"):
        if name not in fits:
            continue
        mine = drawn.of(of_paper("qat_scaling", drawn.table)[name])
        hidden = mine.only((mine.table["use"] == HELD_OUT) & (mine.table["delta"] > 2 * mine.table["sd"]))
        if len(hidden.table) < 2:
            continue
        n = min(len(fits[name].theta), len(hidden.delta), 1 + len(base.draws))
        columns = {key: hidden.table[key].to_numpy(float) for key in CHEN.inputs}
        of_law = CHEN.predict(fits[name].theta[:n], columns)
        term, term_hidden = (size_term(base, some.table["N"].to_numpy(float), n) for some in (mine.fitted, hidden))
        of_groups = np.full(of_law.shape, np.nan)
        for group in set(hidden.table["group"]):
            fitted = (mine.fitted.table["group"] == group).to_numpy()
            weight = 1 / mine.fitted.table["sd"].to_numpy(float)[fitted] ** 2
            x, y = term[:, fitted], mine.fitted.delta[:n, fitted]
            if fitted.any():
                lost = np.sum(weight * x * y, axis=-1) / np.sum(weight * x * x, axis=-1)
                here = (hidden.table["group"] == group).to_numpy()
                of_groups[:, here] = lost[:, None] * term_hidden[:, here]
        known = np.isfinite(of_groups[0])
        truth = hidden.delta[:n]
        errors = [np.mean(np.abs(p / truth - 1)[:, known], axis=-1) for p in (of_law, of_groups)]
        note = f"relative errors {errors[0][0]:.2g} and {errors[1][0]:.2g} on {int(known.sum())} held-out cells"
        found[f"pool/trained/chen/heldout/{name}"] = seen(
            ratio(errors[0], errors[1]), hidden.table, label=name, note=note, by_law=True
        )
    return found


def size_term(base: Fit, N: Array, n: int) -> Array:
    """(n, cells) A / N^alpha of Chinchilla's law on our unquantized runs, the fitted one first."""
    raw = CHINCHILLA.to_raw(np.concatenate([base.theta[None], base.draws[: n - 1]]))
    constant = dict(zip(CHINCHILLA.parameters, raw.T, strict=True))
    return np.asarray(constant["A"][:, None] * N[None] ** -constant["alpha"][:, None])


def learning_rates(drawn: Drawn) -> Evidence:
    """The largest over the smallest delta of W4A4 at one N and D over learning rates, of at least three."""
    found: Evidence = {}
    both = [set(f) == {"weights", "activations"} and all(str(v).startswith("INT4") for v in f.values())
            for f in drawn.table["fields"]]  # fmt: skip
    mine = drawn.only(np.array(both, dtype=bool))
    for (size, D, how), some in mine.table.groupby(["size", "D", "how"]):
        if some["learning_rate"].nunique() >= 3:
            at = some.index.to_numpy()
            labels = [f"{rate:g}" for rate in some["learning_rate"]]
            apart = most_apart(mine.delta[:, at], labels)
            if apart is not None:
                label = f"{size}, {D / 2**20:g}M tokens, {how}, {apart[3]}"
                found[f"pool/trained/chen/rates/{size}/{how}"] = ends(*apart[:3], some, label=label)
    return found


def sun(drawn: Drawn, base: Fit | None) -> Evidence:
    """Exponents of Eq. 1, what a channel counts as, Kumar's form at E1M1, and layouts of one width."""
    found = _layouts(drawn)
    tables = of_paper("capybara_fp", drawn.table)
    if not tables:
        return found
    table = tables["P2, P4, P6"]
    mine = drawn.of(table.assign(channel=(table["group"] == "channel").astype(float)))
    found |= _channel(mine) | (_kumar_form(mine, base) if base is not None else {})
    one = constants(SUN_FREE, mine)
    if one is None:
        return found
    here = one.drawn.table
    values = one.values | {f"grows/{key}": one.values[key] for key in ("phi", "eta")}
    values["difference"] = one.values["delta"] - one.values["nu"]
    if base is not None:
        n = min(len(one.theta), 1 + len(base.draws))
        raw = CHINCHILLA.to_raw(np.concatenate([base.theta[None], base.draws[: n - 1]]))
        known = dict(zip(CHINCHILLA.parameters, raw.T, strict=True))
        values["tied/phi over beta"] = ratio(one.values["phi"][:n], known["beta"])
        values["tied/eta over alpha"] = ratio(one.values["eta"][:n], known["alpha"])
    for key, some in values.items():
        label = "delta - nu" if key == "difference" else key.rpartition("/")[2]
        found[f"pool/trained/sun/{key}"] = seen(some, here, label=label, note=one.note, by_law=True)
    return found


def _channel(mine: Drawn) -> Evidence:
    """log2 B that a whole channel counts as, at each N, D and layout: its delta over delta / log2 B of the blocks."""
    found: Evidence = {}
    for (size, D, E, M), some in mine.table.groupby(["size", "D", "E", "M"]):
        blocks, whole = some[some["channel"] == 0], some[some["channel"] == 1]
        if len(blocks) and len(whole):
            x, weight = np.log2(blocks["B"].to_numpy(float)), 1 / blocks["sd"].to_numpy(float) ** 2
            per_bit = mine.delta[:, blocks.index] @ (weight * x) / np.sum(weight * x * x)
            label = f"{size}, {D / 2**20:g}M tokens, E{E:g}M{M:g}"
            shared = " to ".join(f"{b:g}" for b in sorted({blocks["B"].min(), blocks["B"].max()}))
            found[f"pool/trained/sun/channel/{label}"] = seen(
                share(mine.delta[:, int(whole.index[0])], per_bit), some, label=label,
                note=f"beside blocks of {shared}; the channels of these models have {whole['B'].iloc[0]:.0f} inputs",
            )  # fmt: skip
    return found


def _kumar_form(mine: Drawn, base: Fit) -> Evidence:
    """Mean residual at E1M1 of delta = c ((1 - exp(-P / gamma))^-alpha - 1), P = E + M + 1 (Eq. 6), in its standard
    errors; alpha is that of our unquantized runs. The cells of one N, D and group share a level c, so that the form of
    the bits alone is judged."""
    table = mine.table
    alpha = base.parameters["alpha"].value
    level = table.groupby(["size", "D", "group"], sort=True).ngroup().to_numpy()
    bits = (table["E"] + table["M"] + 1).to_numpy(float)
    three = [level == k for k in range(level.max() + 1) if len(set(bits[level == k])) >= 3]
    e1m1 = ((table["E"] == 1) & (table["M"] == 1)).to_numpy()
    used = np.any(three, axis=0) if three else np.zeros(len(table), dtype=bool)
    if not (used & e1m1).any():
        return {}
    weight = np.where(used, 1 / table["sd"].to_numpy(float) ** 2, 0.0)
    member = (level[:, None] == np.unique(level)).astype(float)
    best, residual = np.full(len(mine.delta), np.inf), np.zeros(len(mine.delta))
    for gamma in NO_BIAS_GRID:
        shape = (1 - np.exp(-bits / gamma)) ** -alpha - 1
        scaled = (mine.delta * (weight * shape)) @ member / np.maximum((weight * shape**2) @ member, 1e-300)
        off = mine.delta - (scaled @ member.T) * shape
        cost = np.sum(weight * off**2, axis=-1)
        residual = np.where(cost < best, off[:, used & e1m1].mean(axis=-1), residual)
        best = np.minimum(best, cost)
    z = float(residual[0] / np.std(residual[1:]))
    note = f"mean residual {residual[0]:.3g} nats at E1M1 of {int(used.sum())} cells"
    # In its own standard errors: the interval of a standard normal deviate.
    return {"pool/trained/sun/kumar_form": ends(z, z - 1.96, z + 1.96, table[used], label="E1M1", note=note)}


def _layouts(drawn: Drawn) -> Evidence:
    """Layouts of 4 bits beside E2M1 on the same places of the same models: what each costs more."""
    found: Evidence = {}
    table = drawn.table.assign(form=[targets(f)[0] for f in drawn.table["fields"]])
    others = [str(f).replace(form, "*") if form else "" for f, form in zip(table["fields"], table["form"], strict=True)]
    table = table.assign(places=others)
    for _, some in table[table["form"] != ""].groupby(["size", "D", "learning_rate", "places"]):
        reference = some[some["form"] == "E2M1"]
        for index, row in some[some["form"].isin(["E1M2", "E3M0"])].iterrows():
            for at in reference.index:
                label = f"{row['form']} less E2M1, {place(row)}"
                off = drawn.delta[:, int(str(index))] - drawn.delta[:, int(str(at))]
                found[f"pool/trained/sun/layout/{label}"] = seen(off, some, label=label)
    return found
