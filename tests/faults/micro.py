"""The micro profile as the fault tests run it: commands as a user starts them, or a worker in this process."""

import csv
import hashlib
import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import pytest
import torch

from replications.commands import train
from shared.sweep import tables
from shared.sweep.launch import collect
from shared.sweep.ledger import Ledger
from shared.sweep.worker import Plan, Worker
from shared.train.state import checksum

ROOT = Path(__file__).parent.parent.parent
ENVIRONMENT = os.environ | {"PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"}
RUNS, CELLS = 12, 60
# A machine that other work keeps busy is slow, never broken.
PATIENCE_SECONDS = 600.0


@dataclass(frozen=True)
class State:
    """All that a sweep leaves and that repeats bit for bit."""

    runs: list[dict[str, str]]
    measurements: list[dict[str, str]]
    base_losses: dict[str, str]
    weights: dict[str, str]
    losses: dict[str, str]


def folders(root: Path) -> list[str]:
    return ["--corpus", "sample", "--reports", str(root / "reports"), "--build", str(root / "build")]


def command(root: Path, verb: str, *more: str) -> list[str]:
    return [sys.executable, "-m", "replications.cli", verb, "micro", *folders(root), *more]


def bitlaw(root: Path, verb: str, *more: str, before: Sequence[str] = ()) -> subprocess.CompletedProcess[str]:
    """A command to its end; `before` is what starts it (unshare, setpriv)."""
    return subprocess.run(
        [*before, *command(root, verb, *more)], cwd=root, env=ENVIRONMENT, capture_output=True, text=True,
        timeout=PATIENCE_SECONDS,
    )  # fmt: skip


def started(words: Sequence[str], root: Path) -> subprocess.Popen[str]:
    """A command in a process group of its own, so that a signal reaches its workers too, as a terminal's does."""
    return subprocess.Popen(
        words, cwd=root, env=ENVIRONMENT, start_new_session=True, text=True,
        stdout=subprocess.PIPE, stderr=subprocess.PIPE, preexec_fn=heard,
    )  # fmt: skip


def heard() -> None:
    """What a shell starts in the background is deaf to Ctrl-C, and so would be its children."""
    signal.signal(signal.SIGINT, signal.SIG_DFL)


def unheard() -> None:
    """As a script's background is."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)


# Done before the signal came; stopped by our own words; stopped while Python itself was starting.
CODES = (0, 130, -signal.SIGINT)
STOPPED = "bitlaw: stopped; run the same command to resume"


def interrupt(process: subprocess.Popen[str]) -> tuple[int, str]:
    """Ctrl-C, and what the command said about it."""
    if process.poll() is None:
        os.killpg(process.pid, signal.SIGINT)
    out, err = process.communicate(timeout=PATIENCE_SECONDS)
    if process.returncode == 1 and "Fatal Python error: init_import_site" in err:
        return -signal.SIGINT, err  # Python's own start, before anything of ours is imported
    assert process.returncode in CODES, f"{process.returncode}\n{out}\n{err}"
    if process.returncode == 130:
        assert err.rstrip().endswith(STOPPED), err
        assert "Traceback" not in err
    return process.returncode, err


def commands(root: Path) -> None:
    """Both verbs to their end, as a user starts them."""
    for verb in ("train", "measure"):
        done = bitlaw(root, verb)
        assert done.returncode == 0, done.stdout + done.stderr


def wait_for(what: Callable[[], object], process: subprocess.Popen[str]) -> bool:
    """Whether it came before the process ended."""
    deadline = time.monotonic() + PATIENCE_SECONDS
    while time.monotonic() < deadline:
        if what():
            return True
        if process.poll() is not None:
            return False
        time.sleep(0.005)
    raise AssertionError("nothing came of the command within minutes")


def resume(root: Path, monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """Both verbs to their end in this process, with a worker but no launcher; returns the warnings said.

    Raises what a worker would report. An eighth of the time that the commands take, most of which is importing torch.
    """
    said: list[str] = []

    def start(plan: Plan, reports: Path, *how: object) -> None:
        collect(plan, reports, said.append)
        Worker(plan, lambda: False, torch.device("cpu")).work()
        collect(plan, reports, said.append)

    with monkeypatch.context() as patch:
        patch.chdir(root)
        patch.setattr(train, "start", start)
        patch.setattr(train, "warn", said.append)
        patch.setattr("shared.sweep.worker.say", lambda event: said.append(str(event.get("warning", ""))))
        where = {"corpus": "sample", "reports": root / "reports", "build": root / "build"}
        train.train("micro", **where)  # type: ignore[arg-type]
        train.measure("micro", **where)  # type: ignore[arg-type]
    return [sentence for sentence in said if sentence]


def rows(path: Path) -> list[dict[str, str]]:
    """A table without what cannot repeat (seconds, revision)."""
    if not path.exists():
        return []
    with path.open(newline="") as opened:
        return [{k: v for k, v in row.items() if k not in tables.UNREPEATABLE} for row in csv.DictReader(opened)]


def state_of(root: Path) -> State:
    reports, ledger = root / "reports", Ledger(root / "build")
    runs = rows(reports / "runs.csv")
    ids = [row["run_id"] for row in runs]
    return State(
        runs=runs,
        measurements=rows(reports / "measurements.csv"),
        base_losses={
            name: hashlib.sha256(losses_S.tobytes()).hexdigest()
            for name, losses_S in tables.read_base_losses(reports).items()
        },
        weights={run_id: checksum(ledger.weights(run_id)) for run_id in ids},
        losses={run_id: checksum({"": ledger.losses(run_id)}) for run_id in ids},
    )


def check_part(root: Path, expected: State) -> None:
    """What is in the tables so far is right: nothing but rows of the undisturbed run."""
    known = {row["run_id"]: row for row in expected.runs}
    for row in rows(root / "reports" / "runs.csv"):
        assert row == known[row["run_id"]]
    for row in rows(root / "reports" / "measurements.csv"):
        assert row in expected.measurements


def check_whole(root: Path, expected: State) -> None:
    """Everything is there, bit for bit."""
    assert len(expected.runs) == RUNS
    assert len(expected.measurements) == CELLS
    found = state_of(root)
    assert found.runs == expected.runs
    assert found.measurements == expected.measurements
    assert found == expected


def python(*arguments: str) -> list[str]:
    return [sys.executable, "-m", "replications.cli", *arguments]


def content(folder: Path) -> dict[str, str]:
    """Hashes of what lies in a folder; safetensors writes the keys of its header in any order."""

    def whole(path: Path) -> bytes:
        data = path.read_bytes()
        if path.suffix != ".safetensors":
            return data
        end = 8 + int.from_bytes(data[:8], "little")
        return json.dumps(json.loads(data[8:end]), sort_keys=True).encode() + data[end:]

    return {
        str(path.relative_to(folder)): hashlib.sha256(whole(path)).hexdigest()
        for path in sorted(folder.rglob("*"))
        if path.is_file() and path.name != ".lock"
    }
