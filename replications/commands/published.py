"""`bitlaw published`: run tables of other groups, and the papers' laws refitted to them."""

from pathlib import Path
from typing import Annotated

import typer

app = typer.Typer(help="Runs that other groups have published: fetch, check, refit.", no_args_is_help=True)


@app.command(name="list")
def list_tables() -> None:
    """What tables there are, where they come from, and which are here."""
    from replications.published.sources import folder, sources
    from shared.files import sha256_file

    print(f"folder: {folder()} (set BITLAW_PUBLISHED_RUNS for another)")
    for name, source in sources().items():
        path = folder() / source.file
        here = "absent" if not path.exists() else "here" if sha256_file(path) == source.sha256 else "another content"
        print(f"\n{name}: {here}")
        print(f"  {source.about}; {source.rows} rows")
        print(f"  {source.origin} {source.path} at {source.commit[:12]}; licence: {source.licence}; {source.form}")
        print(f"  {source.file} sha256 {source.sha256}")


@app.command()
def fetch(
    names: Annotated[list[str] | None, typer.Argument(metavar="[TABLE]...", help="default: all")] = None,
    folder: Annotated[Path | None, typer.Option(help="default: $BITLAW_PUBLISHED_RUNS or build/published_runs")] = None,
) -> None:
    """Download tables at their pinned commits and check them; one that is already right is left alone."""
    from replications.published import sources as origin
    from shared.errors import BitlawError, nearest
    from shared.files import sha256_file

    known = origin.sources()
    target = folder or origin.folder()
    for name in names or known:
        if name not in known:
            hint = nearest(name, list(known)) or ": " + ", ".join(known)
            raise BitlawError(f"published table '{name}' is unknown{hint}")
        source, path = known[name], target / known[name].file
        if path.exists() and sha256_file(path) == source.sha256:
            print(f"{path}: is here")
        elif source.form == "transcribed" and not names:
            print(f"{name}: was transcribed by hand from {source.path}; there is nothing to fetch")
        else:
            print(f"{origin.fetch(source, target)}: {source.rows} rows, licence {source.licence}")


@app.command()
def refit(
    reports: Annotated[Path, typer.Option("--reports", help="folder of the results")] = Path("reports"),
    resamples: Annotated[int, typer.Option("--resamples", min=20, max=100_000)] = 1000,
) -> None:
    """Fit the papers' laws to the published runs; writes published/refits.json and comparisons.json (minutes)."""
    from replications.published.refits import write_refits

    for path in write_refits(reports, resamples):
        print(path)
