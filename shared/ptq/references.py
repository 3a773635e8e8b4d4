"""What a model's folder may name: files of its own, and code of torch's.

transformers opens whatever path stands in tokenizer_config.json, and fetches and runs the kernel of the hub that
config.json names for attention. Both are data of whoever made the folder.
"""

import os
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from shared.errors import BitlawError
from shared.files import read_json

# Of a tokenizer's settings, those that are opened as files where they are text (transformers 5.23,
# tokenization_utils_tokenizers.convert_to_native_format and the `vocab: str` of each class).
PATHS = ("vocab", "merges", "_file")
# Left behind by older transformers in many models of the hub; 5.23 opens the folder's own files in their place.
OVERRULED = ("special_tokens_map_file", "tokenizer_file")
# What computes attention and experts without a kernel of the hub (ExpertsInterface has two more, of the hub).
KERNELS = {
    "attn_implementation": ("eager", "sdpa", "flex_attention"),
    "experts_implementation": ("eager", "batched_mm", "grouped_mm"),
}


def check_references(name: str, folder: Path) -> None:
    """Raises BitlawError when a file of the folder sends the reader elsewhere: to other folders, models, pickles or
    kernels."""
    inside = [folder.resolve()]
    if folder.parent.name == "snapshots":  # the hub's cache keeps the content in a folder beside
        inside.append(folder.parent.parent.resolve() / "blobs")
    for path in sorted(folder.rglob("*")):
        # realpath, for it takes links in a circle, which are then no files.
        if path.is_symlink() and not any(Path(os.path.realpath(path)).is_relative_to(place) for place in inside):
            raise BitlawError(f"{path}: is a link out of the model's folder: put the file itself there")
    _check_config(name, read_json(folder / "config.json"))
    if (folder / "adapter_config.json").exists():
        # transformers would open the base model that it names, wherever that is (auto_factory.py).
        raise BitlawError(f"{name}: is an adapter (adapter_config.json): merge it into its model and save that")
    for index in sorted(folder.glob("*.safetensors.index.json")):
        found = read_json(index)
        files = found.get("weight_map") if isinstance(found, dict) else None
        if not isinstance(files, dict):
            raise BitlawError(f"{index}: has no weight_map: get the model whole")
        for file in files.values():
            if not isinstance(file, str) or not re.fullmatch(r"[\w.-]+\.safetensors", file):
                raise BitlawError(f"{index}: names {file!r}, which is no .safetensors file beside it")
    # In the second one nothing is overruled: its values come last.
    for file, allowed in (("tokenizer_config.json", OVERRULED), ("special_tokens_map.json", ())):
        if (folder / file).exists():
            _check_tokenizer(folder / file, allowed)


def _check_config(name: str, config: Any) -> None:
    for keys, value in _leaves(config, ()):
        if "transformers_weights" in keys and value:
            raise BitlawError(f"{name}: config.json names its own file of weights: call it model.safetensors")
        for kind, known in KERNELS.items():
            # Of the whole model, or a dictionary of its parts; saved with and without an underscore.
            if any(key.removeprefix("_") == kind for key in keys) and value is not None and value not in known:
                raise BitlawError(
                    f"{name}: config.json asks for {kind} {value!r}, which may be code of the hub and is not run here: "
                    f"take the key out, or put one of {', '.join(known)}"
                )


def _check_tokenizer(path: Path, allowed: tuple[str, ...]) -> None:
    for keys, value in _leaves(read_json(path), ()):
        if not isinstance(value, str) or not keys:
            continue
        named = keys[-1].endswith(PATHS) and keys[-1] not in allowed
        # Positional arguments, the first of which is the vocabulary; and versions of tokenizer.json.
        if named or keys[0] == "init_inputs" or (keys[0] == "fast_tokenizer_files" and re.search(r"[/\\]", value)):
            key = keys[-1] if named else keys[0]
            raise BitlawError(
                f"{path}: {key} names a file ({value[:80]!r}): only the folder's own tokenizer files are read, "
                "under their usual names; take the key out"
            )


def _leaves(value: Any, keys: tuple[str, ...]) -> Iterator[tuple[tuple[str, ...], Any]]:
    """(keys on the way, value) of everything that is no object or list; an item of a list has the key "[]"."""
    if isinstance(value, dict):
        for key, item in value.items():
            yield from _leaves(item, (*keys, key))
    elif isinstance(value, list):
        for item in value:
            yield from _leaves(item, (*keys, "[]"))
    else:
        yield keys, value
