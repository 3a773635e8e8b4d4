"""Building the report against `dvc plots show`, which also makes one page of this repository's plots.

Ours reads the tables, fits' results and claims, and sets the figures that are drawn already into a page that needs no
network; DVC's sets two plots of the same tables into a page that loads its library from the network. Both are timed as
commands, in turns, with their imports. The limit is copying the page that was written.
"""

import re
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

from benchmarks.startup import BIN
from benchmarks.turns import compared, in_turns

ROUNDS = 5
OUTSIDE = re.compile(r"<(?:script|link|img)[^>]+(?:src|href)=[\"']https?://")


def test_report(benchmark: Any, tmp_path: Path) -> None:
    reports = tmp_path / "reports"
    shutil.copytree("reports", reports, ignore=shutil.ignore_patterns("checkpoints"))
    page, theirs = reports / "index.html", tmp_path / "plots"

    def run(*words: str) -> Callable[[], object]:
        return lambda: subprocess.run(words, check=True, capture_output=True)

    steps = {
        "ours": run(sys.executable, "-m", "replications.cli", "report", "--reports", str(reports)),
        "dvc": run(str(BIN / "dvc"), "plots", "show", "--out", str(theirs)),
        "imports": run(sys.executable, "-c", "import replications.results"),
        "copy": lambda: shutil.copyfile(page, tmp_path / "copy.html"),
    }
    seconds = in_turns(steps, ROUNDS, warm_up=1)
    other = theirs / "index.html"
    benchmark.extra_info |= {
        "seconds": sorted(seconds["ours"])[ROUNDS // 2],
        "import_seconds": sorted(seconds["imports"])[ROUNDS // 2],
        **compared("times_faster_than_dvc_plots", seconds, "dvc", "ours"),
        **compared("share_of_copy", seconds, "copy", "ours"),
        "page_bytes": page.stat().st_size,
        "dvc_page_bytes": other.stat().st_size,
        "figures": page.read_text(encoding="utf-8").count("<img"),
        "needs_network": bool(OUTSIDE.search(page.read_text(encoding="utf-8"))),
        "dvc_needs_network": bool(OUTSIDE.search(other.read_text(encoding="utf-8"))),
    }
    benchmark.pedantic(lambda: None, rounds=1)
