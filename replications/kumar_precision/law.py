"""The laws of Kumar et al. (arXiv 2411.04330): rounding after training (Eq. 2), training in few bits (Eq. 3 and 4), and
rounding a model that was trained in few bits (Eq. 9).

    Eq. 2  delta = C_T D^gamma_D / N^gamma_N exp(-P_post / gamma_post)                 models trained in 16 bits
    Eq. 4  L     = A (N f)^-alpha + B D^-beta + E,   f = prod_x 1 - exp(-P_x / gamma_x + n_x)
    Eq. 9  delta = C_T D^gamma_D / (N f)^gamma_N exp(-P_post / gamma_post) prod_x 1 - exp(-C_x (P_x - P_post))

x runs over weights (w), activations (a) and the KV cache (kv); Eq. 3 has the weights alone. N non-embedding parameters
and D tokens, both raw; P in bits; losses and deltas in nats per token. The main text prints Eq. 3 and 4 without the
biases n_x; Appendix K says that they were fitted with them. It mentions a bias b in the exponent of Eq. 2 too: C_T and
b enter as C_T e^b only, so that here C_T holds both. alpha = beta in the paper, and wherever `tied` is not False.
"""

import numpy as np

from shared.laws.chinchilla import base, base_terms
from shared.laws.law import Array, Columns, Law
from shared.laws.loglinear import REFERENCE_BITS, REFERENCE_D, REFERENCE_N, log_linear
from shared.laws.terms import LEVEL, LOG_D, LOG_N, Parameter, Slopes, Term, law_of_terms, split

STREAMS = ("w", "a", "kv")
GAMMA = (float(np.log(0.1)), float(np.log(20.0)))  # bits
GAMMA_STARTS = (float(np.log(0.5)), float(np.log(6.0)))
UNROUNDED = 1e6  # bits that stand for none taken away: their exponential is zero
BIAS, RATE = (-5.0, 5.0), (float(np.log(0.05)), float(np.log(50.0)))


def _features(columns: Columns) -> Array:
    return np.stack(
        [
            np.log(columns["D"] / REFERENCE_D),
            -np.log(columns["N"] / REFERENCE_N),
            REFERENCE_BITS - columns["bits"],
        ],
        axis=-1,
    )


def _to_raw(theta: Array) -> Array:
    level, gamma_D, gamma_N, per_bit = np.moveaxis(theta, -1, 0)
    log_C = level - gamma_D * np.log(REFERENCE_D) + gamma_N * np.log(REFERENCE_N) + per_bit * REFERENCE_BITS
    return np.stack([np.exp(log_C), gamma_D, gamma_N, 1 / per_bit], axis=-1)


def _from_raw(raw: Array) -> Array:
    C_T, gamma_D, gamma_N, gamma_post = np.moveaxis(raw, -1, 0)
    level = np.log(C_T) + gamma_D * np.log(REFERENCE_D) - gamma_N * np.log(REFERENCE_N) - REFERENCE_BITS / gamma_post
    return np.stack([level, gamma_D, gamma_N, 1 / gamma_post], axis=-1)


LAW = log_linear(
    name="kumar_eq2",
    source="Kumar et al., arXiv 2411.04330, Eq. 2",
    inputs=("N", "D", "bits"),
    parameters=("C_T", "gamma_D", "gamma_N", "gamma_post"),
    features=_features,
    # The exponents may take either sign, so that a claim about a sign can fail; gamma_post from 0.1 to 20 bits.
    slope_bounds=[(-3.0, 3.0), (-3.0, 3.0), (0.05, 10.0)],
    start_box=[(-0.5, 1.5), (-0.5, 1.5), (0.5, 4.0)],
    to_raw=_to_raw,
    from_raw=_from_raw,
)


def effective_bits(name: str, source: str, columns: dict[str, str], *, biases: bool, tied: bool = True) -> Law:
    """Eq. 3 or 4: `columns` maps each stream of `STREAMS` that is quantized to the column with its bits.

    Where f is not above zero the law has no finite loss: the model diverges, as the paper's do at P_a = P_kv = 3.
    """
    head = base(tied)

    def terms(theta: Array, table: Columns) -> list[Term]:
        in_N, in_D = base_terms(theta, table, tied)
        log_f, slopes = _log_f(theta, table, columns, len(head), biases)
        return [_times_f(in_N, log_f, slopes, theta, 1), in_D]

    def draw(generator: np.random.Generator, theta: Array, table: Columns) -> None:
        _draw_biases(generator, theta, table, columns, len(head), biases)

    return law_of_terms(
        name=name,
        source=f"Kumar et al., arXiv 2411.04330, {source}",
        inputs=("N", "D", *columns.values()),
        parameters=(*head, *_of_f(columns, biases)),
        terms=terms,
        constant="E",
        draw=draw,
        unquantized=dict.fromkeys(columns.values(), np.inf),
    )


def tied_bits(name: str) -> Law:
    """Eq. 4 as the paper's analysis of P* uses it: one bit width P for all three streams and one gamma_bar,
    N_eff = N (1 - exp(-P / gamma_bar))^3."""

    def terms(theta: Array, table: Columns) -> list[Term]:
        in_N, in_D = base_terms(theta, table, True)
        log_f, slopes = _log_f(theta, table, {"bar": "bits"}, 4, False)
        cubed = {i: 3 * slope for i, slope in slopes.items()}
        return [_times_f(in_N, 3 * log_f, cubed, theta, 1), in_D]

    return law_of_terms(
        name=name,
        source="Kumar et al., arXiv 2411.04330, Eq. 4 with one bit width",
        inputs=("N", "D", "bits"),
        parameters=(*base(True), *_of_f({"bar": "bits"}, False)),
        terms=terms,
        constant="E",
        unquantized={"bits": np.inf},
    )


def _of_f(columns: dict[str, str], biases: bool) -> tuple[Parameter, ...]:
    gammas = tuple(Parameter(f"gamma_{x}", GAMMA, GAMMA_STARTS, log=True) for x in columns)
    return (*gammas, *(Parameter(f"n_{x}", BIAS, (-0.5, 0.5)) for x in columns)) if biases else gammas


def _log_f(theta: Array, table: Columns, columns: dict[str, str], first: int, biases: bool) -> tuple[Array, Slopes]:
    """ln f (..., n) of Eq. 4, and its slopes; the parameters of f begin at `first`: gammas, then biases.

    -inf where a factor is not above zero; slopes are finite there, and without meaning.
    """
    total: Array = np.zeros(1)
    slopes: Slopes = {}
    for k, column in enumerate(columns.values()):
        log_gamma = split(theta)[first + k]
        bias = split(theta)[first + len(columns) + k] if biases else 0.0
        quantized = np.isfinite(table[column])
        scaled = np.where(quantized, table[column], 0.0) * np.exp(-log_gamma)
        lost = np.where(quantized, np.exp(bias - scaled), 0.0)
        sound = lost.real < 1  # .real: a derivative by the complex step comes through here
        kept = np.where(sound, 1 - lost, 1.0)
        total = total + np.where(sound, np.log(kept), -np.inf)
        odds = lost / kept
        slopes[first + k] = -odds * scaled
        if biases:
            slopes[first + len(columns) + k] = -odds
    return total, slopes


def _times_f(term: Term, log_f: Array, slopes: Slopes, theta: Array, exponent: int) -> Term:
    """The term over f^theta[exponent]."""
    power = split(theta)[exponent]
    finite = np.where(np.isfinite(log_f), log_f, 0.0)
    changed = dict(term.slopes)
    changed[exponent] = changed[exponent] - finite
    changed |= {i: -power * slope for i, slope in slopes.items()}
    return Term(np.where(np.isfinite(log_f), term.y - power * finite, np.inf), changed)


def _draw_biases(
    generator: np.random.Generator, theta: Array, table: Columns, columns: dict[str, str], first: int, biases: bool
) -> None:
    """Biases for which f is above zero at every row: n_x below min(P_x) / gamma_x."""
    if biases:
        for k, column in enumerate(columns.values()):
            most = np.minimum(np.min(table[column]) * np.exp(-theta[:, first + k]), BIAS[1])
            theta[:, first + len(columns) + k] = generator.uniform(-0.5, 0.95, size=len(theta)) * most


EQ3 = effective_bits("kumar_eq3", "Eq. 3", {"w": "bits"}, biases=False, tied=False)
EQ3_BIAS = effective_bits("kumar_eq3_bias", "Eq. 3 with Appendix K", {"w": "bits"}, biases=True, tied=False)
EQ3_TIED = effective_bits("kumar_eq3_tied", "Eq. 3, alpha = beta", {"w": "bits"}, biases=False)
EQ3_BIAS_TIED = effective_bits("kumar_eq3_bias_tied", "Eq. 3 with Appendix K, alpha = beta", {"w": "bits"}, biases=True)
ALL = {x: f"P_{x}" for x in STREAMS}
EQ4 = effective_bits("kumar_eq4", "Eq. 4", ALL, biases=False)
EQ4_BIAS = effective_bits("kumar_eq4_bias", "Eq. 4 with Appendix K", ALL, biases=True)
EQ4_BAR = tied_bits("kumar_eq4_bar")


def _of_post() -> tuple[Parameter, ...]:
    exponents = tuple(Parameter(x, (-3.0, 3.0), (-0.5, 1.5)) for x in ("gamma_D", "gamma_N"))
    rates = tuple(Parameter(f"C_{x}", RATE, (-1.5, 1.5), log=True) for x in STREAMS)
    level = Parameter("C_T", LEVEL, None, log=True, reference={"gamma_D": LOG_D, "gamma_N": -LOG_N})
    return (level, *exponents, Parameter("gamma_post", GAMMA, (-1.5, 1.0), log=True), *rates)


def _post_term(theta: Array, table: Columns, first: int, first_of_f: int) -> Term:
    """Eq. 9. Zero where a stream was trained in no more bits than it is rounded to: the paper assumes P_x > P_post,
    and says that delta = 0 where they are equal."""
    level, gamma_D, gamma_N, log_gamma = split(theta)[first : first + 4]
    n, d = np.log(table["N"]) - LOG_N, np.log(table["D"]) - LOG_D
    bits = np.where(np.isfinite(table["P_post"]), table["P_post"], UNROUNDED)
    post = bits * np.exp(-log_gamma)
    y = level + gamma_D * d - gamma_N * n - post
    slopes: Slopes = {first: 1.0, first + 1: d, first + 2: -n, first + 3: post}
    for k, x in enumerate(STREAMS):
        gap = np.minimum(table[f"P_{x}"], UNROUNDED) - bits
        scaled = np.exp(split(theta)[first + 4 + k]) * np.where(gap > 0, gap, 1.0)
        kept = -np.expm1(-scaled)
        y = y + np.where(gap > 0, np.log(kept), -np.inf)
        slopes[first + 4 + k] = scaled * np.exp(-scaled) / kept
    log_f, slopes_of_f = _log_f(theta, table, ALL, first_of_f, biases=True)
    return _times_f(Term(y, slopes), log_f, slopes_of_f, theta, first + 2)


def _post(name: str, source: str, *, with_loss: bool) -> Law:
    head = (*base(True), *_of_f(ALL, True)) if with_loss else ()
    first, first_of_f = len(head), 4 if with_loss else 7

    def terms(theta: Array, table: Columns) -> list[Term]:
        post = _post_term(theta, table, first, first_of_f)
        if not with_loss:
            return [post]
        in_N, in_D = base_terms(theta, table, True)
        return [_times_f(in_N, *_log_f(theta, table, ALL, 4, True), theta, 1), in_D, post]

    def draw(generator: np.random.Generator, theta: Array, table: Columns) -> None:
        _draw_biases(generator, theta, table, ALL, first_of_f, True)

    everything = dict.fromkeys((*ALL.values(), "P_post"), np.inf)
    return law_of_terms(
        name=name,
        source=f"Kumar et al., arXiv 2411.04330, {source}",
        inputs=("N", "D", *ALL.values(), "P_post"),
        parameters=(*head, *_of_post()) if with_loss else (*_of_post(), *_of_f(ALL, True)),
        terms=terms,
        constant="E" if with_loss else None,
        target="loss" if with_loss else "delta",
        draw=draw,
        unquantized=everything if with_loss else None,
    )


EQ9 = _post("kumar_eq9", "Eq. 9 with Appendix K", with_loss=False)
UNIFIED = _post("kumar_unified", "Eq. 1 with Eq. 4, 9 and Appendix K", with_loss=True)
LAWS = (LAW, EQ3, EQ3_BIAS, EQ3_TIED, EQ3_BIAS_TIED, EQ4, EQ4_BIAS, EQ4_BAR, EQ9, UNIFIED)


def d_crit(constants: dict[str, float], N: float, bits: float) -> float:
    """Equation 13: the D in tokens beyond which more training raises the loss after rounding to `bits`.

    `constants` holds B, beta (= alpha in the paper), C_T, gamma_D, gamma_N and gamma_post. (Equation 12, from which it
    follows, is printed without the factor beta on its left.)
    """
    ratio = constants["beta"] * constants["B"] * N ** constants["gamma_N"] * np.exp(bits / constants["gamma_post"])
    return float(
        (ratio / (constants["gamma_D"] * constants["C_T"])) ** (1 / (constants["gamma_D"] + constants["beta"]))
    )
