"""One byte-level BPE of 1,024 tokens for every corpus, committed as tokenizer.json.

It is committed, not retrained, so that a library update never changes the corpus. Any bytes in UTF-8 come back
unchanged: there is no normalization, and a text that spells the end-of-text mark is encoded as plain characters.
Training twice, with one thread or two, gave the identical file.
"""

from collections.abc import Iterable, Iterator
from pathlib import Path

import numpy as np
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers

from shared.errors import BitlawError
from shared.files import replacing

VOCABULARY = 1024
END_OF_TEXT = "<|endoftext|>"
END_OF_TEXT_ID = 0
COMMITTED = Path(__file__).parent / "tokenizer.json"
# encode_batch holds some hundred bytes per token while it works: 4 MB of text at a time stay under 300 MB.
CHUNK_CHARACTERS = 4_000_000


def train_tokenizer(texts: Iterable[str], path: Path = COMMITTED) -> None:
    """Train on ``texts`` and write the tokenizer to ``path``. Raises BitlawError when the text is too small."""
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=VOCABULARY,
        special_tokens=[END_OF_TEXT],
        # All 256 bytes, so that no text is ever outside the vocabulary.
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    tokenizer.train_from_iterator(texts, trainer)
    if tokenizer.get_vocab_size() != VOCABULARY:
        raise BitlawError(f"the text gives {tokenizer.get_vocab_size()} tokens, not {VOCABULARY}; give more text")
    with replacing(path) as temporary:
        temporary.write_text(tokenizer.to_str(pretty=True) + "\n", encoding="utf-8")


def load_tokenizer(path: Path = COMMITTED) -> Tokenizer:
    """Raises BitlawError when the file is missing or is no tokenizer of 1,024 tokens."""
    try:
        tokenizer = Tokenizer.from_file(str(path))
    except Exception as error:  # the library raises bare Exception
        raise BitlawError(f"{path}: is no tokenizer ({error})") from error
    if tokenizer.get_vocab_size() != VOCABULARY or tokenizer.token_to_id(END_OF_TEXT) != END_OF_TEXT_ID:
        raise BitlawError(f"{path}: needs {VOCABULARY} tokens with {END_OF_TEXT} as number {END_OF_TEXT_ID}")
    tokenizer.encode_special_tokens = True
    return tokenizer


def encode_documents(tokenizer: Tokenizer, texts: Iterable[str]) -> Iterator[np.ndarray]:
    """The ids of each text, uint16 of shape (n_tokens + 1,): an end-of-text token closes every document."""
    for chunk in _chunks(texts):
        for encoding in tokenizer.encode_batch_fast(chunk, add_special_tokens=False):
            yield np.array([*encoding.ids, END_OF_TEXT_ID], dtype="<u2")


def _chunks(texts: Iterable[str]) -> Iterator[list[str]]:
    chunk: list[str] = []
    size = 0
    for text in texts:
        chunk.append(text)
        size += len(text)
        if size >= CHUNK_CHARACTERS:
            yield chunk
            chunk, size = [], 0
    if chunk:
        yield chunk
