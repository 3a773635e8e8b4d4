"""The page, the metrics and the plots: every number from a file, one self-contained page, the same bytes each time."""

import base64
import csv
import hashlib
import itertools
import json
import re
from dataclasses import replace
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import pandas as pd
import pytest
from simulated_results import BITS, LAWS, claim, empty_fit, empty_tables, write_results
from typer.testing import CliRunner

from replications import results
from replications.cli import app
from replications.explorer.explorer import explorer
from shared.errors import BitlawError
from shared.files import read_json, sha256_file, write_json, write_text
from shared.report import page
from shared.report.figures.gallery import Shown
from shared.report.metrics import six_digit_csv
from shared.report.prose import Span, blocks, section, spans
from shared.report.provenance import provenance, seconds_spent
from shared.report.results import Claim, read_claims, read_fit

PAPER = "kumar_precision"
VOID = {"meta", "img", "br", "link", "input", "hr"}


class Page(HTMLParser):
    """Tags, attributes and text of a page; asserts that every tag is closed in its order."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.open: list[str] = []
        self.tags: list[tuple[str, dict[str, str | None]]] = []
        self.words: list[str] = []
        self.feed(text)
        self.close()
        assert not self.open, f"never closed: {self.open}"

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, dict(attrs)))
        if tag not in VOID:
            self.open.append(tag)

    def handle_endtag(self, tag: str) -> None:
        assert self.open, f"</{tag}> closes nothing"
        assert self.open.pop() == tag, f"</{tag}> does not close the tag opened last"

    def handle_data(self, data: str) -> None:
        if not {"style", "script"} & set(self.open):
            self.words.append(data)

    @property
    def text(self) -> str:
        return " ".join(" ".join(self.words).split())

    def all(self, tag: str) -> list[dict[str, str | None]]:
        return [attributes for name, attributes in self.tags if name == tag]


def fake_gallery(folder: Path, *names: str) -> None:
    """Figures that cost nothing to draw."""
    for name in names:
        write_text(folder / f"{name}.svg", "<svg xmlns='http://www.w3.org/2000/svg'/>")
    write_json(folder / "figures.json", [{"name": n, "caption": f"caption {n}", "alt": f"alt {n}"} for n in names])


@pytest.fixture
def reports(tmp_path: Path) -> Path:
    """All that the stages before the report leave."""
    folder = write_results(tmp_path)
    for paper in LAWS:
        fake_gallery(folder / paper, "delta_cooled", "constants")
    rows = results.elasticities.compare(results.fits(folder))
    write_json(folder / "comparison" / "elasticities.json", rows)
    implied: list[dict[str, Any]] = [
        {"paper": "ours", "quantity": "D_crit", "setting": "S in 2 bits", "value": 4e6, "low": 3e6, "unit": "tokens"},
        {"paper": "a", "quantity": "P*", "setting": "theirs", "value": None, "low": None, "unit": "bits"},
    ]
    implied = [{**row, "high": None} for row in implied]
    write_json(folder / "comparison" / "derived.json", implied)
    refit = {"value": 0.3473, "low": 0.319, "high": 0.3732, "scale": "240 runs", "note": "standard error 0.0154"}
    write_json(folder / "published" / "refits.json", {"chinchilla/alpha": refit})
    fake_gallery(folder / "comparison", "elasticities")
    return folder


def read(reports: Path) -> str:
    return results.write_report(reports).read_text(encoding="utf-8")


def test_the_page_is_well_formed_and_stands_alone(reports: Path) -> None:
    text = read(reports)
    found = Page(text)
    assert text.startswith("<!DOCTYPE html>")
    assert [tag.get("type") for tag in found.all("script")] == ["application/json", None, None]
    assert not any("src" in tag for tag in found.all("script"))
    assert not found.all("link")
    assert not any(name.startswith("on") for _, attributes in found.tags for name in attributes)
    for _, attributes in found.tags:
        for name in ("src", "href", "srcset", "action", "style"):
            value = attributes.get(name) or ""
            assert value.startswith(("#", "data:image/svg+xml,")) or not value
    style = text[text.index("<style>") + len("<style>") : text.index("</style>")]
    assert "url(" not in style
    assert "@import" not in style
    # Names of XML's languages and the library's own line; the policy forbids every request anyhow.
    assert set(re.findall(r"https?://([\w.]+)", text)) <= {"www.w3.org", "d3js.org"}
    assert len(text.encode()) < 5_000_000
    policy = found.all("meta")[3]["content"]
    assert policy is not None
    assert policy.startswith("default-src 'none'; script-src 'sha256-")
    for code in [style, *re.findall(r"<script>(.*?)</script>", text, re.DOTALL)]:
        assert f"'sha256-{base64.b64encode(hashlib.sha256(code.encode()).digest()).decode()}'" in policy


def test_a_run_cannot_write_into_the_page(reports: Path) -> None:
    """Text of a table, a claim or a caption stays text."""
    nasty = "</script><script>window.hacked = 1</script><img src=x onerror=alert(1)>"
    for name, column in (("runs", "size"), ("measurements", "method"), ("runs", "weights")):
        table = pd.read_csv(reports / f"{name}.csv")
        table[column] = table[column].astype(object)
        table.loc[0, column] = nasty
        table.to_csv(reports / f"{name}.csv", index=False)
    write_json(reports / PAPER / "claims.json", {"claims": [claim(PAPER, statement=nasty, detail=nasty)]})
    write_json(reports / PAPER / "figures.json", [{"name": "constants", "caption": nasty, "alt": nasty}])
    text = read(reports)
    found = Page(text)
    assert len(found.all("script")) == 3
    assert "<script>window" not in text
    assert "</script><script>window" in found.text  # seen, not run
    assert not any("onerror" in attributes for _, attributes in found.tags)
    data = re.search(r'id="explorer-data">(.*?)</script>', text, re.DOTALL)
    assert data
    assert nasty in json.loads(data[1])["points"]["size"]["levels"]


def test_the_page_reads_on_a_phone_in_the_dark_and_aloud(reports: Path) -> None:
    found = Page(read(reports))
    assert {"name": "viewport", "content": "width=device-width, initial-scale=1"} in found.all("meta")
    assert found.all("html") == [{"lang": "en"}]
    css = (Path(page.__file__).parent / "page.css").read_text(encoding="utf-8")
    assert "prefers-color-scheme: dark" in css
    assert "overflow-x: auto" in css
    ids = [attributes["id"] for _, attributes in found.tags if "id" in attributes]
    assert len(ids) == len(set(ids))
    assert {link["href"] for link in found.all("a")} <= {f"#{name}" for name in ids}
    levels = [int(tag[1]) for tag, _ in found.tags if re.fullmatch(r"h[1-6]", tag)]
    assert levels[0] == 1
    assert levels.count(1) == 1
    assert all(after - before <= 1 for before, after in itertools.pairwise(levels))
    assert all(image.get("alt") for image in found.all("img"))
    assert len(found.all("figcaption")) == len(found.all("img")) == 5
    assert len(found.all("caption")) == len(found.all("table"))
    # A table may be wider than the screen; the page may not.
    scrolling = [attributes for _, attributes in found.tags if "scroll" in str(attributes.get("class")).split()]
    assert len(scrolling) == len(found.all("table")) + len(found.all("img")) + len(found.all("pre"))


def test_two_builds_are_equal(reports: Path) -> None:
    written = ["index.html", "metrics.json", "plots/delta.csv", "plots/local_elasticities.csv"]
    results.write_report(reports)
    first = [(reports / name).read_bytes() for name in written]
    for name in written:
        (reports / name).unlink()
    results.write_report(reports)
    assert [(reports / name).read_bytes() for name in written] == first


def test_numbers_of_the_page_are_those_of_the_files(reports: Path) -> None:
    fit = read_json(reports / PAPER / "fit.json")
    fit["parts"][0]["parameters"]["gamma_D"]["value"] = 0.4242
    fit["parts"][0]["heldout"]["median_abs_log_error"] = 0.7373
    fit["parts"][0]["status"] = "WEAKLY_IDENTIFIED"
    write_json(reports / PAPER / "fit.json", fit)
    text = Page(read(reports)).text
    assert "0.424 [0.405, 0.495]" in text
    assert "left out: [0.36, 0.517]" in text
    assert "0.737" in text
    assert "size: 0.14 in 12 cells" in text
    assert "WEAKLY_IDENTIFIED" in text
    assert "0.507" in text  # published gamma_D
    assert "cooled, group 16: column 'N' has one value only" in text
    assert "Of 420 measurements read, 210 were fitted" in text


def test_the_comparison_states_its_points_and_what_follows(reports: Path) -> None:
    text = Page(read(reports)).text
    assert "N = 0.26M, D = 8.4M, bits = 4" in text  # where our slopes are stated
    assert "S in 2 bits" in text
    assert "3.00e+06 to no bound" in text
    assert "0.3478 [0.317, 0.373] Besiroglu et al. 2024, scale fit (R)" in text
    assert "0.3473 [0.319, 0.373] standard error 0.0154" in text
    assert "needs the refits on published runs" in text  # the other constants


def test_the_page_names_its_sources(reports: Path) -> None:
    text = Page(read(reports)).text
    for name in ("runs.csv", "measurements.csv"):
        assert f"sha256 {sha256_file(reports / name)}" in text
    assert "corpus python" in text
    assert "ab" * 32 in text
    assert "about 150M training tokens, of which the longest run saw 32M" in text
    assert "2.13.0" in text
    assert "a processor" in text
    runs = pd.read_csv(reports / "runs.csv")
    assert f"The runs: {len(runs)} checkpoints of {runs['trunk_id'].nunique()} decoder-only transformers" in text
    assert "106,496" in text


def test_what_a_file_says_is_never_markup(reports: Path) -> None:
    attack = "<script>alert('1')</script>\"><img src=x onerror=alert(1)>"
    hostile = claim(PAPER, statement=attack, detail=attack, verdict=attack, id=attack, region=attack)
    write_json(reports / PAPER / "claims.json", {"paper": PAPER, "claims": [hostile]})
    fit = read_json(reports / PAPER / "fit.json")
    fit["law"] = fit["parts"][0]["status"] = attack
    write_json(reports / PAPER / "fit.json", fit)
    captions = [{"name": "constants", "caption": attack, "alt": attack}]
    write_json(reports / PAPER / "figures.json", captions)
    plain = Page(read(reports))
    assert len(plain.all("script")) == 3
    assert not [image for image in plain.all("img") if "onerror" in image]
    assert plain.text.count("<script>alert('1')</script>") >= 7


def verdicts(*kinds: tuple[str, str]) -> list[Claim]:
    return [
        Claim(**claim(PAPER, id=f"K{n}", verdict=verdict, evidence=evidence))
        for n, (verdict, evidence) in enumerate(kinds)
    ]


def test_false_verdicts_are_expected_among_the_tested_only() -> None:
    found = page.ledger(
        verdicts(
            ("holds", "measured"), ("fails", "refitted"), ("inconclusive", "measured"), ("holds", "recomputed"),
            ("needs runs", "measured"), ("out of reach", "measured"),
        )
    )  # fmt: skip
    assert found.tested == 3
    assert found.false_verdicts == pytest.approx(0.15)
    assert dict(found.counts) == {"holds": 2, "fails": 1, "inconclusive": 1, "needs runs": 1, "out of reach": 1}


def test_every_claim_stands_in_the_table_of_verdicts(reports: Path) -> None:
    text = Page(read(reports)).text
    assert "K1a holds delta grows with D at every N" in text
    assert "Region d ln delta / d ln D > 0" in text
    assert "Evidence measured" in text
    assert "0.45 [0.4, 0.5] visible from 0.05" in text
    assert "Found 12 of 12 sizes and bits" in text
    assert "2 of 2 claims were tested on runs (of all: 2 holds)" in text
    assert "2 × 0.05 = 0.1 false verdicts" in text


@pytest.mark.parametrize("tables", ["absent", "headers only"])
def test_an_empty_pool_still_gives_a_page_that_says_what_is_missing(tmp_path: Path, tables: str) -> None:
    if tables == "headers only":
        empty_tables(tmp_path)
    bare = Page(read(tmp_path)).text
    assert "No run is in the tables yet" in bare
    assert "Needs runs: reports/kumar_precision/fit.json is not there" in bare
    assert "Needs runs: no claim was judged yet" in bare
    assert "Needs runs: no elasticities were compared yet" in bare
    for paper in LAWS:
        write_json(tmp_path / paper / "fit.json", empty_fit(paper))
    text = Page(read(tmp_path)).text
    assert "Needs runs: no fit of cooled checkpoints yet." in text
    assert "0.507" in text  # what is published is known without runs
    assert read_json(tmp_path / "metrics.json")["pool"] == {"diverged": 0, "hours": 0, "measurements": 0, "runs": 0}
    assert (tmp_path / "plots" / "delta.csv").read_text(encoding="utf-8").startswith("phase,bits,N,D,")


def test_another_corpus_stands_beside_the_pools(reports: Path) -> None:
    assert "reports/english has no tables yet" in Page(read(reports)).text
    both = {"corpus": "both", "of": "INT3", "tokens": [4194304.0, 8388608.0], "seeds": (3, 2)}
    rows = [
        {"quantity": "ratio", "value": 1.25, "low": 1.125, "high": 1.5, **both},
        {"quantity": "slope", "value": 0.5, "low": 0.25, "high": 0.75, **both, "corpus": "english"},
    ]
    write_json(reports / "comparison" / "corpora.json", rows)
    text = Page(read(reports)).text
    assert "delta on English over that on Python, rounded both INT3 4M, 8M 3, 2 1.25 [1.12, 1.5]" in text
    assert "d ln delta / d ln D, rounded english INT3" in text


def test_a_figure_that_is_listed_but_gone_is_named(reports: Path) -> None:
    (reports / PAPER / "constants.svg").unlink()
    with pytest.raises(BitlawError, match=r"constants\.svg: cannot be read"):
        results.write_report(reports)


@pytest.mark.parametrize(
    ("name", "content", "sentence"),
    [
        ("fit.json", "{", r"fit\.json: is not valid JSON"),
        ("fit.json", "[]", r"fit\.json: is no paper's fit \(the file"),
        ("fit.json", '{"paper": "x"}', r"fit\.json: is no paper's fit \(law: field required\)"),
        ("claims.json", '{"claims": [{"id": "K1"}]}', r"claims\.json: is no file of claims \(claims\[0\]\.statement"),
    ],
)
def test_a_broken_result_is_named_and_the_old_page_stays(reports: Path, name: str, content: str, sentence: str) -> None:
    before = read(reports)
    write_text(reports / PAPER / name, content)
    with pytest.raises(BitlawError, match=sentence):
        results.write_report(reports)
    assert (reports / "index.html").read_text(encoding="utf-8") == before


def test_a_damaged_table_is_named(reports: Path) -> None:
    text = (reports / "runs.csv").read_text(encoding="utf-8")
    write_text(reports / "runs.csv", text.replace("trunk_id", "trunkid", 1))
    with pytest.raises(BitlawError, match=r"runs\.csv: column 'trunk_id' is missing, did you mean 'trunkid'"):
        results.write_report(reports)


def test_the_trunk_that_checkpoints_share_counts_once() -> None:
    cooled = ["True", "False", "True", "False", "True"]
    runs = pd.DataFrame({"trunk_id": list("aaaab"), "cooled": cooled, "seconds": [100, 120, 200, 240, 50]})
    runs["cooldown"], runs["decay"] = "0.2", "sqrt"
    # Branches: 20 + 40 + 10. Trunks: a to its last checkpoint, 240; b until its branch, 40.
    assert seconds_spent(runs) == pytest.approx(70 + 240 + 40)


def test_hours_and_counts_come_from_the_runs(reports: Path) -> None:
    runs = pd.read_csv(reports / "runs.csv")
    found = provenance(reports)
    assert found.hours_alone == pytest.approx(runs["seconds"].sum() / 3600)
    assert 0 < found.hours < found.hours_alone
    assert (found.runs, found.diverged) == (len(runs), 0)
    assert [size["size"] for size in found.sizes] == ["S", "M"]
    assert found.sizes[0]["seeds"] == 3


def test_metrics_are_flat_numbers(reports: Path) -> None:
    results.write_report(reports)
    metrics = read_json(reports / "metrics.json")
    mine = metrics[PAPER]
    assert mine["cooled"]["gamma_D"] == LAWS[PAPER][2]["gamma_D"]
    assert mine["trunk"]["heldout_median_abs_log_error"] == 0.11
    assert mine["cooled"]["chi2_per_dof"] == 1.4
    assert mine["claims"] == {"holds": 1, "fails": 0, "inconclusive": 0, "needs runs": 0, "out of reach": 0}
    for group in metrics.values():
        for value in group.values():
            numbers = value.values() if isinstance(value, dict) else [value]
            assert all(isinstance(number, int | float) for number in numbers)


def test_plots_are_long_tables(reports: Path) -> None:
    results.write_report(reports)
    with (reports / "plots" / "delta.csv").open(newline="", encoding="utf-8") as opened:
        rows = list(csv.DictReader(opened))
    assert len(rows) == 2 * 2 * 6 * len(BITS)  # phases, sizes, horizons, bits
    assert {row["phase"] for row in rows} == {"cooled", "trunk"}
    assert "1048576" in {row["D"] for row in rows}  # counts stay exact
    slopes = pd.read_csv(reports / "plots" / "local_elasticities.csv")
    assert set(slopes["paper"]) == set(LAWS)


def test_csv_cells_have_six_digits() -> None:
    table = pd.DataFrame({"a": [1 / 3, 1048576.0, float("nan")], "b": ["x", "y", "z"], "c": [1, 2, 3]})
    assert six_digit_csv(table) == "a,b,c\n0.333333,x,1\n1048576,y,2\n,z,3\n"


@pytest.mark.parametrize(
    ("value", "text"),
    [(None, "–"), (0.12345, "0.123"), (3.0, "3"), (1234.5, "1.23e+03"), (-0.5, "-0.5"), (7, "7"), (2e9, "2.00e+09")],
)
def test_numbers_have_three_digits(value: Any, text: str) -> None:
    assert page.number(value) == text


README = """# A paper

Words before.

## Deviations

First `code` and **strong <b>** words
that go on. A [link](http://example.org).

- one
  goes on
- two

## Next

- not this
"""


def test_deviations_are_a_section_of_the_readme() -> None:
    found = blocks(section(README, "deviations"))
    assert [block.kind for block in found] == ["paragraph", "list"]
    assert found[0].items[0][:4] == (
        Span("text", "First "), Span("code", "code"), Span("text", " and "), Span("strong", "strong <b>"),
    )  # fmt: skip
    assert found[1].items == ((Span("text", "one goes on"),), (Span("text", "two"),))
    assert section(README, "absent") == ""
    assert spans("[text](url) `") == (Span("text", "text"), Span("text", " `"))


def test_deviations_reach_the_page_and_their_absence_is_said(reports: Path, tmp_path: Path) -> None:
    fit = read_fit(reports / PAPER / "fit.json")
    paper = page.Paper(
        id=PAPER,
        title="A paper",
        constants=[("gamma_D", "gamma_D")],
        readme="replications/a/README.md",
        fit=fit,
        claims=read_claims(reports / PAPER / "claims.json"),
        figures=[Shown("delta", "a caption", "an alternative", "data:image/svg+xml,")],
        deviations=blocks(section(README, "Deviations")),
        words="",
    )
    source = provenance(reports)
    order = {"statement": "two < three", "size": "S", "tokens": 4194304.0, "seeds": 3, "worse": 0.3, "better": 0.1}
    gamma = {"value": 0.5, "low": 0.4, "high": 0.6, "loo_low": None, "loo_high": None, "published": None}
    view = {"paper": "a paper", "view": "W4A4", "status": "CONVERGED", "reasons": [], "rows": 9, "compressed": 4}
    view |= {"rms": 0.05}
    view |= {"parameters": {"gamma_D": gamma}, "heldout": {"rows": 2, "median_abs_error": 0.01}}
    order |= {"value": 0.2, "low": 0.1, "high": 0.3, "verdict": "holds"}
    waiting = {"paper": "a paper", "view": "W3A3", "status": "needs runs", "reasons": ["no run yet"], "parameters": {}}
    rtn = gamma | {"bits_per_weight": 3.5, "calibration": "none", "competes": True}
    lnq = rtn | {"value": 0.25, "bits_per_weight": 4.5, "competes": False}
    row = {"size": "S", "phase": "cooled", "D": 1048576, "bits": 3.0, "group_size": "channel"}
    row |= {"methods": {"gptq": rtn, "lnq": lnq}, "winner": "gptq", "real": True}
    nothing = explorer(tmp_path)
    text = page.render([paper], source, [], [order], [view, waiting], [], nothing, methods=[row, row | {"bits": 8.0}])
    assert text.count("gptq, real") == 1  # of the two rows only the one with few bits is shown
    assert "[0.25; 4.5 bits]" in text
    assert "two &lt; three" in text
    assert "a paper, W4A4: 9 runs, 4 of them compressed; CONVERGED; rms 5 % of the loss; held out, 2 runs" in text
    assert "Needs runs: no pair" not in text
    assert "a paper, W3A3: needs runs, no run yet." in text
    assert "<code>code</code>" in text
    assert "<strong>strong &lt;b&gt;</strong>" in text
    assert "<li>one goes on</li>" in text
    bare = Page(page.render([replace(paper, deviations=[])], source, [], [], [], [], nothing))
    assert "replications/a/README.md has no section “Deviations”" in bare.text
    # A person's words stand while they agree with the verdicts.
    listed = f"({paper.claims[0].id})."
    for words, told in (
        (f"- **Replicated**: it <grows> {listed}", True),
        (f"- **Undecided**: it grows {listed}", False),
    ):
        html = page.render([replace(paper, words=words)], source, [], [], [], [], nothing)
        assert (f"<li><strong>{words[4:].partition('*')[0]}</strong>: it &lt;grows&gt; {listed}</li>" in html) == told
        assert ('class="conclusion"' in html) != told


@pytest.mark.parametrize("paper", list(LAWS))
def test_each_paper_states_its_deviations(paper: str) -> None:
    readme = results.find(paper).file("README.md").read_text(encoding="utf-8")
    assert blocks(section(readme, "Deviations"))


def test_the_command_prints_fitted_against_published(reports: Path) -> None:
    done = CliRunner().invoke(app, ["report", "--reports", str(reports)])
    assert done.exit_code == 0
    assert re.search(r"gamma_D\s+0\.5068\s+0\.45 \[0\.41, 0\.49\]\s+0\.45 \[0\.41, 0\.49\]", done.output)
    assert f"report: {reports / 'index.html'}" in done.output.replace("\n", "")


def test_show_writes_nothing(reports: Path) -> None:
    shown = CliRunner().invoke(app, ["report", "--show", "--reports", str(reports)])
    assert isinstance(shown.exception, BitlawError)
    assert not (reports / "index.html").exists()
    results.write_report(reports)
    (reports / "metrics.json").unlink()
    shown = CliRunner().invoke(app, ["report", "--show", "--reports", str(reports)])
    assert shown.exit_code == 0
    assert "gamma_post" in shown.output
    assert not (reports / "metrics.json").exists()
