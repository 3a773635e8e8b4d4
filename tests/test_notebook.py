"""The notebook runs from its own folder without network, draws, says what the committed numbers say, and is clean."""

import json
import math
import os
import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from shared.files import read_json

ROOT = Path(__file__).resolve().parent.parent
NOTEBOOK = ROOT / "notebooks" / "precision_predictor.ipynb"
STUDIES = ROOT / "reports" / "precision_predictor"

# Runs code cells in one namespace as Jupyter does: a cell that ends with an expression shows it. After the cell that is
# tagged `parameters` come those of the test. Whatever asks the network fails.
RUNNER = """
import ast, contextlib, io, json, socket, sys

def refuse(*args, **kwargs):
    raise AssertionError("the notebook asked the network")

socket.socket.connect = socket.getaddrinfo = refuse
book, parameters, last = json.load(open(sys.argv[1], encoding="utf-8")), sys.argv[2], sys.argv[3]
names, said, shown = {"__name__": "__main__"}, {}, {}
for cell in book["cells"]:
    if cell["cell_type"] != "code":
        continue
    tree = ast.parse("".join(cell["source"]))
    ends = tree.body.pop() if isinstance(tree.body[-1], ast.Expr) else None
    with contextlib.redirect_stdout(io.StringIO()) as printed:
        exec(compile(tree, cell["id"], "exec"), names)
        value = eval(compile(ast.Expression(ends.value), cell["id"], "eval"), names) if ends else None
    said[cell["id"]] = printed.getvalue()
    if value is not None:
        shown[cell["id"]] = value._repr_html_()
    if "parameters" in cell["metadata"].get("tags", []):
        exec(parameters, names)
    if cell["id"] == last:
        break
about = names["text"].about
print(json.dumps({"said": said, "shown": shown, "summary": names["summary"], "text": about}))
"""


def cells(kind: str) -> list[dict[str, Any]]:
    return [cell for cell in read_json(NOTEBOOK)["cells"] if cell["cell_type"] == kind]


def run(parameters: str, last: str = "") -> dict[str, Any]:
    names = {"MPLBACKEND": "Agg", "OMP_NUM_THREADS": "1", "HF_HUB_OFFLINE": "1"}
    done = subprocess.run([sys.executable, "-c", RUNNER, str(NOTEBOOK), parameters, last], cwd=NOTEBOOK.parent,
                          env={**os.environ, **names}, capture_output=True, text=True, timeout=600)  # fmt: skip
    assert done.returncode == 0, done.stderr
    return dict(json.loads(done.stdout.splitlines()[-1]))


@pytest.fixture(scope="module")
def small() -> dict[str, Any]:
    return run("TRAIN_TOKENS, WINDOWS, CONTEXT = 4096, 32, 128")


def test_every_picture_is_drawn(small: dict[str, Any]) -> None:
    shown = small["shown"]
    assert set(shown) == {"penalty", "effective", "forms", "decoding", "allocation"}
    for name in ("penalty", "effective", "decoding", "allocation"):
        assert shown[name].startswith('<img src="data:image/svg+xml,')
        assert len(shown[name]) > 10_000  # the placeholder for a figure without numbers is far smaller
    assert shown["penalty"] != shown["effective"]


def test_the_numbers_are_those_of_a_model_that_loses_by_rounding(small: dict[str, Any]) -> None:
    [model] = small["summary"]["models"]
    penalty = {row["bits"]: row["delta"] for row in model["measured"]}
    assert set(penalty) == {8, 6, 5, 4, 3, 2}
    assert penalty[2] > 3 * penalty[3] > 9 * penalty[4] > 0
    assert abs(penalty[8]) < 0.1 * penalty[4]
    for form in model["forms"].values():
        for constant in form["constants"].values():
            assert math.isfinite(constant["value"])
        assert math.isfinite(form["rms"])
        assert math.isfinite(form["unseen_error"])
    assert model["page"]["status"] == "CONVERGED"
    assert math.isfinite(model["page"]["delta"]["value"])
    share = {row["bits"]: row["share"] for row in model["n_eff"]["sizes"]}
    assert 0 <= share[2] < share[3] < share[4] < 1


def test_the_laws_stand_beside_the_page_s_fit(small: dict[str, Any]) -> None:
    [model] = small["summary"]["models"]
    table = small["shown"]["forms"]
    for name in ("eta (16 - b)^delta", "C_T e^(-b / gamma_post)", "k / b^gamma", "curve_fit"):
        assert name in table
    assert model["choice"]["statement"] in small["said"]["forms"]


def test_the_sentences_are_those_of_the_committed_studies(small: dict[str, Any]) -> None:
    decode = read_json(STUDIES / "decode.json")
    for table, shape in (("relative_gain", ".0%"), ("rouge_gain", ".3f")):
        gain = decode[table]["linear:5:3 against chord"]
        word = "better" if gain["low"] > 0 else "worse" if gain["high"] < 0 else "no clear difference"
        ends = f"[{gain['low']:{shape}}, {gain['high']:{shape}}]"
        assert f"{word}, a gain of {gain['value']:{shape}} {ends}" in small["said"]["decoding"]
    ratios = {
        cell["allocation"]: f"{math.exp(-cell['log_uniform']['value']):.2f} ["
        for cell in read_json(STUDIES / "allocate.json")["cells"]
        if (cell["unit"], cell["method"], cell["budget"]) == ("channel", "rtn", 2.5)
    }
    optimum, linear = small["said"]["allocation"].splitlines()
    assert ratios["fisher"] in optimum
    assert ratios["fisher_linear"] in linear


def test_without_data_the_pages_of_the_repository_are_the_text() -> None:
    hidden = (
        'TRAIN_TOKENS, WINDOWS, CONTEXT, BASE_LAW = 4096, 32, 128, "none"\n'
        "import shared.corpus.load\n"
        "shared.corpus.load.corpus_names = lambda: []"
    )
    found = run(hidden, "measure")
    assert "README.md" in found["text"]
    assert "pages of the repository" in found["said"]["measure"]
    assert "missing" in found["summary"]["models"][0]["n_eff"]


def test_outside_a_clone_it_says_what_to_fill_in(tmp_path: Path) -> None:
    setup = "".join(cells("code")[0]["source"])
    done = subprocess.run([sys.executable, "-c", setup], cwd=tmp_path, capture_output=True, text=True, timeout=60)
    assert done.returncode != 0
    assert "fill in REPOSITORY" in done.stderr.splitlines()[-1]


def test_it_is_stored_without_outputs() -> None:
    book = read_json(NOTEBOOK)
    assert (book["nbformat"], book["nbformat_minor"]) == (4, 5)
    assert all(cell["outputs"] == [] and cell["execution_count"] is None for cell in cells("code"))
    ids = [cell["id"] for cell in book["cells"]]
    assert len(set(ids)) == len(ids) <= 12


def test_it_names_no_host() -> None:
    """Of a package registry or any other: what is installed comes from the clone that the user names."""
    source = NOTEBOOK.read_text(encoding="utf-8")
    assert not re.findall(r"\w+://|\b[\w-]+\.(?:org|com|io|net|dev|co|ai)\b|index-url", source)
    setup = "".join(cells("code")[0]["source"])
    assert '["git", "clone", "--depth", "1", REPOSITORY, "bitlaw"]' in setup
    assert 'REPOSITORY = ""\n' in setup
