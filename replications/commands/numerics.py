"""`bitlaw numerics`, stochastic rounding and BF16-held weights; `bitlaw surface`, the page's law on the whole pool."""

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from replications.commands.measured import bar, check_settings, clean_law, finish, pool_rows, read_rows, write_rows
from replications.commands.predictor import (
    Context,
    Dataset,
    Device,
    DryRun,
    Evaluated,
    Models,
    Out,
    Revision,
    Text,
)

if TYPE_CHECKING:
    import pandas as pd

FEWER = 64  # of 256 tokens: ten checkpoints and 37 passes over them
THREE_BITS = {"weights": "INT3@channel"}


def numerics(
    models: Models = [],  # noqa: B006
    dataset: Dataset = "python",
    text: Text = [],  # noqa: B006
    seeds: Annotated[int, typer.Option("--seeds", min=1, help="of stochastic rounding")] = 3,
    context: Context = 0,
    windows: Evaluated = FEWER,
    device: Device = "auto",
    revision: Revision = "main",
    out: Out = Path("build/numerics"),
    dry_run: DryRun = False,
) -> None:
    """Round three models or more (default: all committed) stochastically and from BF16, at each width. Resumes."""
    from replications.precision_predictor import numerics as test
    from replications.precision_predictor.figures_predictor import numerics_drawings
    from replications.precision_predictor.measure import BITS, size_of, windows_of
    from replications.precision_predictor.subject import CHECKPOINTS, open_subject
    from shared.errors import BitlawError
    from shared.sweep.kept import kept
    from shared.train.device import pick

    names = models or sorted(kept(CHECKPOINTS))
    if len(set(names)) < test.LEAST:
        raise BitlawError(f"numerics are judged over {test.LEAST} models and more: name {test.LEAST}")
    passes = len(test.variants(seeds)) * (len(BITS) + 1) + 1
    if dry_run:
        for name in names:
            open_subject(name, pick(device), revision)  # says so when there is none
        print(f"{len(names)} models, {passes} passes over {windows} windows each")
        return
    settings: dict[str, Any] = {"text": [str(path) for path in text] or dataset, "windows": windows, "seeds": seeds,
                                "context": context}  # fmt: skip
    check_settings(out, settings)
    done = {row["model"] for row in read_rows(out / "table.csv", test.COLUMNS, test.KEY)}
    todo = [name for name in names if name not in done]
    with bar(len(todo) * len(test.variants(seeds)) * len(BITS)) as tell:
        for name in todo:
            subject = open_subject(name, pick(device), revision)
            length = context or min(512, subject.context)
            found = windows_of(subject, "" if text else dataset, text, length, length, windows)
            rows = test.measure(subject.model, found.evaluation, seeds, lambda name=name: tell(name))  # type: ignore[misc]
            about = {"model": name, "N": size_of(subject), "D": subject.D}
            write_rows(out / "table.csv", test.COLUMNS, test.KEY, [about | row for row in rows])
    finish(out, read_rows(out / "table.csv", test.COLUMNS, test.KEY), test.summarise, test.lines, numerics_drawings)


def surface(
    reports: Annotated[Path, typer.Option("--reports", help="folder of runs.csv and measurements.csv")] = Path(
        "reports"
    ),
    out: Out = Path("build/surface"),
) -> None:
    """Fit L_PTQ(N, D, b) to the pool, draw its iso-loss curves, and set 3 bits from scratch beside rounding to 3."""
    from replications.precision_predictor import surface as task
    from replications.precision_predictor.figures_predictor import surface_drawings

    rows = pool_rows(reports)
    found = task.summarise(rows, scratch_runs(reports), clean_law("pool"))
    finish(out, [], lambda _: found, task.lines, surface_drawings)


def scratch_runs(reports: Path) -> "pd.DataFrame":
    """Runs whose block weights were 3-bit integers per channel while they trained, and nothing else compressed;
    without those that copy where their base run does not."""
    import pandas as pd

    from replications.compressed import compression_of
    from replications.copying import comparable
    from shared.sweep.tables import RUN_COLUMNS, read_runs

    runs = comparable(pd.DataFrame(read_runs(reports).values(), columns=list(RUN_COLUMNS)), reports)
    names = ["N", "D", "phase", "seed", "base_run_id", "loss", "delta", "delta_se"]
    found = [
        {"N": float(row["n_blocks"]), "D": float(row["tokens"]),
         "phase": "cooled" if row["cooled"] == "True" else "trunk", "seed": row["seed"],
         "base_run_id": row["base_run_id"],
         **{name: float(row[name]) for name in ("loss", "delta", "delta_se")}}
        for row in runs.to_dict("records")
        if compression_of(row) == THREE_BITS and row["diverged"] == "False" and row["delta"]
    ]  # fmt: skip
    return pd.DataFrame(found, columns=names)
