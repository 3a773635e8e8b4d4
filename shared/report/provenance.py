"""Where the numbers come from, read from the two committed tables."""

from dataclasses import dataclass
from pathlib import Path

import pandas as pd

from shared.files import sha256_file
from shared.sweep.tables import RUN_COLUMNS, read_measurements, read_runs


@dataclass(frozen=True)
class Provenance:
    """Counts and versions; `tables` are (path, sha256) of what is there."""

    runs: int  # checkpoints
    trunks: int
    diverged: int
    measurements: int
    hours: float  # spent: the trunk that checkpoints share counts once
    hours_alone: float  # the sum over checkpoints, each from its first step: what separate runs would have taken
    sizes: list[dict[str, str | int]]  # of each size: N, horizons, seeds, checkpoints
    corpora: list[tuple[str, str, float]]  # (name, sha256, training tokens, to six digits)
    versions: dict[str, list[str]]  # of torch, numerics, processor and device, as they occur in the table
    validation_tokens: list[str]
    tables: list[tuple[str, str]]


def provenance(reports: Path) -> Provenance:
    """Raises BitlawError when a table is damaged; absent tables have no rows."""
    runs = pd.DataFrame(read_runs(reports).values(), columns=list(RUN_COLUMNS))
    measured = read_measurements(reports)
    sizes = runs.assign(N=pd.to_numeric(runs["n_blocks"]), D=pd.to_numeric(runs["tokens"]))
    sizes = sizes.sort_values(["N", "D"])
    columns = {"torch": "torch_version", "numerics": "numerics_version", "processor": "cpu_model", "device": "device"}
    files = [reports / "runs.csv", reports / "measurements.csv"]
    return Provenance(
        runs=len(runs),
        trunks=runs["trunk_id"].nunique(),
        diverged=int((runs["diverged"] == "True").sum()),
        measurements=len(measured),
        hours=seconds_spent(runs) / 3600,
        hours_alone=float(pd.to_numeric(runs["seconds"]).sum()) / 3600,
        sizes=[
            {
                "size": str(size), "N": int(some["N"].iloc[0]), "from": int(some["D"].min()),
                "to": int(some["D"].max()), "seeds": some["seed"].nunique(), "checkpoints": len(some),
            }
            for size, some in sizes.groupby("size", sort=False)
        ],
        corpora=_corpora(runs),
        versions={name: sorted(set(runs[column]) - {""}) for name, column in columns.items()},
        validation_tokens=sorted(set(runs["validation_tokens"])),
        tables=[(f"reports/{path.name}", sha256_file(path)) for path in files if path.exists()],
    )  # fmt: skip


def _corpora(runs: pd.DataFrame) -> list[tuple[str, str, float]]:
    """Tokens over passes gives the corpus's size; the longest run tells it best."""
    known = runs.assign(D=pd.to_numeric(runs["tokens"]), passes=pd.to_numeric(runs["corpus_passes"])).sort_values("D")
    return [
        (str(name), str(sha256), float((some["D"] / some["passes"]).iloc[-1]))
        for (name, sha256), some in known.groupby(["corpus", "corpus_sha256"], sort=True)
    ]


def seconds_spent(runs: pd.DataFrame) -> float:
    """Training time with each trunk counted once.

    A row's seconds run from the trunk's first step to its own checkpoint. A cooled checkpoint adds the share
    `cooldown` of its steps (all of a cosine's) to what the trunk had done; that went as far as its last checkpoint.
    """
    seconds = pd.to_numeric(runs["seconds"]).fillna(0.0)
    share = pd.to_numeric(runs["cooldown"]).fillna(0.0).where(runs["decay"] != "cosine", 1.0)
    branch = seconds * share * (runs["cooled"] == "True")
    trunk = (seconds - branch).groupby(runs["trunk_id"]).max()
    return float(branch.sum() + trunk.sum())
