"""The two tables in git: `reports/runs.csv` and `reports/measurements.csv`, and the base runs' losses beside them.

Rows are only ever added or replaced by their id, under a lock; both tables are sorted by id, so that diffs are stable.
"""

import contextlib
import csv
import fcntl
import io
import math
import re
import statistics
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from shared.errors import BitlawError, nearest
from shared.evaluate.losses import paired
from shared.files import replacing, write_text
from shared.sweep.spec import COMPRESSION, DEFAULTS

Row = dict[str, str]

RUN_COLUMNS = (
    "run_id", "trunk_id", "size", "corpus", "corpus_sha256", "n_layer", "d_model", "d_ff", "head_size", "vocabulary",
    "context", "n_blocks", "n_embedding", "n_head", "tokens", "cooled", "lr_fraction", "seed", "learning_rate",
    "batch_tokens", "warmup_steps", "weight_decay", "beta1", "beta2", "epsilon", "clip", "cooldown", "decay",
    "accumulate", "compute", "threads", "compile", "validation_tokens", *COMPRESSION, "corpus_passes", "diverged",
    "loss", "loss_se", "base_run_id", "delta", "delta_se", "train_loss", "train_flops", "seconds", "device",
    "cpu_model", "torch_version", "numerics_version", "git_revision", "dirty",
)  # fmt: skip
MEASUREMENT_COLUMNS = (
    "run_id", "trunk_id", "size", "corpus", "n_blocks", "tokens", "cooled", "seed", "method", "format", "bits",
    "group_size", "group_size_d_model", "group_size_d_ff", "bits_per_weight", "activation_format", "kv_format",
    "calibration", "relative_mse", "base_loss", "loss", "delta", "delta_se", "seconds", "numerics_version",
)  # fmt: skip
MEASUREMENT_KEY = ("run_id", "method", "format", "group_size", "activation_format", "kv_format", "calibration")
# What is computed with: a number as `cell_text` writes it, or nothing; counts are never empty.
NUMBER = re.compile(r"-?\d+(\.\d+)?([eE][+-]?\d{1,3})?", re.ASCII)
COUNTS = ("n_blocks", "tokens", "train_flops")
RUN_NUMBERS = (*COUNTS, "loss", "loss_se", "delta", "delta_se", "train_loss", "seconds", "corpus_passes")
MEASUREMENT_NUMBERS = (
    *("n_blocks", "tokens", "bits", "bits_per_weight", "relative_mse", "base_loss", "loss", "delta", "delta_se"),
    "seconds",
)
UNREPEATABLE = ("seconds", "device", "cpu_model", "torch_version", "git_revision", "dirty")


def cell_text(value: Any) -> str:
    """Six significant digits; an absent or undefined number is an empty cell."""
    if value is None or (isinstance(value, float) and not math.isfinite(value)):
        return ""
    if isinstance(value, float):
        return f"{value:.6g}"
    return str(value)


def _is_number(text: str) -> bool:
    return NUMBER.fullmatch(text) is not None and math.isfinite(float(text))


def read_table(
    path: Path, columns: tuple[str, ...], key: tuple[str, ...], numbers: tuple[str, ...] = ()
) -> dict[tuple[str, ...], Row]:
    """Rows by key; an absent file has none. Cells of `numbers` are finite numbers or empty. Raises BitlawError naming
    the file and the row or column at fault."""
    if not path.exists():
        return {}
    try:
        with path.open(newline="", encoding="utf-8") as opened:
            reader = csv.DictReader(opened)
            found = list(reader.fieldnames or [])
            for column in columns:
                if found.count(column) > 1:
                    raise BitlawError(f"{path}: column '{column}' stands twice; restore the file from git")
                if column not in found:
                    hint = nearest(column, [name for name in found if name not in columns])
                    raise BitlawError(f"{path}: column '{column}' is missing{hint or '; restore the file from git'}")
            rows: dict[tuple[str, ...], Row] = {}
            for number, row in enumerate(reader, start=2):
                if None in row or None in row.values():
                    raise BitlawError(f"{path}: line {number} has not {len(found)} columns; restore the file from git")
                for column in numbers:
                    if not _is_number(row[column]) and (row[column] or column in COUNTS):
                        raise BitlawError(
                            f"{path}: line {number}, column '{column}': {row[column]!r} is no number; restore the file "
                            "from git"
                        )
                name = tuple(row[column] for column in key)
                if name in rows:
                    raise BitlawError(f"{path}: line {number} repeats {' '.join(name)}; keep one of the two")
                rows[name] = row
        # Cut in its last cell, a row still has all its columns.
        if rows and not path.read_bytes().endswith(b"\n"):
            raise BitlawError(f"{path}: is cut short in its last line; restore the file from git")
    except OSError as error:
        raise BitlawError(f"{path}: cannot be read ({error.strerror})") from error
    except (UnicodeDecodeError, csv.Error) as error:
        raise BitlawError(f"{path}: is not a CSV table in UTF-8 ({error}); restore the file from git") from error
    return rows


def write_table(path: Path, columns: tuple[str, ...], rows: dict[tuple[str, ...], Row]) -> None:
    """Raises BitlawError for rows with columns that would be lost: a newer bitlaw, or somebody by hand, put them in."""
    more = sorted({str(name) for row in rows.values() for name in row} - set(columns))
    if more:
        raise BitlawError(
            f"{path}: column '{more[0]}' is unknown to this version of bitlaw and would be lost: bring the clones that "
            "share the table to one revision, or take the column out"
        )
    text = io.StringIO()
    writer = csv.DictWriter(text, fieldnames=columns, lineterminator="\n")
    writer.writeheader()
    for name in sorted(rows):
        writer.writerow(rows[name])
    if not path.exists() or path.read_text(encoding="utf-8") != text.getvalue():
        write_text(path, text.getvalue())


@contextlib.contextmanager
def locked(reports: Path) -> Iterator[None]:
    """One writer at a time; the lock goes with its process."""
    reports.mkdir(parents=True, exist_ok=True)
    with (reports / ".lock").open("w") as opened:
        fcntl.flock(opened, fcntl.LOCK_EX)
        yield


def read_runs(reports: Path) -> dict[tuple[str, ...], Row]:
    return read_table(reports / "runs.csv", RUN_COLUMNS, ("run_id",), RUN_NUMBERS)


def read_measurements(reports: Path) -> dict[tuple[str, ...], Row]:
    return read_table(reports / "measurements.csv", MEASUREMENT_COLUMNS, MEASUREMENT_KEY, MEASUREMENT_NUMBERS)


def measured_gflops(reports: Path) -> dict[str, float]:
    """GFLOP/s that one worker reached at each size: the median over the finished runs."""
    seen: dict[str, list[float]] = {}
    for row in read_runs(reports).values():
        if row["seconds"] and float(row["seconds"]) > 0:
            seen.setdefault(row["size"], []).append(float(row["train_flops"]) / float(row["seconds"]) / 1e9)
    return {size: statistics.median(speeds) for size, speeds in seen.items()}


def add_runs(reports: Path, results: list[dict[str, Any]], losses: dict[str, NDArray[np.float32]]) -> None:
    """Merge finished runs into runs.csv, and the unquantized ones' losses by sequence into base_losses.npz.

    A compressed run gets its delta, paired over the sequences, once its base run's losses are known.
    """
    with locked(reports):
        rows = read_runs(reports)
        kept = read_base_losses(reports)
        base = {
            str(r["run_id"]): losses[str(r["run_id"])] for r in results if is_base(r) and str(r["run_id"]) in losses
        }
        known = kept | base
        # A result from before there was compression has not these fields: it was unquantized.
        unquantized = {name: DEFAULTS[name] for name in COMPRESSION}
        for result in results:
            result = unquantized | result
            row = {column: cell_text(result.get(column)) for column in RUN_COLUMNS}
            if is_base(result):
                row["base_run_id"] = ""
            own, other = losses.get(str(result["run_id"])), known.get(str(result.get("base_run_id")))
            if not is_base(result) and own is not None and other is not None:
                delta = paired(torch.from_numpy(own).double(), torch.from_numpy(other).double())
                row |= {"delta": cell_text(delta.value), "delta_se": cell_text(delta.se)}
            elif (before := rows.get((str(result["run_id"]),))) and before["loss"] == row["loss"]:
                # The base run's losses are not at hand any more: what was known of the same run stays.
                row |= {name: before[name] for name in ("delta", "delta_se")}
            rows[(str(result["run_id"]),)] = row
        if any(not np.array_equal(kept.get(run_id, np.empty(0)), value) for run_id, value in base.items()):
            kept |= base
            with replacing(reports / "base_losses.npz") as temporary, temporary.open("wb") as opened:
                np.savez(opened, **{run_id: kept[run_id] for run_id in sorted(kept)})  # type: ignore[arg-type]
        if rows:
            write_table(reports / "runs.csv", RUN_COLUMNS, rows)


def is_base(result: dict[str, Any]) -> bool:
    """Neither quantized nor sparse: its own reference."""
    return bool(result.get("base_run_id", result["run_id"]) == result["run_id"])


def add_measurements(reports: Path, results: list[dict[str, Any]]) -> None:
    with locked(reports):
        rows = read_measurements(reports)
        for result in results:
            row = {column: cell_text(result.get(column)) for column in MEASUREMENT_COLUMNS}
            rows[tuple(row[column] for column in MEASUREMENT_KEY)] = row
        write_table(reports / "measurements.csv", MEASUREMENT_COLUMNS, rows)


def read_base_losses(reports: Path) -> dict[str, NDArray[np.float32]]:
    """Validation losses by sequence (S,) of each unquantized run."""
    return read_arrays(reports / "base_losses.npz")


def read_arrays(path: Path) -> dict[str, NDArray[np.float32]]:
    """An .npz of losses by name; an absent file has none. Raises BitlawError when it is damaged, as its CRCs tell."""
    if not path.exists():
        return {}
    try:
        # From memory: numpy leaves the file of a damaged archive open.
        content = path.read_bytes()
        with np.load(io.BytesIO(content), allow_pickle=False) as opened:
            arrays = {name: opened[name] for name in opened.files}
        # zipfile stops without a word at an entry of a wrong length; the last record counts them (APPNOTE, 4.3.16).
        if int.from_bytes(content[-12:-10], "little") != len(arrays):
            raise ValueError("some of its entries are lost")
        return arrays
    except Exception as error:  # one changed bit makes zipfile and numpy raise any of a dozen kinds
        raise BitlawError(
            f"{path}: cannot be read ({error or type(error).__name__}); restore it from git, or remove it where it is "
            "not in git: it is made again from the results at hand"
        ) from error
