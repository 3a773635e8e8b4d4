"""`bitlaw` on broken files and odd words: it ends well, or with exit code 1 or 2 and without a traceback."""

import json
import subprocess
import sys
from collections.abc import Callable
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

import pytest
from fuzzing import NASTY, bytes_like, fuzz, seldom, trees_like
from hypothesis import given
from hypothesis import strategies as st
from ptq_models import folder, text
from test_fuzz_files import good
from test_fuzz_tables import CELLS, OWN, RUNS, mutated, text_of

from replications.cli import main
from shared.errors import LONGEST

ROOT = Path(__file__).parent.parent


def ends(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], *words: object) -> int:
    """The exit code; what is said on standard error by a BitlawError is one line."""
    monkeypatch.setattr(sys, "argv", ["bitlaw", *map(str, words)])
    monkeypatch.chdir(ROOT)
    try:
        main()
        code = 0
    except SystemExit as error:
        code = int(error.code or 0)
    said = capsys.readouterr().err
    assert code in (0, 1, 2)
    assert "Traceback" not in said
    if code == 2 and not said.startswith("Usage"):
        last = said.rstrip("\n").splitlines()[-1]
        assert last.startswith("bitlaw: ")
        assert len(last) < LONGEST + 50
    return code


@dataclass(frozen=True)
class Case:
    """`words` for a command that reads a file of this name, of which `broken` makes bad ones."""

    file: str
    broken: Callable[[], st.SearchStrategy[bytes]]
    words: Callable[[Path], list[object]]
    beside: Callable[[Path], None] = lambda path: None


def broken_json(name: str) -> Callable[[], st.SearchStrategy[bytes]]:
    def made() -> st.SearchStrategy[bytes]:
        valid, tree = good(name)
        return bytes_like(valid) | trees_like(tree).map(lambda value: json.dumps(value).encode())

    return made


def runs_beside(path: Path) -> None:
    (path.parent / "runs.csv").write_bytes(text_of(RUNS))


FIT = ("chinchilla", "--resamples", 20, "--starts", 2)
CASES = {
    "fit": Case("mine.csv", lambda: mutated(OWN), lambda path: ["fit", path, "--law", *FIT]),
    "predict": Case("fit.json", broken_json("fit"), lambda path: ["predict", path, "--N", "1e8", "--D", "1e10"]),
    "claims": Case(
        "kumar_precision/claims.json",
        broken_json("claims"),
        lambda path: ["claims", "kumar_precision", "--reports", path.parent.parent],
    ),
    "check": Case("goldens.json", broken_json("goldens"), lambda path: ["check", "--reports", path.parent]),
    "status": Case("runs.csv", lambda: mutated(RUNS), lambda path: ["status", "micro", "--reports", path.parent]),
    "measurements": Case(
        "measurements.csv",
        lambda: mutated(CELLS),
        lambda path: ["status", "micro", "--reports", path.parent],
        runs_beside,
    ),
}


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("name", CASES)
@seldom
@given(data=st.data())
def test_commands(
    name: str,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    data: st.DataObject,
) -> None:
    case = CASES[name]
    path = tmp_path / case.file
    path.parent.mkdir(parents=True, exist_ok=True)
    case.beside(path)
    path.write_bytes(data.draw(case.broken()))
    ends(monkeypatch, capsys, *case.words(path))


def test_what_is_good_ends_well(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """So that the cases above break files, not words."""
    for file, content in (("mine.csv", text_of(OWN)), ("fit.json", good("fit")[0])):
        (tmp_path / file).write_bytes(content)
    for name in ("fit", "predict"):
        assert ends(monkeypatch, capsys, *CASES[name].words(tmp_path / CASES[name].file)) == 0


WORDS = st.lists(
    st.sampled_from(
        ("INT4", "INT4@", "INT4@channel", "int4", "E4M3FN", "INT99", "MXFP4:sr", "INT4@32:mse:bf16", "--json", "--help",
         "", "-", "--", "@")
    )
    | st.text(max_size=6)
    | st.sampled_from([str(value)[:50] for value in NASTY]),
    max_size=3,
)  # fmt: skip


@fuzz
@given(words=WORDS, verb=st.sampled_from(("formats", "laws", "predict", "status", "train", "data", "nothing", "fit")))
def test_words(
    words: list[str], verb: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    if "\0" not in "".join(words):  # no program can be given it
        ends(monkeypatch, capsys, verb, *words, *(["--dry-run"] if verb == "train" else []))


@cache
def small_model(parent: Path) -> Path:
    text(parent / "words.txt")
    return folder(parent, "gpt2", layers=1)


@pytest.mark.filterwarnings("ignore")
@seldom
@given(data=st.data())
def test_ptq(
    tmp_path_factory: pytest.TempPathFactory,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    data: st.DataObject,
) -> None:
    parent = tmp_path_factory.getbasetemp()
    path = small_model(parent) / "config.json"
    valid = json.loads(path.read_bytes())
    tree: Any = trees_like(valid).map(lambda value: json.dumps(value).encode())
    try:
        path.write_bytes(data.draw(tree | bytes_like(json.dumps(valid).encode())))
        ends(monkeypatch, capsys, "ptq", path.parent, "--text", parent / "words.txt", "--dry-run", "--context", 16)
    finally:
        path.write_text(json.dumps(valid))


def test_as_a_program(tmp_path: Path) -> None:
    """Once for real: exit code 2, one line, nothing else."""
    path = tmp_path / "fit.json"
    path.write_bytes(good("fit")[0].replace(b'"theta"', b'"theta\\u001b[2J"'))
    done = subprocess.run(
        [sys.executable, "-m", "replications.cli", "predict", str(path), "--N", "1e8", "--D", "1e10"],
        capture_output=True,
        text=True,
    )
    assert done.returncode == 2
    assert done.stdout == ""
    assert done.stderr.startswith(f"bitlaw: {path}: these values are not a saved fit (theta: ")
    assert done.stderr.count("\n") == 1
