"""Means of a few independent values, with Student's 95 % interval."""

import numpy as np
from scipy.stats import t as student

from shared.laws.law import Array


def half_width(values: Array) -> float:
    """Half the 95 % interval of the mean of two values (n,) or more."""
    n = len(values)
    return float(student.ppf(0.975, n - 1) * values.std(ddof=1) / np.sqrt(n))


def geometric(logs: Array) -> tuple[float, float, float]:
    """exp of the mean of two logarithms (n,) or more, and of the ends of its 95 % interval."""
    middle, half = float(logs.mean()), half_width(logs)
    return float(np.exp(middle)), float(np.exp(middle - half)), float(np.exp(middle + half))
