"""Every YAML and JSON reader on broken files: what is read is sound, and what is not is refused in one sentence."""

import json
from collections.abc import Callable
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
import yaml
from fuzzing import all_finite, bytes_like, fuzz, outcome, trees_like, yaml_like
from hypothesis import given
from hypothesis import strategies as st
from jinja2 import Environment

from replications import pool, results
from replications.commands.decode import read_held
from replications.laws import saved
from replications.papers import kept_fits
from replications.planning import fitted
from replications.planning.published import Grids
from replications.precedence import Precedence
from replications.precision_predictor.engineer import decide, read_latencies
from replications.published.sources import sources
from replications.unified import results as unified
from shared.corpus.load import load_corpus, pinned_sha256, read_info
from shared.corpus.lock import read_lock, write_lock
from shared.corpus.write import corpus_sha256
from shared.errors import BitlawError
from shared.files import read_json, write_json
from shared.laws.chinchilla import LAW
from shared.laws.fit import Fit, fit, predicted
from shared.laws.settings import HeldOut, Params, Published, Selection, read_settings
from shared.ptq.cells import Cell as PtqCell
from shared.ptq.cells import Results
from shared.report import goldens, metrics, page
from shared.report.compared import KINDS, read_rows
from shared.report.evidence import read_seen
from shared.report.explorer.data import Explorer
from shared.report.figures.gallery import read_gallery
from shared.report.provenance import Provenance
from shared.report.refits import read_refits
from shared.report.results import read_claims, read_fit
from shared.sweep.claim import is_stale
from shared.sweep.kept import kept
from shared.sweep.ledger import Ledger, sealed
from shared.sweep.spec import Run, RunSpec
from shared.yaml_file import read_yaml

HERE = Path(pool.HERE)
REPORTS = HERE.parent / "reports"


@dataclass(frozen=True)
class Reader:
    """`read` gives plain values of what it read (in which no number may be NaN), from a file of this name whose
    content is at first `valid`."""

    file: str
    valid: Callable[[], bytes]
    read: Callable[[Path], Any]


def settings_of(model: Any, section: str | None = None) -> Callable[[Path], Any]:
    return lambda path: read_settings(path, model, section).model_dump()


def expanded(path: Path) -> Any:
    """All runs and cells; ids are made on the way."""
    found = pool.read_pool(path)
    for profile in found.profiles:
        want = pool.expand(profile, "0" * 64, pool=found)
        assert len({run.spec.run_id for run in want.runs}) == len(want.runs)
    return found.model_dump()


def small_pool() -> bytes:
    """One size, and the profile micro with a compressed run."""
    whole = yaml.safe_load((HERE / "pool.yaml").read_text())
    micro = whole["profiles"]["micro"]
    micro["runs"]["low"] = [{"sizes": ["X"], "tokens": ["8k"], "seeds": [1], "compression": [{"weights": "INT4@8"}]}]
    whole = {"sizes": {"X": whole["sizes"]["X"]}, "profiles": {"micro": micro}}
    return yaml.safe_dump(whole, sort_keys=False).encode()


def small_lock() -> bytes:
    whole = yaml.safe_load((HERE.parent / "corpus.lock").read_text())
    return yaml.safe_dump({"packages": whole["packages"][:2]}, sort_keys=False).encode()


def locked(path: Path) -> Any:
    """Round trip: what was read and written again is read as the same."""
    packages = read_lock(path)
    write_lock(packages, again := path.with_suffix(".again"))
    assert read_lock(again) == packages
    return [package.__dict__ for package in packages]


def a_source() -> bytes:
    whole = yaml.safe_load((HERE / "published/sources.yaml").read_text())
    return yaml.safe_dump(dict(list(whole.items())[:1]), sort_keys=False).encode()


def some_numbers() -> bytes:
    whole = yaml.safe_load((HERE / "kumar_precision/published.yaml").read_text())
    return yaml.safe_dump({**whole, "numbers": dict(list(whole["numbers"].items())[:3])}, sort_keys=False).encode()


YAML = {
    "params": Reader("params.yaml", (HERE.parent / "params.yaml").read_bytes, settings_of(Params)),
    "experiment": Reader(
        "experiment.yaml", (HERE / "kumar_precision/experiment.yaml").read_bytes, settings_of(Selection, "fit")
    ),
    "needs": Reader(
        "experiment.yaml",
        (HERE / "qat_scaling/experiment.yaml").read_bytes,
        lambda path: pool.read_needs(path).model_dump(),
    ),
    "heldout": Reader("heldout.yaml", (HERE / "comparison/heldout.yaml").read_bytes, settings_of(HeldOut)),
    "published": Reader("published.yaml", some_numbers, settings_of(Published)),
    "tolerances": Reader("tolerances.yaml", (HERE / "tolerances.yaml").read_bytes, settings_of(goldens.Tolerances)),
    "sources": Reader(
        "sources.yaml",
        a_source,
        lambda path: {name: source.model_dump() for name, source in sources(path).items()},
    ),
    "pool": Reader("pool.yaml", small_pool, expanded),
    "grids": Reader("grids.yaml", (HERE / "planning/grids.yaml").read_bytes, settings_of(Grids)),
    "precedence": Reader("precedence.yaml", (HERE / "precedence.yaml").read_bytes, settings_of(Precedence)),
    "corpus.lock": Reader("corpus.lock", small_lock, locked),
}


def a_fit() -> bytes:
    """Chinchilla's law fitted to twelve rows, as `bitlaw fit --out` writes it."""
    generator = np.random.default_rng(0)
    N, D = np.meshgrid([1e7, 1e8, 1e9], [1e9, 1e10, 1e11, 1e12])
    table = pd.DataFrame({"N": N.ravel(), "D": D.ravel()})
    theta = LAW.internal({"A": 480.0, "alpha": 0.35, "B": 2100.0, "beta": 0.37, "E": 1.8})
    loss = LAW.predict(theta, {name: table[name].to_numpy() for name in LAW.inputs})
    found = fit(LAW, table.assign(loss=loss + 1e-3 * generator.standard_normal(12)), n_boot=20, n_starts=4)
    found_json = found.to_json()
    found_json["residuals"] = found_json["residuals"][:2]
    return as_json({**found_json, "input": {"table": "runs.csv"}})


def as_json(value: Any) -> bytes:
    """As `write_json` has it."""
    import tempfile

    with tempfile.TemporaryDirectory() as folder:
        write_json(Path(folder) / "x.json", value)
        return (Path(folder) / "x.json").read_bytes()


def predicting(path: Path) -> Any:
    """Round trip, and a prediction, which takes values, draws and groups."""
    law, found = saved(path)
    again = Fit.from_json(found.to_json())
    assert again.theta.tolist() == found.theta.tolist()
    assert again.parameters == found.parameters
    with np.errstate(all="ignore"):  # constants that nobody fitted may overflow
        value, low, high = predicted(law, found, {"N": np.array([1e8]), "D": np.array([1e10])})
    assert value.shape == low.shape == high.shape == (1,)
    return [found.theta.tolist(), found.draws.tolist(), list(found.domain.values())]


def few(value: Any) -> Any:
    """A few values of each list."""
    if isinstance(value, dict):
        return {key: few(item) for key, item in value.items()}
    return [few(item) for item in value[:2]] if isinstance(value, list) else value


def a_paper_fit() -> bytes:
    values = few(json.loads((REPORTS / "kumar_precision/fit.json").read_text()))
    return as_json({**values, "parts": values["parts"][:1]})


NOTHING = Provenance(0, 0, 0, 0, 0.0, 0.0, [], [], {}, [], [])


def paper_fit(path: Path) -> Any:
    """Read by goldens and metrics, its first readers."""
    found = read_fit(path)
    metrics.flat_metrics([found], {}, NOTHING)
    return goldens.quantities([found])


def some_goldens() -> bytes:
    values = json.loads((REPORTS / "goldens.json").read_text())
    return as_json({"inputs": {"a": {"b": "c"}}, "quantities": dict(list(values["quantities"].items())[:6])})


def compared(path: Path) -> Any:
    """With itself: nothing differs."""
    found, inputs = goldens.read_goldens(path)
    assert goldens.compare(found, found, goldens.read_tolerances(HERE / "tolerances.yaml")) == []
    goldens.write_goldens(again := path.with_suffix(".again"), found, inputs)
    assert goldens.read_goldens(again)[0].keys() == found.keys()
    return found


def part_of_claims() -> bytes:
    values = json.loads((REPORTS / "kumar_precision/claims.json").read_text())
    return as_json({**values, "claims": values["claims"][:2]})


CORPORA = [
    {"quantity": name, "corpus": "both", "of": "INT4", "tokens": [2.0**20], "seeds": [3, 4], "value": 1.0, "low": None,
     "high": 2.0}
    for name in page.CORPORA
]  # fmt: skip


def compared_rows(name: str) -> Callable[[], bytes]:
    def made() -> bytes:
        values = json.loads((REPORTS / "comparison" / f"{name}.json").read_text())
        return as_json(few(values) or CORPORA)

    return made


ENVIRONMENTS: list[Environment] = []


def the_same(**options: Any) -> Environment:
    """So that the template is compiled once, not for every example."""
    if not ENVIRONMENTS:
        ENVIRONMENTS.append(Environment(**options))
    return ENVIRONMENTS[0]


def on_the_page(**rows: Any) -> str:
    """A page with nothing else."""
    nothing: dict[str, Any] = {"elasticities": [], "orders": [], "trained": []}
    empty = Explorer([], {}, pd.DataFrame(columns=["N", "D"]), [], [], {})
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(page, "Environment", the_same)
        return page.render([], NOTHING, comparison_figures=[], explorer=empty, **(nothing | rows))


def shown_rows(path: Path) -> Any:
    rows = read_rows(path)
    assert on_the_page(**{path.stem: rows})
    return rows


def a_tournament() -> dict[str, Any]:
    form = {"link": "additive", "measure": "energy", "exponents": "free"}
    ends = {"low": 0.1, "high": 0.3}
    law = {"law": "unified", "constants": 4, "place": "wins", "reason": "", "error": 0.2, **ends}
    law |= {"behind_low": 0.0, "behind_high": None}
    verdict = {"part": "all", "paper": "frantar", "paper_constants": 5, "paper_error": 0.3, "unified": "unified"}
    verdict |= {"unified_constants": 4, "unified_error": 0.2, "difference": -0.1, "verdict": "below"}
    summary = {"verdicts": 1, "verdict_parts": 1, "without_verdict": ["trained"], "below": 1, "counts": True}
    fit = {"constants": {"k": 0.1}, "intervals": {"k": ends}, "status": "CONVERGED", "tau": 0.1, "cells": 9}
    return {
        "form": form, "note": "n", "one_fit": {**fit, "held_out_error": None},
        "parts": [{"part": "all", "own": ["frantar"], "clear_cells": 9, "laws": [law]}],
        "verdicts": [{**verdict, **ends}],
        "summary": {**summary, "below_beyond_chance": 1, "above_beyond_chance": 0},
    }  # fmt: skip


def some_scores() -> dict[str, Any]:
    values = json.loads((REPORTS / "unified/published.json").read_text())["comparisons"]
    return {"comparisons": {name: few(values[name]) for name in ("quest/all 104 runs", "quest/int")}}


def shown_tournament(path: Path) -> Any:
    """tournament.json or published.json; the other is sound."""
    for name, made in (("tournament", a_tournament), ("published", some_scores)):
        if path.stem != name:
            write_json(path.with_name(f"{name}.json"), made())
    found = unified.report_rows(path.parent.parent)
    assert on_the_page(tournament=found)
    return found if found is None or path.stem == "tournament" else found["published"]


def some_choice() -> bytes:
    values = json.loads((REPORTS / "unified/selection.json").read_text())
    return as_json({key: few(values[key]) for key in ("form", "links", "exponents")})


def chosen(path: Path) -> Any:
    found = unified.read_selection(path.parent.parent)
    return [one.to_json() for one in (*found.links, *found.exponents)]


def kept_part() -> bytes:
    return as_json({"fits": {"cooled/channel": json.loads(a_fit())}})


def plan_base() -> bytes:
    return as_json({"fit": json.loads(a_fit()), "errors": {"INT4@32": 0.01}, "inputs": {}})


def planned(path: Path) -> Any:
    """Views of a kept fit beside it."""
    kept = path.parent.parent / "kumar_precision/fits.json"
    kept.parent.mkdir(exist_ok=True)
    kept.write_bytes(small_kept())
    return [view.name for view in fitted.ours(path.parent.parent)[0]]


@cache
def small_kept() -> bytes:
    return kept_part()


SEEN = {"value": 0.5, "low": 0.1, "high": 0.9, "scale": "small", "note": "", "label": "x", "trunks": 3, "by_law": False}
SPEC = RunSpec(
    corpus_sha256="0" * 64, n_layer=1, d_model=32, d_ff=64, seed=1, learning_rate=0.01, tokens=8192, cooled=False,
    context=64, batch_tokens=512, warmup_steps=4, weights="INT4@8",
)  # fmt: skip
PART = {"sha256": "1" * 64, "tokens": 5}


def described(path: Path) -> Any:
    """corpus.json, then the corpus: its token files have ten bytes each."""
    for part in ("train", "val"):
        (path.parent / f"{part}.bin").write_bytes(bytes(10))
    found = read_info(path.parent)
    corpus = load_corpus(path.parent.name, path.parent.parent.parent)
    assert len(corpus.train) == len(corpus.val) == 5
    return found["sha256"]


def runs_kept(path: Path) -> Any:
    found = kept(path.parent)
    for run in found.values():
        assert Run.from_json(json.loads(json.dumps(run.to_json()))) == run
    return [run.spec.__dict__ for run in found.values()]


def shown(path: Path) -> Any:
    path.with_name("a.svg").write_text("<svg/>")
    return [vars(one) for one in read_gallery(path.parent)]


def latencies(path: Path) -> Any:
    found = read_latencies(path)
    four = {"precision": "INT4", "bits": 4, "p95_ms": None, "kernel": "k", "memory_mib": 2.0, "delta": 0.1}
    rows = [four | {"delta_se": 0.1}, four | {"precision": "INT3", "bits": 3, "delta_se": 0.1}]
    return [decide(rows, 5.0, found)["cost_of_3"], [one.model_dump() for one in found]]


JSON = {
    "fit": Reader("fit.json", a_fit, predicting),
    "paper's fit": Reader("fit.json", a_paper_fit, paper_fit),
    "claims": Reader("claims.json", part_of_claims, lambda path: [vars(claim) for claim in read_claims(path)]),
    "goldens": Reader("goldens.json", some_goldens, compared),
    "refits": Reader(
        "refits.json",
        lambda: as_json({"a/b": {k: SEEN[k] for k in ("value", "low", "high", "scale", "note")}}),
        lambda path: [vars(one) for one in read_refits(path).values()],
    ),
    "evidence": Reader(
        "evidence.json", lambda: as_json({"a/b": SEEN}), lambda path: [vars(one) for one in read_seen(path).values()]
    ),
    "corpus": Reader(
        "data/mine/corpus.json",
        lambda: as_json({"train": PART, "val": PART, "sha256": corpus_sha256("1" * 64, "1" * 64), "name": "mine"}),
        described,
    ),
    "kept": Reader("index.json", lambda: as_json({SPEC.run_id: Run(SPEC, "X", "python").to_json()}), runs_kept),
    "decoding settings": Reader(
        "settings.json",
        lambda: as_json({"common": {"prompts": 8}, "runs": {"a": {"weights": "x", "text": "y"}}}),
        lambda path: read_held(path)["runs"],
    ),
    "gallery": Reader("figures.json", lambda: as_json([{"name": "a", "caption": "b", "alt": "c"}]), shown),
    **{name: Reader(f"{name}.json", compared_rows(name), shown_rows) for name in KINDS},
    "tournament": Reader("unified/tournament.json", lambda: as_json(a_tournament()), shown_tournament),
    "scores": Reader("unified/published.json", lambda: as_json(some_scores()), shown_tournament),
    "selection": Reader("unified/selection.json", some_choice, chosen),
    "fits": Reader(
        "kumar_precision/fits.json",
        kept_part,
        lambda path: [fit.theta.tolist() for fit in kept_fits("kumar_precision", path.parent.parent).values()],
    ),
    "base of plans": Reader("planning/base.json", plan_base, planned),
    "latencies": Reader(
        "latencies.json",
        lambda: as_json([{"precision": "INT4", "p50_ms": 1.0, "p95_ms": 2, "runtime": "r"}]),
        latencies,
    ),
}


@cache
def good(name: str) -> tuple[bytes, Any]:
    """A good file, and the values in it."""
    text = (YAML | JSON)[name].valid()
    return text, json.loads(text) if name in JSON else yaml.safe_load(text)


def broken(reader: Reader, path: Path, data: bytes) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(data)
    assert all_finite(outcome(lambda: reader.read(path)))


@pytest.mark.parametrize("name", [*YAML, *JSON])
def test_what_is_good_is_read(name: str, tmp_path: Path) -> None:
    reader = (YAML | JSON)[name]
    path = tmp_path / reader.file
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(good(name)[0])
    assert reader.read(path)


@pytest.mark.parametrize("name", YAML)
@fuzz
@given(data=st.data())
def test_yaml(name: str, tmp_path: Path, data: st.DataObject) -> None:
    reader = YAML[name]
    valid, tree = good(name)
    text = data.draw(
        bytes_like(valid)
        | yaml_like(valid)
        | trees_like(tree).map(lambda tree: yaml.safe_dump(tree, sort_keys=False).encode())
    )
    broken(reader, tmp_path / reader.file, text)


@pytest.mark.parametrize("name", JSON)
@fuzz
@given(data=st.data())
def test_json(name: str, tmp_path: Path, data: st.DataObject) -> None:
    reader = JSON[name]
    valid, tree = good(name)
    text = data.draw(
        bytes_like(valid) | trees_like(tree).map(lambda tree: json.dumps(tree).encode("utf-8", errors="surrogatepass"))
    )
    broken(reader, tmp_path / reader.file, text)


# Where no file means none yet.
NONE_YET = ("refits", "evidence", "gallery", "tournament", "scores", "fits", "base of plans", "decoding settings")


@pytest.mark.parametrize("name", [*YAML, *JSON])
def test_no_file_a_folder_and_a_loop(name: str, tmp_path: Path) -> None:
    reader = (YAML | JSON)[name]
    path = tmp_path / reader.file
    path.parent.mkdir(parents=True, exist_ok=True)
    if name not in (*KINDS, *NONE_YET):
        assert outcome(lambda: reader.read(path)) is None
    path.mkdir()
    assert outcome(lambda: reader.read(path)) is None
    path.rmdir()
    path.symlink_to(path)
    assert not outcome(lambda: reader.read(path))


@pytest.mark.parametrize("text", ["[" * 5000, '{"a": ' * 5000, "[" * 5000 + "]" * 5000])
def test_nesting_without_end(tmp_path: Path, text: str) -> None:
    path = tmp_path / "x"
    path.write_text(text)
    for read in (read_json, read_yaml):
        with pytest.raises(BitlawError, match="is not valid"):
            read(path)


def test_a_key_twice_is_named(tmp_path: Path) -> None:
    path = tmp_path / "x"
    path.write_text('{"a": 1, "b": {"c": 1, "c": 2}}')
    with pytest.raises(BitlawError, match="key 'c' stands twice"):
        read_json(path)
    path.write_text((HERE.parent / "params.yaml").read_text() + "fit:\n  seed: 3\n")
    with pytest.raises(BitlawError, match=r"key 'fit' stands twice.* line 8"):
        read_settings(path, Params)


def test_every_quantity_of_corpora_has_words() -> None:
    assert len(CORPORA) == 4
    with pytest.raises(KeyError):
        on_the_page(corpora=[CORPORA[0] | {"quantity": "other"}])


@pytest.mark.parametrize("name", [*KINDS, "tournament"])
def test_a_report_of_a_bad_file_is_one_sentence(name: str, tmp_path: Path) -> None:
    """`bitlaw report`, which finds nothing but this file."""
    path = tmp_path / (f"unified/{name}.json" if name == "tournament" else f"comparison/{name}.json")
    write_json(path, {"a": 1})
    with pytest.raises(BitlawError, match=rf"{name}\.json: is no .*write it again with `bitlaw"):
        results.write_report(tmp_path)
    if name == "tournament":
        with pytest.raises(BitlawError, match=r"tournament\.json: is no tournament"):
            unified.write_published(tmp_path)


DIGEST = "0123456789abcdef" * 4


@fuzz
@given(data=st.data())
def test_pins(tmp_path: Path, data: st.DataObject) -> None:
    valid = "".join(f"{DIGEST}  data/python/{part}.bin\n" for part in ("train", "val")).encode()
    (tmp_path / "data.sha256").write_bytes(data.draw(bytes_like(valid)))
    assert outcome(lambda: pinned_sha256("python", tmp_path)) != ""


@fuzz
@given(data=st.data())
def test_ledger_and_claim(tmp_path: Path, data: st.DataObject) -> None:
    """A damaged result is told, removed and counts as absent; a damaged claim is nobody's, but young."""
    told: list[str] = []
    path = tmp_path / "runs" / "abc" / "result.json"
    path.parent.mkdir(parents=True, exist_ok=True)
    value = {"run_id": "abc", "diverged": False, "loss": 2.5}
    text = data.draw(
        bytes_like(json.dumps(value).encode()) | trees_like(value).map(lambda tree: json.dumps(tree).encode())
    )
    path.write_bytes(text)
    found = Ledger(tmp_path).result("abc", told.append)
    assert (found is None) == (not path.exists()) == bool(told)
    assert all(sentence.isprintable() for sentence in told)
    claim = tmp_path / "claim"
    claim.write_bytes(data.draw(bytes_like(b'{"host": "elsewhere", "pid": 1, "token": "t"}')))
    assert is_stale(claim) is False


PTQ_CELL = PtqCell("rtn", "INT4", "8")
PTQ_ROW: dict[str, Any] = {"cell": PTQ_CELL.name, "loss": 2.5, "delta": 0.01, "delta_se": 0.001, "weights": 64}
PTQ_SETTINGS: dict[str, Any] = {"context": 32, "head": False, "text": "a", "text_sha256": "0" * 64}


@fuzz
@given(data=st.data())
def test_cells_and_settings_of_ptq(tmp_path: Path, data: st.DataObject) -> None:
    """A damaged cell is told, removed and counts as not measured; damaged settings are one sentence."""
    told: list[str] = []
    results = Results(tmp_path)
    results.keep(PTQ_CELL, PTQ_ROW)
    results.keep_settings(PTQ_SETTINGS)
    for path, value in (
        (tmp_path / f"cells/{PTQ_CELL.file}.json", PTQ_ROW),
        (tmp_path / "settings.json", PTQ_SETTINGS),
    ):
        trees = trees_like(sealed(value)).map(lambda tree: json.dumps(tree).encode())
        path.write_bytes(data.draw(bytes_like(path.read_bytes()) | trees))
    row = results.row(PTQ_CELL, told.append)
    assert row in (None, PTQ_ROW)
    assert (row is None) == bool(told)
    assert all(sentence.isprintable() for sentence in told)
    assert outcome(results.settings) in (None, PTQ_SETTINGS)
