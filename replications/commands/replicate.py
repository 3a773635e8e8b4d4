"""`bitlaw replicate`: from the two committed tables to a paper's fitted constants and claim verdicts."""

from pathlib import Path
from typing import Annotated

import typer

app = typer.Typer(help="Fit a paper's law to our runs and judge its claims.", no_args_is_help=True)

Name = Annotated[str, typer.Argument(metavar="PAPER", help="a folder of replications/, such as kumar_precision")]
Reports = Annotated[Path, typer.Option(help="folder of the tables and results")]
Params = Annotated[Path, typer.Option(help="settings of the analysis")]


@app.command()
def fit(paper: Name, reports: Reports = Path("reports"), params: Params = Path("params.yaml")) -> None:
    """Fit the paper's laws to runs.csv and measurements.csv; writes reports/PAPER/fit.json."""
    from replications import papers, trained
    from shared.files import read_json

    target = trained.write_fit(papers.find(paper), reports, params)
    found = read_json(target)
    lines = papers.exponent_lines(target) if "parts" in found else []
    lines += [f"{view['view']}: {view['rows']} rows, {view['status']}" for view in found.get("views", [])]
    print(*lines, target, sep="\n")


@app.command()
def claims(paper: Name, reports: Reports = Path("reports")) -> None:
    """Judge the paper's claims by its fit.json; writes reports/PAPER/claims.json."""
    from replications import papers

    target = papers.write_claims(papers.find(paper), reports)
    print(*papers.verdict_lines(target), target, sep="\n")


@app.command()
def trained(reports: Reports = Path("reports")) -> None:
    """Gather the papers' fits to our low-precision runs; writes reports/comparison/trained.json."""
    from replications import trained as runs

    print(runs.write_trained(reports))


@app.command()
def methods(reports: Reports = Path("reports")) -> None:
    """Compare post-training methods on the committed checkpoints; writes reports/comparison/methods.json."""
    from replications.comparison import methods as compared

    target = compared.write_methods(reports)
    print(*compared.lines(target), target, sep="\n")


@app.command()
def predictor(reports: Reports = Path("reports")) -> None:
    """Summaries and figures of what the page's commands measured; writes reports/precision_predictor/."""
    from replications.precision_predictor import results

    print(*results.write(reports), sep="\n")
