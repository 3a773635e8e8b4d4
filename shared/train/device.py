"""Where to compute, and what the machine is."""

import platform
from pathlib import Path

import torch

from shared.errors import BitlawError


def pick(name: str = "auto") -> torch.device:
    """`auto` takes CUDA when there is one. Raises BitlawError for a device that is not here."""
    if name == "auto":
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    try:
        device = torch.device(name)
    except RuntimeError as error:
        raise BitlawError(f"device {name!r} is unknown: use auto, cpu or cuda") from error
    if device.type not in ("cpu", "cuda"):
        raise BitlawError(f"device {name!r} is not supported: use auto, cpu or cuda")
    if device.type == "cuda" and (device.index or 0) >= torch.cuda.device_count():
        raise BitlawError(f"device {name!r} was asked for, torch sees {torch.cuda.device_count()}: use --device cpu")
    return device


def processor(device: torch.device) -> str:
    """A name for the processor, for the run table."""
    if device.type == "cuda":
        return torch.cuda.get_device_name(device)
    try:
        for line in Path("/proc/cpuinfo").read_text().splitlines():
            if line.startswith("model name"):
                return line.split(":", 1)[1].strip()
    except OSError:
        pass
    return platform.processor() or platform.machine()
