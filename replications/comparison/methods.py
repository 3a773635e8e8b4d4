"""Which method of post-training quantization wins on the committed checkpoints, and whether the difference is real.

Read from reports/measurements.csv, and from reports/checkpoints/<run_id>.cells.npz, which holds what each cell adds to
the loss of every validation sequence: methods are judged on the same sequences, and the standard error of a difference
cannot be had from the rows' own errors, since they are correlated. (It is the least that does it: 4 KB a cell, and any
two methods can be compared later, which a column against one of them cannot.)

Intervals cover the choice of validation text alone: not the training seed, and not the choice of calibration windows.
Those of differences hold together for all pairs of a row (Bonferroni), since the winner is picked by looking. Only
methods that cost the same bits per weight compete: at these widths code books of 2^k values for each channel (lnq) cost
up to three bits more, so that they are shown with what they cost and do not compete.
"""

from collections.abc import Iterator, Mapping
from itertools import combinations
from pathlib import Path
from statistics import NormalDist
from typing import Any

import torch

from shared.errors import BitlawError
from shared.evaluate.losses import Estimate, mean, paired
from shared.evaluate.ptq import Cell
from shared.files import read_json, write_json
from shared.sweep.kept import kept_cells
from shared.sweep.tables import Row, read_measurements

LEVEL = 0.95
# Methods whose bits per weight differ by more than this do not compete.
SAME_BITS = 0.05
# A row of the table and its losses are of one measurement when their deltas agree to the table's six digits.
AGREE = 1e-5
LOSSES = ".cells.npz"
Group = tuple[float, str]  # bits, group size
Checkpoint = tuple[int, int, str, str]  # N, D, cooled, run_id


def label(cell: Cell) -> str:
    """Method, and the format where it is no integer of so many bits: gptq, rtn NF4, lnq."""
    return cell.method if cell.format.startswith(("INT", "LUT")) else f"{cell.method} {cell.format}"


def interval(estimate: Estimate, pairs: int = 1) -> dict[str, float]:
    """Value and the ends of its interval; of `pairs` such intervals all hold together with LEVEL."""
    z = NormalDist().inv_cdf(1 - (1 - LEVEL) / (2 * pairs))
    low, high = estimate.value - z * estimate.se, estimate.value + z * estimate.se
    return {"value": estimate.value, "low": low, "high": high}


def tables(reports: Path) -> dict[str, Any]:
    """{"status", "level", "rows", "wins", "without_losses"}; status is 'needs runs' where no two methods are measured.

    A row is one checkpoint, bit width and group size, and has
        methods   of each, its delta (nats per token) with its interval, bits per weight, calibration
        pairs     of methods that compete, as 'one - other', the difference of their deltas
        winner    the method with the least delta of those that compete
        real      whether every difference of the winner to another excludes zero
    `wins` counts winners over checkpoints. `without_losses` counts cells of these that only the table has.
    Raises BitlawError when losses and table are of different measurements.
    """
    folder = reports / "checkpoints"
    ids = {path.name.removesuffix(LOSSES) for path in folder.glob(f"*{LOSSES}")}
    rows, missing = [], 0
    for (*_, run_id), groups in sorted(_cells(reports, ids).items()):
        losses = kept_cells(folder, run_id)
        for (bits, group_size), found in sorted(groups.items(), key=lambda item: (-item[0][0], item[0][1])):
            known = {cell: row for cell, row in found.items() if cell.name in losses}
            missing += (len(found) - len(known)) if len(found) > 1 else 0
            if len(known) < 2:
                continue
            deltas = {cell: torch.from_numpy(losses[cell.name]).double() for cell in known}
            for cell, row in known.items():
                _agree(folder, run_id, cell, row, deltas[cell])
            of = next(iter(known.values()))
            about = {"run_id": run_id, "size": of["size"], "N": int(of["n_blocks"]), "D": int(of["tokens"])}
            about |= {"phase": "cooled" if of["cooled"] == "True" else "trunk", "bits": bits, "group_size": group_size}
            rows.append({**about, **_compared(known, deltas)})
    return {
        "status": "measured" if rows else "needs runs",
        "level": LEVEL,
        "rows": rows,
        "wins": _wins(rows),
        "without_losses": missing,
    }


def write_methods(reports: Path) -> Path:
    """Write reports/comparison/methods.json. Raises BitlawError as `tables` does."""
    target = reports / "comparison" / "methods.json"
    write_json(target, tables(reports))
    return target


def lines(target: Path) -> Iterator[str]:
    """For the terminal: who wins at each bit width and group size."""
    found = read_json(target)
    if found["status"] != "measured":
        yield "needs runs: no committed checkpoint has two methods measured; `bitlaw measure cpu --checkpoints ...`"
    for row in found["wins"]:
        counts = ", ".join(f"{name} {n['won']} ({n['real']} of them real)" for name, n in row["winners"].items())
        yield f"{row['bits']:g} bits, {row['group_size']}: of {row['checkpoints']} checkpoints {counts}"


def _cells(reports: Path, ids: set[str]) -> dict[Checkpoint, dict[Group, dict[Cell, Row]]]:
    """The table's cells of weights alone on these runs, by bits and group size."""
    found: dict[Checkpoint, dict[Group, dict[Cell, Row]]] = {}
    for row in read_measurements(reports).values():
        if row["run_id"] in ids and row["activation_format"] == row["kv_format"] == "none":
            checkpoint = int(row["n_blocks"]), int(row["tokens"]), row["cooled"], row["run_id"]
            cell = Cell(row["method"], row["format"], row["group_size"])
            found.setdefault(checkpoint, {}).setdefault((cell.bits, cell.group_size), {})[cell] = row
    return found


def _agree(folder: Path, run_id: str, cell: Cell, row: Row, delta_S: torch.Tensor) -> None:
    value, other = float(row["delta"]), mean(delta_S).value
    if abs(value - other) > AGREE * max(abs(value), 1.0):
        raise BitlawError(
            f"{folder / run_id}.cells.npz: {cell.name} adds {other:.6g}, measurements.csv says {value:.6g}: remove the "
            "file and run `bitlaw measure` with --checkpoints again"
        )


def _compared(rows: Mapping[Cell, Row], deltas: Mapping[Cell, torch.Tensor]) -> dict[str, Any]:
    least = min(float(row["bits_per_weight"]) for row in rows.values())
    rivals = sorted(cell for cell, row in rows.items() if float(row["bits_per_weight"]) <= least + SAME_BITS)
    winner = min(rivals, key=lambda cell: mean(deltas[cell]).value)
    couples = list(combinations(rivals, 2))
    pairs = {(a, b): interval(paired(deltas[a], deltas[b]), len(couples)) for a, b in couples}
    own = [ends for couple, ends in pairs.items() if winner in couple]
    return {
        "methods": {
            label(cell): {
                **interval(mean(deltas[cell])),
                "bits_per_weight": float(row["bits_per_weight"]),
                "calibration": row["calibration"],
                "competes": cell in rivals,
            }
            for cell, row in sorted(rows.items())
        },
        "pairs": {f"{label(a)} - {label(b)}": ends for (a, b), ends in pairs.items()},
        "winner": label(winner) if couples else None,
        "real": bool(couples) and all(ends["low"] > 0 or ends["high"] < 0 for ends in own),
    }


def _wins(rows: list[dict[str, Any]]) -> list[dict[str, Any]]:
    groups: dict[Group, list[dict[str, Any]]] = {}
    for row in rows:
        if row["winner"]:
            groups.setdefault((row["bits"], row["group_size"]), []).append(row)
    return [
        {
            "bits": bits,
            "group_size": group_size,
            "checkpoints": len(some),
            "winners": {
                name: {
                    "won": sum(row["winner"] == name for row in some),
                    "real": sum(row["winner"] == name and row["real"] for row in some),
                }
                for name in sorted({row["winner"] for row in some})
            },
        }
        for (bits, group_size), some in sorted(groups.items(), key=lambda item: (-item[0][0], item[0][1]))
    ]
