"""The claims of Chen et al. (arXiv 2505.14302): what Table 1 decides is recomputed in audit.py, signs are refitted on
published runs, and what low-precision runs of ours decide is looked up among the quantities of
replications/comparison/evidence.py; without them a claim says which runs it needs. The regions were fixed before those
runs.
"""

import math
from collections.abc import Mapping
from typing import Any

from replications.qat_scaling import audit
from shared.report.claim import Finding, in_order, stating
from shared.report.evidence import seen
from shared.report.refits import Refit, refitted

PAPER = "qat_scaling"
# What would decide a claim that waits, and its cost on one core, as measured (seconds in reports/runs.csv).
GRID = (
    "five cells of W4A4 are needed, of two sizes, two horizons and two groups: S at 8M tokens takes about 2.5 minutes, "
    "M about 5.5"
)
BOTH = (
    "five cells each of W4A16 and W16A4 are needed, of two sizes, two horizons and two groups: S at 8M tokens takes "
    "about 2.5 minutes, M about 5.5"
)

_measured = stating(PAPER, "measured")

_refitted = stating(PAPER, "refitted")


ON_PUBLISHED_RUNS = (
    (
        _refitted(
            "C1c",
            "delta falls with N",
            "gamma_N > 0",
            "gamma_N > 0 on QuEST at 2, 3 and 4 bits and on Quartet's MXFP4 forward pass",
            0.0,
            math.inf,
        ),
        (*(f"quest/gamma_N/{bits}" for bits in (2, 3, 4)), "quartet/forward/gamma_N"),
    ),
    (
        _refitted(
            "C2c",
            "delta rises with D",
            "gamma_D > 0",
            "gamma_D > 0 on QuEST at 2, 3 and 4 bits and on Quartet's MXFP4 forward pass",
            0.0,
            math.inf,
        ),
        (*(f"quest/gamma_D/{bits}" for bits in (2, 3, 4)), "quartet/forward/gamma_D"),
    ),
    (
        _refitted(
            "C2d",
            "delta rises with D when only the backward pass is quantized, by stochastic rounding",
            "no claim of the paper, which quantizes the forward pass",
            "gamma_D > 0 on Quartet's backward-only runs",
            0.0,
            math.inf,
        ),
        ("quartet/backward/gamma_D",),
    ),
    (
        _refitted(
            "C11b",
            "Without D the law predicts worse",
            "Appendix I: 13.8 % against 5.2 % (W4A16), 8.6 % against 4.7 % (W4A4)",
            "error without D less error with D > 0, each size left out in turn, on QuEST at 2, 3 and 4 bits and on "
            "Quartet's MXFP4 forward pass",
            0.0,
            math.inf,
        ),
        (
            *(f"quest/extrapolation/delta_{bits}/without_D_less_with_D" for bits in (2, 3, 4)),
            "quartet/extrapolation/delta_forward/without_D_less_with_D",
        ),
    ),
)
# On our pool: the quantities of replications/comparison/evidence.py by the beginning of their names.
ON_POOL = (
    (
        _measured(
            "C10",
            "Quantized training lowers the kurtosis of the input of FC2 (123 to 89)",
            "text",
            "kurtosis after W4A4 training over that after unquantized training of the same seed and horizon < 1",
            0.0,
            1.0,
        ),
        "pool/kurtosis/down/",
        "checkpoints of two W4A4 runs and of their unquantized pairs must be at hand: `bitlaw train cpu --rebuild`, "
        "then `bitlaw statistics cpu`",
    ),
    (
        _measured(
            "C7b",
            "The deltas of weights and activations add up to about 0.9 of their sum",
            "text",
            "delta_W4A4 / (delta_W4A16 + delta_W16A4) between 0.8 and 1",
            0.8,
            1.0,
        ),
        "pool/parts/sum/",
        "W4A4, W4A16 and W16A4 at one N, D and group are needed",
    ),
    (
        _measured(
            "C8e",
            "Activations lose more than weights",
            "text",
            "delta_W16A4 - delta_W4A16 > 0 nats (R > 1) in every cell",
            0.0,
            math.inf,
        ),
        "pool/parts/activations/",
        "W4A4, W4A16 and W16A4 at one N, D and group are needed",
    ),
    (
        _measured("C1b", "delta_W4A4 falls with N", "delta(N, D, G)", "gamma_N of W4A4 > 0", 0.0, math.inf),
        "pool/trained/chen/W4A4/gamma_N",
        GRID,
    ),
    (
        _measured("C2b", "delta_W4A4 rises with D", "delta(N, D, G)", "gamma_D of W4A4 > 0", 0.0, math.inf),
        "pool/trained/chen/W4A4/gamma_D",
        GRID,
    ),
    (
        _measured("C3c", "delta_W4A4 rises with the group", "delta(N, D, G)", "gamma_G of W4A4 > 0", 0.0, math.inf),
        "pool/trained/chen/W4A4/gamma_G",
        GRID,
    ),
    (
        _measured(
            "C4c",
            "delta_W4A16 falls faster with N than delta_W16A4",
            "Table 1",
            "difference of gamma_N > 0",
            0.0,
            math.inf,
        ),
        "pool/trained/chen/difference/gamma_N",
        BOTH,
    ),
    (
        _measured(
            "C5c",
            "delta_W4A16 rises faster with D than delta_W16A4",
            "Table 1",
            "difference of gamma_D > 0",
            0.0,
            math.inf,
        ),
        "pool/trained/chen/difference/gamma_D",
        BOTH,
    ),
    (
        _measured(
            "C6c",
            "delta_W16A4 depends more on the group than delta_W4A16",
            "Table 1",
            "difference of gamma_G > 0",
            0.0,
            math.inf,
        ),
        "pool/trained/chen/difference/gamma_G",
        BOTH,
    ),
    (
        _measured(
            "C9d",
            "8 bits for the input of the second MLP matrix lower delta_W4A4",
            "text",
            "share of delta_W4A4 saved between 0.1 and 0.5",
            0.1,
            0.5,
        ),
        "pool/trained/chen/FC2/",
        "W4A4 with and without 8 bits for the input of FC2 at one size and horizon are needed: S at 8M tokens, about "
        "five minutes",
    ),
    (
        _measured(
            "C11",
            "One law with D and G predicts better than a multiplier for each G",
            "text: 4.7 % against 8.5 % (W4A4), 5.2 % against 19.3 % (W4A16)",
            "held-out relative error of this law over that of multipliers < 1",
            0.0,
            1.0,
        ),
        "pool/trained/chen/heldout/",
        "two held-out runs clear of the noise are needed, of groups that are fitted: S at 32M tokens, ten minutes "
        "each; and base runs that Chinchilla's law can be fitted to",
    ),
    (
        _measured(
            "C13c",
            "delta hardly depends on the learning rate",
            "text: 5e-4 to 4e-3",
            "largest over smallest delta of three learning rates under 1.25",
            0.0,
            1.25,
        ),
        "pool/trained/chen/rates/",
        "W4A4 at three learning rates, each with its base run, is needed: S at 8M tokens, about 15 minutes",
    ),
    (
        _measured(
            "C12",
            "INT4 matches FP4 in groups and beats it per channel and token",
            "text: by 0.015 at 297M, 50B",
            "L(FP4) - L(INT4) per channel and token > 0",
            0.0,
            math.inf,
        ),
        "pool/trained/chen/formats/",
        "no pair of runs trained with INT4 and with FP4 on the same places: three seeds of both at S and 16M tokens, "
        "about half an hour",
    ),
)


def judge(fit: dict[str, Any], published: dict[str, float], refits: Mapping[str, Refit]) -> list[Finding]:
    """All claims, from the values of published.yaml and the refits on published runs and quantities of the pool
    in `refits`."""
    return in_order(
        [
            *audit.judge(published),
            *(refitted(claim, refits, names) for claim, names in ON_PUBLISHED_RUNS),
            *(seen(claim, refits, prefix, missing) for claim, prefix, missing in ON_POOL),
        ]
    )
