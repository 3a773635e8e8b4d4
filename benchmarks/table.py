"""From pytest-benchmark's JSON to `reports/benchmarks.json`: numbers with their peers, and the summary over sizes."""

import json
import math
import sys
from pathlib import Path
from typing import Any

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
        add(f"times_faster_than_trainer_{mode}", "times_faster", f"-{mode}]", min)
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
    return found


def main(source: str, target: str) -> None:
    raw = json.loads(Path(source).read_text(encoding="utf-8"))
    rows = {bench["name"]: bench["extra_info"] for bench in raw["benchmarks"]}
    machine = {
        "cpu": raw["machine_info"]["cpu"].get("brand_raw", "unknown"),
        "cores": raw["machine_info"]["cpu"]["count"],
    }
    means = summary(rows)
    write_json(Path(target), {"machine": machine, "summary": means, "benchmarks": rows})
    for name, number in means.items():
        print(f"{name:60s} {number:8.3f}")


if __name__ == "__main__":
    main(sys.argv[1], sys.argv[2])
