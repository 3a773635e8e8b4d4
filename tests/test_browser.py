"""The report in a real Chromium, from disk and without a network: no error, no request, no overlap, and the numbers of
`bitlaw predict`."""

import json
import os
import shlex
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import pandas as pd
import pytest
from simulated_results import LAWS, write_results
from typer.testing import CliRunner

from replications import results
from replications.cli import app
from shared.files import write_json
from shared.laws.fit import fit
from shared.laws.law import Law

if TYPE_CHECKING:
    from playwright.sync_api import Browser, Page

CHROMIUM = os.environ.get("BITLAW_CHROMIUM") or shutil.which("chromium") or shutil.which("chromium-browser")
# As root there is no sandbox to be had; the rest keeps the browser from calling its makers.
FLAGS = [
    "--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run", "--disable-background-networking",
    "--disable-component-update", "--disable-sync",
]  # fmt: skip
WIDTHS = (1280, 390)
PAPER = "kumar_precision"
MINUTE = 60_000  # milliseconds: a busy machine is slow, not broken

pytestmark = pytest.mark.skipif(
    CHROMIUM is None, reason="no Chromium: install Debian's chromium or set BITLAW_CHROMIUM"
)


@pytest.fixture(scope="module")
def built(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The page of a simulated pool, with fits of few draws as the stages write them."""
    reports = write_results(tmp_path_factory.mktemp("page"))
    rows = pd.read_csv(reports / "measurements.csv")
    rows = rows.rename(columns={"n_blocks": "N", "tokens": "D"})
    cells = rows[rows["cooled"] & (rows["group_size"] == "channel") & (rows["delta"] > 0)]
    for paper, (law, _, _) in LAWS.items():
        write_json(reports / paper / "fits.json", {"fits": {"cooled/channel": fitted(law, cells)}})
    return results.write_report(reports)


def fitted(law: Law, cells: pd.DataFrame) -> dict[str, Any]:
    return fit(law, cells, n_starts=4, n_boot=20, seed=3).kept()


@pytest.fixture(scope="module")
def browser() -> Iterator["Browser"]:
    playwright = pytest.importorskip("playwright.sync_api", reason="playwright is not installed (the extra dev)")
    with playwright.sync_playwright() as running:
        opened = running.chromium.launch(executable_path=CHROMIUM, args=FLAGS, timeout=2 * MINUTE)
        yield opened
        opened.close()


@pytest.fixture
def opened(browser: "Browser", built: Path) -> Iterator["Page"]:
    yield from visit(browser, built, 1280)


def visit(browser: "Browser", path: Path, width: int, scheme: Any = "light") -> Iterator["Page"]:
    """The page, whose console must stay silent and whose requests must be for itself alone."""
    context = browser.new_context(viewport={"width": width, "height": 900}, offline=True, color_scheme=scheme)
    context.set_default_timeout(2 * MINUTE)
    page = context.new_page()
    said: list[str] = []
    asked: list[str] = []
    page.on("console", lambda message: said.append(message.text))
    page.on("pageerror", lambda error: said.append(str(error)))
    page.on("request", lambda request: None if request.url.startswith("data:") else asked.append(request.url))
    page.goto(path.as_uri())
    page.wait_for_selector("#chart .line", state="attached")
    yield page
    context.close()
    assert said == []
    assert asked == [path.as_uri()]


def reading(page: "Page", law: str, what: str) -> list[float]:
    """[value, low, high] of the readings' row of a law; those that it has."""
    text = page.locator(f"#r-{law} td[data-what={what}]").inner_text()
    return [float(word) for word in text.replace("[", " ").replace("]", " ").replace(",", " ").split()]


def set_slider(page: "Page", name: str, value: float) -> None:
    """As a hand would: the native control takes the value and tells the page."""
    page.locator(f"#s-{name}").evaluate(
        "(slider, value) => { slider.value = value; slider.dispatchEvent(new Event('input', {bubbles: true})); }", value
    )


def predicted(reports: Path, paper: str, words: list[str]) -> list[float]:
    fits = reports / paper / "fits.json"
    command = ["predict", str(fits), "--part", "cooled/channel", *words, "--json"]
    done = CliRunner().invoke(app, command)
    assert done.exit_code == 0, done.output
    found = json.loads(done.output)
    return [found["value"], found["low"], found["high"]]


def test_sliders_read_what_predict_says(opened: "Page", built: Path) -> None:
    reports = built.parent
    before = opened.locator("#readout").inner_text()
    for settings in ({"N": 5.4, "D": 6.5, "bits": 3}, {"N": 5.9, "D": 8.2, "bits": 5, "G": 5}):
        for name, value in settings.items():
            set_slider(opened, name, value)
        for paper, law in ((PAPER, "kumar-eq2-eq-2"), ("undertrained_qid", "ouyang-joint-eq-8")):
            lines = str(opened.locator("#commands").text_content()).splitlines()
            words = next(line for line in lines if f"/{paper}/" in line).split("' ", 1)[1].split()
            stated = dict(zip(words[::2], map(float, words[1::2]), strict=True))  # the inputs, as the page says them
            assert stated["--bits"] == settings["bits"]
            assert stated["--N"] == pytest.approx(10 ** settings["N"], rel=5e-3)
            assert stated["--D"] == pytest.approx(10 ** settings["D"], rel=5e-3)
            expected = predicted(reports, paper, words)
            assert reading(opened, f"ours-{law}-cooled-channel", "delta") == pytest.approx(expected, rel=1e-3)
    opened.wait_for_function("(text) => document.getElementById('readout').textContent !== text", arg=before)


def test_floating_point_has_sliders_of_its_own(opened: "Page") -> None:
    from replications.capybara_fp.law import LAW as SUN
    from replications.papers import find

    law = "published-capybara-eq-1-trained-in-floating-point"
    opened.evaluate(f"document.getElementById('law-{law}').click()")
    assert opened.locator("#s-E").is_disabled()
    assert "needs a floating-point format" in opened.locator(f"#r-{law}").inner_text()
    opened.select_option("#number-kind", "float")
    constants = {name: one.value for name, one in find("capybara_fp").published().law.items()}
    for E, M, G in ((4, 3, 7), (2, 1, 5)):
        for name, value in {"N": 9.0, "D": 10.5, "E": E, "M": M, "G": G}.items():
            set_slider(opened, name, value)
        assert opened.locator("#o-bits").inner_text() == f"{E + M + 1} (E{E}M{M})"
        D = float(f"{10**10.5:.3g}")
        at = {"N": 1e9, "D": D, "E": E, "M": M, "B": 2.0**G}
        columns = {name: np.array([float(value)]) for name, value in at.items()}
        loss = float(SUN.predict(SUN.internal(constants), columns)[0])
        assert reading(opened, law, "loss") == pytest.approx([loss], rel=1e-3)
        clean = float(SUN.predict(SUN.internal(constants), {**columns, "B": np.ones(1)})[0])
        assert reading(opened, law, "delta") == pytest.approx([loss - clean], rel=2e-3)


def test_keys_move_sliders_and_walk_through_points(opened: "Page") -> None:
    for name in ("N", "D", "bits", "G"):
        slider = opened.locator(f"#s-{name}")
        before = opened.locator(f"#o-{name}").inner_text()
        slider.focus()
        opened.keyboard.press("ArrowRight")
        after = opened.locator(f"#o-{name}").inner_text()
        assert after != before
        assert slider.get_attribute("aria-valuetext") == after
        label = opened.locator(f"label[for=s-{name}]")
        assert label.count() == 1
    opened.evaluate("document.getElementById('near').click()")
    opened.locator("#chart").focus()
    assert opened.evaluate("getComputedStyle(document.activeElement).outlineStyle") != "none"
    opened.keyboard.press("ArrowRight")
    first = opened.locator("#pointed").inner_text()
    assert "size " in first
    assert opened.locator("#take").is_enabled()
    opened.keyboard.press("Enter")
    assert opened.locator("#o-N").inner_text() in first


def test_points_are_filtered_and_told_as_a_table(opened: "Page") -> None:
    opened.evaluate("document.getElementById('near').click()")
    many = opened.locator("#chart .dots path").count()
    opened.select_option("#f-phase", "trunk")
    few = opened.locator("#chart .dots path").count()
    assert 0 < few < many
    opened.evaluate("document.getElementById('tables').open = true")
    opened.wait_for_selector("#points-body tr")
    assert opened.locator("#points-body tr").count() == min(few, 200)
    assert set(opened.locator("#points-body td:nth-child(4)").all_inner_texts()) == {"trunk"}
    assert opened.locator("#curve-body tr").count() == 9
    for x in ("N", "bits", "G"):
        opened.select_option("#x", x)
        assert opened.locator("#chart .line").count() == opened.locator("#laws input:checked").count()
    opened.select_option("#y", "loss")
    assert "loss" in str(opened.locator("#chart").get_attribute("aria-label"))


def test_a_claim_opens_its_evidence_and_the_table_filters(opened: "Page") -> None:
    rows = opened.locator("#claims tbody tr")
    assert rows.count() == len(LAWS)
    details = rows.first.locator("details")
    assert not details.locator("dl").is_visible()
    details.locator("summary").focus()
    opened.keyboard.press("Enter")
    assert details.locator("dl").is_visible()
    opened.select_option("#claim-paper", PAPER)
    assert opened.locator("#claims tbody tr:visible").count() == 1
    assert opened.locator("#claim-count").inner_text() == f"1 of {len(LAWS)} claims shown"
    opened.locator(f"button[data-show={PAPER}]").click()
    assert opened.evaluate("document.activeElement.id") == "s-N"
    shown = opened.locator("#laws input:checked").evaluate_all("(boxes) => boxes.map((box) => box.value)")
    assert shown
    assert all("kumar" in law for law in shown)


# Boxes of what is read or touched: none may cover another, stick out of the page, or be cut without a way to scroll.
OVERLAPS = """() => {
  const shown = (e) => e.checkVisibility({visibilityProperty: true});  // what a closed <details> holds is not
  const told = (e) => e.outerHTML.slice(0, 90);
  const met = (p, q) => Math.min(p.right, q.right) - Math.max(p.left, q.left) > 1
    && Math.min(p.bottom, q.bottom) - Math.max(p.top, q.top) > 1;
  const names = 'h1,h2,h3,button,select,input,output,label,summary,p,li,legend,#chart,figure,figcaption,.scroll,dt,dd';
  const found = [];
  // What lies in a scrolling box may reach beyond it, and is compared with its fellows there.
  const all = [...document.querySelectorAll(names)].filter(shown).map((e) => ({
    e, at: e.getBoundingClientRect(), home: e.parentElement.closest('.scroll'),
    // A float stands beside the lines that flow around it, inside their block.
    floats: getComputedStyle(e).float !== 'none',
  })).sort((a, b) => a.at.top - b.at.top);
  all.forEach((a, i) => {
    if (!a.home && (a.at.right > innerWidth + 1 || a.at.left < -1)) found.push(['outside', told(a.e)]);
    for (let k = i + 1; k < all.length && all[k].at.top < a.at.bottom; k++) {
      const b = all[k];
      if (a.home !== b.home || a.floats || b.floats || a.e.contains(b.e) || b.e.contains(a.e)) continue;
      if (met(a.at, b.at)) found.push([told(a.e), told(b.e)]);
    }
  });
  const words = [...document.querySelectorAll('#chart text')].filter((t) => t.textContent);
  words.forEach((a, i) => words.slice(i + 1).forEach((b) => {
    if (met(a.getBoundingClientRect(), b.getBoundingClientRect())) found.push(['chart', a.textContent, b.textContent]);
  }));
  return found.slice(0, 10);
}"""


@pytest.mark.parametrize("width", WIDTHS)
@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_nothing_overlaps(browser: "Browser", built: Path, width: int, scheme: Any) -> None:
    for page in visit(browser, built, width, scheme):
        page.evaluate("document.querySelectorAll('details').forEach((fold) => { fold.open = true; })")
        page.wait_for_selector("#points-body tr")
        assert page.evaluate("document.documentElement.scrollWidth") <= width
        assert page.evaluate(OVERLAPS) == []
        picture = page.screenshot()
        assert picture[:8] == b"\x89PNG\r\n\x1a\n"
        paper = page.evaluate("getComputedStyle(document.body).backgroundColor")
        assert (sum(map(int, paper[4:-1].split(","))) < 200) == (scheme == "dark")
        # The button goes against the system's scheme, and stays.
        page.locator("#theme").click()
        if scheme == "light":
            page.locator("#theme").click()
        turned = page.evaluate("getComputedStyle(document.body).backgroundColor")
        assert turned != paper


@pytest.mark.parametrize("width", WIDTHS)
def test_the_chart_stays_legible_at_the_ends_of_the_sliders(browser: "Browser", built: Path, width: int) -> None:
    ends = ({"N": 4, "D": 5, "bits": 1, "G": 0}, {"N": 12, "D": 14, "bits": 16, "G": 13}, {"N": 4, "D": 14, "bits": 16})
    for page in visit(browser, built, width):
        page.evaluate("document.querySelectorAll('#laws input').forEach((box, k) => { box.checked = k < 12; })")
        for settings in ends:
            for name, value in settings.items():
                set_slider(page, name, value)
            for x in ("D", "N", "bits", "G"):
                page.select_option("#x", x)
                for y in ("delta", "loss"):
                    page.select_option("#y", y)
                    for _ in ("logarithmic", "linear"):
                        page.evaluate("document.getElementById('log').click()")
                        assert page.evaluate(OVERLAPS) == [], (settings, x, y)


def test_a_sign_alone_is_no_format(opened: "Page") -> None:
    opened.select_option("#number-kind", "float")
    set_slider(opened, "M", 0)
    assert opened.locator("#o-bits").inner_text() == "3 (E2M0)"
    set_slider(opened, "E", 0)
    assert opened.locator("#o-bits").inner_text() == "2 (E0M1)"
    assert opened.locator("#s-M").input_value() == "1"
    set_slider(opened, "E", 1)
    set_slider(opened, "M", 0)
    assert opened.locator("#o-bits").inner_text() == "2 (E1M0)"


def test_the_points_are_those_of_the_drawn_fits(opened: "Page") -> None:
    shown = {
        name: opened.locator(f"#f-{name}").input_value() for name in ("kind", "method", "phase", "group", "papers")
    }
    assert shown == {
        "kind": "rounded after training", "method": "rtn", "phase": "cooled", "group": "channel", "papers": "",
    }  # fmt: skip
    rows = opened.locator("#claims tbody tr")
    rows.first.locator("summary").click()
    rows.first.locator("button[data-show]").click()
    assert opened.locator("#f-papers").input_value() == rows.first.get_attribute("data-paper")


@pytest.fixture
def committed(monkeypatch: pytest.MonkeyPatch) -> Path:
    """The page in git; its commands name files from the folder above reports/."""
    found = Path(os.environ.get("BITLAW_PAGE") or Path(__file__).parent.parent / "reports" / "index.html")
    assert 'id="explorer-data"' in found.read_text(encoding="utf-8"), "it is older than the explorer: `dvc repro`"
    monkeypatch.chdir(found.parent.parent)
    return found


def test_the_committed_page_opens(browser: "Browser", committed: Path) -> None:
    assert committed.stat().st_size < 5_000_000
    for width in WIDTHS:
        for page in visit(browser, committed, width):
            page.evaluate("document.querySelectorAll('details').forEach((fold) => { fold.open = true; })")
            page.wait_for_selector("#points-body tr")
            assert page.evaluate("document.documentElement.scrollWidth") <= width
            assert page.evaluate(OVERLAPS) == []
            assert reading(page, "published-kumar_eq2-eq-2-rounded-after-training", "delta")


def test_every_fit_of_the_committed_page_reads_as_predict_does(browser: "Browser", committed: Path) -> None:
    for page in visit(browser, committed, 1280):
        page.evaluate("document.querySelectorAll('#laws input').forEach((box) => { box.checked = true; })")
        checked = 0
        for settings in ({"N": 5.3, "D": 6.9, "bits": 3, "G": 5}, {"N": 7.1, "D": 9.0, "bits": 4, "G": 7}):
            for name, value in settings.items():
                set_slider(page, name, value)
            for line in str(page.locator("#commands").text_content()).splitlines():
                done = CliRunner().invoke(app, [*shlex.split(line)[1:], "--json"])
                assert done.exit_code == 0, (line, done.output)
                expected = json.loads(done.output)
                law = page.evaluate(
                    """(line) => DATA.curves.find((curve) => commandOf(curve, settings()) === line).id""", line
                )
                found = reading(page, law, expected["target"])
                ends = [expected[name] for name in ("value", "low", "high")]
                assert found == pytest.approx(ends, rel=1e-3, abs=1e-12), line
                checked += 1
        assert checked
