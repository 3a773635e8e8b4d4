"""A folder's figures with their captions: drawn by one stage, shown by another."""

import re
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from matplotlib.figure import Figure

from shared.checked import check
from shared.errors import BitlawError
from shared.files import read_json, write_json
from shared.report.figures import style

LIST = "figures.json"
SPECIAL = re.compile(r"[^\w \-.~:/?\[\]@!$()*+,;=]", re.ASCII)  # marks of URLs or of HTML, and no ASCII


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


@dataclass(frozen=True)
class _Entry:
    name: str
    caption: str
    alt: str


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
    entries = read_json(folder / LIST)
    check(list[_Entry], entries, folder / LIST, "list of figures", "draw them with `bitlaw replicate`")
    for entry in entries:
        if not re.fullmatch(r"[\w.-]+", entry["name"]):
            raise BitlawError(f"{folder / LIST}: {entry['name']!r} is no name of a figure: it stands beside this file")
        path = folder / f"{entry['name']}.svg"
        try:
            text = path.read_text(encoding="utf-8")
        except OSError as error:
            raise BitlawError(f"{path}: cannot be read ({error.strerror}); draw it with `bitlaw replicate`") from error
        shown.append(Shown(entry["name"], entry["caption"], entry["alt"], data_uri(slim(text))))
    return shown


def data_uri(svg: str) -> str:
    """Percent-encoded, which takes a fifth less than base64; nothing in it is a character that HTML must escape."""
    encoded = SPECIAL.sub(lambda found: "".join(f"%{byte:02X}" for byte in found[0].encode()), " ".join(svg.split()))
    return f"data:image/svg+xml,{encoded}"


def slim(svg: str) -> str:
    """The same picture in about half: coordinates to a hundredth of a point, no comments, styles that come again as
    classes, no names that nothing refers to. Words stay as they are."""
    svg = re.sub(r"<!--.*?-->|<metadata>.*?</metadata>|<!DOCTYPE.*?>", "", svg, flags=re.DOTALL)
    svg = re.sub(r' transform="rotate\(-?0 [^"]*\)"', "", svg)  # by nothing
    svg = re.sub(r' (?:d|x|y|points|transform)="[^"]*"', _rounded, svg)
    return _classes(_short_names(svg))


def _rounded(attribute: re.Match[str]) -> str:
    text = attribute[0]
    # A scale of a hundredth is no coordinate.
    return text if "scale" in text or "matrix" in text else re.sub(r"(\.\d\d)\d+", r"\1", text)


def _short_names(svg: str) -> str:
    """Names that something refers to, numbered; the others are dropped."""
    names = {name: f"n{k}" for k, name in enumerate(dict.fromkeys(re.findall(r'(?:url\(|href=")#([^)"]+)', svg)))}
    svg = re.sub(r' id="([^"]*)"', lambda found: f' id="{names[found[1]]}"' if found[1] in names else "", svg)
    return re.sub(r'(url\(|href=")#([^)"]+)', lambda found: f"{found[1]}#{names[found[2]]}", svg)


def _classes(svg: str) -> str:
    """Each style that comes more than once as a class. Where one element has both, nothing is changed."""
    counts = Counter(re.findall(r' style="([^"]*)"', svg))
    names = {style: f"c{k}" for k, (style, n) in enumerate(counts.items()) if n > 1}
    if not names or "class=" in svg or "<style" not in svg:
        return svg
    svg = re.sub(r' style="([^"]*)"', lambda f: f' class="{names[f[1]]}"' if f[1] in names else f[0], svg)
    rules = "".join(f".{name}{{{style}}}" for style, name in names.items())
    return svg.replace("</style>", f"{rules}</style>", 1)
