"""A full disk, a limit on the size of files, and folders that cannot be written."""

import os
import random
import shutil
import subprocess
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pandas as pd
import pytest
from ptq_models import CONTEXT
from ptq_models import folder as folder_of_a_model
from ptq_models import text as text_of_words
from sample_corpus import make_corpus
from test_corpus import make_packages, pin

from faults.micro import (
    ENVIRONMENT,
    PATIENCE_SECONDS,
    State,
    bitlaw,
    check_part,
    check_whole,
    content,
    python,
    resume,
    rows,
)
from shared.corpus import build
from shared.errors import BitlawError
from shared.sweep.desk import Desk, send

MOUNT_READ_ONLY = 'mount --bind "$1" "$1" && mount -o remount,ro,bind "$1" && shift && exec "$@"'


FULL = "No space left on device"


def one_sentence(done: subprocess.CompletedProcess[str], *words: str, alone: bool = True) -> None:
    """`alone`: nothing but the sentence on standard error, where other commands may say what they are at."""
    assert done.returncode == 2, done.stdout + done.stderr
    said = done.stderr.strip().splitlines()
    assert any(word in said[-1] for word in words), done.stderr
    assert "Traceback" not in done.stderr
    assert " at None" not in done.stderr
    assert len(said) == 1 or not alone, done.stderr


@contextmanager
def small_disk(folder: Path, kib: int) -> Iterator[Callable[[int], None]]:
    """A tmpfs of our own; what is yielded gives it another size."""
    folder.mkdir()
    mount = ["mount", "-t", "tmpfs", "-o", f"size={kib}k", "tmpfs", str(folder)]
    try:
        mounted = subprocess.run(mount, capture_output=True, text=True)
    except FileNotFoundError:
        pytest.skip("NOT TESTED, no full disk: a small tmpfs needs Linux, and its command `mount`")
    if mounted.returncode:
        who = "root without CAP_SYS_ADMIN (docker run --cap-add SYS_ADMIN)" if not os.geteuid() else "no root"
        pytest.skip(f"NOT TESTED, no full disk: {who} cannot mount a small tmpfs ({mounted.stderr.strip()})")

    def resize(size: int) -> None:
        subprocess.run(["mount", "-o", f"remount,size={size}k", str(folder)], check=True)

    try:
        yield resize
    finally:
        subprocess.run(["umount", str(folder)], check=True)


# KiB: before the first state of a trunk, among the first results, near the end (all of it takes about 5,500).
@pytest.mark.parametrize("kib", [700, *(pytest.param(kib, marks=pytest.mark.long) for kib in (1500, 2500, 3700, 4700))])
def test_a_disk_that_fills_up(expected: State, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, kib: int) -> None:
    root = tmp_path / "disk"
    with small_disk(root, kib) as resize:
        make_corpus(root)
        one_sentence(bitlaw(root, "train", "--workers", "1"), FULL)
        check_part(root, expected)
        assert not list((root / "build").glob("*/*/claim*")), "a claim is left that nobody holds"
        resize(50_000)
        done = bitlaw(root, "train", "--workers", "1")
        assert done.returncode == 0, done.stderr
        used = shutil.disk_usage(root).used // 1024
        resize(used + random.Random(kib).randrange(24, 120))
        one_sentence(bitlaw(root, "measure", "--workers", "1"), FULL)
        check_part(root, expected)
        resize(50_000)
        resume(root, monkeypatch)
        check_whole(root, expected)


@pytest.mark.long
def test_tables_on_a_disk_of_their_own(expected: State, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Only the results folder is full: what was trained is kept, and put in later."""
    make_corpus(tmp_path)
    with small_disk(tmp_path / "reports", 8) as resize:
        one_sentence(bitlaw(tmp_path, "train"), FULL)
        check_part(tmp_path, expected)
        resize(50_000)
        resume(tmp_path, monkeypatch)
        check_whole(tmp_path, expected)


@pytest.mark.parametrize("kib", [4, *(pytest.param(n, marks=pytest.mark.long) for n in (150, 600))])
def test_a_limit_on_the_size_of_files(
    expected: State, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, kib: int
) -> None:
    """What quotas do, without root: of results, of checkpoints (about 270 KiB), of a trunk's state."""
    make_corpus(tmp_path)
    done = bitlaw(tmp_path, "train", "--workers", "1", before=["bash", "-c", f'ulimit -f {kib}; exec "$@"', "bash"])
    one_sentence(done, "File too large")
    check_part(tmp_path, expected)
    assert not list((tmp_path / "build").glob("*/*/claim*"))
    resume(tmp_path, monkeypatch)
    check_whole(tmp_path, expected)


@contextmanager
def read_only(folder: Path) -> Iterator[list[str]]:
    """What is put before a command so that it cannot write to the folder (root is not bound by permissions)."""
    if os.geteuid():
        folder.chmod(0o555)
        try:
            yield []
        finally:
            folder.chmod(0o755)
        return
    before = ["unshare", "--mount", "sh", "-c", MOUNT_READ_ONLY, "sh", str(folder)]
    if subprocess.run([*before, "true"], capture_output=True).returncode:
        pytest.skip(
            "NOT TESTED, no read-only folder: root is not bound by permissions, and here it has no CAP_SYS_ADMIN"
        )
    yield before


REFUSED = ("Read-only file system", "Permission denied")


@pytest.mark.parametrize("name", [pytest.param("reports", marks=pytest.mark.long), "build"])
def test_a_folder_that_cannot_be_written(
    copied: Callable[[], Path], expected: State, monkeypatch: pytest.MonkeyPatch, name: str
) -> None:
    """Said before any training; with nothing to do, nothing needs to be written."""
    root = copied()
    with read_only(root / name) as before:
        for verb in ("train", "measure"):
            assert bitlaw(root, verb, "--workers", "1", before=before).returncode == 0
    check_whole(root, expected)
    lost = sorted((root / "build" / "runs").iterdir())[:3]
    text = (root / "reports" / "runs.csv").read_text().splitlines(keepends=True)
    (root / "reports" / "runs.csv").write_text("".join(text[:1] + text[4:]))
    (root / "reports" / "measurements.csv").unlink()
    for folder in lost:
        shutil.rmtree(folder)
    left = rows(root / "reports" / "runs.csv")
    with read_only(root / name) as before:
        for verb in ("train", "measure"):
            one_sentence(bitlaw(root, verb, "--workers", "1", before=before), *REFUSED)
    assert not any(folder.exists() for folder in lost)
    assert rows(root / "reports" / "runs.csv") == left
    resume(root, monkeypatch)
    check_whole(root, expected)


# --- commands that write files once -----------------------------------------------------------------------------


def fills_up(words: list[str], root: Path, where: str, room: int) -> None:
    """A command on a disk with `room` KiB left: each file of `where` is as before, or as the command leaves it."""
    whole, disk = root.with_name("whole"), root.with_name("disk")
    shutil.copytree(root, whole)
    before = content(root / where)
    done = run(words, whole)
    assert done.returncode == 0, done.stderr
    after = content(whole / where)
    assert after != before
    with small_disk(disk, 50_000) as resize:
        shutil.copytree(root, disk, dirs_exist_ok=True)
        resize(shutil.disk_usage(disk).used // 1024 + room)
        one_sentence(run(words, disk), FULL, alone=False)
        found = content(disk / where)
        assert all(sha256 in (before.get(name), after.get(name)) for name, sha256 in found.items())
        assert before.keys() <= found.keys()
        resize(50_000)
        done = run(words, disk)
        assert done.returncode == 0, done.stderr
        assert content(disk / where) == after


def run(words: list[str], root: Path) -> subprocess.CompletedProcess[str]:
    return subprocess.run(words, cwd=root, env=ENVIRONMENT, capture_output=True, text=True, timeout=PATIENCE_SECONDS)


@pytest.mark.long
def test_a_fit_on_a_full_disk(analysed: Path) -> None:
    fills_up(python("replicate", "fit", "undertrained_qid", "--reports", "reports"), analysed, "reports", 4)


# KiB: before its first file, and between its figures and the page.
@pytest.mark.long
@pytest.mark.parametrize("room", [4, 400])
def test_a_page_on_a_full_disk(analysed: Path, room: int) -> None:
    fills_up(python("report", "--reports", "reports"), analysed, "reports", room)


@pytest.mark.parametrize("room", [4, pytest.param(60, marks=pytest.mark.long)])
def test_data_on_a_full_disk(tmp_path: Path, room: int) -> None:
    root = tmp_path / "root"
    (root / "build" / "corpora").mkdir(parents=True)
    words = random.Random(0).choices(["scaling", "laws", "of", "language", "models\n"], k=60_000)
    (root / "mine.txt").write_text(" ".join(words))
    fills_up(python("data", "build", "--text", "mine.txt", "--name", "mine"), root, "build/corpora", room)


@pytest.mark.long
def test_data_from_wheels_on_a_full_disk(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    root = tmp_path / "root"
    root.mkdir()
    with monkeypatch.context() as there:
        there.chdir(root)
        make_packages(40)
        build.build_data()
        pin()
        shutil.rmtree(build.DATA)
    fills_up(python("data", "build"), root, "data", 60)


@pytest.mark.long
def test_quantizing_on_a_full_disk(tmp_path: Path) -> None:
    """Cells that were measured stay; when there is room again, the table is that of an undisturbed run."""
    model = folder_of_a_model(tmp_path, "gpt2")
    words = python(
        "ptq", str(model), "--text", str(text_of_words(tmp_path / "words.txt")), "--formats", "INT5,INT4,INT3,INT2"
    )
    words += ["--methods", "rtn", "--context", str(CONTEXT), "--calibration", "4", "--windows", "8", "--out"]
    assert run([*words, "whole"], tmp_path).returncode == 0
    expected = pd.read_csv(tmp_path / "whole" / "table.csv").drop(columns="seconds")
    disk = tmp_path / "disk"
    cells: list[int] = []
    with small_disk(disk, 50_000) as resize:
        for room in (4, 16):  # KiB: before the base losses, among the cells
            resize(shutil.disk_usage(disk).used // 1024 + room)
            one_sentence(run([*words, str(disk / "out")], tmp_path), FULL, alone=False)
            cells.append(len(list((disk / "out").glob("cells/*.json"))))
            assert not list(disk.rglob(".*")), "half-written files are not left"
        assert 0 == cells[0] < cells[1] < 4
        resize(50_000)
        done = run([*words, str(disk / "out")], tmp_path)
        assert done.returncode == 0, done.stderr
        assert "damaged" not in done.stderr
        assert pd.read_csv(disk / "out" / "table.csv").drop(columns="seconds").equals(expected)


# --- what comes from other machines -----------------------------------------------------------------------------


def test_a_desk_on_a_full_disk(tmp_path: Path) -> None:
    """It says so in one sentence, and takes the file once there is room."""
    source, name = tmp_path / "source", f"runs/{'a' * 12}/checkpoint.safetensors"
    source.write_bytes(os.urandom(200_000))
    with small_disk(tmp_path / "disk", 64) as resize:
        desk = Desk(str(tmp_path / "disk" / "build" / "desks" / "token"))
        desk.folder.mkdir(parents=True)

        def call(method: str, *values: Any) -> Any:
            return getattr(desk, method)(*values)

        with pytest.raises(BitlawError, match=f"^{FULL}: what was finished is kept, mend it and run again$"):
            send(call, source, name)
        assert not (desk.build / "runs").exists()
        resize(50_000)
        send(call, source, name)
        assert (desk.build / name).read_bytes() == source.read_bytes()


@pytest.mark.skipif(
    not Path("/dev/full").exists(), reason="NOT TESTED, no full disk without root: there is no /dev/full"
)
def test_a_desk_says_no_name_that_it_does_not_know(tmp_path: Path) -> None:
    desk = Desk(str(tmp_path))
    (tmp_path / "parcel").symlink_to("/dev/full")
    with pytest.raises(BitlawError, match=f"^{FULL}: what was finished is kept, mend it and run again$"):
        desk.put("parcel", b"0" * 100)
