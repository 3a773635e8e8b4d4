"""The pool in parts, each a table of deltas with the inputs of every law that has them, and who competes on it.

A part's rows are cells: for rounded models the rows of measurements.csv (one a seed), for trained ones the means over
seeds of low_precision.cells. `use` says what a fit may see (heldout.yaml): fitted, held out, short. Models that are
trained in a format are held out by size and horizon, rounded ones by format too, as in trained.py and study.py.
"""

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path

import numpy as np
import pandas as pd

from replications import trained
from replications.capybara_fp.law import LAW as SUN
from replications.compressed import VIEWS, Widths
from replications.compression_laws.law import GROUPED, effective_parameters
from replications.copying import read_comparable
from replications.kumar_precision import law as kumar
from replications.low_precision import cells, of_view
from replications.papers import HELD_OUT, find
from replications.precision_predictor.law import FULL as PAGE
from replications.qat_scaling.law import LAW as CHEN
from replications.undertrained_qid.law import LAW as OUYANG
from replications.unified.error import Errors, errors_of
from replications.unified.forms import INPUT, STREAMS, TRAINED
from shared.errors import BitlawError
from shared.formats.names import format_named
from shared.laws.chinchilla import LAW as CHINCHILLA
from shared.laws.fit import fit
from shared.laws.law import Law
from shared.laws.noise import NO_NOISE, SeedNoise, seed_noise
from shared.laws.settings import HeldOut, Selection, read_settings
from shared.laws.study import CELL, FITTED, select
from shared.laws.study import HELD_OUT as HIDDEN
from shared.laws.tables import RUNS, read_pool

BASE = "base"
ERROR_COLUMNS = (INPUT, *STREAMS.values())
PHASES = {"cooled": "cooled", "trunk": "before the cooldown"}


@dataclass(frozen=True)
class Part:
    """`table` has N, D, size, format (what an inner split may leave out), `cell` (rows of one cell share it), delta,
    delta_se, trunk_id, use, and inputs of laws; `noise` is that of its fitted rows, `shown` of all. `laws` compete,
    in the paper's own form (a loss is fitted as `difference` of it); `own` are the laws of the paper whose part it is.
    """

    name: str
    about: str
    table: pd.DataFrame
    laws: tuple[Law, ...]
    own: tuple[str, ...]
    noise: SeedNoise = NO_NOISE
    shown: SeedNoise = NO_NOISE
    streams: tuple[str, ...] = field(default=())

    @property
    def fitted(self) -> pd.DataFrame:
        return self.table[self.table["use"] == FITTED].reset_index(drop=True)

    @property
    def hidden(self) -> pd.DataFrame:
        return self.table[self.table["use"] == HIDDEN].reset_index(drop=True)

    def without_hidden(self) -> "Part":
        """The part as selection may see it: the held-out rows are not there."""
        return replace(self, table=self.fitted, shown=self.noise)


@dataclass(frozen=True)
class Pool:
    """All parts, and Chinchilla's law on our unquantized runs, by the names of its constants."""

    parts: tuple[Part, ...]
    base: Mapping[str, float]

    def part(self, name: str) -> Part:
        return next(part for part in self.parts if part.name == name)


def read(reports: Path) -> Pool:
    """Every part of the two tables of `reports`. Raises BitlawError: a table that is absent or damaged."""
    for name in ("runs.csv", "measurements.csv"):
        if not (reports / name).exists():
            raise BitlawError(f"{reports / name}: there is no such table; `bitlaw train` and `bitlaw measure` write it")
    runs = read_comparable(reports / "runs.csv", RUNS)
    rules = read_settings(HELD_OUT, HeldOut)
    base = unquantized(runs, rules)
    table = with_errors(cells(runs, rules))
    return Pool((*rounded(reports, runs, rules), *trained_parts(table)), base)


def unquantized(runs: pd.DataFrame, rules: HeldOut) -> dict[str, float]:
    """A, alpha, B, beta, E of the cooled unquantized runs that a fit may see. Raises BitlawError for too few."""
    table = trained.unquantized(runs, rules)
    found = fit(CHINCHILLA, table, n_boot=2, seed=1, name="unquantized runs")
    return {name: estimate.value for name, estimate in found.parameters.items()}


def rounded(reports: Path, runs: pd.DataFrame, rules: HeldOut) -> list[Part]:
    """Rounded after training to integers: each phase, per channel as Kumar and Ouyang have it, and all groups."""
    selection = read_settings(find("kumar_precision").file("experiment.yaml"), Selection, "fit")
    rows = select(read_pool(reports / "runs.csv", reports / "measurements.csv"), selection, rules)
    widths = {row["run_id"]: Widths(int(row["d_model"]), int(row["d_ff"])) for row in runs.to_dict("records")}
    known: dict[tuple[str, str, Widths], Errors] = {}
    found, inputs = [], []
    for _, row in rows.iterrows():
        key = (str(row["format"]), str(row["group_size"]), widths[row["run_id"]])
        if key not in known:
            known[key] = errors_of({"weights": f"{key[0]}@{key[1]}"}, key[2])
        group = float(key[1]) if key[1].isdigit() else key[2].inputs
        inputs.append({INPUT: known[key].weights, "G": group, **_layout(key[0], group)})
    table = pd.concat([rows.drop(columns="bits").reset_index(drop=True), pd.DataFrame(inputs)], axis=1)
    table["cell"] = table[["phase", "size", "N", "D", "format", "group_size"]].astype(str).agg(" ".join, axis=1)
    table["code"] = table["format"] + "@" + table["group_size"]
    competing: tuple[Law, ...] = (kumar.LAW, OUYANG, PAGE, kumar.EQ3, kumar.EQ3_BIAS)
    of_rounding = (kumar.LAW.name, OUYANG.name, PAGE.name)
    for phase, said in PHASES.items():
        of_phase = table[(table["phase"] == phase) & table["use"].isin([FITTED, HIDDEN])]
        if not (of_phase["use"] == FITTED).any():
            continue
        noise, shown = seed_noise(of_phase[of_phase["use"] == FITTED], CELL), seed_noise(of_phase, CELL)
        channel = _coded(of_phase[of_phase["group_size"] == "channel"])
        every = _coded(of_phase)
        # Exponents in kumar_eq2 and Ouyang are those of their papers; N_eff forms, Chen and Sun come as guests.
        found += [
            Part(f"rounded, per channel, {said}", "integers 2 to 8, rounded after training, a scale a row", channel[0],
                 (*competing, effective_parameters(channel[1])), of_rounding, noise, shown),
            Part(f"rounded, all groups, {said}", "the same with groups of 8 to 64 too", every[0],
                 (*competing, CHEN, SUN, effective_parameters(every[1])), (), noise, shown),
        ]  # fmt: skip
    return found


def with_errors(table: pd.DataFrame) -> pd.DataFrame:
    """`low_precision.cells` with the errors of each compression, whether it was trained in it, and its trunk's name."""
    known: dict[tuple[str, float, float], Errors] = {}
    rows = []
    for _, row in table.iterrows():
        key = (row["how"], row["d_model"], row["d_ff"])
        if key not in known:
            known[key] = errors_of(row["fields"], Widths(int(row["d_model"]), int(row["d_ff"])))
        e = known[key]
        weights = 1 - (1 - e.weights) * (1 - e.pruned)
        rows.append((weights, e.activations, e.keys_values, e.backward))
    errors = pd.DataFrame(rows, columns=list(ERROR_COLUMNS), index=table.index, dtype=float)
    table = pd.concat([table, errors], axis=1)
    line = table["size"] + " " + table["learning_rate"].astype(str) + " " + table["how"]
    return table.assign(delta_se=table["sd"], trunk_id=line, cell=line + table["D"].astype(str), format=table["how"],
                        **{TRAINED: 1.0})  # fmt: skip


def trained_parts(table: pd.DataFrame) -> list[Part]:
    """Runs trained in the format, a part for each paper's shape. A part without any row is left out."""
    table = table[(table["how"] != "") & table["use"].isin([FITTED, HIDDEN])].reset_index(drop=True)
    view = {(one.paper, one.name): of_view(one, table) for one in VIEWS}
    weights, both = (
        table[np.array([set(fields) == some for fields in table["fields"]], dtype=bool)]
        for some in ({"weights"}, {"weights", "activations"})
    )
    of_bits: tuple[Law, ...] = (kumar.LAW, OUYANG, PAGE, kumar.EQ3, kumar.EQ3_BIAS)
    found = [
        _part("weights, Kumar's", "weights in integers per channel (Eq. 3)", view["kumar_precision", "Eq. 3"],
              of_bits, (kumar.EQ3_BIAS.name,)),
        _part("weights, all groups", "weights alone, any format and group", _with_layout(weights),
              (*of_bits, CHEN, SUN), ()),
        _part("weights, activations, KV, Kumar's", "integers per channel, tensor and token (Eq. 4)",
              view["kumar_precision", "Eq. 4"], (kumar.EQ4, kumar.EQ4_BIAS), (kumar.EQ4_BIAS.name,), ("a", "kv")),
        *(
            _part(f"{name}, Chen's", "integers on weights, activations or both, by group", some, (CHEN,), (CHEN.name,))
            for (paper, name), some in view.items() if paper == "qat_scaling"
        ),
        _part("weights and activations, all groups", "one integer format for both", _with_layout(both),
              (*of_bits, CHEN, SUN), ()),
        _part("floating point, Sun's", "one minifloat on P2, P4 and P6 (Eq. 1)", view["capybara_fp", "P2, P4, P6"],
              (SUN,), (SUN.name,)),
        _part("compressions, Frantar's", "weights, weights and activations, sparsity", view[
              "compression_laws", "multipliers"], (), ("frantar",), ("a",)),
        _part("everything trained", "all of our runs in low precision", table, (), (), ("a", "kv", "b")),
    ]  # fmt: skip
    return [part for part in found if len(part.table)]


def _part(
    name: str, about: str, table: pd.DataFrame, laws: tuple[Law, ...], own: tuple[str, ...],
    streams: tuple[str, ...] = (),
) -> Part:  # fmt: skip
    if not len(table):
        return Part(name, about, table, laws, own)
    table = table.drop(columns=[GROUPED, "fields"], errors="ignore").assign(code=table["how"])
    table, groups = _coded(table)
    seen = table[table["use"] == FITTED]
    present = tuple(x for x in streams if (seen[STREAMS[x]] > 0).any())
    # Without a constant of its own for activations, independent errors of the inputs of a product combine to one.
    alone = [column for x, column in STREAMS.items() if x not in present]
    table[INPUT] = 1 - (1 - table[[INPUT, *alone]]).prod(axis=1)
    return Part(name, about, table, (*laws, effective_parameters(groups)), own, streams=present)


def _coded(table: pd.DataFrame) -> tuple[pd.DataFrame, tuple[str, ...]]:
    """Codes of Frantar's groups: those that a fit sees; -1 for one that only held-out rows have."""
    seen = sorted(set(table.loc[table["use"] == FITTED, "code"]))
    groups = (BASE, *seen)
    codes = {name: float(k) for k, name in enumerate(groups)}
    table = table.reset_index(drop=True)
    return table.assign(**{GROUPED: table["code"].map(codes).fillna(-1.0)}), groups if seen else (BASE, "none")


def _with_layout(table: pd.DataFrame) -> pd.DataFrame:
    """Bits, group and layout of rows whose quantized tensors share one format; the others are left out."""
    rows, inputs = [], []
    for index, row in table.iterrows():
        read = _one_format(row["fields"])
        if read is not None:
            widths = Widths(int(row["d_model"]), int(row["d_ff"]))
            group = float(read[1]) if read[1].isdigit() else widths.inputs
            rows.append(index)
            inputs.append({"G": group, **_layout(read[0], group)})
    return pd.concat([table.loc[rows].reset_index(drop=True), pd.DataFrame(inputs)], axis=1)


def _one_format(fields: Mapping[str, object]) -> tuple[str, str] | None:
    """(format, group) of integers on weights, or on weights and activations with one format and group."""
    if not fields or not set(fields) <= {"weights", "activations"} or "weights" not in fields:
        return None
    parts = {(str(text).partition("@")[0], str(text).partition("@")[2].partition(":")[0].replace("token", "channel"))
             for text in fields.values()}  # fmt: skip
    form, group = parts.pop()
    return None if parts or not (form.startswith("INT") and (group.isdigit() or group == "channel")) else (form, group)


def _layout(name: str, group: float) -> dict[str, float]:
    """Bits, and E, M, B of integers as sign-magnitude: E = 0, M = bits - 1 (as published.tables.as_floating_point)."""
    form = format_named(name)
    if form.kind == "float":
        return {"bits": form.bits, "E": float(form.exponent), "M": float(form.mantissa), "B": group}
    return {"bits": float(form.bits), "E": 0.0, "M": float(form.bits) - 1, "B": group}
