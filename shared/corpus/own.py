"""A user's corpus beside the built-in ones: text files or a hub data set, with the committed tokenizer.

Everything goes through `datasets`. The last tenth of the documents is for validation; a single document gives the
last tenth of its text. Nothing is shuffled or deduplicated: what is in the files is what is trained on.
"""

import math
import re
import shutil
import tempfile
from collections.abc import Callable, Iterator
from itertools import islice
from pathlib import Path
from typing import Any

import datasets

from shared.corpus.lock import SPLITS
from shared.corpus.tokenizer import COMMITTED, load_tokenizer
from shared.corpus.write import Tell, counting, quiet, write_description, write_tokens
from shared.errors import BitlawError
from shared.files import read_json, sha256_file

# `datasets` reports each load to its makers, that of a local file too: no network unless asked.
datasets.config.HF_UPDATE_DOWNLOAD_COUNTS = False
OWN = Path("build/corpora")
VALIDATION_SHARE = 0.1
WINDOW = 257  # a context of 256 tokens and the token after it
MIN_WINDOWS = 8
BUILDERS = {".txt": "text", ".jsonl": "json", ".parquet": "parquet"}
Rows = Callable[[], Iterator[tuple[str, Any]]]  # (where it is, its text) of each row


def build_from_files(files: list[Path], name: str, tell: Tell = quiet) -> Path:
    """Write build/corpora/<name> from .txt (a document each), .jsonl and .parquet (a `text` field each row).

    Line ends of .txt files become newlines. Raises BitlawError for a bad name, a file that is missing, unreadable
    or of another kind, a row without text, and too little text.
    """
    for path in files:
        if path.suffix not in BUILDERS:
            raise BitlawError(f"{path}: '{path.suffix}' is none of {', '.join(BUILDERS)}; convert the file")
        if not path.is_file():
            raise BitlawError(f"{path}: there is no such file")
    datasets.logging.set_verbosity(datasets.logging.CRITICAL)  # its own account of an error comes on top of ours

    def rows() -> Iterator[tuple[str, Any]]:
        for path in files:
            yield from _rows_of_file(path)

    sources = [{"file": path.name, "sha256": sha256_file(path)} for path in files]
    return _build(name, rows, sources, tell)


def build_from_dataset(
    dataset: str,
    revision: str,
    name: str,
    *,
    split: str = "train",
    config: str | None = None,
    tell: Tell = quiet,
) -> Path:
    """Write build/corpora/<name> from a hub data set's `text` column at a pinned revision (a commit or a tag).

    Raises BitlawError when the data set cannot be loaded, and as ``build_from_files`` does.
    """
    datasets.logging.set_verbosity(datasets.logging.CRITICAL)
    try:
        loaded = datasets.load_dataset(dataset, config, revision=revision, split=split)
    except Exception as error:  # whatever the hub, the network or the data set's files raise
        raise BitlawError(f"data set '{dataset}' at {revision}, split '{split}': {_first_line(error)}") from error
    if "text" not in loaded.column_names:
        raise BitlawError(f"data set '{dataset}': has no column 'text' (it has: {', '.join(loaded.column_names)})")

    def rows() -> Iterator[tuple[str, Any]]:
        for number, row in enumerate(loaded, start=1):
            yield f"data set '{dataset}', row {number}", row["text"]

    source = {"dataset": dataset, "config": config, "revision": revision, "split": split}
    return _build(name, rows, [source], tell)


def _rows_of_file(path: Path) -> Iterator[tuple[str, Any]]:
    options = {"sample_by": "document"} if path.suffix == ".txt" else {}
    number = 0
    try:
        # Streaming reads the file in place: no copy in a cache, and no network.
        rows = datasets.load_dataset(
            BUILDERS[path.suffix], data_files=str(path.resolve()), split="train", streaming=True, **options
        )
        for number, row in enumerate(rows, start=1):
            yield f"{path}, row {number}", row.get("text")
    except StopIteration:  # how an empty file ends
        return
    except Exception as error:  # pyarrow, unicode and file errors alike
        raise BitlawError(f"{path}: cannot be read after row {number} ({_first_line(error)})") from error


def _documents(rows: Rows) -> Iterator[str]:
    for where, text in rows():
        if not isinstance(text, str):
            raise BitlawError(f"{where}: the field 'text' is missing or no text")
        if text.strip():
            yield text


def _build(name: str, rows: Rows, sources: list[dict], tell: Tell) -> Path:
    if not re.fullmatch(r"[a-z0-9][a-z0-9_-]{0,39}", name):
        raise BitlawError(f"the name '{name}' must be 1-40 of a-z, 0-9, _ and -, and start with a letter or digit")
    if name in SPLITS:
        raise BitlawError(f"the name '{name}' is a built-in corpus; choose another --name")
    tell(f"reading {name}", 0, 0)
    count = size = 0
    for text in _documents(rows):  # a first pass: every row is checked before anything is written
        count += 1
        size += len(text.encode("utf-8"))
    if not count:
        raise BitlawError("the text is empty; give files or a data set with text in them")
    held_out = math.ceil(count * VALIDATION_SHARE)
    texts = _documents(rows)
    if count == 1:
        (whole,) = texts
        cut = len(whole) - math.ceil(len(whole) * VALIDATION_SHARE)
        texts, count, held_out = iter([whole[:cut], whole[cut:]]), 2, 1
        statement = "the last 10 % of the text of the only document"
    else:
        statement = f"the last 10 % of the documents ({held_out:,} of {count:,})"
    tokenizer = load_tokenizer()
    progress = counting(f"encoding {name}", size, tell)
    target = OWN / name
    OWN.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(prefix=".", dir=OWN) as temporary:
        fresh = Path(temporary) / name
        parts = {
            "train": write_tokens(fresh / "train.bin", islice(texts, count - held_out), tokenizer, progress),
            "val": write_tokens(fresh / "val.bin", texts, tokenizer, progress),
        }
        needed = MIN_WINDOWS * WINDOW
        for part, found in parts.items():
            if found["tokens"] < needed:
                raise BitlawError(
                    f"the text is too short: its {part} part has {found['tokens']:,} tokens and needs {needed:,} "
                    f"({MIN_WINDOWS} windows of {WINDOW}; validation is {statement}); give more text"
                )
        write_description(fresh, name, parts, COMMITTED, sources=sources, split=statement)
        if target.exists():
            # Runs name a corpus by its content: another content under the same name would orphan them.
            if read_json(target / "corpus.json") != read_json(fresh / "corpus.json"):
                raise BitlawError(f"{target}: exists with other content; choose another --name or remove it")
            shutil.rmtree(target)
        fresh.rename(target)
    return target


def _first_line(error: Exception) -> str:
    return f"{type(error).__name__}: {str(error).strip()}".splitlines()[0][:200].rstrip(". ")
