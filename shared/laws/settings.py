"""Settings and selections that are read from YAML files, with every key checked."""

from pathlib import Path
from typing import Literal, TypeVar

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from shared import yaml_file
from shared.errors import BitlawError, nearest
from shared.laws.law import Law


class Strict(BaseModel):
    """Unknown keys are errors, and nothing has a default: what a file does not say is not assumed."""

    model_config = ConfigDict(extra="forbid", frozen=True, allow_inf_nan=False)


class FitSettings(Strict):
    """How hard the fits look and when they say that a parameter cannot be told (section `fit` of params.yaml)."""

    n_starts: int = Field(ge=1, le=100_000)
    n_boot: int = Field(ge=20, le=100_000)
    seed: int = Field(ge=0)
    condition_limit: float = Field(gt=1)
    signal_to_noise: float = Field(ge=2)


class Params(Strict):
    """params.yaml as a whole."""

    fit: FitSettings


class Selection(Strict):
    """Which rows a paper's fit reads, and which of them it only shows (section `fit` of experiment.yaml)."""

    corpus: str
    method: str
    formats: tuple[str, ...] = Field(min_length=1)
    group_sizes: tuple[str, ...] = Field(min_length=1)
    phases: tuple[Literal["cooled", "trunk"], ...] = Field(min_length=1)
    tokens_per_step: int = Field(ge=1)
    min_steps: int = Field(ge=0)
    min_tokens_per_parameter: float = Field(ge=0)


class HeldOut(Strict):
    """What is left out of every scored fit: whole sizes, whole formats, and each size's largest D in tokens."""

    sizes: tuple[str, ...]
    formats: tuple[str, ...]
    largest_tokens: dict[str, int]


class Constant(Strict):
    """A number of a paper. Confidence: P read in the paper's text; R, D in its repository or data; S in a secondary
    source; C checked by computation against the paper's other numbers; COMP computed from the former."""

    value: float
    source: str
    confidence: Literal["P", "R", "D", "S", "C", "COMP"]


class Published(Strict):
    """A paper's published.yaml: the constants of its law by the names of `Law.parameters` (none where the paper's are
    not known), other sets of constants by name, and other numbers."""

    paper: str
    arxiv: str
    law: dict[str, Constant]
    laws: dict[str, dict[str, Constant]]
    numbers: dict[str, Constant]

    def values(self) -> dict[str, float]:
        """All numbers by name; those of another set as set/name."""
        others = {f"{name}/{key}": constant for name, some in self.laws.items() for key, constant in some.items()}
        return {name: constant.value for name, constant in {**others, **self.numbers, **self.law}.items()}

    def constants(self, law: Law, which: str | None = None) -> dict[str, Constant] | None:
        """The constants of `law`: of the set `which`, else of the set of its name, else by the names of its parameters
        among the paper's. None where one of them is not published."""
        known = self.laws.get(which or law.name, {} if which else {**self.numbers, **self.law})
        return {name: known[name] for name in law.parameters} if set(law.parameters) <= set(known) else None


Model = TypeVar("Model", bound=Strict)


def read_settings(path: Path, model: type[Model], section: str | None = None) -> Model:
    """A YAML file, or one top-level section of it, as a checked model.

    Raises BitlawError naming the file and the key: missing file, no YAML, unknown, missing or wrong key.
    """
    top = read_yaml(path)
    values: object = top
    if section is not None:
        if section not in top:
            raise BitlawError(f"{path}: section '{section}' is missing{nearest(section, [str(key) for key in top])}")
        values = top[section]
    try:
        return model.model_validate(values)
    except ValidationError as error:
        raise BitlawError(f"{path}: {_sentence(error, model, section)}") from error


def read_yaml(path: Path) -> dict[str, object]:
    """Raises BitlawError as `yaml_file.read_yaml` does, and when the file is no mapping at its top."""
    values = yaml_file.read_yaml(path)
    if not isinstance(values, dict):
        raise BitlawError(f"{path}: must hold keys and values at its top level")
    return values


def _sentence(error: ValidationError, model: type[BaseModel], section: str | None) -> str:
    """The first problem as one clause. An unknown key comes first: a misspelt key is also a missing one."""
    problems = sorted(error.errors(), key=lambda problem: problem["type"] != "extra_forbidden")
    problem = problems[0]
    place = [str(part) for part in problem["loc"]]
    key = ".".join(([section] if section else []) + place)
    if problem["type"] == "extra_forbidden":
        return f"unknown key '{key}'{nearest(place[-1], _keys(model, place[:-1]))}"
    if problem["type"] == "missing":
        return f"key '{key}' is missing"
    return f"key '{key}' is {problem['input']!r}: {problem['msg'][0].lower()}{problem['msg'][1:]}"


def _keys(model: type[BaseModel], place: list[str]) -> list[str]:
    for part in place:
        nested = model.model_fields[part].annotation if part in model.model_fields else None
        if isinstance(nested, type) and issubclass(nested, BaseModel):
            model = nested
    return list(model.model_fields)
