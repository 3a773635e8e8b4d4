"""Our GPTQ against auto-gptq's core class: the same matrices, inputs, group, order and damping, in turns."""

from collections.abc import Callable
from typing import Any

import pytest
import torch

from benchmarks.turns import compared, in_turns
from shared.quantize.autogptq_backend import autogptq
from shared.quantize.calibration import output_error
from shared.quantize.gptq import gptq
from shared.quantize.quantizer import named_quantizer
from shared.quantize.rtn import Rounded

GROUP = 128
ROUNDS = {256: 9, 512: 7, 1024: 5, 2048: 3}


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("act_order", [False, True], ids=["in_order", "act_order"])
@pytest.mark.parametrize("width", ROUNDS)
def test_gptq_against_autogptq(benchmark: Any, width: int, act_order: bool) -> None:
    torch.set_num_threads(1)
    generator = torch.Generator().manual_seed(width)
    weight_OI = torch.randn(width, width, generator=generator) * 0.02
    mixing_II = torch.randn(width, width, generator=generator) / width**0.5 + torch.eye(width)
    x_RI = torch.randn(4 * width, width, generator=generator) @ mixing_II
    hessian_II = x_RI.T @ x_RI / len(x_RI)
    quantizer = named_quantizer(f"UINT4@{GROUP}")
    made: dict[str, Rounded] = {}

    def ours() -> None:
        made["ours"] = gptq(weight_OI, hessian_II, quantizer, act_order=act_order)

    def theirs() -> None:
        made["autogptq"] = autogptq(weight_OI, hessian_II, 4, GROUP, symmetric=False, act_order=act_order)

    steps: dict[str, Callable[[], object]] = {"ours": ours, "autogptq": theirs}
    seconds = in_turns(steps, ROUNDS[width], warm_up=1)
    benchmark.extra_info |= {
        "width": width,
        "act_order": act_order,
        "seconds": sorted(seconds["ours"])[len(seconds["ours"]) // 2],
        **compared("times_faster_than_autogptq", seconds, "autogptq", "ours"),
        **{f"{name}_output_error": output_error(weight_OI, one.weight, hessian_II) for name, one in made.items()},
    }
    turns = iter(seconds["ours"])
    benchmark.pedantic(lambda: next(turns), rounds=1)
