"""`bitlaw report`, `bitlaw check` and the drawing verbs of `bitlaw replicate`: from fitted results to what is read."""

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

if TYPE_CHECKING:
    from rich.table import Table

    from shared.report.results import PaperFit

ReportsFolder = Annotated[Path, typer.Option("--reports", help="folder of the tables and results")]
Paper = Annotated[str, typer.Argument(help="a folder of replications/, such as kumar_precision")]
Show = Annotated[bool, typer.Option("--show", help="print what the last report says, write nothing")]
Figures = Annotated[
    Path | None, typer.Option("--figures", metavar="DIR", help="write every figure there instead, for a paper")
]
Form = Annotated[str, typer.Option("--format", help="of --figures: svg or pdf; default svg")]
Update = Annotated[bool, typer.Option("--update", help="make the present results the goldens")]
Order = Annotated[bool, typer.Option("--order", help="compare claims with their rows: which is older in git")]

REPORTS = Path("reports")


def figures(paper: Paper, reports: ReportsFolder = REPORTS) -> None:
    """Draw the paper's figures from the tables and its fit.json; writes reports/PAPER/*.svg and *.png."""
    from replications import results

    for path in results.draw_paper(paper, reports):
        print(path)


def compare(reports: ReportsFolder = REPORTS) -> None:
    """Set the papers' elasticities side by side; writes reports/comparison/."""
    from replications import results

    for path in results.compare(reports):
        print(path)


def report(reports: ReportsFolder = REPORTS, show: Show = False, figures: Figures = None, form: Form = "") -> None:
    """Write reports/index.html, metrics.json and plots/; print fitted against published exponents."""
    from rich.console import Console

    from replications import results
    from shared.errors import BitlawError

    if figures is not None:
        from replications.paper_figures import write_figures

        for path in write_figures(reports, figures, form or "svg"):
            print(path)
        return
    if form:
        raise BitlawError(f"--format {form}: is that of figures; name their folder with --figures")
    target = results.page_of(reports) if show else results.write_report(reports)
    for fit in results.fits(reports):
        Console().print(exponents(fit))
    print(f"report: {target}")


def check(reports: ReportsFolder = REPORTS, update: Update = False, order: Order = False) -> None:
    """Compare the results with reports/goldens.json; exit 1 when one is out of tolerance, missing or new."""
    from rich.console import Console
    from rich.table import Table

    from replications import results

    if order:
        _check_order()
        return
    if update:
        n = results.update_goldens(reports)
        print(f"{reports / 'goldens.json'}: {n} quantities")
        return
    n, found, same_tables = results.differences(reports)
    if not found:
        print(f"check: {n} quantities within tolerance")
        return
    table = Table("quantity", title=f"{len(found)} results differ from reports/goldens.json")
    for heading in ("golden", "now", "allowed"):
        table.add_column(heading, justify="right", no_wrap=True)
    for d in found:
        now = "missing" if d.fresh is None else f"{d.fresh:.6g}"
        golden = "not a golden" if d.golden is None else f"{d.golden:.6g}"
        table.add_row(d.name, golden, now, "" if d.allowed is None else f"{d.allowed:.2g}")
    Console().print(table)
    if not same_tables:
        print("the goldens were made from other inputs: judge the change, then `bitlaw check --update`")
    raise typer.Exit(1)


def _check_order() -> None:
    """Exit 1 when a claim's region is younger in git than the rows that decide it, and precedence.yaml says nothing."""
    from rich.console import Console
    from rich.table import Table

    from replications.precedence import SETTINGS, orders

    found = orders(Path())
    wrong = [item for item in found if not item.right]
    table = Table("claim", "stated in", "first row in", "why later", title="claims and the rows that decide them")
    for item in wrong or [item for item in found if item.excuse]:
        table.add_row(item.claim, item.stated, item.measured or "no row yet", item.excuse or "")
    if table.row_count:
        Console().print(table)
    first = sum(item.before for item in found)
    print(f"check: {first} of {len(found)} claims stated before their rows, the others said to be later in {SETTINGS}")
    if wrong:
        print(f"{len(wrong)} listed above are not: state the reason under 'after' there, or take it away")
        raise typer.Exit(1)


def exponents(fit: "PaperFit") -> "Table":
    """A row a constant: published, and fitted to cooled and to trunk checkpoints, per channel."""
    from rich import box
    from rich.table import Table

    from replications.results import figures_of

    table = Table(title=fit.paper, title_justify="left", box=box.SIMPLE, padding=(0, 1))
    table.add_column("constant", no_wrap=True)
    for heading in ("published", "cooled, 95 %", "trunk, 95 %"):
        table.add_column(heading, justify="right", no_wrap=True)
    for name, _ in figures_of(fit.paper).PANELS:
        ours = [part.parameters[name] if (part := fit.part(phase)) else None for phase in ("cooled", "trunk")]
        shown = ["needs runs" if v is None else f"{v['value']:.3g} [{v['low']:.2g}, {v['high']:.2g}]" for v in ours]
        table.add_row(name, f"{fit.published['parameters'][name]['value']:.4g}", *shown)
    return table
