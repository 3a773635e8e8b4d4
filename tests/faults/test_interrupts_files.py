"""Ctrl-C in the commands that write files once: each file is then as before, or as the finished command has it."""

import random
import shutil
import subprocess
import time
from collections.abc import Callable
from pathlib import Path

import pandas as pd
import pytest
import typer
from ptq_models import CONTEXT, text
from ptq_models import folder as folder_of_a_model
from sample_corpus import make_corpus
from test_corpus import make_packages, pin
from typer.testing import CliRunner

from faults.micro import ENVIRONMENT, PATIENCE_SECONDS, STOPPED, command, content, interrupt, python, started, wait_for
from replications import cli
from replications.commands import ptq
from shared.corpus import build
from shared.corpus.load import load_corpus
from shared.errors import BitlawError

IsPart = Callable[[str, bytes, bytes], bool]


def disturb(
    words: list[str], folder: Path, root: Path, seed: int, times: int,
    whole: Callable[[], None] = lambda: None, is_part: IsPart = lambda name, there, after: False,
) -> None:  # fmt: skip
    """Interrupt a command at random moments; each file of `folder` is then as before or as the finished command has it.

    `folder` holds an earlier result; the command's own is found by running it undisturbed on a copy, which also says
    how long it takes. `whole` looks at the folder after each interruption; `is_part` may allow a file that grows.
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
    bytes_after = {name: (folder / name).read_bytes() for name in after}
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
            if sha256 not in (before.get(name), after.get(name)):
                there = (folder / name).read_bytes()
                assert is_part(name, there, bytes_after[name]), f"{name} is neither the old nor the new one"
        assert before.keys() <= content(folder).keys()
        whole()
    assert stopped
    done = subprocess.run(words, cwd=root, env=ENVIRONMENT, capture_output=True, text=True, timeout=PATIENCE_SECONDS)
    assert done.returncode == 0, done.stdout + done.stderr
    assert content(folder) == after


def test_ctrl_c_is_said(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    """Wherever it comes; the tests below may also hit Python's own start, which says nothing of ours."""
    app = typer.Typer()

    @app.command()
    def stopped() -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(cli, "app", app)
    monkeypatch.setattr("sys.argv", ["bitlaw"])
    with pytest.raises(SystemExit) as end:
        cli.main()
    assert end.value.code == 130
    assert capsys.readouterr().err == f"{STOPPED}\n"


@pytest.mark.long
@pytest.mark.parametrize("times", [2, 8])
def test_ctrl_c_while_fitting(analysed: Path, times: int) -> None:
    words = python("replicate", "fit", "undertrained_qid", "--reports", "reports")
    disturb(words, analysed / "reports", analysed, seed=times, times=times)


@pytest.mark.parametrize("times", [2, pytest.param(8, marks=pytest.mark.long)])
def test_ctrl_c_while_reporting(analysed: Path, times: int) -> None:
    (analysed / "reports" / "index.html").write_text("an older page\n")
    disturb(python("report", "--reports", "reports"), analysed / "reports", analysed, seed=times, times=times)


@pytest.mark.parametrize("times", [3, pytest.param(8, marks=pytest.mark.long)])
def test_ctrl_c_while_building_data_from_text(tmp_path: Path, times: int) -> None:
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

    words = python("data", "build", "--text", "mine.txt", "--name", "mine")
    disturb(words, root / "build" / "corpora", root, seed=times, times=times, whole=whole)


@pytest.mark.parametrize("times", [2, pytest.param(8, marks=pytest.mark.long)])
def test_ctrl_c_while_building_data_from_wheels(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, times: int) -> None:
    """data/ is there as a whole or not at all."""
    root = tmp_path / "root"
    root.mkdir()
    with monkeypatch.context() as there:
        there.chdir(root)
        make_packages(600)
        build.build_data()
        pin()
        files = content(build.DATA)
        shutil.rmtree(build.DATA)
    assert len(files) == 7

    def whole() -> None:
        assert content(root / "data") in ({}, files)

    disturb(python("data", "build"), root / "data", root, seed=times, times=times, whole=whole)


@pytest.mark.parametrize("times", [2, pytest.param(6, marks=pytest.mark.long)])
def test_ctrl_c_while_keeping_checkpoints(copied: Callable[[], Path], times: int) -> None:
    root = copied()
    disturb(command(root, "keep"), root / "reports", root, seed=times, times=times)


@pytest.mark.long
@pytest.mark.parametrize("verb", ["claims", "figures"])
def test_ctrl_c_while_judging_and_drawing(analysed: Path, verb: str) -> None:
    paper = "undertrained_qid"
    fit = python("replicate", "fit", paper, "--reports", "reports")
    subprocess.run(fit, cwd=analysed, env=ENVIRONMENT, check=True, capture_output=True, timeout=PATIENCE_SECONDS)
    words = python("replicate", verb, paper, "--reports", "reports")
    disturb(words, analysed / "reports", analysed, seed=4, times=4)


@pytest.mark.long
@pytest.mark.parametrize("words", [("tournament",), ("replicate", "compare")])
def test_ctrl_c_while_setting_laws_side_by_side(analysed: Path, words: tuple[str, ...]) -> None:
    disturb(python(*words, "--reports", "reports"), analysed / "reports", analysed, seed=5, times=4)


# --- commands that measure models -------------------------------------------------------------------------------

SMALL = ("--context", "20", "--windows", "4")
DECODE = ("decode", "llama", "--text", "words.txt", *SMALL, "--prefix", "8", "--prompts", "3", "--labelled", "20")
ALLOCATE = ("allocate", "--checkpoints", "llama", "--dataset", "sample", *SMALL, "--calibration", "2", "--units")
STUDIES = {
    "decode": (*DECODE, "--group", "16", "--out", "out"),
    "allocate": (*ALLOCATE, "channel", "--methods", "rtn", "--budgets", "3", "--no-surrogates", "--out", "out"),
}


@pytest.mark.long
@pytest.mark.parametrize("study", STUDIES)
def test_ctrl_c_while_studying_a_model(tmp_path: Path, study: str) -> None:
    root = tmp_path / "root"
    make_corpus(root)
    folder_of_a_model(root, "llama")
    text(root / "words.txt")

    def is_part(name: str, there: bytes, after: bytes) -> bool:
        """Tables and settings grow by whole parts: by each checkpoint, and each unit, method and budget."""
        return name.endswith((".csv", ".json")) and set(there.splitlines()) <= set(after.splitlines())

    disturb(python(*STUDIES[study]), root / "out", root, seed=3, times=3, is_part=is_part)


METHODS = ("--methods", "rtn", "gptq", "--formats", "INT8,INT7,INT6,INT5,INT4,INT3,INT2")
PTQ = (
    "ptq",
    "gpt2",
    "--text",
    "words.txt",
    *METHODS,
    "--context",
    str(CONTEXT),
    "--calibration",
    "8",
    "--windows",
    "8",
)


def quantized(root: Path, out: str) -> pd.DataFrame:
    """The whole command in this process; its table without what cannot repeat."""
    app = typer.Typer()
    app.command(cls=ptq.Lists)(ptq.ptq)
    done = CliRunner().invoke(app, [*PTQ[1:], "--out", out])
    assert done.exception is None, done.output
    return pd.read_csv(root / out / "table.csv").drop(columns="seconds")


@pytest.mark.long
def test_ctrl_c_while_quantizing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """At the base losses and among the cells: what was measured stays as it is, and the table comes out the same."""
    monkeypatch.chdir(tmp_path)
    folder_of_a_model(tmp_path, "gpt2")
    text(tmp_path / "words.txt")
    expected = quantized(tmp_path, "undisturbed")
    out = tmp_path / "out"

    def cells() -> dict[str, int]:
        return {path.name: path.stat().st_mtime_ns for path in (out / "cells").glob("*.json")}

    def has(cell_count: int) -> Callable[[], bool]:
        return lambda: (out / "base_losses.safetensors").exists() and len(cells()) >= cell_count

    kept: dict[str, int] = {}
    codes = []
    for more in (0, 2):
        process = started(python(*PTQ, "--out", "out"), tmp_path)
        assert wait_for(has(len(kept) + more), process)
        codes.append(interrupt(process)[0])
        now = cells()
        assert now == now | kept, "a cell that was measured is not measured again"
        assert not (out / "table.csv").exists() or codes[-1] == 0
        kept = now
    assert 130 in codes
    assert quantized(tmp_path, "out").equals(expected)
    now = cells()
    assert now == now | kept
