"""Between a worker and whoever started it: its environment, and what it says, one JSON object a line."""

import json
import os
from typing import Any

Event = dict[str, Any]
# A stopped worker finishes its step and saves its state: far less than this.
STOP_SECONDS = 60.0


def parse(line: str) -> Event:
    """A line that is no event (a library's print) is a warning."""
    try:
        value = json.loads(line)
    except ValueError:
        return {"warning": line.strip()}
    return value if isinstance(value, dict) else {"warning": line.strip()}


def environment(wanted: dict[str, str], launcher: str) -> dict[str, str]:
    """Of a worker: `wanted`, of which the machine's own come first but for threads (they are part of a run's identity).

    `launcher` is the variable that gets this process's id, so that a worker notices its end; empty for torchrun's.
    """
    threads = {name: value for name, value in wanted.items() if name.endswith("_NUM_THREADS")}
    return wanted | os.environ | threads | ({launcher: str(os.getpid())} if launcher else {})
