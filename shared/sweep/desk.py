"""Files of the ledger on their way between the machine that keeps it and those that cannot see its folder.

The desk stands where the ledger is. Nodes hand it what they finished, in pieces, and take from it what they go on from;
a file gets its name only when it is whole: its sha256 is that of the sender's, and it is renamed, as the ledger's own.
"""

import hashlib
import json
import secrets
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

from safetensors import SafetensorError, safe_open

from shared.errors import BitlawError, not_kept
from shared.files import replacing
from shared.sweep.claim import is_stale
from shared.sweep.events import Event

PIECE = 8 * 2**20  # bytes sent at once: far below the smallest object store of a node
# Calls a method of a desk, wherever it is, and returns its value.
Call = Callable[..., Any]


class Desk:
    """`folder` is `<build>/desks/<token>`: who sees it where it looks for its own build folder shares the ledger."""

    def __init__(self, folder: str) -> None:
        self.folder = Path(folder)
        self.build = self.folder.parent.parent
        self.said: list[Event] = []
        self.sums: dict[str, Any] = {}

    def tell(self, event: Event) -> None:
        """What a worker said, for the launcher."""
        self.said.append(event)

    def told(self) -> list[Event]:
        """What was said since the last call."""
        said, self.said = self.said, []
        return said

    def put(self, parcel: str, data: bytes) -> None:
        """The next piece of a file. Raises BitlawError when it cannot be kept (a full disk)."""
        try:
            with (self.folder / parcel).open("ab") as opened:
                opened.write(data)
        except OSError as error:
            raise not_kept(error) from error
        self.sums.setdefault(parcel, hashlib.sha256()).update(data)

    def finish(self, parcel: str, name: str, sha256: str) -> None:
        """Give a file its name in the ledger. Raises BitlawError when it is not what was sent."""
        if self.sums.pop(parcel).hexdigest() != sha256:
            raise BitlawError(f"{name} was changed on its way from a node: run the command again")
        target = within(self.build, name)
        try:
            # Of two finishers either may be last: both have the same numbers.
            with replacing(target) as temporary:
                (self.folder / parcel).replace(temporary)
        except OSError as error:
            raise not_kept(error) from error

    def get(self, name: str, offset: int) -> bytes:
        """A piece of a file of the ledger; empty at its end and when there is no such file."""
        try:
            with within(self.build, name).open("rb") as opened:
                opened.seek(offset)
                return opened.read(PIECE)
        except FileNotFoundError:
            return b""

    def step(self, name: str) -> int:
        return step_of(within(self.build, name))

    def have(self, run_ids: list[str]) -> list[str]:
        """Those of the runs that are finished."""
        return [run_id for run_id in run_ids if within(self.build, f"runs/{run_id}/result.json").exists()]

    def drop(self, name: str) -> None:
        """Remove a state that nobody goes on from."""
        within(self.build, name).unlink(missing_ok=True)


def new_desk(build: Path) -> Path:
    """A folder for a desk; those that dead launchers left behind are removed."""
    for folder in (build / "desks").glob("*"):
        if is_stale(folder / "claim"):
            shutil.rmtree(folder, ignore_errors=True)
    return build / "desks" / secrets.token_hex(8)


def within(build: Path, name: str) -> Path:
    """A name of the ledger as a path. Raises BitlawError for one that leads elsewhere."""
    parts = Path(name).parts
    if len(parts) < 3 or parts[0] not in ("runs", "trunks") or ".." in parts:
        raise BitlawError(f"{name!r} names no file of a run or a trunk")
    return build / name


def send(call: Call, path: Path, name: str) -> None:
    """Hand a file over under its name in the ledger: as it was when this began, and never an empty one."""
    parcel, digest = secrets.token_hex(8), hashlib.sha256()
    with path.open("rb") as opened:
        while data := opened.read(PIECE):
            digest.update(data)
            call("put", parcel, data)
    call("finish", parcel, name, digest.hexdigest())


def fetch(call: Call, name: str, path: Path) -> bool:
    """Take a file of the ledger; False when it has none. Tensors on the way are checked by who loads them."""
    data = call("get", name, 0)
    if not data:
        return False
    with replacing(path) as temporary, temporary.open("wb") as opened:
        offset = 0
        while data:
            opened.write(data)
            offset += len(data)
            data = call("get", name, offset)
    return True


def step_of(path: Path) -> int:
    """The training step that a saved state has reached; -1 when there is none, or none that can be read."""
    try:
        with safe_open(path, framework="np") as opened:
            return int(json.loads((opened.metadata() or {})["notes"])["step"])
    except (OSError, SafetensorError, ValueError, KeyError, TypeError, OverflowError, RecursionError):
        return -1
