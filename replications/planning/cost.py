"""What a model costs: memory at deployment, training, and one token of inference.

A model of N block parameters has `width` and `layers` with N = 12 layers width^2 (four matrices of attention and a
feed-forward part of 8 width^2) and width = aspect layers. Both are continuous. Only the row of a scale per channel and
the KV cache (a key and a value of `width` for each layer and token) need them.
"""

from collections.abc import Callable
from dataclasses import dataclass
from functools import lru_cache, partial

import numpy as np

from replications.planning.budget import LARGEST_N, Budget
from replications.planning.setting import Setting
from shared.laws.law import Array

GIB = 8 * 2.0**30  # bits
TRAIN, FORWARD = 6.0, 2.0  # FLOPs for one parameter and token: both passes, and the forward one
SIXTEEN = 16.0
POINTS, ROUNDS = 65, 8  # of ln N: a round narrows it 64 times, 8 to the last bit


@dataclass(frozen=True)
class Streams:
    """Bits of weights and activations in training and in use; of the KV cache where a law quantizes it too."""

    trained: float = SIXTEEN  # the widest operand of a product in training
    used: float = SIXTEEN  # the widest operand in use
    cache: float | None = None


def width(N: Array, aspect: float) -> Array:
    """Of the residual stream, which is the row of most matrices: N = 12 width^3 / aspect."""
    return np.asarray((aspect * N / 12.0) ** (1 / 3))


def bits_per_weight(budget: Budget, setting: Setting, N: Array) -> Array:
    """Scales included; as N."""
    return setting.bits_per_weight(width(N, budget.aspect))


def moved(budget: Budget, setting: Setting, streams: Streams, N: Array) -> Array:
    """Bits read for one token of one sequence: every weight and the cache; embeddings are one row of many. As N."""
    cache = 2 * width(N, budget.aspect) ** 2 / budget.aspect * budget.context * (streams.cache or budget.kv_bits)
    return N * bits_per_weight(budget, setting, N) + cache


def memory(budget: Budget, setting: Setting, streams: Streams, N: Array) -> Array:
    """GiB at deployment, as N: weights with scales, embeddings in 16 bits, the cache of one sequence."""
    return (moved(budget, setting, streams, N) + SIXTEEN * budget.embedding) / GIB


def of_a_token(budget: Budget, streams: Streams) -> float:
    """Training FLOPs for one parameter and token, counted in 16-bit FLOPs."""
    return TRAIN * (streams.trained / SIXTEEN if budget.train_cost == "bits" else 1.0)


def forward(budget: Budget, streams: Streams) -> float:
    """FLOPs of inference for one parameter and token, counted in 16-bit FLOPs."""
    return FORWARD * (streams.used / SIXTEEN if budget.train_cost == "bits" else 1.0)


@lru_cache(maxsize=4096)
def largest(budget: Budget, setting: Setting, streams: Streams) -> float:
    """The largest N that memory and inference allow; infinite where neither is bounded, zero where nothing fits."""
    ends = [np.inf]
    if budget.inference_flops is not None:
        ends.append(budget.inference_flops / forward(budget, streams))
    for limit, cost in ((budget.memory, memory), (budget.inference_bits, moved)):
        if limit is not None:
            ends.append(_largest(partial(cost, budget, setting, streams), limit))
    return float(min(ends))


def _largest(cost: Callable[[Array], Array], limit: float) -> float:
    """Where a rising cost of N reaches `limit`, from below."""
    ends = np.log([1.0, LARGEST_N])
    fits = cost(np.exp(ends)) <= limit
    if not fits[0] or fits[1]:
        return np.inf if fits[0] else 0.0
    low, high = ends
    for _ in range(ROUNDS):
        log_N = np.linspace(low, high, POINTS)
        last = int(np.sum(cost(np.exp(log_N[1:-1])) <= limit))  # the ends are known
        low, high = log_N[last], log_N[last + 1]
    return float(np.exp(low))
