"""The formats by name."""

import math
import re
from collections.abc import Iterable
from functools import cache

from shared.errors import BitlawError, nearest
from shared.formats.format import Format, Variant

# bitsandbytes 0.50.2, backends/utils.py (in the facts, 6.3); block 64 in QLoRA (arXiv 2305.14314).
NF4 = (
    *(-1.0, -0.6961928009986877, -0.5250730514526367, -0.39491748809814453, -0.28444138169288635),
    *(-0.18477343022823334, -0.09105003625154495, 0.0, 0.07958029955625534, 0.16093020141124725),
    *(0.24611230194568634, 0.33791524171829224, 0.44070982933044434, 0.5626170039176941, 0.7229568362236023, 1.0),
)
# The facts, 6.3: as used in HIGGS-type code; given to four digits, here as FP32 numbers.
NF3 = (
    *(-1.0, -0.47859999537467957, -0.21709999442100525, 0.0),
    *(0.16089999675750732, 0.3379000127315521, 0.5626000165939331, 1.0),
)
# bitsandbytes' "fp4": 0, 1/192, 1/6, 1/4, 1/3, 1/2, 2/3, 1 and their negatives (the facts, 6.3), as FP32 numbers.
FP4 = (0.0, 0.0052083334885537624, 0.1666666716337204, 0.25, 0.3333333432674408, 0.5, 0.6666666865348816, 1.0)

LIMITS = {"E": 8, "M": 10}


@cache
def format_named(name: str) -> Format:
    """A format by name; BitlawError, with the nearest name, for any other.

    BINARY or INT1 (-1, 1), TERNARY (-1, 0, 1 in log2 3 bits), INT2..INT8 (-limit..limit: with an absmax scale the
    lowest code could never be reached from the positive side), UINT1..UINT8 (0..2^k - 1, for scales with a zero
    point), ExMy, ExMyFN, ExMyIEEE with x in 0-8 and y in 0-10, NF4, NF3, FP4 (the code books of bitsandbytes).
    """
    if name in ("BINARY", "INT1"):
        return Format("BINARY", "codebook", 1, 1.0, levels=(-1.0, 1.0))
    if name == "TERNARY":
        return Format("TERNARY", "integer", math.log2(3), 1.0)
    if name == "NF4":
        return Format("NF4", "codebook", 4, 1.0, levels=NF4)
    if name == "NF3":
        return Format("NF3", "codebook", 3, 1.0, levels=NF3)
    if name == "FP4":
        return Format("FP4", "codebook", 4, 1.0, levels=(*(-level for level in FP4[:0:-1]), *FP4))
    if match := re.fullmatch(r"INT([2-8])", name):
        return Format(name, "integer", int(match[1]), 2.0 ** (int(match[1]) - 1) - 1)
    if match := re.fullmatch(r"UINT([1-8])", name):
        return Format(name, "integer", int(match[1]), 2.0 ** int(match[1]) - 1, lowest=0.0)
    if match := re.fullmatch(r"E(\d)M(\d|10)(FN|IEEE)?", name):
        made = _float(name, int(match[1]), int(match[2]), match[3] or "")  # type: ignore[arg-type]
        if made:
            return made
    raise BitlawError(f"format {name!r} is unknown{nearest(name, names())}: `bitlaw formats` lists them")


def beginning(word: str, known: Iterable[str]) -> str:
    """A hint such as ``, did you mean MXFP6E2M3 or MXFP6E3M2?`` when names of ``known`` begin so or are written with
    other signs between (mxfp6, MXFP6_E2M3), else ``''``."""
    plain = re.sub(r"[^A-Z0-9]", "", word.upper())
    found = [name for name in known if plain and name.startswith(plain)]
    return f", did you mean {' or '.join(found)}?" if found else ""


def names() -> list[str]:
    """Every name but the FN and IEEE variants."""
    floats = [f"E{e}M{m}" for e in range(LIMITS["E"] + 1) for m in range(LIMITS["M"] + 1) if e + m]
    integers = [f"INT{k}" for k in range(2, 9)] + [f"UINT{k}" for k in range(1, 9)]
    return ["BINARY", "TERNARY", *integers, "NF4", "NF3", "FP4", *floats]


def _float(name: str, e: int, m: int, variant: Variant) -> Format | None:
    """None when no code but zero is left, or the numbers are out of bounds."""
    if e > LIMITS["E"] or e + m == 0:
        return None
    # Codes of exponent and mantissa together, largest first: the first that is a number and fits FP32.
    reserved = {"": 0, "FN": 1, "IEEE": 2**m}[variant]
    largest = 2 ** (e + m) - 1 - reserved
    if e == 8:  # 2^128 and above are not FP32 numbers
        largest = min(largest, 255 * 2**m - 1)
    if largest < 1:
        return None
    bias = 2 ** (e - 1) - 1 if e else 0
    exponent, mantissa = largest >> m, largest % 2**m
    value = 2.0 ** (1 - bias - m) * mantissa if exponent == 0 else 2.0 ** (exponent - bias - m) * (2**m + mantissa)
    return Format(name, "float", 1 + e + m, value, e, m, variant)
