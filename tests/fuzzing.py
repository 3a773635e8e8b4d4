"""Broken files for the fuzz tests: what editors, disks, spreadsheets and jokers do to a good one.

The profile is taken from $BITLAW_FUZZ: `fuzz` (the same few examples each time) or `slow` (many, others each time).
"""

import math
import os
import re
from collections.abc import Callable
from typing import Any, TypeVar

from hypothesis import HealthCheck, settings
from hypothesis import strategies as st

from shared.errors import LONGEST, BitlawError

T = TypeVar("T")
CHECKS = [HealthCheck.too_slow, HealthCheck.function_scoped_fixture, HealthCheck.data_too_large]
settings.register_profile(
    "fuzz", max_examples=40, derandomize=True, database=None, deadline=None, suppress_health_check=CHECKS
)
settings.register_profile("slow", max_examples=600, deadline=None, suppress_health_check=CHECKS)
fuzz = settings.get_profile(os.environ.get("BITLAW_FUZZ", "fuzz"))
# For tests that take long for each example.
seldom = settings(fuzz, max_examples=max(fuzz.max_examples // 5, 8))

# A wrong type, a number out of bounds, nothing, too much, and words that change their meaning elsewhere.
NASTY: tuple[Any, ...] = (
    *(None, True, 0, -1, 3, 2**63, 10**400, 0.5, -0.0, 1e308, 5e-324, math.nan, math.inf, -math.inf),
    *(
        "",
        " ",
        "nan",
        "1e999",
        "-",
        "0",
        "1_000",
        "INT4",
        "../../etc/passwd",
        "/",
        "\x00",
        "\x1b[2J",
        "two\nlines",
        "٣",
    ),
    *("a" * 5000, "=1+1", "${HOME}", "{{ 7 * 7 }}", "\u2028"),
    *([], {}, [[]], [None], {"": ""}, {"a": {"b": [1]}}, [1, "a"]),
)
BLOBS = (
    *(
        b"\x00",
        b"\xff\xfe",
        b"\xef\xbb\xbf",
        b"\r",
        b"\r\n",
        b"\n\n",
        b'"',
        b"'",
        b",",
        b",,,,",
        b";",
        b"\t",
        b"{",
        b"]",
        b"#",
    ),
    *(
        b"\x1b[2J",
        b"1e999",
        b"NaN",
        b"-Infinity",
        b"nan",
        b'"a\nb"',
        b"=cmd|' /C calc'!A0",
        b"\xc3\x28",
        b"\xed\xa0\x80",
        b"9" * 5000,
    ),
    *("٣".encode(), "\u2028".encode(), "\x85".encode()),
)
YAML = (
    *("*nowhere", "&a [*a]", "&a {a: *a}", "!!python/object/apply:os.system ['true']", "!!python/name:os.system ''"),
    *(
        "!!binary 'x'",
        "!!timestamp 'x'",
        "!!bool 'x'",
        "!!int ''",
        "!!int '_'",
        "!!float 'x'",
        "!!set {a, b}",
        "!!omap [a]",
    ),
    *(
        "2001-99-99",
        "2001-01-01",
        "1:99:99",
        "=",
        "<<",
        "0b",
        "0x",
        "08",
        ".inf",
        ".nan",
        "~",
        "yes",
        "!mine x",
        "!!null x",
    ),
    *("[" * 120, "{a: " * 120, "[" * 60 + "]" * 60, "|", ">", "'", '"', "? a", "- a", "%YAML 9.9", "@", "`", "\t- a"),
    *("{a: 1, a: 2}", "{<<: {a: 1}}", "{<<: 3}", "{[1]: 2}", "{? {a: 1} : 2}", "{1: 2}", "9" * 5000, "--- a", "..."),
)
BOMB = b"a: &a [x, x, x, x, x, x, x, x, x]\n" + b"".join(
    f"{b}: &{b} [{', '.join(['*' + a] * 9)}]\n".encode() for a, b in zip("abcdefgh", "bcdefghi", strict=True)
)
WHOLE = (
    *(b"", b" ", b"\n", b"\x00" * 64, b"\xff\xfe\x00\x00", b"\xef\xbb\xbf", b"null", b"0", b"[]", b"{}", b'""', b"a"),
    *(BOMB, b"[" * 120, b'{"a": ' * 120, b"---\n---\n", b"- a\n- b\n", b"PK\x03\x04", b"PAR1", b"<html></html>"),
    *(b"%PDF-1.4", b"version https://git-lfs.github.com/spec/v1\n", b"<<<<<<< HEAD\na: 1\n=======\na: 2\n>>>>>>> b\n"),
)  # fmt: skip


def outcome(read: Callable[[], T]) -> T | None:
    """What was read, or None where it was refused by one printable line; anything else is a failure."""
    try:
        return read()
    except BitlawError as error:
        sentence = str(error)
        assert sentence.isprintable(), sentence
        assert 10 < len(sentence) <= LONGEST + 5
        return None


def all_finite(value: Any) -> bool:
    """Whether no float in plain values is NaN or infinite."""
    if isinstance(value, dict):
        return all(map(all_finite, value.values()))
    if isinstance(value, list | tuple):
        return all(map(all_finite, value))
    return not isinstance(value, float) or math.isfinite(value)


@st.composite
def bytes_like(draw: st.DrawFn, valid: bytes) -> bytes:
    """Bits flipped, bytes lost, doubled or put in, other encodings and line ends, or another file altogether."""
    data = valid
    for _ in range(draw(st.integers(1, 3))):
        at = draw(st.integers(0, len(data)))
        match draw(st.sampled_from(("flip", "cut", "put", "lose", "twice", "encoding", "ends", "whole", "line"))):
            case "flip" if data:
                at = min(at, len(data) - 1)
                data = data[:at] + bytes([data[at] ^ (1 << draw(st.integers(0, 7)))]) + data[at + 1 :]
            case "cut":
                data = data[:at]
            case "put":
                data = data[:at] + draw(st.sampled_from(BLOBS) | st.binary(max_size=8)) + data[at:]
            case "lose":
                data = data[:at] + data[at + draw(st.integers(1, 40)) :]
            case "twice":
                data = data[:at] + data[at : at + 200] * 2 + data[at + 200 :]
            case "encoding":
                text = data.decode("utf-8", errors="replace")
                data = text.encode(draw(st.sampled_from(("utf-16", "utf-8-sig", "utf-32", "cp037"))), errors="replace")
            case "ends":
                data = data.replace(b"\n", draw(st.sampled_from((b"\r\n", b"\r", b"\n\n", b"\n \n", b""))))
            case "line":
                lines = data.split(b"\n")
                k = draw(st.integers(0, len(lines) - 1))
                lines[k : k + 1] = draw(st.sampled_from(([], [lines[k]] * 2, [b""], [b" " + lines[k]])))
                data = b"\n".join(lines)
            case "whole":
                data = draw(st.sampled_from(WHOLE) | st.binary(max_size=40))
    return data


def places(value: Any) -> list[tuple[Any, Any]]:
    """(container, key) of everything below plain values."""
    keys = list(value) if isinstance(value, dict) else range(len(value)) if isinstance(value, list) else ()
    return [place for key in keys for place in ((value, key), *places(value[key]))]


def copied(value: Any) -> Any:
    if isinstance(value, dict):
        return {key: copied(item) for key, item in value.items()}
    return [copied(item) for item in value] if isinstance(value, list) else value


@st.composite
def trees_like(draw: st.DrawFn, valid: Any) -> Any:
    """Plain values with a few of them replaced, removed, renamed, added or nested."""
    tree = copied(valid)
    for _ in range(draw(st.integers(1, 3))):
        found = places(tree)
        if not found:
            return draw(st.sampled_from(NASTY))
        container, key = found[draw(st.integers(0, len(found) - 1))]
        value = copied(draw(st.sampled_from(NASTY)))
        match draw(st.sampled_from(("replace", "replace", "replace", "remove", "rename", "add", "nest", "swap"))):
            case "replace":
                container[key] = value
            case "remove":
                del container[key]
            case "rename" if isinstance(container, dict):
                container[draw(st.sampled_from(("", "Fit", f"{key}_", f" {key}", "nan", "__class__")))] = container.pop(
                    key
                )
            case "add" if isinstance(container, dict):
                container[draw(st.sampled_from(("extra", "", "N", f"{key}2")))] = value
            case "add":
                container.insert(key, value)
            case "nest":
                container[key] = draw(st.sampled_from(([container[key]], {"a": container[key]})))
            case "swap":
                other, there = found[draw(st.integers(0, len(found) - 1))]
                if there in other if isinstance(other, dict) else there < len(other):
                    container[key] = copied(other[there])
    return tree


@st.composite
def yaml_like(draw: st.DrawFn, valid: bytes) -> bytes:
    """The text with a value, or a line, that only YAML has."""
    lines = valid.decode().splitlines()
    k = draw(st.integers(0, len(lines) - 1))
    piece = draw(st.sampled_from(YAML))
    if draw(st.booleans()):
        lines[k] = re.sub(
            r":.*|(?<=- ).*", lambda found: f": {piece}" if found[0][0] == ":" else piece, lines[k], count=1
        )
    else:
        lines.insert(k, piece)
    return "\n".join(lines).encode("utf-8", errors="replace")


CELLS = (
    *(
        "",
        " ",
        "nan",
        "NaN",
        "NA",
        "None",
        "inf",
        "-inf",
        "1e999",
        "-1",
        "0",
        "1e-320",
        "1e308",
        "1,5",
        "1.5.2",
        "0x10",
    ),
    *(
        "1_000",
        " 1e9 ",
        "1e9\n",
        "True",
        "true",
        "٣",
        "1e9 tokens",
        "=1+1",
        "@SUM(A1)",
        "'5",
        '"5"',
        "5%",
        "$5",
        "\x00",
        "\x1b[2J",
    ),
    *(
        "../../x",
        "a,b",
        'a"b',
        "two\nlines",
        "\u2028",
        "\ufeff",
        "9" * 400,
        "1" * 5000,
        "12/1/2026",
        "1e5000",
        "-0",
        "5 ",
        "INT4",
    ),
)


@st.composite
def tables_like(draw: st.DrawFn, header: list[str], rows: list[list[str]]) -> bytes:
    """A CSV table with cells, rows or columns that are wrong, quoted as the csv module does, or not at all."""
    table = [list(header), *(list(row) for row in rows)]
    for _ in range(draw(st.integers(1, 4))):
        if not table:
            break
        r = draw(st.integers(0, len(table) - 1))
        c = draw(st.integers(0, max(len(table[r]) - 1, 0)))
        cell = draw(st.sampled_from(CELLS))
        match draw(
            st.sampled_from(("cell", "cell", "cell", "row", "twice", "short", "long", "column", "header", "blank"))
        ):
            case "cell" if table[r]:
                table[r][c] = cell
            case "row":
                del table[r]
            case "twice":
                table.insert(r, list(table[r]))
            case "short":
                table[r] = table[r][:c]
            case "long":
                table[r].append(cell)
            case "column":
                table = [row[:c] + row[c + 1 :] for row in table]
            case "header":
                if table[0]:
                    table[0][min(c, len(table[0]) - 1)] = draw(st.sampled_from((cell, *header)))
            case "blank":
                table.insert(r, [])
    quote = draw(st.booleans())
    between = draw(st.sampled_from((",", ",", ",", ";", "\t")))

    def shown(cell: str) -> str:
        return '"' + cell.replace('"', '""') + '"' if quote and set(cell) & set('",\n\r') else cell

    text = draw(st.sampled_from(("\n", "\r\n"))).join(between.join(map(shown, row)) for row in table)
    return text.encode("utf-8", errors="surrogatepass")
