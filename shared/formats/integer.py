"""Symmetric integers INT2 to INT8."""

import re
from dataclasses import dataclass

import torch
from torch import Tensor

from shared.errors import BitlawError


@dataclass(frozen=True)
class Integer:
    """A k-bit signed integer that uses -limit..limit: symmetric, the lowest code stays unused.

    With an absmax scale the largest weight lands on `limit`, so the lowest code could never be reached from the
    positive side; INT2 has the values -1, 0, 1.
    """

    bits: int

    @property
    def name(self) -> str:
        return f"INT{self.bits}"

    @property
    def limit(self) -> int:
        return 2 ** (self.bits - 1) - 1

    def cast(self, x: Tensor) -> Tensor:
        """Nearest value of the format, ties to even, saturating; any shape, FP32 in and out."""
        return torch.clamp(torch.round(x), -self.limit, self.limit)


def integer(name: str) -> Integer:
    """INT2..INT8 by name. Raises BitlawError for any other."""
    match = re.fullmatch(r"INT([2-8])", name)
    if not match:
        raise BitlawError(f"format {name!r} is unknown here: use INT2, INT3, INT4, INT5, INT6, INT7 or INT8")
    return Integer(int(match[1]))


def oracle(x: float, form: Integer) -> int:
    """The readable definition: of all values the nearest; of two as near the even one."""
    values = range(-form.limit, form.limit + 1)
    return min(values, key=lambda value: (abs(x - value), value % 2))
