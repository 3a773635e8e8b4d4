"""Leave repeats out: files that mostly repeat others, and licence headers that lead file after file.

Near-duplicates inflate D (the same tokens count twice) and, across the split, make validation easy.
"""

import hashlib
from collections.abc import Iterable
from dataclasses import dataclass, replace

MIN_LINE = 10  # shorter lines (`else:`, `return x`) are in every file and say nothing about repetition
REPEATED = 0.5


@dataclass(frozen=True)
class Document:
    """``name`` is unique in a corpus and starts with the package; ``split`` is train or val."""

    name: str
    text: str
    split: str


@dataclass(frozen=True)
class Deduplicated:
    """``dropped`` counts documents by reason."""

    train: list[Document]
    val: list[Document]
    dropped: dict[str, int]


def deduplicate(documents: Iterable[Document]) -> Deduplicated:
    """Drop each document with over half of its lines in documents kept before it.

    Validation documents come first, so that training repeats none of them; a small validation document can still
    be contained in a large training one, so each is compared with the training lines once more at the end.
    """
    ordered = sorted(documents, key=lambda document: document.split != "val")  # stable: keeps the given order
    seen: dict[str, set[bytes]] = {"train": set(), "val": set()}
    kept: dict[str, list[Document]] = {"train": [], "val": []}
    headers: set[str] = set()
    repeats = 0
    for document in ordered:
        lines = line_hashes(document.text)
        if lines and share(lines, seen["val"], seen["train"]) > REPEATED:
            repeats += 1
            continue
        seen[document.split].update(lines)
        shortened = replace(document, text=without_known_header(document.text, headers))
        if shortened.text.strip():
            kept[document.split].append(shortened)
    val = [d for d in kept["val"] if share(line_hashes(d.text), seen["train"]) <= REPEATED]
    dropped = {"repeats": repeats, "validation in training": len(kept["val"]) - len(val)}
    return Deduplicated(train=kept["train"], val=val, dropped=dropped)


def line_hashes(text: str) -> list[bytes]:
    """Eight bytes for each stripped line of over ten characters (a full set of the lines would need gigabytes)."""
    stripped = (line.strip() for line in text.split("\n"))
    return [
        hashlib.blake2b(line.encode(errors="surrogatepass"), digest_size=8).digest()
        for line in stripped
        if len(line) > MIN_LINE
    ]


def share(lines: list[bytes], *seen: set[bytes]) -> float:
    """The part of ``lines`` that any of the sets holds; 0 without lines."""
    return sum(any(line in known for known in seen) for line in lines) / len(lines) if lines else 0.0


def without_known_header(text: str, headers: set[str]) -> str:
    """``text`` less the lines of its leading comment that led a file before; ``headers`` learns the new ones."""
    lines = text.split("\n")
    end = next((i for i, line in enumerate(lines) if line.strip() and not line.startswith("#")), len(lines))
    leading = lines[:end]
    new = [line for line in leading if len(line.strip()) <= MIN_LINE or line not in headers]
    headers.update(line for line in leading if len(line.strip()) > MIN_LINE)
    if len(new) == len(leading):
        return text
    # What is left between the removed lines is bare `#` and blank lines.
    new = [line for line in new if len(line.strip()) > MIN_LINE]
    return "\n".join(new + lines[end:])
