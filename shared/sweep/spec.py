"""RunSpec: everything that changes the numbers of a checkpoint, and nothing else; its hash is the run's identity."""

import hashlib
import json
from dataclasses import MISSING, dataclass, fields, replace
from typing import Any

from shared.errors import BitlawError
from shared.model import Shape
from shared.quantize.quantizer import parse_quantizer
from shared.quantize.sparsity import Sparsity
from shared.quantize.training import FORWARD, Precision
from shared.train.recipe import Recipe

# Raised, deliberately, by a change of numerics; a fit refuses tables that mix versions.
# 2: attention, cross-entropy and SwiGLU of a step on CPU in kernels of ours, matrices with one input multiplied as one.
NUMERICS_VERSION = 2

# Fields that say how a run is compressed; a run with all of them at their defaults is a base run.
COMPRESSION = (
    *(f.name for f in fields(Precision)),
    *("sparsity", "sparsity_pattern", "sparsity_begin", "sparsity_end"),
)  # fmt: skip
QUANTIZERS = tuple(name for name in COMPRESSION[:8])


@dataclass(frozen=True)
class RunSpec:
    """One checkpoint: `tokens` of training, on the trunk or at the end of a cooldown.

    A new field needs a default that means what was done before it existed: fields at their default are left out
    of the identity, so that no old id changes.
    """

    corpus_sha256: str
    n_layer: int
    d_model: int
    d_ff: int
    seed: int
    learning_rate: float
    tokens: int
    cooled: bool
    head_size: int = 32
    vocabulary: int = 1024
    context: int = 256
    batch_tokens: int = 4096
    warmup_steps: int = 50
    weight_decay: float = 0.1
    beta1: float = 0.9
    beta2: float = 0.95
    epsilon: float = 1e-8
    clip: float = 1.0
    cooldown: float = 0.2
    decay: str = "sqrt"
    accumulate: int = 1
    compute: str = "bf16"
    threads: int = 1
    compile: bool = True
    validation_tokens: int = 262_144
    # Quantizers as text (shared.quantize.training); what leaves a tensor alone is "none".
    weights: str = "none"
    activations: str = "none"
    queries: str = "none"
    keys_values: str = "none"
    weights_backward: str = "forward"
    activations_backward: str = "forward"
    gradients_to_inputs: str = "none"
    gradients_to_weights: str = "none"
    learned_clip: bool = False
    exceptions: str = ""
    sparsity: float = 0.0
    sparsity_pattern: str = "unstructured"
    sparsity_begin: int = 50
    sparsity_end: int = 500

    def __post_init__(self) -> None:
        """Raises BitlawError for a value of the wrong kind; a whole number where a fraction may stand becomes one."""
        for f in fields(self):
            value, kind = getattr(self, f.name), getattr(f.type, "__name__", f.type)
            if kind == "float" and type(value) is int:
                object.__setattr__(self, f.name, float(value))
            elif type(value).__name__ != kind:
                raise BitlawError(f"{f.name} is {value!r}, it must be of type {kind}")
            if kind in ("int", "float") and getattr(self, f.name) < 0:
                raise BitlawError(f"{f.name} is {value!r}, it must not be negative")
        if self.threads < 1:
            raise BitlawError("threads is 0, it must be 1 or more")
        for name in QUANTIZERS:
            # One text for one meaning: INT16@channel is "none", so that 16 bits share the unquantized run's identity.
            if getattr(self, name) != FORWARD:
                object.__setattr__(self, name, str(parse_quantizer(getattr(self, name)) or "none"))
        self.recipe.steps(self.tokens)

    @property
    def shape(self) -> Shape:
        return Shape(self.n_layer, self.d_model, self.d_ff, self.head_size, self.vocabulary, self.context)

    @property
    def recipe(self) -> Recipe:
        names = {f.name for f in fields(Recipe)} - {"shape", "precision", "sparsity"}
        precision = Precision(**{f.name: getattr(self, f.name) for f in fields(Precision)})
        sparsity = Sparsity(self.sparsity, self.sparsity_pattern, self.sparsity_begin, self.sparsity_end)
        return Recipe(
            shape=self.shape, precision=precision, sparsity=sparsity, **{name: getattr(self, name) for name in names}
        )

    @property
    def base(self) -> "RunSpec":
        """The unquantized, dense run of the same trunk, horizon and phase: what this one is compared with."""
        return replace(self, **{name: DEFAULTS[name] for name in COMPRESSION})

    @property
    def run_id(self) -> str:
        return digest(canonical(self))

    @property
    def trunk_id(self) -> str:
        """The same for all horizons of one trunk: the identity without `tokens` and `cooled`."""
        known = canonical(self)
        return digest({name: value for name, value in known.items() if name not in ("tokens", "cooled")})

    @property
    def phase(self) -> str:
        return "cooled" if self.cooled else "trunk"

    @property
    def train_flops(self) -> float:
        return float(self.shape.flops_per_token()) * self.tokens


DEFAULTS = {f.name: f.default for f in fields(RunSpec) if f.default is not MISSING}


def canonical(spec: RunSpec) -> dict[str, Any]:
    """The fields that are not at their default."""
    return {
        f.name: getattr(spec, f.name)
        for f in fields(spec)
        if f.default is MISSING or getattr(spec, f.name) != f.default
    }


def digest(value: dict[str, Any]) -> str:
    text = json.dumps(value | {"numerics_version": NUMERICS_VERSION}, sort_keys=True, separators=(",", ":"))
    return hashlib.sha256(text.encode()).hexdigest()[:12]


@dataclass(frozen=True)
class Run:
    """A spec with the names that people use for its size and corpus; they are never part of its identity."""

    spec: RunSpec
    size: str
    corpus: str

    @property
    def label(self) -> str:
        how = "".join(f" {n}={v}" for n, v in canonical(self.spec).items() if n in COMPRESSION)
        return (
            f"{self.size} {self.corpus}{how} seed {self.spec.seed} D={tokens_label(self.spec.tokens)} {self.spec.phase}"
        )

    def to_json(self) -> dict[str, Any]:
        return {"spec": canonical(self.spec), "size": self.size, "corpus": self.corpus}

    @staticmethod
    def from_json(value: dict[str, Any]) -> "Run":
        """Raises BitlawError when a field is missing or unknown."""
        try:
            return Run(RunSpec(**value["spec"]), value["size"], value["corpus"])
        except (KeyError, TypeError) as error:
            raise BitlawError(f"a run's spec cannot be read ({error}): it was written by another version") from error


def tokens_label(tokens: int) -> str:
    """1M means 2^20 tokens."""
    return f"{tokens / 2**20:g}M" if tokens >= 2**18 else f"{tokens / 2**10:g}k"


def trunks(runs: list[Run]) -> dict[str, list[Run]]:
    """Runs by trunk, in the order in which the trunks first appear."""
    grouped: dict[str, list[Run]] = {}
    for run in runs:
        grouped.setdefault(run.spec.trunk_id, []).append(run)
    return grouped
