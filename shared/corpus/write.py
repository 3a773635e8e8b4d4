"""Token files: documents in, `train.bin`, `val.bin` and `corpus.json` out, each whole or absent."""

import hashlib
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

from tokenizers import Tokenizer

from shared.corpus.tokenizer import encode_documents
from shared.files import replacing, sha256_file, write_json

# Told the stage and, while encoding, the bytes of text done and to do (0, 0 in other stages).
Tell = Callable[[str, int, int], None]
Progress = Callable[[int], None]  # told the bytes of each document as it is encoded


def quiet(stage: str, done: int, total: int) -> None:
    """The ``tell`` of whoever does not look."""


def counting(stage: str, total: int, tell: Tell) -> Progress:
    """Add up the documents' bytes and tell the sum."""
    done = 0

    def progress(size: int) -> None:
        nonlocal done
        done += size
        tell(stage, done, total)

    return progress


def write_tokens(path: Path, texts: Iterable[str], tokenizer: Tokenizer, progress: Progress) -> dict:
    """Write ``texts`` as uint16 little-endian ids, each document closed by an end-of-text token.

    Returns the part of corpus.json that describes the file: tokens (end-of-text included), bytes of text (UTF-8),
    bytes_per_token, documents, sha256.
    """
    sizes: list[int] = []

    def counted() -> Iterable[str]:
        for text in texts:
            sizes.append(len(text.encode("utf-8")))
            yield text

    tokens = documents = 0
    digest = hashlib.sha256()
    with replacing(path) as temporary, temporary.open("wb") as opened:
        for ids in encode_documents(tokenizer, counted()):
            opened.write(ids.tobytes())
            digest.update(ids.tobytes())
            tokens += len(ids)
            progress(sizes[documents])
            documents += 1
    return {
        "tokens": tokens,
        "bytes": sum(sizes),
        "bytes_per_token": sum(sizes) / max(tokens, 1),
        "documents": documents,
        "sha256": digest.hexdigest(),
    }


def write_description(folder: Path, name: str, parts: dict[str, dict], tokenizer: Path, **more: Any) -> None:
    """Write corpus.json. No time, no path: the same text gives the same bytes."""
    totals = {key: sum(part[key] for part in parts.values()) for key in ("tokens", "bytes", "documents")}
    write_json(
        folder / "corpus.json",
        {
            "name": name,
            "sha256": corpus_sha256(parts["train"]["sha256"], parts["val"]["sha256"]),
            "tokenizer_sha256": sha256_file(tokenizer),
            **totals,
            "bytes_per_token": totals["bytes"] / max(totals["tokens"], 1),
            **parts,
            **more,
        },
    )


def corpus_sha256(train: str, val: str) -> str:
    """The corpus's own hash: sha256 of the two files' hexadecimal hashes, train first."""
    return hashlib.sha256((train + val).encode()).hexdigest()
