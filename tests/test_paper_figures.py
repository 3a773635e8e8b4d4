"""Figures for a paper: every source, as SVG or PDF, the same bytes each time."""

import re
import subprocess
import sys
from pathlib import Path

import pytest
from matplotlib.figure import Figure
from typer.testing import CliRunner

from replications import paper_figures
from replications.cli import app
from replications.papers import PAPERS
from shared.errors import BitlawError
from shared.report.figures import style
from shared.report.figures.gallery import Drawing, slim


def simple(_: Path) -> list[Drawing]:
    figure = Figure(figsize=(2, 1.5), layout="constrained")
    figure.subplots().plot([1, 2, 3], [0.001, 0.002, 0.004])
    return [Drawing("curve", "a caption", "an alternative", figure)]


def test_every_paper_with_figures_is_a_source() -> None:
    drawn = {name for name, paper in PAPERS.items() if paper.file("figures.py").exists()}
    assert drawn | {"precision_predictor", "comparison", "unified"} == set(paper_figures.SOURCES)


@pytest.mark.parametrize("form", ["svg", "pdf"])
def test_figures_are_written_whole_and_the_same_twice(
    tmp_path: Path, form: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(paper_figures, "SOURCES", {"a": simple})
    words = ["report", "--reports", str(tmp_path), "--format", form, "--figures"]
    for name in ("one", "two"):
        done = CliRunner().invoke(app, [*words, str(tmp_path / name)])
        assert done.exit_code == 0, done.output
    first, second = ((tmp_path / name / "a" / f"curve.{form}").read_bytes() for name in ("one", "two"))
    assert first == second
    assert first.startswith(b"<?xml" if form == "svg" else b"%PDF-1.4")
    assert not re.search(rb"CreationDate|<dc:date>|Matplotlib v", first)
    if form == "pdf":
        assert b"/TrueType" in first or b"/Type0" in first  # letters stay letters
        assert first.rstrip().endswith(b"%%EOF")


def test_a_pdf_does_not_depend_on_the_seed_of_hashes(tmp_path: Path) -> None:
    code = (
        "import sys; from pathlib import Path; from matplotlib.figure import Figure\n"
        "from shared.report.figures import style\n"
        "figure = Figure(figsize=(2, 1)); figure.text(.2, .5, 'letters and 0.5')\n"
        "with style.theme(): style.save_vector(figure, Path(sys.argv[1]), 'x', 'pdf')"
    )
    for seed in ("1", "2"):
        environment = {"PYTHONHASHSEED": seed, "PATH": "/usr/bin:/bin", "MPLCONFIGDIR": str(tmp_path / "mpl")}
        root = Path(style.__file__).parents[3]
        subprocess.run([sys.executable, "-c", code, str(tmp_path / seed)], check=True, env=environment, cwd=root)
    assert (tmp_path / "1" / "x.pdf").read_bytes() == (tmp_path / "2" / "x.pdf").read_bytes()


def test_wrong_requests_get_one_sentence(tmp_path: Path) -> None:
    for words, sentence in (
        (["--figures", str(tmp_path), "--format", "pfd"], "no format of figures, did you mean 'pdf'"),
        (["--format", "pdf"], "name their folder with --figures"),
    ):
        done = CliRunner().invoke(app, ["report", "--reports", str(tmp_path), *words])
        assert isinstance(done.exception, BitlawError)
        assert sentence in str(done.exception)


def test_nothing_to_draw_is_said(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(paper_figures, "SOURCES", {"a": lambda reports: []})
    with pytest.raises(BitlawError, match="holds no result that has a figure"):
        paper_figures.write_figures(tmp_path, tmp_path / "out", "svg")


def test_a_slim_picture_keeps_its_words() -> None:
    svg = '<svg><!-- made --><path d="M 1.23456 2.5"/><text x="3.98765" transform="scale(0.0156)">0.0012</text></svg>'
    assert slim(svg) == '<svg><path d="M 1.23 2.5"/><text x="3.98" transform="scale(0.0156)">0.0012</text></svg>'


def test_a_slim_picture_keeps_what_it_refers_to() -> None:
    svg = (
        '<svg><style type="text/css">*{a: b}</style><g id="g1"><path id="mark" style="fill: red"/></g>'
        '<clipPath id="p9"/><use xlink:href="#mark" clip-path="url(#p9)" style="fill: red" transform="rotate(-0 1 2)"/>'
        '<text style="fill: blue">id="g1"</text></svg>'
    )
    assert slim(svg) == (
        '<svg><style type="text/css">*{a: b}.c0{fill: red}</style><g><path id="n0" class="c0"/></g>'
        '<clipPath id="n1"/><use xlink:href="#n0" clip-path="url(#n1)" class="c0"/>'
        '<text style="fill: blue">id="g1"</text></svg>'
    )
    classed = '<svg><style>*{a: b}</style><g class="x" style="fill: red"/><g style="fill: red"/></svg>'
    assert slim(classed) == classed
