"""Model folders with one broken file: a model that gives finite numbers, or one sentence."""

import json
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from fuzzing import NASTY, bytes_like, outcome, seldom, trees_like
from hypothesis import given
from hypothesis import strategies as st
from ptq_models import folder

from shared.errors import BitlawError
from shared.ptq.models import empty_model, find_model, open_model, open_tokenizer
from shared.ptq.text import encode, from_files, tokens_lead

CPU = torch.device("cpu")
JSON = (
    "config.json",
    "tokenizer.json",
    "tokenizer_config.json",
    "generation_config.json",
    "model.safetensors.index.json",
)


@pytest.fixture(scope="module")
def good(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A Llama of one layer in two shards."""
    from ptq_models import model

    parent = tmp_path_factory.mktemp("models")
    path = folder(parent, "llama", layers=1)
    (path / "model.safetensors").unlink()
    model("llama", layers=1).save_pretrained(path, max_shard_size="40KB")
    assert len(list(path.glob("*.safetensors"))) > 1
    return path


def used(path: Path) -> torch.Tensor:
    """What `bitlaw ptq` does with a folder before it measures."""
    source = find_model(str(path))
    empty_model(source)
    model, tokenizer = open_model(source, CPU), open_tokenizer(source)
    assert len(source.sha256) == 64
    assert source.weight_bytes > 0
    assert source.context is None or isinstance(source.context, int)
    assert source.foreign is None or isinstance(source.foreign, str)
    assert encode(["ab"], tokenizer).dtype == np.int64
    assert all(isinstance(one, int) for one in tokens_lead(tokenizer))
    with torch.no_grad():
        return model(input_ids=torch.tensor([[1, 2, 3]])).logits


def broken(good: Path, tmp_path: Path, file: str, data: bytes) -> None:
    path = tmp_path / "model"
    shutil.rmtree(path, ignore_errors=True)
    shutil.copytree(good, path)
    (path / file).write_bytes(data)
    found = outcome(lambda: used(path))
    assert found is None or found.shape[:2] == (1, 3)


def test_what_is_good_is_read(good: Path) -> None:
    assert torch.isfinite(used(good)).all()


@pytest.mark.filterwarnings("ignore")
@seldom
@given(data=st.data())
def test_configuration(good: Path, tmp_path: Path, data: st.DataObject) -> None:
    valid = (good / "config.json").read_bytes()
    tree = trees_like(json.loads(valid)).map(lambda tree: json.dumps(tree).encode())
    broken(good, tmp_path, "config.json", data.draw(bytes_like(valid) | tree))


@pytest.mark.filterwarnings("ignore")
@seldom
@given(data=st.data())
def test_a_key_of_the_configuration(good: Path, tmp_path: Path, data: st.DataObject) -> None:
    valid = json.loads((good / "config.json").read_bytes())
    key = data.draw(st.sampled_from(sorted(valid)))
    broken(good, tmp_path, "config.json", json.dumps(valid | {key: data.draw(st.sampled_from(NASTY))}).encode())


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("file", JSON[1:])
@seldom
@given(data=st.data())
def test_other_json(file: str, good: Path, tmp_path: Path, data: st.DataObject) -> None:
    valid = (good / file).read_bytes()
    small = trees_like(json.loads(valid)).map(lambda tree: json.dumps(tree).encode())
    broken(good, tmp_path, file, data.draw(bytes_like(valid) | small))


def test_a_tokenizer_that_refuses_text_is_told(good: Path, tmp_path: Path) -> None:
    """A vocabulary without [UNK], which WordPiece takes for every word that it does not know."""
    path = tmp_path / "model"
    shutil.copytree(good, path)
    tokenizer = json.loads((path / "tokenizer.json").read_bytes())
    tokenizer["model"] = {
        "type": "WordPiece", "unk_token": "[UNK]", "continuing_subword_prefix": "##", "max_input_chars_per_word": 100,
        "vocab": {"a": 0},
    }  # fmt: skip
    tokenizer |= {"added_tokens": [], "pre_tokenizer": {"type": "Whitespace"}, "decoder": None}
    (path / "tokenizer.json").write_text(json.dumps(tokenizer))
    (path / "tokenizer_config.json").write_text(json.dumps({"tokenizer_class": "PreTrainedTokenizerFast"}))
    (path / "words.txt").write_text("a b")
    opened = open_tokenizer(find_model(str(path)))
    assert encode(["a"], opened).tolist() == [0]
    with pytest.raises(BitlawError, match=r"the model's tokenizer cannot read the text \(WordPiece error"):
        from_files([path / "words.txt"], opened, 4, 1, 1)


def shard(good: Path) -> Path:
    return sorted(good.glob("*.safetensors"))[0]


def parts(path: Path) -> tuple[dict[str, Any], bytes]:
    """The header of a safetensors file and what follows it."""
    data = path.read_bytes()
    length = int.from_bytes(data[:8], "little")
    return json.loads(data[8 : 8 + length]), data[8 + length :]


def joined(header: Any, rest: bytes) -> bytes:
    text = json.dumps(header).encode()
    return len(text).to_bytes(8, "little") + text + rest


@pytest.mark.filterwarnings("ignore")
@seldom
@given(data=st.data())
def test_weights(good: Path, tmp_path: Path, data: st.DataObject) -> None:
    file = shard(good)
    header, rest = parts(file)
    tree = trees_like(header).map(lambda tree: joined(tree, rest))
    broken(good, tmp_path, file.name, data.draw(bytes_like(file.read_bytes()) | tree))


@pytest.mark.parametrize("kind", ["dtype", "shape", "length", "missing", "folder", "nan"])
@pytest.mark.filterwarnings("ignore")
def test_a_bad_shard_is_told(kind: str, good: Path, tmp_path: Path) -> None:
    path = tmp_path / "model"
    shutil.copytree(good, path)
    file = shard(path)
    header, rest = parts(file)
    name = next(key for key in header if key != "__metadata__")
    if kind == "dtype":
        header[name]["dtype"] = "F99"
    elif kind == "shape":
        header[name]["shape"] = [2**40, 2**40]
    file.write_bytes(joined(header, rest))
    if kind == "length":
        file.write_bytes((2**63).to_bytes(8, "little") + rest)
    elif kind == "nan":
        file.write_bytes(joined(header, b"\xff" * len(rest)))
    elif kind in ("missing", "folder"):
        file.unlink()
    if kind == "folder":
        file.mkdir()
    with pytest.raises(BitlawError):
        used(path)
