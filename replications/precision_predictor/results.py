"""From the tables that the page's commands measured, in `reports/precision_predictor/STUDY/`, to summaries, figures and
what the page's claims look up. Nothing is measured here: a DVC stage runs it on any machine.

predictor  low_data  engineer  numerics  decode  allocate: one folder each, `table.csv` (allocate: trials.csv and
surrogates.csv) as `bitlaw STUDY --out` writes it. `surface` is read off the pool's own two tables.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

import pandas as pd

from replications.commands.measured import clean_law, pool_rows, read_rows
from replications.commands.numerics import scratch_runs
from replications.precision_predictor import (
    allocation_summary,
    decoding_rows,
    decoding_summary,
    engineer,
    figures_allocation,
    figures_decoding,
    figures_predictor,
    lnq_steps,
    low_data,
    numerics,
    predictor,
    surface,
)
from shared.errors import BitlawError
from shared.files import read_json, write_json
from shared.laws.tables import read_csv
from shared.report.evidence import Seen
from shared.report.figures import style
from shared.report.figures.gallery import Drawing, write_gallery
from shared.sweep.tables import read_table

PAPER = "precision_predictor"
EVIDENCE = Path(PAPER) / "evidence.json"
# Checkpoints of a trunk are not independent: intervals over them are somewhat narrow, and their scale says so.
TRUNKS = "two trunks, one seed each"
TARGET_MS = 70.0  # the page's bound on the 95th percentile of a token's latency
NUMBERS = ("budget", "bits", "step")  # of the keys of `bitlaw allocate`'s tables
Summary = dict[str, Any]
# Comparisons at equal average bits of the decoding steps that a claim rests on, by the names of `bitlaw decode`. S9 is
# about which tokens get the bits: 5:4 is near uniform, so that the convexity of penalties in bits hardly enters; 6:4 is
# in its note.
LINEAR = ("linear:5:3 against chord", "linear:6:2 against chord")
FIRST_64 = ("static:5:4:64 against chord", "static:5:4:64 against spread")
HIGH_FIRST = tuple(f"static:{pair}:96 against reverse" for pair in ("4:3", "3:2", "4:2"))
PREFILL = tuple(f"uniform:{bits} against own prefill" for bits in (2, 3, 4))


def write(reports: Path) -> list[Path]:
    """Summaries (STUDY.json), figures and evidence.json of the studies whose tables are there; returns the paths."""
    folder = reports / PAPER
    summaries: dict[str, Summary] = {}
    for name, summarise in STUDIES.items():
        found = summarise(folder / name, reports)
        if found is not None:
            summaries[name] = found
            write_json(folder / f"{name}.json", found)
    # Figures are of the files: six digits, as everybody else reads them.
    drawn = {name: DRAWINGS[name](read_json(folder / f"{name}.json")) for name in summaries}
    with style.theme():
        gallery = write_gallery(folder, [drawing for some in drawn.values() for drawing in some])
    write_json(reports / EVIDENCE, {name: asdict(item) for name, item in evidence(summaries).items()})
    return [*(folder / f"{name}.json" for name in summaries), *gallery, reports / EVIDENCE]


def _rows(module: Any, folder: Path) -> list[dict[str, Any]]:
    return read_rows(folder / "table.csv", module.COLUMNS, module.KEY)


def _predictor(folder: Path, reports: Path) -> Summary | None:
    rows = _rows(predictor, folder)
    return predictor.summarise(rows, clean_law("pool")) if rows else None


def _plain(module: Any) -> Callable[[Path, Path], Summary | None]:
    def summarise(folder: Path, reports: Path) -> Summary | None:
        rows = _rows(module, folder)
        return module.summarise(rows) if rows else None

    return summarise


def _engineer(folder: Path, reports: Path) -> Summary | None:
    rows = sorted(_rows(engineer, folder), key=lambda row: -row["bits"])
    return {"rows": rows, "decision": engineer.decide(rows, TARGET_MS)} if rows else None


def _decode(folder: Path, reports: Path) -> Summary | None:
    table = read_table(folder / "table.csv", decoding_rows.COLUMNS, decoding_rows.KEY)
    return decoding_summary.summarise(table.values()) if table else None


def _allocate(folder: Path, reports: Path) -> Summary | None:
    if not (folder / "trials.csv").exists():
        return None
    trials, studied = (
        read_trials(folder / name, ("checkpoint", "budget")) if (folder / name).exists() else []
        for name in ("trials.csv", "surrogates.csv")
    )
    steps = read_trials(folder / "lnq.csv", lnq_steps.KEY) if (folder / "lnq.csv").exists() else []
    return allocation_summary.summarise(trials, studied) | {"lnq": lnq_steps.summarise(steps)}


def read_trials(path: Path, key: Sequence[str]) -> list[dict[str, Any]]:
    """Rows of a table of `bitlaw allocate`. Raises BitlawError: no such table, a row without its key, or one cut short.

    A cut inside the last cell leaves as many columns: only the end of the line tells.
    """
    table = read_csv(path, dtype={name: str for name in key if name not in NUMBERS})
    if not path.read_bytes().endswith(b"\n"):
        raise BitlawError(f"{path}: its last row is cut short; remove that row, and run again")
    for name in key:
        if name not in table or table[name].isna().any():
            raise BitlawError(f"{path}: column '{name}' is missing or has empty cells; remove the file, and run again")
        if name in NUMBERS and not pd.api.types.is_numeric_dtype(table[name]):
            raise BitlawError(f"{path}: column '{name}' has cells that are no numbers; remove the file, and run again")
    return table.to_dict("records")


def _surface(folder: Path, reports: Path) -> Summary | None:
    if not all((reports / name).exists() for name in ("runs.csv", "measurements.csv")):
        return None
    return surface.summarise(pool_rows(reports), scratch_runs(reports), clean_law("pool"))


STUDIES: dict[str, Callable[[Path, Path], Summary | None]] = {
    "predictor": _predictor,
    "low_data": _plain(low_data),
    "engineer": _engineer,
    "numerics": _plain(numerics),
    "surface": _surface,
    "decode": _decode,
    "allocate": _allocate,
}
DRAWINGS: dict[str, Callable[[Summary], list[Drawing]]] = {
    "predictor": figures_predictor.predictor_drawings,
    "low_data": figures_predictor.low_data_drawings,
    "engineer": lambda found: figures_predictor.engineer_drawings(found["rows"], found["decision"]),
    "numerics": figures_predictor.numerics_drawings,
    "surface": figures_predictor.surface_drawings,
    "decode": figures_decoding.draw,
    "allocate": figures_allocation.allocation_drawings,
}


def evidence(summaries: Mapping[str, Summary]) -> dict[str, Seen]:
    """What the page's claims look up, by the beginnings of the names: `page/S7/...` and so on."""
    found: dict[str, Seen] = {}
    if "decode" in summaries:
        decode = summaries["decode"]
        gain, text = decode["relative_gain"], decode["rouge_gain"]
        where = f"{len(decode['runs'])} checkpoints of {TRUNKS}, {decode['about']['steps']} steps"
        share = "gain over the penalty of what it is compared with, mean over steps, at equal average bits"
        prefill = "equal bits of the decoding steps; the prefill in high bits costs more, which is not counted"
        uneven = decode["split"].get("linear:5:3", {}).get("unevenness")
        why = f"; of 5:3, {uneven['value']:.3g} nats are due to uneven bits alone" if uneven else ""
        steeper = gain.get("static:6:4:64 against chord")
        more = f"; 6:4 {steeper['value']:.2g} [{steeper['low']:.2g}, {steeper['high']:.2g}]" if steeper else ""
        for claim, names, note in (
            ("S7", LINEAR, share + why),
            ("S9", FIRST_64, share + more),
            ("PD3", HIGH_FIRST, share),
            ("PD3b", PREFILL, prefill),
        ):
            found |= _named(f"page/{claim}/", gain, names, where, note)
        rouge = "Rouge-L against the unquantized model's text"
        found |= _named("page/S7b/", text, LINEAR, where, rouge)
        found |= _named("page/PD3c/", text, tuple(name for name in HIGH_FIRST if name in text), where, rouge)
        against = ("learned against shares", "learned against prior")
        found |= _named("page/PD7/", decode["scheduler_gain"], against, where, rouge)
    if "allocate" in summaries:
        allocate = summaries["allocate"]
        where = f"{len(allocate['checkpoints'])} checkpoints of {TRUNKS}"
        note = "ln of the penalty of uniform over that of the allocation"
        for claim, kind in (("S8", "optimum"), ("S8b", "linear")):
            for one in allocate["s8"][kind]["log_uniform"]:
                budget = "2.5" if " 2.5 bits" in one["label"] else "3"
                found |= _seen(f"page/{claim}/{budget}/{one['label']}", one, where, note, one["label"])
        exact = allocate.get("lnq", {}).get("FP32")
        if exact:
            where = (
                f"{exact['matrices']} matrices of {len(allocate['checkpoints'])} checkpoints, {exact['steps']} steps"
            )
            item = {"value": exact["highest"], "low": exact["lowest"], "high": exact["highest"]}
            about = "ln of a step's objective over the one before, code books in FP32; the range is of all steps"
            found |= _seen("page/GQ4/", item, where, about)
    if "numerics" in summaries:
        noise = summaries["numerics"]
        where = f"{len(noise['models'])} checkpoints of {TRUNKS}"
        found |= _seen("page/S6/", noise["stochastic"]["eta_ratio"], where, "ratio of eta, one exponent for both")
        two = noise["bf16"]["by_bits"].get("2")
        if two:
            found |= _seen("page/S5/", two, where, "the same weights, rounded once to BF16 before")
    return found


def _named(
    prefix: str, items: Mapping[str, Mapping[str, Any]], names: tuple[str, ...], where: str, note: str
) -> dict[str, Seen]:
    made: dict[str, Seen] = {}
    for name in names:
        if name in items:
            made |= _seen(prefix + name, items[name], where, note, name)
    return made


def _seen(name: str, item: Mapping[str, Any], where: str, note: str, label: str = "") -> dict[str, Seen]:
    """Nothing for a value without an interval."""
    if item.get("low") is None or item.get("high") is None:
        return {}
    return {name: Seen(item["value"], item["low"], item["high"], where, note, label, 2)}
