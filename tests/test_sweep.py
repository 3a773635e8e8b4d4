"""Run ids, the ledger, claims, tables, and a whole micro sweep under kills, damage and a full disk."""

import csv
import json
import os
import random
import shutil
import signal
import subprocess
import sys
import time
from dataclasses import fields, replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from sample_corpus import make_corpus

from replications.commands import train
from replications.pool import expand, papers, read_pool
from shared.corpus.load import pinned_sha256
from shared.corpus.write import corpus_sha256
from shared.errors import BitlawError
from shared.quantize import parse_quantizer
from shared.sweep import claim, tables
from shared.sweep.kept import kept, kept_model
from shared.sweep.launch import expected_seconds, memory_bytes
from shared.sweep.ledger import Ledger
from shared.sweep.spec import QUANTIZERS, Run, RunSpec, trunks
from shared.train import state

SPEC = RunSpec("c" * 64, n_layer=2, d_model=64, d_ff=192, seed=1, learning_rate=0.008, tokens=2**20, cooled=True)
ROOT = Path(__file__).parent.parent
PINNED = ["e3d4256efc31", "aa14ecb2d1c7", "301c8fab42e8", "00520499bb80", "2d08c854173b"]


# --- identity ---------------------------------------------------------------------------------------------------


def test_five_ids_are_pinned() -> None:
    """A refactor leaves these alone; a change of numerics raises NUMERICS_VERSION and records new ones here."""
    specs = [
        SPEC,
        replace(SPEC, cooled=False),
        replace(SPEC, seed=2),
        replace(SPEC, tokens=2**25, n_layer=4, d_model=128, d_ff=384, learning_rate=0.004),
        replace(SPEC, compile=False, threads=2, context=64, batch_tokens=512),
    ]
    assert [spec.run_id for spec in specs] == PINNED


def test_every_field_is_part_of_the_identity_and_defaults_are_not() -> None:
    others: dict[str, Any] = {"corpus_sha256": "d" * 64, "compute": "fp32", "cooled": False, "compile": False}
    others |= dict.fromkeys(QUANTIZERS, "INT4@8") | {"exceptions": "down.activations=INT8@8", "sparsity": 0.25}
    others |= {"learned_clip": True, "sparsity_pattern": "2:4", "decay": "cosine"}
    spec = replace(SPEC, activations="INT4@16", sparsity=0.5)
    for f in fields(RunSpec):
        value = getattr(spec, f.name)
        other = others.get(f.name, value * 2 if not isinstance(value, float) else value / 2)
        assert replace(spec, **{f.name: other}).run_id != spec.run_id, f.name
    assert "warmup_steps" not in Run(SPEC, "S", "python").to_json()["spec"]
    explicit = RunSpec(**(Run(SPEC, "S", "python").to_json()["spec"] | {"warmup_steps": 50}))
    assert explicit.run_id == SPEC.run_id


def test_a_trunk_holds_its_horizons() -> None:
    runs = [
        Run(replace(SPEC, tokens=t, cooled=c, seed=s), "S", "python")
        for s in (1, 2)
        for t in (2**20, 2**21)
        for c in (True, False)
    ]
    assert [len(members) for members in trunks(runs).values()] == [4, 4]
    assert Run.from_json(json.loads(json.dumps(runs[3].to_json()))) == runs[3]


def test_a_spec_of_another_version_is_one_sentence() -> None:
    value = Run(SPEC, "S", "python").to_json()
    value["spec"]["flavour"] = 1
    with pytest.raises(BitlawError, match="another version"):
        Run.from_json(value)


def test_expected_time_shares_the_trunk() -> None:
    alone = [Run(SPEC, "S", "python")]
    both = [*alone, Run(replace(SPEC, cooled=False), "S", "python")]
    speeds = {"S": 1.0}
    one, two = expected_seconds(alone, speeds), expected_seconds(both, speeds)
    assert one == pytest.approx(SPEC.train_flops / 1e9, rel=1e-6)
    assert two == pytest.approx(1.2 * one, rel=0.01)


# --- the pool ---------------------------------------------------------------------------------------------------


def test_the_profiles_of_the_design() -> None:
    pool = read_pool()
    cpu = expand("cpu", "c" * 64)
    sizes = {run.size: run.spec.shape.n_blocks for run in cpu.runs}
    assert sizes == {"S": 106_496, "S4": 212_992, "M": 376_832, "M3": 565_248, "L": 851_968, "W": 753_664}
    assert {run.spec.tokens // 2**20 for run in cpu.runs} == {1, 2, 4, 8, 16, 32}
    # Six horizons, trunk and cooled: three seeds of S, two of M, one of the others.
    assert len([run for run in cpu.runs if run.spec == run.spec.base]) == 6 * 2 * (3 + 2 + 4)
    seed_one = [run for run in cpu.runs if run.spec.seed == 1 and run.spec == run.spec.base]
    # All methods on the checkpoints in git, fewer cells elsewhere, rounding per channel everywhere.
    counted = {(run.size, run.spec.tokens // 2**20): len(cpu.cells[run.spec.run_id]) for run in seed_one}
    assert {counted[key] for key in (("S", 1), ("S", 4), ("S", 32), ("M", 4), ("M", 32))} == {72, 73}
    assert all(
        {cell.format for cell in cpu.cells[run.spec.run_id] if cell.group_size == "channel"}
        >= {f"INT{bits}" for bits in range(2, 9)}
        for run in seed_one
    )
    further = {run.spec.weights for run in cpu.runs if run.spec.run_id in cpu.cells and run.spec != run.spec.base}
    assert "INT4@channel" in further
    assert all(
        run.spec.activations == run.spec.keys_values == "none" and run.spec.sparsity == 0
        for run in cpu.runs
        if run.spec.run_id in cpu.cells
    )
    gpu = expand("gpu", "c" * 64)
    assert {run.size for run in gpu.runs} == {"K30", "K60", "K110", "K220"}
    for size, near in (("K30", 30e6), ("K60", 60e6), ("K110", 110e6), ("K220", 220e6)):
        shape = next(run.spec.shape for run in gpu.runs if run.size == size)
        assert shape.n_blocks == pytest.approx(near, rel=0.08), size
    assert set(pool.profiles) >= {"micro", "smoke", "cpu", "gpu"}


@pytest.mark.parametrize("name", [name for name in read_pool().profiles if name.startswith("gpu")])
def test_a_gpu_profile_can_be_planned_and_costed(name: str) -> None:
    want = expand(name, "c" * 64)
    assert expected_seconds(want.runs, {size: shape.gflops for size, shape in want.sizes.items()}) > 3600
    for run in want.runs:
        assert memory_bytes(run.spec) < 80 * 2**30, run.label
        for width in (run.spec.d_model, run.spec.d_ff):
            for text in (run.spec.weights, run.spec.activations):
                quantizer = parse_quantizer(text)
                assert quantizer is None or width % quantizer.group_size(width) == 0
    if name == "gpu_capybara_fp":  # the counts of the paper (facts, 2.3)
        counts = {run.size: run.spec.shape.n_blocks for run in want.runs}
        assert counts == {"F41": 40_894_464, "F85": 84_934_656, "F154": 154_140_672, "F679": 679_477_248}


def test_each_paper_selects_from_the_pool() -> None:
    assert {"kumar_precision", "undertrained_qid"} <= set(papers())
    whole = {run.spec.run_id for run in expand("cpu", "c" * 64).runs}
    for paper in papers():
        part = expand("cpu", "c" * 64, paper=paper)
        assert part.runs
        assert {run.spec.run_id for run in part.runs} <= whole


def test_a_missing_group_is_said(tmp_path: Path) -> None:
    text = (ROOT / "replications" / "pool.yaml").read_text()
    path = tmp_path / "pool.yaml"
    path.write_text(text.replace("      base:\n", "      bases:\n"))
    with pytest.raises(BitlawError, match="profile 'cpu' has no runs 'base', did you mean 'bases'"):
        expand("cpu", "c" * 64, paper="kumar_precision", pool=read_pool(path))


def test_a_pinned_corpus_is_named_without_its_data(tmp_path: Path) -> None:
    (tmp_path / "data.sha256").write_text(f"{'a' * 64}  data/python/train.bin\n{'b' * 64}  data/python/val.bin\n")
    assert pinned_sha256("python", tmp_path) == corpus_sha256("a" * 64, "b" * 64)
    assert pinned_sha256("mine", tmp_path) is None
    assert pinned_sha256("python", tmp_path / "nowhere") is None


@pytest.mark.parametrize(
    ("arguments", "sentence"),
    [
        (("smoek", None), "did you mean 'smoke'"),
        (("cpu", "kumar"), "paper 'kumar' is unknown"),
    ],
)
def test_unknown_names(arguments: tuple[str, str | None], sentence: str) -> None:
    with pytest.raises(BitlawError, match=sentence):
        expand(arguments[0], "c" * 64, paper=arguments[1])


@pytest.mark.parametrize(
    ("old", "new", "sentence"),
    [
        ("save_seconds: 1\n", "save_second: 1\n", "save_second"),
        ("n_layer: 1,", "n_layer: one,", "sizes.X.n_layer"),
        ("context: 64,", "contex: 64,", "did you mean 'context'"),
        ("sizes: [X]", "sizes: [Y]", "size 'Y' is unknown"),
        ("batch_tokens: 512", "batch_tokens: many", "batch_tokens is 'many', it must be of type int"),
        ("warmup_steps: 4", "warmup_steps: -4", "warmup_steps is -4, it must not be negative"),
        ("context: 64,", "seed: 64,", "seed is no setting"),
    ],
)
def test_a_wrong_pool_file(tmp_path: Path, old: str, new: str, sentence: str) -> None:
    text = (ROOT / "replications" / "pool.yaml").read_text()
    assert old in text
    path = tmp_path / "pool.yaml"
    path.write_text(text.replace(old, new))
    with pytest.raises(BitlawError, match=sentence):
        expand("micro", "c" * 64, pool=read_pool(path))


# --- claims -----------------------------------------------------------------------------------------------------


def test_a_claim_is_held_once(tmp_path: Path) -> None:
    path = tmp_path / "claim"
    with claim.claimed(path) as first, claim.claimed(path) as second:
        assert (first, second) == (True, False)
    assert not path.exists()


def test_a_claim_of_a_dead_process_is_taken_over(tmp_path: Path) -> None:
    path = tmp_path / "claim"
    code = f"from pathlib import Path; from shared.sweep.claim import _create; _create(Path({str(path)!r}), 'x')"
    subprocess.run([sys.executable, "-c", code], check=True, cwd=ROOT)
    assert claim.is_stale(path)
    with claim.claimed(path) as mine:
        assert mine


def test_a_suspended_owner_on_this_host_is_believed(tmp_path: Path) -> None:
    path = tmp_path / "claim"
    with claim.claimed(path):
        for age, stale in ((claim.STALE_SECONDS + 1, False), (claim.SUSPENDED_SECONDS + 1, True)):
            os.utime(path, (time.time() - age, time.time() - age))
            assert claim.is_stale(path) is stale


def test_a_claim_from_another_host_goes_stale_by_age_only(tmp_path: Path) -> None:
    path = tmp_path / "claim"
    path.write_text(json.dumps({"host": "elsewhere", "pid": 1, "token": "x"}))
    assert not claim.is_stale(path)
    old = time.time() - claim.STALE_SECONDS - 1
    os.utime(path, (old, old))
    assert claim.is_stale(path)


def test_a_lost_claim_is_not_removed(tmp_path: Path) -> None:
    path = tmp_path / "claim"
    with claim.claimed(path):
        path.write_text(json.dumps({"host": "elsewhere", "pid": 1, "token": "other"}))
    assert path.exists()


# --- tables -----------------------------------------------------------------------------------------------------


def row(run_id: str, **others: object) -> dict[str, object]:
    """With the counts that every row of runs.csv has."""
    return {"run_id": run_id, **dict.fromkeys(tables.COUNTS, 1), **others}


def test_rows_are_added_sorted_and_replaced_by_id(tmp_path: Path) -> None:
    losses = {"bb": np.arange(4, dtype=np.float32)}
    tables.add_runs(tmp_path, [row("bb", loss=1.23456789), row("aa", loss=float("nan"))], losses)
    tables.add_runs(tmp_path, [row("aa", loss=2.0)], {})
    rows = tables.read_runs(tmp_path)
    assert list(rows) == [("aa",), ("bb",)]
    assert (rows["aa",]["loss"], rows["bb",]["loss"]) == ("2", "1.23457")
    assert list(tables.read_base_losses(tmp_path)) == ["bb"]
    before = (tmp_path / "runs.csv").stat().st_mtime_ns
    tables.add_runs(tmp_path, [row("aa", loss=2.0)], losses)
    assert (tmp_path / "runs.csv").stat().st_mtime_ns == before


def test_a_compressed_run_gets_its_delta_once_its_base_is_known(tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    base = rng.normal(3.0, 0.3, 64).astype(np.float32)
    own = base + np.float32(0.125) + rng.normal(0, 0.01, 64).astype(np.float32)
    w4 = row("w4", base_run_id="16", loss=float(own.mean()), weights="INT4@channel")
    tables.add_runs(tmp_path, [w4], {"w4": own})
    assert tables.read_runs(tmp_path)["w4",]["delta"] == ""
    unquantized = row("16", base_run_id="16", loss=float(base.mean()))
    tables.add_runs(tmp_path, [unquantized, w4], {"w4": own, "16": base})
    found = tables.read_runs(tmp_path)["w4",]
    difference = own.astype(float) - base.astype(float)
    assert float(found["delta"]) == pytest.approx(difference.mean(), rel=1e-5)
    assert float(found["delta_se"]) == pytest.approx(difference.std(ddof=1) / 8, rel=1e-4)
    assert tables.read_runs(tmp_path)["16",]["delta"] == ""
    assert tables.read_runs(tmp_path)["16",]["weights"] == "none"
    assert list(tables.read_base_losses(tmp_path)) == ["16"]


def test_a_delta_that_is_known_stays_when_the_base_run_s_losses_are_lost(tmp_path: Path) -> None:
    base, own = np.full(8, 3.0, np.float32), np.linspace(3.0, 3.2, 8, dtype=np.float32)
    w4 = row("w4", base_run_id="16", loss=3.1)
    tables.add_runs(tmp_path, [row("16", base_run_id="16", loss=3.0), w4], {"16": base, "w4": own})
    known = tables.read_runs(tmp_path)["w4",]
    assert known["delta"] == "0.1"
    (tmp_path / "base_losses.npz").unlink()
    tables.add_runs(tmp_path, [w4], {"w4": own})
    assert tables.read_runs(tmp_path)["w4",] == known
    tables.add_runs(tmp_path, [w4 | {"loss": 3.15}], {"w4": own})  # another run of the same name
    assert tables.read_runs(tmp_path)["w4",]["delta"] == ""


@pytest.mark.parametrize(
    ("changes", "lacking"),
    [
        ({}, {"w4"}),
        ({"w4": {"delta": "0.1"}}, set()),
        ({"w4": {"diverged": "True"}}, set()),
        ({"16": {"diverged": "True"}}, set()),
        ({"w4": {"base_run_id": "other"}}, set()),
    ],
)
def test_a_run_put_in_before_its_base_run_is_not_done(changes: dict[str, dict[str, str]], lacking: set[str]) -> None:
    """A stop between the two had left its delta empty for good."""
    rows: dict[tuple[str, ...], dict[str, str]] = {
        ("16",): {"base_run_id": "", "delta": "", "diverged": "False"},
        ("w4",): {"base_run_id": "16", "delta": "", "diverged": "False"},
    }
    changed: dict[tuple[str, ...], dict[str, str]] = {key: row | changes.get(key[0], {}) for key, row in rows.items()}
    assert train.without_delta(changed, {"16"}) == lacking
    assert train.without_delta(changed, set()) == set()


def test_a_delta_that_a_stop_left_out_comes_with_the_next_command(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    want = train.expected("learning_rate", None, None)
    rows = [row(run.spec.run_id, base_run_id=run.spec.base.run_id, loss=3.0, diverged=False) for run in want.runs]
    base = next(run for run in want.runs if run.spec.base != run.spec).spec.base.run_id
    losses = {run_id: np.full(4, 3.0, np.float32) for run_id in (str(r["run_id"]) for r in rows if tables.is_base(r))}
    tables.add_runs(tmp_path, rows, losses)
    lacking = {run.spec.run_id for run in want.runs if run.spec.base != run.spec}
    started: list[set[str]] = []
    monkeypatch.setattr(train, "start", lambda plan, *rest: started.append({r.spec.run_id for r in plan.runs}))
    monkeypatch.setattr(train, "plan_of", lambda want, runs, *rest: SimpleNamespace(runs=runs))
    train.train("learning_rate", reports=tmp_path, build=tmp_path / "build", repeats=True)
    assert base not in lacking
    assert started == [lacking]


@pytest.mark.parametrize(
    ("change", "sentence"),
    [
        (lambda text: text.replace("run_id", "run_di", 1), "column 'run_id' is missing, did you mean 'run_di'"),
        (lambda text: text + text.splitlines()[1] + "\n", "line 3 repeats aa"),
        (lambda text: text + "aa,bb\n", "line 3 has not"),
        (
            lambda text: "".join(f"{line},{'more' if k == 0 else ''}\n" for k, line in enumerate(text.splitlines())),
            "column 'more' is unknown to this version of bitlaw",
        ),
    ],
)
def test_a_damaged_table_is_one_sentence(tmp_path: Path, change, sentence: str) -> None:  # type: ignore[no-untyped-def]
    tables.add_runs(tmp_path, [row("aa")], {})
    path = tmp_path / "runs.csv"
    path.write_text(change(path.read_text()))
    with pytest.raises(BitlawError, match=sentence):
        tables.add_runs(tmp_path, [row("bb")], {})


# --- whole sweeps -----------------------------------------------------------------------------------------------


def command(root: Path, *arguments: str) -> list[str]:
    shared = ["--corpus", "sample", "--reports", str(root / "reports"), "--build", str(root / "build")]
    return [sys.executable, "-m", "replications.cli", *arguments, *shared]


def bitlaw(root: Path, *arguments: str) -> subprocess.CompletedProcess[str]:
    environment = os.environ | {"PYTHONPATH": str(ROOT)}
    return subprocess.run(command(root, *arguments), cwd=root, env=environment, capture_output=True, text=True)


def content_of(root: Path, name: str) -> list[dict[str, str]]:
    """A table without what cannot repeat."""
    with (root / "reports" / name).open(newline="") as opened:
        return [{k: v for k, v in row.items() if k not in tables.UNREPEATABLE} for row in csv.DictReader(opened)]


def content(root: Path) -> list[list[dict[str, str]]]:
    return [content_of(root, name) for name in ("runs.csv", "measurements.csv")]


@pytest.fixture(scope="module")
def finished(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """An undisturbed micro sweep; other tests read it."""
    root = tmp_path_factory.mktemp("finished")
    make_corpus(root)
    trained = bitlaw(root, "train", "micro")
    assert trained.returncode == 0, trained.stderr
    measured = bitlaw(root, "measure", "micro")
    assert measured.returncode == 0, measured.stderr
    return root


def test_a_micro_sweep_fills_both_tables(finished: Path) -> None:
    runs, measurements = content(finished)
    assert len(runs) == 12
    assert len(measurements) == 60
    assert all(0 < float(row["loss"]) < 7 for row in runs)
    assert {row["cooled"] for row in runs} == {"True", "False"}
    status = subprocess.run(
        [*command(finished, "status", "micro")[:-2]],
        cwd=finished, env=os.environ | {"PYTHONPATH": str(ROOT)}, capture_output=True, text=True,
    )  # fmt: skip
    assert status.returncode == 0, status.stdout + status.stderr
    again = bitlaw(finished, "train", "micro")
    assert "all 12 runs are finished" in again.stdout


def test_rows_come_back_when_they_are_trained_again(finished: Path) -> None:
    same = bitlaw_verify(finished, finished / "reports")
    assert same.returncode == 0, same.stderr
    assert "holds" in same.stdout
    assert "DIFFERS" not in same.stdout
    other = finished / "other"
    shutil.copytree(finished / "reports", other)
    text = (other / "runs.csv").read_text().splitlines()
    at = text[0].split(",").index("loss")
    moved = [line.split(",") for line in text[1:]]
    text[1:] = [",".join([*line[:at], f"{float(line[at]) + 0.01:.6g}", *line[at + 1 :]]) for line in moved]
    (other / "runs.csv").write_text("\n".join(text) + "\n")
    differs = bitlaw_verify(finished, other)
    assert differs.returncode == 1, differs.stderr
    assert "DIFFERS" in differs.stdout


def bitlaw_verify(root: Path, reports: Path) -> subprocess.CompletedProcess[str]:
    arguments = ["verify", "micro", "--minutes", "1.2", "--seed", "1", "--workers", "1", "--corpus", "sample"]
    return subprocess.run(
        [sys.executable, "-m", "replications.cli", *arguments, "--reports", str(reports)],
        cwd=root, env=os.environ | {"PYTHONPATH": str(ROOT)}, capture_output=True, text=True,
    )  # fmt: skip


def test_kept_checkpoints_are_those_of_the_runs(finished: Path, tmp_path: Path) -> None:
    shutil.copytree(finished / "build" / "corpora", tmp_path / "build" / "corpora")
    absent = bitlaw(tmp_path, "keep", "micro")
    assert absent.returncode == 2
    assert "train it first" in absent.stderr
    assert "Traceback" not in absent.stderr
    folder = finished / "reports" / "checkpoints"
    done = bitlaw(finished, "keep", "micro")
    assert done.returncode == 0, done.stderr
    runs = kept(folder)
    assert {(run.size, run.spec.tokens, run.spec.seed) for run in runs.values()} == {("X", 32768, 1)}
    assert {run.spec.cooled for run in runs.values()} == {True, False}
    ledger = Ledger(finished / "build")
    for run_id in runs:
        model = kept_model(folder, run_id)
        for name, value in ledger.weights(run_id).items():
            assert torch.equal(model.state_dict()[name], value), name
    with pytest.raises(BitlawError, match="choose one of"):
        kept_model(folder, "0" * 12)
    first, second = sorted(runs)
    (folder / f"{first}.safetensors").write_bytes((folder / f"{second}.safetensors").read_bytes())
    with pytest.raises(BitlawError, match=f"holds run {second}"):
        kept_model(folder, first)


def test_deltas_are_paired_with_the_checkpoint(finished: Path) -> None:
    runs, measurements = content(finished)
    losses = {row["run_id"]: float(row["loss"]) for row in runs}
    for row in measurements:
        assert float(row["loss"]) - losses[row["run_id"]] == pytest.approx(float(row["delta"]), abs=2e-4)
    kept = tables.read_base_losses(finished / "reports")
    assert set(kept) == set(losses)
    for run_id, values in kept.items():
        assert values.mean() == pytest.approx(losses[run_id], abs=1e-4)


def test_ten_kills_change_nothing(finished: Path, tmp_path: Path) -> None:
    """SIGKILL of the launcher and its workers at ten random moments: while they start, and after a result or two."""
    make_corpus(tmp_path)
    chance = random.Random(0)
    environment = os.environ | {"PYTHONPATH": str(ROOT)}
    kills = 0
    for verb in ("train", "measure"):
        for results in (0, 1, 1, 0, 1):
            process = subprocess.Popen(
                command(tmp_path, verb, "micro"), cwd=tmp_path, env=environment, start_new_session=True,
                stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True,
            )  # fmt: skip
            assert process.stdout is not None
            seen = 0
            while seen < results and (line := process.stdout.readline()):
                seen += line.startswith(("finished ", "measured "))
            time.sleep(chance.uniform(0, 0.2) if results else chance.uniform(0.5, 3.0))
            if process.poll() is None:
                os.killpg(process.pid, signal.SIGKILL)
                kills += 1
            process.stdout.close()
            process.wait()
        done = bitlaw(tmp_path, verb, "micro")
        assert done.returncode == 0, done.stderr
    assert kills == 10
    assert content(tmp_path) == content(finished)


def test_two_launches_share_the_work_and_train_nothing_twice(finished: Path, tmp_path: Path) -> None:
    make_corpus(tmp_path)
    environment = os.environ | {"PYTHONPATH": str(ROOT)}
    both = [
        subprocess.Popen(
            command(tmp_path, "train", "micro"), cwd=tmp_path, env=environment, stdout=subprocess.PIPE, text=True
        )
        for _ in range(2)
    ]
    said = [process.communicate()[0] for process in both]
    assert [process.returncode for process in both] == [0, 0]
    lines = [line for text in said for line in text.splitlines() if line.startswith("finished ")]
    assert len(lines) == len(set(lines)) == 12
    assert content(finished)[0] == [
        {k: v for k, v in row.items() if k not in tables.UNREPEATABLE}
        for row in tables.read_runs(tmp_path / "reports").values()
    ]


def live_owners(root: Path) -> list[int]:
    """Processes that hold a trunk."""
    held = [path for path in (root / "build" / "trunks").glob("*/claim") if not claim.is_stale(path)]
    return [json.loads(text)["pid"] for path in held if (text := path.read_text())]


def test_two_processes_of_one_run_match_one_process(finished: Path, tmp_path: Path) -> None:
    """torchrun, gloo, CPU: the same checkpoints up to the order of sums, each made once."""
    make_corpus(tmp_path)
    done = bitlaw(tmp_path, "train", "micro", "--processes", "2", "--workers", "1")
    assert done.returncode == 0, done.stderr
    alone, shared = content_of(finished, "runs.csv"), content_of(tmp_path, "runs.csv")
    assert [row["run_id"] for row in shared] == [row["run_id"] for row in alone]
    ledgers = Ledger(finished / "build"), Ledger(tmp_path / "build")
    for one, other in zip(alone, shared, strict=True):
        assert float(other["loss"]) == pytest.approx(float(one["loss"]), abs=5e-3)
        weights = [ledger.weights(one["run_id"]) for ledger in ledgers]
        first = weights[0]["layers.0.q_proj.weight"]
        assert (weights[1]["layers.0.q_proj.weight"] - first).norm() < 0.05 * first.norm()


def test_a_killed_worker_is_replaced_and_a_lone_one_is_missed(finished: Path, tmp_path: Path) -> None:
    """Of two workers one dies: the other takes its trunk over. The only one dies: the command fails and says so."""
    make_corpus(tmp_path)
    environment = os.environ | {"PYTHONPATH": str(ROOT)}
    for workers, code in (("1", 2), ("2", 0)):
        process = subprocess.Popen(
            command(tmp_path, "train", "micro", "--workers", workers), cwd=tmp_path, env=environment,
            stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
        )  # fmt: skip
        deadline = time.monotonic() + 120
        while not (owners := live_owners(tmp_path)) and time.monotonic() < deadline:
            time.sleep(0.02)
        os.kill(owners[0], signal.SIGKILL)
        out, err = process.communicate()
        assert process.returncode == code, out + err
    assert content_of(tmp_path, "runs.csv") == content_of(finished, "runs.csv")


def test_a_damaged_checkpoint_of_a_finished_run_is_trained_again(finished: Path, tmp_path: Path) -> None:
    root = tmp_path / "copy"
    shutil.copytree(finished, root)
    run_id = sorted(path.name for path in (root / "build" / "runs").iterdir())[5]
    path = root / "build" / "runs" / run_id / "checkpoint.safetensors"
    # Not the bytes: safetensors orders a header's entries by chance. At once: loaded tensors are views of the file.
    whole = state.checksum(state.load(path)[0])
    path.write_bytes(path.read_bytes()[:-10])
    again = bitlaw(root, "train", "micro")
    assert again.returncode == 0, again.stderr
    assert f"{run_id}/checkpoint.safetensors: is truncated" in again.stderr
    assert "1 runs finished, 12 in all" in again.stdout
    assert state.checksum(state.load(path)[0]) == whole
    assert content(root) == content(finished)


@pytest.mark.parametrize("name", ["checkpoint.safetensors", "result.json", "losses.safetensors"])
def test_damage_is_found_named_and_redone(finished: Path, tmp_path: Path, name: str) -> None:
    shutil.copytree(finished, tmp_path / "copy")
    root = tmp_path / "copy"
    run_id = sorted(path.name for path in (root / "build" / "runs").iterdir())[3]
    path = root / "build" / "runs" / run_id / name
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])
    (root / "reports" / "runs.csv").unlink()
    again = bitlaw(root, "train", "micro")
    assert again.returncode == 0, again.stderr
    assert f"{run_id}/{name}" in again.stderr
    assert content(root) == content(finished)


def test_a_full_disk_is_one_sentence_and_loses_nothing(finished: Path, tmp_path: Path) -> None:
    """On a tmpfs of our own: too small first, then grown."""
    disk = tmp_path / "disk"
    disk.mkdir()
    if subprocess.run(["mount", "-t", "tmpfs", "-o", "size=900k", "tmpfs", str(disk)], capture_output=True).returncode:
        pytest.skip("mounting a small tmpfs needs root on Linux")
    try:
        make_corpus(disk)
        full = bitlaw(disk, "train", "micro")
        assert full.returncode == 2, full.stdout + full.stderr
        assert "No space left on device" in full.stderr
        assert "Traceback" not in full.stderr
        subprocess.run(["mount", "-o", "remount,size=50m", str(disk)], check=True)
        for verb in ("train", "measure"):
            done = bitlaw(disk, verb, "micro")
            assert done.returncode == 0, done.stderr
        assert content(disk) == content(finished)
    finally:
        subprocess.run(["umount", str(disk)], check=True)


@pytest.mark.parametrize(
    ("prepare", "arguments", "sentence"),
    [
        ("nothing", ("train", "micrp"), "did you mean 'micro'"),
        ("nothing", ("train", "micro", "--paper", "kumar_precison"), "did you mean 'kumar_precision'"),
        ("nothing", ("train", "micro"), "there is no corpus 'sample'"),
        ("small", ("train", "micro"), "allow repeats with --repeats"),
        ("changed", ("train", "micro"), "train.bin: its content was changed"),
        ("truncated", ("train", "micro"), "train.bin: has"),
        ("corpus", ("train", "micro", "--device", "gpu0"), "device 'gpu0' is unknown"),
        ("table", ("train", "micro"), "column 'run_id' is missing"),
    ],
)
def test_bad_input_is_one_sentence_and_code_2(
    tmp_path: Path, prepare: str, arguments: tuple[str, ...], sentence: str
) -> None:
    if prepare != "nothing":
        make_corpus(tmp_path, 4_000 if prepare == "small" else 40_000)
    train = tmp_path / "build" / "corpora" / "sample" / "train.bin"
    if prepare == "changed":
        train.write_bytes(train.read_bytes()[:-2] + b"\x01\x00")
    if prepare == "truncated":
        train.write_bytes(train.read_bytes()[:-2])
    if prepare == "table":
        (tmp_path / "reports").mkdir()
        (tmp_path / "reports" / "runs.csv").write_text("a,b\n1,2\n")
    result = bitlaw(tmp_path, *arguments)
    assert result.returncode == 2, result.stdout + result.stderr
    assert sentence in result.stderr
    assert "Traceback" not in result.stderr
    assert len(result.stderr.strip().splitlines()) == 1
    if prepare == "table":
        assert (tmp_path / "reports" / "runs.csv").read_text() == "a,b\n1,2\n"
