"""Number formats as data: a name, the values it can hold, and how to cast to them; scales are the quantizers' business.

Each format has a slow readable oracle (`oracle.py`) beside its fast path (`format.py`).
"""

from shared.formats.format import Format
from shared.formats.names import format_named

__all__ = ["Format", "format_named"]
