"""`bitlaw design`: what a profile's runs would tell, before they are trained."""

from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

if TYPE_CHECKING:
    from replications.design_compressed import CompressedDesign

WORTH = 1.1  # a part without which no interval is a tenth wider decides nothing
HOPELESS = 100.0  # times the constant itself: an interval that wide tells nothing


def design(
    profile: Annotated[str, typer.Argument(help="a profile of replications/pool.yaml")],
    pools: Annotated[int, typer.Option("--pools", min=2, max=1000, help="simulated pools")] = 10,
    seed: Annotated[int, typer.Option("--seed", min=0)] = 0,
    reports: Annotated[Path, typer.Option("--reports", help="folder of the tables measured so far")] = Path("reports"),
    json: Annotated[bool, typer.Option("--json", help="print JSON")] = False,
) -> None:
    """Simulate the profile's pool and print the interval to expect of each constant and claim, and what each size and
    further seed is worth."""
    from rich.table import Table

    from replications.commands.laws import console, print_json
    from replications.design import design as simulated
    from replications.design import read_measured
    from replications.design_compressed import design_compressed, read_runs
    from replications.pool import expand
    from shared.sweep.launch import expected_seconds
    from shared.sweep.tables import measured_gflops

    # Ids of a simulated pool mean nothing outside it, so that no corpus is needed.
    want = expand(profile, "0" * 64)
    speeds = {name: size.gflops for name, size in want.sizes.items()} | measured_gflops(reports)
    found = simulated(
        want, lambda runs: expected_seconds(runs, speeds), read_measured(reports), pools=pools, seed=seed
    )  # fmt: skip
    expectation = found.expectation
    runs = read_runs(reports)
    compressed = None if runs is None else design_compressed(want, lambda some: expected_seconds(some, speeds), runs)
    if json:
        print_json(
            {
                "profile": profile, "runs": found.runs, "cells": found.cells, "hours": found.hours,
                "notes": list(found.notes),
                "expected": [
                    {"paper": key[0], "quantity": key[1], "half_width": width, "true": expectation.true.get(key),
                     "verdicts": expectation.verdicts.get(key)}
                    for key, width in expectation.half_width.items()
                ],
                "left_out": [
                    {"what": s.left_out, "runs": s.runs, "hours": s.hours,
                     "widening": {"/".join(key): factor for key, factor in s.widening.items()},
                     "lost": ["/".join(key) for key in s.lost]}
                    for s in found.savings
                ],
                "compressed": None if compressed is None else asdict(compressed),
            }
        )  # fmt: skip
        return
    print(f"{profile}: {found.runs} unquantized checkpoints, {found.cells} cells, {found.hours:.1f} h on one worker")
    for note in found.notes:
        print(f"assumed: {note}")
    table = Table("paper", "constant or claim", box=None, padding=(0, 2, 0, 0))
    for heading in ("simulated", "half of the 95 % interval", f"verdicts in {pools} pools"):
        table.add_column(heading, justify="right")
    apart = [key for key, counts in expectation.verdicts.items() if set(counts) <= {"needs runs", "out of reach"}]
    for key in dict.fromkeys([*expectation.half_width, *expectation.verdicts]):
        if key in apart:
            continue
        true, width = expectation.true.get(key), expectation.half_width.get(key)
        counts = expectation.verdicts.get(key, {})
        table.add_row(
            *key,
            "" if true is None else f"{true:.4g}",
            "" if width is None else f"{width:.3g}",
            ", ".join(f"{count} {verdict}" for verdict, count in counts.items()),
        )
    console().print(table)
    if apart:
        print(f"claims that these simulated runs say nothing about: {', '.join(claim for _, claim in apart)}")
    if compressed is not None:
        show_compressed(compressed)
    elif runs is None:
        print("compressed runs are not simulated: without runs.csv nothing says how far seeds scatter")
    table = Table("without", box=None, padding=(0, 2, 0, 0))
    for heading in ("runs", "hours saved", "widest interval grows", "which"):
        table.add_column(heading, justify="right")
    if not any(saving.widening for saving in found.savings):
        print("no paper's law can be fitted to this profile, or only just: every part of it is needed")
        return
    for saving in sorted(found.savings, key=lambda s: max(s.widening.values(), default=float("inf"))):
        which, factor = max(saving.widening.items(), key=lambda item: item[1], default=(("", ""), float("nan")))
        said = "nothing: it decides nothing" if factor < WORTH and not saving.lost else " ".join(which)
        said += f"; lost: {', '.join(' '.join(key) for key in saving.lost)}" if saving.lost else ""
        table.add_row(saving.left_out, str(saving.runs), f"{saving.hours:.2f}", f"x{factor:.2f}", said)
    console().print(table)


def show_compressed(found: "CompressedDesign") -> None:
    """What the low-precision runs would tell, and what each part of them is worth."""
    import numpy as np
    from rich.table import Table

    from replications.commands.laws import console

    print(f"{found.runs} compressed checkpoints, {found.hours:.1f} h on one worker")
    for note in found.notes:
        print(f"assumed: {note}")
    noise = ", ".join(f"{sd:.4f} at {tokens >> 20}M" for tokens, sd in found.noise.items())
    print(f"standard deviation over seeds, nats per token: {noise}")
    table = Table("paper", "view", "constant", box=None, padding=(0, 2, 0, 0))
    for heading in ("truth", "half of the 95 % interval", "most needed"):
        table.add_column(heading, justify="right")
    for row in found.expected:
        part, factor = max(row.without.items(), key=lambda item: item[1], default=("", 1.0))
        table.add_row(
            row.paper,
            row.view,
            row.constant,
            f"{row.true:.3g}",
            f"{row.half_width:.2g}" if row.half_width < HOPELESS * abs(row.true) else "cannot be told",
            f"{part} (x{factor:.2f})" if np.isfinite(factor) else part,
        )
    console().print(table)
    table = Table("without", box=None, padding=(0, 2, 0, 0))
    for heading in ("compressed runs", "hours saved", "widest interval grows"):
        table.add_column(heading, justify="right")
    for part, (runs, hours) in found.parts.items():
        factor = max(row.without[part] for row in found.expected)
        table.add_row(part, str(runs), f"{hours:.2f}", f"x{factor:.2f}" if factor < 100 else "cannot be told")
    console().print(table)
