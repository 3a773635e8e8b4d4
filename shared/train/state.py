"""Tensors on disk that are known to be whole: safetensors with checksums of their bytes and of what is noted."""

import hashlib
import json
from pathlib import Path
from typing import Any

from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor

from shared.errors import BitlawError
from shared.files import replacing


class DamagedFileError(BitlawError):
    """A truncated or changed file of our own; whoever owns it removes it and does the work again."""


def checksum(tensors: dict[str, Tensor]) -> str:
    digest = hashlib.sha256()
    for name in sorted(tensors):
        digest.update(name.encode())
        digest.update(tensors[name].contiguous().cpu().numpy().tobytes())
    return digest.hexdigest()


def notes_checksum(notes: str, tensors: dict[str, Tensor]) -> str:
    """Of the notes as they are written, and of each tensor's type and shape, which its bytes do not tell."""
    kinds = "".join(f"{name} {tensors[name].dtype} {tuple(tensors[name].shape)}\n" for name in sorted(tensors))
    return hashlib.sha256(f"{notes}\n{kinds}".encode()).hexdigest()


def save(path: Path, tensors: dict[str, Tensor], notes: dict[str, Any]) -> None:
    """Write tensors and JSON notes; the file is whole or absent. Raises BitlawError when the disk is full."""
    tensors = {name: tensor.detach().contiguous().cpu() for name, tensor in tensors.items()}
    text = json.dumps(notes, sort_keys=True)
    metadata = {"notes": text, "sha256": checksum(tensors), "notes_sha256": notes_checksum(text, tensors)}
    try:
        with replacing(path) as temporary:
            save_file(tensors, temporary, metadata=metadata)
    except SafetensorError as error:
        raise BitlawError(f"{path}: cannot be written ({error}); what was finished is kept, run again") from error


def load(path: Path) -> tuple[dict[str, Tensor], dict[str, Any]]:
    """Tensors and notes. Raises DamagedFileError when the file is absent, truncated, changed or not ours.

    Other errors of the file system pass through: a folder that does not answer for a while is no damage.
    """
    try:
        with safe_open(path, framework="pt") as opened:
            metadata = opened.metadata() or {}
            tensors = {name: opened.get_tensor(name) for name in opened.keys()}  # noqa: SIM118 (no iterator)
    except (SafetensorError, FileNotFoundError) as error:
        raise DamagedFileError(f"{path}: is truncated or unreadable ({error}); remove it and run again") from error
    # Files from before 2026-11-22 have no checksum of their notes.
    noted = metadata.get("notes_sha256")
    whole = metadata.get("sha256") == checksum(tensors) and "notes" in metadata
    if not whole or (noted is not None and noted != notes_checksum(metadata["notes"], tensors)):
        raise DamagedFileError(f"{path}: does not match its checksum; remove it and run again")
    try:
        return tensors, json.loads(metadata["notes"])
    except ValueError as error:
        raise DamagedFileError(f"{path}: its notes are damaged ({error}); remove it and run again") from error
