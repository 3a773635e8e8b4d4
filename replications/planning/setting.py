"""How weights are stored: a number format and the elements that share a scale, with what they cost in bits.

Names are those of `bitlaw formats`, read here without its casts: those need torch, which takes longer to import than a
plan takes to make. A test holds these bits and layouts against shared/formats and shared/quantize.
"""

import math
import re
from dataclasses import dataclass
from functools import cache

import numpy as np

from shared.errors import BitlawError, nearest
from shared.laws.law import Array

SIXTEEN = "BF16"  # weights as they were trained
CHANNEL = "channel"  # one scale for a row of a matrix
# Block formats with groups and scales of their own: element, group, bits of a scale (OCP MX; NVFP4).
BLOCKS = {
    "MXFP4": ("E2M1", 32, 8),
    "MXFP6E2M3": ("E2M3", 32, 8),
    "MXFP6E3M2": ("E3M2", 32, 8),
    "MXFP8E4M3": ("E4M3FN", 32, 8),
    "MXFP8E5M2": ("E5M2IEEE", 32, 8),
    "MXINT8": ("E0M7", 32, 8),
    "NVFP4": ("E2M1", 16, 8),
}
CODE_BOOKS = {"NF4": 4.0, "NF3": 3.0, "FP4": 4.0, "BINARY": 1.0, "INT1": 1.0, "TERNARY": math.log2(3)}
FLOAT = re.compile(r"E([0-8])M(\d|10)(FN|IEEE)?")
INTEGER = re.compile(r"(U?)INT([1-8])")
FORMATS = ("BF16", "INT8", "INT6", "INT5", "INT4", "INT3", "INT2", "E4M3", "E3M2", "E2M1", "MXFP4", "NVFP4", "NF4")
GROUPS: tuple[int | str, ...] = (32, 64, 128, CHANNEL)


@dataclass(frozen=True)
class Setting:
    """`group` elements share a scale of `scale_bits` bits; None: nothing is scaled (BF16)."""

    format: str
    group: int | str | None
    scale_bits: int

    def __str__(self) -> str:
        return self.format if self.group is None or self.format in BLOCKS else f"{self.format}@{self.group}"

    @property
    def bits(self) -> float:
        """Of an element, without scales."""
        return element_bits(self.format)

    @property
    def element(self) -> str:
        """The element's format: E2M1 of MXFP4."""
        return BLOCKS[self.format][0] if self.format in BLOCKS else self.format

    @property
    def integer_bits(self) -> int | None:
        """The bits of an integer format, or None."""
        found = INTEGER.fullmatch(self.format)
        return int(found[2]) if found else None

    @property
    def layout(self) -> tuple[int, int] | None:
        """(E, M) of a format with exponent and mantissa bits, or None."""
        found = FLOAT.fullmatch(self.element)
        return (int(found[1]), int(found[2])) if found else None

    def elements(self, row: Array) -> Array:
        """How many share a scale in rows of this length; 1 where nothing is quantized. As `row`."""
        if self.group is None:
            return np.ones_like(row)
        return row if isinstance(self.group, str) else np.minimum(row, float(self.group))

    def bits_per_weight(self, row: Array) -> Array:
        """Bits of a weight with its share of the scale (and zero point of UINTk), in rows of this length; as `row`."""
        if self.group is None:
            return np.full_like(row, self.bits)
        point = self.bits if self.format.startswith("UINT") else 0.0
        return self.bits + (self.scale_bits + point) / self.elements(row)


@cache
def element_bits(name: str) -> float:
    """Raises BitlawError, with the nearest name, for an unknown format."""
    if name == SIXTEEN:
        return 16.0
    if name in BLOCKS:
        return element_bits(BLOCKS[name][0])
    if name in CODE_BOOKS:
        return CODE_BOOKS[name]
    if (integer := INTEGER.fullmatch(name)) and name != "INT1":
        return float(integer[2])
    if (layout := FLOAT.fullmatch(name)) and int(layout[1]) + int(layout[2]):
        return 1.0 + int(layout[1]) + int(layout[2])
    known = [*FORMATS, *BLOCKS, *CODE_BOOKS, *(f"INT{k}" for k in range(2, 9)), *(f"UINT{k}" for k in range(1, 9))]
    hint = nearest(name.upper(), known) or ":"
    raise BitlawError(f"format '{name}' is unknown{hint} write names as `bitlaw formats` lists them, or BF16")


def is_format(name: str) -> bool:
    """Whether it is a name of a format."""
    try:
        element_bits(name)
    except BitlawError:
        return False
    return True


def settings(formats: tuple[str, ...], groups: tuple[int | str, ...], scale_bits: int) -> tuple[Setting, ...]:
    """Every allowed format in every allowed group; block formats have their own group and scale.

    Raises BitlawError for no format, an unknown one, no group where one is needed, or a group that is none.
    """
    if not formats:
        raise BitlawError(f"no format is allowed; the nearest possible is one of {', '.join(FORMATS)}")
    for group in groups:
        if group != CHANNEL and not (isinstance(group, int) and group > 1):
            raise BitlawError(f"group '{group}' is none: give a number of elements over 1, or {CHANNEL}")
    found: list[Setting] = []
    for name in dict.fromkeys(formats):
        element_bits(name)
        if name == SIXTEEN:
            found.append(Setting(name, None, 0))
        elif name in BLOCKS:
            found.append(Setting(name, *BLOCKS[name][1:]))
        elif not groups:
            raise BitlawError(f"no group is allowed for {name}; the nearest possible is --groups {CHANNEL}")
        else:
            found += [Setting(name, group, scale_bits) for group in dict.fromkeys(groups)]
    return tuple(found)
