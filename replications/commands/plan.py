"""`bitlaw plan`: size, tokens, number format and group under a budget, by every law; and the fits that it needs."""

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

if TYPE_CHECKING:
    from rich.table import Table

    from replications.planning.budget import Budget
    from replications.planning.result import LawPlan, Plan, Point, Range


def plan(
    memory: Annotated[
        str, typer.Option("--memory", metavar="GIB", help="at deployment, scales and cache included")
    ] = "",
    train_flops: Annotated[str, typer.Option("--train-flops", metavar="C", help="of training, in 16-bit FLOPs")] = "",
    inference_flops: Annotated[
        str, typer.Option("--inference-flops", metavar="F", help="forward, of one token, in 16-bit FLOPs")
    ] = "",
    inference_bits: Annotated[
        str, typer.Option("--inference-bits", metavar="B", help="read for one token: weights and cache")
    ] = "",
    tokens: Annotated[str, typer.Option("--tokens", metavar="D", help="at most so many training tokens")] = "",
    target_loss: Annotated[str, typer.Option("--target-loss", metavar="NATS", help="nats per token, or lower")] = "",
    N: Annotated[str, typer.Option("--N", metavar="N", help="a given model: block parameters, such as 8B")] = "",
    D: Annotated[str, typer.Option("--D", metavar="D", help="a given model: training tokens, such as 15T")] = "",
    formats: Annotated[
        str | None, typer.Option("--formats", metavar="F,F", help="allowed, such as BF16,INT4,MXFP4")
    ] = None,
    groups: Annotated[
        str | None, typer.Option("--groups", metavar="G,G", help="allowed, such as 32,128,channel")
    ] = None,
    law: Annotated[list[str], typer.Option("--law", help="name or beginning of one; repeatable; default: all")] = [],  # noqa: B006
    fit: Annotated[
        list[Path], typer.Option("--fit", metavar="FIT.json", help="what `bitlaw fit --out` wrote; repeatable")
    ] = [],  # noqa: B006
    scale_bits: Annotated[int, typer.Option("--scale-bits", min=1, max=32, help="of a scale of a group")] = 16,
    embedding: Annotated[str, typer.Option("--embedding", help="parameters beside N that stay in 16 bits")] = "",
    context: Annotated[str, typer.Option("--context", help="tokens in the KV cache")] = "",
    kv_bits: Annotated[float, typer.Option("--kv-bits", help="of a cached number")] = 16.0,
    aspect: Annotated[float, typer.Option("--aspect", help="width over depth, for rows and the cache")] = 128.0,
    train_cost: Annotated[
        str, typer.Option("--train-cost", help="bits: few bits are cheaper by bits / 16; flops: they are not")
    ] = "bits",
    reports: Annotated[Path, typer.Option("--reports", help="folder of the results")] = Path("reports"),
    json: Annotated[bool, typer.Option("--json", help="print JSON (schema: replications/planning/result.py)")] = False,
    plot: Annotated[Path | None, typer.Option("--plot", metavar="FILE.svg", help="draw the fronts")] = None,
) -> None:
    """Plan a model: (N, D, format, group) on each law's Pareto front under memory, compute, tokens or a target loss."""
    from replications.commands.laws import print_json
    from replications.planning.budget import Budget, count
    from replications.planning.plan import plan as make
    from replications.planning.setting import FORMATS, GROUPS
    from shared.errors import BitlawError

    if plot is not None and plot.suffix != ".svg":
        raise BitlawError(f"--plot {plot}: figures are written as SVG; name it {plot.with_suffix('.svg')}")
    given = {
        "memory": memory, "train_flops": train_flops, "inference_flops": inference_flops, "N": N, "D": D,
        "inference_bits": inference_bits, "tokens": tokens, "target_loss": target_loss,
        "embedding": embedding or "0", "context": context or "0",
    }  # fmt: skip
    numbers = {name: count(text, name.replace("_", "-")) for name, text in given.items() if text}
    budget = Budget(
        **numbers, formats=FORMATS if formats is None else _words(formats),
        groups=GROUPS if groups is None else tuple(map(_group, _words(groups))),
        scale_bits=scale_bits, kv_bits=kv_bits, aspect=aspect, train_cost=train_cost,
    )  # fmt: skip
    found = make(budget, laws=law, fits=fit, reports=reports)
    if plot is not None:
        from replications.planning.plot import write

        write(found, plot)
    if json:
        print_json(found.to_json())
    else:
        _show(found, budget)
        if plot is not None:
            print(f"{plot}: the fronts")


def plan_base(
    reports: Annotated[Path, typer.Option("--reports", help="folder of the results")] = Path("reports"),
    params: Annotated[Path, typer.Option("--params", help="settings of the fits")] = Path("params.yaml"),
) -> None:
    """Fit the unquantized loss under our laws of delta, for `bitlaw plan`: reports/planning/base.json."""
    from replications.planning.base import write_base

    print(write_base(reports, params))


def _words(text: str) -> tuple[str, ...]:
    return tuple(word.strip() for word in text.split(",") if word.strip())


def _group(word: str) -> int | str:
    return int(word) if word.lstrip("-").isdigit() else word


def _show(found: "Plan", budget: "Budget") -> None:
    from replications.commands.laws import console

    out = console()
    answering = [law for law in found.laws if law.best is not None]
    out.print(_models(answering) if budget.named else _answers(answering))
    for law in answering:
        for best in law.best_bits:
            print(f"{law.law}: P* = {_range(best.bits, 4)} bits at C = {best.C:.3g}, {best.held} held")
    if not budget.named:
        for law in (law for law in answering if law.choice is not None):
            print(f"{law.law}: {_moves(law)}")
    if found.spread:
        out.print(_spread(found))
    print(found.disagreement)
    for line in _silences(found):
        print(line)
    for note in found.assumptions:
        print(f"note: {note}")


def _silences(found: "Plan") -> list[str]:
    """Who says nothing of what, and why; laws that say so alike in one line."""
    lines = [f"no answer by {law.law}: {law.why}" for law in found.laws if law.why]
    lines += [f"{law.law}: {law.warning}" for law in found.laws if law.warning]
    alike: dict[tuple[str, str], list[str]] = {}
    for law in found.laws:
        for silence in law.silent:
            alike.setdefault((", ".join(silence.settings), silence.why), []).append(law.law)
    lines += [f"nothing of {formats} by {', '.join(names)}: {why}" for (formats, why), names in alike.items()]
    return lines + [f"not planned with {name}: {why}" for name, why in found.without.items()]


def _answers(laws: "list[LawPlan]") -> "Table":
    """The best point of each law."""
    from rich.table import Table

    from replications.planning.budget import short

    shown = Table(
        "law", "how", "N", "D", "format", "bits", "GiB", "training", "loss", "delta", "N_eff/N", "outside", "status",
        box=None, padding=(0, 2, 0, 0),
    )  # fmt: skip
    for law in laws:
        point = law.best
        if point is None:
            continue
        shown.add_row(
            law.law, law.how, short(point.N), short(point.D), point.setting, f"{point.bits_per_weight:.3g}",
            f"{point.memory:.3g}", f"{point.train_flops:.3g}", _range(point.loss, 5), _range(point.delta, 3),
            f"{point.N_eff_share.value:.3g}", _outside(point), law.status,
        )  # fmt: skip
    return shown


def _models(laws: "list[LawPlan]") -> "Table":
    """Every format of a given model, by each law."""
    from rich.table import Table

    from replications.planning.budget import short

    shown = Table(
        "law", "how", "format", "bits", "GiB", "loss", "delta", "N_eff/N", "D_crit", "outside", box=None,
        padding=(0, 2, 0, 0),
    )  # fmt: skip
    for law in laws:
        if {point.format for point in law.readings} == {"BF16"}:
            continue  # it knows none of the allowed formats; below it says so
        for i, point in enumerate(sorted(law.readings, key=lambda point: -point.bits_per_weight)):
            critical = "none" if point.D_crit is None else short(point.D_crit.value)
            if point.D_crit is not None and point.D_crit.low is not None and point.D_crit.high is not None:
                critical += f" [{short(point.D_crit.low)}, {short(point.D_crit.high)}]"
            shown.add_row(
                law.law if i == 0 else "", law.how if i == 0 else "", point.setting, f"{point.bits_per_weight:.3g}",
                f"{point.memory:.3g}", _range(point.loss, 5), _range(point.delta, 3), _range(point.N_eff_share, 3),
                critical, _outside(point),
            )  # fmt: skip
    return shown


def _spread(found: "Plan") -> "Table":
    from rich.table import Table

    shown = Table("laws disagree about", "among", "laws", "lowest", "highest", "times", box=None, padding=(0, 2, 0, 0))
    for row in found.spread:
        times = "" if row.times is None else f"{row.times:.3g}"
        shown.add_row(
            row.quantity, row.among, str(row.laws), f"{row.low:.3g} ({row.low_law})",
            f"{row.high:.3g} ({row.high_law})", times,
        )  # fmt: skip
    return shown


def _moves(law: "LawPlan") -> str:
    """How the choice moves over the draws."""
    from replications.planning.budget import short

    choice = law.choice
    assert choice is not None
    if not choice.settings:
        return f"none of {choice.draws} draws reaches the target"
    formats = ", ".join(f"{share:.0%} {name}" for name, share in list(choice.settings.items())[:3])
    missed = f", {choice.none:.0%} none" if choice.none else ""
    return (
        f"over {choice.draws} draws N [{short(choice.N[0])}, {short(choice.N[1])}], D [{short(choice.D[0])}, "
        f"{short(choice.D[1])}]; {formats}{missed}"
    )


def _range(value: "Range", digits: int) -> str:
    shown = f"{value.value:.{digits}g}"
    if value.low is None or value.high is None:
        return shown
    return f"{shown} [{value.low:.{digits}g}, {value.high:.{digits}g}]"


def _outside(point: "Point") -> str:
    """`N x36` is 36 times the largest that the constants were fitted on, `D x0.5` half of the smallest."""
    return ", ".join(f"{name} x{factor:.3g}" for name, factor in point.outside.items()) or "inside"
