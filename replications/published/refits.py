"""The papers' laws on published runs: constants with intervals, and who predicts runs that it has not seen.

Every quantity has a name under which claims look it up (shared/report/refits.py).
"""

from collections.abc import Mapping
from dataclasses import asdict, dataclass, field, replace
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from replications.capybara_fp.law import LAW as CAPYBARA
from replications.comparison.elasticities import POINT, refitted_row
from replications.compression_laws.law import effective_parameters, effective_parameters_and_data
from replications.kumar_precision import law as kumar
from replications.published import tables
from replications.published.sources import locate, sources
from replications.qat_scaling.law import LAW as CHEN
from shared.files import sha256_file, write_json
from shared.laws import chinchilla
from shared.laws.compare import LEFT_OUT, ROLLOUT, Comparison, compare
from shared.laws.fit import Fit, fit, hold
from shared.laws.law import Array, Columns, Law
from shared.laws.terms import LEVEL, LOG_D, LOG_N, Parameter, Term, law_of_terms, split
from shared.report.refits import Refit

LOG_SQUARES = "least-squares-log"
ON_CHINCHILLA = "240 runs of Hoffmann et al., 57M to 16B parameters"
ON_QUEST = "runs of QuEST, 30M to 822M parameters, 25 to 100 tokens for each"
ON_QUARTET = "runs of Quartet, 30M to 822M parameters, 25 to 1600 tokens for each"
N_BOOT = 1000
SEED = 1
# With the integers' exponent bits all zero, (E + 1/2)^delta is one constant beside gamma: delta stays as published.
CAPYBARA_DELTA = 3.1926
Refits = dict[str, Refit]
TOGETHER = "rollout in N and D"  # where both leave out the same rows


@dataclass(frozen=True)
class Fitted:
    """A fit and how its elasticities are read: the point beside `POINT`, what a bit more is, what the runs do not vary
    (as `comparison.elasticities`)."""

    paper: str
    law: Law
    found: Fit
    label: str
    at: Mapping[str, float] = field(default_factory=dict)
    bit: Mapping[str, float] = field(default_factory=dict)
    without: tuple[str, ...] = ()
    of: str = "delta"

    def row(self) -> dict[str, Any]:
        """Its row of the table of elasticities."""
        at = {**POINT, **self.at}
        label = f"refitted, {self.label}" + ("" if self.found.status == "CONVERGED" else f"; {self.found.status}")
        return refitted_row(
            self.paper, self.law, label, self.found.theta, self.found.draws, at, self.bit, self.without, self.of
        )


def write_refits(reports: Path, n_boot: int = N_BOOT) -> list[Path]:
    """Refit everything to the tables of `sources.folder()`; writes published/refits.json, elasticities.json and
    comparisons.json.

    Raises BitlawError when a table is absent or another one.
    """
    refits: Refits = {}
    compared: dict[str, Comparison] = {}
    for part in (on_chinchilla, on_quest, on_quest_deltas, on_quartet):
        refits |= part(n_boot)
    refits |= forms_of_precision()
    for part_of in (extrapolation_quest, extrapolation_quartet, extrapolation_deltas):
        compared |= part_of()
    compared = {name: once(comparison) for name, comparison in compared.items()}
    for name, comparison in compared.items():
        for score in comparison.scores:
            for which, error in score.errors.items():
                refits[f"{name}/{which.replace(' ', '_')}/{score.law}"] = Refit(
                    error.value, error.low, error.high, ON_QUEST if name.startswith("quest") else ON_QUARTET,
                    f"mean |ln(measured / predicted)| of {error.rows} unseen runs",
                )  # fmt: skip
    refits |= without_tokens(compared)
    inputs = {name: sha256_file(locate(name)) for name in ("chinchilla", "quest", "quartet")}
    known = sources()
    target = reports / "published"
    write_json(target / "refits.json", {name: asdict(refit) for name, refit in refits.items()})
    about = {
        "inputs": {
            name: {"sha256": sha256, "origin": known[name].origin, "commit": known[name].commit}
            for name, sha256 in inputs.items()
        },
        "comparisons": {name: comparison.to_json() for name, comparison in compared.items()},
    }
    write_json(target / "comparisons.json", about)
    write_json(target / "elasticities.json", elasticity_rows(n_boot))
    return [target / name for name in ("refits.json", "comparisons.json", "elasticities.json")]


def elasticity_rows(n_boot: int = N_BOOT) -> list[dict[str, Any]]:
    """Every refitted law's slopes at one point, with the intervals of its draws. Chen's are his exponents: they stand
    in refits.json."""
    fitted = [*quest_widths(n_boot), *quest_multipliers(n_boot), *quartet_multipliers(n_boot)]
    fitted += [
        Fitted("capybara_fp", *quest_capybara(n_boot), "QuEST, W = A, E0M3, delta as published",
               {"E": 0.0, "M": 3.0, "B": 2.0}, {"M": 1.0}, ("B",)),
        Fitted("comparison", chinchilla.LAW, chinchilla_fit(n_boot), "240 runs of Hoffmann et al.", of="loss"),
    ]  # fmt: skip
    return [one.row() for one in fitted]


@cache
def chinchilla_fit(n_boot: int) -> Fit:
    return fit(chinchilla.LAW, tables.chinchilla(), recipe="hoffmann-huber", n_boot=n_boot, seed=SEED)


def on_chinchilla(n_boot: int = N_BOOT) -> Refits:
    """Chinchilla by the recipe of its replication."""
    found = chinchilla_fit(n_boot)
    return {
        f"chinchilla/{name}": _refit(found, name, ON_CHINCHILLA, f"standard error {found.parameters[name].se:.4g}")
        for name in found.parameters
    }


@cache
def quest_frantar(n_boot: int) -> tuple[Law, Fit]:
    table, groups = tables.with_codes(tables.quest(), "bf16")
    law = effective_parameters(groups)
    return law, fit(law, table, recipe=LOG_SQUARES, n_boot=n_boot, seed=SEED)


def quest_multipliers(n_boot: int) -> list[Fitted]:
    law, found = quest_frantar(n_boot)
    return [
        Fitted("compression_laws", law, found, f"QuEST, {label}", {"compression": float(law.groups.index(group))})
        for group, label in (("4", "W = A in 4 bits"), ("weight_only_4", "weights in 4 bits"))
    ]


@cache
def quest_widths(n_boot: int) -> tuple[Fitted, ...]:
    """Kumar's f(P) with and without bias, on weight-only and on W = A runs."""
    table, _ = tables.with_codes(tables.quest(), "bf16")
    bf16 = float(0)
    found = []
    for family, label in (("quest_weight_only", "weights in 4 bits"), ("quest_int", "W = A in 4 bits")):
        rows = table[(table["family"] == family) | (table["compression"] == bf16)].assign(bits=table["P_w"])
        for law in (kumar.EQ3_BIAS, kumar.EQ3):
            result = fit(law, rows, recipe=LOG_SQUARES, n_boot=n_boot, seed=SEED)
            bias = "with a bias" if law is kumar.EQ3_BIAS else "no bias"
            found.append(Fitted("kumar_precision", law, result, f"QuEST, {label} ({bias})", bit={"bits": 1.0}))
    return tuple(found)


@cache
def quest_capybara(n_boot: int) -> tuple[Law, Fit]:
    """Capybara on W = A integers as E0M(P-1) (`tables.as_floating_point`)."""
    rows = _quest_integers("quest_int")[0]
    found = fit(CAPYBARA, rows, recipe=LOG_SQUARES, n_boot=n_boot, seed=SEED, fixed={"delta": CAPYBARA_DELTA})
    return CAPYBARA, found


@cache
def quartet_fit(n_boot: int) -> tuple[Law, Fit]:
    table, groups = tables.with_codes(tables.quartet(), "bf16/bf16")
    law = effective_parameters_and_data(groups)
    return law, fit(law, table, recipe="huber", n_boot=n_boot, seed=SEED)


def quartet_multipliers(n_boot: int) -> list[Fitted]:
    law, found = quartet_fit(n_boot)
    pairs = {"QuEST/bf16": "forward pass", "bf16/stochastic": "backward pass", "QuEST/stochastic": "both passes"}
    return [
        Fitted("compression_laws", law, found, f"Quartet, {label} in MXFP4",
               {"compression": float(law.groups.index(group))})
        for group, label in pairs.items()
        if group in law.groups
    ]  # fmt: skip


def on_quest(n_boot: int = N_BOOT) -> Refits:
    """Frantar's multipliers on all runs, Kumar's f(P) with and without bias on weight-only and on W=A runs, Capybara on
    W=A runs."""
    law, found = quest_frantar(n_boot)
    table, groups = tables.with_codes(tables.quest(), "bf16")
    refits = {}
    for group in groups[1:]:
        name = group if group.startswith(("no_hadamard", "fp4", "sparse")) else group.replace("_only_", "_only/")
        key = f"quest/eff/{name}" if group.isdigit() else f"quest/eff_{name}"
        refits[key] = _refit(found, f"eff_{group}", f"104 {ON_QUEST}")
    for name in ("alpha", "beta", "E"):
        refits[f"quest/{name}"] = _refit(found, name, f"104 {ON_QUEST}")
    for E in (0.5, 1.0, 1.4, 1.69):
        held = fit(law, table, recipe=LOG_SQUARES, n_boot=n_boot, seed=SEED, fixed={"E": E})
        note = f"E held at {E}: sum of squares {2 * held.objective:.3g} against {2 * found.objective:.3g} when free"
        refits[f"quest/eff/4/E={E}"] = _refit(held, "eff_4", f"104 {ON_QUEST}", note)
    for one in quest_widths(n_boot):
        name = "weight_only" if "weights" in one.label else "int"
        suffix = "" if one.law is kumar.EQ3_BIAS else "/no_bias"
        note = f"{one.law.name}, rms of ln loss {one.found.rms:.2g}"
        for constant in one.law.parameters[5:]:
            refits[f"quest/{name}/{constant}{suffix}"] = _refit(
                one.found, constant, f"{one.found.rows} {ON_QUEST}", note
            )  # fmt: skip
    _, capybara = quest_capybara(n_boot)
    note = f"integers of P bits as E0M(P-1), delta held at {CAPYBARA_DELTA}; rms of ln loss {capybara.rms:.2g}"
    for constant in CAPYBARA.parameters:
        if constant != "delta":
            refits[f"quest/capybara/{constant}"] = _refit(capybara, constant, f"{capybara.rows} {ON_QUEST}", note)
    return refits


def on_quest_deltas(n_boot: int = N_BOOT) -> Refits:
    """Chen's exponents on QuEST's W=A runs of each bit width, and on Quartet's forward and backward runs. There is no
    granularity in them, so that gamma_G is held at zero and k holds what it would say."""
    parts = {f"quest/{{}}/{bits}": (rows, ON_QUEST) for bits, rows in _quest_deltas().items()}
    for name, rows in _quartet_deltas().items():
        parts[f"quartet/{name}/{{}}"] = (rows, ON_QUARTET)
    refits = {}
    for name, (rows, where) in parts.items():
        found = fit(
            CHEN, rows.assign(G=128.0), recipe=LOG_SQUARES, n_boot=n_boot, seed=SEED, fixed={"gamma_G": 0.0}
        )  # fmt: skip
        for constant in ("gamma_D", "gamma_N"):
            refits[name.format(constant)] = _refit(found, constant, f"{len(rows)} {where}", "squares of ln delta")
    return refits


def _quest_deltas() -> dict[int, pd.DataFrame]:
    all_quest, quartet = tables.quest(), tables.quartet()
    # Quartet first: it has all three horizons of four sizes, and at 200M the two code bases differ by .007 nats.
    quest = tables.deltas(all_quest[all_quest["family"] == "quest_int"], quartet, all_quest)
    return {bits: quest[quest["P_w"] == bits] for bits in (2, 3, 4)}


def _quartet_deltas() -> dict[str, pd.DataFrame]:
    quartet, quest = tables.quartet(), tables.quest()
    groups = {"forward": "QuEST/bf16", "backward": "bf16/stochastic"}
    return {
        name: tables.deltas(quartet[quartet["compression"] == group], quartet, quest) for name, group in groups.items()
    }


def on_quartet(n_boot: int = N_BOOT) -> Refits:
    """Quartet's law: all at once, and as its notebook does, the unquantized law first and each multiplier alone."""
    table, _ = tables.with_codes(tables.quartet(), "bf16/bf16")
    law, found = quartet_fit(n_boot)
    stepwise = quartet_step_by_step(table, law)
    refits = {}
    for key, constant in (("eff_N/forward_quest", "effN_QuEST"), ("eff_D/backward_stochastic", "effD_stochastic")):
        note = f"fitted to all groups at once; as the notebook fits it, {stepwise[constant]:.4f}"
        refits[f"quartet/{key}"] = _refit(found, constant, f"174 {ON_QUARTET}", note)
    for name in ("alpha", "beta", "E", "gamma"):
        refits[f"quartet/{name}"] = _refit(found, name, f"174 {ON_QUARTET}", f"step by step {stepwise[name]:.4f}")
    return refits


def quartet_step_by_step(table: pd.DataFrame, law: Law) -> dict[str, float]:
    """The notebook's fit (plots.ipynb, cells 4 to 6): Huber with corner 1e-4; the base on BF16 runs alone, then one
    multiplier on the runs of its group with everything else held. Also `objective`, of the base."""
    code = law.groups.index
    names = [name for name in law.parameters if name.startswith("eff")]
    base_rows = table[table["compression"] == code("bf16/bf16")]
    base = fit(law, base_rows, recipe="quartet-huber", n_boot=20, seed=SEED, fixed=dict.fromkeys(names, 1.0))
    known = {name: base.parameters[name].value for name in law.parameters if name not in names}
    found = {**known, "objective": base.objective}
    for group, name in (("QuEST/bf16", "effN_QuEST"), ("bf16/stochastic", "effD_stochastic")):
        rows = table[table["compression"] == code(group)]
        others = {**known, **{other: 1.0 for other in names if other != name}}
        step = fit(law, rows, recipe="quartet-huber", n_boot=20, seed=SEED, fixed=others)
        found[name] = step.parameters[name].value
    return found


def extrapolation_quest() -> dict[str, Comparison]:
    """Kumar's f(P), Frantar's multipliers and Capybara on W=A integers, and the first two on weight-only runs."""
    found = {}
    for name, family in (("int", "quest_int"), ("weight_only", "quest_weight_only")):
        rows, groups = _quest_integers(family)
        laws = [kumar.EQ3, kumar.EQ3_BIAS, effective_parameters(groups)]
        if name == "int":
            laws.append(hold(CAPYBARA, {"delta": CAPYBARA_DELTA}))
        found[f"quest/extrapolation/{name}"] = compare(laws, rows, recipe=LOG_SQUARES, seed=SEED)
    return found


def _quest_integers(family: str) -> tuple[pd.DataFrame, tuple[str, ...]]:
    """Runs of one family and the BF16 ones, with the inputs of all laws; and their groups."""
    table = tables.quest()
    rows, groups = tables.with_codes(table[table["family"].isin(["bf16", family])], "bf16")
    return tables.as_floating_point(rows.assign(bits=rows["P_w"])), groups


def extrapolation_quartet() -> dict[str, Comparison]:
    """One multiplier of N for each pair of precisions (Frantar) against one for each pass (Quartet)."""
    table, groups = tables.with_codes(tables.quartet(), "bf16/bf16")
    laws = [effective_parameters(groups), effective_parameters_and_data(groups)]
    return {"quartet/extrapolation": compare(laws, table, recipe="huber", seed=SEED)}


def extrapolation_deltas() -> dict[str, Comparison]:
    """Chen's delta(N, D) against what a multiplier of N makes of it, delta = k / N^gamma_N, on the deltas of each bit
    width of QuEST and of Quartet's forward pass. There is one granularity, so that gamma_G is zero in both."""
    chen = hold(CHEN, {"gamma_G": 0.0})
    multiplier = replace(hold(CHEN, {"gamma_G": 0.0, "gamma_D": 0.0}), name="multiplier")
    parts = {f"quest/extrapolation/delta_{bits}": rows for bits, rows in _quest_deltas().items()}
    parts["quartet/extrapolation/delta_forward"] = _quartet_deltas()["forward"]
    return {
        name: compare([chen, multiplier], rows.assign(G=128.0), recipe=LOG_SQUARES, seed=SEED)
        for name, rows in parts.items()
    }


def without_tokens(compared: Mapping[str, Comparison]) -> Refits:
    """What leaving D out of Chen's law costs: the error of the multiplier of `extrapolation_deltas`, each size left
    out, less that of the law."""
    refits = {}
    for name, comparison in compared.items():
        by_law = {score.law: score for score in comparison.scores}
        if set(by_law) != {"chen_delta", "multiplier"} or comparison.split != LEFT_OUT:
            continue
        gap, sign = by_law["multiplier"].behind, 1.0
        if gap is None:
            gap, sign = by_law["chen_delta"].behind, -1.0
        assert gap is not None
        low, high = sorted((sign * gap.low, sign * gap.high))
        refits[f"{name}/without_D_less_with_D"] = Refit(
            sign * gap.value, low, high, ON_QUEST if name.startswith("quest") else ON_QUARTET,
            f"difference of the mean |ln(measured / predicted)| of {gap.rows} unseen runs",
        )  # fmt: skip
    return refits


def once(comparison: Comparison) -> Comparison:
    """Where N and D rise together a rollout in one is a rollout in the other: the same rows, stored as one result."""
    N, D = ROLLOUT["N"], ROLLOUT["D"]
    if not all(N in score.errors and score.errors[N] == score.errors.get(D) for score in comparison.scores):
        return comparison
    scores = []
    for score in comparison.scores:
        rest = {name: error for name, error in score.errors.items() if name not in (N, D)}
        scores.append(replace(score, errors={**rest, TOGETHER: score.errors[N]}))
    note = f"N and D rise together in these runs: {N} and {D} leave out the same rows and are one result, '{TOGETHER}'"
    return replace(comparison, scores=tuple(scores), notes=(*comparison.notes, note))


def _additive_terms(theta: Array, columns: Columns) -> list[Term]:
    level_N, alpha, level_D, beta, _, level, rate = split(theta)
    n, d = np.log(columns["N"]) - LOG_N, np.log(columns["D"]) - LOG_D
    bits = np.log(columns["bits"] / 4)
    return [
        Term(level_N - alpha * n, {0: 1.0, 1: -n}),
        Term(level_D - beta * d, {2: 1.0, 3: -d}),
        Term(level - rate * bits, {5: 1.0, 6: -bits}),
    ]


# The rival form of Kumar's Table 1: a power of P that is added to the loss, whatever N and D are. A to E are free in
# both forms, and C is the cost at 4 bits.
ADDITIVE = law_of_terms(
    name="additive",
    source="Kumar et al., arXiv 2411.04330, Table 1: independent power law, two constants of precision",
    inputs=("N", "D", "bits"),
    parameters=(
        *chinchilla.base(tied=False),
        Parameter("C", LEVEL, None, log=True),
        Parameter("rate", (0.0, 20.0), (0.5, 6.0)),
    ),
    terms=_additive_terms,
    constant="E",
)


def forms_of_precision() -> Refits:
    """Held-out R^2 of the effective N (Eq. 3 with its bias) less that of the additive form: each size of QuEST is
    predicted from all others, the variance is that of the held-out losses. Intervals: rows resampled, fits kept."""
    refits = {}
    for name, family in (("int", "quest_int"), ("weight_only", "quest_weight_only")):
        rows = _quest_integers(family)[0]
        loss = rows["loss"].to_numpy(float)
        errors = []
        for law in (kumar.EQ3_BIAS, ADDITIVE):
            predicted = np.zeros(len(rows))
            for N in rows["N"].unique():
                unseen = (rows["N"] == N).to_numpy()
                found = fit(law, rows[~unseen], recipe=LOG_SQUARES, n_boot=2, seed=SEED)
                predicted[unseen] = law.predict(
                    found.theta, {key: rows.loc[unseen, key].to_numpy(float) for key in law.inputs}
                )  # fmt: skip
            errors.append((loss - predicted) ** 2)
        drawn = np.random.default_rng(SEED).integers(0, len(rows), (N_BOOT, len(rows)))
        some = np.concatenate([np.arange(len(rows))[None], drawn])
        r2 = [1 - error[some].sum(axis=-1) / (len(rows) * loss[some].var(axis=-1)) for error in errors]
        low, high = np.quantile(r2[0][1:] - r2[1][1:], [0.025, 0.975])
        note = (
            f"R^2 {r2[0][0]:.4f} of the effective N and {r2[1][0]:.4f} of the additive form, each size left out in turn"
        )
        refits[f"quest/{name}/R2_effective_less_additive"] = Refit(
            float(r2[0][0] - r2[1][0]), float(low), float(high), f"{len(rows)} {ON_QUEST}", note
        )  # fmt: skip
    return refits


def _refit(found: Fit, constant: str, scale: str, note: str = "") -> Refit:
    e = found.parameters[constant]
    bounds = [reason for reason in found.reasons if reason.startswith("at a bound")]
    said = "" if found.status == "CONVERGED" else "; ".join([found.status, *(bounds or found.reasons)[:1]])
    return Refit(e.value, e.low, e.high, scale, "; ".join(part for part in (note, said) if part))
