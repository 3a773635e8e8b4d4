"""The core class of auto-gptq 0.7.1, called on one matrix: the reference for our GPTQ, and a backend to ask for.

The package does not import under transformers 5 (its models need names that are gone), but its quantization module
needs none of them. So the module is loaded without running the package's `__init__`.

Shape letters: O outputs, I inputs, R calibration rows.
"""

import importlib.util
import sys
from types import ModuleType
from typing import Any
from unittest.mock import patch

import torch
from torch import Tensor, nn

from shared.errors import BitlawError
from shared.quantize.quantizer import SCALE_BITS
from shared.quantize.rtn import Rounded


def core_class() -> Any:
    """`auto_gptq.quantization.gptq.GPTQ`. Raises BitlawError where auto-gptq is not installed."""
    spec = importlib.util.find_spec("auto_gptq")
    if spec is None or spec.submodule_search_locations is None:
        raise BitlawError("auto-gptq is not installed (wheels: Linux x86-64, Python up to 3.11): use method gptq")
    absent = "auto_gptq" not in sys.modules
    if absent:
        package = ModuleType("auto_gptq")
        package.__path__ = list(spec.submodule_search_locations)
        sys.modules["auto_gptq"] = package
    try:
        from auto_gptq.quantization.gptq import GPTQ
    finally:
        if absent:
            del sys.modules["auto_gptq"]
    return GPTQ


def autogptq(
    weight_OI: Tensor,
    hessian_II: Tensor,
    bits: int,
    group_size: int = -1,
    *,
    symmetric: bool = True,
    act_order: bool = True,
    damping: float = 0.01,
    block: int = 128,
    mse: bool = False,
) -> Rounded:
    """Quantize as auto-gptq does, with the defaults of its `BaseQuantizeConfig`; group_size -1 is the whole row.

    `symmetric` is its own grid: 2^bits levels, scale 2 max|w| / (2^bits - 1), so that the largest positive weight is
    clipped by half a step. At a group_size below `block` it takes group scales from weights that lack the block's own
    corrections. Bits count an FP32 scale and a zero point for each group.
    """
    layer = nn.Linear(weight_OI.shape[1], weight_OI.shape[0], bias=False, device=weight_OI.device)
    layer.weight.data = weight_OI.float().clone()
    core = core_class()(layer)
    core.quantizer.configure(bits, perchannel=True, sym=symmetric, mse=mse)
    core.H = hessian_II.float().clone()
    core.nsamples = 1
    with torch.no_grad(), patch("torch.cuda.synchronize", _nothing):
        core.fasterquant(blocksize=block, percdamp=damping, group_size=group_size, actorder=act_order)
    size = weight_OI.shape[1] if group_size == -1 else group_size
    rounded_OI = layer.weight.data
    error = (rounded_OI - weight_OI).double().square().sum().item()
    norm = weight_OI.double().square().sum().item()
    return Rounded(rounded_OI, bits + (SCALE_BITS["FP32"] + bits) / size, error, norm)


def _nothing(*_: object) -> None:
    """In place of `torch.cuda.synchronize`, which fails without CUDA; `fasterquant` calls it only for its clock."""
