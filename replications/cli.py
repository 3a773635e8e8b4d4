"""`bitlaw`: one command, one module of `replications/commands` for each group of verbs.

Only light modules are imported here (`bitlaw --help` answers in under 0.5 s); torch, pandas and the rest are
imported inside the commands that use them.
"""

import sys

import typer

from replications.commands import (
    allocate,
    data,
    decode,
    design,
    engineer,
    fit,
    formats,
    laws,
    numerics,
    plan,
    predictor,
    ptq,
    published,
    replicate,
    report,
    smoke,
    statistics,
    tournament,
    train,
    verify,
)
from shared.errors import BitlawError
from shared.interrupt import wait_for_imports

app = typer.Typer(
    name="bitlaw",
    help="Replicate, audit and use the scaling laws of low-precision language models.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["-h", "--help"]},
)
for command in (
    *(train.train, train.measure, train.status, train.keep, statistics.statistics, verify.verify, smoke.smoke),
    *(design.design, formats.formats),
    *(laws.laws, laws.compare, laws.claims, fit.fit, plan.plan, report.report, report.check),
):
    app.command()(command)
for study in (
    *(predictor.predictor, predictor.low_data, engineer.engineer, numerics.numerics, numerics.surface),
    *(decode.decode, allocate.allocate, tournament.tournament),
):
    app.command()(study)
app.command(cls=ptq.Lists)(ptq.ptq)
# Its inputs are options named after the law's: --N, --D, --bits.
app.command(context_settings={"allow_extra_args": True, "ignore_unknown_options": True})(fit.predict)
replicate.app.command()(report.figures)
replicate.app.command()(report.compare)
replicate.app.command("plan-base")(plan.plan_base)
app.add_typer(data.app, name="data")
app.add_typer(replicate.app, name="replicate")
app.add_typer(published.app, name="published")

STOPPED = 130  # what Typer makes of a KeyboardInterrupt, as shells do


def main() -> None:
    """Run the command; bad input ends in one sentence on standard error and exit code 2."""
    wait_for_imports()
    try:
        app()
    except BitlawError as error:
        print(f"bitlaw: {error}", file=sys.stderr)
        sys.exit(2)
    except OSError as error:
        where = f" at {error.filename}" if error.filename else ""
        print(
            f"bitlaw: {error.strerror or error}{where}; nothing finished was lost, mend it and run again",
            file=sys.stderr,
        )
        sys.exit(2)
    except SystemExit as end:
        if end.code == STOPPED:
            print("bitlaw: stopped; run the same command to resume", file=sys.stderr)
        raise


if __name__ == "__main__":
    main()
