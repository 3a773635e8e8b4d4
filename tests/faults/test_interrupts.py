"""Ctrl-C at every phase of a sweep: training a trunk, its cooldown, measuring.

The signal goes to the whole process group, as a terminal sends it. Nothing is lost, and the same command goes on.
"""

import random
import time
from collections.abc import Callable
from itertools import count
from pathlib import Path

import pytest
import torch
from sample_corpus import make_corpus

from faults.micro import (
    RUNS,
    State,
    bitlaw,
    check_part,
    check_whole,
    command,
    interrupt,
    resume,
    started,
    wait_for,
)
from replications.pool import expand
from shared.corpus.load import load_corpus
from shared.sweep.launch import collect
from shared.sweep.worker import Plan, Worker
from shared.train.trunk import StoppedError


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
        codes.append(interrupt(process)[0])
        check_part(tmp_path, expected)
        assert not list((tmp_path / "build").rglob(".*.json.*")), "half-written files are not left"
    assert 130 in codes
    resume(tmp_path, monkeypatch)
    check_whole(tmp_path, expected)
