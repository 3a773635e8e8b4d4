"""From pytest-benchmark's JSON to `reports/benchmarks.json`: numbers with their peers, and the summary over sizes."""

import json
import math
import sys
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.table import Table

from benchmarks.compare import NORMAL
from shared.files import write_json


def geometric_mean(values: list[float]) -> float:
    return math.exp(sum(map(math.log, values)) / len(values))


def summary(rows: dict[str, dict[str, Any]]) -> dict[str, float]:
    """Geometric means over the widths (or formats), and the worst of them."""
    found: dict[str, float] = {}

    def add(name: str, key: str, test: str, worst: Any) -> None:
        values = [float(row[key]) for label, row in rows.items() if test in label and key in row]
        if values:
            found[f"{name}_geometric_mean"], found[f"{name}_worst"] = geometric_mean(values), worst(values)

    for mode in ("eager", "torch_compile"):
        add(f"times_faster_than_trainer_{mode}", "times_faster_than_trainer", f"-{mode}]", min)
    for name in ("W4_channel", "W4A4_g32", "W4A4_g8", "E2M1_b8_P2_P4_P6"):
        add(f"{name}_step_over_unquantized", f"{name}_ratio", "overhead", max)
    add("share_of_gemm_peak", "share_of_gemm_peak", "share_of_the_gemm_peak", min)
    add("times_faster_than_torchao_linear", "times_faster_than_torchao", "torchao", min)
    add("times_faster_than_compiled_torchao_linear", "times_faster_than_torchao_compiled", "torchao", min)
    add("fake_quantize_share_of_copy_bandwidth", "share_of_copy", "test_fake_quantize", min)
    for peer in ("gfloat", "eager", "torch"):
        add(f"fake_quantize_times_faster_than_{peer}", f"times_faster_than_{peer}", "test_fake_quantize", min)
    add("gptq_times_faster_than_autogptq", "times_faster_than_autogptq", "autogptq", min)
    add("chinchilla_fit_times_faster_than_scipy", "times_faster_than_scipy", "chinchilla", min)
    add("resamples_times_faster_than_scipy", "times_faster_than_scipy", "test_resamples", min)
    add("report_times_faster_than_dvc_plots", "times_faster_than_dvc_plots", "test_report", min)
    add("help_times_faster_than_dvc", "times_faster_than_dvc", "test_help", min)
    add("two_workers_times_faster_than_one", "times_faster_than_one_worker", "by_workers", min)
    for name, test, against in (
        ("fit_seconds_by_rows", "test_fit_by_rows", "rows"),
        ("step_seconds_by_flops", "test_step_by_parameters", "step_flops"),
    ):
        some = [row for label, row in rows.items() if test in label]
        if len(some) > 1:
            found[f"{name}_power"] = power(some, against)
    return found


def power(rows: list[dict[str, Any]], against: str) -> float:
    """d ln seconds / d ln of a size between the two largest sizes: 1 is growth in proportion."""
    small, large = sorted(rows, key=lambda row: float(row[against]))[-2:]
    return math.log(large["seconds"] / small["seconds"]) / math.log(large[against] / small[against])


def beside_its_peers(rows: dict[str, dict[str, Any]]) -> Table:
    """A line a benchmark: its ratios to peers, and its shares of what the machine can do."""
    table = Table(
        "benchmark",
        "seconds",
        "times faster than (ratio: cost over)",
        "of the machine's limit",
        box=None,
        padding=(0, 2, 0, 0),
    )
    for name, row in sorted(rows.items()):
        ratios = [key for key in sorted(row) if f"{key}_spread" in row]
        peers = [
            f"{key.removeprefix('times_faster_than_')} {row[key]:.3g}{_noise(row, key)}"
            for key in ratios
            if not key.startswith("share_of_")
        ]
        limits = [f"{key.removeprefix('share_of_')} {row[key]:.0%}" for key in ratios if key.startswith("share_of_")]
        took = row.get("seconds", row.get("step_seconds"))
        table.add_row(
            name.removeprefix("test_"), "" if took is None else f"{took:.3g}", ", ".join(peers), ", ".join(limits)
        )
    return table


def _noise(row: dict[str, Any], key: str) -> str:
    """Half the 95 % interval, where it is worth a word."""
    half = NORMAL * float(row[f"{key}_spread"])
    return f" +- {half:.0%}" if half >= 0.005 else ""


def main(source: str, target: str) -> None:
    raw = json.loads(Path(source).read_text(encoding="utf-8"))
    rows = {bench["name"]: bench["extra_info"] for bench in raw["benchmarks"]}
    machine = {
        "cpu": raw["machine_info"]["cpu"].get("brand_raw", "unknown"),
        "cores": raw["machine_info"]["cpu"]["count"],
    }
    means = summary(rows)
    write_json(Path(target), {"machine": machine, "summary": means, "benchmarks": rows})
    Console(width=None if sys.stdout.isatty() else 200).print(beside_its_peers(rows))
    for name, number in means.items():
        print(f"{name:60s} {number:8.3f}")


if __name__ == "__main__":
    main(sys.argv[1], sys.argv[2])
