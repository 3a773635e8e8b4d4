"""`bitlaw engineer`: 4 or 3 bits under a bound on latency, by what this machine or another runtime does."""

from pathlib import Path
from typing import Annotated

import typer

from replications.commands.measured import bar, check_settings, read_rows, write_rows
from replications.commands.predictor import DEFAULT, Device, DryRun, Out, Revision

LARGEST = DEFAULT[-1]


def engineer(
    model: Annotated[str, typer.Argument(metavar="MODEL", help="a committed run id, a folder or a hub id")] = LARGEST,
    target_latency_ms: Annotated[
        float, typer.Option("--target-latency-ms", min=1e-6, help="of the p95 of a token")
    ] = 70.0,
    latencies: Annotated[
        Path | None, typer.Option("--latencies", help="JSON or CSV of another runtime: precision, p50_ms, p95_ms")
    ] = None,
    dialog: Annotated[Path | None, typer.Option("--dialog", help="UTF-8 text; default: a short one of ours")] = None,
    tokens: Annotated[int, typer.Option("--tokens", min=2, help="generated in each round")] = 64,
    rounds: Annotated[int, typer.Option("--rounds", min=1)] = 10,
    again: Annotated[bool, typer.Option("--again", help="measure anew what is there")] = False,
    device: Device = "auto",
    revision: Revision = "main",
    out: Out = Path("build/engineer"),
    dry_run: DryRun = False,
) -> None:
    """Measure a token's latency, memory and the loss on a dialog at each precision, and choose 4 or 3 bits."""
    import hashlib

    from replications.precision_predictor import engineer as task
    from replications.precision_predictor.figures_predictor import engineer_drawings
    from replications.precision_predictor.subject import open_subject
    from shared.errors import BitlawError
    from shared.files import write_json
    from shared.report.figures import style
    from shared.report.figures.gallery import write_gallery
    from shared.train.device import pick

    given = task.read_latencies(latencies) if latencies else []
    try:
        words = dialog.read_text(encoding="utf-8") if dialog else task.DIALOG
    except (OSError, UnicodeDecodeError) as error:
        raise BitlawError(f"--dialog {dialog}: cannot be read as text in UTF-8 ({error})") from error
    if dry_run:
        open_subject(model, pick(device), revision)  # says so when there is none
        print(
            f"{model}: {rounds * tokens} tokens at each of up to {len(task.PRECISIONS) - 1} precisions, one at a time"
        )
        return
    digest = hashlib.sha256(words.encode()).hexdigest()
    known = [row for row in read_rows(out / "table.csv", task.COLUMNS, task.KEY) if row["model"] == model]
    if again or {row["precision"] for row in known} != set(task.PRECISIONS):
        if not again:
            check_settings(out, {"dialog_sha256": digest, "tokens": tokens, "rounds": rounds})
        subject = open_subject(model, pick(device), revision)
        with bar(rounds * (len(task.PRECISIONS) - 1) + len(task.PRECISIONS)) as tell:
            write_rows(out / "table.csv", task.COLUMNS, task.KEY, task.measure(subject, words, tokens, rounds, tell))
    check_settings(out, {"dialog_sha256": digest, "tokens": tokens, "rounds": rounds})
    rows = [row for row in read_rows(out / "table.csv", task.COLUMNS, task.KEY) if row["model"] == model]
    rows.sort(key=lambda row: -row["bits"])
    decision = task.decide(rows, target_latency_ms, given)
    write_json(out / "summary.json", {"model": model, "rows": rows, "decision": decision})
    with style.theme():
        write_gallery(out, engineer_drawings(rows, decision))
    print(*task.lines(rows, decision), f"{out}: table.csv, summary.json and a figure", sep="\n")
