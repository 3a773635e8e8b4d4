"""`bitlaw data`: build, check and describe the tokenized corpora."""

import json
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer
from rich.console import Console

from shared.errors import BitlawError

if TYPE_CHECKING:
    from rich.table import Table

app = typer.Typer(help="Build, check and describe the tokenized corpora.", no_args_is_help=True)


@app.command()
def build(
    files: Annotated[list[Path] | None, typer.Argument(help="More files after --text.", show_default=False)] = None,
    check: Annotated[bool, typer.Option("--check", help="Compare data/ with data.sha256; build it if absent.")] = False,
    repin: Annotated[bool, typer.Option("--repin", help="Resolve corpus.lock anew and pin the result.")] = False,
    text: Annotated[
        list[Path] | None, typer.Option("--text", help="Your own corpus from .txt, .jsonl or .parquet files.")
    ] = None,
    dataset: Annotated[str | None, typer.Option(help="Your own corpus from a hub data set (needs a network).")] = None,
    revision: Annotated[str | None, typer.Option(help="The data set's commit or tag.")] = None,
    config: Annotated[str | None, typer.Option(help="The data set's configuration.")] = None,
    split: Annotated[str, typer.Option(help="The data set's split.")] = "train",
    name: Annotated[str | None, typer.Option(help="Your corpus's name.")] = None,
) -> None:
    """Build data/ from corpus.lock, or your own corpus in build/corpora/NAME.

    Without options: make data/ equal to data.sha256, building only what is not there or was changed.
    """
    _one_thing(files, check, repin, text, dataset, revision, name)
    if text:
        _own_files([*text, *(files or [])], str(name))
    elif dataset:
        _own_dataset(dataset, str(revision), str(name), split, config)
    elif repin:
        _repin()
    else:
        _pinned(check)


def _one_thing(
    files: list[Path] | None,
    check: bool,
    repin: bool,
    text: list[Path] | None,
    dataset: str | None,
    revision: str | None,
    name: str | None,
) -> None:
    given = [option for option, value in _options(check, repin, text, dataset).items() if value]
    if len(given) > 1:
        raise BitlawError(f"{' and '.join(given)} cannot be given together; give one")
    if files and not text:
        raise BitlawError(f"{files[0]}: give files after --text")
    if (text or dataset) and not name:
        raise BitlawError("your own corpus needs a name; add --name NAME")
    if name and not (text or dataset):
        raise BitlawError("--name is for your own corpus; add --text FILES or --dataset NAME")
    if dataset and not revision:
        raise BitlawError("a data set needs a pinned version; add --revision with a commit or tag")


def _options(check: bool, repin: bool, text: list[Path] | None, dataset: str | None) -> dict[str, bool]:
    return {"--check": check, "--repin": repin, "--text": bool(text), "--dataset": bool(dataset)}


def _pinned(check: bool) -> None:
    from shared.corpus.build import DATA, build_data, first_difference
    from shared.corpus.load import read_pins

    read_pins()  # without pins there is nothing to compare with: say so before minutes of work
    difference = first_difference() if DATA.exists() else f"{DATA}/ is absent"
    if difference and not (check and DATA.exists()):
        with _telling() as tell:
            build_data(tell=tell)
        difference = first_difference()
    if difference:
        typer.echo(f"bitlaw: {difference}", err=True)
        raise typer.Exit(1)
    typer.echo(f"{DATA}/ is what data.sha256 says")


def _repin() -> None:
    from shared.corpus.build import repin_data

    with _telling() as tell:
        repin_data(tell=tell)
    typer.echo("pinned anew: corpus.lock, shared/corpus/tokenizer.json, data.sha256, data.dvc; commit them together")


def _own_files(files: list[Path], name: str) -> None:
    from shared.corpus.own import build_from_files

    with _telling() as tell:
        folder = build_from_files(files, name, tell)
    _describe_own(folder)


def _own_dataset(dataset: str, revision: str, name: str, split: str, config: str | None) -> None:
    from shared.corpus.own import build_from_dataset

    with _telling() as tell:
        folder = build_from_dataset(dataset, revision, name, split=split, config=config, tell=tell)
    _describe_own(folder)


def _describe_own(folder: Path) -> None:
    from shared.corpus.load import read_info

    found = read_info(folder)
    typer.echo(
        f"{folder}: {found['train']['tokens']:,} tokens to train and {found['val']['tokens']:,} to validate "
        f"({found['split']}), {found['bytes_per_token']:.2f} bytes a token"
    )


@contextmanager
def _telling() -> Iterator[Callable[[str, int, int], None]]:
    """Show the stages of a build: with a bar on a terminal, one line each elsewhere."""
    from rich.progress import BarColumn, Progress, SpinnerColumn, TaskID, TextColumn, TimeElapsedColumn

    console = Console(stderr=True)
    columns = (SpinnerColumn(), TextColumn("{task.description}"), BarColumn(), TimeElapsedColumn())
    tasks: dict[str, TaskID] = {}
    with Progress(*columns, console=console, disable=not console.is_terminal) as bars:

        def tell(stage: str, done: int, total: int) -> None:
            if stage not in tasks:
                for task in tasks.values():
                    bars.update(task, total=1, completed=1)
                tasks[stage] = bars.add_task(stage, total=total or None)
                if not console.is_terminal:
                    console.print(stage)
            if total:
                bars.update(tasks[stage], completed=done)

        yield tell


@app.command()
def info(
    name: Annotated[str | None, typer.Argument(help="One corpus, with its packages or files.")] = None,
    as_json: Annotated[bool, typer.Option("--json", help="The description(s) as JSON.")] = False,
) -> None:
    """Say what each corpus holds: tokens, bytes a token, packages, licences, hash."""
    from shared.corpus.load import corpus_names, load_corpus

    names = [name] if name is not None else corpus_names()
    if not names:
        raise BitlawError("there is no corpus yet; run `bitlaw data build`")
    found = {each: load_corpus(each).info for each in names}
    if as_json:
        typer.echo(json.dumps(found if name is None else found[name], indent=1, sort_keys=True))
        return
    console = Console()
    console.print(_totals(list(found.values())))
    if name is not None:
        console.print(_sources(found[name]))


def _totals(found: list[dict]) -> "Table":
    from rich.table import Table

    table = Table("corpus", title="Corpora (tokens)")
    for heading in ("train", "val", "bytes/token"):
        table.add_column(heading, justify="right", no_wrap=True)
    table.add_column("from")
    table.add_column("sha256", no_wrap=True)
    for each in found:
        packages = each.get("packages", [])
        licences = ", ".join(sorted({package["licence"] for package in packages}))
        table.add_row(
            each["name"],
            f"{each['train']['tokens'] / 1e6:.2f}M",
            f"{each['val']['tokens'] / 1e6:.2f}M",
            f"{each['bytes_per_token']:.3f}",
            f"{len(packages)} packages: {licences}" if packages else f"your own: {len(each['sources'])} sources",
            each["sha256"][:12],
        )
    return table


def _sources(found: dict) -> "Table":
    from rich.table import Table

    counts = ", ".join(f"{part} {found[part]['tokens']:,}" for part in ("train", "val"))
    caption = f"tokens: {counts}; documents: {found['documents']:,}\nsplit: {found['split']}\nsha256: {found['sha256']}"
    if "packages" not in found:
        table = Table("source", "sha256 or revision", title=f"Sources of {found['name']}", caption=caption)
        for source in found["sources"]:
            table.add_row(source.get("file") or source["dataset"], source.get("sha256") or source["revision"])
        return table
    table = Table("package", "version", "split", "licence", title=f"Packages of {found['name']}", caption=caption)
    for package in found["packages"]:
        table.add_row(package["name"], package["version"], package["split"], package["licence"])
    return table
