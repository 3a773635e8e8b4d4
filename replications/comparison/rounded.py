"""What other methods of post-training quantization show (claims K1e, O3), and what is lost by rounding models that were
trained in few bits (K11, K12). Names begin with `pool/methods/` and `pool/further/`.

One seed of each: what another would change is taken from round to nearest on unquantized runs, of which there are
several, as a share of delta by format. All cells of one checkpoint move together by it, those of two do not.
"""

from collections.abc import Mapping

import numpy as np
import pandas as pd

from replications.comparison.drawn import N_DRAWS, SEED
from replications.comparison.multipliers import Share
from replications.compressed import compression_of
from shared.evaluate.ptq import Cell
from shared.laws.law import Array
from shared.laws.noise import SeedNoise
from shared.laws.result import interval
from shared.laws.slopes import within
from shared.report.evidence import Seen

Evidence = dict[str, Seen]
CLEAR = 4.0  # standard errors above zero from which a delta has a logarithm, as in shared/laws/slopes.py
LEAST_STEPS, TOKENS_PER_STEP, LEAST_RATIO = 500, 4096, 10  # as in the papers' experiment.yaml
WIDE_BITS = 16.0
METHODS = ("rtn", "gptq", "awq")
OUYANG = {"AWQ, INT4 per channel": ("awq", "INT4", "channel"), "NF4 in blocks of 64": ("rtn", "NF4", "64")}


def methods(pool: pd.DataFrame, noise: Mapping[str, SeedNoise]) -> Evidence:
    """d ln delta / d ln D at each N for each method, per channel, cooled (Kumar's Appendix F); and of 4-bit AWQ and NF4
    on trunk checkpoints in D, and in N with the sign turned, over all of them (Ouyang's Figure 9).

    `pool` of `tables.read_pool`, `noise` of each phase. Only unquantized runs of one corpus, long enough to be fitted,
    and deltas clear of zero: of the validation error and of what seeds do to them.
    """
    rows = _usable(pool[pool["base_run_id"] == ""])
    found: Evidence = {}
    per_channel = (rows["phase"] == "cooled") & (rows["group_size"] == "channel") & (rows["seed"] == "1")
    for N, of_size in rows[per_channel & rows["format"].str.match(r"INT\d")].groupby("N"):
        slopes: Evidence = {}
        for method in METHODS:
            label = f"{method}, N = {float(str(N)) / 1e6:.3g}M"
            some = of_size[of_size["method"] == method]
            slopes |= _slope(f"pool/methods/cooled/{label}", label, some, "D", noise["cooled"])
        if len(slopes) == len(METHODS):  # the claim is about all three
            found |= slopes
    for name, (method, format_, group) in OUYANG.items():
        mine = rows[(rows["method"] == method) & (rows["format"] == format_) & (rows["group_size"] == group)]
        mine = mine[(mine["phase"] == "trunk") & (mine["seed"] == "1")]
        for along, label in (("D", f"{name}, in D"), ("N", f"{name}, in 1/N")):
            found |= _slope(f"pool/methods/trunk/{label}", label, mine, along, noise["trunk"])
    return found


def _usable(pool: pd.DataFrame) -> pd.DataFrame:
    rows = pool[~pool["diverged"] & (pool["corpus"] == "python")]
    rows = rows[rows["activation_format"].isin(["", "none"]) & rows["kv_format"].isin(["", "none"])].copy()
    for name in ("N", "D", "bits", "delta", "delta_se"):
        rows[name] = rows[name].astype(float)
    return rows[(rows["D"] >= LEAST_STEPS * TOKENS_PER_STEP) & (rows["D"] >= LEAST_RATIO * rows["N"])]


def _slope(name: str, label: str, rows: pd.DataFrame, along: str, noise: SeedNoise) -> Evidence:
    """d ln delta / d ln D, or minus d ln delta / d ln N, with a level of its own for every format and N (or D)."""
    some = rows[rows["delta"] >= CLEAR * np.hypot(rows["delta_se"], _spread(rows, noise) * rows["delta"])]
    if some[along].nunique() < 2:
        return {}
    y = _drawn_logs(some, noise)
    slopes = within(
        y,
        np.log(some[along].to_numpy(float))[:, None],
        some["format"].to_numpy(),
        some["N" if along == "D" else "D"].to_numpy(),
    )
    if slopes is None:
        return {}
    values = slopes[0][:, 0] if along == "D" else -slopes[0][:, 0]
    low, high = (float(end) for end in interval(values[1:]))
    note = f"{len(some)} cells clear of zero; one seed, its spread as that of round to nearest"
    return {name: Seen(float(values[0]), low, high, _scale(some), note, label, int(some["run_id"].nunique()))}


def _spread(rows: pd.DataFrame, noise: SeedNoise) -> Array:
    """(rows,) the spread of delta over seeds as a share of it; that of 4-bit integers for NF4."""
    return noise.of(rows.assign(format=rows["format"].replace("NF4", "INT4")))


def _drawn_logs(some: pd.DataFrame, noise: SeedNoise) -> Array:
    """(1 + draws, rows) ln delta with a deviate for each checkpoint and the validation error of each cell."""
    generator = np.random.default_rng(SEED)
    delta, error = some["delta"].to_numpy(float), some["delta_se"].to_numpy(float)
    checkpoint = pd.factorize(some["run_id"], sort=True)[0]
    widen = np.sqrt(noise.dof / generator.chisquare(noise.dof, size=(N_DRAWS, 1))) if noise.dof else 1.0
    common = generator.standard_normal((N_DRAWS, int(checkpoint.max()) + 1))[:, checkpoint]
    off = widen * _spread(some, noise) * delta * common + error * generator.standard_normal((N_DRAWS, len(some)))
    return np.log(np.concatenate([delta[None], np.maximum(delta + off, delta / 20)]))


def _scale(some: pd.DataFrame) -> str:
    N, D = some["N"] / 1e6, some["D"] / 2**20
    return f"{N.min():.2g}-{N.max():.2g}M parameters, {D.min():g}-{D.max():g}M tokens"


def further(pool: pd.DataFrame, runs: pd.DataFrame, noise: SeedNoise, share: Share | None) -> Evidence:
    """Rounding of runs that were trained with integers per channel for their weights, in P_w bits, to P_post < P_w.

    The change of delta for each bit of P_w from the lowest P_w to the highest (16 are the unquantized run's), at one N,
    D and P_post; and R^2 of ln delta against ln D, ln N and P_post less the same with N f(P_w) for N, f of `share`.
    """
    bits = {str(row["run_id"]): _trained_bits(row) for row in runs.to_dict("records")}
    rows = _usable(pool[(pool["method"] == "rtn") & (pool["group_size"] == "channel") & (pool["phase"] == "cooled")])
    rows = rows[rows["format"].str.match(r"INT\d") & (rows["seed"] == "1")]
    rows = rows.assign(P_w=[bits.get(run, np.nan) for run in rows["run_id"]]).dropna(subset=["P_w"])
    rows = rows[rows["bits"] < rows["P_w"]].reset_index(drop=True)
    trained = rows[rows["P_w"] < WIDE_BITS]
    if trained.empty:
        return {}
    here = trained[["N", "D"]].drop_duplicates()
    rows = rows.merge(here, on=["N", "D"])
    generator = np.random.default_rng(SEED)
    delta, error = rows["delta"].to_numpy(float), rows["delta_se"].to_numpy(float)
    checkpoint = pd.factorize(rows["run_id"], sort=True)[0]
    common = generator.standard_normal((N_DRAWS, int(checkpoint.max()) + 1))[:, checkpoint]
    off = noise.of(rows) * np.abs(delta) * common + error * generator.standard_normal((N_DRAWS, len(rows)))
    drawn = np.concatenate([delta[None], delta + off])
    found: Evidence = {}
    for (N, D, post), some in rows.groupby(["N", "D", "bits"]):
        order = some.sort_values("P_w")
        low, high = order.index[0], order.index[-1]
        if low == high:
            continue
        rise = (drawn[:, high] - drawn[:, low]) / float(rows.loc[high, "P_w"] - rows.loc[low, "P_w"])
        where = f"N = {N / 1e6:.3g}M, {D / 2**20:g}M tokens"
        label = f"P_w from {rows.loc[low, 'P_w']:g} to {rows.loc[high, 'P_w']:g}, P_post = {post:g}, {where}"
        left, right = (float(end) for end in interval(rise[1:]))
        found[f"pool/further/by_bit/{label}"] = Seen(
            float(rise[0]), left, right, _scale(some), "rounded to nearest per channel, nats a bit", label, 2
        )
    return found | _effective(rows, drawn, share)


def _effective(rows: pd.DataFrame, drawn: Array, share: Share | None) -> Evidence:
    clear = (rows["delta"] >= CLEAR * rows["delta_se"]).to_numpy()
    if share is None or rows.loc[clear, "N"].nunique() < 2 or rows.loc[clear, "D"].nunique() < 2:
        return {}
    some = rows[clear]
    n = min(len(drawn), len(share.gamma))
    y = np.log(np.maximum(drawn[:n, clear], some["delta"].to_numpy(float) / 20))
    f = np.where(some["P_w"].to_numpy(float) < WIDE_BITS, share.at(some["P_w"].to_numpy(float))[:n], 1.0)
    N, D, bits = (some[name].to_numpy(float) for name in ("N", "D", "bits"))
    r2 = []
    for sizes in (np.broadcast_to(N, f.shape), N * np.maximum(f, 1e-9)):
        fits = []
        for target, size in zip(y, sizes, strict=True):
            x = np.stack([np.ones_like(D), np.log(D), np.log(size), bits], axis=-1)
            left = target - x @ np.linalg.lstsq(x, target, rcond=None)[0]
            fits.append(1 - left.var() / target.var())
        r2.append(np.array(fits))
    gain = r2[1] - r2[0]
    low, high = (float(end) for end in interval(gain[1:]))
    note = f"R^2 of ln delta {r2[1][0]:.3f} with N f(P_w), {r2[0][0]:.3f} with N, on {len(some)} cells; {share.note}"
    return {
        "pool/further/effective_N": Seen(
            float(gain[0]), low, high, _scale(some), note, "", int(some["run_id"].nunique()), True
        )
    }


def _trained_bits(row: dict[object, object]) -> float:
    """P_w of a run that quantizes its weights per channel and nothing else, 16 of an unquantized one, else NaN."""
    fields = compression_of({str(key): value for key, value in row.items()})
    if not fields:
        return WIDE_BITS
    text = str(fields.get("weights", ""))
    plain = set(fields) == {"weights"} and text.startswith("INT") and text.partition("@")[2].startswith("channel")
    return Cell("rtn", text.partition("@")[0], "channel").bits if plain else float("nan")
