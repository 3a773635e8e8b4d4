"""C++ kernels of ours: compiled where they run, once per source, flags and processor, into the user's cache folder."""

import ctypes
import hashlib
import os
import subprocess
from pathlib import Path

from shared.errors import BitlawError
from shared.files import replacing


def built(source: Path, flags: list[str]) -> ctypes.CDLL:
    """The library of a source file, by the compiler that `torch.compile` needs as well.

    Raises BitlawError without a C++ compiler, or when it fails.
    """
    from torch._inductor.cpp_builder import get_cpp_compiler

    key = hashlib.sha256(source.read_bytes())
    for part in (*flags, instructions()):
        key.update(part.encode())
    folder = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "bitlaw"
    path = folder / f"{source.stem}-{key.hexdigest()[:16]}.so"
    if not path.exists():
        folder.mkdir(parents=True, exist_ok=True)
        with replacing(path) as temporary:
            command = [get_cpp_compiler(), *flags, "-o", str(temporary), str(source)]
            done = subprocess.run(command, capture_output=True, text=True, check=False)
            if done.returncode:
                raise BitlawError(f"{source}: the C++ compiler failed ({done.stderr.strip()[-200:]})")
    return ctypes.CDLL(str(path))


def instructions() -> str:
    """What this processor can do: -march=native builds for it, and another one needs its own file."""
    for line in Path("/proc/cpuinfo").read_text().splitlines():
        if line.startswith("flags"):
            return line
    return ""
