"""How long a command takes to say what it can do: `bitlaw --help` against another research tool's and a bare typer app.

The machine's limit is `python -c pass`. Processor time stands beside wall time: it is what a busy machine leaves alone.
"""

import os
import resource
import subprocess
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from benchmarks.turns import compared, in_turns

ROUNDS = 11
BARE = "import typer; app = typer.Typer(); app.command()(lambda: None); app()"
BIN = Path(sys.executable).parent
COMMANDS: dict[str, list[str]] = {
    "ours": [str(BIN / "bitlaw"), "--help"],
    "dvc": [str(BIN / "dvc"), "--help"],
    "typer": [sys.executable, "-c", BARE, "--help"],
    "torch": [sys.executable, "-c", "import torch"],
    "python": [sys.executable, "-c", "pass"],
}


def command(words: Sequence[str]) -> Callable[[], object]:
    quiet = os.environ | {"DVC_NO_ANALYTICS": "1"}
    return lambda: subprocess.run(words, check=True, capture_output=True, env=quiet)


def processor_seconds(words: Sequence[str]) -> float:
    before = resource.getrusage(resource.RUSAGE_CHILDREN)
    command(words)()
    after = resource.getrusage(resource.RUSAGE_CHILDREN)
    return after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime


def test_help(benchmark: Any) -> None:
    seconds = in_turns({name: command(words) for name, words in COMMANDS.items()}, ROUNDS, warm_up=1)
    benchmark.extra_info |= {
        "seconds": sorted(seconds["ours"])[ROUNDS // 2],
        "processor_seconds": min(processor_seconds(COMMANDS["ours"]) for _ in range(3)),
        **compared("times_faster_than_dvc", seconds, "dvc", "ours"),
        **compared("times_faster_than_import_torch", seconds, "torch", "ours"),
        **compared("times_faster_than_bare_typer", seconds, "typer", "ours"),
        **compared("share_of_python_start", seconds, "python", "ours"),
    }
    benchmark.pedantic(lambda: None, rounds=1)
