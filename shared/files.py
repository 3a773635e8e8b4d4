"""Files that are either whole or absent: written to a temporary name beside the target, then renamed."""

import contextlib
import hashlib
import json
import math
import os
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from shared.errors import BitlawError


@contextlib.contextmanager
def replacing(path: Path) -> Iterator[Path]:
    """Yield a temporary path in the same folder; rename it over ``path`` only if the block succeeds."""
    path.parent.mkdir(parents=True, exist_ok=True)
    handle, name = tempfile.mkstemp(prefix=f".{path.name}.", dir=path.parent)
    os.close(handle)
    temporary = Path(name)
    try:
        yield temporary
        with temporary.open("rb") as written:
            os.fsync(written.fileno())
        # mkstemp makes private files; results are read by others.
        temporary.chmod(0o644)
        temporary.replace(path)
    finally:
        temporary.unlink(missing_ok=True)


def write_text(path: Path, text: str) -> None:
    with replacing(path) as temporary:
        temporary.write_text(text, encoding="utf-8")


def write_json(path: Path, value: Any) -> None:
    """Deterministic JSON: sorted keys, six significant digits for floats, no NaN (null instead)."""
    write_text(path, json.dumps(six_digits(value), indent=1, sort_keys=True, allow_nan=False) + "\n")


def read_json(path: Path) -> Any:
    """Raises BitlawError when the file is missing, is no JSON, or holds a key twice."""
    try:
        return json.loads(path.read_text(encoding="utf-8"), object_pairs_hook=_each_once)
    except OSError as error:
        raise BitlawError(f"{path}: cannot be read ({error.strerror})") from error
    except RecursionError as error:
        raise BitlawError(f"{path}: is not valid JSON for us (nested too deep)") from error
    except ValueError as error:
        raise BitlawError(f"{path}: is not valid JSON ({error})") from error


def _each_once(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    made = dict(pairs)
    if len(made) < len(pairs):
        names = [name for name, _ in pairs]
        raise ValueError(f"key '{next(n for n in names if names.count(n) > 1)}' stands twice; keep one")
    return made


def six_digits(value: Any) -> Any:
    """Round every float inside to six significant digits: last digits differ between processors."""
    if isinstance(value, dict):
        return {str(key): six_digits(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [six_digits(item) for item in value]
    if hasattr(value, "tolist"):
        return six_digits(value.tolist())
    if isinstance(value, float):
        return float(f"{value:.6g}") if math.isfinite(value) else None
    return value


def sha256_file(path: Path) -> str:
    """Raises BitlawError when the file cannot be read."""
    try:
        with path.open("rb") as opened:
            return hashlib.file_digest(opened, "sha256").hexdigest()
    except OSError as error:
        raise BitlawError(f"{path}: cannot be read ({error.strerror})") from error
