"""Every law with published constants as a `View`, and why others have none."""

from functools import cache
from pathlib import Path

import numpy as np

from replications.capybara_fp.law import LAW as SUN
from replications.compression_laws.law import effective_parameters, effective_parameters_and_data
from replications.kumar_precision import law as kumar
from replications.papers import all_published
from replications.planning import reading
from replications.planning.view import Constants, Domain, View
from replications.qat_scaling.law import LOSS as CHEN
from replications.undertrained_qid.law import LAW as OUYANG
from replications.undertrained_qid.law import LOSS_16BIT as OUYANG_16BIT
from shared.laws.chinchilla import LAW as CHINCHILLA
from shared.laws.chinchilla import base, base_terms
from shared.laws.law import Law
from shared.laws.settings import Published, Strict, read_settings
from shared.laws.terms import law_of_terms

HERE = Path(__file__).parent
B_OF_SUN = 128.0  # what his D_crit and P_opt take (facts, 2.5)
# Kumar's clean loss ties alpha and beta, and so does Chen's.
CLEAN_TIED = law_of_terms(
    name="chinchilla_tied",
    source="Hoffmann et al. 2022, approach 3, with alpha = beta",
    inputs=("N", "D"),
    parameters=base(tied=True),
    terms=lambda theta, columns: base_terms(theta, columns, tied=True),
    constant="E",
)
# Laws that cannot be planned with, and why.
WITHOUT = {
    "frantar": "the paper's constants of the loss could not be read, only some multipliers of N from public summaries; "
    "QuEST's and Quartet's fits of its form stand for it",
    "kumar-eq9": "C_w, C_a and C_kv of rounding after low-precision training are printed nowhere",
    "page": "the page prints no constants",
}


class End(Strict):
    low: float
    high: float
    source: str
    confidence: str


class Grid(Strict):
    """One grid of grids.yaml: its inputs by name."""

    N: End
    D: End
    bits: End | None = None
    P_w: End | None = None
    P_a: End | None = None
    P_kv: End | None = None
    G: End | None = None
    E: End | None = None
    M: End | None = None
    B: End | None = None


class Grids(Strict):
    """grids.yaml."""

    kumar_trained: Grid
    kumar_rounded: Grid
    ouyang: Grid
    quest: Grid
    quartet: Grid
    chen: Grid
    sun: Grid
    chinchilla: Grid


@cache
def _grids() -> Grids:
    return read_settings(HERE / "grids.yaml", Grids)


def domain(name: str) -> Domain:
    """A grid of grids.yaml."""
    grid: Grid = getattr(_grids(), name)
    ends: dict[str, End | None] = {field: getattr(grid, field) for field in Grid.model_fields}
    return {field: (end.low, end.high) for field, end in ends.items() if end is not None}


def _of(law: Law, values: dict[str, float]) -> Constants:
    return Constants(law, law.internal(values))


@cache
def published_views() -> tuple[View, ...]:
    """Raises BitlawError for a damaged published.yaml or grids.yaml."""
    known = all_published()
    return (
        *_kumar(known["kumar_precision"].values()),
        _ouyang(known["undertrained_qid"].values()),
        *_multipliers(known["compression_laws"]),
        *_chen(known["qat_scaling"]),
        _sun(known["capybara_fp"].values()),
        _chinchilla(known["comparison"]),
    )


def _kumar(c: dict[str, float]) -> tuple[View, ...]:
    paper, origin = "kumar_precision", "published"
    clean = _of(CLEAN_TIED, c)
    rounded, trained = domain("kumar_rounded"), domain("kumar_trained")
    biased = {**c, "C_T": c["C_T"] * float(np.exp(c["b"]))}
    in_floats = {**c, "gamma_w": c["gamma_w_fp"], "n_w": c["b_fp"]}
    streams = ("P_w", "P_a", "P_kv")
    nothing = dict.fromkeys(streams, np.inf)
    one = reading.integers(("bits",), 16.0)
    all_streams = reading.integers(streams, 16.0)
    unsettled = "the text does not settle whether the bias b of Table 2 belongs to Eq. 2 (D_crit differs three times)"
    return (
        View(
            "kumar-rounding", "Kumar Eq. 2: weights rounded by GPTQ", paper, origin, "rounded", _of(kumar.LAW, c),
            reading.integers(("bits",), np.inf), clean, {"bits": np.inf}, domain=rounded, notes=(unsettled,),
        ),
        View(
            "kumar-rounding-b", "Kumar Eq. 2 with bias b", paper, origin, "rounded", _of(kumar.LAW, biased),
            reading.integers(("bits",), np.inf), clean, {"bits": np.inf}, domain=rounded, notes=(unsettled,),
        ),
        View(
            "kumar-weights", "Kumar Eq. 3: weights trained in integers", paper, origin, "trained",
            _of(kumar.EQ3_BIAS_TIED, c), one, None, {"bits": np.inf}, streams=reading.weights_alone, domain=trained,
        ),
        View(
            "kumar-weights-float", "Kumar Eq. 3, Appendix N: weights trained in ExMy", paper, origin, "trained",
            _of(kumar.EQ3_BIAS_TIED, in_floats), reading.floats_as_bits, None, {"bits": np.inf},
            streams=reading.weights_alone, domain=trained,
        ),
        View(
            "kumar-all", "Kumar Eq. 4: weights, activations, KV cache trained in integers", paper, origin, "trained",
            _of(kumar.EQ4_BIAS, c), all_streams, None, nothing, reading.all_in(*streams),
            streams=reading.with_cache, domain=trained,
        ),
        View(
            "kumar-all-printed", "Kumar Eq. 4 as printed, without Appendix K's biases", paper, origin, "trained",
            _of(kumar.EQ4, c), all_streams, None, nothing, reading.all_in(*streams),
            streams=reading.with_cache, domain=trained,
        ),
    )  # fmt: skip


def _ouyang(c: dict[str, float]) -> View:
    return View(
        "ouyang", "Ouyang Eq. 8: weights rounded by GPTQ", "undertrained_qid", "published", "rounded", _of(OUYANG, c),
        reading.integers(("bits",), np.inf), _of(OUYANG_16BIT, c), {"bits": np.inf}, domain=domain("ouyang"),
        notes=("its checkpoints are not annealed",),
    )  # fmt: skip


def _multipliers(known: Published) -> tuple[View, ...]:
    quest = {name: constant.value for name, constant in known.laws["quest"].items()}
    groups = ("BF16", *(name.removeprefix("eff_") for name in quest if name.startswith("eff_")))
    codes = {name: code for code, name in enumerate(groups)}
    law = _of(effective_parameters(groups), quest)
    weights = {f"INT{k}": f"W{k}" for k in range(1, 9)} | {"BINARY": "W1"}
    both = {f"INT{k}": f"W{k}A{k}" for k in range(1, 9)} | {"BINARY": "W1A1", "E2M1": "FP4"}
    quartet = {name: constant.value for name, constant in known.laws["quartet"].items()}
    pairs = ("BF16/BF16", "MXFP4/BF16", "BF16/MXFP4", "MXFP4/MXFP4")
    mx, of_mx = _of(effective_parameters_and_data(pairs), quartet), {name: code for code, name in enumerate(pairs)}
    plain = {"compression": 0.0}
    paper = "compression_laws"
    return (
        View(
            "quest-weights", "Frantar's form by QuEST: weights trained in integers", paper, "published", "trained",
            law, reading.named_groups(codes, weights), None, plain, streams=reading.weights_alone,
            domain=domain("quest"),
        ),
        View(
            "quest-all", "Frantar's form by QuEST: weights and activations", paper, "published", "trained", law,
            reading.named_groups(codes, both), None, plain, streams=reading.forward_pass, domain=domain("quest"),
        ),
        View(
            "quartet-forward", "Frantar's form by Quartet: forward pass in MXFP4", paper, "published", "trained", mx,
            reading.named_groups(of_mx, {"MXFP4": "MXFP4/BF16"}), None, plain, streams=reading.forward_pass,
            domain=domain("quartet"), sees_groups=True,
        ),
        View(
            "quartet-both", "Frantar's form by Quartet: both passes in MXFP4", paper, "published", "trained", mx,
            reading.named_groups(of_mx, {"MXFP4": "MXFP4/MXFP4"}), None, plain, streams=reading.every_pass,
            domain=domain("quartet"), sees_groups=True,
        ),
    )  # fmt: skip


def _chen(known: Published) -> tuple[View, ...]:
    found = []
    labels = {
        "W4A16": "weights trained in INT4",
        "W4A4": "weights and activations trained in INT4",
        "W4A4_FC2_8bit": "the same, the input of FC2 in 8 bits",
    }
    for name, label in labels.items():
        own = known.laws.get(name, known.law)
        constants = {**known.values(), **{key: constant.value for key, constant in own.items()}}
        found.append(
            View(
                f"chen-{name}", f"Chen {name}: {label}", "qat_scaling", "published", "trained", _of(CHEN, constants),
                reading.only("INT4"), None, {"G": 1.0},
                streams=reading.weights_alone if name == "W4A16" else reading.forward_pass,
                domain=domain("chen"), sees_groups=True,
            )
        )  # fmt: skip
    return tuple(found)


def _sun(c: dict[str, float]) -> View:
    return View(
        "sun", "Sun Eq. 1: trained in ExMy", "capybara_fp", "published", "trained", _of(SUN, c),
        reading.layouts(2.0 ** c["log2_B_channel"]), None, {"E": 8.0, "M": 7.0, "B": 1.0},
        reading.best_layout(c["delta"], c["nu"], B_OF_SUN), streams=reading.weights_and_gradients,
        domain=domain("sun"), sees_groups=True,
    )  # fmt: skip


def _chinchilla(known: Published) -> View:
    constants = {name: constant.value for name, constant in known.laws["chinchilla"].items()}
    return View(
        "chinchilla", "Chinchilla, constants of Besiroglu et al.", "comparison", "published", "unquantized",
        _of(CHINCHILLA, constants), reading.sixteen_alone, domain=domain("chinchilla"), sees_groups=True,
        notes=("the facts do not state the range of D of its runs",),
    )  # fmt: skip
