"""A small corpus for sweeps that tests run whole."""

from pathlib import Path

import numpy as np

from shared.corpus.write import write_description
from shared.files import sha256_file


def make_corpus(root: Path, tokens: int = 40_000) -> None:
    """A small corpus with structure, written as `bitlaw data build --text` writes one."""
    folder = root / "build" / "corpora" / "sample"
    folder.mkdir(parents=True)
    generator = np.random.Generator(np.random.PCG64(0))
    walk = np.cumsum(generator.integers(0, 5, tokens)) % 1024
    parts = {}
    for part, values in (("train", walk[: tokens * 9 // 10]), ("val", walk[tokens * 9 // 10 :])):
        path = folder / f"{part}.bin"
        path.write_bytes(values.astype("<u2").tobytes())
        parts[part] = {
            "tokens": len(values), "bytes": len(values), "bytes_per_token": 1.0, "documents": 1,
            "sha256": sha256_file(path),
        }  # fmt: skip
    write_description(folder, "sample", parts, folder / "train.bin")
