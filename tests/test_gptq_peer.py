"""Our GPTQ and auto-gptq's core class on the same grid, and its defaults beside our INT4 in groups of 128.

auto-gptq has no grid like INTk: its symmetric one has 2^k levels, one more, from -2^(k-1) to 2^(k-1) - 1 in steps of
2 max|w| / (2^k - 1). On its asymmetric grid (UINTk) tests/test_ptq_methods.py compares the two.

Shape letters: O outputs, I inputs, S calibration sequences, T tokens.
"""

import importlib.util
from collections.abc import Callable
from functools import cache
from pathlib import Path
from statistics import fmean
from unittest.mock import patch

import pytest
import torch
from test_ptq_methods import agreement, layer
from torch import Tensor, nn

from shared.corpus.load import load_corpus
from shared.evaluate.calibrate import calibration_text
from shared.quantize.autogptq_backend import autogptq, core_class
from shared.quantize.calibration import gathering, output_error
from shared.quantize.gptq import gptq
from shared.quantize.quantizer import named_quantizer
from shared.sweep.kept import kept, kept_model

pytestmark = pytest.mark.skipif(importlib.util.find_spec("auto_gptq") is None, reason="auto-gptq is not installed")

ROOT = Path(__file__).parent.parent
WIDTHS = ((128, 256), (256, 128), (256, 384), (64, 512), (128, 512), (256, 256), (96, 384), (64, 640))


def core_on_our_grid(
    weight_OI: Tensor, hessian_II: Tensor, bits: int, group: int, block: int, act_order: bool, static: bool
) -> Tensor:
    """Its loop on the 2^bits - 1 levels of INTk: scale max|w| / (2^(bits-1) - 1), the middle level zero."""
    linear = nn.Linear(weight_OI.shape[1], weight_OI.shape[0], bias=False)
    linear.weight.data = weight_OI.clone()
    core = core_class()(linear)
    core.quantizer.configure(bits, perchannel=True, sym=True, mse=False)

    class Middle(type(core.quantizer)):  # type: ignore[misc]
        def find_params(self, x: Tensor, weight: bool = False) -> None:
            super().find_params(x, weight=weight)
            self.zero = torch.full_like(self.scale, 2.0 ** (bits - 1) - 1)

    core.quantizer.__class__ = Middle  # its static groups are copies of it
    core.quantizer.maxq = torch.tensor(2**bits - 2)
    core.H, core.nsamples = hessian_II.clone(), 1
    with torch.no_grad(), patch("torch.cuda.synchronize", lambda *_: None):
        core.fasterquant(blocksize=block, percdamp=0.01, group_size=group, actorder=act_order, static_groups=static)
    return linear.weight.data


@pytest.mark.parametrize("act_order", [False, True], ids=["in_order", "act_order"])
@pytest.mark.parametrize(("group", "block", "least"), [(128, 128, 0.999), (32, 32, 0.98), (-1, 128, 0.999)])
def test_symmetric_grids_agree(group: int, block: int, least: float, act_order: bool) -> None:
    """Most active first with its `static_groups`: scales of the untouched weight, as ours are."""
    for bits in (2, 4):
        weight_OI, calibration = layer(128, 512, bits, 4096)
        size = 512 if group == -1 else group
        ours = gptq(weight_OI, calibration.hessian_II, named_quantizer(f"INT{bits}@{size}"), 0.01, act_order, block)
        theirs = core_on_our_grid(weight_OI, calibration.hessian_II, bits, size, block, act_order, static=act_order)
        assert agreement(ours.weight, theirs, weight_OI) >= least, bits


def relative(weight_OI: Tensor, rounded_OI: Tensor, hessian_II: Tensor) -> float:
    """Output error as a share of the output, so that every layer counts the same."""
    return output_error(weight_OI, rounded_OI, hessian_II) / output_error(weight_OI, 0 * weight_OI, hessian_II)


def ours(weight_OI: Tensor, hessian_II: Tensor, text: str) -> float:
    return relative(weight_OI, gptq(weight_OI, hessian_II, named_quantizer(text), act_order=True).weight, hessian_II)


@cache
def drawn() -> list[tuple[Tensor, Tensor]]:
    """Weights and Hessians of the widths that a group of 128 divides."""
    made = [layer(*width, seed) for seed, width in enumerate(WIDTHS)]
    return [(weight_OI, calibration.hessian_II) for weight_OI, calibration in made]


@cache
def trained() -> list[tuple[Tensor, Tensor]]:
    """The matrices of a committed checkpoint of 128 inputs, with Hessians of the text that it was trained on."""
    from shared.model.exchange import llama_name, to_transformers

    folder = ROOT / "reports" / "checkpoints"
    runs = [run for run in kept(folder).values() if run.spec.shape.d_model == 128]
    model = kept_model(folder, max(runs, key=lambda run: (run.spec.tokens, run.spec.cooled)).spec.run_id)
    llama = to_transformers(model)
    layers = {
        name: llama.get_submodule(llama_name(name)[: -len(".weight")])
        for name, value in model.named_parameters()
        if name.startswith("layers.") and value.dim() == 2 and value.shape[1] == 128
    }
    windows_ST = calibration_text("python", load_corpus("python", ROOT).train, 256, windows=16).windows_ST
    with torch.no_grad(), gathering(layers, dict.fromkeys(layers, 128)) as gathered:
        llama(windows_ST[:, :-1])
    return [(layers[name].weight.detach(), gathered[name].hessian_II) for name in layers]


needs_data = pytest.mark.skipif(not (ROOT / "data/python/train.bin").exists(), reason="data/ is not built")
LAYERS = [drawn, pytest.param(trained, marks=needs_data)]


@pytest.mark.parametrize("layers", LAYERS)
def test_int4_errs_no_more_than_the_defaults_on_equal_levels(layers: Callable[[], list[tuple[Tensor, Tensor]]]) -> None:
    """Groups of the order, as `desc_act` makes them by default, against our groups of neighbours.

    A group of a checkpoint's 128 inputs is all of them, so there the two differ by the order of sums only.
    """
    theirs = fmean(relative(w, core_on_our_grid(w, h, 4, 128, 128, True, static=False), h) for w, h in layers())
    assert fmean(ours(w, h, "INT4@128") for w, h in layers()) <= theirs * (1 + 1e-4)


@pytest.mark.parametrize("layers", LAYERS)
def test_int4_beside_the_defaults(layers: Callable[[], list[tuple[Tensor, Tensor]]]) -> None:
    """`BaseQuantizeConfig` in groups of 128: 4 bits, symmetric, most active first, damping 0.01.

    Not above it are our 16 levels (UINT4) and our 15 with clipped scales (INT4:mse). The 15 with absmax scales are, by
    12 and 13 %: steps are 15 / 14 as wide and errors go with their square, less what the clip of its largest costs.
    """
    theirs = fmean(relative(w, autogptq(w, h, 4, 128).weight, h) for w, h in layers())
    ratio = {
        text: fmean(ours(w, h, text) for w, h in layers()) / theirs
        for text in ("UINT4@128", "INT4@128:mse", "INT4@128")
    }
    assert ratio["UINT4@128"] < 0.9
    assert ratio["INT4@128:mse"] <= 1
    assert 1 < ratio["INT4@128"] < (15 / 14) ** 2
