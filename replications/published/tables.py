"""Published run tables under the names that laws use. N is non-embedding parameters, D tokens, loss nats per token."""

import numpy as np
import pandas as pd

from replications.published.sources import locate

OUTLIERS = 5  # highest losses of Chinchilla's points, dropped as Besiroglu et al. do (analyzing-chinchilla)
LABELS = {"quest_int": "{}", "quest_weight_only": "weight_only_{}", "no_hadamard": "no_hadamard_{}"}
PLAIN = {"bf16": "bf16", "quest_fp4": "fp4", "quest_2:4_int4": "sparse_2_4"}
QUARTET_NAMES = {"BF16": "bf16", "AlbertTsengQuantizer": "stochastic", "AlbertTsengDeterministic": "deterministic"}


def chinchilla() -> pd.DataFrame:
    """240 points: N, D = C / (6 N), loss."""
    table = pd.read_csv(locate("chinchilla"))
    N = table["Model Size"].astype(float)
    found = pd.DataFrame({"N": N, "D": table["Training FLOP"] / (6 * N), "loss": table["loss"]})
    return found.sort_values("loss", kind="stable").iloc[:-OUTLIERS].sort_index().reset_index(drop=True)


def quest() -> pd.DataFrame:
    """104 runs: N, D, loss, family, P_w, P_a, and `compression`: bf16, the bits of weights and activations, or those
    of a variant (weight_only_4, no_hadamard_4, fp4, sparse_2_4)."""
    table = pd.read_csv(locate("quest"))
    found = pd.DataFrame(
        {
            "N": table["non_embedding_parameters"].astype(float),
            "D": table["tokens"].astype(float),
            "loss": table["loss"],
            "family": table["family"],
            "P_w": table["w_bits"].astype(float),
            "P_a": table["a_bits"].astype(float),
        }
    )
    names = zip(table["family"], table["w_bits"], strict=True)
    found["compression"] = [PLAIN.get(family) or LABELS[family].format(bits) for family, bits in names]
    return found


def quartet() -> pd.DataFrame:
    """174 runs: N, D, loss, forward, backward (bf16, QuEST, stochastic, ...), `compression` = forward/backward."""
    table = pd.read_csv(locate("quartet"))
    found = pd.DataFrame(
        {
            "N": table["N_non_embedding"].astype(float),
            "D": table["D_tokens"].astype(float),
            "loss": table["loss_c4_val"],
        }
    )
    for side in ("forward", "backward"):
        found[side] = table[side].replace(QUARTET_NAMES)
    found["compression"] = found["forward"] + "/" + found["backward"]
    return found


def deltas(rows: pd.DataFrame, first: pd.DataFrame, then: pd.DataFrame) -> pd.DataFrame:
    """`rows` with `delta`: their loss less that of the BF16 run of the same N and D in `first`, or else in `then` (the
    two code bases agree within .007 nats, published_runs.md). Rows without such a run are left out."""
    unquantized = [table[table["compression"].isin(["bf16", "bf16/bf16"])] for table in (first, then)]
    reference = pd.concat(unquantized).drop_duplicates(["N", "D"])[["N", "D", "loss"]]
    merged = rows.merge(reference.rename(columns={"loss": "base"}), on=["N", "D"], how="inner")
    return merged.assign(delta=merged["loss"] - merged["base"]).drop(columns="base")


def with_codes(table: pd.DataFrame, reference: str) -> tuple[pd.DataFrame, tuple[str, ...]]:
    """`compression` as codes, and the groups with `reference` first."""
    groups = (reference, *sorted(set(table["compression"]) - {reference}))
    return table.assign(compression=table["compression"].map(groups.index).astype(float)), groups


def as_floating_point(table: pd.DataFrame) -> pd.DataFrame:
    """QuEST's integers of P bits as the Capybara law has them: E = 0, M = P - 1. Their scales are shared in one way
    everywhere, so that log2 B is one constant and can be 1; unquantized rows have B = 1, which costs nothing."""
    quantized = table["P_w"] < 16
    return table.assign(
        E=np.where(quantized, 0.0, 8.0),
        M=np.where(quantized, table["P_w"] - 1, 7.0),
        B=np.where(quantized, 2.0, 1.0),
    )
