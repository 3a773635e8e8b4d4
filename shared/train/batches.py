"""Which tokens a step sees: a pure function of (seed, step), so that a resumed run neither loses nor repeats one.

The training tokens are cut into windows of context + 1 (neighbours share one token, so that every token is a
target once). Each pass over them has its own order.
"""

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from shared.errors import BitlawError

# Increment and multipliers of the SplitMix64 generator (Steele, Lea and Flood 2014): a fixed rule of our own
# keeps the order the same whatever numpy's generators become.
INCREMENT, FIRST, SECOND = 0x9E3779B97F4A7C15, 0xBF58476D1CE4E5B9, 0x94D049BB133111EB


def mix(values: NDArray[np.uint64]) -> NDArray[np.uint64]:
    """SplitMix64's output function: a bijection on 64-bit numbers."""
    with np.errstate(over="ignore"):
        values = values + np.uint64(INCREMENT)
        values = (values ^ (values >> np.uint64(30))) * np.uint64(FIRST)
        values = (values ^ (values >> np.uint64(27))) * np.uint64(SECOND)
        return values ^ (values >> np.uint64(31))


def order(n_windows: int, seed: int, epoch: int) -> NDArray[np.int64]:
    """A permutation of the windows for one pass."""
    key = mix(mix(np.array([seed], np.uint64)) ^ np.uint64(epoch))
    with np.errstate(over="ignore"):
        ranks = mix(key + np.arange(n_windows, dtype=np.uint64) * np.uint64(INCREMENT))
    return np.argsort(ranks, kind="stable")


class Batches:
    """Batches of (inputs, targets), each (B, T) int64, addressed by step."""

    def __init__(self, tokens: NDArray[np.uint16], context: int, sequences: int, seed: int) -> None:
        self.tokens, self.context, self.sequences, self.seed = tokens, context, sequences, seed
        self.n_windows = (len(tokens) - 1) // context
        if self.n_windows < sequences:
            needed = sequences * context + 1
            raise BitlawError(f"the corpus has {len(tokens)} training tokens, one batch needs {needed}: give more text")
        self._epoch, self._order = -1, np.empty(0, np.int64)

    def repeats(self, tokens: int) -> float:
        """Passes over the corpus that a horizon takes (above 1: tokens are seen again)."""
        return tokens / (self.n_windows * self.context)

    def window(self, position: int) -> int:
        epoch, place = divmod(position, self.n_windows)
        if epoch != self._epoch:
            self._epoch, self._order = epoch, order(self.n_windows, self.seed, epoch)
        return int(self._order[place])

    def __call__(self, step: int) -> tuple[Tensor, Tensor]:
        first = step * self.sequences
        starts = [self.window(first + i) * self.context for i in range(self.sequences)]
        windows = np.stack([self.tokens[start : start + self.context + 1] for start in starts]).astype(np.int64)
        windows_BT = torch.from_numpy(windows)
        return windows_BT[:, :-1], windows_BT[:, 1:]
