"""`bitlaw design`: what a profile's runs would tell, before they are trained."""

from pathlib import Path
from typing import Annotated

import typer

WORTH = 1.1  # a part without which no interval is a tenth wider decides nothing


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
            }
        )  # fmt: skip
        return
    print(f"{profile}: {found.runs} unquantized checkpoints, {found.cells} cells, {found.hours:.1f} h on one worker")
    for note in found.notes:
        print(f"assumed: {note}")
    table = Table("paper", "constant or claim", box=None, padding=(0, 2, 0, 0))
    for heading in ("simulated", "half of the 95 % interval", f"verdicts in {pools} pools"):
        table.add_column(heading, justify="right")
    for key in dict.fromkeys([*expectation.half_width, *expectation.verdicts]):
        true, width = expectation.true.get(key), expectation.half_width.get(key)
        counts = expectation.verdicts.get(key, {})
        table.add_row(
            *key,
            "" if true is None else f"{true:.4g}",
            "" if width is None else f"{width:.3g}",
            ", ".join(f"{count} {verdict}" for verdict, count in counts.items()),
        )
    console().print(table)
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
