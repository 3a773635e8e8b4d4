"""One number for a format: the share of a tensor's energy that it loses, at its group and scale rule, on normal values.

    e = E (x - q(x))^2 / E x^2,    x ~ N(0, 1) in groups of G values that share a scale

With an absmax scale s = m / limit, where m is the largest magnitude of the group, the other G - 1 values are normal
ones cut at m, and m has the density G (2 Phi(m) - 1)^(G - 1) 2 phi(m): one integral over m, with the exact cell sums of
shared/formats/gaussian.py inside it. Nothing is drawn and nothing is measured, so that a format that nobody has trained
in yet has its number too. Bits, E and M, code books, blocks and power-of-two scales all end here.

What is pruned loses its share of the energy. Errors of two inputs of one product add to first order:
|(W + dW)(X + dX) - W X|^2 / |W X|^2 = e_W + e_X + e_W e_X for independent normal values.
"""

import math
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cache
from typing import Any

import numpy as np
from numpy.typing import NDArray
from scipy import special

from replications.compressed import Widths
from shared.errors import BitlawError
from shared.formats.gaussian import best_scale, gaussian_fit, mean_squared_error
from shared.formats.oracle import values
from shared.quantize.quantizer import Quantizer
from shared.quantize.training import FORWARD, PRODUCTS, Precision, read

NODES = 48  # of the integral over the largest magnitude; 24 give the same six digits
MANY = 2**18  # values of a tensor that shares one scale: a batch of our pool has so many activations
OF_FOUR = 200_001  # points of the integral over magnitudes for 2:4
FULL_BITS = 16.0  # from here on nothing is lost that any of our tables could show
EXACT_SCALES = ("FP32", "BF16", "E4M3")  # their rounding changes a scale by under 1 / 16: taken as none


@dataclass(frozen=True)
class Errors:
    """What a way to compress loses, each a share of energy in [0, 1): `weights` and `activations` of the forward
    product, `keys_values` in attention, `backward` the inputs of the two backward products that are cast on their own
    (Sun's P3 to P6), `pruned` weights."""

    weights: float = 0.0
    activations: float = 0.0
    keys_values: float = 0.0
    backward: float = 0.0
    pruned: float = 0.0


def relative_error(text: str, row: float) -> float:
    """e of a quantizer such as INT4@channel, E2M1@8, MXFP4 on rows of `row` values; none and 16 bits lose nothing.

    Raises BitlawError for a quantizer that cannot be read and for scale rules whose error this does not know
    (percentiles, and minmax with its zero point).
    """
    quantizer = read(text) if text != "none" else None
    if quantizer is None or quantizer.format.bits >= FULL_BITS:
        return 0.0
    group = quantizer.group
    size = float(group) if isinstance(group, int) else float(MANY) if group == "tensor" else row
    return _of_groups(quantizer, round(size))


@cache
def _of_groups(quantizer: Quantizer, size: int) -> float:
    rule = quantizer.scale_rule
    if quantizer.has_zero_point or rule not in ("absmax", "mean", "mse", "mx"):
        raise BitlawError(
            f"{quantizer}: the error of scale rule '{rule}' for normal values is not known here; use absmax, mse, mean "
            "or mx"
        )
    if size <= 1:
        return 0.0  # the one value is its own scale
    grid_V = np.array(values(quantizer.format), dtype=np.float64) / quantizer.format.limit
    if rule == "mean":
        return mean_squared_error(math.sqrt(2 / math.pi) * grid_V)
    if rule == "mse":
        return gaussian_fit(quantizer.format).mse
    # Gauss-Legendre in the probability of m: m^-1((1 + u^(1/G)) / 2).
    at, weight = np.polynomial.legendre.leggauss(NODES)
    u = (at + 1) / 2
    top = -special.ndtri(-np.expm1(np.log(u) / size) / 2)
    losses = [_given_the_largest(quantizer, grid_V, m, size) for m in top]
    return float(np.sum(weight / 2 * losses))


def _given_the_largest(quantizer: Quantizer, grid_V: NDArray[np.float64], m: float, size: int) -> float:
    """The error of a group whose largest magnitude is m."""
    limit = quantizer.format.limit
    if quantizer.scale_rule == "mx":
        clip = limit * 2.0 ** (math.floor(math.log2(m)) - quantizer.format.largest_exponent)
    elif quantizer.scale_format == "E8M0":
        clip = limit * 2.0 ** math.ceil(math.log2(m / limit))
    elif quantizer.scale_format in EXACT_SCALES:
        clip = m
    else:
        raise BitlawError(f"{quantizer}: the error of scales in {quantizer.scale_format} is not known here")
    grid = clip * grid_V
    edges = np.clip(np.concatenate([[-m], (grid[1:] + grid[:-1]) / 2, [m]]), -m, m)
    phi = np.exp(-(edges**2) / 2) / math.sqrt(2 * math.pi)
    inside = (1 + grid**2) * np.diff(special.ndtr(edges)) - np.diff(edges * phi) + 2 * grid * np.diff(phi)
    others = float(inside.sum()) / (2 * special.ndtr(m) - 1)
    own = float(np.min(np.abs(m - grid))) ** 2
    return ((size - 1) * others + own) / size


@cache
def pruned_energy(share: float, pattern: str = "unstructured") -> float:
    """The energy of the smallest values: of `share` of all, or with 2:4 of the smaller two of each four.

    Raises BitlawError for an unknown pattern or a share outside [0, 1).
    """
    if not 0 <= share < 1:
        raise BitlawError(f"a share of {share} cannot be pruned: give one from 0 to below 1")
    if pattern == "2:4":
        x = np.linspace(0.0, 9.0, OF_FOUR)
        below, density = 2 * special.ndtr(x) - 1, 2 * np.exp(-(x**2) / 2) / math.sqrt(2 * math.pi)
        kept = below**3 + 3 * below**2 * (1 - below)  # among the larger two: two or three of the others are smaller
        return float(np.trapezoid(x**2 * density * (1 - kept), x))
    if pattern != "unstructured":
        raise BitlawError(f"sparsity pattern '{pattern}' is unknown: use unstructured or 2:4")
    if not share:
        return 0.0
    edge = float(special.ndtri((1 + share) / 2))
    return float(share - 2 * edge * math.exp(-(edge**2) / 2) / math.sqrt(2 * math.pi))


@cache
def mid_rise(bits: float) -> float:
    """The least error of 2^bits levels at odd multiples of half a step: QuEST's grid (IST-DASLab/QuEST, base_linear.py,
    number_formats.md: .36338, .118846, .0374397, .0115429 for 1 to 4 bits)."""
    levels = 2 ** round(bits)
    return best_scale((2 * np.arange(levels) - (levels - 1)) / (levels - 1)).mse


def errors_of(fields: Mapping[str, Any], widths: Widths) -> Errors:
    """What a run loses by its fields of compression (`compressed.compression_of`) in a model of these widths.

    Exceptions count by the share of the weights whose product they change. Raises BitlawError as `relative_error`.
    """
    rest = dict(fields)
    pruned = pruned_energy(float(rest.pop("sparsity", 0.0)), str(rest.pop("sparsity_pattern", "unstructured")))
    for name in ("sparsity_begin", "sparsity_end"):
        rest.pop(name, None)
    precision = Precision(**rest)
    row = {"down": widths.d_ff}
    share = shares(widths)
    found = {"weights": 0.0, "activations": 0.0, "backward": 0.0}
    for product, part in share.items():
        roles = precision.roles(0, product)
        e = {role: relative_error(text, row.get(product, widths.d_model)) for role, text in roles.items()
             if text != FORWARD}  # fmt: skip
        found["weights"] += part * e["weights"]
        found["activations"] += part * e["activations"]
        own = [e.get(role, 0.0) for role in ("weights_backward", "activations_backward")]
        found["backward"] += part * (sum(own) + e["gradients_to_inputs"] + e["gradients_to_weights"])
    return Errors(keys_values=relative_error(precision.keys_values, 32), pruned=pruned, **found)


def shares(widths: Widths) -> dict[str, float]:
    """The share of each product in the weights of a block."""
    d, f = widths.d_model, widths.d_ff
    size = {"qkv": 3 * d * d, "o": d * d, "gate_up": 2 * d * f, "down": d * f}
    total = sum(size.values())
    return {product: size[product] / total for product in PRODUCTS}
