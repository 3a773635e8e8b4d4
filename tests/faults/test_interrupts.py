"""Ctrl-C at every phase: building data, training a trunk, its cooldown, measuring, fitting, reporting.

The signal goes to the whole process group, as a terminal sends it. Nothing is lost, and the same command goes on.
"""

import hashlib
import os
import random
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from itertools import count
from pathlib import Path

import pytest
import torch
import yaml
from sample_corpus import make_corpus
from simulated_results import write_results

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
    wait_for,
)
from replications.pool import expand
from shared.corpus.load import load_corpus
from shared.errors import BitlawError
from shared.sweep.launch import collect
from shared.sweep.worker import Plan, Worker
from shared.train.trunk import StoppedError

# Done before the signal came; stopped by our own words; stopped while Python itself was starting.
CODES = (0, 130, -signal.SIGINT)


def interrupt(process: subprocess.Popen[str]) -> tuple[int, str]:
    """Ctrl-C, and what the command said about it."""
    if process.poll() is None:
        os.killpg(process.pid, signal.SIGINT)
    out, err = process.communicate(timeout=PATIENCE_SECONDS)
    assert process.returncode in CODES, f"{process.returncode}\n{out}\n{err}"
    return process.returncode, err


def plan_of(root: Path, cells: bool) -> Plan:
    want = expand("micro", load_corpus("sample", root).sha256, corpus="sample")
    return Plan(root, root / "build", want.runs, want.cells if cells else {}, "cpu", 1.0, {})


@pytest.mark.parametrize("every", [23, *(pytest.param(n, marks=pytest.mark.long) for n in (7, 11))])
def test_a_stop_after_every_few_steps(
    golden: Path, expected: State, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, every: int
) -> None:
    """In this process, so that each phase is surely hit: trunk, cooldown, measuring."""
    make_corpus(tmp_path)
    monkeypatch.setattr("shared.sweep.worker.say", lambda event: None)
    stops = {"trunk": 0, "cooldown": 0, "measuring": 0}

    def until_done(plan: Plan) -> None:
        """Each attempt is stopped at the n-th time it asks (twice a step, once a cell), and the next goes on."""
        while True:
            asked = count()
            try:
                Worker(plan, lambda asked=asked: next(asked) >= every, torch.device("cpu")).work()  # type: ignore[misc]
            except StoppedError:
                branches = list((tmp_path / "build" / "trunks").glob("*/branch.safetensors"))
                stops["measuring" if plan.cells else "cooldown" if branches else "trunk"] += 1
                collect(plan, tmp_path / "reports", lambda sentence: None)
                check_part(tmp_path, expected)
                assert not list((tmp_path / "build").glob("*/*/claim*"))
                continue
            return

    until_done(plan_of(tmp_path, cells=False))
    until_done(plan_of(tmp_path, cells=True))
    assert stops["trunk"]
    assert stops["cooldown"]
    assert stops["measuring"]
    resume(tmp_path, monkeypatch)
    check_whole(tmp_path, expected)


def moment(name: str, root: Path) -> Callable[[], object]:
    """What shows that a phase has begun."""
    trunks, runs = root / "build" / "trunks", root / "build" / "runs"
    return {
        "start": lambda: (root / "build" / "plans").exists(),
        "trunk": lambda: list(trunks.glob("*/claim")),
        "cooldown": lambda: list(trunks.glob("*/trunk.safetensors")),
        "a result": lambda: list(runs.glob("*/result.json")),
        "later": lambda: len(list(runs.glob("*/result.json"))) > RUNS // 2,
        "measuring": lambda: list(runs.glob("*/claim")),
        "a cell": lambda: list(runs.glob("*/cells/*.json")),
    }[name]


PHASES = [("train", "trunk"), ("train", "cooldown"), ("train", "later"), ("measure", "measuring")]
MORE = [("train", "start"), ("train", "a result"), ("measure", "start"), ("measure", "a cell")]


@pytest.mark.parametrize(
    ("seed", "phases"),
    [(0, PHASES), *(pytest.param(seed, PHASES[:3] + MORE, marks=pytest.mark.long) for seed in (1, 2))],
)
def test_ctrl_c_while_training_and_measuring(
    expected: State, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, seed: int, phases: list[tuple[str, str]]
) -> None:
    make_corpus(tmp_path)
    chance = random.Random(seed)
    codes = []
    for verb, phase in sorted(phases, key=lambda pair: pair[0], reverse=True):
        if verb == "measure" and not (tmp_path / "trained").exists():
            assert bitlaw(tmp_path, "train").returncode == 0
            (tmp_path / "trained").touch()
        process = started(command(tmp_path, verb), tmp_path)
        if wait_for(moment(phase, tmp_path), process):
            time.sleep(chance.uniform(0, 0.3))
        code, err = interrupt(process)
        codes.append(code)
        if code == 130:
            assert "Traceback" not in err
        check_part(tmp_path, expected)
        assert not list((tmp_path / "build").rglob(".*.json.*")), "half-written files are not left"
    assert 130 in codes
    resume(tmp_path, monkeypatch)
    check_whole(tmp_path, expected)


# --- commands that write files once -----------------------------------------------------------------------------


def python(root: Path, *arguments: str) -> list[str]:
    return [sys.executable, "-m", "replications.cli", *arguments]


def content(folder: Path) -> dict[str, str]:
    """Hashes of what lies in a folder."""
    return {
        str(path.relative_to(folder)): hashlib.sha256(path.read_bytes()).hexdigest()
        for path in sorted(folder.rglob("*"))
        if path.is_file() and path.name != ".lock"
    }


def disturb(
    words: list[str], folder: Path, root: Path, seed: int, times: int, whole: Callable[[], None] = lambda: None
) -> None:
    """Interrupt a command at random moments; each file of `folder` is then as before or as the finished command has it.

    `folder` holds an earlier result; the command's own is found by running it undisturbed on a copy, which also says
    how long it takes. `whole` looks at the folder after each interruption.
    """
    before = content(folder)
    spare = root.parent / "before"
    shutil.copytree(root, spare)
    begun = time.monotonic()
    done = subprocess.run(words, cwd=root, env=ENVIRONMENT, capture_output=True, text=True, timeout=PATIENCE_SECONDS)
    seconds = time.monotonic() - begun
    assert done.returncode == 0, done.stdout + done.stderr
    after = content(folder)
    assert after != before
    shutil.rmtree(root)
    shutil.copytree(spare, root)
    chance = random.Random(seed)
    stopped = 0
    for number in range(times):
        process = started(words, root)
        # Each part of the command's time gets its turn; the last third is where files are written.
        time.sleep(seconds * chance.uniform(number / times, (number + 1) / times))
        code, _ = interrupt(process)
        stopped += code != 0
        for name, sha256 in content(folder).items():
            assert sha256 in (before.get(name), after.get(name)), f"{name} is neither the old nor the new one"
        assert before.keys() <= content(folder).keys()
        whole()
    assert stopped
    done = subprocess.run(words, cwd=root, env=ENVIRONMENT, capture_output=True, text=True, timeout=PATIENCE_SECONDS)
    assert done.returncode == 0, done.stdout + done.stderr
    assert content(folder) == after


@pytest.fixture
def analysed(tmp_path: Path) -> Path:
    """Tables and results of a simulated pool, and settings that take seconds."""
    root = tmp_path / "root"
    write_results(root)
    settings = {"n_starts": 4, "n_boot": 20, "seed": 1, "condition_limit": 1e8, "signal_to_noise": 4}
    (root / "params.yaml").write_text(yaml.safe_dump({"fit": settings}))
    return root


@pytest.mark.parametrize("times", [3, pytest.param(8, marks=pytest.mark.long)])
def test_ctrl_c_while_fitting(analysed: Path, times: int) -> None:
    words = python(analysed, "replicate", "fit", "undertrained_qid", "--reports", "reports")
    disturb(words, analysed / "reports", analysed, seed=times, times=times)


@pytest.mark.parametrize("times", [3, pytest.param(8, marks=pytest.mark.long)])
def test_ctrl_c_while_reporting(analysed: Path, times: int) -> None:
    (analysed / "reports" / "index.html").write_text("an older page\n")
    disturb(python(analysed, "report", "--reports", "reports"), analysed / "reports", analysed, seed=times, times=times)


@pytest.mark.parametrize("times", [3, pytest.param(8, marks=pytest.mark.long)])
def test_ctrl_c_while_building_data(tmp_path: Path, times: int) -> None:
    root = tmp_path / "root"
    (root / "build" / "corpora").mkdir(parents=True)
    words = random.Random(0).choices(["scaling", "laws", "of", "language", "models\n"], k=60_000)
    (root / "mine.txt").write_text(" ".join(words))

    def whole() -> None:
        """Absent or whole, and nothing beside it."""
        left = [path.name for path in (root / "build" / "corpora").iterdir()]
        assert left in ([], ["mine"])
        if left:
            load_corpus("mine", root)
        else:
            with pytest.raises(BitlawError, match="there is no corpus"):
                load_corpus("mine", root)

    words = python(root, "data", "build", "--text", "mine.txt", "--name", "mine")
    disturb(words, root / "build" / "corpora", root, seed=times, times=times, whole=whole)
