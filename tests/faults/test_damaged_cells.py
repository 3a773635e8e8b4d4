"""Flips and cuts in what `bitlaw ptq` and `bitlaw allocate` go on from: named, and never a wrong row."""

import json
import random
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import pandas as pd
import pytest
import torch
import typer
from ptq_models import CONTEXT, folder, text
from typer.testing import CliRunner

from faults.test_damage import flipped, named, spoiled_tensors
from replications.commands import allocate, ptq
from replications.precision_predictor.results import read_trials
from shared.errors import BitlawError
from shared.files import read_json, write_json
from shared.ptq.cells import Cell, Results

CELL = Cell("rtn", "INT4", "8")
ROW = {"cell": CELL.name, "loss": 5.64231, "delta": 0.00928, "delta_se": 0.00124, "weights": 16384, "seconds": 1.5}
SETTINGS = {"context": 32, "windows": 8, "text": "words.txt", "text_sha256": "0123" * 16, "head": False}
BASE_S = torch.tensor([5.63, 5.64, 5.65], dtype=torch.float64)


@pytest.fixture
def measured(tmp_path: Path) -> Results:
    results = Results(tmp_path / "out")
    results.keep_base(BASE_S, SETTINGS)
    results.keep(CELL, ROW)
    return results


def flips(path: Path) -> list[bytes]:
    """A bit of each byte, and cuts."""
    content, chance = path.read_bytes(), random.Random(0)
    return [flipped(content, at, chance.randrange(8)) for at in range(len(content))] + [
        content[:end] for end in range(0, len(content), 5)
    ]


def test_each_bit_of_a_cell_counts(measured: Results) -> None:
    path = measured.folder / "cells" / f"{CELL.file}.json"
    spoiled, found = flips(path), 0
    for bad in spoiled:
        path.write_bytes(bad)
        said: list[str] = []
        row = measured.row(CELL, said.append)
        if row is None:
            found += 1
            assert str(path) in said[0]
            assert "the cell is measured again" in said[0]
            assert not path.exists()
        else:
            assert row == ROW
            assert not said
    assert found > 0.8 * len(spoiled)


def test_a_cell_of_another_name_or_without_a_checksum_is_not_taken(measured: Results) -> None:
    path = measured.folder / "cells" / f"{CELL.file}.json"
    other = Cell("rtn", "INT3", "8")
    path.rename(path.with_name(f"{other.file}.json"))
    said: list[str] = []
    assert measured.row(other, said.append) is None
    assert f"it is not of cell {other.name}" in said[0]
    write_json(path, ROW)
    assert measured.row(CELL, said.append) is None
    assert "does not match its checksum" in said[1]


def test_each_bit_of_the_base_losses_counts(measured: Results) -> None:
    path = measured.folder / "base_losses.safetensors"
    content = path.read_bytes()
    assert spoiled_tensors(path, content, range(len(content)), range(0, len(content), 5)) > len(content)
    elsewhere = Results(measured.folder.with_name("other"))
    elsewhere.keep_base(BASE_S + 1, SETTINGS | {"windows": 9})
    path.write_bytes((elsewhere.folder / path.name).read_bytes())
    with pytest.raises(BitlawError, match=r"base_losses\.safetensors: is not of this folder's settings"):
        measured.base()
    path.write_bytes(content)
    kept = measured.base()
    assert kept is not None
    assert torch.equal(kept, BASE_S)


def test_each_bit_of_the_settings_counts(measured: Results) -> None:
    path = measured.folder / "settings.json"
    spoiled = flips(path)
    found = 0
    for bad in spoiled:
        path.write_bytes(bad)
        found += named(measured.settings, str(path), lambda settings: settings == SETTINGS)
    assert found > 0.8 * len(spoiled)


@pytest.mark.parametrize("damage", ["[1]", "3", "null", '"words"'])
def test_settings_that_are_no_object_are_one_sentence(measured: Results, damage: str) -> None:
    (measured.folder / "settings.json").write_text(damage)
    with pytest.raises(BitlawError, match=r"settings\.json: is damaged \(it is no object\)"):
        measured.check(SETTINGS)


def test_cells_of_nobody_knows_what_are_refused(measured: Results) -> None:
    (measured.folder / "settings.json").unlink()
    with pytest.raises(BitlawError, match=r"settings\.json: cannot be read"):
        measured.check(SETTINGS)


def test_a_folder_from_before_checksums_is_refused_and_kept(measured: Results) -> None:
    before = measured.folder / "base_losses.npy"
    before.write_bytes(b"")
    with pytest.raises(BitlawError, match="holds results from before 2026-11-22, without checksums: choose another"):
        measured.check(SETTINGS)
    assert (measured.folder / "cells" / f"{CELL.file}.json").exists()


def test_the_command_measures_a_damaged_cell_again(tmp_path: Path) -> None:
    """The flip that made a delta of .00828 of one of .00928."""
    app = typer.Typer()
    app.command(cls=ptq.Lists)(ptq.ptq)
    torch.set_num_threads(1)
    model, words, out = folder(tmp_path, "gpt2"), text(tmp_path / "words.txt"), tmp_path / "out"
    arguments = [model, "--text", words, "--methods", "rtn", "--formats", "INT4,INT3", "--out", out]
    arguments += ["--context", CONTEXT, "--calibration", 4, "--windows", 8]

    said: list[str] = []

    def run() -> pd.DataFrame:
        done = CliRunner().invoke(app, [str(word) for word in arguments])
        if done.exception:
            raise done.exception
        said.append(" ".join(done.stderr.split()))
        return pd.read_csv(out / "table.csv").drop(columns="seconds")

    undisturbed = run()
    path = out / "cells" / "rtn-INT4-channel.json"
    value = read_json(path)
    path.write_text(json.dumps(value | {"delta": value["delta"] + 0.001}))
    assert run().equals(undisturbed)
    assert f"{path}: is damaged, it does not match its checksum" in said[-1]
    base = out / "base_losses.safetensors"
    content = base.read_bytes()
    base.write_bytes(flipped(content, len(content) - 3, 2))
    with pytest.raises(BitlawError, match=r"base_losses\.safetensors: does not match its checksum; remove it and run"):
        run()
    base.unlink()
    assert run().equals(undisturbed)


READ: dict[str, Callable[[Path], Any]] = {
    "trials": lambda path: read_trials(path, allocate.KEY),
    "to resume": lambda path: allocate.Table(path, allocate.KEY).rows,
}


@pytest.mark.parametrize("kind", READ)
def test_trials_cut_anywhere_have_whole_rows_or_are_named(tmp_path: Path, kind: str) -> None:
    path = tmp_path / "trials.csv"
    row = dict(zip(allocate.KEY, ["26a9f235f1ca", "layer", "rtn", 2.5, "uniform"], strict=True))
    rows = [row | {"budget": budget, "loss": 3.25481, "penalty": 0.0125} for budget in (2.5, 3.0, 4.0)]
    pd.DataFrame(rows).to_csv(path, index=False)
    content = path.read_bytes()
    whole = READ[kind](path)
    assert len(whole) == 3
    lost = 0
    for end in range(len(content)):
        path.write_bytes(content[:end])
        lost += named(partial(READ[kind], path), str(path), lambda found: found == whole[: len(found)])
    assert lost == len(content) - 2  # all but the ends of the first two rows
