"""Post-training cells by methods that look at text: what they are calibrated on, by definition, and in the pool."""

import csv
import os
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from sample_corpus import make_corpus
from torch import Tensor

from replications.comparison import methods
from replications.pool import expand, read_pool
from shared.corpus.load import load_corpus
from shared.errors import BitlawError
from shared.evaluate.calibrate import CalibrationText, calibrated, calibration_text
from shared.evaluate.losses import evaluator, validation_windows
from shared.evaluate.ptq import Cell, measure, measure_losses, quantize, rivals
from shared.model import Decoder, Shape
from shared.model.exchange import llama_name, to_transformers
from shared.quantize.awq import awq
from shared.quantize.calibration import gathering
from shared.quantize.gptq import gptq
from shared.quantize.guided import guided_gathering, guided_gptq
from shared.quantize.quantizer import fake_quantize, named_quantizer
from shared.quantize.rtn import Rounded, round_to_nearest
from shared.quantize.sparsity import Sparsity
from shared.quantize.training import PRODUCTS, Precision
from shared.sweep import tables
from shared.sweep.kept import kept, kept_cells, kept_model
from shared.train.trunk import low_precision

ROOT = Path(__file__).parent.parent
SHAPE = Shape(n_layer=2, d_model=32, d_ff=64, head_size=16, vocabulary=128, context=32)
NAMES = [name for names in PRODUCTS.values() for name in names]


@pytest.fixture
def model() -> Decoder:
    """Weights far from their start, so that blocks do something and errors show."""
    made = Decoder(SHAPE)
    made.initialise(1)
    with torch.no_grad():
        for name, parameter in made.named_parameters():
            if name.startswith("layers.") and parameter.dim() == 2:
                parameter.mul_(6)
    return made.eval()


@pytest.fixture
def text() -> CalibrationText:
    generator = torch.Generator().manual_seed(0)
    return CalibrationText("noise-24x32", torch.randint(0, 128, (24, 33), generator=generator))


# --- text -------------------------------------------------------------------------------------------------------


def test_windows_are_training_text_in_a_fixed_order() -> None:
    train = np.arange(20_001, dtype=np.uint16)
    text = calibration_text("python", train, 200)
    assert text.name == "python-64x200"
    assert text.windows_ST.shape == (64, 201)
    starts = text.windows_ST[:, 0]
    assert len(set(starts.tolist())) == 64
    assert all(start % 200 == 0 for start in starts.tolist())
    assert torch.equal(text.windows_ST, starts.unsqueeze(1) + torch.arange(201))
    assert starts[:4].tolist() == calibration_text("python", train, 200, windows=4).windows_ST[:, 0].tolist()
    # A change of the draw changes every calibrated row: it is pinned.
    assert starts[:4].tolist() == [3200, 15200, 8000, 3800]


def test_a_short_text_gives_what_it_has() -> None:
    text = calibration_text("mine", np.arange(70, dtype=np.uint16), 16)
    assert text.name == "mine-4x16"
    assert sorted(text.windows_ST[:, 0].tolist()) == [0, 16, 32, 48]
    with pytest.raises(BitlawError, match="corpus 'mine' has 16 training tokens, a calibration window 17"):
        calibration_text("mine", np.arange(16, dtype=np.uint16), 16)


# --- methods ----------------------------------------------------------------------------------------------------


def linears(model: Decoder, number: int) -> tuple[Any, dict[str, Any]]:
    """The model as `transformers` has it, and its layers of one block by our names."""
    llama = to_transformers(model)
    return llama, {name: llama.get_submodule(llama_name(f"layers.{number}.{name}.")[:-1]) for name in NAMES}


def agreement(found: dict[str, Rounded], expected: dict[str, Tensor], number: int) -> float:
    """Share of a block's weights that are the same."""
    same = [
        ((made.weight - expected[name]).abs() <= 1e-4 * expected[name].abs().max()).flatten()
        for name, made in found.items()
        if name.startswith(f"layers.{number}.")
    ]
    return torch.cat(same).float().mean().item()


def by_hand(
    model: Decoder, method: str, text: CalibrationText, form: str, behind_quantized: bool = True
) -> dict[str, Tensor]:
    """Through hooks on another implementation of the model, one block after the other."""
    q = named_quantizer(form)
    current = Decoder(SHAPE)
    current.load_state_dict(model.state_dict())
    made: dict[str, Tensor] = {}
    for number in range(SHAPE.n_layer):
        llama, layers = linears(current, number)
        weights = {name: layer.weight.detach().clone() for name, layer in layers.items()}
        widths = {name: (w.shape[1], w.shape[0]) for name, w in weights.items()}
        if method == "guided":
            with guided_gathering(layers, widths, groups=4) as guided:
                for window_T in text.windows_ST:
                    logits_TV = llama(window_T[None, :-1]).logits[0]
                    torch.nn.functional.cross_entropy(logits_TV, window_T[1:], reduction="sum").backward()
            rounded = {
                name: guided_gptq(w, guided[name].hessians_gII, q, act_order=True).weight for name, w in weights.items()
            }
        else:
            with torch.no_grad(), gathering(layers, {name: inputs for name, (inputs, _) in widths.items()}) as seen:
                llama(text.windows_ST[:, :-1])
            if method == "gptq":
                rounded = {n: gptq(w, seen[n].hessian_II, q, act_order=True).weight for n, w in weights.items()}
            else:
                rounded = {}
                for names in PRODUCTS.values():
                    parts, _ = awq([weights[name] for name in names], seen[names[0]], q)
                    rounded |= {name: part.weight for name, part in zip(names, parts, strict=True)}
        for name, weight_OI in rounded.items():
            if behind_quantized:
                current.get_parameter(f"layers.{number}.{name}.weight").data.copy_(weight_OI)
            made[f"layers.{number}.{name}.weight"] = weight_OI
    return made


@pytest.mark.parametrize("method", ["gptq", "awq", "guided"])
def test_blocks_are_calibrated_behind_quantized_ones(model: Decoder, text: CalibrationText, method: str) -> None:
    before = {name: value.clone() for name, value in model.state_dict().items()}
    found = calibrated(model, method, named_quantizer("INT3@channel"), 3, text)
    expected = by_hand(model, method, text, "INT3@channel")
    assert set(found) == set(expected) == {f"layers.{i}.{name}.weight" for i in (0, 1) for name in NAMES}
    # Sums of other orders may move a weight that lies on an edge, and GPTQ what is corrected after it.
    assert agreement(found, expected, 0) > 0.99
    assert agreement(found, expected, 1) > 0.99
    assert all(torch.equal(before[name], value) for name, value in model.state_dict().items())
    assert all(parameter.grad is None for parameter in model.parameters())
    assert not any(".casts" in name for name, _ in model.named_modules() if not name.endswith("casts"))
    # The second block's weights are others than those behind an unquantized first one.
    alone = by_hand(model, method, text, "INT3@channel", behind_quantized=False)
    assert agreement(found, alone, 0) > 0.99
    assert agreement(found, alone, 1) < 0.97


def test_methods_lower_the_output_error_they_minimise(model: Decoder, text: CalibrationText) -> None:
    """On the first block, whose inputs no method changes."""
    llama, layers = linears(model, 0)
    with torch.no_grad(), gathering(layers, {n: layer.weight.shape[1] for n, layer in layers.items()}) as seen:
        llama(text.windows_ST[:, :-1])

    def error(method: str) -> float:
        found = quantize(model, Cell(method, "INT3", "channel"), text)
        total = 0.0
        for name in NAMES:
            d_OI = found[f"layers.0.{name}.weight"].weight - layers[name].weight.detach()
            total += (d_OI @ seen[name].hessian_II * d_OI).sum().item()
        return total

    assert error("gptq") < 0.8 * error("rtn")
    assert error("awq") < 0.95 * error("rtn")


def test_a_calibrated_row_says_what_it_saw(model: Decoder, text: CalibrationText) -> None:
    windows_ST = text.windows_ST[:8]
    losses = evaluator(model, compiled=False)
    base_S = losses(windows_ST)
    before = {name: value.clone() for name, value in model.state_dict().items()}
    row, losses_S = measure_losses(model, Cell("gptq", "INT4", "16"), losses, windows_ST, base_S, text)
    assert (row["method"], row["format"], row["bits"], row["group_size"]) == ("gptq", "INT4", 4, "16")
    assert (row["calibration"], row["bits_per_weight"]) == ("noise-24x32", 6.0)
    assert row["delta"] == pytest.approx((losses_S - base_S).mean().item())
    again = measure(model, Cell("gptq", "INT4", "16"), losses, windows_ST, base_S, text)
    assert {k: v for k, v in again.items() if k != "seconds"} == {k: v for k, v in row.items() if k != "seconds"}
    rtn = measure(model, Cell("rtn", "INT4", "16"), losses, windows_ST, base_S, text)
    assert rtn["calibration"] == "none"
    assert all(torch.equal(before[name], value) for name, value in model.state_dict().items())
    by_rounding = Decoder(SHAPE)
    by_rounding.load_state_dict(before)
    for name, parameter in by_rounding.named_parameters():
        if name.startswith("layers.") and parameter.dim() == 2:
            parameter.data.copy_(round_to_nearest(parameter.data, named_quantizer("INT4@16")).weight)
    assert rtn["loss"] == evaluator(by_rounding, compiled=False)(windows_ST).mean().item()


def test_code_books_count_what_they_cost(model: Decoder, text: CalibrationText) -> None:
    losses = evaluator(model, compiled=False)
    base_S = losses(text.windows_ST[:8])
    row = measure(model, Cell("lnq", "LUT2", "channel"), losses, text.windows_ST[:8], base_S, text)
    # Four FP16 values for each row: of 32 inputs, or of the 64 of down_proj.
    narrow, wide = 2 + 4 * 16 / 32, 2 + 4 * 16 / 64
    share = SHAPE.d_ff / (4 * SHAPE.d_model + 3 * SHAPE.d_ff)
    assert row["bits_per_weight"] == pytest.approx(narrow * (1 - share) + wide * share)
    assert row["bits"] == 2
    int2 = measure(model, Cell("rtn", "INT2", "channel"), losses, text.windows_ST[:8], base_S)
    assert float(str(row["relative_mse"])) < float(str(int2["relative_mse"]))


@pytest.mark.parametrize(
    ("cell", "sentence"),
    [
        (("gptqq", "INT4", "8"), "did you mean 'gptq'"),
        (("lnq", "INT4", "channel"), "lnq makes LUT1 to LUT8 per channel, not INT4"),
        (("lnq", "LUT4", "8"), "in groups of 8"),
        (("gptq", "LUT4", "channel"), "format 'LUT4' is unknown"),
    ],
)
def test_bad_cells(cell: tuple[str, str, str], sentence: str) -> None:
    with pytest.raises(BitlawError, match=sentence):
        Cell(*cell)


def test_what_a_method_cannot_do_is_said(model: Decoder, text: CalibrationText) -> None:
    with pytest.raises(BitlawError, match="method awq needs calibration text"):
        quantize(model, Cell("awq", "INT4", "8"), None)
    trained = low_precision(SHAPE, Precision(weights="INT4@channel"), Sparsity())
    trained.initialise(1)
    with pytest.raises(BitlawError, match="trained unquantized, block 0"):
        quantize(trained, Cell("gptq", "INT4", "8"), text)
    model.get_parameter("layers.1.o_proj.weight").data[0, 0] = torch.nan
    with pytest.raises(BitlawError, match="NaN"):
        quantize(model, Cell("gptq", "INT4", "8"), text)


def test_nf4_in_the_blocks_of_bitsandbytes() -> None:
    cells = [c for c in expand("cpu", "c" * 64).cells.values() if Cell("rtn", "NF4", "64") in c]
    assert len(cells) == 6 * 2 * 5  # sizes, phases, horizons from 2M tokens on
    shape = Shape(n_layer=1, d_model=64, d_ff=192, head_size=32, vocabulary=64, context=16)
    model = Decoder(shape)
    model.initialise(1)
    for name, made in quantize(model, Cell("rtn", "NF4", "64"), None).items():
        # bitsandbytes cuts the flat matrix, whatever its rows: the same blocks where 64 divides a row.
        flat = fake_quantize(model.get_parameter(name).detach().reshape(-1, 64), named_quantizer("NF4@channel"))
        assert torch.equal(made.weight.reshape(-1, 64), flat), name
        assert made.bits_per_weight == 4.5


@pytest.mark.skipif(not (ROOT / "data/python/val.bin").exists(), reason="data/ is not built")
def test_calibration_helps_a_trained_checkpoint() -> None:
    """The smallest committed one at 2 bits, where the methods are far apart."""
    folder = ROOT / "reports" / "checkpoints"
    run = min(kept(folder).values(), key=lambda r: (r.spec.shape.n_blocks, r.spec.tokens, r.spec.cooled))
    corpus = load_corpus("python", ROOT)
    model = kept_model(folder, run.spec.run_id)
    windows_ST = validation_windows(corpus.val, 256, 16 * 256)
    text = calibration_text("python", corpus.train, 256, windows=16)
    losses = evaluator(model, compiled=False)
    base_S = losses(windows_ST)
    delta = {
        method: float(str(measure(model, Cell(method, "INT2", "32"), losses, windows_ST, base_S, text)["delta"]))
        for method in ("rtn", "gptq", "awq")
    }
    assert 0 < delta["gptq"] < delta["rtn"]
    assert 0 < delta["awq"] < delta["rtn"]


# --- the pool ---------------------------------------------------------------------------------------------------


def test_methods_are_measured_on_plain_runs_of_one_seed() -> None:
    cpu = expand("cpu", "c" * 64)
    kinds = {
        (cell.method, run.spec == run.spec.base, run.spec.seed)
        for run in cpu.runs
        for cell in cpu.cells.get(run.spec.run_id, [])
    }
    assert {kind[1:] for kind in kinds if kind[0] != "rtn"} == {(True, 1)}
    first = next(run for run in cpu.runs if run.spec == run.spec.base and run.spec.seed == 1)
    cells = cpu.cells[first.spec.run_id]
    assert len(cells) == len(set(cells))
    compared = rivals(cells)
    for size in ("channel", "32"):
        for bits in range(2, 9):
            same = {c.method for c in compared if (c.bits, c.group_size) == (bits, size)}
            assert same >= {"rtn", "gptq", "awq"}, (bits, size)
    assert Cell("rtn", "INT4", "16") not in compared


def test_papers_name_their_methods() -> None:
    for paper, wanted in (("kumar_precision", {"gptq", "awq"}), ("undertrained_qid", {"gptq", "awq"})):
        for profile in ("micro", "cpu"):
            part = expand(profile, "c" * 64, paper=paper)
            found = {cell.method for cells in part.cells.values() for cell in cells}
            assert found == {"rtn", *wanted}, (paper, profile)


def test_a_group_that_does_not_divide_is_said_before_anything_runs(tmp_path: Path) -> None:
    path = tmp_path / "pool.yaml"
    source = (ROOT / "replications" / "pool.yaml").read_text()
    old = 'formats: [INT2, INT4], group_sizes: [channel, "8"]'
    assert old in source
    path.write_text(source.replace(old, old.replace('"8"', '"64"')))
    with pytest.raises(BitlawError, match="groups of 64 do not divide the 32 inputs of a matrix of size X"):
        expand("micro", "c" * 64, pool=read_pool(path))


def bitlaw(root: Path, *arguments: str) -> str:
    where = ["--corpus", "sample", "--reports", str(root / "reports"), "--build", str(root / "build")]
    where += ["--workers", "1"] if arguments[0] != "keep" else []
    done = subprocess.run(
        [sys.executable, "-m", "replications.cli", *arguments, *where],
        cwd=root, env=os.environ | {"PYTHONPATH": str(ROOT)}, capture_output=True, text=True,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    return done.stdout


def content(path: Path) -> list[dict[str, str]]:
    with path.open(newline="") as opened:
        return [{k: v for k, v in row.items() if k not in tables.UNREPEATABLE} for row in csv.DictReader(opened)]


def test_a_fresh_clone_measures_the_kept_checkpoints(tmp_path: Path) -> None:
    origin, clone = tmp_path / "origin", tmp_path / "clone"
    make_corpus(origin)
    bitlaw(origin, "train", "micro")
    bitlaw(origin, "keep", "micro")
    bitlaw(origin, "measure", "micro", "--paper", "kumar_precision")
    shutil.copytree(origin / "reports", clone / "reports")
    shutil.copytree(origin / "build" / "corpora", clone / "build" / "corpora")
    (clone / "reports" / "measurements.csv").unlink()
    folder = clone / "reports" / "checkpoints"
    ids = set(kept(folder))
    assert len(ids) == 2
    assert "12 cells to measure on 2 checkpoints" in bitlaw(clone, "measure", "micro", "--checkpoints", str(folder))
    assert content(clone / "reports" / "runs.csv") == content(origin / "reports" / "runs.csv")
    measured = content(clone / "reports" / "measurements.csv")
    assert measured == [row for row in content(origin / "reports" / "measurements.csv") if row["run_id"] in ids]
    assert {row["calibration"] for row in measured if row["method"] != "rtn"} == {"sample-64x64"}
    for run_id in ids:
        assert set(kept_cells(folder, run_id)) == {f"{m}-INT2-channel" for m in ("rtn", "gptq", "awq")}
    assert "0 cells to measure" in bitlaw(clone, "measure", "micro", "--checkpoints", str(folder))
    found = methods.tables(clone / "reports")
    assert found["status"] == "measured"
    assert {row["run_id"] for row in found["rows"]} == ids
    assert found["without_losses"] == 0
    # Rows without losses are measured again, and come out the same.
    (folder / f"{min(ids)}.cells.npz").unlink()
    shutil.rmtree(clone / "build" / "runs")
    assert "3 cells to measure on 1" in bitlaw(clone, "measure", "micro", "--checkpoints", str(folder))
    assert content(clone / "reports" / "measurements.csv") == measured
    assert methods.tables(clone / "reports") == found


# --- who wins ---------------------------------------------------------------------------------------------------


def reports_with(root: Path, deltas: dict[Cell, np.ndarray], bits_per_weight: dict[Cell, float]) -> Path:
    """One kept checkpoint with these deltas by sequence."""
    folder = root / "checkpoints"
    folder.mkdir()
    with (folder / "0123456789ab.cells.npz").open("wb") as opened:
        np.savez(opened, **{cell.name: value.astype(np.float32) for cell, value in deltas.items()})  # type: ignore[arg-type]
    rows = [
        {
            "run_id": "0123456789ab", "size": "S", "n_blocks": 106_496, "tokens": 2**20, "cooled": True,
            "method": cell.method, "format": cell.format, "group_size": cell.group_size,
            "bits": cell.bits, "bits_per_weight": bits_per_weight[cell], "activation_format": "none",
            "kv_format": "none", "calibration": "python-64x256", "delta": float(value.astype(np.float32).mean()),
        }
        for cell, value in deltas.items()
    ]  # fmt: skip
    tables.add_measurements(root, rows)
    return root


RTN, GPTQ, AWQ = (Cell(method, "INT3", "channel") for method in ("rtn", "gptq", "awq"))
LNQ = Cell("lnq", "LUT3", "channel")
SAME = {RTN: 3.4, GPTQ: 3.4, AWQ: 3.4, LNQ: 4.7}


def simulated(levels: dict[Cell, float], own: float = 0.05) -> dict[Cell, np.ndarray]:
    """Sequences share an error of .5; a method has one of its own."""
    generator = np.random.default_rng(0)
    common = generator.normal(0, 0.5, 1024)
    return {cell: level + common + generator.normal(0, own, 1024) for cell, level in levels.items()}


def test_a_difference_is_judged_on_the_same_sequences(tmp_path: Path) -> None:
    deltas = simulated({RTN: 0.32, GPTQ: 0.30, AWQ: 0.28, LNQ: 0.1})
    (row,) = methods.tables(reports_with(tmp_path, deltas, SAME))["rows"]
    assert (row["winner"], row["real"], row["bits"], row["phase"]) == ("awq", True, 3, "cooled")
    # The intervals of the deltas themselves overlap: only pairing tells them apart.
    assert row["methods"]["awq"]["high"] > row["methods"]["rtn"]["low"]
    assert not row["methods"]["lnq"]["competes"]
    assert set(row["pairs"]) == {"awq - gptq", "awq - rtn", "gptq - rtn"}
    ends = row["pairs"]["awq - rtn"]
    difference = deltas[AWQ] - deltas[RTN]
    assert ends["value"] == pytest.approx(difference.mean(), abs=1e-6)
    # 2.394 standard errors: 95 % for three intervals together.
    assert ends["high"] - ends["value"] == pytest.approx(2.394 * difference.std(ddof=1) / 32, rel=1e-3)


def test_a_winner_by_chance_is_not_real(tmp_path: Path) -> None:
    deltas = simulated({RTN: 0.3, GPTQ: 0.3, AWQ: 0.5})
    found = methods.tables(reports_with(tmp_path, deltas, SAME))
    assert found["rows"][0]["real"] is False
    assert found["wins"] == [
        {
            "bits": 3,
            "group_size": "channel",
            "checkpoints": 1,
            "winners": {found["rows"][0]["winner"]: {"won": 1, "real": 0}},
        }
    ]
    target = methods.write_methods(tmp_path)
    assert target == tmp_path / "comparison" / "methods.json"
    assert next(methods.lines(target)).startswith("3 bits, channel: of 1 checkpoints ")


def test_losses_of_another_measurement_are_said(tmp_path: Path) -> None:
    deltas = simulated({RTN: 0.3, GPTQ: 0.2})
    reports_with(tmp_path, deltas, SAME)
    assert methods.tables(tmp_path)["status"] == "measured"
    (path,) = (tmp_path / "checkpoints").glob("*.npz")
    with path.open("wb") as opened:
        np.savez(opened, **{cell.name: value + 0.01 for cell, value in deltas.items()})  # type: ignore[arg-type]
    with pytest.raises(BitlawError, match=r"adds .*, measurements\.csv says"):
        methods.tables(tmp_path)


def test_nothing_measured_needs_runs(tmp_path: Path) -> None:
    assert methods.tables(tmp_path)["status"] == "needs runs"
    target = methods.write_methods(reports_with(tmp_path, simulated({RTN: 0.3}), SAME))
    assert next(methods.lines(target)).startswith("needs runs")
