"""Names that come from tables, indexes and model folders stay names: none of them leads to another folder."""

import json
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from sample_corpus import make_corpus
from typer.testing import CliRunner

from replications.cli import app
from replications.papers import find
from shared.corpus.load import load_corpus
from shared.errors import BitlawError
from shared.evaluate.ptq import Cell
from shared.files import write_json
from shared.ptq.cells import Cell as PtqCell
from shared.report.figures.gallery import read_gallery
from shared.sweep import tables
from shared.sweep.kept import kept
from shared.sweep.ledger import Ledger
from shared.sweep.spec import Run, RunSpec

# Relative to a folder that is two levels below the test's own.
ESCAPES = ["../../victim", "../victim", "..", ".", "", "a/../../../victim", "a\\b", "a\x00b", "~/victim", "/"]


@pytest.fixture
def victim(tmp_path: Path) -> Iterator[Path]:
    """A folder that nobody has any business in, with the files that a ledger would read, or remove as damaged."""
    folder = tmp_path / "victim"
    (folder / "cells").mkdir(parents=True)
    for name in ("result.json", "checkpoint.safetensors", "claim", "corpus.json", "figure.svg", "cells/x.json"):
        (folder / name).write_text("precious")
    yield folder
    assert len([path for path in folder.rglob("*") if path.is_file()]) == 6
    assert all(path.read_text() == "precious" for path in folder.rglob("*") if path.is_file())


def escapes(victim: Path) -> list[str]:
    return [*ESCAPES, str(victim), str(victim / "result.json")]


def test_a_run_id_is_no_path(tmp_path: Path, victim: Path) -> None:
    ledger = Ledger(tmp_path / "build")
    (tmp_path / "build" / "runs").mkdir(parents=True)
    for name in escapes(victim):
        for use in (
            lambda name: ledger.result(name, print),
            lambda name: ledger.whole(name, print),
            lambda name: ledger.weights(name),
            lambda name: ledger.cell(name, "rtn-INT4-8", print),
            lambda name: ledger.trunk_folder(name),
        ):
            with pytest.raises(BitlawError, match="is no run id"):
                use(name)
        with pytest.raises(BitlawError, match="cannot be the name of a file"):
            ledger.cell("0" * 12, f"../../{name}/x", print)


@pytest.mark.parametrize("verb", ["train", "measure", "keep", "status"])
def test_a_table_names_no_other_folder(
    tmp_path: Path, victim: Path, monkeypatch: pytest.MonkeyPatch, verb: str
) -> None:
    """A row of runs.csv and of measurements.csv whose id is a path: its folder is not read, nothing there removed."""
    make_corpus(tmp_path)
    reports = tmp_path / "reports"
    for name in ("../../victim", str(victim)):
        counts = dict.fromkeys(tables.COUNTS, 1)
        tables.add_runs(reports, [{"run_id": name, "loss": 3.0, "diverged": False, **counts}], {})
        cell = {"run_id": name, "method": "../..", "format": "/", "group_size": "../x"}
        tables.add_measurements(reports, [cell | counts])
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("replications.commands.train.start", lambda *arguments: None)
    build = [] if verb == "status" else ["--build", "build"]
    result = CliRunner().invoke(app, [verb, "micro", "--corpus", "sample", "--reports", "reports", *build])
    if verb == "train":
        assert isinstance(result.exception, BitlawError)
        assert "is no run id" in str(result.exception)
    elif verb == "keep":
        assert "train it first" in str(result.exception)
    else:
        assert result.exit_code in (0, 1), result.output


def test_an_index_of_checkpoints_names_no_other_file(tmp_path: Path) -> None:
    spec = RunSpec("c" * 64, n_layer=1, d_model=32, d_ff=64, seed=1, learning_rate=0.008, tokens=2**20, cooled=True)
    entry = Run(spec, "S", "python").to_json()
    for name in (*ESCAPES, "0" * 12):
        write_json(tmp_path / "index.json", {name: entry})
        with pytest.raises(BitlawError, match="is not the id of its spec"):
            kept(tmp_path)
    write_json(tmp_path / "index.json", {spec.run_id: entry})
    assert kept(tmp_path)[spec.run_id].spec == spec


def test_a_corpus_is_a_name(tmp_path: Path, victim: Path) -> None:
    make_corpus(tmp_path)
    (tmp_path / "data").mkdir()
    (victim / "corpus.json").write_text((tmp_path / "build" / "corpora" / "sample" / "corpus.json").read_text())
    for name in escapes(victim):
        with pytest.raises(BitlawError, match="there is no corpus"):
            load_corpus(name, tmp_path)
    (victim / "corpus.json").write_text("precious")
    assert load_corpus("sample", tmp_path).name == "sample"


def test_a_paper_is_a_name() -> None:
    for name in ("../../etc", "/etc", "", ".", "kumar_precision/../qat_scaling"):
        with pytest.raises(BitlawError):
            find(name)


@pytest.mark.parametrize("field", ["method", "format", "group_size"])
def test_a_cell_of_a_plan_is_a_name(field: str) -> None:
    for name in ESCAPES:
        with pytest.raises(BitlawError):
            Cell(**({"method": "rtn", "format": "INT4", "group_size": "8"} | {field: name}))


@given(st.text(max_size=40), st.text(max_size=40))
def test_the_file_of_a_quantization_is_a_name(form: str, group: str) -> None:
    file = PtqCell("rtn", form, group).file
    assert Path("x", f"{file}.json").resolve().parent == Path("x").resolve()
    assert "/" not in file
    assert "\x00" not in file


def test_a_figure_stands_beside_its_list(tmp_path: Path, victim: Path) -> None:
    folder = tmp_path / "reports" / "paper"
    for name in ("../../victim/figure", str(victim / "figure")):
        write_json(folder / "figures.json", [{"name": name, "caption": "", "alt": ""}])
        with pytest.raises(BitlawError, match="is no name of a figure"):
            read_gallery(folder)


# --- model folders ----------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    from ptq_models import folder

    return folder(tmp_path_factory.mktemp("models"), "llama")


@pytest.fixture
def sharded(model: Path, tmp_path: Path) -> Path:
    """The model with its weights named by an index."""
    from safetensors import safe_open

    root = Path(shutil.copytree(model, tmp_path / "deep" / "model"))
    (root / "model.safetensors").rename(root / "model-00001-of-00001.safetensors")
    with safe_open(root / "model-00001-of-00001.safetensors", framework="pt") as opened:
        names = list(opened.keys())
    index = {"metadata": {}, "weight_map": dict.fromkeys(names, "model-00001-of-00001.safetensors")}
    (root / "model.safetensors.index.json").write_text(json.dumps(index))
    return root


def opened(folder: Path) -> Any:
    import torch

    from shared.ptq.models import find_model, open_model

    return open_model(find_model(str(folder)), torch.device("cpu"))


def change(path: Path, **values: Any) -> None:
    path.write_text(json.dumps(json.loads(path.read_text()) | values))


def test_a_sharded_model_opens(sharded: Path, model: Path) -> None:
    one, other = opened(sharded), opened(model)
    assert all((a == b).all() for a, b in zip(one.parameters(), other.parameters(), strict=True))


@pytest.mark.parametrize(
    "where", ["../outside.safetensors", "/", "x/../../outside.safetensors", "pickled.bin", "..", 3]
)
def test_an_index_of_shards_names_files_beside_it(sharded: Path, tmp_path: Path, where: Any) -> None:
    shard = sharded / "model-00001-of-00001.safetensors"
    shutil.copyfile(shard, sharded.parent / "outside.safetensors")
    where = str(sharded.parent / "outside.safetensors") if where == "/" else where
    index = sharded / "model.safetensors.index.json"
    names = json.loads(index.read_text())["weight_map"]
    change(index, weight_map=names | {next(iter(names)): where})
    with pytest.raises(BitlawError, match=r"is no \.safetensors file beside it"):
        opened(sharded)
    change(index, weight_map=[1, 2])
    with pytest.raises(BitlawError, match="has no weight_map"):
        opened(sharded)


def test_an_adapter_sends_nobody_to_its_base_model(model: Path, tmp_path: Path) -> None:
    root = Path(shutil.copytree(model, tmp_path / "model"))
    (root / "adapter_config.json").write_text(json.dumps({"base_model_name_or_path": "/etc", "peft_type": "LORA"}))
    with pytest.raises(BitlawError, match="is an adapter"):
        opened(root)


def test_a_configuration_names_no_other_weights(model: Path, tmp_path: Path) -> None:
    root = Path(shutil.copytree(model, tmp_path / "model"))
    change(root / "config.json", transformers_weights="../other.safetensors.index.json")
    with pytest.raises(BitlawError, match="names its own file of weights"):
        opened(root)


def tokenizer_of(folder: Path) -> Any:
    from shared.ptq.models import find_model, open_tokenizer

    return open_tokenizer(find_model(str(folder)))


WORDS = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", "precious"]


@pytest.fixture
def wordless(model: Path, tmp_path: Path) -> Path:
    """The model with a BERT tokenizer that has no vocabulary; one is outside, in the test's folder."""
    root = Path(shutil.copytree(model, tmp_path / "model"))
    (tmp_path / "vocab.txt").write_text("\n".join(WORDS))
    (root / "tokenizer.json").unlink()
    (root / "tokenizer_config.json").write_text(json.dumps({"tokenizer_class": "BertTokenizer"}))
    return root


@pytest.mark.parametrize("file", ["tokenizer_config.json", "special_tokens_map.json"])
@pytest.mark.parametrize("key", ["vocab", "vocab_file", "merges", "emoji_file", "init_inputs"])
@pytest.mark.parametrize("relative", [False, True], ids=["absolute", "relative"])
def test_a_tokenizer_names_no_file(wordless: Path, tmp_path: Path, file: str, key: str, relative: bool) -> None:
    where = "../vocab.txt" if relative else str(tmp_path / "vocab.txt")
    (wordless / file).write_text(
        json.dumps({"tokenizer_class": "BertTokenizer", key: [where] if key == "init_inputs" else where})
    )
    with pytest.raises(BitlawError, match=f"{key} names a file"):
        tokenizer_of(wordless)


def test_a_tokenizers_versions_stand_beside_it(model: Path, tmp_path: Path) -> None:
    root = Path(shutil.copytree(model, tmp_path / "model"))
    shutil.copyfile(root / "tokenizer.json", tmp_path / "tokenizer.4.0.0.json")
    change(root / "tokenizer_config.json", fast_tokenizer_files=["../tokenizer.4.0.0.json"])
    with pytest.raises(BitlawError, match="fast_tokenizer_files names a file"):
        tokenizer_of(root)


def test_what_older_tokenizers_left_is_read_over(wordless: Path, model: Path, tmp_path: Path) -> None:
    """Words in the settings themselves are no file; and paths of their author's machine are in many a folder."""
    words = {word: number for number, word in enumerate(WORDS[:-1])}
    (tmp_path / "tokens.json").write_text(json.dumps({"pad_token": "precious"}))
    left = {"special_tokens_map_file": str(tmp_path / "tokens.json"), "tokenizer_file": str(tmp_path / "vocab.txt")}
    change(wordless / "tokenizer_config.json", vocab=words, **left)
    found = tokenizer_of(wordless)
    assert "precious" not in found.get_vocab()
    assert found.pad_token == "[PAD]"
    root = Path(shutil.copytree(model, tmp_path / "other"))
    change(root / "tokenizer_config.json", **left)
    assert tokenizer_of(root).get_vocab() == tokenizer_of(model).get_vocab()


@pytest.mark.parametrize(
    "values",
    [
        {"attn_implementation": "owner/kernel"},
        {"_attn_implementation": "owner/kernel@v1:function"},
        {"attn_implementation": {"": "owner/kernel"}},
        {"rope_parameters": {"attn_implementation": "owner/kernel"}},
        {"attn_implementation": "flash_attention_2"},
        {"experts_implementation": "sonicmoe"},
    ],
    ids=str,
)
def test_a_configuration_asks_for_no_kernel_of_the_hub(model: Path, tmp_path: Path, values: dict[str, Any]) -> None:
    root = Path(shutil.copytree(model, tmp_path / "model"))
    change(root / "config.json", **values)
    with pytest.raises(BitlawError, match="may be code of the hub"):
        opened(root)


def test_attention_by_torch_is_no_kernel_of_the_hub(model: Path, tmp_path: Path) -> None:
    root = Path(shutil.copytree(model, tmp_path / "model"))
    change(root / "config.json", attn_implementation="eager", experts_implementation=None)
    assert opened(root).config._attn_implementation == "eager"


def test_a_link_further_down_is_not_followed(model: Path, tmp_path: Path) -> None:
    root = Path(shutil.copytree(model, tmp_path / "model"))
    (tmp_path / "x.jinja").write_text("precious")
    (root / "additional_chat_templates").mkdir()
    (root / "additional_chat_templates" / "x.jinja").symlink_to(tmp_path / "x.jinja")
    with pytest.raises(BitlawError, match=r"x\.jinja: is a link out of the model's folder"):
        tokenizer_of(root)
    (root / "additional_chat_templates" / "x.jinja").unlink()
    (root / "additional_chat_templates").rmdir()
    (root / "additional_chat_templates").symlink_to(tmp_path)
    with pytest.raises(BitlawError, match="additional_chat_templates: is a link out of the model's folder"):
        tokenizer_of(root)


def test_a_link_in_a_circle_is_no_file(model: Path, tmp_path: Path) -> None:
    root = Path(shutil.copytree(model, tmp_path / "model"))
    (root / "tokenizer.json").unlink()
    (root / "tokenizer.json").symlink_to("tokenizer.json")
    with pytest.raises(BitlawError, match="has no tokenizer that opens"):
        tokenizer_of(root)


@pytest.mark.parametrize("name", ["model.safetensors", "config.json", "tokenizer.json"])
def test_a_link_out_of_a_model_is_not_followed(model: Path, tmp_path: Path, name: str) -> None:
    root = Path(shutil.copytree(model, tmp_path / "model"))
    (root / name).rename(tmp_path / name)
    (root / name).symlink_to(tmp_path / name)
    with pytest.raises(BitlawError, match=f"{name}: is a link out of the model's folder"):
        opened(root)


def test_the_hubs_own_cache_is_links_and_opens(model: Path, tmp_path: Path) -> None:
    cache = tmp_path / "models--a--b"
    (cache / "snapshots" / "0").mkdir(parents=True)
    (cache / "blobs").mkdir()
    for path in model.iterdir():
        shutil.copyfile(path, cache / "blobs" / path.name)
        (cache / "snapshots" / "0" / path.name).symlink_to(Path("..") / ".." / "blobs" / path.name)
    assert opened(cache / "snapshots" / "0") is not None


def test_code_in_a_model_folder_is_not_run(model: Path, tmp_path: Path) -> None:
    """A known type whose folder brings code of its own for it: transformers' class is used, the file not opened."""
    root = Path(shutil.copytree(model, tmp_path / "model"))
    mark = tmp_path / "ran"
    (root / "modeling_own.py").write_text(f"open({str(mark)!r}, 'w').close()\n")
    change(root / "config.json", auto_map={"AutoModelForCausalLM": "modeling_own.Own", "AutoConfig": "modeling_own.C"})
    opened(root)
    assert not mark.exists()
