"""Timing several things in turns, so that what else the machine does meets all of them alike."""

import math
import statistics
import time
from collections.abc import Callable, Mapping

import torch

from shared.model import Shape

# One size of the pool for each width.
SIZES = {"S": Shape(2, 64, 192), "M": Shape(2, 128, 320), "W": Shape(1, 256, 640)}
SEQUENCES, CONTEXT = 16, 256


def in_turns(steps: Mapping[str, Callable[[], object]], rounds: int, warm_up: int = 3) -> dict[str, list[float]]:
    """Seconds of each step in each round; the order turns with the round."""
    for _ in range(warm_up):
        for step in steps.values():
            step()
    seconds: dict[str, list[float]] = {name: [] for name in steps}
    names = list(steps)
    for number in range(rounds):
        for name in names[number % len(names) :] + names[: number % len(names)]:
            begun = time.perf_counter()
            steps[name]()
            seconds[name].append(time.perf_counter() - begun)
    return seconds


def ratio(seconds: dict[str, list[float]], name: str, peer: str) -> float:
    """Median over rounds of the time of one over that of the other in the same round."""
    return statistics.median(a / b for a, b in zip(seconds[name], seconds[peer], strict=True))


def spread(seconds: dict[str, list[float]], name: str, peer: str) -> float:
    """The standard error of ln `ratio`: that of a median, 1.25 times a mean's, from the scatter over the rounds (median
    absolute deviation times 1.48); 0 for a single round."""
    logs = [math.log(a / b) for a, b in zip(seconds[name], seconds[peer], strict=True)]
    middle = statistics.median(logs)
    return 1.2533 * 1.4826 * statistics.median(abs(one - middle) for one in logs) / math.sqrt(len(logs))


def compared(key: str, seconds: dict[str, list[float]], name: str, peer: str) -> dict[str, float]:
    """{key: ratio, key_spread: its standard error}, as `compare` reads them."""
    return {key: ratio(seconds, name, peer), f"{key}_spread": spread(seconds, name, peer)}


def gemm(size: int = 2048) -> tuple[Callable[[], object], float]:
    """A square BF16 product, and its FLOPs: the machine's limit with the threads that torch has now."""
    a, b = (torch.randn(size, size).bfloat16() for _ in range(2))
    return lambda: a @ b, 2.0 * size**3
