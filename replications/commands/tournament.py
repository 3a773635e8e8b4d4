"""`bitlaw tournament`: every law on every part of the pool, the unified one among them."""

from pathlib import Path
from typing import Annotated

import typer


def tournament(
    reports: Annotated[Path, typer.Option("--reports", help="folder of the tables and results")] = Path("reports"),
    published: Annotated[
        bool,
        typer.Option("--published", help="score the chosen form on QuEST and Quartet instead (their tables needed)"),
    ] = False,
    json: Annotated[bool, typer.Option("--json", help="print JSON")] = False,
) -> None:
    """Score every law on every part of our runs by what it has not seen; writes reports/unified/."""
    from rich.table import Table

    from replications.commands.laws import console, print_json
    from replications.unified import results
    from shared.files import read_json

    if published:
        target = results.write_published(reports)
        found = read_json(target)
        if json:
            print_json(found)
            return
        for name, one in found["comparisons"].items():
            print(f"{name}: {one['statement']}")
        print(target)
        return
    written = results.write(reports)
    shown = results.report_rows(reports)
    if json:
        print_json(shown)
        return
    for part in shown["parts"] if shown else []:
        said = f"{part['part']}: {part['fitted_cells']} cells fitted, {part['clear_cells']} of {part['held_out_cells']}"
        table = Table("law", "constants", "error", "95 %", "nats", "place", title=f"{said} held-out ones clear of zero",
                      title_justify="left", box=None, padding=(0, 2, 0, 0))  # fmt: skip
        for row in part["laws"]:
            if row["error"] is None:
                table.add_row(row["law"], str(row["constants"]), "", "", "", row["reason"])
            else:
                ends = "" if row["low"] is None else f"{row['low']:.3f} to {row['high']:.3f}"
                table.add_row(row["law"], str(row["constants"]), f"{row['error']:.3f}", ends, f"{row['nats']:.4f}",
                              row["place"])  # fmt: skip
        console().print(table)
    print(shown["statement"] if shown else "")
    if shown and shown["note"]:
        print(f"note: {shown['note']}")
    print(*written, sep="\n")
