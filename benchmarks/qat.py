"""What quantized training adds: to a whole step, and a fake-quantized linear layer against torchao's."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from benchmarks.turns import CONTEXT, SEQUENCES, SIZES, compared, in_turns
from shared.corpus.load import load_corpus
from shared.quantize.training import ROLES, Precision, Product
from shared.train.batches import Batches
from shared.train.recipe import Recipe
from shared.train.trunk import Trainer

ROUNDS = 40
PRECISIONS = {
    "unquantized": Precision(),
    "W4_channel": Precision(weights="INT4@channel"),
    "W4A4_g32": Precision(weights="INT4@32", activations="INT4@32"),
    "W4A4_g8": Precision(weights="INT4@8", activations="INT4@8"),
    "E2M1_b8_P2_P4_P6": Precision(weights="E2M1@8", weights_backward="E2M1@8", activations_backward="E2M1@8"),
}


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("size", SIZES)
def test_step_overhead(benchmark: Any, size: str) -> None:
    """Step time of each precision over that of the unquantized step in the same round, and the loss after it."""
    torch.set_num_threads(1)
    torch.compiler.reset()
    corpus = load_corpus("python", Path.cwd())
    trainers = {}
    for name, precision in PRECISIONS.items():
        recipe = Recipe(SIZES[size], 1, 0.002, batch_tokens=SEQUENCES * CONTEXT, precision=precision)
        trainers[name] = Trainer(recipe, Batches(corpus.train, CONTEXT, SEQUENCES, seed=1), torch.device("cpu"))
    steps: dict[str, Callable[[], object]] = {
        name: lambda trainer=trainer: trainer.advance(1.0)  # type: ignore[misc]
        for name, trainer in trainers.items()
    }
    seconds = in_turns(steps, ROUNDS)
    benchmark.extra_info |= {"size": size, "d_model": SIZES[size].d_model}
    for name, trainer in trainers.items():
        benchmark.extra_info |= {
            f"{name}_seconds": float(np.median(seconds[name])),
            **(compared(f"{name}_ratio", seconds, name, "unquantized") if name != "unquantized" else {}),
            f"{name}_loss": trainer.loss,
        }
    benchmark.pedantic(steps["W4_channel"], rounds=5)


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("width", [64, 128, 256])
def test_linear_against_torchao(benchmark: Any, width: int) -> None:
    """Forward and backward of one linear layer, 4-bit weights and activations in groups of 32; both in BF16.

    torchao's layer eager, as it comes, and compiled; ours compiled, as training runs it.
    """
    from torchao.quantization.qat import IntxFakeQuantizeConfig
    from torchao.quantization.qat.linear import FakeQuantizedLinear

    torch.set_num_threads(1)
    torch.compiler.reset()
    outputs = 3 * width
    x_RI = torch.randn(SEQUENCES * CONTEXT, width).bfloat16().requires_grad_()  # torchao groups rows of matrices only
    config = IntxFakeQuantizeConfig(torch.int4, group_size=32, is_symmetric=True)
    peer = FakeQuantizedLinear(width, outputs, activation_config=config, weight_config=config).bfloat16()
    defaults = {role: str(getattr(Precision(weights="INT4@32", activations="INT4@32"), role)) for role in ROLES}
    product = Product(defaults, width, learn=False)
    weight_OI = peer.weight.detach().float().requires_grad_()

    def linear(x_RI: torch.Tensor) -> torch.Tensor:
        return product(x_RI.unflatten(0, (SEQUENCES, CONTEXT)), [weight_OI]).flatten(0, 1)

    ours = torch.compile(linear, dynamic=False)
    compiled = torch.compile(peer, dynamic=False)
    g_RO = torch.randn(SEQUENCES * CONTEXT, outputs).bfloat16()

    def step(layer: Callable[[torch.Tensor], torch.Tensor]) -> Callable[[], None]:
        def run() -> None:
            x_RI.grad = weight_OI.grad = peer.weight.grad = None
            layer(x_RI).backward(g_RO)

        return run

    steps = {"ours": step(ours), "torchao": step(peer), "torchao_compiled": step(compiled)}
    seconds = in_turns(steps, ROUNDS)
    with torch.no_grad():
        exact = x_RI.float() @ weight_OI.T
        errors = {
            name: float((layer(x_RI).float() - exact).square().mean() / exact.square().mean())
            for name, layer in {"ours": ours, "torchao": peer}.items()
        }
    benchmark.extra_info |= {
        "d_model": width,
        **compared("times_faster_than_torchao", seconds, "torchao", "ours"),
        **compared("times_faster_than_torchao_compiled", seconds, "torchao_compiled", "ours"),
        "relative_mse": errors["ours"],
        "torchao_relative_mse": errors["torchao"],
    }
    benchmark.pedantic(steps["ours"], rounds=20)
