"""Tiny random causal language models with a tokenizer of bytes, as folders, and text for them."""

from pathlib import Path
from typing import Any

import numpy as np
import torch

CONTEXT = 32
WIDTH = 32
VOCABULARY = 257


def tokenizer() -> Any:
    """Each byte is a token; 256 ends a text."""
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers
    from transformers import PreTrainedTokenizerFast

    letters = sorted(pre_tokenizers.ByteLevel.alphabet())
    made = Tokenizer(models.BPE(vocab={letter: k for k, letter in enumerate([*letters, "<end>"])}, merges=[]))
    made.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    made.decoder = decoders.ByteLevel()
    return PreTrainedTokenizerFast(tokenizer_object=made, eos_token="<end>")


def model(kind: str, *, layers: int = 2, width: int = WIDTH, tied: bool = False) -> Any:
    """gpt2, llama or gpt_neox, with random weights large enough that rounding shows."""
    from transformers import (
        GPT2Config,
        GPT2LMHeadModel,
        GPTNeoXConfig,
        GPTNeoXForCausalLM,
        LlamaConfig,
        LlamaForCausalLM,
    )

    ends: dict[str, Any] = {"bos_token_id": 256, "eos_token_id": 256, "tie_word_embeddings": tied}
    shared: dict[str, Any] = {
        "vocab_size": VOCABULARY, "hidden_size": width, "num_hidden_layers": layers, "num_attention_heads": 2,
        "intermediate_size": 2 * width, "max_position_embeddings": 2 * CONTEXT, "initializer_range": 0.2, **ends,
    }  # fmt: skip
    torch.manual_seed(0)
    if kind == "gpt2":
        return GPT2LMHeadModel(
            GPT2Config(
                vocab_size=VOCABULARY,
                n_embd=width,
                n_layer=layers,
                n_head=2,
                n_positions=2 * CONTEXT,
                initializer_range=0.2,
                **ends,
            )
        ).eval()
    if kind == "llama":
        return LlamaForCausalLM(LlamaConfig(num_key_value_heads=1, **shared)).eval()
    return GPTNeoXForCausalLM(GPTNeoXConfig(**shared)).eval()


def folder(parent: Path, kind: str, **options: Any) -> Path:
    path = parent / kind
    model(kind, **options).save_pretrained(path)
    tokenizer().save_pretrained(path)
    return path


def text(path: Path, characters: int = 4000) -> Path:
    """Words of a few letters."""
    letters = np.random.default_rng(0).choice(list("etaoin  \n"), characters)
    path.write_text("".join(letters), encoding="utf-8")
    return path
