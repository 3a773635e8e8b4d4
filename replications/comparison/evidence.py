"""What the pool's tables say about claims for which no law of a paper is fitted: quantities by name with 95 %
intervals, which claims look up (shared/report/evidence.py). The regions stand with the claims.

Held-out rows (heldout.yaml) are among what is read here without a law: steps, equal N P and parts. Nothing is fitted to
them.

- `pool/trunk/...`   d ln delta / d ln D at each N before the learning rate has decayed (claim S1)
- `pool/forms/...`   which form of the bits describes the deltas (G3, S3b)
- `pool/same/...`    differences of exponents between sizes and between horizons (S10)
- `pool/step/...`    d L / d ln D after rounding, between neighbouring horizons (G2b)
- `pool/past/...`    the same past our own D_crit (K3d, G13)
- `pool/equal_NP/...` losses at equal N P (G14b)
- `pool/trained/...` exponents, multipliers and pairs of low-precision training (quantized.py, multipliers.py,
  beside.py)
- `pool/methods/...` other methods of rounding, `pool/further/...` rounding of low-precision runs (rounded.py)
"""

from collections.abc import Iterator
from dataclasses import replace
from itertools import combinations, pairwise

import numpy as np
import pandas as pd
from scipy.stats import t as student

from replications.comparison import beside, drawn, multipliers, quantized, rounded
from replications.comparison.own import GROUP_SIZE, PHASE, Own
from replications.kumar_precision.law import LAW as EXPONENTIAL
from replications.low_precision import cells, of_paper
from replications.papers import HELD_OUT
from replications.undertrained_qid.law import LAW as POWER
from shared.laws.law import Array, Columns
from shared.laws.loglinear import REFERENCE_BITS, REFERENCE_D, REFERENCE_N, log_linear
from shared.laws.noise import SeedNoise, seed_noise
from shared.laws.result import interval
from shared.laws.settings import HeldOut, read_settings
from shared.laws.study import CELL, DIVERGED, FITTED, SHORT
from shared.laws.weighted import fit_weighted
from shared.report.evidence import Seen
from shared.report.results import PaperFit

B_TRAIN = 16.0  # the pool's block matrices are trained in BF16
N_STARTS, SEED = 64, 1
EQUAL_NP = 0.02  # as shares: integers of bits and whole layers seldom give more
Evidence = dict[str, Seen]


def _gap_features(columns: Columns) -> Array:
    gap = np.log((B_TRAIN - columns["bits"]) / (B_TRAIN - REFERENCE_BITS))
    return np.stack([np.log(columns["D"] / REFERENCE_D), -np.log(columns["N"] / REFERENCE_N), gap], axis=-1)


# The page's power of the gap with exponents of D and N of their own, as the two other forms have them: what is compared
# is the form of the bits alone. Constants are those at the reference point.
GAP = log_linear(
    name="power of the gap",
    source="the page's law, with separate exponents of D and N",
    inputs=("N", "D", "bits"),
    parameters=("level", "gamma_D", "gamma_N", "delta"),
    features=_gap_features,
    slope_bounds=[(-3.0, 3.0), (-3.0, 3.0), (-5.0, 60.0)],
    start_box=[(-0.5, 1.5), (-0.5, 1.5), (0.5, 20.0)],
    to_raw=lambda theta: theta,
    from_raw=lambda raw: raw,
)
FORMS = {"exponential": EXPONENTIAL, "power": POWER, "gap": GAP}


def collect(
    rows: pd.DataFrame,
    runs: pd.DataFrame,
    fits: list[PaperFit],
    own: Own,
    pool: pd.DataFrame | None = None,
    rates: pd.DataFrame | None = None,
) -> Evidence:
    """`rows` of `study.select` (all phases and groups), `runs` as runs.csv with numbers in loss_se, the papers' fits
    and our own D_crit; `pool` of `read_pool` (all methods), and `rates`, the runs at several learning rates. What the
    tables cannot tell yet is absent."""
    shown = rows[(rows["phase"] == PHASE) & (rows["group_size"] == GROUP_SIZE)]
    fitted = shown[shown["use"] == FITTED]
    found = {**_trunk(fits), **_same(fits)}
    if len(fitted):
        of_phase = rows[(rows["phase"] == PHASE) & (rows["use"] == FITTED)]
        found |= forms(fitted, seed_noise(of_phase, CELL))
    measured = shown[~shown["use"].isin([SHORT, DIVERGED])]
    measured = measured.merge(runs[["run_id", "loss_se"]], on="run_id", how="left")
    if len(measured):
        steps = list(_steps(measured))
        found |= {f"pool/step/{item.label}": item for bits, _, item in steps if bits == 4}
        found |= _past(steps, own)
        found |= _equal_NP(measured)
    return {**found, **_trained(runs, own, rates), **_rounded(rows, runs, own, pool)}


def _trained(runs: pd.DataFrame, own: Own, rates: pd.DataFrame | None) -> Evidence:
    """What low-precision training costs; multipliers only where Chinchilla's law could be fitted to base runs."""
    rules = read_settings(HELD_OUT, HeldOut)
    table = cells(runs, rules)
    if table.empty:
        return {}
    every = drawn.draw(table[table["how"] != ""])
    found = {**quantized.chen(every, own.clean), **quantized.sun(every, own.clean)}
    found |= {**beside.one_bit(every), **beside.formats(every)}
    if own.clean is not None:
        found |= {**multipliers.frantar(every, own.clean), **multipliers.kumar(every, own.clean)}
    if rates is not None:
        tried = cells(rates, rules, noise_from=runs)
        found |= quantized.learning_rates(drawn.draw(tried[tried["how"] != ""]))
    return found


def _rounded(rows: pd.DataFrame, runs: pd.DataFrame, own: Own, pool: pd.DataFrame | None) -> Evidence:
    if pool is None:
        return {}
    noise = {phase: seed_noise(some[some["use"] == FITTED], CELL) for phase, some in rows.groupby("phase")}
    if set(noise) != {"cooled", "trunk"}:
        return {}
    found = rounded.methods(pool, noise)
    share = None
    table = cells(runs, read_settings(HELD_OUT, HeldOut))
    if own.clean is not None and len(table):
        weights = of_paper("kumar_precision", table).get("Eq. 4")
        if weights is not None:
            alone = weights[weights["how"].str.fullmatch("weights=[^,]*")]
            share = multipliers.share_of(multipliers.multipliers(drawn.draw(alone), own.clean), "w")
    return found | rounded.further(pool, runs, noise["cooled"], share)


def _trunk(fits: list[PaperFit]) -> Evidence:
    part = next((p for fit in fits for p in fit.parts if (p.phase, p.group_size) == ("trunk", GROUP_SIZE)), None)
    other = next((p for fit in fits for p in fit.parts if (p.phase, p.group_size) == (PHASE, GROUP_SIZE)), None)
    if part is None:
        return {}
    cooled = {s["N"]: s for s in (other.law_free["D_at_N"] if other else [])}
    note = "cooled: " + ", ".join(
        f"{s['value']:.3g} [{s['low']:.3g}, {s['high']:.3g}] at N = {N / 1e6:.3g}M" for N, s in sorted(cooled.items())
    )
    return {
        f"pool/trunk/N={s['N']:.0f}": Seen(
            s["value"], s["low"], s["high"], _scale([q["N"] for q in part.law_free["D_at_N"]]),
            note if cooled else "", f"trunk, N = {s['N'] / 1e6:.3g}M",
        )
        for s in part.law_free["D_at_N"]
    }  # fmt: skip


def _scale(sizes: list[float], D: list[float] | None = None) -> str:
    """In 1e6 parameters and 2^20 tokens."""
    tokens = "" if D is None else f", {min(D) / 2**20:g}-{max(D) / 2**20:g}M tokens"
    return f"{min(sizes) / 1e6:.2g}-{max(sizes) / 1e6:.2g}M parameters{tokens}"


def forms(table: pd.DataFrame, noise: SeedNoise) -> Evidence:
    """AICc of the best other form less that of each form. All have four constants, so that the penalties cancel and
    what remains is twice the difference of the log likelihoods, each with its own weights at the fixed point
    (weighted.py). Its interval is that of a sum over cells (Vuong 1989), where the cells of one N and D, which share
    checkpoints, count as one: Student's, over these clusters."""
    surprise: dict[str, Array] = {}
    for name, law in FORMS.items():
        generator = np.random.default_rng(SEED)
        numbers = table.assign(**{key: table[key].astype(float) for key in law.inputs})
        solved, _ = fit_weighted(law, numbers, noise, N_STARTS, 20, generator, "trunk_id", "N")
        off = solved.target - law.predict(solved.theta, solved.columns)
        of_cell = solved.weight * off**2 - np.log(solved.weight)
        cluster = pd.DataFrame({key: solved.columns[key] for key in ("N", "D")}).groupby(["N", "D"]).ngroup()
        surprise[name] = np.bincount(cluster, of_cell).astype(float)
    total = {name: float(values.sum()) for name, values in surprise.items()}
    shown = ", ".join(f"{name} {value - min(total.values()):.3g}" for name, value in total.items())
    evidence = {}
    for name, mine in surprise.items():
        rest = surprise[min((other for other in total if other != name), key=lambda other: total[other])]
        value, n = float((rest - mine).sum()), len(mine)
        half = float(student.ppf(0.975, n - 1) * np.sqrt(n) * (rest - mine).std(ddof=1)) if n > 1 else np.inf
        evidence[f"pool/forms/{name}"] = Seen(
            value, value - half, value + half, _scale(list(table["N"]), list(table["D"])),
            f"AICc above the least: {shown}; four constants each, {len(table)} rows",
            trunks=table["trunk_id"].nunique(), by_law=True,
        )  # fmt: skip
    return evidence


def _same(fits: list[PaperFit]) -> Evidence:
    """Each pair of exponents: their difference over the mean of all. That the largest and the smallest are within a
    share of each other says that every pair is. Slopes are drawn as normal and independent; those at different D share
    trunks, so that their differences are rather too wide."""
    part = next((p for fit in fits for p in fit.parts if (p.phase, p.group_size) == (PHASE, GROUP_SIZE)), None)
    found: Evidence = {}
    generator = np.random.default_rng(SEED)
    for key, over, unit in (("D_at_N", "N", 1e6), ("N_at_D", "D", 2**20)) if part else ():
        slopes = part.law_free[key] if part else []
        if len(slopes) < 2:
            continue
        sd = np.array([(s["high"] - s["low"]) / (2 * 1.959964) for s in slopes])
        value = np.array([s["value"] for s in slopes])
        drawn = value + sd * generator.standard_normal((20_000, len(slopes)))
        mean, means = np.abs(value.mean()), np.abs(drawn.mean(axis=-1))
        for i, j in combinations(range(len(slopes)), 2):
            low, high = interval((drawn[:, j] - drawn[:, i]) / means)
            names = " and ".join(f"{slopes[k][over] / unit:.3g}M" for k in (i, j))
            found[f"pool/same/{key}/{i}-{j}"] = Seen(
                float((value[j] - value[i]) / mean), float(low), float(high), "cooled, per channel",
                label=f"exponent of {key[0]} at {over} = {names}",
            )  # fmt: skip
    return found


def _steps(rows: pd.DataFrame) -> Iterator[tuple[float, tuple[float, float, float], Seen]]:
    """(bits, (N, from D, to D), d L / d ln D) for neighbouring horizons: the mean over seeds of the same trunk's
    change. The scatter over seeds is pooled over the steps of one bit width; the validation error of both ends is
    taken as independent, though both see the same sequences: rather too wide."""
    for bits, of_bits in rows.groupby("bits", sort=True):
        cells, squares, dof = [], 0.0, 0
        for N, of_size in of_bits.groupby("N", sort=True):
            loss = of_size.pivot_table(index="trunk_id", columns="D", values="loss")
            error = (
                of_size.assign(square=of_size["loss_se"] ** 2 + of_size["delta_se"] ** 2).groupby("D")["square"].mean()
            )
            for first, last in pairwise(sorted(loss.columns)):
                slopes = ((loss[last] - loss[first]) / np.log(last / first)).dropna().to_numpy()
                if len(slopes):
                    squares, dof = squares + float(np.sum((slopes - slopes.mean()) ** 2)), dof + len(slopes) - 1
                    variance = float(error[first] + error[last]) / np.log(last / first) ** 2
                    cells.append((float(N), float(first), float(last), slopes, variance))
        if not dof:
            continue  # no size has two seeds: nothing says what another one would change
        for N, first, last, slopes, variance in cells:
            half = float(student.ppf(0.975, dof) * np.sqrt(squares / dof / len(slopes) + variance))
            value = float(slopes.mean())
            label = f"{bits:g} bits, N = {N / 1e6:.3g}M, {first / 2**20:g}M to {last / 2**20:g}M tokens"
            scale = _scale([c[0] for c in cells], [c[1] for c in cells] + [c[2] for c in cells])
            yield float(bits), (N, first, last), Seen(value, value - half, value + half, scale, "", label, len(slopes))


def _past(steps: list[tuple[float, tuple[float, float, float], Seen]], own: Own) -> Evidence:
    """The last step of each size in 2 and 3 bits, where it begins past the upper end of our own D_crit. Where it ends
    at a held-out horizon that end is no part of the fits behind D_crit."""
    found: Evidence = {}
    if own.clean is None or own.rounded is None:
        return found
    note = "steps to the longest horizon that begin past the 95 % interval of D_crit by our own fits (derived.json)"
    for bits, (N, first, last), item in steps:
        longest = max(end for _, (size, _, end), _ in steps if size == N)
        high = float(np.quantile(own.critical_tokens(N, bits)[1:], 0.975)) if bits in (2, 3) else np.inf
        if last == longest and first > high:
            found[f"pool/past/{item.label}"] = replace(item, note=note)
    return found


def _equal_NP(rows: pd.DataFrame) -> Evidence:
    """Loss of the smaller model in more bits less that of the larger in fewer, at the same D."""
    cells = rows.groupby(["D", "N", "bits"])
    table = cells.agg(loss=("loss", "mean"), n=("loss", "size"), sd=("loss", "std")).reset_index()
    table["square"] = (
        rows.assign(square=rows["loss_se"] ** 2 + rows["delta_se"] ** 2)
        .groupby(["D", "N", "bits"])["square"]
        .mean()
        .to_numpy()
    )
    table["dof"] = table["n"] - 1
    pooled = table.assign(total=table["sd"].fillna(0.0) ** 2 * table["dof"]).groupby("bits")[["total", "dof"]].sum()
    found: Evidence = {}
    scale = _scale(list(table["N"]), list(table["D"]))
    for D, some in table.groupby("D"):
        for a, b in combinations(some.sort_values(["N", "bits"]).to_dict("records"), 2):
            if a["N"] < b["N"] and abs(a["N"] * a["bits"] / (b["N"] * b["bits"]) - 1) <= EQUAL_NP:
                dof = min(int(pooled.loc[one["bits"], "dof"]) for one in (a, b))
                if not dof:
                    continue
                spread = [
                    pooled.loc[one["bits"], "total"] / pooled.loc[one["bits"], "dof"] / one["n"] for one in (a, b)
                ]
                half = float(student.ppf(0.975, dof) * np.sqrt(sum(spread) + a["square"] + b["square"]))
                value = float(a["loss"] - b["loss"])
                label = (
                    f"{a['N'] / 1e6:.3g}M in {a['bits']:g} bits less {b['N'] / 1e6:.3g}M in {b['bits']:g}, "
                    f"{D / 2**20:g}M tokens"
                )
                found[f"pool/equal_NP/{label}"] = Seen(
                    value, value - half, value + half, scale, "rounded after training; N P equal within 2 %", label,
                    int(a["n"] + b["n"]),
                )  # fmt: skip
    return found
