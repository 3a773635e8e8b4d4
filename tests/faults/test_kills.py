"""SIGKILL of workers and launchers at random moments; stale claims; two workers that finish the same run."""

import json
import os
import random
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import pytest
from sample_corpus import make_corpus

from faults.micro import (
    ENVIRONMENT,
    PATIENCE_SECONDS,
    RUNS,
    State,
    bitlaw,
    check_part,
    check_whole,
    command,
    resume,
    started,
    state_of,
    wait_for,
)
from shared.sweep import claim
from shared.sweep.ledger import Ledger

KILLS = 4  # of each verb; one in CI's sample


def owners(root: Path) -> list[int]:
    """Workers that hold a claim, of a trunk or of a run to measure."""
    pids = []
    for path in (root / "build").glob("*/*/claim"):
        try:
            pids.append(int(json.loads(path.read_text())["pid"]))
        except (OSError, ValueError):
            continue  # taken and not written yet, or given back
    return pids


@pytest.mark.parametrize(
    ("seed", "kills"), [(0, 1), *(pytest.param(seed, KILLS, marks=pytest.mark.long) for seed in (0, 1, 2))]
)
def test_workers_killed_at_random(
    expected: State, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, seed: int, kills: int
) -> None:
    """One or both of two workers die, again and again, until all is done."""
    make_corpus(tmp_path)
    chance = random.Random(seed)
    killed = 0
    for verb in ("train", "measure"):
        for _ in range(kills):
            process = started(command(tmp_path, verb, "--workers", "2"), tmp_path)
            if wait_for(lambda: owners(tmp_path), process):
                time.sleep(chance.uniform(0, 1.0))
                for pid in owners(tmp_path)[: chance.choice([1, 2])]:
                    try:
                        os.kill(pid, signal.SIGKILL)
                        killed += 1
                    except ProcessLookupError:
                        continue  # done in the meantime
            out, err = process.communicate(timeout=PATIENCE_SECONDS)
            assert process.returncode in (0, 2), out + err
            assert "Traceback" not in err
            check_part(tmp_path, expected)
    assert killed
    resume(tmp_path, monkeypatch)
    check_whole(tmp_path, expected)


def test_a_launcher_killed_at_its_start_takes_its_workers_along(golden: Path, tmp_path: Path) -> None:
    """Its workers are still importing torch when it dies: they find out, and leave the work to the next command."""
    make_corpus(tmp_path)
    process = started(command(tmp_path, "train", "--workers", "1"), tmp_path)
    children = Path(f"/proc/{process.pid}/task/{process.pid}/children")
    if not children.exists():
        process.kill()
        process.communicate()
        pytest.skip("this kernel does not list the children of a process")
    assert wait_for(lambda: children.read_text().split(), process)
    os.kill(process.pid, signal.SIGKILL)
    process.communicate(timeout=PATIENCE_SECONDS)  # ends when the last worker has let go of the pipes
    assert not list((tmp_path / "build").glob("runs/*/result.json"))
    assert not owners(tmp_path)


# What somebody left who is gone: the owner (pid 0: of a process that has ended), and how long ago it was touched.
GONE = claim.STALE_SECONDS + 5
LEFT: dict[str, tuple[dict[str, object] | str, float]] = {
    "dead process": ({"host": socket.gethostname(), "pid": 0, "token": "x"}, 0.0),
    "other host": ({"host": "elsewhere", "pid": 1, "token": "x"}, GONE),
    "cut short": ("", GONE),
    "damaged": ('{"host": "elsewhere", "pi', GONE),
    "no object": ("[1, 2]", GONE),
    "no number": ({"host": socket.gethostname(), "pid": "many", "token": "x"}, GONE),
    "all processes": ({"host": socket.gethostname(), "pid": -1, "token": "x"}, GONE),
}


def test_stale_claims_are_taken_over(expected: State, tmp_path: Path) -> None:
    """A claim of every kind on each trunk, and at last on each run that is measured."""
    make_corpus(tmp_path)
    dead = subprocess.run([sys.executable, "-c", "import os; print(os.getpid())"], capture_output=True, text=True)
    trunks = sorted({row["trunk_id"] for row in expected.runs})
    runs = sorted(row["run_id"] for row in expected.runs)

    def leave(folder: Path, content: dict[str, object] | str, age: float) -> None:
        folder.mkdir(parents=True, exist_ok=True)
        if isinstance(content, dict):
            content = json.dumps(content | ({"pid": int(dead.stdout)} if content["pid"] == 0 else {}))
        (folder / "claim").write_text(content)
        os.utime(folder / "claim", (time.time() - age, time.time() - age))

    kinds = list(LEFT.values())
    for number, trunk_id in enumerate(trunks):
        leave(tmp_path / "build" / "trunks" / trunk_id, *kinds[number])
    assert bitlaw(tmp_path, "train").returncode == 0
    for number, run_id in enumerate(runs):
        leave(tmp_path / "build" / "runs" / run_id, *kinds[number % len(kinds)])
    assert bitlaw(tmp_path, "measure").returncode == 0
    assert not list((tmp_path / "build").glob("*/*/claim*"))
    check_whole(tmp_path, expected)


@pytest.mark.parametrize("kind", LEFT)
def test_a_claim_of_any_content_goes_stale(tmp_path: Path, kind: str) -> None:
    content, age = LEFT[kind]
    path = tmp_path / "claim"
    if isinstance(content, dict) and content["pid"] == 0:
        dead = subprocess.run([sys.executable, "-c", "import os; print(os.getpid())"], capture_output=True, text=True)
        content = content | {"pid": int(dead.stdout)}
    text = content if isinstance(content, str) else json.dumps(content)
    path.write_text(text)
    if age:
        assert not claim.is_stale(path)  # its owner may be about to write it
        os.utime(path, (time.time() - age, time.time() - age))
    with claim.claimed(path) as mine:
        assert mine
    assert not path.exists()


def test_a_claim_that_cannot_be_written_is_not_left(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """On a full disk an empty file still fits; it would keep the next worker waiting for minutes."""

    def full(*arguments: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("shared.sweep.claim.json.dump", full)
    with pytest.raises(OSError, match="No space left"), claim.claimed(tmp_path / "claim"):
        pass
    assert not list(tmp_path.iterdir())


# A worker that thinks that every claim is its own.
GREEDY = """
import contextlib, sys
from shared.sweep import worker

@contextlib.contextmanager
def mine(path):
    yield True

worker.claimed = mine
sys.exit(worker.main(sys.argv[1:]))
"""


@pytest.mark.long
@pytest.mark.parametrize("rounds", [1, 3])
def test_two_workers_finish_the_same_runs(
    copied: Callable[[], Path], expected: State, monkeypatch: pytest.MonkeyPatch, rounds: int
) -> None:
    """As after an hour's suspension, when another worker took the claim over and both go on: same files, same rows."""
    for _ in range(rounds):
        root = copied()
        for path in (root / "build" / "runs").rglob("*.*"):
            path.unlink()
        for path in (root / "build" / "trunks").rglob("*.*"):
            path.unlink()
        for path in (root / "reports").iterdir():
            path.unlink()
        for plan in sorted(
            (root / "build" / "plans").iterdir(), key=lambda path: bool(json.loads(path.read_text())["cells"])
        ):
            value = json.loads(plan.read_text()) | {"root": str(root), "build": str(root / "build")}
            plan.write_text(json.dumps(value))
            both = [
                subprocess.Popen(
                    [sys.executable, "-c", GREEDY, str(plan)], cwd=root, env=ENVIRONMENT, text=True,
                    stdout=subprocess.PIPE, stderr=subprocess.PIPE,
                )
                for _ in range(2)
            ]  # fmt: skip
            for process in both:
                out, err = process.communicate(timeout=PATIENCE_SECONDS)
                assert process.returncode == 0, out + err
                assert "Traceback" not in err
        assert len(list((root / "build" / "runs").glob("*/result.json"))) == RUNS
        resume(root, monkeypatch)
        check_whole(root, expected)


def test_a_second_finish_changes_nothing(copied: Callable[[], Path], expected: State) -> None:
    """The same result published twice, its row put in twice: one row."""
    root = copied()
    ledger = Ledger(root / "build")
    from shared.sweep import tables

    for row in expected.runs:
        result = ledger.result(row["run_id"], lambda sentence: None)
        assert result is not None
        losses = {row["run_id"]: ledger.losses(row["run_id"]).numpy()}
        before = (root / "reports" / "runs.csv").read_bytes()
        tables.add_runs(root / "reports", [result, result], losses)
        assert (root / "reports" / "runs.csv").read_bytes() == before
    assert state_of(root) == expected
