"""A folder's figures with their captions: drawn by one stage, shown by another."""

import base64
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from matplotlib.figure import Figure

from shared.errors import BitlawError
from shared.files import read_json, write_json
from shared.report.figures import style

LIST = "figures.json"


@dataclass(frozen=True)
class Drawing:
    """A figure to be saved: `name` is the file's stem, `alt` says to those who cannot see it what it shows."""

    name: str
    caption: str
    alt: str
    figure: Figure


@dataclass(frozen=True)
class Shown:
    """A saved figure: `svg` is a data URI, so that a page needs no other file."""

    name: str
    caption: str
    alt: str
    svg: str


def write_gallery(folder: Path, drawings: Sequence[Drawing]) -> list[Path]:
    """Save every figure as SVG and PNG, and the list of captions. Call inside `style.theme`."""
    written = [path for drawing in drawings for path in style.save(drawing.figure, folder, drawing.name)]
    captions = [{"name": d.name, "caption": d.caption, "alt": d.alt} for d in drawings]
    write_json(folder / LIST, captions)
    return [*written, folder / LIST]


def read_gallery(folder: Path) -> list[Shown]:
    """The figures of a folder in their order; none when the list is absent. Raises BitlawError for a missing SVG."""
    if not (folder / LIST).exists():
        return []
    shown = []
    for entry in read_json(folder / LIST):
        path = folder / f"{entry['name']}.svg"
        try:
            encoded = base64.b64encode(path.read_bytes()).decode("ascii")
        except OSError as error:
            raise BitlawError(f"{path}: cannot be read ({error.strerror}); draw it with `bitlaw replicate`") from error
        shown.append(Shown(**{**entry, "svg": f"data:image/svg+xml;base64,{encoded}"}))
    return shown
