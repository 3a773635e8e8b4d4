"""Read a corpus: two memory-mapped token files and their description."""

import re
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from shared.checked import check
from shared.corpus.write import corpus_sha256
from shared.errors import BitlawError, nearest
from shared.files import read_json, sha256_file

PARTS = ("train", "val")
PINS = Path("data.sha256")
FOLDERS = (Path("data"), Path("build/corpora"))


@dataclass(frozen=True)
class Corpus:
    """``train`` and ``val``: token ids, uint16 of shape (n_tokens,), read from disk as they are used.

    ``sha256`` names the content of both files; ``info`` is corpus.json.
    """

    name: str
    sha256: str
    folder: Path
    train: np.memmap
    val: np.memmap
    info: dict[str, Any]


@dataclass(frozen=True)
class _Part:
    sha256: str
    tokens: int


@dataclass(frozen=True)
class _Info:
    """The fields of corpus.json that loading needs."""

    sha256: str
    train: _Part
    val: _Part


def corpus_names(root: Path = Path()) -> list[str]:
    """The names of the corpora that are there: data/ first, then the user's own."""
    return [found.parent.name for folder in FOLDERS for found in sorted((root / folder).glob("*/corpus.json"))]


def load_corpus(name: str, root: Path = Path()) -> Corpus:
    """Open data/<name> or build/corpora/<name>.

    Raises BitlawError when there is no such corpus, and when a file is missing, unreadable or has another size than
    corpus.json says. Content is compared by ``verify``: hashing takes a while, sizes do not.
    """
    # The name may come from a plan or an index of checkpoints: it is no path.
    plain = re.fullmatch(r"[\w-]{1,40}", name)
    folder = next((root / base / name for base in FOLDERS if (root / base / name / "corpus.json").is_file()), None)
    if not plain or folder is None:
        known = corpus_names(root)
        if not known:
            raise BitlawError(f"there is no corpus '{name}'; run `bitlaw data build`")
        hint = nearest(name, known)
        raise BitlawError(f"there is no corpus '{name}'{hint} (there are: {', '.join(known)})")
    info = read_info(folder)
    train, val = (_open(folder / f"{part}.bin", int(info[part]["tokens"])) for part in PARTS)
    return Corpus(name=name, sha256=info["sha256"], folder=folder, train=train, val=val, info=info)


def pinned_sha256(name: str, root: Path) -> str | None:
    """The hash of data/<name> as data.sha256 pins it, whether or not data/ is there; None for another corpus."""
    pins = root / PINS
    if not pins.is_file():
        return None
    hashes = read_pins(pins)
    parts = [hashes.get(f"data/{name}/{part}.bin") for part in PARTS]
    return corpus_sha256(str(parts[0]), str(parts[1])) if all(parts) else None


def read_pins(path: Path = PINS) -> dict[str, str]:
    """data.sha256: {file: sha256}, in its order. Raises BitlawError when it is missing or malformed."""
    try:
        lines = path.read_text(encoding="utf-8").splitlines()
    except (OSError, UnicodeDecodeError) as error:
        raise BitlawError(f"{path}: cannot be read; restore it from git") from error
    pins = {}
    for row, line in enumerate(lines, start=1):
        digest, _, name = line.partition("  ")
        if not re.fullmatch(r"[0-9a-f]{64}", digest) or not name:
            raise BitlawError(f"{path}, line {row}: is not '<sha256>  <file>'; restore it from git")
        if name in pins:
            raise BitlawError(f"{path}, line {row}: {name} stands twice; restore it from git")
        pins[name] = digest
    if not pins:
        raise BitlawError(f"{path}: is empty; restore it from git")
    return pins


def read_info(folder: Path) -> dict[str, Any]:
    """corpus.json of ``folder``. Raises BitlawError when it lacks a field or contradicts itself."""
    path = folder / "corpus.json"
    info = read_json(path)
    check(_Info, info, path, "corpus description", "build the corpus again")
    expected = corpus_sha256(*(info[part]["sha256"] for part in PARTS))
    if info["sha256"] != expected or not all(info[part]["tokens"] > 0 for part in PARTS):
        raise BitlawError(f"{path}: was changed by hand (its hashes disagree); build the corpus again")
    return info


def verify(corpus: Corpus) -> None:
    """Hash the token files and raise BitlawError naming the first that is not what corpus.json says."""
    for part in PARTS:
        path = corpus.folder / f"{part}.bin"
        if sha256_file(path) != corpus.info[part]["sha256"]:
            raise BitlawError(f"{path}: its content was changed; remove the folder and build the corpus again")


def _open(path: Path, tokens: int) -> np.memmap:
    try:
        size = path.stat().st_size
        if size != 2 * tokens:
            raise BitlawError(
                f"{path}: has {size:,} bytes, corpus.json says {2 * tokens:,}; remove the folder and build it again"
            )
        return np.memmap(path, dtype="<u2", mode="r")
    except OSError as error:
        raise BitlawError(f"{path}: cannot be read ({error.strerror}); build the corpus again") from error
