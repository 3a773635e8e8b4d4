"""`bitlaw formats`: what a number format can hold, what it costs, and how well it holds a normal variable."""

import json
from typing import TYPE_CHECKING, Annotated, Any

import typer
from rich.console import Console
from rich.table import Table

if TYPE_CHECKING:
    from shared.formats import Format
    from shared.quantize import Quantizer

GROUPS = (8, 16, 32, 64, 128)
SHOWN = 33  # so many values are printed; --json has all
ROW = 4096  # values of a row, and rows of a tensor, where these share a scale
LISTED_BITS = 9  # the table without a name stops there


def formats(
    name: Annotated[
        str | None, typer.Argument(help="INT4, E4M3FN, NF4, ..., or a quantizer such as MXFP4 or INT4@32:bf16")
    ] = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON, with every value.")] = False,
) -> None:
    """The number formats; of one of them its values, range, bits per value with scales, and Gaussian error."""
    from shared.errors import BitlawError
    from shared.formats import format_named
    from shared.formats.names import beginning, names
    from shared.quantize.quantizer import PRESETS, named_quantizer

    if name is None:
        listed = [form for form in map(format_named, names()) if form.bits <= LISTED_BITS]
        rows = [{key: value for key, value in described(form).items() if key != "values"} for form in listed]
        if as_json:
            typer.echo(json.dumps(rows, indent=1))
        else:
            print_list(rows, list(PRESETS))
        return
    if name not in PRESETS and (hint := beginning(name, PRESETS)):
        raise BitlawError(f"format {name!r} is unknown{hint} (`bitlaw formats` lists them)")
    quantizer = named_quantizer(name) if name in PRESETS or "@" in name else None
    facts = described(quantizer.format if quantizer else format_named(name))
    if quantizer:
        facts |= with_scales(quantizer)
    if as_json:
        typer.echo(json.dumps(facts, indent=1))
    else:
        print_one(facts)


def described(form: "Format") -> dict[str, Any]:
    """The facts of a format: range, values, and its least mean squared error for N(0, 1)."""
    from shared.formats.gaussian import gaussian_fit
    from shared.formats.oracle import values
    from shared.quantize.quantizer import SCALE_BITS

    held = values(form)
    fit = gaussian_fit(form)
    zero_point = form.bits if form.lowest is not None else 0
    return {
        "name": form.name,
        "kind": form.kind,
        "bits": form.bits,
        "distinct_values": len(held),
        "largest": form.limit,
        "smallest_positive": min(value for value in held if value > 0),
        "gaussian_mse": fit.mse,
        "gaussian_clip": fit.clip,
        "bits_per_value": {
            scale: {str(group): form.bits + (bits + zero_point) / group for group in GROUPS}
            for scale, bits in SCALE_BITS.items()
        },
        "values": held,
    }


def with_scales(quantizer: "Quantizer") -> dict[str, Any]:
    """What a quantizer adds to its format; what a row or a tensor shares counts for a tensor of ROW x ROW values."""
    length = quantizer.group if isinstance(quantizer.group, int) else ROW
    group = "tensor" if quantizer.group == "tensor" else str(length)
    facts = {
        "quantizer": str(quantizer),
        "group": quantizer.group,
        "scale_rule": quantizer.scale_rule,
        "scale_format": quantizer.scale_format,
        "rounding": quantizer.rounding,
    }
    if quantizer.scale_format == "E4M3":  # NVFP4's second level
        bits = quantizer.bits_per_value(ROW, ROW) - quantizer.bits_per_value(ROW)
        facts["tensor_scale"] = f"FP32: {bits:.2g} bits a value in a tensor of {ROW} x {ROW}, counted in bits per value"
    return facts | {"bits_per_value": {quantizer.scale_format: {group: quantizer.bits_per_value(ROW, ROW)}}}


def print_list(rows: list[dict[str, Any]], presets: list[str]) -> None:
    table = Table("format", "kind", "bits", "values", "largest", "smallest > 0", "Gaussian MSE", box=None)
    for row in rows:
        table.add_row(
            *(row["name"], row["kind"], f"{row['bits']:.4g}", str(row["distinct_values"])),
            *(f"{row['largest']:g}", f"{row['smallest_positive']:g}", f"{row['gaussian_mse']:.6g}"),
        )
    Console().print(table)
    typer.echo(
        f"Formats up to {LISTED_BITS} bits; ExMy goes to E8M10. ExMyFN keeps one code for NaN (OCP), ExMyIEEE the "
        f"largest exponent.\nBlock formats: {', '.join(presets)}. Gaussian MSE: of N(0, 1) at the best scale."
    )


def print_one(facts: dict[str, Any]) -> None:
    table = Table(box=None, show_header=False)
    table.add_column(style="bold")
    table.add_column()
    for key, value in facts.items():
        if key == "values":
            shown = [f"{v:g}" for v in value]
            more = f"; {len(shown)} in all, --json lists them" if len(shown) > SHOWN else ""
            half = SHOWN // 2
            text = " ".join(shown if not more else [*shown[:half], "...", *shown[-half:]]) + more
        elif key == "bits_per_value":
            text = "\n".join(
                f"{scale} scale: " + ", ".join(f"{bits:.9g} {_of(group)}" for group, bits in by_group.items())
                for scale, by_group in value.items()
            )
        elif isinstance(value, float):
            text = f"{value:.7g}"
        else:
            text = str(value)
        table.add_row(key.replace("_", " "), text)
    Console().print(table)


def _of(group: str) -> str:
    return f"in groups of {group}" if group.isdigit() else f"with one for a {group} of {ROW} x {ROW}"
