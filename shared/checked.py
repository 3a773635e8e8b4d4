"""Values from a file against the types that a dataclass states: what is wrong is said with its place in the file."""

import json
import math
import sys
from collections.abc import Mapping
from functools import cache
from pathlib import Path
from typing import Any

from pydantic import TypeAdapter, ValidationError

from shared.errors import BitlawError


def check(kind: Any, values: Any, path: Path, what: str, advice: str) -> None:
    """Raises BitlawError, "PATH is no WHAT (place: fault); ADVICE", when `values` are not `kind` (a dataclass, or a
    list or dict of them), and where a number is NaN or infinite. Whole numbers may stand for fractions."""
    try:
        # As JSON, where a dataclass is an object, and strictly: text is no number.
        _adapter(kind).validate_json(json.dumps(values), strict=True)
    except ValidationError as error:
        fault = error.errors(include_url=False, include_context=False)[0]
        raise BitlawError(f"{path}: is no {what} ({place(fault['loc'])}: {fault['msg'].lower()}); {advice}") from error
    where = _not_finite(values, ())
    if where is not None:
        raise BitlawError(f"{path}: is no {what} ({place(where)}: is not finite); {advice}")


def place(keys: tuple[int | str, ...]) -> str:
    """parts[0].rows, from the keys on the way to a value."""
    return "".join(f"[{key}]" if isinstance(key, int) else f".{key}" for key in keys).lstrip(".") or "the file"


@cache
def _adapter(kind: Any) -> TypeAdapter[Any]:
    return TypeAdapter(kind)


def _not_finite(value: Any, keys: tuple[int | str, ...]) -> tuple[int | str, ...] | None:
    if isinstance(value, float) and not math.isfinite(value):
        return keys
    if isinstance(value, int) and abs(value) > sys.float_info.max:
        return keys
    items: Any = ()
    if isinstance(value, Mapping):
        items = value.items()
    elif isinstance(value, list):
        items = enumerate(value)
    return next((found for key, item in items if (found := _not_finite(item, (*keys, key))) is not None), None)
