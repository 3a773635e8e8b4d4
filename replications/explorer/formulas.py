"""Each law as its paper prints it, in the language of shared/report/explorer/formula.py.

The laws of `replications/*/law.py` are written for fitting, with their gradients; tests compare the two. A law with a
constant for each group has here the constants of one group: eff, or effN and effD.
"""

from shared.report.explorer.formula import Formula

STREAMS = ("w", "a", "kv")
IN_N_AND_D = "A / N**alpha + B / D**{beta} + E"
SHRUNK = "(A / (N * f)**alpha if f > 0 else inf) + B / D**{beta} + E"
EFFECTIVE_PARAMETERS = Formula("A / (N * eff)**alpha + B / D**beta + E")
CHEN = "(k * D**gamma_D * log2(G)**gamma_G / N**gamma_N if G > 1 else 0)"
SUN = "D**beta / N**alpha * log2(B) / (gamma * (E + 0.5)**delta * (M + 0.5)**nu)"

UNIFIED = "(k * u**g * D**a / N**b if u > 0 else 0)"
ALL_ERRORS = "relative_mse + r_a * relative_mse_a + r_kv * relative_mse_kv + r_b * relative_mse_b"


def _kept(column: str, stream: str, bias: bool) -> str:
    """1 - exp(-P / gamma + n), or zero where that is below: a product of two such factors is not above zero."""
    return f"max(1 - exp({f'n_{stream}' if bias else '0'} - {column} / gamma_{stream}), 0)"


def _f(bias: bool) -> str:
    return " * ".join(_kept(f"P_{x}", x, bias) for x in STREAMS)


def _further() -> str:
    """Eq. 9's product: nothing is lost where a stream was trained in no more bits than it is rounded to."""
    gaps = " * ".join(f"(1 - exp(-C_{x} * max(P_{x} - P_post, 0)))" for x in STREAMS)
    return f"(C_T * D**gamma_D / (N * f)**gamma_N * exp(-P_post / gamma_post) * {gaps} if f > 0 else inf)"


FORMULAS: dict[str, Formula] = {
    "chinchilla": Formula(IN_N_AND_D.format(beta="beta")),
    "kumar_eq2": Formula("C_T * D**gamma_D / N**gamma_N * exp(-bits / gamma_post)"),
    "kumar_eq3": Formula(SHRUNK.format(beta="beta"), {"f": _kept("bits", "w", False)}),
    "kumar_eq3_bias": Formula(SHRUNK.format(beta="beta"), {"f": _kept("bits", "w", True)}),
    "kumar_eq3_tied": Formula(SHRUNK.format(beta="alpha"), {"f": _kept("bits", "w", False)}),
    "kumar_eq3_bias_tied": Formula(SHRUNK.format(beta="alpha"), {"f": _kept("bits", "w", True)}),
    "kumar_eq4": Formula(SHRUNK.format(beta="alpha"), {"f": _f(False)}),
    "kumar_eq4_bias": Formula(SHRUNK.format(beta="alpha"), {"f": _f(True)}),
    "kumar_eq4_bar": Formula(SHRUNK.format(beta="alpha"), {"f": f"{_kept('bits', 'bar', False)}**3"}),
    "kumar_eq9": Formula(_further(), {"f": _f(True)}),
    "kumar_unified": Formula(f"{SHRUNK.format(beta='alpha')} + {_further()}", {"f": _f(True)}),
    "ouyang_joint": Formula("k * D**beta / (N**alpha * bits**gamma)"),
    "ouyang_tokens": Formula("k * D**beta"),
    "ouyang_size": Formula("k / N**alpha"),
    "ouyang_bits": Formula("k / bits**gamma"),
    "ouyang_16bit": Formula("((N_c / N)**(alpha_N / alpha_D) + D_c / D)**alpha_D"),
    "chen_delta": Formula(CHEN),
    "chen_loss": Formula(f"{IN_N_AND_D.format(beta='alpha')} + {CHEN}"),
    "chen_loss_untied": Formula(f"{IN_N_AND_D.format(beta='beta')} + {CHEN}"),
    "capybara": Formula(f"n / N**alpha + d / D**beta + epsilon + ({SUN} if B > 1 else 0)"),
    "page_simple": Formula("L_base + (eta * (16 - bits)**delta if bits < 16 else 0)"),
    "page_full": Formula("(eta * (D / N)**beta * (16 - bits)**delta if bits < 16 else 0)"),
    "unified_delta": Formula(UNIFIED, {"u": "relative_mse"}),
    "unified": Formula(f"{IN_N_AND_D.format(beta='beta')} + {UNIFIED}", {"u": "relative_mse"}),
    "unified_pool": Formula(f"{UNIFIED} * (h * max(u, 1e-300)**g_t * D**a_t if trained > 0 else 1)", {"u": ALL_ERRORS}),
    "frantar": EFFECTIVE_PARAMETERS,
    "quartet": Formula("(A / (N * effN)**alpha + B / (D * effD)**beta)**gamma + E"),
}
