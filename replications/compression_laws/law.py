"""One multiplier of N for each compression (Frantar et al., arXiv 2502.16440), and its later form with one of D.

    Frantar   L = A / (N eff_c)^alpha + B / D^beta + E
    Quartet   L = [A / (N effN_f)^alpha + B / (D effD_b)^beta]^gamma + E      (arXiv 2505.14669)

in nats per token; N and D raw. The paper's letters are a, b, c, d, e for A, alpha, B, beta, E. The index c is a
compression (a bit width of weights, of weights and activations, a sparsity); f and b are the precisions of the forward
and the backward pass. The unquantized group has multiplier 1 and no parameter.

Groups are the values of the column `GROUPED` of a table: in `Columns` they are codes 0, 1, ... of `Law.groups`.
"""

import numpy as np

from shared.errors import BitlawError
from shared.laws.chinchilla import base, base_terms
from shared.laws.law import Array, Columns, Law
from shared.laws.terms import Parameter, Term, law_of_terms, split

GROUPED = "compression"
LOG_EFF = (float(np.log(1e-4)), float(np.log(100.0)))
LOG_EFF_STARTS = (float(np.log(0.05)), 0.1)
BETWEEN = "/"  # parts of a Quartet group: forward/backward


def effective_parameters(groups: tuple[str, ...]) -> Law:
    """Frantar's law for `groups`, of which the first is the unquantized one; parameters eff_<group> for the others.

    Raises BitlawError for fewer than two groups, or one named twice.
    """
    _check(groups)

    def terms(theta: Array, columns: Columns) -> list[Term]:
        in_N, in_D = base_terms(theta, columns, tied=False)
        member = columns[GROUPED][None, :] == np.arange(len(groups))[:, None]
        return [_scaled(in_N, theta, 1, {5 + k: member[1 + k] for k in range(len(groups) - 1)}), in_D]

    return law_of_terms(
        name="frantar",
        source="Frantar et al., arXiv 2502.16440: one multiplier of N for each compression",
        inputs=("N", "D", GROUPED),
        parameters=(*base(tied=False), *(_multiplier(f"eff_{group}") for group in groups[1:])),
        terms=terms,
        constant="E",
        at_least_zero=(GROUPED,),
        unquantized={GROUPED: 0.0},
        grouped=GROUPED,
        groups=groups,
    )


def effective_parameters_and_data(groups: tuple[str, ...]) -> Law:
    """Quartet's law for `groups` named forward/backward, of which the first is the unquantized pair: parameters
    effN_<forward> and effD_<backward> for every precision of the others that differs from it.

    Raises BitlawError for fewer than two groups, one named twice, or one without both parts.
    """
    _check(groups)
    pairs = [tuple(group.split(BETWEEN)) for group in groups]
    for group, pair in zip(groups, pairs, strict=True):
        if len(pair) != 2 or not all(pair):
            raise BitlawError(f"group '{group}' is no pair of precisions; name it forward{BETWEEN}backward")
    names: list[list[str]] = [
        list(dict.fromkeys(p[side] for p in pairs if p[side] != pairs[0][side])) for side in (0, 1)
    ]
    first_N, first_D = 6, 6 + len(names[0])

    def terms(theta: Array, columns: Columns) -> list[Term]:
        in_N, in_D = base_terms(theta, columns, tied=False)
        code = columns[GROUPED].astype(int)
        members = [
            {first + k: np.array([p[side] == name for p in pairs])[code] for k, name in enumerate(names[side])}
            for side, first in ((0, first_N), (1, first_D))
        ]
        return [_scaled(in_N, theta, 1, members[0]), _scaled(in_D, theta, 3, members[1])]

    return law_of_terms(
        name="quartet",
        source="Quartet, arXiv 2505.14669: multipliers of N (forward) and D (backward)",
        inputs=("N", "D", GROUPED),
        parameters=(
            *base(tied=False),
            Parameter("gamma", (0.02, 3.0), (0.15, 1.0)),
            *(_multiplier(f"effN_{name}") for name in names[0]),
            *(_multiplier(f"effD_{name}") for name in names[1]),
        ),
        terms=terms,
        constant="E",
        power="gamma",
        at_least_zero=(GROUPED,),
        unquantized={GROUPED: 0.0},
        grouped=GROUPED,
        groups=groups,
    )


def _multiplier(name: str) -> Parameter:
    return Parameter(name, LOG_EFF, LOG_EFF_STARTS, log=True)


def _scaled(term: Term, theta: Array, exponent: int, members: dict[int, Array]) -> Term:
    """The term over eff^theta[exponent], where rows (n,) of `members[i]` have multiplier exp(theta[i])."""
    power = split(theta)[exponent]
    log_eff: Array = np.zeros(1)
    for i, member in members.items():
        log_eff = log_eff + np.where(member, split(theta)[i], 0.0)
    slopes = {**term.slopes, exponent: term.slopes[exponent] - log_eff}
    return Term(term.y - power * log_eff, slopes | {i: np.where(member, -power, 0.0) for i, member in members.items()})


def _check(groups: tuple[str, ...]) -> None:
    if len(groups) < 2:
        raise BitlawError(
            f"column '{GROUPED}' has {len(groups)} group; this law compares compressions, so it needs two"
        )
    twice = sorted({group for group in groups if groups.count(group) > 1})
    if twice:
        raise BitlawError(f"group '{twice[0]}' of column '{GROUPED}' is named twice; name it once")


LAWS: tuple[Law, ...] = ()  # both laws depend on the table's groups
FAMILIES = {"frantar": effective_parameters, "quartet": effective_parameters_and_data}
