"""Relative errors of the sliders' formats for normal values, through which a format enters the unified law."""

from replications.unified.error import relative_error
from shared.errors import BitlawError
from shared.formats.names import format_named

GROUPS = tuple(2**k for k in range(14))  # the slider's
WIDEST = 8  # bits; above, nothing is lost that a run could show
NAMES = (
    *(f"INT{bits}" for bits in range(2, WIDEST + 1)),
    *(f"E{E}M{M}" for E in range(WIDEST) for M in range(WIDEST - E)),
)


def errors() -> dict[str, list[float]]:
    """{format: its error at each of GROUPS}, for the formats that there are."""
    known = [name for name in NAMES if _exists(name)]
    return {name: [relative_error(f"{name}@{group}", float(group)) for group in GROUPS] for name in known}


def _exists(name: str) -> bool:
    try:
        format_named(name)
    except BitlawError:
        return False
    return True
