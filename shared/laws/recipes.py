"""Ways to fit a law that papers have used, by name: what a residual is, what it costs, where the search starts."""

from dataclasses import dataclass
from itertools import product

import numpy as np

from shared.errors import BitlawError, nearest
from shared.laws.law import Array, Columns, Law
from shared.laws.solve import SQUARES, Misfit


@dataclass(frozen=True)
class Recipe:
    """`grid` holds starting values of constants by name, all combinations; constants that it does not name start where
    the law says. A recipe with `noise` weights its rows by seed and measurement noise (fit.py)."""

    name: str
    about: str
    source: str
    misfit: Misfit
    grid: tuple[tuple[str, tuple[float, ...]], ...] = ()
    noise: bool = False


def _exp(*values: float) -> tuple[float, ...]:
    return tuple(float(np.exp(value)) for value in values)


_HALVES = (0.0, 0.5, 1.0, 1.5, 2.0)
_FIVES = _exp(0, 5, 10, 15, 20, 25)

WEIGHTED = Recipe(
    "weighted",
    "(delta - predicted) / sigma, squares; sigma from measurement, seeds and lack of fit",
    "this project's design",
    SQUARES,
    noise=True,
)
HUBER = Recipe("huber", "Huber, corner 1e-3, on log loss; random starts", "this project's design", Misfit(True, 1e-3))

RECIPES = {
    recipe.name: recipe
    for recipe in (
        WEIGHTED,
        HUBER,
        Recipe(
            "hoffmann-huber",
            "Huber, corner 1e-3, on log loss; 4,500 starts on a grid",
            "Hoffmann et al. 2022, approach 3, with the grid of Besiroglu et al. (analyzing-chinchilla, cell 18)",
            Misfit(True, 1e-3),
            grid=(
                ("A", _FIVES),
                ("alpha", _HALVES),
                ("B", _FIVES),
                ("beta", _HALVES),
                ("E", _exp(-1, -0.5, 0, 0.5, 1)),
            ),
        ),
        Recipe(
            "quartet-huber",
            "Huber, corner 1e-4, on log loss; 486 starts on a grid",
            "Quartet, arXiv 2505.14669 (IST-DASLab/Quartet, notebooks/plots.ipynb at 5b9d74c, cell 4)",
            Misfit(True, 1e-4),
            grid=(
                ("A", _exp(0, 5, 10)),
                ("alpha", _HALVES[:3]),
                ("B", _exp(0, 5, 10)),
                ("beta", _HALVES[:3]),
                ("E", _exp(0, 0.5)),
                ("gamma", _HALVES[:3]),
            ),
        ),
        Recipe(
            "least-squares-log",
            "squares of log loss; random starts",
            "what the recipe of QuEST, arXiv 2502.05003, comes to (notebooks/plots.ipynb: its Huber is never active)",
            Misfit(log=True),
        ),
        Recipe("least-squares", "squares of the target, as scipy's curve_fit", "the precision-scaling page", SQUARES),
    )
}


def find(name: str) -> Recipe:
    """Raises BitlawError for an unknown recipe."""
    if name not in RECIPES:
        raise BitlawError(f"recipe '{name}' is unknown{nearest(name, list(RECIPES)) or ': use ' + ', '.join(RECIPES)}")
    return RECIPES[name]


def default(law: Law) -> Recipe:
    """Losses by Huber on their logarithm; deltas, which may be negative, weighted by their noise."""
    return HUBER if law.target == "loss" else WEIGHTED


def starting_points(
    recipe: Recipe, law: Law, generator: np.random.Generator, n: int, columns: Columns, target: Array, error: Array
) -> Array:
    """(starts, P) internal: `n` that the law draws, or all of the recipe's grid if the law has its constants."""
    if not recipe.grid or not {name for name, _ in recipe.grid} <= set(law.parameters):
        return law.starts(generator, n, columns, target, error)
    values = np.array(list(product(*(values for _, values in recipe.grid))))
    raw = law.to_raw(law.starts(generator, len(values), columns, target, error))
    for k, (name, _) in enumerate(recipe.grid):
        raw[:, law.parameters.index(name)] = values[:, k]
    return np.clip(law.from_raw(raw), *law.bounds.T)
