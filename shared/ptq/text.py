"""Text for a model: windows of tokens to calibrate on and, apart from them, to measure on.

Shape letters: S windows, T positions.
"""

import hashlib
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from itertools import chain
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from shared.corpus.load import corpus_names, load_corpus
from shared.corpus.tokenizer import END_OF_TEXT_ID, load_tokenizer
from shared.errors import BitlawError

# Text that is read, of each part; beyond it nothing is looked at.
MOST_CHARACTERS = 30_000_000
CHUNK_CHARACTERS = 1_000_000
Tokens = NDArray[np.int64]


@dataclass(frozen=True)
class Windows:
    """`calibration` (S, T) and `evaluation` (S, T + 1: inputs and the tokens after them), and their source.

    No token of one is in the other.
    """

    calibration: Tensor
    evaluation: Tensor
    about: str

    @property
    def context(self) -> int:
        return self.calibration.shape[1]

    @property
    def sha256(self) -> str:
        """Of all tokens in their order."""
        digest = hashlib.sha256(f"{tuple(self.calibration.shape)} {tuple(self.evaluation.shape)}".encode())
        for part in (self.calibration, self.evaluation):
            digest.update(part.numpy().astype("<i8").tobytes())
        return digest.hexdigest()


def from_files(paths: list[Path], tokenizer: Any, context: int, calibration: int, evaluation: int) -> Windows:
    """Text files in UTF-8, one document each; their first windows calibrate, the others measure.

    Raises BitlawError for a file that cannot be read as text, and for too little of it.
    """

    def documents() -> Iterator[str]:
        for path in paths:
            try:
                with path.open(encoding="utf-8") as opened:
                    yield opened.read(MOST_CHARACTERS)
            except UnicodeDecodeError as error:
                raise BitlawError(f"{path}: is no text in UTF-8 ({error.reason} at byte {error.start})") from error
            except OSError as error:
                raise BitlawError(f"{path}: cannot be read ({error.strerror})") from error

    tokens = encode(documents(), tokenizer)
    names = ", ".join(str(path) for path in paths)
    return cut(tokens, tokens_lead(tokenizer), context, calibration, evaluation, names)


def from_dataset(name: str, tokenizer: Any, context: int, calibration: int, evaluation: int) -> Windows:
    """A corpus of `bitlaw data`, or a data set of the hub or a folder: NAME[:CONFIG][@REVISION], its column `text`.

    The training part calibrates and the test (or else validation) part measures; a data set of one part is cut in two.
    Raises BitlawError when there is no such data set, or too little text in it.
    """
    if name in corpus_names():
        return _from_corpus(name, tokenizer, context, calibration, evaluation)
    parts = _hub_parts(name)
    lead = tokens_lead(tokenizer)
    held_out = next((part for part in ("test", "validation") if part in parts), None)
    if held_out is None or "train" not in parts:
        tokens = encode(chain.from_iterable(parts.values()), tokenizer)
        return cut(tokens, lead, context, calibration, evaluation, f"{name} ({', '.join(parts)})")
    first = spread(encode(parts["train"], tokenizer), lead, context, calibration, 1, f"{name} (train)")
    second = spread(encode(parts[held_out], tokenizer), lead, context, evaluation, 2, f"{name} ({held_out})")
    return Windows(first[:, :-1], second, f"{name} (train; {held_out})")


def _from_corpus(name: str, tokenizer: Any, context: int, calibration: int, evaluation: int) -> Windows:
    """Its tokens as they are where the model has the same tokenizer, else its text in the model's tokens."""
    corpus = load_corpus(name)
    ours = load_tokenizer()
    where = f"corpus {name}"
    if tokenizer.get_vocab() == ours.get_vocab() and not tokens_lead(tokenizer):
        first = spread(corpus.train, [], context, calibration, 1, f"{where} (train)")
        return Windows(first[:, :-1], spread(corpus.val, [], context, evaluation, 2, f"{where} (val)"), where)

    def documents(tokens: NDArray[np.uint16]) -> Iterator[str]:
        # A token is 2.5 bytes on average (shared/corpus/README.md).
        head = np.asarray(tokens[: MOST_CHARACTERS // 2])
        for document in np.split(head, np.flatnonzero(head == END_OF_TEXT_ID) + 1):
            yield ours.decode(document.tolist(), skip_special_tokens=True)

    lead = tokens_lead(tokenizer)
    first = spread(encode(documents(corpus.train), tokenizer), lead, context, calibration, 1, f"{where} (train)")
    second = spread(encode(documents(corpus.val), tokenizer), lead, context, evaluation, 2, f"{where} (val)")
    return Windows(first[:, :-1], second, where)


def _hub_parts(name: str) -> dict[str, Iterator[str]]:
    import datasets

    head, _, revision = name.partition("@")
    path, _, config = head.partition(":")
    datasets.logging.set_verbosity(datasets.logging.CRITICAL)
    try:
        loaded = datasets.load_dataset(path, config or None, revision=revision or None, streaming=True)
    except Exception as error:  # whatever the hub, the network or the data set's files raise
        known = f" (corpora here: {', '.join(corpus_names())})" if corpus_names() else ""
        text = " ".join(str(error).split())[:160].rstrip(". ")
        raise BitlawError(f"data set '{name}' cannot be read: {text}{known}") from error

    def texts(part: str) -> Iterator[str]:
        for number, row in enumerate(loaded[part], start=1):
            if not isinstance(row.get("text"), str):
                raise BitlawError(f"data set '{name}', {part}, row {number}: the column 'text' is missing or no text")
            if row["text"].strip():
                yield row["text"]

    return {part: texts(part) for part in loaded}


def encode(documents: Iterable[str], tokenizer: Any) -> Tokens:
    """Tokens of the documents, each closed by the end-of-text token where the tokenizer has one.

    Raises BitlawError when the tokenizer has no token for a piece of the text.
    """
    end = [] if tokenizer.eos_token_id is None else [tokenizer.eos_token_id]
    ids: list[int] = []
    read = 0
    for document in documents:
        for start in range(0, len(document), CHUNK_CHARACTERS):
            piece = document[start : start + CHUNK_CHARACTERS]
            ids += token_ids(piece, tokenizer, add_special_tokens=False)
        ids += end
        read += len(document)
        if read >= MOST_CHARACTERS:
            break
    return np.array(ids, dtype=np.int64)


def tokens_lead(tokenizer: Any) -> list[int]:
    """The tokens that the tokenizer puts before every text: a model that was trained with them needs them."""
    bos = tokenizer.bos_token_id
    return [bos] if bos is not None and token_ids("a", tokenizer)[:1] == [bos] else []


def token_ids(text: str, tokenizer: Any, **options: bool) -> list[int]:
    """Raises BitlawError when the tokenizer refuses the text."""
    try:
        return list(tokenizer(text, verbose=False, **options)["input_ids"])
    except MemoryError:
        raise
    except Exception as error:  # tokenizers raises bare Exception, as for a word of no vocabulary without [UNK]
        reason = " ".join(str(error).split())[:160].rstrip(". ")
        raise BitlawError(
            f"the model's tokenizer cannot read the text ({reason}): mend its vocabulary, or put the tokenizer "
            "that the model was trained with into its folder"
        ) from error


def cut(tokens: Tokens, lead: list[int], context: int, calibration: int, evaluation: int, where: str) -> Windows:
    """One text: its beginning, in the proportion that was asked for, calibrates, and its end measures."""
    available = _available(tokens, lead, context)
    if available < 3:
        raise BitlawError(_too_short(where, tokens, context, 3, "one to calibrate and two to measure"))
    share = calibration / (calibration + evaluation)
    first = min(max(round(available * share), 1), available - 2)
    # The calibration windows are given one token more than they use, so that the last one ends inside its part.
    before, after = tokens[: first * context + 1], tokens[first * context :]
    return Windows(
        spread(before, lead, context, calibration, 1, where)[:, :-1],
        spread(after, lead, context, evaluation, 2, where),
        where,
    )


def spread(tokens: NDArray[Any], lead: list[int], context: int, wanted: int, least: int, where: str) -> Tensor:
    """Windows (S, T + 1) evenly spread over the tokens, as many as there are up to `wanted` (shared/evaluate/losses).

    Where every text begins with a token of its own, `lead`, so does every window.
    """
    available = _available(tokens, lead, context)
    count = min(wanted, available)
    if count < least:
        raise BitlawError(_too_short(where, tokens, context, least, "too few"))
    starts = [(i * available // count) * context for i in range(count)]
    length = context + 1 - len(lead)
    rows = np.stack([np.asarray(tokens[start : start + length], dtype=np.int64) for start in starts])
    return torch.from_numpy(np.concatenate([np.tile(np.array(lead, dtype=np.int64), (count, 1)), rows], axis=1))


def _available(tokens: NDArray[Any], lead: list[int], context: int) -> int:
    return max(0, len(tokens) - 1 + len(lead)) // context


def _too_short(where: str, tokens: NDArray[Any], context: int, least: int, why: str) -> str:
    one = f"shorter than one window of {context}" if len(tokens) <= context else f"{len(tokens) // context} windows"
    return (
        f"{where}: has {len(tokens)} tokens ({one}); {least} windows of {context} tokens are the least ({why}): "
        "give more text or a smaller --context"
    )
