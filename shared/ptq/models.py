"""Open a causal language model from a local folder or the Hugging Face hub: safetensors only, and no foreign code.

A pickle runs whatever its author wrote when it is opened, and so does a model's own Python. Neither is opened here.
"""

import contextlib
import ctypes
import hashlib
import logging
import warnings
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from shared.errors import BitlawError, nearest
from shared.files import read_json, sha256_file
from shared.ptq.references import check_references

PICKLES = (".bin", ".pt", ".pth", ".ckpt", ".pkl")
# Of a hub repository: configuration, tokenizer, and the weights of the model itself (no other variant of them).
SMALL_FILES = ("*.json", "*.txt", "*.model", "*.jinja")
WEIGHTS = "model*.safetensors"
# Parameters of mallopt (malloc.h).
M_TRIM_THRESHOLD, M_MMAP_THRESHOLD = -1, -3
# What the import of torchao by transformers says (torchao 0.18, torch 2.13), by logger: of no use to anybody here.
CHATTER = {
    "torchao": "Failed to load ",
    "torch.utils._pytree": "is an Enum subclass and is now natively supported by torch.compile",
}


@dataclass(frozen=True)
class Source:
    """A model's folder (of a hub id: the cache's), the name it was asked for by, and its configuration."""

    name: str
    folder: Path
    config: Any

    @property
    def context(self) -> int | None:
        """The most positions it takes, where its configuration says."""
        return getattr(self.config.get_text_config(), "max_position_embeddings", None)

    @property
    def foreign(self) -> str | None:
        """The class of the folder's own code (auto_map) that `transformers`' class of its type stands in for."""
        mapped = read_json(self.folder / "config.json").get("auto_map")
        if not isinstance(mapped, dict):
            return None
        return next((str(name) for key, name in mapped.items() if key.startswith("AutoModel")), None)

    @property
    def sha256(self) -> str:
        """Of its configuration and weights, each by its content."""
        files = [self.folder / "config.json", *sorted(self.folder.glob("*.safetensors"))]
        return hashlib.sha256("".join(f"{path.name} {sha256_file(path)}\n" for path in files).encode()).hexdigest()

    @property
    def weight_bytes(self) -> int:
        """Of the files of weights; 0 where they are not fetched yet."""
        return sum(path.stat().st_size for path in self.folder.glob("*.safetensors"))


def find_model(name: str, revision: str = "main", weights: bool = True) -> Source:
    """`name` is a folder, or else a hub id (OWNER/NAME), which is fetched; without `weights` only its small files.

    Raises BitlawError when there is no such folder or repository, when it is no causal language model, when its weights
    are pickles only or quantized already, and when it needs code of its own.
    """
    _quiet()
    here = Path(name).expanduser()
    if here.is_file():
        raise BitlawError(f"{name}: is a file: name the model's folder, with its config.json and .safetensors")
    local = here.is_dir()
    if not local and (name.startswith((".", "/", "~")) or name.count("/") > 1):
        raise BitlawError(f"{name}: there is no such folder")
    folder = here if local else _fetched(name, revision, weights)
    if not (folder / "config.json").is_file():
        raise BitlawError(f"{name}: is no model: its folder has no config.json")
    check_references(name, folder)
    config = _config(name, folder)
    source = Source(name, folder, config)
    if local or weights:
        _check_weights(name, folder, local)
        _check_sizes(source)
    return source


def open_model(source: Source, device: torch.device) -> Any:
    """The model in FP32 and evaluation mode on the device.

    Raises BitlawError when the weights are damaged, incomplete or of another shape, and when one is NaN or infinite.
    """
    from transformers import AutoModelForCausalLM

    tight()
    try:
        model, about = AutoModelForCausalLM.from_pretrained(
            source.folder, dtype=torch.float32, use_safetensors=True, trust_remote_code=False, local_files_only=True,
            output_loading_info=True,
        )  # fmt: skip
    except (torch.OutOfMemoryError, MemoryError):
        raise
    except Exception as error:  # whatever transformers and safetensors raise for a bad file
        raise BitlawError(f"{source.name}: cannot be opened ({_first_line(error)})") from error
    if about["missing_keys"]:
        lacking = sorted(about["missing_keys"])
        raise BitlawError(f"{source.name}: its files lack {len(lacking)} weights ({lacking[0]}): get them whole")
    for key, tensor in model.named_parameters():
        # The sum shows what is not finite without a copy; very large weights may overflow it, and are looked at.
        if not (bool(torch.isfinite(tensor.sum())) or bool(torch.isfinite(tensor).all())):
            raise BitlawError(f"{source.name}: {key} has NaN or infinite values: quantize a sound checkpoint")
    model = model.to(device).eval()
    release()
    return model


def tight() -> None:
    """Have glibc map tensors from 1 MiB on, so that they go back to the system when they are freed.

    Else it keeps those below 32 MiB in its heap, with holes: from 1.1 to 2 times what is in use, by chance. With the
    small batches of shared/ptq/cells.py mapping takes no measurable time.
    """
    with contextlib.suppress(OSError, AttributeError):  # another system, another C library
        for parameter, count in ((M_MMAP_THRESHOLD, 2**20), (M_TRIM_THRESHOLD, 2**26)):
            ctypes.CDLL("libc.so.6").mallopt(parameter, count)


def release() -> None:
    """Give what the heap keeps of freed memory back to the system."""
    with contextlib.suppress(OSError, AttributeError):
        ctypes.CDLL("libc.so.6").malloc_trim(0)


def empty_model(source: Source) -> Any:
    """The model without its weights (on the "meta" device): shapes and names, whatever its size.

    Raises BitlawError for a configuration that makes none.
    """
    from transformers import AutoModelForCausalLM

    try:
        with torch.device("meta"):
            # The plain form of attention: the others look into masks, which have no values here.
            model = AutoModelForCausalLM.from_config(
                source.config, dtype=torch.float32, trust_remote_code=False, attn_implementation="eager"
            )
    except Exception as error:  # whatever values that do not go together make a model's constructor raise
        raise BitlawError(f"{source.name}: its config.json makes no model ({_first_line(error)})") from error
    return model.eval()


def open_tokenizer(source: Source) -> Any:
    """Raises BitlawError when the folder has none that opens without foreign code."""
    from transformers import AutoTokenizer

    try:
        return AutoTokenizer.from_pretrained(source.folder, trust_remote_code=False, local_files_only=True)
    except Exception as error:  # OSError, ValueError, ImportError and bare Exception of tokenizers
        raise BitlawError(
            f"{source.name}: has no tokenizer that opens ({_first_line(error)}): save it into the folder"
        ) from error


def _config(name: str, folder: Path) -> Any:
    from transformers import CONFIG_MAPPING, AutoConfig
    from transformers.models.auto.modeling_auto import MODEL_FOR_CAUSAL_LM_MAPPING_NAMES

    raw = read_json(folder / "config.json")
    kind = raw.get("model_type") if isinstance(raw, dict) else None
    if not isinstance(kind, str):
        raise BitlawError(f"{name}: is no model: config.json names no model_type")
    if kind not in CONFIG_MAPPING:
        if raw.get("auto_map"):
            raise BitlawError(
                f"{name}: needs code of its own (model type '{kind}', auto_map in config.json), which is never run "
                "here: use a model that transformers knows"
            )
        raise BitlawError(
            f"{name}: model type '{kind}' is unknown to transformers{nearest(kind, list(CONFIG_MAPPING))}"
        )
    if kind not in MODEL_FOR_CAUSAL_LM_MAPPING_NAMES:
        raise BitlawError(f"{name}: model type '{kind}' is no causal language model of transformers")
    if raw.get("quantization_config"):
        known = raw["quantization_config"]
        method = known.get("quant_method", "unknown method") if isinstance(known, dict) else "unknown method"
        raise BitlawError(f"{name}: is quantized already ({method}): start from its unquantized weights")
    try:
        return AutoConfig.from_pretrained(folder, trust_remote_code=False, local_files_only=True)
    except Exception as error:  # a value of the wrong kind
        raise BitlawError(f"{name}: its config.json cannot be used ({_first_line(error)})") from error


def _check_weights(name: str, folder: Path, local: bool) -> None:
    if any(folder.glob("*.safetensors")):
        return
    pickles = sorted(path.name for path in folder.iterdir() if path.suffix in PICKLES)
    if pickles or not local:  # pickles of the hub are not even fetched
        found = f"its weights are pickles ({pickles[0]})" if pickles else "the hub has no safetensors of it"
        raise BitlawError(
            f"{name}: {found}; a pickle can run any code and is not opened: where you trust it, convert it with "
            "AutoModelForCausalLM.from_pretrained(MODEL).save_pretrained(FOLDER), and give FOLDER"
        )
    raise BitlawError(f"{name}: has a config.json and no weights: put model.safetensors beside it")


def _check_sizes(source: Source) -> None:
    """Raises BitlawError where config.json speaks of a far larger model than the files hold, before it is built."""
    config, held = source.config.get_text_config(), source.weight_bytes
    width = getattr(config, "hidden_size", 1)
    for key in ("num_hidden_layers", "vocab_size", "intermediate_size"):
        count = getattr(config, key, None) or 0
        # A layer, a token and a unit of a layer have a vector of the width each, of one byte a number at least.
        if not all(isinstance(one, int) and one >= 0 for one in (count, width)) or count * width > held:
            raise BitlawError(
                f"{source.name}: config.json has {key} {count} and hidden_size {width}, its weights only {held} bytes: "
                "put both of one model there"
            )


def _fetched(name: str, revision: str, weights: bool) -> Path:
    from huggingface_hub import snapshot_download

    allowed = [*SMALL_FILES, *([WEIGHTS] if weights else [])]
    try:
        return Path(snapshot_download(name, revision=revision, allow_patterns=allowed, ignore_patterns=["*/*"]))
    except Exception as error:  # network, name, permission: many classes of several packages
        raise BitlawError(f"{name}: is no folder here, and the hub did not give it ({_first_line(error)})") from error


def _drop_chatter() -> None:
    """Filters for exactly these lines; whatever else the loggers say is shown."""
    for name, words in CHATTER.items():

        def other(record: logging.LogRecord, words: str = words) -> bool:
            return words not in record.getMessage()

        logging.getLogger(name).addFilter(other)


# Before anything imports transformers: every function here and in layers.py does so late.
_drop_chatter()


def _quiet() -> None:
    """The command shows its own progress and warnings."""
    from transformers.utils import logging as transformers_logging

    transformers_logging.set_verbosity_error()
    transformers_logging.disable_progress_bar()
    warnings.filterwarnings("ignore", message=".*clean_up_tokenization_spaces.*")


def _first_line(error: Exception) -> str:
    text = " ".join(str(error).split()) or type(error).__name__
    return text[:200].rstrip(". ")
