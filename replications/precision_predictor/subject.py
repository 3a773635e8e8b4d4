"""The model that a command works on: a committed checkpoint by its run id, a Hugging Face folder, or a hub id."""

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from shared.corpus.tokenizer import END_OF_TEXT_ID, load_tokenizer
from shared.errors import BitlawError, nearest
from shared.model.exchange import to_transformers
from shared.ptq.models import find_model, open_model, open_tokenizer
from shared.sweep.kept import kept, kept_model

CHECKPOINTS = Path("reports") / "checkpoints"


@dataclass(frozen=True)
class Subject:
    """A causal language model of `transformers` in FP32 and evaluation mode, with its tokenizer.

    `context` is the most positions it takes. `N` counts parameters without embeddings (the blocks' matrices) and `D`
    training tokens where they are known: of our own checkpoints.
    """

    name: str
    model: Any
    tokenizer: Any
    context: int
    N: int | None = None
    D: int | None = None


def open_subject(name: str, device: torch.device, revision: str = "main", folder: Path = CHECKPOINTS) -> Subject:
    """`name` is a run id of `folder`, a model's folder or a hub id; only the last may use the network.

    Raises BitlawError when it is none of these, and as `find_model` and `open_model` do.
    """
    runs = kept(folder) if (folder / "index.json").exists() else {}
    if name in runs:
        spec = runs[name].spec
        model = to_transformers(kept_model(folder, name)).to(device)
        return Subject(name, model, committed_tokenizer(), spec.context, spec.shape.n_blocks, spec.tokens)
    if len(name) == 12 and set(name) <= set("0123456789abcdef") and not Path(name).exists():
        raise BitlawError(f"run {name} is not in {folder / 'index.json'}{nearest(name, list(runs))}")
    source = find_model(name, revision)
    model = open_model(source, device)
    tokenizer = open_tokenizer(source)
    return Subject(name, model, tokenizer, source.context or 2048)


def committed_tokenizer() -> Any:
    """Ours (shared/corpus/tokenizer.json) as `transformers` wants it; texts end with its end-of-text token."""
    from transformers import PreTrainedTokenizerFast

    ours = load_tokenizer()
    return PreTrainedTokenizerFast(tokenizer_object=ours, eos_token=ours.id_to_token(END_OF_TEXT_ID))
