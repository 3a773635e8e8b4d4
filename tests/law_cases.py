"""Every law with constants and a grid: the paper's where it publishes them, else a documented synthetic one.

`CASES` maps a law's name to its case. Synthetic: C_w, C_a, C_kv of Kumar's Eq. 9 (1, as its Eq. 10 takes C_w; no value
is published), the factors k of Ouyang's one-factor laws, Frantar's A to E (QuEST's E is a bound, so Besiroglu's clean
loss stands in), and all of the page's constants.
"""

from collections.abc import Iterable
from dataclasses import dataclass
from itertools import product

import pandas as pd

from replications import papers
from replications.capybara_fp.law import LAWS as SUN_LAWS
from replications.compression_laws.law import effective_parameters, effective_parameters_and_data
from replications.kumar_precision.law import LAWS as KUMAR_LAWS
from replications.precision_predictor.law import LAWS as PAGE_LAWS
from replications.qat_scaling.law import LAWS as CHEN_LAWS
from replications.undertrained_qid.law import LAWS as OUYANG_LAWS
from replications.unified.law import LAWS as UNIFIED_LAWS
from shared.laws.chinchilla import LAW as CHINCHILLA
from shared.laws.law import Array, Law


@dataclass(frozen=True)
class Case:
    law: Law
    constants: dict[str, float]
    grid: pd.DataFrame

    @property
    def theta(self) -> Array:
        return self.law.internal(self.constants)

    @property
    def columns(self) -> dict[str, Array]:
        return {name: self.grid[name].to_numpy(float) for name in self.law.inputs}

    def table(self) -> pd.DataFrame:
        """The grid with noise-free targets."""
        exact = self.law.predict(self.theta, self.columns)
        return self.grid.assign(**{self.law.target: exact, f"{self.law.target}_se": 0.0})


def published(paper: str) -> dict[str, float]:
    return papers.find(paper).published().values()


def frame(columns: str, rows: Iterable[tuple[float, ...]]) -> pd.DataFrame:
    return pd.DataFrame(list(rows), columns=columns.split()).astype(float)


KUMAR_N, KUMAR_D = (30e6, 60e6, 110e6, 220e6), (1.5e9, 3e9, 6e9, 13e9, 26e9)
TRAINED = (4.0, 5.0, 6.0, 7.0, 8.0, 12.0)
# One stream at a time in few bits, then all three (the paper's sweeps; 3 bits of activations and KV are left out).
STREAMS = [
    *(tuple(bits if stream == k else 16.0 for k in range(3)) for stream in range(3) for bits in TRAINED),
    *((bits, bits, bits) for bits in (6.0, 8.0)),
    (16.0, 16.0, 16.0),
]
ROUNDED = [(w, a, kv, post) for w, a, kv in STREAMS for post in (3.0, 3.5, 5.0) if post < min(w, a, kv)]
QUEST_N = (30_482_560, 49_556_736, 102_777_856, 203_188_480, 443_068_288, 822_151_168)
CHEN_GRID = frame(
    "N D G",
    product((74e6, 145e6, 297e6, 594e6), (10e9, 20e9, 50e9, 100e9), (1, 32, 64, 128, 256, 1536)),
)
# Table 3: E1M1 at every group; the other layouts per channel, which counts as log2 B = 13.1567.
CHANNEL = 2**13.1567
SUN_LAYOUTS = [
    *((1, 1, B) for B in (32, 64, 128, 256)),
    *((1, M, CHANNEL) for M in range(1, 7)),
    *(
        (E, M, CHANNEL)
        for E, M in ((0, 7), (2, 1), (2, 3), (3, 1), (3, 2), (4, 1), (4, 3), (4, 5), (5, 1), (5, 2), (6, 1))
    ),
]
SUN_GRID = frame(
    "N D E M B",
    (
        (N, D, *layout)
        for N, D, layout in product(
            (40_894_464, 84_934_656, 154_140_672, 679_477_248),
            (10_485_760_000, 20_971_520_000, 52_428_800_000, 104_857_600_000),
            SUN_LAYOUTS,
        )
    ),
)


def _cases() -> dict[str, Case]:
    kumar = {**published("kumar_precision"), "gamma_bar": 1.9475, "C_w": 1.0, "C_a": 1.0, "C_kv": 1.0}
    ouyang, chen = {**published("undertrained_qid"), "k": 0.017}, published("qat_scaling")
    known = published("comparison")
    clean = {name.split("/")[1]: value for name, value in known.items() if name.startswith("chinchilla/")}
    page = {"L_base": 3.0, "eta": 1e-10, "beta": 0.3, "delta": 8.0}
    # Synthetic: a fall of the penalty by 4 a bit, as absmax integers lose 4 times less energy with each.
    unified = {"k": 0.02, "g": 0.9, "a": 0.3, "b": 0.35, "r_a": 2.0, "r_kv": 0.5, "r_b": 0.3, "h": 0.8, "g_t": -0.2}
    unified["a_t"] = -0.1
    plain = frame("N D relative_mse", product((1e5, 4e5, 8e5), (2e6, 8e6, 32e6), (0.0006, 0.0025, 0.012, 0.06)))
    streams = (
        (0.012, 0, 0, 0),
        (0.06, 0.06, 0, 0),
        (0, 0.012, 0, 0),
        (0.012, 0, 0.01, 0),
        (0.03, 0, 0, 0.05),
        (0.03, 0, 0.03, 0.02),
    )
    errors = frame(
        "N D relative_mse relative_mse_a relative_mse_kv relative_mse_b trained",
        ((N, D, *e, t) for N, D, e, t in product((1e5, 4e5, 8e5), (2e6, 8e6, 32e6), streams, (0, 0.5, 1))),
    )
    weights = frame("N D bits", product(KUMAR_N, KUMAR_D, (3, 4, 5, 6, 7, 8, 12, 16)))
    trained = frame("N D P_w P_a P_kv", ((N, D, *bits) for N, D, bits in product(KUMAR_N, KUMAR_D, STREAMS)))
    rounded = frame("N D P_w P_a P_kv P_post", ((N, D, *bits) for N, D, bits in product(KUMAR_N, KUMAR_D, ROUNDED)))
    pythia = frame("N D bits", product((160e6, 1e9, 12e9), (1e9, 8e9, 60e9, 206e9), (2, 3, 4)))
    groups = ("BF16", "W4A4", "W3A3", "W2A2", "W4")
    compressed = frame(
        "N D compression", ((N, N * r, c) for N, r, c in product(QUEST_N, (25, 50, 100), range(len(groups))))
    )
    passes = ("BF16/BF16", "MXFP4/BF16", "BF16/MXFP4", "MXFP4/MXFP4")
    quartet = frame(
        "N D compression", ((N, N * r, c) for N, r, c in product(QUEST_N[:4], (25, 50, 100, 400, 1600), range(4)))
    )
    multipliers = {"eff_W4A4": 0.6918, "eff_W3A3": 0.4331, "eff_W2A2": 0.1519, "eff_W4": 0.8404}  # QuEST's
    ours = {name.split("/")[1]: v for name, v in published("compression_laws").items() if name.startswith("quartet/")}
    grids = {
        "kumar_eq2": frame("N D bits", product(KUMAR_N, KUMAR_D, (3, 4, 5, 6))),
        "kumar_eq9": rounded,
        "kumar_unified": rounded,
        "ouyang_tokens": frame("D", ((D,) for D in (1e9, 8e9, 60e9, 206e9))),
        "ouyang_size": frame("N", ((N,) for N in (160e6, 1e9, 12e9))),
        "ouyang_bits": frame("bits", ((b,) for b in (2, 3, 4))),
        "ouyang_16bit": frame("N D", product((160e6, 1e9, 12e9), (1e9, 8e9, 60e9, 206e9))),
        "page_simple": frame("bits", ((b,) for b in (2, 3, 4, 5, 6, 8, 16))),
        "page_full": frame("N D bits", product((1e5, 4e5, 8e5), (2e6, 8e6, 32e6), (2, 3, 4, 6))),
    }
    cases = [
        Case(CHINCHILLA, clean, frame("N D", product((7e7, 3e8, 1e9, 4e9, 1.6e10), (1e9, 5e9, 2e10, 1e11, 1e12)))),
        *(Case(law, kumar, grids.get(law.name, trained if "P_w" in law.inputs else weights)) for law in KUMAR_LAWS),
        *(Case(law, ouyang, grids.get(law.name, pythia)) for law in OUYANG_LAWS),
        Case(effective_parameters(groups), {**clean, **multipliers}, compressed),
        Case(effective_parameters_and_data(passes), ours, quartet),
        *(Case(law, chen, CHEN_GRID if law.target == "loss" else CHEN_GRID[CHEN_GRID.G > 1]) for law in CHEN_LAWS),
        *(Case(law, published("capybara_fp"), SUN_GRID) for law in SUN_LAWS),
        *(Case(law, page, grids[law.name]) for law in PAGE_LAWS),
        *(Case(law, {**clean, **unified}, errors if "trained" in law.inputs else plain) for law in UNIFIED_LAWS),
    ]
    return {case.law.name: case for case in cases}


CASES = _cases()
