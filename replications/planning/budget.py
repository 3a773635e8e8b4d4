"""What one has and what one asks for: the inputs of a plan, checked."""

import math
import re
from dataclasses import dataclass, fields

from replications.planning.setting import FORMATS, GROUPS, Setting, settings
from shared.errors import BitlawError

# No law says anything useful below these; they bound the search.
SMALLEST_N, SMALLEST_D = 1e4, 1e6
LARGEST_N, LARGEST_D = 1e16, 1e20
COUNT = re.compile(r"([0-9.]+(?:e[+-]?\d+)?)\s*([kMGBTPE]?)", re.IGNORECASE)
UNITS = {"": 1.0, "K": 1e3, "M": 1e6, "G": 1e9, "B": 1e9, "T": 1e12, "P": 1e15, "E": 1e18}


@dataclass(frozen=True)
class Budget:
    """All limits are optional; None is no limit. A plan needs what bounds the training, or a target.

    memory            GiB at deployment: weights with scales, embeddings, KV cache of `context` tokens
    train_flops       of training, counted in 16-bit FLOPs (`train_cost`)
    inference_flops   of one token, forward, counted in 16-bit FLOPs
    inference_bits    moved for one token of one sequence: every weight once, and the KV cache of `context` tokens
    tokens            at most so many training tokens
    target_loss       nats per token, or lower
    N, D              a given model: non-embedding parameters and training tokens
    formats, groups   allowed for the weights
    scale_bits        of a scale (block formats have their own)
    embedding         parameters that stay in 16 bits beside N (embedding and head); laws count N without them
    context, kv_bits  of the KV cache at deployment; the laws that quantize it too store it in their own bits
    aspect            width over depth: N = 12 layers width^2, which gives the length of a row and the cache's size
    train_cost        "bits": 6 N D P / 16 where every operand has at most P bits (Kumar Eq. 5, Sun's k = 6/16), and
                      6 N D where one has 16; "flops": 6 N D whatever the format. Inference likewise, with 2 N.
    """

    memory: float | None = None
    train_flops: float | None = None
    inference_flops: float | None = None
    inference_bits: float | None = None
    tokens: float | None = None
    target_loss: float | None = None
    N: float | None = None
    D: float | None = None
    formats: tuple[str, ...] = FORMATS
    groups: tuple[int | str, ...] = GROUPS
    scale_bits: int = 16
    embedding: float = 0.0
    context: float = 0.0
    kv_bits: float = 16.0
    aspect: float = 128.0
    train_cost: str = "bits"

    def __post_init__(self) -> None:
        """Raises BitlawError for a number that means nothing, and for a budget without an end."""
        for field in fields(self):
            value = getattr(self, field.name)
            if isinstance(value, bool | str | tuple) or value is None:
                continue
            lowest = 0.0 if field.name in ("embedding", "context") else None
            if not math.isfinite(value) or value < 0 or (lowest is None and value <= 0):
                least = _least(field.name)
                raise BitlawError(f"--{option(field.name)} is {value:g}: the nearest possible is {least}")
        if self.train_cost not in ("bits", "flops"):
            raise BitlawError(f"--train-cost is '{self.train_cost}': use bits or flops")
        for name, smallest, largest in (("N", SMALLEST_N, LARGEST_N), ("D", SMALLEST_D, LARGEST_D)):
            value = getattr(self, name)
            if value is not None and not smallest <= value <= largest:
                near = smallest if value < smallest else largest
                raise BitlawError(f"--{name} is {value:g}: the nearest possible is {near:g}")
        if self.tokens is not None and self.tokens < SMALLEST_D:
            raise BitlawError(f"--tokens is {self.tokens:g}: the nearest possible is {SMALLEST_D:g}")
        if self.D is not None and self.tokens is not None and self.tokens < self.D:
            raise BitlawError(
                f"--D {self.D:g} is over --tokens {self.tokens:g}: the nearest possible is D {self.tokens:g}"
            )
        self._ends()

    def _ends(self) -> None:
        """Raises BitlawError where more N or more D would be better for ever."""
        if not self.trained and self.target_loss is None:
            raise BitlawError(
                "nothing bounds the training, so that more tokens are better for ever: add --train-flops, --tokens, "
                "--D or --target-loss"
            )
        if not self.sized and self.target_loss is None:
            raise BitlawError(
                "nothing bounds the size, so that more parameters are better for ever: add --memory, --train-flops, "
                "--inference-flops, --inference-bits, --N or --target-loss"
            )

    @property
    def named(self) -> bool:
        """Whether it is about one given model."""
        return self.N is not None and self.D is not None

    @property
    def sized(self) -> bool:
        """Whether something bounds the parameters."""
        limits = (self.N, self.memory, self.train_flops, self.inference_flops, self.inference_bits)
        return any(limit is not None for limit in limits)

    @property
    def trained(self) -> bool:
        """Whether something bounds the tokens."""
        return self.train_flops is not None or self.tokens is not None or self.D is not None

    @property
    def settings(self) -> tuple[Setting, ...]:
        return settings(self.formats, self.groups, self.scale_bits)


def option(name: str) -> str:
    """The name of the command's option."""
    return name.replace("_", "-")


def _least(name: str) -> str:
    known = {"N": f"{SMALLEST_N:g}", "D": f"{SMALLEST_D:g}", "tokens": f"{SMALLEST_D:g}", "embedding": "0"}
    return known.get(name, "0" if name == "context" else "a number above 0")


def count(text: str, name: str) -> float:
    """8B, 15T, 1.2e24, 350M as a number. Raises BitlawError for anything else."""
    negative = text.strip().startswith("-")
    found = COUNT.fullmatch(text.strip().lstrip("+-"))
    try:
        value = float(found[1]) * UNITS[found[2].upper()] if found else math.nan
    except ValueError:
        value = math.nan
    if math.isnan(value):
        raise BitlawError(f"--{name} is '{text}': write a number such as 8e9, 8B or 15T")
    return -value if negative else value


def short(value: float) -> str:
    """8e9 as 8B, 1.5e13 as 15T, 1e24 as 1e+24."""
    if not math.isfinite(value):
        return "no end"
    if 0.9995e15 <= value < 1e16:
        return f"{value / 1e12:.0f}T"
    for unit, size in (("T", 1e12), ("B", 1e9), ("M", 1e6), ("k", 1e3)):
        if 0.9995 * size <= value < 999.5 * size:
            return f"{value / size:.3g}{unit}"
    return f"{value:.3g}"
