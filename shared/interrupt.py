"""Ctrl-C during an import is heard when the import is done: torch's C++ ends the process without a word otherwise
(one in sixty that come while torch is imported)."""

import os
import signal
import threading
from types import FrameType

AGAIN_SECONDS = 0.05


def wait_for_imports() -> None:
    """From the main thread. A process that is deaf to Ctrl-C, or hears it in its own way, stays so."""
    if signal.getsignal(signal.SIGINT) == signal.default_int_handler:
        signal.signal(signal.SIGINT, _interrupted)


def _interrupted(number: int, frame: FrameType | None) -> None:
    if not _importing(frame):
        signal.default_int_handler(number, frame)
    again = threading.Timer(AGAIN_SECONDS, os.kill, (os.getpid(), number))
    again.daemon = True
    again.start()


def _importing(frame: FrameType | None) -> bool:
    while frame is not None:
        if frame.f_code.co_filename.startswith("<frozen importlib"):
            return True
        frame = frame.f_back
    return False
