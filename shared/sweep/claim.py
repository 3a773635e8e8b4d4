"""Claims on work that many workers share, on one machine or over a shared folder.

A claim is a file made with O_EXCL that names host and process; its owner touches it while it works. A claim is
stale when its process is gone (same host) or when nobody has touched it for `STALE_SECONDS` (other hosts).
"""

import contextlib
import json
import os
import secrets
import socket
import threading
import time
from collections.abc import Iterator
from pathlib import Path

BEAT_SECONDS = 15.0
STALE_SECONDS = 180.0
SUSPENDED_SECONDS = 3600.0


def _create(path: Path, token: str) -> bool:
    path.parent.mkdir(parents=True, exist_ok=True)
    try:
        handle = os.open(path, os.O_CREAT | os.O_EXCL | os.O_WRONLY, 0o644)
    except FileExistsError:
        return False
    try:
        with os.fdopen(handle, "w") as opened:
            json.dump({"host": socket.gethostname(), "pid": os.getpid(), "token": token}, opened)
    except OSError:
        # A full disk: an empty claim would keep everybody off for STALE_SECONDS.
        path.unlink(missing_ok=True)
        raise
    return True


def _token(path: Path) -> str | None:
    try:
        value = json.loads(path.read_text())["token"]
    except (OSError, ValueError, LookupError, TypeError, RecursionError):
        return None
    return str(value)


def _seen(path: Path) -> tuple[int, bytes] | None:
    """When a claim was touched and what it says; None when there is none. No two claims have the same."""
    try:
        return path.stat().st_mtime_ns, path.read_bytes()
    except FileNotFoundError:
        return None


def is_stale(path: Path) -> bool:
    """Whether the owner of this claim is gone. An absent claim is not stale, it is free.

    On this host the process tells; one that lives may be suspended, and is believed for an hour (its number may by
    then belong to another process). On other hosts only the time of the last beat can tell.
    """
    try:
        age = time.time() - path.stat().st_mtime
        owner = json.loads(path.read_text())
        here = bool(owner["host"] == socket.gethostname())
        pid = int(owner["pid"])
    except FileNotFoundError:
        return False
    except (ValueError, LookupError, TypeError, OverflowError, RecursionError):
        here, pid = False, 0  # cut short or damaged: nobody's, until its owner has had time to touch it
    if not here or not 0 < pid < 2**31:
        return age > STALE_SECONDS
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return True
    except PermissionError:
        pass
    return age > SUSPENDED_SECONDS


def _take_over(path: Path, seen: tuple[int, bytes] | None) -> None:
    """Remove the claim that was `seen` before it was found stale, and no other that somebody made since.

    It is moved aside first: whoever moved it holds it alone, and gives back one that is not what was seen.
    """
    aside = path.with_name(f"{path.name}.{secrets.token_hex(4)}")
    try:
        path.rename(aside)
    except FileNotFoundError:
        return
    if _seen(aside) != seen:
        with contextlib.suppress(FileExistsError):
            os.link(aside, path)
    aside.unlink(missing_ok=True)


@contextlib.contextmanager
def claimed(path: Path) -> Iterator[bool]:
    """Hold a claim for the block; yields False at once when somebody else holds it."""
    seen = _seen(path)
    if is_stale(path):
        _take_over(path, seen)
    token = secrets.token_hex(8)
    if not _create(path, token):
        yield False
        return
    done = threading.Event()

    def beat() -> None:
        while not done.wait(BEAT_SECONDS):
            with contextlib.suppress(OSError):
                if _token(path) == token:
                    os.utime(path)

    thread = threading.Thread(target=beat, daemon=True)
    thread.start()
    try:
        yield True
    finally:
        done.set()
        thread.join()
        # A process that was suspended for minutes may have lost its claim to another one.
        if _token(path) == token:
            path.unlink(missing_ok=True)
