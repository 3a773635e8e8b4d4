"""The pool of runs and measurements, from `pool.yaml` and each paper's `experiment.yaml`.

A profile (micro, smoke, cpu, gpu) names groups of runs and of measurements; a paper's `experiment.yaml` says which
of them it needs.
"""

import re
from dataclasses import dataclass, fields, replace
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import BaseModel, BeforeValidator, ConfigDict, Field, PositiveFloat, PositiveInt, ValidationError

from shared.errors import BitlawError, nearest
from shared.evaluate.ptq import Cell
from shared.sweep.spec import COMPRESSION, Run, RunSpec
from shared.yaml_file import read_yaml

HERE = Path(__file__).parent
# Set for each run from its size and group, never for a whole profile.
PER_RUN = {"corpus_sha256", "n_layer", "d_model", "d_ff", "seed", "learning_rate", "tokens", "cooled"}


def count(value: Any) -> Any:
    """'4M' is 4 * 2^20, '64k' is 64 * 2^10."""
    match = re.fullmatch(r"(\d+)([kM]?)", str(value))
    return int(match[1]) * {"": 1, "k": 2**10, "M": 2**20}[match[2]] if match else value


Tokens = Annotated[PositiveInt, BeforeValidator(count)]


class Strict(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True, allow_inf_nan=False)


class Size(Strict):
    n_layer: PositiveInt
    d_model: PositiveInt
    d_ff: PositiveInt
    learning_rate: PositiveFloat
    gflops: PositiveFloat


class RunGroup(Strict):
    sizes: list[str] = Field(min_length=1)
    tokens: list[Tokens] = Field(min_length=1)
    seeds: list[int] = Field(min_length=1)
    learning_rates: list[PositiveFloat] = []
    phases: list[Literal["trunk", "cooled"]] = ["trunk", "cooled"]
    # Each entry is one training precision or sparsity (fields of RunSpec); none means unquantized.
    compression: list[dict[str, str | bool | int | float]] = [{}]


class CellGroup(Strict):
    method: str
    formats: list[str]
    group_sizes: list[str]
    seeds: list[int]
    # Of all sizes and horizons, where these do not say which.
    sizes: list[str] = []
    tokens: list[Tokens] = []
    # Runs that train unquantized and dense, or those that quantize their weights and nothing else.
    of: Literal["plain", "weights"] = "plain"


class Profile(Strict):
    corpus: str
    reports: str
    build: str
    training: dict[str, int | float | bool | str]
    save_seconds: PositiveFloat
    runs: dict[str, list[RunGroup]]
    measurements: dict[str, list[CellGroup]]
    # Base checkpoints that go into git, at the size's own learning rate.
    keep: list[RunGroup] = []


class Pool(Strict):
    sizes: dict[str, Size]
    profiles: dict[str, Profile]


class Needs(Strict):
    """The part of a paper's experiment.yaml that selects from the pool."""

    runs: list[str] = Field(min_length=1)
    measurements: list[str] = []


def first_fault(path: Path, error: ValidationError) -> BitlawError:
    """One sentence for the first thing that pydantic found wrong."""
    fault = error.errors()[0]
    where = ".".join(str(part) for part in fault["loc"])
    return BitlawError(f"{path}: {where or 'the file'}: {fault['msg'].lower()}; mend this entry")


def read_pool(path: Path = HERE / "pool.yaml") -> Pool:
    try:
        return Pool.model_validate(read_yaml(path))
    except ValidationError as error:
        raise first_fault(path, error) from error


def papers() -> list[str]:
    """Names of the replications that have an experiment file."""
    return sorted(path.parent.name for path in HERE.glob("*/experiment.yaml"))


def needs(paper: str) -> Needs:
    """Raises BitlawError for an unknown paper."""
    if paper not in papers():
        raise BitlawError(f"paper '{paper}' is unknown{nearest(paper, papers()) or ': use ' + ', '.join(papers())}")
    return read_needs(HERE / paper / "experiment.yaml")


def read_needs(path: Path) -> Needs:
    """The section `needs` of an experiment file. Raises BitlawError for a bad file."""
    try:
        content = read_yaml(path)
        return Needs.model_validate(content.get("needs") if isinstance(content, dict) else content)
    except ValidationError as error:
        raise first_fault(path, error) from error


@dataclass(frozen=True)
class Expected:
    """What a profile (or one paper's part of it) consists of."""

    profile: Profile
    sizes: dict[str, Size]
    runs: list[Run]
    cells: dict[str, list[Cell]]


def expand(
    name: str, corpus_sha256: str, *, paper: str | None = None, corpus: str | None = None, pool: Pool | None = None
) -> Expected:
    """Runs and cells of a profile, on its own corpus or another. Raises BitlawError for unknown names."""
    pool = pool or read_pool()
    if name not in pool.profiles:
        known = list(pool.profiles)
        raise BitlawError(f"profile '{name}' is unknown{nearest(name, known) or ': use ' + ', '.join(known)}")
    profile = pool.profiles[name]
    wanted = needs(paper) if paper else Needs(runs=list(profile.runs), measurements=list(profile.measurements))
    settings = {f.name for f in fields(RunSpec)} - PER_RUN
    for key in profile.training:
        if key not in settings:
            raise BitlawError(
                f"pool.yaml: profile '{name}': training: {key} is no setting{nearest(key, list(settings))}"
            )
    runs: list[Run] = []
    for group in wanted.runs:
        if not any(group in other.runs for other in pool.profiles.values()):
            raise BitlawError(f"profile '{name}' has no runs '{group}'{nearest(group, list(profile.runs))}")
        for part in profile.runs.get(group, []):  # a small profile has part of what a paper needs
            runs += runs_of(part, pool, profile, corpus or profile.corpus, corpus_sha256)
    cells: dict[str, list[Cell]] = {}
    for group in wanted.measurements:
        if not any(group in other.measurements for other in pool.profiles.values()):
            raise BitlawError(
                f"profile '{name}' has no measurements '{group}'{nearest(group, list(profile.measurements))}"
            )
        for cell_part in profile.measurements.get(group, []):
            for run in runs:
                if chosen(cell_part, run):
                    known_cells = cells.setdefault(run.spec.run_id, [])
                    known_cells += [cell for cell in cells_of(cell_part, run) if cell not in known_cells]
    return Expected(profile, pool.sizes, list({run.spec.run_id: run for run in runs}.values()), cells)


def chosen(part: CellGroup, run: Run) -> bool:
    """Whether a group of cells is measured on this run."""
    spec = run.spec
    weights_alone = replace(spec.base, weights=spec.weights)
    return (
        spec.seed in part.seeds
        and (not part.sizes or run.size in part.sizes)
        and (not part.tokens or spec.tokens in part.tokens)
        and (spec == spec.base if part.of == "plain" else spec == weights_alone != spec.base)
    )


def kept_runs(want: Expected) -> list[Run]:
    """The runs of `keep`, in its order. Raises BitlawError when one is not part of the profile."""
    found: list[Run] = []
    for part in want.profile.keep:
        chosen = [
            run
            for run in want.runs
            if (run.size in part.sizes and run.spec.tokens in part.tokens and run.spec.seed in part.seeds)
            and run.spec.phase in part.phases
            and run.spec == run.spec.base
        ]
        if not chosen:
            raise BitlawError(f"pool.yaml: keep: no run of the profile is {part.sizes} at {part.tokens} tokens")
        found += [run for run in chosen if run not in found]
    return found


def runs_of(part: RunGroup, pool: Pool, profile: Profile, corpus: str, corpus_sha256: str) -> list[Run]:
    """Every size x learning rate x seed x compression x horizon, on the trunk and cooled."""
    runs = []
    for size in part.sizes:
        if size not in pool.sizes:
            raise BitlawError(f"pool.yaml: size '{size}' is unknown{nearest(size, list(pool.sizes))}")
        shape = pool.sizes[size]
        for learning_rate in part.learning_rates or [shape.learning_rate]:
            for seed in part.seeds:
                for how in part.compression:
                    for name in how:
                        if name not in COMPRESSION:
                            hint = nearest(name, list(COMPRESSION))
                            raise BitlawError(f"pool.yaml: compression: {name} is no setting{hint}")
                    known: dict[str, Any] = {**profile.training, **how}
                    first = RunSpec(
                        corpus_sha256=corpus_sha256, n_layer=shape.n_layer, d_model=shape.d_model, d_ff=shape.d_ff,
                        seed=seed, learning_rate=learning_rate, tokens=part.tokens[0], cooled=False, **known,
                    )  # fmt: skip
                    runs += [
                        Run(replace(first, tokens=tokens, cooled=phase == "cooled"), size, corpus)
                        for tokens in part.tokens
                        for phase in part.phases
                    ]
    return runs


def cells_of(part: CellGroup, run: Run) -> list[Cell]:
    """Every format x group size. Raises BitlawError when a group does not divide the run's matrices."""
    cells = [Cell(part.method, form, group) for form in part.formats for group in part.group_sizes]
    for cell in cells:
        for width in (run.spec.d_model, run.spec.d_ff):
            if cell.group_size != "channel" and width % int(cell.group_size):
                raise BitlawError(
                    f"pool.yaml: measurements: groups of {cell.group_size} do not divide the {width} inputs of a "
                    f"matrix of size {run.size}: use a divisor or 'channel'"
                )
    return cells
