"""The scripts of the page, and a policy under which the browser runs them and nothing else."""

import base64
import hashlib
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from markupsafe import Markup

from shared.errors import BitlawError
from shared.report.explorer.data import Explorer, script_of

HERE = Path(__file__).parent
VENDOR = HERE.parent / "vendor"
LIBRARY, VERSION = "d3.min.js", "7.9.0"
OURS = ("laws.js", "chart.js", "page.js")
# What would end a script element, or put its text into an older state, wherever it stands.
ENDS = ("</script", "<!--", "<script")


@dataclass(frozen=True)
class Library:
    version: str
    sha256: str
    licence: tuple[str, ...]  # paragraphs


def library() -> Library:
    """The bundled library, as the page names it."""
    licence = (VENDOR / "d3.LICENSE.txt").read_text(encoding="utf-8").strip().split("\n\n")
    code = (VENDOR / LIBRARY).read_bytes()
    return Library(VERSION, hashlib.sha256(code).hexdigest(), tuple(" ".join(part.split()) for part in licence))


def scripts(explorer: Explorer) -> list[Markup]:
    """The library, then ours with the laws of the explorer. Raises BitlawError for text that would end its element."""
    ours = [script_of(explorer), *((HERE / name).read_text(encoding="utf-8") for name in OURS)]
    found = [(VENDOR / LIBRARY).read_text(encoding="utf-8"), "\n".join(ours)]
    for text in found:
        if any(end in text.lower() for end in ENDS):
            raise BitlawError("a script of the page holds what would end its element; write '<' in it as '\\x3c'")
    return [Markup(text) for text in found]


def policy(scripts: Sequence[str], styles: Sequence[str]) -> str:
    """Content-Security-Policy: these scripts and styles, pictures inside the page, and no request at all."""
    hashes = [" ".join(f"'sha256-{_hash(text)}'" for text in texts) for texts in (scripts, styles)]
    return (
        f"default-src 'none'; script-src {hashes[0]}; style-src {hashes[1]}; img-src data:; base-uri 'none'; "
        "form-action 'none'"
    )


def _hash(text: str) -> str:
    return base64.b64encode(hashlib.sha256(text.encode()).digest()).decode("ascii")
