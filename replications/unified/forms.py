"""The candidates for a unified law: a format enters by the share of energy that it loses, and by nothing else.

    u = k x^g D^a / N^b,      x = m(e_w) + r_a m(e_a) + r_kv m(e_kv) + r_b m(e_b)

with e the relative errors of error.py (weights, pruned ones among them; activations; KV cache; inputs of the backward
products). What is compared:

    measure m   energy e        log -ln(1 - e), which adds up where shares kept multiply        odds e / (1 - e)
    link        additive        L = A / N^alpha + B / D^beta + E + u
                multiplicative  L = (A / N^alpha + B / D^beta) (1 + u) + E
                capacity        L = A / (N f)^alpha + B / D^beta + E,  f = exp(-u)
                share           the same with f = 1 / (1 + u)
    exponents   free  k, g, a, b         ratio  a = b: a power of D / N
                linear  g = 1, a = b     fixed  a = b = 0

in nats per token, N and D raw. With `trained`, models that were trained in the format (1) have a level, a slope and an
exponent of D of their own beside those that were rounded after training (0): u times h x^g_t D^a_t.
"""

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Literal, get_args

import numpy as np
from numpy.typing import NDArray

from shared.errors import BitlawError, nearest
from shared.laws.chinchilla import base, base_terms
from shared.laws.law import Array, Columns, Law
from shared.laws.terms import LEVEL, LOG_D, LOG_N, Parameter, Slopes, Term, law_of_terms, split

Link = Literal["additive", "multiplicative", "capacity", "share"]
Measure = Literal["energy", "log", "odds"]
Exponents = Literal["free", "ratio", "linear", "fixed"]
CONSTANTS: Mapping[Exponents, int] = {"free": 4, "ratio": 3, "linear": 2, "fixed": 2}

INPUT, TRAINED = "relative_mse", "trained"
STREAMS = {"a": "relative_mse_a", "kv": "relative_mse_kv", "b": "relative_mse_b"}
LOG_ERROR = float(np.log(0.01))  # where a level is stated: INT4 in groups of 64 loses .0116
MOST = 1 - 1e-6  # of the energy: a format that loses it all has no logarithm
LARGEST = 4.0  # of ln u: f = e^-55, beyond which the exponential would overflow while a fit is far from its end
SOURCE = "this project, replications/unified ({})"
LEVEL_STARTS = (float(np.log(1e-3)), float(np.log(0.3)))
SLOPE = (-1.0, 5.0)  # of ln u against ln x: either sign, so that a format's error may also mean nothing
EITHER = (-3.0, 3.0)
RATIO, RATIO_STARTS = (float(np.log(1e-3)), float(np.log(1e3))), (-1.0, 2.0)


@dataclass(frozen=True)
class Form:
    """One candidate. Raises BitlawError for a word that is none of the lists above."""

    link: Link
    measure: Measure
    exponents: Exponents

    def __post_init__(self) -> None:
        for value, known, what in (
            (self.link, get_args(Link), "link"),
            (self.measure, get_args(Measure), "measure"),
            (self.exponents, get_args(Exponents), "exponents"),
        ):
            if value not in known:
                raise BitlawError(f"{what} '{value}' is unknown{nearest(value, list(known))}: use {', '.join(known)}")

    @property
    def name(self) -> str:
        return f"{self.link}, {self.measure}, {self.exponents}"

    @property
    def constants(self) -> int:
        """Of the penalty, beside the five of the loss without it."""
        return CONSTANTS[self.exponents]


def loss_law(form: Form, name: str = "unified", streams: tuple[str, ...] = (), trained: bool = False) -> Law:
    """The law of the loss: inputs N, D, relative_mse and those of `streams` (keys of STREAMS), and `trained`.

    Parameters A, alpha, B, beta, E, k, g, then a and b (`ratio`, `linear`: b of D / N), then r_<stream>, then h, g_t,
    a_t. What `linear` and `fixed` hold stands among them at its value (laws.fit.hold).
    """
    head = base(tied=False)
    own_term = form.link == "additive"
    penalty = _parameters(form, streams, trained, factor=own_term)
    at = {p.name: len(head) + k for k, p in enumerate(penalty)}

    def terms(theta: Array, columns: Columns) -> list[Term]:
        in_N, in_D = base_terms(theta, columns, tied=False)
        log_u, slopes, lost = _penalty(theta, columns, form, at, streams)
        if own_term:
            return [in_N, in_D, Term(np.where(lost, log_u, -np.inf), slopes)]
        within = log_u.real < LARGEST  # .real: a derivative by the complex step comes through here
        u = np.where(lost, np.exp(np.where(within, log_u, LARGEST)), 0.0)
        if form.link == "multiplicative":
            up, rise = np.log1p(u), within * u / (1 + u)
            return [
                Term(term.y + up, {**term.slopes, **{i: rise * slope for i, slope in slopes.items()}})
                for term in (in_N, in_D)
            ]
        up, rise = (u, within * u) if form.link == "capacity" else (np.log1p(u), within * u / (1 + u))
        alpha = split(theta)[1]
        changed: Slopes = {i: alpha * rise * slope for i, slope in slopes.items()}
        return [Term(in_N.y + alpha * up, {**in_N.slopes, 1: in_N.slopes[1] + up, **changed}), in_D]

    inputs = _inputs(streams, trained)
    law = law_of_terms(
        name=name,
        source=SOURCE.format(form.name),
        inputs=("N", "D", *inputs),
        parameters=(*head, *penalty),
        terms=terms,
        constant="E",
        at_least_zero=inputs,
        unquantized={name: 0.0 for name in inputs if name != TRAINED},
    )
    return _held(law, form, at)


def delta_law(form: Form, name: str, streams: tuple[str, ...] = (), trained: bool = False) -> Law:
    """The penalty of an additive form alone, as a law of delta: it needs no base.

    Raises BitlawError for a form whose delta depends on the unquantized loss.
    """
    if form.link != "additive":
        raise BitlawError(f"the delta of the form '{form.name}' depends on A and alpha: fit its law of the loss")
    penalty = _parameters(form, streams, trained, factor=True)
    at = {p.name: k for k, p in enumerate(penalty)}
    inputs = _inputs(streams, trained)

    def terms(theta: Array, columns: Columns) -> list[Term]:
        log_u, slopes, lost = _penalty(theta, columns, form, at, streams)
        return [Term(np.where(lost, log_u, -np.inf), slopes)]

    law = law_of_terms(
        name=name, source=SOURCE.format(form.name), inputs=("N", "D", *inputs), parameters=penalty, terms=terms,
        target="delta", at_least_zero=inputs,
    )  # fmt: skip
    return _held(law, form, at)


def _inputs(streams: tuple[str, ...], trained: bool) -> tuple[str, ...]:
    return (INPUT, *(STREAMS[x] for x in streams), *((TRAINED,) if trained else ()))


def _parameters(form: Form, streams: tuple[str, ...], trained: bool, factor: bool) -> tuple[Parameter, ...]:
    """Those of u. `factor`: k is the factor of a term of its own, whose start follows from the others."""
    tied = form.exponents in ("ratio", "linear")
    reference = {"g": LOG_ERROR} | ({"b": LOG_D - LOG_N} if tied else {"a": LOG_D, "b": -LOG_N})
    found = [
        Parameter("k", LEVEL, None if factor else LEVEL_STARTS, log=True, reference=reference),
        Parameter("g", SLOPE, (0.4, 1.3)),
        *(Parameter(name, EITHER, (-0.2, 0.8)) for name in (("b",) if tied else ("a", "b"))),
        *(Parameter(f"r_{x}", RATIO, RATIO_STARTS, log=True) for x in streams),
    ]
    if trained:
        found.append(Parameter("h", LEVEL, (-2.0, 1.0), log=True, reference={"g_t": LOG_ERROR, "a_t": LOG_D}))
        found += [Parameter(name, EITHER, (-0.5, 0.5)) for name in ("g_t", "a_t")]
    return tuple(found)


def _held(law: Law, form: Form, at: Mapping[str, int]) -> Law:
    """With the exponents of `linear` and `fixed` in their place."""
    if form.exponents == "linear":
        return _at(law, at["g"], 1.0)
    return _at(_at(law, at["a"], 0.0), at["b"], 0.0) if form.exponents == "fixed" else law


def _at(law: Law, index: int, value: float) -> Law:
    """`law` with one exponent held: internal and printed values of exponents are the same."""
    bounds = law.bounds.copy()
    bounds[index] = value
    return replace(law, bounds=bounds)


def _measured(e: Array, measure: Measure) -> Array:
    e = np.minimum(e, MOST)
    return e if measure == "energy" else -np.log1p(-e) if measure == "log" else e / (1 - e)


def _penalty(
    theta: Array, columns: Columns, form: Form, at: Mapping[str, int], streams: tuple[str, ...]
) -> tuple[Array, Slopes, NDArray[np.bool_]]:
    """ln u (..., n), its slopes, and where anything is lost (n,). Slopes of rows without loss mean nothing."""
    part = split(theta)
    total = _measured(columns[INPUT], form.measure)
    lost = columns[INPUT] > 0
    shares: dict[int, Array] = {}
    for x in streams:
        size = np.exp(part[at[f"r_{x}"]]) * _measured(columns[STREAMS[x]], form.measure)
        total, lost, shares[at[f"r_{x}"]] = total + size, lost | (columns[STREAMS[x]] > 0), size
    sound = np.where(lost, total, 1.0)
    log_x = np.log(sound) - LOG_ERROR
    n, d = np.log(columns["N"]) - LOG_N, np.log(columns["D"]) - LOG_D
    slope = part[at["g"]]
    log_u = part[at["k"]] + slope * log_x
    slopes: Slopes = {at["k"]: 1.0, at["g"]: log_x}
    powers = {"a": d, "b": -n} if "a" in at else {"b": d - n}
    if "h" in at:
        t = columns[TRAINED]
        log_u = log_u + t * (part[at["h"]] + part[at["g_t"]] * log_x + part[at["a_t"]] * d)
        slopes |= {at["h"]: t, at["g_t"]: t * log_x, at["a_t"]: t * d}
        slope = slope + t * part[at["g_t"]]
    for name, feature in powers.items():
        log_u = log_u + part[at[name]] * feature
        slopes[at[name]] = feature
    for i, size in shares.items():
        slopes[i] = np.where(lost, slope * size / sound, 0.0)
    return log_u, slopes, lost


LINKS: tuple[Link, ...] = get_args(Link)
MEASURES: tuple[Measure, ...] = get_args(Measure)
LADDER: tuple[Exponents, ...] = get_args(Exponents)
