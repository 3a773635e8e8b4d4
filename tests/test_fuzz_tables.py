"""Every reader of tables and arrays on broken files: numbers that can be computed with, or one sentence."""

import csv
import io
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
import torch
from fuzzing import NASTY, bytes_like, fuzz, outcome, seldom, tables_like, trees_like
from hypothesis import given
from hypothesis import strategies as st

from replications.commands.allocate import KEY, Table
from replications.commands.laws import choose
from replications.comparison.inside import read_statistics
from replications.precision_predictor.engineer import read_latencies
from replications.trained import runs_of, usable
from shared.corpus.own import _rows_of_file
from shared.laws.chinchilla import LAW
from shared.laws.tables import check, numbers, observations, read_pool
from shared.laws.user_table import read_user_table
from shared.ptq.text import from_files
from shared.report.provenance import provenance
from shared.sweep.tables import (
    RUN_COLUMNS,
    measured_gflops,
    read_base_losses,
    read_measurements,
    read_runs,
    write_table,
)
from shared.train.state import load, save

REPORTS = Path(__file__).parent.parent / "reports"
INF = float("inf")


def first_rows(name: str, rows: int, wanted: set[str] | None = None) -> list[list[str]]:
    """Header and rows of one of our tables; those of the `wanted` runs."""
    with (REPORTS / name).open(newline="", encoding="utf-8") as opened:
        header, *lines = csv.reader(opened)
    if wanted:
        lines = [line for line in lines if line[0] in wanted]
    return [header, *lines[:rows]]


def text_of(table: list[list[str]]) -> bytes:
    text = io.StringIO()
    csv.writer(text, lineterminator="\n").writerows(table)
    return text.getvalue().encode()


def mutated(table: list[list[str]]) -> st.SearchStrategy[bytes]:
    return bytes_like(text_of(table)) | tables_like(table[0], table[1:])


RUNS = first_rows("runs.csv", 4)
CELLS = first_rows("measurements.csv", 4, {RUNS[1][0]})


@fuzz
@given(data=st.data())
def test_the_tables_in_git(tmp_path: Path, data: st.DataObject) -> None:
    """As workers, status and the page read them; what is read and written again is the same."""
    which = data.draw(st.sampled_from(("runs.csv", "measurements.csv")))
    for name, table in (("runs.csv", RUNS), ("measurements.csv", CELLS)):
        (tmp_path / name).write_bytes(data.draw(mutated(table)) if name == which else text_of(table))

    def read() -> None:
        runs, cells = read_runs(tmp_path), read_measurements(tmp_path)
        assert all(0 < speed < INF for speed in measured_gflops(tmp_path).values())
        about = provenance(tmp_path)
        assert (about.runs, about.measurements) == (len(runs), len(cells))
        write_table(tmp_path / "again.csv", RUN_COLUMNS, runs)
        with (tmp_path / "again.csv").open(newline="", encoding="utf-8") as opened:
            assert len(list(csv.reader(opened))) == len(runs) + 1

    outcome(read)


@fuzz
@given(data=st.data())
def test_the_pool(tmp_path: Path, data: st.DataObject) -> None:
    """As fits read it."""
    runs, cells = tmp_path / "runs.csv", tmp_path / "measurements.csv"
    which = data.draw(st.sampled_from((runs, cells)))
    for path, table in ((runs, RUNS), (cells, CELLS)):
        path.write_bytes(data.draw(mutated(table)) if path == which else text_of(table))
    found = outcome(lambda: read_pool(runs, cells))
    if found is not None:
        sound = found[~found["diverged"]]
        assert np.isfinite(sound[["N", "D", "bits", "loss", "delta", "delta_se"]].to_numpy(float)).all()
        assert (found[["N", "D", "bits"]] > 0).all(axis=None)
    trained = outcome(lambda: usable(runs_of(runs)))
    assert trained is None or {"d_model", "d_ff", "sparsity"} <= set(trained.select_dtypes("number"))


@fuzz
@given(data=st.data())
def test_statistics(tmp_path: Path, data: st.DataObject) -> None:
    path = tmp_path / "statistics.csv"
    path.write_bytes(data.draw(mutated(first_rows("statistics.csv", 4))))
    found = outcome(lambda: read_statistics(path))
    assert found is None or np.isfinite(found["value"].to_numpy(float)).all()


OWN = [
    ["N", "D", "loss", "format", "C / note"],
    *(
        [f"{N:g}", f"{D:g}", f"{1.7 + 400 / N**0.34 + 410 / D**0.28:.5f}", form, "x"]
        for N in (1e7, 1e8)
        for D in (1e9, 1e10, 1e11)
        for form in ("bf16", "INT4")
    ),
]


def fitted(path: Path, columns: list[str] | None = None, where: str = "") -> pd.DataFrame:
    """What `bitlaw fit` does with a table before it fits."""
    mapping = dict(one.split("=", 1) for one in columns or [])
    table = read_user_table(path, mapping, where)
    assert table["row"].is_monotonic_increasing
    for law in ("chinchilla", "frantar"):
        for one, rows in choose([law], table, "", path):
            check(one, rows, str(path), positive_target=True)
            checked = numbers(one, rows)
            values = checked[[*one.inputs, one.target]].to_numpy(float)
            assert np.isfinite(values).all()
            observations(one, checked)
    return table


@fuzz
@given(data=st.data())
def test_a_user_s_table(tmp_path: Path, data: st.DataObject) -> None:
    path = tmp_path / "mine.csv"
    path.write_bytes(data.draw(mutated(OWN)))
    found = outcome(lambda: fitted(path))
    if found is not None:
        # Round trip: the columns of the law are read again as the same numbers.
        found.drop(columns="row").to_csv(path, index=False)
        again = read_user_table(path)
        for name in (*LAW.inputs, LAW.target):
            assert np.array_equal(again[name].to_numpy(float), found[name].to_numpy(float))


EXPRESSIONS = st.sampled_from(
    ("D * 2", "C / (6 * N)", "N", "`C / note`", "N > 1e7", "format == 'INT4'", "N +", "1", "@x", "__import__('os')",
     "N.a", "N[0]", "lambda: 1", "0 / 0", "N / 0", "-N", "N == N", "nan", "a = N",
     "(", "N if D else D", "[N]", "N\nD", "'", "row", "N, D")
) | st.text(max_size=8)  # fmt: skip


@fuzz
@given(
    columns=st.lists(st.tuples(st.sampled_from(("N", "D", "loss", "x", "")), EXPRESSIONS), max_size=2),
    where=EXPRESSIONS,
)
@pytest.mark.filterwarnings("ignore::RuntimeWarning")
def test_expressions(tmp_path: Path, columns: list[tuple[str, str]], where: str) -> None:
    path = tmp_path / "mine.csv"
    path.write_bytes(text_of(OWN))
    outcome(lambda: fitted(path, [f"{name}={source}" for name, source in columns], where))


def strange_columns() -> st.SearchStrategy[list[Any]]:
    cell = st.sampled_from([*NASTY, np.datetime64("2026-01-01"), 3 + 4j, b"\xff", np.float32(2), torch.nan])
    return st.lists(cell, min_size=12, max_size=12)


@fuzz
@given(data=st.data())
def test_parquet(tmp_path: Path, data: st.DataObject) -> None:
    """Damaged bytes, and columns of every kind that Parquet has."""
    path = tmp_path / "mine.parquet"
    table = pd.DataFrame(OWN[1:], columns=OWN[0]).astype({"N": float, "D": float, "loss": float})
    kind = data.draw(st.sampled_from(("bytes", "cells", "type", "name", "empty")))
    column = data.draw(st.sampled_from(OWN[0]))
    if kind == "cells":
        table[column] = pd.Series(data.draw(strange_columns()), dtype=object)
    elif kind == "type":
        table[column] = {
            "category": lambda: table[column].astype("category"),
            "date": lambda: pd.date_range("2026-01-01", periods=len(table)),
            "duration": lambda: pd.to_timedelta(range(len(table)), unit="s"),
            "bool": lambda: [True, False] * 6,
            "list": lambda: [[1.0]] * len(table),
            "missing": lambda: pd.Series([None] * len(table), dtype="Float64"),
            "integer": lambda: pd.Series(range(len(table)), dtype="Int64"),
            "text": lambda: table[column].astype(str),
            "bytes": lambda: [b"1e9"] * len(table),
            "period": lambda: pd.period_range("2026-01", periods=len(table), freq="M"),
            "interval": lambda: pd.interval_range(0, periods=len(table)),
        }[
            data.draw(
                st.sampled_from(
                    (
                        "category",
                        "date",
                        "duration",
                        "bool",
                        "list",
                        "missing",
                        "integer",
                        "text",
                        "bytes",
                        "period",
                        "interval",
                    )
                )
            )
        ]()
    elif kind == "name":
        table = table.rename(columns={column: data.draw(st.sampled_from(("", "row", "N ", " D", "x\ny", "١")))})
        table.index = pd.Index(range(5, 5 + len(table)), name=data.draw(st.sampled_from((None, "N", "step"))))
    elif kind == "empty":
        table = table.iloc[:0] if data.draw(st.booleans()) else table[[]]
    try:
        table.to_parquet(path)
    except Exception:  # not every mixture can be written
        return
    if kind == "bytes":
        path.write_bytes(data.draw(bytes_like(path.read_bytes())))
    outcome(lambda: fitted(path))


LATENCIES = [["precision", "p50_ms", "p95_ms", "memory_mib"], ["INT4", "1.5", "2", ""], ["INT3", "1", "1.25", "3"]]


@fuzz
@given(data=st.data())
def test_latencies_as_a_table(tmp_path: Path, data: st.DataObject) -> None:
    path = tmp_path / "latencies.csv"
    path.write_bytes(data.draw(mutated(LATENCIES)))
    for one in outcome(lambda: read_latencies(path)) or []:
        assert 0 < one.p50_ms <= one.p95_ms < INF
        assert one.memory_mib is None or 0 < one.memory_mib < INF


TRIALS = [
    [*KEY, "loss"],
    ["a" * 12, "layer", "rtn", "2.5", "uniform", "3.5"],
    ["00000e123456", "layer", "rtn", "3", "x", "4"],
]


@fuzz
@given(data=st.data())
def test_trials_to_resume(tmp_path: Path, data: st.DataObject) -> None:
    path = tmp_path / "trials.csv"
    path.write_bytes(data.draw(mutated(TRIALS)))
    table = outcome(lambda: Table(path, KEY))
    if table is not None:
        rows = len({tuple(row[name] for name in KEY) for row in table.rows})
        table.add([dict(zip(TRIALS[0], ["new", "layer", "rtn", 2.5, "uniform", 3.5], strict=True))])
        assert len(Table(path, KEY).rows) == rows + 1


def archive(write: Callable[[Any], None]) -> bytes:
    file = io.BytesIO()
    write(file)
    return file.getvalue()


ARRAYS = {
    "npz": archive(lambda file: np.savez(file, a=np.ones(8, np.float32), b=np.zeros(8, np.float32))),
    "objects": archive(lambda file: np.savez(file, a=np.array([{}], dtype=object))),
}


@pytest.mark.parametrize("kind", ARRAYS)
@fuzz
@given(data=st.data())
def test_losses_by_sequence(kind: str, tmp_path: Path, data: st.DataObject) -> None:
    (tmp_path / "base_losses.npz").write_bytes(data.draw(bytes_like(ARRAYS[kind])))
    found = outcome(lambda: read_base_losses(tmp_path)) or {}
    assert all(array.dtype != object for array in found.values())


def headed(text: str) -> bytes:
    return len(text.encode()).to_bytes(8, "little") + text.encode()


HEADER = {
    "a": {"dtype": "F32", "shape": [2, 2], "data_offsets": [0, 16]},
    "__metadata__": {"notes": "{}", "sha256": "0"},
}


@fuzz
@given(data=st.data())
def test_checkpoints(tmp_path: Path, data: st.DataObject) -> None:
    """What comes back is what was saved, whatever else happens to the file."""
    path = tmp_path / "checkpoint.safetensors"
    tensors, notes = {"w": torch.arange(12.0).reshape(3, 4), "b": torch.ones(3)}, {"run_id": "x", "n": [1]}
    save(path, tensors, notes)
    header = trees_like(HEADER).map(lambda tree: headed(json.dumps(tree)) + bytes(16))
    path.write_bytes(data.draw(bytes_like(path.read_bytes()) | header))
    found = outcome(lambda: load(path))
    if found is not None:
        assert set(found[0]) == set(tensors)
        assert all(torch.equal(found[0][name], tensors[name]) for name in tensors)
        assert isinstance(found[1], dict)


class Bytes:
    """A tokenizer of bytes."""

    eos_token_id = 0
    bos_token_id = None

    def __call__(self, text: str, **_: object) -> dict[str, list[int]]:
        return {"input_ids": list(text.encode())}


@fuzz
@given(data=st.data())
def test_text(tmp_path: Path, data: st.DataObject) -> None:
    path = tmp_path / "words.txt"
    path.write_bytes(data.draw(bytes_like(b"some words in a line\n" * 20)))
    found = outcome(lambda: from_files([path], Bytes(), 16, 2, 4))
    if found is not None:
        assert found.calibration.shape[1] == 16
        assert found.evaluation.shape[1] == 17


@pytest.mark.parametrize("suffix", [".txt", ".jsonl", ".parquet"])
@seldom
@given(data=st.data())
def test_text_of_a_corpus(suffix: str, tmp_path: Path, data: st.DataObject) -> None:
    path = tmp_path / f"words{suffix}"
    if suffix == ".parquet":
        pd.DataFrame({"text": ["a", "b"], "n": [1, 2]}).to_parquet(path)
        valid = path.read_bytes()
    else:
        valid = b'{"text": "a"}\n{"text": "b"}\n' if suffix == ".jsonl" else b"a\n\nb\n"
    path.write_bytes(data.draw(bytes_like(valid)))
    outcome(lambda: list(_rows_of_file(path)))
