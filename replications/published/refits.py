"""The papers' laws on published runs: constants with intervals, and who predicts runs that it has not seen.

Every quantity has a name under which claims look it up (shared/report/refits.py).
"""

from dataclasses import asdict
from pathlib import Path

import pandas as pd

from replications.capybara_fp.law import LAW as CAPYBARA
from replications.compression_laws.law import effective_parameters, effective_parameters_and_data
from replications.kumar_precision import law as kumar
from replications.published import tables
from replications.published.sources import locate, sources
from replications.qat_scaling.law import LAW as CHEN
from shared.files import sha256_file, write_json
from shared.laws import chinchilla
from shared.laws.compare import Comparison, compare
from shared.laws.fit import Fit, fit, hold
from shared.laws.law import Law
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


def write_refits(reports: Path, n_boot: int = N_BOOT) -> list[Path]:
    """Refit everything to the tables of `sources.folder()`; writes published/refits.json and comparisons.json.

    Raises BitlawError when a table is absent or another one.
    """
    refits: Refits = {}
    compared: dict[str, Comparison] = {}
    for part in (on_chinchilla, on_quest, on_quest_deltas, on_quartet):
        refits |= part(n_boot)
    for part_of in (extrapolation_quest, extrapolation_quartet):
        compared |= part_of()
    for name, comparison in compared.items():
        for score in comparison.scores:
            for split, error in score.errors.items():
                refits[f"{name}/{split.replace(' ', '_')}/{score.law}"] = Refit(
                    error.value, error.low, error.high, ON_QUEST if name.startswith("quest") else ON_QUARTET,
                    f"mean |ln(measured / predicted)| of {error.rows} unseen runs",
                )  # fmt: skip
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
    return [target / "refits.json", target / "comparisons.json"]


def on_chinchilla(n_boot: int = N_BOOT) -> Refits:
    """Chinchilla by the recipe of its replication."""
    found = fit(chinchilla.LAW, tables.chinchilla(), recipe="hoffmann-huber", n_boot=n_boot, seed=SEED)
    return _constants("chinchilla", found, ON_CHINCHILLA)


def on_quest(n_boot: int = N_BOOT) -> Refits:
    """Frantar's multipliers on all runs, Kumar's f(P) with and without bias on weight-only and on W=A runs."""
    table, groups = tables.with_codes(tables.quest(), "bf16")
    law = effective_parameters(groups)
    found = fit(law, table, recipe=LOG_SQUARES, n_boot=n_boot, seed=SEED)
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
    for name, family in (("weight_only", "quest_weight_only"), ("int", "quest_int")):
        rows = table[table["family"].isin([family, "bf16"])].assign(bits=table["P_w"])
        for law_of_bits, suffix in ((kumar.EQ3_BIAS, ""), (kumar.EQ3, "/no_bias")):
            by_bits = fit(law_of_bits, rows, recipe=LOG_SQUARES, n_boot=n_boot, seed=SEED)
            note = f"{law_of_bits.name}, rms of ln loss {by_bits.rms:.2g}"
            for constant in law_of_bits.parameters[5:]:
                refits[f"quest/{name}/{constant}{suffix}"] = _refit(by_bits, constant, f"{len(rows)} {ON_QUEST}", note)
    return refits


def on_quest_deltas(n_boot: int = N_BOOT) -> Refits:
    """Chen's exponents on QuEST's W=A runs of each bit width, and on Quartet's forward and backward runs. There is no
    granularity in them, so that gamma_G is held at zero and k holds what it would say."""
    all_quest, quartet = tables.quest(), tables.quartet()
    # Quartet first: it has all three horizons of four sizes, and at 200M the two code bases differ by .007 nats.
    quest = tables.deltas(all_quest[all_quest["family"] == "quest_int"], quartet, all_quest)
    parts = {f"quest/{{}}/{bits}": (quest[quest["P_w"] == bits], ON_QUEST) for bits in (2, 3, 4)}
    for name, group in (("forward", "QuEST/bf16"), ("backward", "bf16/stochastic")):
        rows = tables.deltas(quartet[quartet["compression"] == group], quartet, all_quest)
        parts[f"quartet/{name}/{{}}"] = (rows, ON_QUARTET)
    refits = {}
    for name, (rows, where) in parts.items():
        found = fit(
            CHEN, rows.assign(G=128.0), recipe=LOG_SQUARES, n_boot=n_boot, seed=SEED, fixed={"gamma_G": 0.0}
        )  # fmt: skip
        for constant in ("gamma_D", "gamma_N"):
            refits[name.format(constant)] = _refit(found, constant, f"{len(rows)} {where}", "squares of ln delta")
    return refits


def on_quartet(n_boot: int = N_BOOT) -> Refits:
    """Quartet's law: all at once, and as its notebook does, the unquantized law first and each multiplier alone."""
    table, groups = tables.with_codes(tables.quartet(), "bf16/bf16")
    law = effective_parameters_and_data(groups)
    found = fit(law, table, recipe="huber", n_boot=n_boot, seed=SEED)
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
        table = tables.quest()
        rows, groups = tables.with_codes(table[table["family"].isin(["bf16", family])], "bf16")
        rows = tables.as_floating_point(rows.assign(bits=rows["P_w"]))
        laws = [kumar.EQ3, kumar.EQ3_BIAS, effective_parameters(groups)]
        if name == "int":
            laws.append(hold(CAPYBARA, {"delta": CAPYBARA_DELTA}))
        found[f"quest/extrapolation/{name}"] = compare(laws, rows, recipe=LOG_SQUARES, seed=SEED)
    return found


def extrapolation_quartet() -> dict[str, Comparison]:
    """One multiplier of N for each pair of precisions (Frantar) against one for each pass (Quartet)."""
    table, groups = tables.with_codes(tables.quartet(), "bf16/bf16")
    laws = [effective_parameters(groups), effective_parameters_and_data(groups)]
    return {"quartet/extrapolation": compare(laws, table, recipe="huber", seed=SEED)}


def _constants(name: str, found: Fit, scale: str) -> Refits:
    return {f"{name}/{constant}": _refit(found, constant, scale) for constant in found.parameters}


def _refit(found: Fit, constant: str, scale: str, note: str = "") -> Refit:
    e = found.parameters[constant]
    bounds = [reason for reason in found.reasons if reason.startswith("at a bound")]
    said = "" if found.status == "CONVERGED" else "; ".join([found.status, *(bounds or found.reasons)[:1]])
    return Refit(e.value, e.low, e.high, scale, "; ".join(part for part in (note, said) if part))
