"""A full disk, a limit on the size of files, and folders that cannot be written."""

import os
import random
import shutil
import subprocess
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
from sample_corpus import make_corpus

from faults.micro import State, bitlaw, check_part, check_whole, resume, rows

MOUNT_READ_ONLY = 'mount --bind "$1" "$1" && mount -o remount,ro,bind "$1" && shift && exec "$@"'


def one_sentence(done: subprocess.CompletedProcess[str], *words: str) -> None:
    assert done.returncode == 2, done.stdout + done.stderr
    assert any(word in done.stderr for word in words), done.stderr
    assert "Traceback" not in done.stderr
    assert len(done.stderr.strip().splitlines()) == 1, done.stderr


@contextmanager
def small_disk(folder: Path, kib: int) -> Iterator[Callable[[int], None]]:
    """A tmpfs of our own; what is yielded gives it another size."""
    folder.mkdir()
    mounted = subprocess.run(["mount", "-t", "tmpfs", "-o", f"size={kib}k", "tmpfs", str(folder)], capture_output=True)
    if mounted.returncode:
        pytest.skip("mounting a small tmpfs needs root on Linux")

    def resize(size: int) -> None:
        subprocess.run(["mount", "-o", f"remount,size={size}k", str(folder)], check=True)

    try:
        yield resize
    finally:
        subprocess.run(["umount", str(folder)], check=True)


# KiB: before the first state of a trunk, among the first results, near the end (all of it takes about 5,500).
@pytest.mark.parametrize("kib", [700, 2500, *(pytest.param(kib, marks=pytest.mark.long) for kib in (1500, 3700, 4700))])
def test_a_disk_that_fills_up(expected: State, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, kib: int) -> None:
    root = tmp_path / "disk"
    with small_disk(root, kib) as resize:
        make_corpus(root)
        one_sentence(bitlaw(root, "train", "--workers", "1"), "No space left on device")
        check_part(root, expected)
        assert not list((root / "build").glob("*/*/claim*")), "a claim is left that nobody holds"
        resize(50_000)
        done = bitlaw(root, "train", "--workers", "1")
        assert done.returncode == 0, done.stderr
        used = shutil.disk_usage(root).used // 1024
        resize(used + random.Random(kib).randrange(24, 120))
        one_sentence(bitlaw(root, "measure", "--workers", "1"), "No space left on device")
        check_part(root, expected)
        resize(50_000)
        resume(root, monkeypatch)
        check_whole(root, expected)


def test_tables_on_a_disk_of_their_own(expected: State, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Only the results folder is full: what was trained is kept, and put in later."""
    make_corpus(tmp_path)
    with small_disk(tmp_path / "reports", 8) as resize:
        one_sentence(bitlaw(tmp_path, "train"), "No space left on device")
        check_part(tmp_path, expected)
        resize(50_000)
        resume(tmp_path, monkeypatch)
        check_whole(tmp_path, expected)


@pytest.mark.parametrize("kib", [4, 150, pytest.param(600, marks=pytest.mark.long)])
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
        pytest.skip("neither mount namespaces nor permissions can make a folder read-only here")
    yield before


REFUSED = ("Read-only file system", "Permission denied")


@pytest.mark.parametrize("name", ["reports", "build"])
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
