"""Truncated files and flipped bits, in everything that a sweep reads again: named, and never a wrong row."""

import random
import shutil
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from typing import Any, TypeVar

import numpy as np
import pytest
import torch

from faults.micro import State, bitlaw, check_part, check_whole, resume, rows, state_of
from shared.corpus.load import Corpus, load_corpus, verify
from shared.errors import BitlawError
from shared.sweep import tables
from shared.sweep.ledger import Ledger
from shared.train.state import DamagedFileError, load, save

T = TypeVar("T")
Spoil = Callable[[bytes, random.Random], bytes]


def flipped(content: bytes, at: int, bit: int) -> bytes:
    return content[:at] + bytes([content[at] ^ (1 << bit)]) + content[at + 1 :]


SPOILS: dict[str, Spoil] = {
    "truncated": lambda content, chance: content[: chance.randrange(len(content))],
    "empty": lambda content, chance: b"",
    "flipped": lambda content, chance: flipped(content, chance.randrange(len(content)), chance.randrange(8)),
    "header": lambda content, chance: flipped(content, chance.randrange(min(200, len(content))), chance.randrange(8)),
    "longer": lambda content, chance: content + chance.randbytes(16),
    "zeros": lambda content, chance: bytes(len(content)),
}


def named(read: Callable[[], T], where: str, same_as_before: Callable[[T], bool]) -> bool:
    """Whether reading says in a sentence that the file is damaged; where it does not, nothing may have changed."""
    try:
        value = read()
    except BitlawError as error:
        sentence = str(error)
    else:
        assert same_as_before(value)
        return False
    assert where in sentence
    return True


def same(one: dict[str, Any], other: dict[str, Any]) -> bool:
    return one.keys() == other.keys() and all(torch.equal(one[name], other[name]) for name in one)


def part_of(whole: dict[tuple[str, ...], tables.Row], rest: dict[tuple[str, ...], tables.Row]) -> bool:
    return all(whole[key] == row for key, row in rest.items())


def some_run(root: Path) -> str:
    return sorted(path.name for path in (root / "build" / "runs").iterdir())[0]


@pytest.mark.parametrize("name", ["result.json", "cells/rtn-INT2-channel.json"])
def test_each_bit_of_a_result_counts(copied: Callable[[], Path], name: str) -> None:
    """A flip in any byte is found, or changes nothing that is read."""
    root = copied()
    run_id = some_run(root)
    ledger = Ledger(root / "build")
    path = ledger.run_folder(run_id) / name
    content, chance = path.read_bytes(), random.Random(0)

    def read(said: list[str]) -> dict[str, Any] | None:
        if name == "result.json":
            return ledger.result(run_id, said.append)
        return ledger.cell(run_id, path.stem, said.append)

    whole = read([])
    assert whole is not None
    found = 0
    for at in range(len(content)):
        path.write_bytes(flipped(content, at, chance.randrange(8)))
        said: list[str] = []
        value = read(said)
        if value is None:
            found += 1
            assert len(said) == 1
            assert str(path) in said[0]
            assert not path.exists()
        else:
            # White space between keys, or the name of the checksum itself.
            assert {key: value[key] for key in whole} == whole
    assert found > 0.8 * len(content)
    for end in range(0, len(content), 7):
        path.write_bytes(content[:end])
        assert read([]) is None or end >= len(content.rstrip())


def spoiled_tensors(path: Path, whole: bytes, places: Sequence[int], cuts: Sequence[int]) -> int:
    """How many flips at these places and cuts at these lengths are named; the others change nothing that is read."""
    path.write_bytes(whole)
    tensors, notes = load(path)
    chance = random.Random(1)
    found = 0
    for bad in [flipped(whole, at, chance.randrange(8)) for at in places] + [whole[:end] for end in cuts]:
        path.write_bytes(bad)
        found += named(lambda: load(path), str(path), lambda value: same(value[0], tensors) and value[1] == notes)
    return found


def test_each_bit_of_tensors_and_of_their_notes_counts(tmp_path: Path) -> None:
    """The step that training goes on from is among the notes: a wrong one would train other numbers."""
    path = tmp_path / "trunk.safetensors"
    tensors = {"model.a": torch.arange(6.0).view(2, 3), "exp_avg.a": torch.ones(2, 3), "step.a": torch.tensor(64.0)}
    save(path, tensors, {"step": 64, "loss": 3.25, "diverged": False, "seconds": 1.5, "tokens": 8192})
    content = path.read_bytes()
    assert spoiled_tensors(path, content, range(len(content)), range(len(content))) > 1.9 * len(content)


@pytest.mark.parametrize(
    "name", ["runs/*/checkpoint.safetensors", "trunks/*/trunk.safetensors", "runs/*/cells/*.safetensors"]
)
def test_flips_and_cuts_of_a_sweeps_own_tensors_are_named(golden: Path, tmp_path: Path, name: str) -> None:
    source = min((golden / "build").glob(name))
    content, chance = source.read_bytes(), random.Random(2)
    header = 8 + int.from_bytes(content[:8], "little")
    places = [*(chance.randrange(header) for _ in range(40)), *(chance.randrange(len(content)) for _ in range(20))]
    cuts = [chance.randrange(len(content)) for _ in range(10)]
    assert spoiled_tensors(tmp_path / source.name, content, places, cuts) > 60


def test_a_checkpoint_in_another_runs_folder_is_found(copied: Callable[[], Path]) -> None:
    root = copied()
    first, second = sorted((root / "build" / "runs").iterdir())[:2]
    shutil.copyfile(first / "checkpoint.safetensors", second / "checkpoint.safetensors")
    with pytest.raises(DamagedFileError, match=f"{second.name}/checkpoint.safetensors: is of run {first.name}"):
        Ledger(root / "build").weights(second.name)


def test_flips_in_base_losses_are_found(golden: Path, tmp_path: Path) -> None:
    content, chance = (golden / "reports" / "base_losses.npz").read_bytes(), random.Random(2)
    whole = tables.read_base_losses(golden / "reports")
    path = tmp_path / "base_losses.npz"
    # The directory at the end of the archive, byte by byte, and some of the rest.
    places = [*range(len(content) - 1200, len(content)), *(chance.randrange(len(content)) for _ in range(400))]
    spoiled = [flipped(content, at, chance.randrange(8)) for at in places]
    spoiled += [content[: chance.randrange(len(content))] for _ in range(100)]

    def unchanged(again: dict[str, Any]) -> bool:
        return again.keys() == whole.keys() and all(np.array_equal(again[name], whole[name]) for name in whole)

    found = 0
    for bad in spoiled:
        path.write_bytes(bad)
        found += named(lambda: tables.read_base_losses(tmp_path), str(path), unchanged)
    assert found > 300


def test_a_table_cut_anywhere_has_whole_rows_or_is_named(golden: Path, tmp_path: Path) -> None:
    """Also in the middle of the last cell of the last row, which leaves as many columns."""
    readers = {"runs.csv": tables.read_runs, "measurements.csv": tables.read_measurements}
    for name, read in readers.items():
        content = (golden / "reports" / name).read_bytes()
        whole = read(golden / "reports")
        path = tmp_path / name
        ends = [*range(0, len(content), 11), *range(len(content) - 300, len(content))]
        lost = 0
        for end in ends:
            path.write_bytes(content[:end])
            lost += named(partial(read, tmp_path), str(path), partial(part_of, whole))
        assert lost > 0.9 * len(ends)


@pytest.mark.parametrize("part", ["train.bin", "val.bin", "corpus.json"])
def test_flips_in_a_corpus_are_named(copied: Callable[[], Path], part: str) -> None:
    root = copied()
    path = root / "build" / "corpora" / "sample" / part
    content, chance = path.read_bytes(), random.Random(3)
    whole = load_corpus("sample", root)
    sha256, train, val = whole.sha256, np.array(whole.train), np.array(whole.val)
    places = range(len(content)) if part == "corpus.json" else [chance.randrange(len(content)) for _ in range(40)]
    spoiled = [flipped(content, at, chance.randrange(8)) for at in places]
    spoiled += [spoil(content, chance) for spoil in SPOILS.values() for _ in range(5)]

    def read() -> Corpus:
        corpus = load_corpus("sample", root)
        verify(corpus)
        return corpus

    def unchanged(corpus: Corpus) -> bool:
        same_text = np.array_equal(corpus.train, train) and np.array_equal(corpus.val, val)
        return corpus.sha256 == sha256 and bool(same_text)

    found = 0
    for bad in spoiled:
        path.unlink()  # not into it: a mapped file changes for whoever reads it
        path.write_bytes(bad)
        found += named(read, "sample", unchanged)
    assert found == len(spoiled) if part != "corpus.json" else found > 0.5 * len(spoiled)


@pytest.mark.parametrize("part", ["train.bin", "val.bin"])
def test_no_row_is_made_of_a_changed_corpus(
    copied: Callable[[], Path], expected: State, monkeypatch: pytest.MonkeyPatch, part: str
) -> None:
    root = copied()
    for folder in ("runs", "trunks"):
        shutil.rmtree(root / "build" / folder)
    (root / "reports" / "runs.csv").unlink()
    (root / "reports" / "measurements.csv").unlink()
    path = root / "build" / "corpora" / "sample" / part
    content = path.read_bytes()
    path.write_bytes(flipped(content, len(content) // 3, 0))
    with pytest.raises(BitlawError, match=f"{part}: its content was changed"):
        resume(root, monkeypatch)
    assert not rows(root / "reports" / "runs.csv")
    path.write_bytes(content)
    resume(root, monkeypatch)
    check_whole(root, expected)


FILES = {
    "results": "runs/*/result.json",
    "checkpoints": "runs/*/checkpoint.safetensors",
    "losses": "runs/*/losses.safetensors",
    "cells": "runs/*/cells/*.json",
    "losses of cells": "runs/*/cells/*.safetensors",
}


@pytest.mark.parametrize("kind", FILES)
@pytest.mark.parametrize("tables_left", [True, pytest.param(False, marks=pytest.mark.long)])
def test_a_sweep_mends_what_is_damaged(
    copied: Callable[[], Path], expected: State, monkeypatch: pytest.MonkeyPatch, kind: str, tables_left: bool
) -> None:
    """Each kind of damage to a file of this kind; with the tables at hand, and when the ledger must fill them again."""
    root = copied()
    chance = random.Random(kind)
    files = chance.sample(sorted((root / "build").glob(FILES[kind])), len(SPOILS))
    for path, spoil in zip(files, SPOILS.values(), strict=True):
        path.write_bytes(spoil(path.read_bytes(), chance))
    if not tables_left:
        (root / "reports" / "runs.csv").unlink()
        (root / "reports" / "measurements.csv").unlink()
    said = " ".join(resume(root, monkeypatch))
    if kind in ("results", "checkpoints", "losses") or not tables_left:
        # One flip may fall on white space.
        assert sum(str(path.relative_to(root)) in said for path in files) >= len(files) - 1
    check_whole(root, expected)


def test_damaged_states_of_a_stopped_sweep(
    golden: Path, copied: Callable[[], Path], expected: State, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What training would go on from: the trunk's state and the branch's, both of a sweep that lost its results."""
    for name, spoil in SPOILS.items():
        root = copied()
        chance = random.Random(name)
        for path in sorted((root / "build" / "runs").glob("*/result.json"))[: chance.randrange(4, 12)]:
            path.unlink()
        for path in (root / "build" / "trunks").glob("*/trunk.safetensors"):
            shutil.copyfile(path, path.with_name("branch.safetensors"))
            for state in (path, path.with_name("branch.safetensors")):
                state.write_bytes(spoil(state.read_bytes(), chance))
        said = " ".join(resume(root, monkeypatch))
        assert "branch.safetensors: " in said
        check_whole(root, expected)


@pytest.mark.parametrize("name", ["runs.csv", "measurements.csv", "base_losses.npz"])
def test_a_damaged_table_stops_the_command_and_comes_back(
    copied: Callable[[], Path], expected: State, monkeypatch: pytest.MonkeyPatch, name: str
) -> None:
    """Named in one sentence, never written over; when it is removed, the ledger fills it again."""
    root = copied()
    path = root / "reports" / name
    content = path.read_bytes()
    cut = content[: len(content) // 2]
    path.write_bytes(cut)
    lost = min((root / "build" / "runs").glob("*/result.json"))
    kept = lost.read_bytes()
    lost.unlink()
    with pytest.raises(BitlawError, match=name):
        resume(root, monkeypatch)
    assert path.read_bytes() == cut
    if not lost.exists():
        lost.write_bytes(kept)
    path.unlink()
    resume(root, monkeypatch)
    check_whole(root, expected)


@pytest.mark.parametrize("name", ["runs.csv", "base_losses.npz"])
def test_the_command_says_it_in_one_sentence(copied: Callable[[], Path], expected: State, name: str) -> None:
    root = copied()
    path = root / "reports" / name
    path.write_bytes(path.read_bytes()[:-1])
    done = bitlaw(root, "train")
    assert done.returncode == 2, done.stdout + done.stderr
    assert name in done.stderr
    assert "Traceback" not in done.stderr
    assert len(done.stderr.strip().splitlines()) == 1
    path.unlink()
    check_part(root, expected)


def test_the_undisturbed_run_is_left_alone(golden: Path, expected: State) -> None:
    """The tests above work on copies."""
    assert state_of(golden) == expected
