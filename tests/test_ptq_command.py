"""`bitlaw ptq` on tiny models of three architectures, offline; its parts against slow definitions.

Shape letters: O outputs, I inputs, S windows, B windows of a batch, T positions, R rows (tokens), g groups of outputs.
"""

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
import torch
import typer
from ptq_models import CONTEXT, VOCABULARY, folder, text, tokenizer
from ptq_models import model as random_model
from torch import Tensor, nn
from torch.nn import functional as F
from typer.testing import CliRunner, Result

from replications.commands import ptq as command
from replications.penalty import effective_size, penalties
from shared.errors import BitlawError
from shared.files import write_json
from shared.laws.chinchilla import LAW
from shared.laws.fit import fit
from shared.ptq import cost
from shared.ptq.cells import Cell, Results, check_groups, expand, sorted_out, window_losses
from shared.ptq.layers import block_list, left_alone, listed, matrices, tied, weight_OI
from shared.ptq.methods import METHODS, Known, Method
from shared.ptq.models import find_model, open_model
from shared.ptq.sequential import Stream, guiding, quantize, root_saliencies
from shared.ptq.text import cut, from_dataset, from_files, spread
from shared.quantize import Quantizer, fake_quantize
from shared.quantize.quantizer import named_quantizer
from shared.quantize.rtn import Rounded, round_to_nearest

KINDS = ("gpt2", "llama", "gpt_neox")
CPU = torch.device("cpu")
SMALL = ("--context", CONTEXT, "--calibration", 6, "--windows", 8)


@pytest.fixture(autouse=True)
def one_thread() -> None:
    torch.set_num_threads(1)


@pytest.fixture(scope="module")
def folders(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    parent = tmp_path_factory.mktemp("models")
    return {"text": text(parent / "words.txt"), **{kind: folder(parent, kind) for kind in KINDS}}


def app() -> typer.Typer:
    commands = typer.Typer()
    commands.command(cls=command.Lists)(command.ptq)
    return commands


def run(*words: object) -> Result:
    return CliRunner().invoke(app(), [str(word) for word in words])


def sound(*words: object) -> str:
    result = run(*words)
    if result.exception:
        raise result.exception
    return result.output


def sentence(*words: object) -> str:
    """What a user reads of a run that ends in bad input."""
    error = run(*words).exception
    assert isinstance(error, BitlawError), error
    assert "\n" not in str(error)
    return str(error)


def no_tell() -> None:
    pass


def windows(folders: dict[str, Path], kind: str = "llama") -> Any:
    return from_files([folders["text"]], tokenizer(), CONTEXT, 6, 8)


@pytest.mark.parametrize("kind", KINDS)
def test_every_architecture(folders: dict[str, Path], kind: str, tmp_path: Path) -> None:
    """Cells, laws, table and figure; and round-to-nearest is what it says, matrix by matrix."""
    out = tmp_path / "out"
    sound(
        folders[kind], "--text", folders["text"], *SMALL, "--methods", "rtn", "gptq,awq", "--formats", "INT4", "INT3",
        "INT2", "--groups", 8, "--out", out,
    )  # fmt: skip
    results = json.loads((out / "results.json").read_text())
    table = pd.read_csv(out / "table.csv").set_index("cell")
    assert len(table) == 9
    assert {law["law"] for law in results["penalty_laws"]} == {"kumar_eq2", "ouyang_bits", "page_simple"}
    assert (out / "delta.svg").stat().st_size > 1000
    deltas = table["delta"].to_numpy()
    assert np.allclose(table["loss"] - results["base"]["loss"], deltas, atol=2e-5)
    assert (table["bits_per_weight"] == table["bits"] + 4).all()  # an FP32 scale for each 8

    # Round-to-nearest by hand, in a freshly opened model, and its loss by transformers' own formula.
    from transformers import AutoModelForCausalLM
    from transformers.pytorch_utils import Conv1D

    loaded = AutoModelForCausalLM.from_pretrained(folders[kind])
    q = named_quantizer("INT3@8")
    changed = 0
    with torch.no_grad():
        for name, layer in loaded.named_modules():
            if isinstance(layer, nn.Linear | Conv1D) and name != "lm_head":
                w = layer.weight
                w.copy_(fake_quantize(w, q) if isinstance(layer, nn.Linear) else fake_quantize(w.T, q).T)
                changed += w.numel()
        losses = [float(loaded(input_ids=ids[None], labels=ids[None]).loss) for ids in windows(folders).evaluation]
    assert changed == results["N"]
    assert table.loc["rtn-INT3-8", "loss"] == pytest.approx(np.mean(losses), abs=1e-5)
    assert table.loc["rtn-INT3-8", "loss_se"] == pytest.approx(np.std(losses, ddof=1) / len(losses) ** 0.5, rel=1e-3)


def keeping(inputs: dict[str, Tensor], name: str) -> Any:
    return lambda _, arguments: inputs.__setitem__(name, arguments[0])


@pytest.mark.parametrize("kind", KINDS)
def test_hessians_are_those_of_the_model_quantized_so_far(folders: dict[str, Path], kind: str) -> None:
    """Block by block with kept activations, in uneven batches, against whole passes of a half quantized model."""
    source = find_model(str(folders[kind]))
    q = named_quantizer("INT2@channel")
    seen: list[tuple[Tensor, list[tuple[int, ...]]]] = []

    def spy(weights_OI: Any, known: Known, quantizer: Quantizer | None, seed: int) -> list[Rounded]:
        seen.append((known.hessian_II, [tuple(weight.shape) for weight in weights_OI]))
        return [round_to_nearest(weight, q) for weight in weights_OI]

    method = Method("spy", "", "inputs", spy, lambda _: None, METHODS["rtn"].work)
    ids_ST = windows(folders).calibration
    quantize(open_model(source, CPU), method, q, ids_ST, 4, with_head=True, tell=no_tell)

    slow = open_model(source, CPU)
    _, blocks = block_list(slow)
    expected: list[Tensor] = []
    with torch.no_grad():
        for number, block in enumerate([*blocks, None]):
            layers = matrices(block) if block is not None else {"head": slow.get_output_embeddings()}
            inputs: dict[str, Tensor] = {}
            handles = [layer.register_forward_pre_hook(keeping(inputs, name)) for name, layer in layers.items()]
            slow(input_ids=ids_ST, use_cache=False)
            for handle in handles:
                handle.remove()
            ids: list[int] = []
            for x in inputs.values():
                if id(x) not in ids:
                    ids.append(id(x))
                    x_RI = x.flatten(0, -2)
                    expected.append(x_RI.T @ x_RI / len(x_RI))
            for layer in layers.values():
                weight_OI(layer).copy_(fake_quantize(weight_OI(layer), q))
            assert number < 3
    assert len(seen) == len(expected)
    for (hessian_II, _), slow_II in zip(seen, expected, strict=True):
        torch.testing.assert_close(hessian_II, slow_II, rtol=1e-3, atol=1e-4)
    if kind == "llama":  # queries, keys and values read one input
        assert [len(shapes) for _, shapes in seen] == [3, 1, 2, 1] * 2 + [1]


def test_guided_hessians_are_eq_7(folders: dict[str, Path]) -> None:
    """Of the first block: inputs and gradients of one pass over all windows, squared, averaged and multiplied."""
    source = find_model(str(folders["llama"]))
    model = open_model(source, CPU)
    ids_ST = windows(folders).calibration
    roots = root_saliencies(model, ids_ST, False)
    prefix, blocks = block_list(model)
    stream = Stream(model, prefix, blocks, ids_ST, 4, roots)
    name = "mlp.gate_proj"
    layer = matrices(blocks[0])[name]
    with torch.no_grad(), guiding({name: layer}, roots, f"{prefix}.0.") as found:
        for state in stream.states_BTC:
            stream.run(0, state)
    kept: list[Tensor] = []

    def keep(_layer: nn.Module, arguments: tuple[Tensor, ...], z: Tensor) -> None:
        z.retain_grad()
        kept.extend((arguments[0], z))

    handle = layer.register_forward_hook(keep)
    model.requires_grad_(True)
    logits = model(input_ids=ids_ST, use_cache=False).logits
    F.cross_entropy(logits[:, :-1].flatten(0, 1), ids_ST[:, 1:].flatten(), reduction="sum").backward()
    handle.remove()
    x_RI, grad = kept[0].flatten(0, 1), kept[1].grad
    assert grad is not None
    s_Rg = grad.flatten(0, 1).unflatten(-1, (4, -1)).square().mean(-1)
    expected_gII = torch.einsum("ri,rg,rj->gij", x_RI, s_Rg, x_RI).detach() / len(x_RI)
    torch.testing.assert_close(found[name].hessians_gII, expected_gII, rtol=1e-3, atol=1e-6)


def test_every_method_runs(folders: dict[str, Path], tmp_path: Path) -> None:
    """Also on the head; pruning alone and with rounding."""
    out = tmp_path / "out"
    begin = (folders["gpt2"], "--text", folders["text"], *SMALL, "--out", out, "--head")
    sound(*begin, "--methods", "guided", "lnq", "gptq_act_order", "sparsegpt_2_4", "--formats", "INT4")
    assert len(pd.read_csv(out / "table.csv")) == 4
    sound(*begin, "--methods", "magnitude", "magnitude_2_4", "sparsegpt", "--formats", "none", "--save",
          "magnitude_2_4-none-channel")  # fmt: skip
    table = pd.read_csv(out / "table.csv").set_index("method")
    assert table.loc["sparsegpt", "loss"] != table.loc["magnitude", "loss"]
    assert (table["bits_per_weight"] == 9).all()  # half of 16, and a bit of mask

    from safetensors.torch import load_file

    saved = load_file(out / "models" / "magnitude_2_4-none-channel" / "model.safetensors")
    weight_OI = saved["transformer.h.0.mlp.c_fc.weight"].T  # Conv1D has inputs first
    assert ((weight_OI.unflatten(-1, (-1, 4)) == 0).sum(-1) == 2).all()


def test_a_folder_never_mixes_settings(folders: dict[str, Path], tmp_path: Path) -> None:
    begin = (
        folders["llama"],
        "--text",
        folders["text"],
        "--methods",
        "rtn",
        "--formats",
        "INT4",
        "--out",
        tmp_path / "o",
    )
    sound(*begin, *SMALL)
    assert "another calibration windows (6, not 5)" in sentence(*begin, *SMALL, "--calibration", 5)
    assert "another context (32, not 16)" in sentence(*begin, *SMALL, "--context", 16)
    assert "another windows (8, not 7)" in sentence(*begin, *SMALL, "--windows", 7)
    assert "another head" in sentence(*begin, *SMALL, "--head")
    assert "another head" in sentence(*begin, *SMALL, "--head", "--dry-run")
    other = tmp_path / "other.txt"
    other.write_text(folders["text"].read_text()[::-1])
    elsewhere = ("--text", other, "--methods", "rtn", "--formats", "INT4", "--out", tmp_path / "o")
    refused = run(folders["llama"], *elsewhere, *SMALL)
    assert f"another text ({folders['text']}, not {other})" in str(refused.exception)
    assert "memory:" not in refused.output  # before the cost is shown
    other.write_text(folders["text"].read_text())  # the same text under another name
    sound(folders["llama"], *elsewhere, *SMALL)
    other.write_text(folders["text"].read_text()[::-1])
    sound(folders["llama"], *elsewhere, *SMALL, "--out", tmp_path / "p")
    other.write_text(folders["text"].read_text())
    said = sentence(folders["llama"], *elsewhere, *SMALL, "--out", tmp_path / "p")
    assert "another text (its content is not that of the text before)" in said


def test_llm_int8_rounds_activations(folders: dict[str, Path], tmp_path: Path) -> None:
    out = tmp_path / "out"
    sound(folders["gpt2"], "--text", folders["text"], *SMALL, "--methods", "llm_int8", "rtn", "--formats", "INT8",
          "--out", out)  # fmt: skip
    rows = pd.read_csv(out / "table.csv").set_index("method")
    assert rows.loc["llm_int8", "relative_mse"] == pytest.approx(rows.loc["rtn", "relative_mse"], rel=0.1)
    assert rows.loc["llm_int8", "loss"] != rows.loc["rtn", "loss"]


def test_resumes_by_cell(folders: dict[str, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Ctrl-C in the second cell loses that cell only; the rest is not measured again."""
    out = tmp_path / "out"
    words = (folders["llama"], "--text", folders["text"], *SMALL, "--methods", "rtn", "--formats", "INT4,INT3,INT2",
             "--out", out)  # fmt: skip
    calls: list[str] = []

    def interrupted(model: Any, windows_ST: Tensor, batch: int, tell: Any) -> Tensor:
        calls.append("")
        if len(calls) == 3:
            raise KeyboardInterrupt
        return window_losses(model, windows_ST, batch, tell)

    monkeypatch.setattr("shared.ptq.cells.window_losses", interrupted)
    assert run(*words).exit_code == 130
    assert [path.name for path in (out / "cells").iterdir()] == ["rtn-INT4-channel.json"]
    before = (out / "cells" / "rtn-INT4-channel.json").stat().st_mtime_ns
    sound(*words)
    assert len(calls) == 5  # the base and one cell; the interrupted one; two more
    assert (out / "cells" / "rtn-INT4-channel.json").stat().st_mtime_ns == before
    sound(*words)
    assert len(calls) == 5
    assert len(pd.read_csv(out / "table.csv")) == 3


@pytest.mark.parametrize("kind", ["gpt2", "gpt_neox"])
def test_a_saved_model_has_the_measured_loss(folders: dict[str, Path], tmp_path: Path, kind: str) -> None:
    from transformers import AutoModelForCausalLM, AutoTokenizer

    out = tmp_path / "out"
    sound(folders[kind], "--text", folders["text"], *SMALL, "--methods", "gptq", "--formats", "INT3", "--out", out,
          "--save", "gptq-INT3-channel", "--head")  # fmt: skip
    saved = out / "models" / "gptq-INT3-channel"
    assert [path.name for path in saved.parent.iterdir()] == [saved.name]
    found = from_files([folders["text"]], AutoTokenizer.from_pretrained(saved), CONTEXT, 6, 8).evaluation
    loaded, about = AutoModelForCausalLM.from_pretrained(saved, output_loading_info=True)
    assert not about["missing_keys"]
    row = pd.read_csv(out / "table.csv").iloc[0]
    assert window_losses(loaded.eval(), found, 8, no_tell).mean().item() == pytest.approx(row["loss"], abs=1e-5)
    assert len(set(weight_OI(loaded.get_output_embeddings())[0].tolist())) <= 7


def test_head_and_embedding_are_left_alone_unless_asked() -> None:
    for kind in KINDS:
        model = random_model(kind, tied=True)
        assert tied(model)
        plain = {matrix.name for matrix in listed(model, False)}
        more = {matrix.name for matrix in listed(model, True)} - plain
        assert len(plain) == {"gpt2": 8, "llama": 14, "gpt_neox": 8}[kind]
        assert more == {"lm_head"}
        assert left_alone(model) == 0


def test_nf4_is_a_format_and_presets_have_their_group() -> None:
    cells = expand(["rtn", "gptq"], ["NF4", "MXFP4", "INT3:mse"], ["channel", "64"])
    assert [cell.name for cell in cells[:4]] == [
        "rtn-NF4-channel",
        "rtn-NF4-64",
        "rtn-MXFP4-32",
        "rtn-INT3:mse-channel",
    ]
    assert len(cells) == 10
    assert str(cells[4].quantizer) == "INT3@64:mse"
    assert cells[3].file == "rtn-INT3_mse-channel"


def test_cells_that_make_no_sense_are_left_out(folders: dict[str, Path], tmp_path: Path) -> None:
    cells, left_out = sorted_out(["rtn", "magnitude", "lnq"], ["NF4", "none"], ["64"])
    assert [cell.name for cell in cells] == ["rtn-NF4-64", "magnitude-NF4-64", "magnitude-none-channel"]
    assert [cell.name for cell in left_out] == ["rtn-none-channel", "lnq-NF4-64", "lnq-none-channel"]
    with pytest.raises(BitlawError, match="method rtn does not take none"):
        expand(["rtn", "magnitude"], ["NF4", "none"], ["64"])
    out = tmp_path / "out"
    words = ("--text", folders["text"], *SMALL, "--formats", "INT4", "none", "--out", out)
    said = sound(folders["llama"], *words, "--methods", "rtn", "magnitude")
    assert "left out, 1 of 4 cells: rtn-none-channel (16 bits or more leave nothing to quantize)" in said
    assert len(pd.read_csv(out / "table.csv")) == 3


def test_too_little_text_is_told(folders: dict[str, Path], tmp_path: Path) -> None:
    short = text(tmp_path / "short.txt", 200)
    words = ("--methods", "rtn", "--formats", "INT4", "--out", tmp_path / "out", "--dry-run")
    said = sound(folders["llama"], "--text", short, *SMALL, *words)
    assert f"{short}: has text for 3 of 6 windows to calibrate and 3 of 8 windows to measure (32 tokens each)" in said
    assert "warning" not in sound(folders["llama"], "--text", folders["text"], *SMALL, *words)


def test_text_is_cut_without_overlap() -> None:
    tokens = np.arange(1000)
    for lead in ([], [7777]):
        found = cut(tokens, lead, 32, 10, 5, "text")
        assert found.calibration.shape == (10, 32)
        assert found.evaluation.shape == (5, 33)
        assert not {*found.calibration.flatten().tolist()} & ({*found.evaluation.flatten().tolist()} - {*lead})
        if lead:
            assert (found.calibration[:, 0] == 7777).all()
            assert (found.evaluation[:, 0] == 7777).all()
    short = cut(np.arange(97), [], 32, 10, 5, "text")
    assert (len(short.calibration), len(short.evaluation)) == (1, 2)
    with pytest.raises(BitlawError, match="smaller --context"):
        cut(np.arange(96), [], 32, 10, 5, "text")
    assert spread(tokens, [], 32, 3, 1, "text")[:, 0].tolist() == [0, 320, 640]


def test_a_data_set_of_two_parts_calibrates_on_one(tmp_path: Path) -> None:
    for part, letter in (("train", "a"), ("test", "b")):
        (tmp_path / f"{part}.jsonl").write_text("".join(json.dumps({"text": letter * 50}) + "\n" for _ in range(20)))
    found = from_dataset(str(tmp_path), tokenizer(), 32, 4, 5)
    letters = tokenizer()("ab", add_special_tokens=False)["input_ids"]
    assert {*found.calibration.flatten().tolist()} == {letters[0], 256}
    assert {*found.evaluation.flatten().tolist()} == {letters[1], 256}


def test_dry_run_opens_no_weights(folders: dict[str, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def never(*_: object) -> None:
        raise AssertionError

    monkeypatch.setattr("shared.ptq.models.open_model", never)
    out = tmp_path / "out"
    said = sound(folders["gpt2"], "--text", folders["text"], *SMALL, "--dry-run", "--out", out)
    assert not out.exists()
    assert "memory:" in said
    assert "12 cells" in said


def test_the_anatomy_of_an_empty_model(folders: dict[str, Path]) -> None:
    """Shapes and shared inputs without weights are those of the model itself."""
    for kind in KINDS:
        source = find_model(str(folders[kind]))
        body = cost.anatomy(source, False)
        model = open_model(source, CPU)
        assert body.matrices == listed(model, False) if kind != "llama" else len(body.matrices) == 14
        assert body.total == sum(p.numel() for p in model.parameters())
        assert body.vocabulary == VOCABULARY
        sizes = {"gpt2": [1, 1, 1, 1], "llama": [3, 1, 2, 1], "gpt_neox": [1, 1, 1, 1]}[kind]
        assert [len(group) for group in body.groups[1]] == sizes


CHILD = """
import sys, torch
from pathlib import Path
torch.set_num_threads(1)
sys.path.insert(0, "tests")
from replications.commands.ptq import ptq
model, text, out, method, form, group, windows, context = sys.argv[1:]
ptq(model=model, text=[Path(text)], methods=[method], formats=[form], groups=[group], calibration=int(windows),
    windows=4, context=int(context), out=Path(out))
"""


def shares_of_memory(model: Path, words: Path, out: Path, *cell: object) -> float:
    """Measured over predicted, both beyond what the process has before the model is opened, which would hide it."""
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "HF_HUB_OFFLINE": "1"}
    arguments = [str(word) for word in (model, words, out, *cell)]
    subprocess.run(
        [sys.executable, "-c", CHILD, *arguments], env=environment, check=True, capture_output=True, text=True
    )
    found = json.loads((out / "results.json").read_text())["memory"]
    base = found["baseline_bytes"]
    return float((found["measured_bytes"] - base) / (found["predicted_bytes"] - base))


@pytest.mark.parametrize(("method", "layers"), [("gptq", 2), ("awq", 1), ("rtn", 2), ("guided", 1)])
def test_memory_is_predicted(folders: dict[str, Path], tmp_path: Path, method: str, layers: int) -> None:
    path = folder(tmp_path, "llama", layers=layers, width=1024)
    cell = (method, "INT4", 32, 12, 64)
    assert shares_of_memory(path, folders["text"], tmp_path / "out", *cell) == pytest.approx(1, abs=0.2)


@pytest.mark.parametrize("kind", ["gpt2", "llama"])
def test_memory_of_many_windows_is_predicted(tmp_path: Path, kind: str) -> None:
    """Most of it kept activations: 62 MiB."""
    path = folder(tmp_path, kind, layers=2, width=256)
    words = text(tmp_path / "long.txt", 66_000)
    cell = ("gptq", "INT4", 32, 2000, 32)
    assert shares_of_memory(path, words, tmp_path / "out", *cell) == pytest.approx(1, abs=0.2)


@pytest.mark.parametrize(
    ("kind", "method", "form"),
    [("gpt2", "sparsegpt", "none"), ("llama", "magnitude", "none"), ("gpt2", "llm_int8", "INT8")],
)
def test_memory_of_other_methods_is_predicted(
    folders: dict[str, Path], tmp_path: Path, kind: str, method: str, form: str
) -> None:
    path = folder(tmp_path, kind, layers=2, width=768)
    cell = (method, form, "channel", 12, 32)
    assert shares_of_memory(path, folders["text"], tmp_path / "out", *cell) == pytest.approx(1, abs=0.2)


def test_nothing_but_our_own_words_on_standard_error(folders: dict[str, Path], tmp_path: Path) -> None:
    """transformers imports torchao, which says up to four lines of itself."""
    words = [str(word) for word in (folders["gpt2"], "--text", folders["text"], *SMALL, "--methods", "rtn",
             "--formats", "INT4", "--out", tmp_path / "out")]  # fmt: skip
    made = subprocess.run(
        [sys.executable, "-m", "replications.cli", "ptq", *words],
        env={**os.environ, "HF_HUB_OFFLINE": "1"}, check=True, capture_output=True, text=True,
    )  # fmt: skip
    assert made.stderr.splitlines() == ["unquantized", "rtn-INT4-channel"]
    subject = "import replications.precision_predictor.subject as s; s.committed_tokenizer(); import torchao"
    made = subprocess.run(
        [sys.executable, "-c", subject + "; from transformers import LlamaForCausalLM"],
        check=True, capture_output=True, text=True,
    )  # fmt: skip
    assert made.stderr == ""


def test_penalty_laws_find_what_is_there() -> None:
    rows = [
        {"method": "rtn", "format": f"INT{bits}", "group_size": "channel", "bits": float(bits), "loss": 3 + delta,
         "delta": delta, "delta_se": 1e-5}
        for bits in (2, 3, 4, 5, 6)
        for delta in [7.0 * np.exp(-bits / 0.8)]
    ]  # fmt: skip
    rows.append({**rows[0], "format": "NF4", "bits": 4.0, "delta": 99.0})  # another kind, and too few
    found = {law["law"]: law for law in penalties(rows, 3.0)}
    assert len(found) == 3
    assert found["kumar_eq2"]["constants"]["gamma_post"]["value"] == pytest.approx(0.8, rel=1e-4)
    assert found["kumar_eq2"]["constants"]["C_T"]["value"] == pytest.approx(7.0, rel=1e-3)
    assert set(found["page_simple"]["constants"]) == {"eta", "delta"}


@pytest.fixture(scope="module")
def base_law(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A law that every loss of a random model is within reach of."""
    grid = [(N, D) for N in (1e3, 1e4, 1e5, 1e6) for D in (1e6, 1e7, 1e8)]
    table = pd.DataFrame(grid, columns=["N", "D"])
    table["loss"] = 40 / table.N**0.15 + 200 / table.D**0.37 + 1.0
    path = tmp_path_factory.mktemp("law") / "fit.json"
    write_json(path, fit(LAW, table, n_boot=20, n_starts=16).to_json())
    return path


def test_effective_size(folders: dict[str, Path], tmp_path: Path, base_law: Path) -> None:
    out = tmp_path / "out"
    words = (folders["llama"], "--text", folders["text"], *SMALL, "--methods", "rtn", "--formats", "INT2", "--out", out)
    assert "give --D" in sentence(*words, "--base-law", base_law)
    sound(*words, "--base-law", base_law, "--D", 1e7)
    row = pd.read_csv(out / "table.csv").iloc[0]
    assert 40 / row["n_eff"] ** 0.15 + 200 / 1e7**0.37 + 1.0 == pytest.approx(row["loss"], rel=1e-3)
    assert (row["n_eff_share"] < 1) == (row["delta"] > 0)
    result = fit(LAW, _law_table(), n_boot=20, n_starts=16)
    assert effective_size(LAW, result, 0.5, 1e7) == {"value": None, "low": None, "high": None}  # below it at any N
    size = effective_size(LAW, result, 9.0, 1e7)
    assert size["low"] <= size["value"] <= size["high"] < 2 * size["low"]  # type: ignore[operator]


def _law_table() -> pd.DataFrame:
    table = pd.DataFrame([(N, D) for N in (1e3, 1e4, 1e5) for D in (1e6, 1e7, 1e8)], columns=["N", "D"])
    return table.assign(loss=40 / table.N**0.15 + 200 / table.D**0.37 + 1.0)


# Errors -------------------------------------------------------------------------------------------------------------


def test_sentences_about_words(folders: dict[str, Path], tmp_path: Path) -> None:
    llama, words = folders["llama"], ("--text", folders["text"], *SMALL, "--out", tmp_path / "out")
    assert "did you mean 'gptq'" in sentence(llama, *words, "--methods", "gptqq")
    for form in ("nf4", "INT4", "mxfp4"):
        assert f"'{form}' is a format, no method: give --formats {form.upper()}" in sentence(
            llama, *words, "--methods", form
        )
    assert "INT4" in sentence(llama, *words, "--formats", "INTT4")
    assert "did you mean MXFP6E2M3 or MXFP6E3M2?" in sentence(llama, *words, "--formats", "MXFP6")
    said = sentence(llama, *words, "--groups", "128", "--formats", "INT4")
    assert "model.layers.0.self_attn.q_proj" in said
    assert "1, 2, 4, 8, 16, 32 divide" in said
    assert "'foo'" in sentence(llama, *words, "--groups", "foo")
    assert "no cell" in sentence(llama, *words, "--save", "rtn-INT9-channel")
    assert "activations" in sentence(llama, *words, "--methods", "llm_int8", "--formats", "INT8", "--save",
                                     "llm_int8-INT8-channel")  # fmt: skip
    assert "nothing to quantize" in sentence(llama, *words, "--formats", "BF16")
    assert "does not take" in sentence(llama, *words, "--methods", "lnq", "--formats", "NF4")
    assert "either --text" in sentence(llama, *SMALL)
    assert "64 positions" in sentence(llama, "--text", folders["text"], "--context", 65)
    assert run(llama, *words, "--methods").exit_code == 2
    assert not (tmp_path / "out").exists()


def test_sentences_about_text(folders: dict[str, Path], tmp_path: Path) -> None:
    short = tmp_path / "short.txt"
    short.write_text("too short")
    assert "shorter than one window of 32" in sentence(folders["gpt2"], "--text", short, *SMALL)
    short.write_bytes(b"\xff\xfe\xff")
    assert "UTF-8" in sentence(folders["gpt2"], "--text", short, *SMALL)
    assert "cannot be read" in sentence(folders["gpt2"], "--text", tmp_path / "none.txt", *SMALL)
    assert "data set" in sentence(folders["gpt2"], "--dataset", str(tmp_path / "nowhere"), *SMALL)


def copied(source: Path, target: Path, without: str = "") -> Path:
    target.mkdir()
    for path in source.iterdir():
        if path.name != without:
            (target / path.name).write_bytes(path.read_bytes())
    return target


def test_sentences_about_folders(folders: dict[str, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    words = ("--text", folders["text"], *SMALL, "--out", tmp_path / "out")
    assert "no such folder" in sentence(tmp_path / "nowhere", *words)
    (tmp_path / "empty").mkdir()
    assert "no config.json" in sentence(tmp_path / "empty", *words)
    pickled = copied(folders["gpt2"], tmp_path / "pickled", "model.safetensors")
    assert "no weights" in sentence(pickled, *words)
    (pickled / "pytorch_model.bin").write_bytes(b"never opened")
    said = sentence(pickled, *words)
    assert "pickle" in said
    assert "save_pretrained" in said

    def with_config(name: str, **changed: object) -> Path:
        path = copied(folders["gpt2"], tmp_path / name)
        config = json.loads((path / "config.json").read_text())
        (path / "config.json").write_text(json.dumps({**config, **changed}))
        return path

    remote = with_config("remote", model_type="mine", auto_map={"AutoModelForCausalLM": "modeling_mine.Mine"})
    (remote / "modeling_mine.py").write_text("raise SystemExit('foreign code ran')")
    assert "code of its own" in sentence(remote, *words)
    known = with_config("known", auto_map={"AutoConfig": "c.C", "AutoModelForCausalLM": "modeling_mine.Mine"})
    (known / "modeling_mine.py").write_text("raise SystemExit('foreign code ran')")
    said = sound(known, *words, "--dry-run")
    assert "asks for code of its own (modeling_mine.Mine), which is never run" in said
    assert "class for 'gpt2' stands in" in said
    assert "did you mean 'gpt2'" in sentence(with_config("typo", model_type="gpt22"), *words)
    assert "no causal language model" in sentence(with_config("t5", model_type="t5"), *words)
    assert "quantized already" in sentence(with_config("q", quantization_config={"quant_method": "gptq"}), *words)
    assert "cannot be opened" in sentence(with_config("shape", n_embd=64), *words, "--groups", "channel")
    broken = copied(folders["gpt2"], tmp_path / "broken")
    (broken / "model.safetensors").write_bytes(b"not safetensors")
    assert "its weights only" in sentence(broken, *words)
    assert "no tokenizer" in sentence(copied(folders["gpt2"], tmp_path / "mute", "tokenizer.json"), *words)
    monkeypatch.setattr("huggingface_hub.snapshot_download", lambda *_, **__: (_ for _ in ()).throw(OSError("offline")))
    assert "the hub did not give it" in sentence("owner/name", *words)


def test_sentences_about_weights(folders: dict[str, Path], tmp_path: Path) -> None:
    words = ("--text", folders["text"], *SMALL, "--methods", "gptq", "--formats", "INT4")
    for name, change, expected in (
        ("nan", lambda w: w[0].fill_(torch.nan), "c_attn.weight has NaN"),
        ("gone", None, "lack 1 weights"),
    ):
        from safetensors.torch import load_file, save_file

        path = copied(folders["gpt2"], tmp_path / name)
        tensors = load_file(path / "model.safetensors")
        key = "transformer.h.1.attn.c_attn.weight"
        if change:
            change(tensors[key])
        else:
            del tensors[key]
        save_file(tensors, path / "model.safetensors", metadata={"format": "pt"})
        assert expected in sentence(path, *words, "--out", tmp_path / f"out_{name}")


def test_sentences_about_the_machine(folders: dict[str, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    words = (folders["gpt2"], "--text", folders["text"], *SMALL, "--methods", "gptq", "--formats", "INT4", "--out",
             tmp_path / "out")  # fmt: skip
    with monkeypatch.context() as patch:
        patch.setattr("shared.ptq.cost.available_bytes", lambda _: 1e5)
        assert "out of memory" in sentence(*words)

    def greedy(*_: object, **__: object) -> None:
        torch.empty(2**60)

    with monkeypatch.context() as patch:
        patch.setattr("shared.ptq.sequential.quantize", greedy)
        assert "out of memory" in sentence(*words)

    def singular(*_: object, **__: object) -> tuple[Tensor, int]:
        return torch.zeros(1), 1

    with monkeypatch.context() as patch:
        patch.setattr("torch.linalg.cholesky_ex", singular)
        said = sentence(*words)
    assert "transformer.h.0.attn.c_attn: the Hessian of a layer is singular" in said
    assert "cuda" in sentence(*words, "--device", "cuda:7")


def test_groups_name_the_layer() -> None:
    model = random_model("gpt2")
    with pytest.raises(BitlawError, match=r"rtn-INT4-64: groups of 64 do not divide the 32 inputs of transformer.h.0"):
        check_groups([Cell("rtn", "INT4", "64")], listed(model, False))


def test_results_folder_is_whole(tmp_path: Path) -> None:
    results = Results(tmp_path)
    assert results.base() is None
    losses = torch.tensor([1.234567890123, 2.0], dtype=torch.float64)
    results.keep_base(losses, {"context": 8})
    kept = results.base()
    assert kept is not None
    assert torch.equal(kept, losses)
    results.check({"context": 8})
    with pytest.raises(BitlawError, match="another context"):
        results.check({"context": 9})


# The pool -----------------------------------------------------------------------------------------------------------


@pytest.mark.skipif(not Path("data/python/val.bin").exists(), reason="data/ is not built")
def test_a_committed_checkpoint_agrees_with_the_pool(tmp_path: Path) -> None:
    """The same windows, cells and matrices by another road: reports/measurements.csv against `bitlaw ptq`."""
    from transformers import PreTrainedTokenizerFast

    from shared.corpus.tokenizer import COMMITTED, END_OF_TEXT
    from shared.model.exchange import to_transformers
    from shared.sweep.kept import kept_model

    run_id = "9657680eb1ca"
    to_transformers(kept_model(Path("reports/checkpoints"), run_id)).save_pretrained(tmp_path / "model")
    PreTrainedTokenizerFast(tokenizer_file=str(COMMITTED), eos_token=END_OF_TEXT).save_pretrained(tmp_path / "model")
    sound(tmp_path / "model", "--dataset", "python", "--methods", "rtn", "--formats", "INT3", "--groups", "32",
          "--out", tmp_path / "out")  # fmt: skip
    ours = pd.read_csv(tmp_path / "out" / "table.csv").iloc[0]
    pool = pd.read_csv("reports/measurements.csv", dtype={"group_size": str})
    theirs = pool[
        (pool.run_id == run_id) & (pool.format == "INT3") & (pool.group_size == "32") & (pool.method == "rtn")
    ]
    assert len(theirs) == 1
    for column, tolerance in (("delta", 2e-5), ("delta_se", 2e-5), ("loss", 2e-5), ("relative_mse", 1e-5)):
        assert ours[column] == pytest.approx(theirs[column].item(), abs=tolerance), column
    assert ours["bits_per_weight"] == theirs["bits_per_weight"].item()
