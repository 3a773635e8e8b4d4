"""A section of a README as plain blocks, so that a page can show it: paragraphs, lists, `code` and **bold**."""

import re
from dataclasses import dataclass
from typing import Literal

SPANS = re.compile(r"`([^`]+)`|\*\*([^*]+)\*\*|\[([^\]]+)\]\([^)]*\)")
ITEM = re.compile(r"\s*(?:[-*]|\d+\.)\s+(.*)")


@dataclass(frozen=True)
class Span:
    kind: Literal["text", "code", "strong"]
    text: str


@dataclass(frozen=True)
class Block:
    """A paragraph has one item, a list has several; an item is a line of spans."""

    kind: Literal["paragraph", "list"]
    items: tuple[tuple[Span, ...], ...]


def section(markdown: str, heading: str) -> str:
    """The text under the heading (any level, any case) up to the next heading of its level or above; '' if absent."""
    level, kept = 0, []
    for line in markdown.splitlines():
        match = re.match(r"(#+)\s+(.*?)\s*#*$", line)
        if match and level and len(match[1]) <= level:
            break
        if level:
            kept.append(line)
        elif match and match[2].casefold() == heading.casefold():
            level = len(match[1])
    return "\n".join(kept).strip()


def blocks(markdown: str) -> list[Block]:
    """Paragraphs are parted by empty lines; a line that opens with '-', '*' or '1.' is an item; others go on."""
    found: list[tuple[str, list[str]]] = []
    open_block = False
    for line in markdown.splitlines():
        item = ITEM.fullmatch(line)
        if not line.strip():
            open_block = False
        elif item and open_block and found[-1][0] == "list":
            found[-1][1].append(item[1].strip())
        elif item:
            found.append(("list", [item[1].strip()]))
            open_block = True
        elif open_block:
            found[-1][1][-1] += " " + line.strip()
        else:
            found.append(("paragraph", [line.strip()]))
            open_block = True
    return [
        Block("list" if kind == "list" else "paragraph", tuple(spans(text) for text in items)) for kind, items in found
    ]


def spans(text: str) -> tuple[Span, ...]:
    """Code, bold and plain pieces of one line; of a link only its text stays."""
    pieces: list[Span] = []
    at = 0
    for match in SPANS.finditer(text):
        if match.start() > at:
            pieces.append(Span("text", text[at : match.start()]))
        code, strong, link = match.groups()
        if code is not None:
            pieces.append(Span("code", code))
        else:
            pieces.append(Span("text", link) if link is not None else Span("strong", strong))
        at = match.end()
    if at < len(text):
        pieces.append(Span("text", text[at:]))
    return tuple(pieces)
