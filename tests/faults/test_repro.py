"""`dvc repro` twice at once, plain or of one stage, and killed: one of two refuses or waits, the results are right."""

import hashlib
import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Sequence
from pathlib import Path

import pytest
import yaml

from faults.micro import ENVIRONMENT, PATIENCE_SECONDS, ROOT

SKIPPED = (
    ".git",
    ".venv",
    "build",
    "data",
    "tmp",
    "__pycache__",
    "*.egg-info",
    ".*_cache",
    ".hypothesis",
    ".benchmarks",
)
# A stage of three commands that take seconds each.
STAGE = "claims_published"
PAPERS = ("compression_laws", "qat_scaling", "capybara_fp", "precision_predictor", "comparison")
OUTS = [f"reports/{paper}/claims.json" for paper in PAPERS]
REPRO = [sys.executable, "-m", "dvc", "repro"]
FORCED = [*REPRO, "--force", "--single-item", STAGE]
# Stages of seconds, five commands: what a plain `dvc repro` goes through where the others are left out.
CHEAP = (STAGE, "claims_page", "claims_guide")
REFUSAL = ("is busy", "Unable to acquire lock", "being blocked by", "Failed to acquire")


def dvc(root: Path, words: Sequence[str] = FORCED) -> subprocess.Popen[str]:
    # The stages call `bitlaw`, which is beside this Python; the tree's own packages come first.
    path = f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"
    return subprocess.Popen(
        words, cwd=root, env=ENVIRONMENT | {"PATH": path, "PYTHONPATH": str(root)}, start_new_session=True, text=True,
        stdout=subprocess.PIPE, stderr=subprocess.STDOUT,
    )  # fmt: skip


def said(process: subprocess.Popen[str]) -> str:
    return process.communicate(timeout=PATIENCE_SECONDS)[0]


def results(root: Path) -> dict[str, str]:
    return {name: hashlib.sha256((root / name).read_bytes()).hexdigest() for name in (*OUTS, "dvc.lock")}


@pytest.fixture(scope="module")
def tree(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A copy of this checkout outside git, with one stage made undisturbed."""
    root = Path(
        shutil.copytree(ROOT, tmp_path_factory.mktemp("tree") / "root", ignore=shutil.ignore_patterns(*SKIPPED))
    )
    (root / ".dvc" / "config.local").write_text("[core]\n    no_scm = true\n")
    done = dvc(root)
    out = said(done)
    assert done.returncode == 0, out
    return root


@pytest.fixture(scope="module")
def whole_tree(tree: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Of the stages the cheap ones, and nothing that says they were ever run; and what they make, undisturbed."""
    root = Path(shutil.copytree(tree, tmp_path_factory.mktemp("whole") / "root"))
    stages = yaml.safe_load((root / "dvc.yaml").read_text())["stages"]
    (root / "dvc.yaml").write_text(yaml.safe_dump({"stages": {name: stages[name] for name in CHEAP}}))
    (root / "dvc.lock").unlink()
    made = Path(shutil.copytree(root, root.with_name("made")))
    done = dvc(made, REPRO)
    out = said(done)
    assert done.returncode == 0, out
    return root


@pytest.mark.long
@pytest.mark.parametrize("whole", [False, True])
def test_two_repros_at_once(whole: bool, request: pytest.FixtureRequest, tmp_path: Path) -> None:
    """One stage forced, or all that is to do by a plain `dvc repro`."""
    source = request.getfixturevalue("whole_tree" if whole else "tree")
    words = REPRO if whole else FORCED
    expected = results(source.with_name("made") if whole else source)
    root = Path(shutil.copytree(source, tmp_path / "root"))
    both = []
    for _ in range(2):
        both.append(dvc(root, words))
        time.sleep(0.5)
    outs = [said(process) for process in both]
    assert any(process.returncode == 0 for process in both), outs
    for process, out in zip(both, outs, strict=True):
        assert "Traceback" not in out
        if process.returncode:
            assert any(words in out for words in REFUSAL), out
    assert results(root) == expected
    after = dvc(root, words)
    out = said(after)
    assert after.returncode == 0, out
    assert results(root) == expected
    assert not whole or "didn't change, skipping" in out


@pytest.mark.long
@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGKILL])
def test_a_repro_that_is_stopped_goes_on(tree: Path, tmp_path: Path, number: signal.Signals) -> None:
    """`persist` keeps the committed results when their stage does not come to its end."""
    expected = results(tree)
    root = Path(shutil.copytree(tree, tmp_path / "root"))
    for seconds in (2.0, 6.0, 10.0):
        process = dvc(root)
        time.sleep(seconds)
        if process.poll() is None:
            os.killpg(process.pid, number)
        said(process)
        assert {name: results(root)[name] for name in OUTS} == {name: expected[name] for name in OUTS}
    after = dvc(root)
    out = said(after)
    assert after.returncode == 0, out
    assert results(root) == expected
