"""GuidedQuant (Kim et al., arXiv 2505.07004): second moments of a layer's inputs, weighted by the loss's gradients.

The layer-wise error |X W - X W'|^2 takes all outputs for equally important. Weighted by how strongly the loss depends
on each output, |dl/dZ * (X W - X W')|^2 (Eq. 4), it is the second-order estimate of the loss by the Fisher matrix, one
I x I block per output channel (remark 3.1). A block for every channel is too much; `groups` of consecutive channels
share the mean of theirs (Eq. 7):

    H_k = X^T Diag(mean over the channels j of group k of (dl/dz_j)^2) X

Any method that takes a Hessian takes these, group by group: `guided_gptq` here, code books in lnq.py.

Shape letters: O outputs, I inputs, g groups of output channels, R calibration rows (tokens).
"""

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn

from shared.errors import BitlawError
from shared.quantize.calibration import output_error
from shared.quantize.gptq import BLOCK, gptq
from shared.quantize.quantizer import Quantizer
from shared.quantize.rtn import Rounded

# The paper's choice for 7B and 13B (section 5); 2 for 70B, 1 for Llama-3. One keeps most of the gain (table of g).
GROUPS = 4


@dataclass
class GuidedCalibration:
    """Sums of Eq. 7 for one matrix of `outputs` x `inputs`, in FP32 on the inputs' device: 4 g I^2 bytes.

    Raises BitlawError when the groups do not divide the outputs.
    """

    inputs: int
    outputs: int
    groups: int = GROUPS
    rows: int = 0
    sums_gII: Tensor | None = field(default=None, repr=False)

    def __post_init__(self) -> None:
        if self.groups < 1 or self.outputs % self.groups:
            raise BitlawError(
                f"{self.groups} guided groups do not divide {self.outputs} output channels: use 1 or another divisor"
            )

    @torch.no_grad()
    def add(self, x: Tensor, grad_z: Tensor) -> None:
        """Inputs x (..., I) and the loss's gradient by the outputs, grad_z (..., O), of the same tokens.

        The loss is best the sum over tokens, in nats: with a mean the weight of a batch depends on its size (and in
        half precision its small gradients vanish; the authors multiply them by 1,000).
        Raises BitlawError when a width or the number of rows is another, or a value is not finite.
        """
        if (x.shape[-1], grad_z.shape[-1]) != (self.inputs, self.outputs) or x.shape[:-1] != grad_z.shape[:-1]:
            raise BitlawError(
                f"guided calibration got inputs {tuple(x.shape)} and gradients {tuple(grad_z.shape)}: "
                f"the layer has {self.inputs} inputs and {self.outputs} outputs for each token"
            )
        self.add_saliency(x, grad_z.unflatten(-1, (self.groups, -1)).float().square().mean(-1))

    @torch.no_grad()
    def add_saliency(self, x: Tensor, saliency: Tensor) -> None:
        """The same from the mean squares of each group's gradients (..., g), for a host that keeps only these."""
        x_RI, saliency_Rg = x.reshape(-1, self.inputs).float(), saliency.reshape(-1, self.groups).float()
        if len(x_RI) != len(saliency_Rg):
            raise BitlawError(f"guided calibration got {len(x_RI)} inputs and gradients of {len(saliency_Rg)} tokens")
        if not bool(torch.isfinite(saliency_Rg).all() & torch.isfinite(x_RI).all()):
            raise BitlawError("the calibration inputs or gradients have NaN or infinite values: use a sound checkpoint")
        if self.sums_gII is None:
            self.sums_gII = torch.zeros(self.groups, self.inputs, self.inputs, device=x.device)
        for k, root_R1 in enumerate(saliency_Rg.sqrt().T.unsqueeze(-1)):
            weighted_RI = x_RI * root_R1
            self.sums_gII[k].addmm_(weighted_RI.T, weighted_RI)
        self.rows += len(x_RI)

    @property
    def hessians_gII(self) -> Tensor:
        """Eq. 7 over the number of rows (g, I, I); BitlawError when no gradient came."""
        if self.sums_gII is None or not self.rows:
            raise BitlawError("no gradient reached a layer: run a forward and a backward pass over some text")
        return self.sums_gII / self.rows


def watched(x: Tensor, z: Tensor, *calibrations: GuidedCalibration) -> Tensor:
    """z = x W^T, such that the backward pass adds x and dl/dz to the calibrations; use what it returns in z's place.

    Several calibrations are those of matrices that were multiplied side by side, in the order of their outputs.
    A z that needs no gradient (frozen weights) becomes a leaf that does, so no weight has to have one.
    Raises BitlawError outside of gradient mode, for other widths, and in the backward pass when x was overwritten.
    """
    if not torch.is_grad_enabled():
        raise BitlawError("guided Hessians need gradients: run the forward pass outside of torch.no_grad()")
    widths = [calibration.outputs for calibration in calibrations]
    if sum(widths) != z.shape[-1]:
        raise BitlawError(f"a product has {z.shape[-1]} outputs, its guided calibrations have {sum(widths)}")
    if not z.requires_grad:
        z = z.detach().requires_grad_()
    x = x.detach()
    version = x._version

    def gather(grad_z: Tensor) -> None:
        if x._version != version:
            raise BitlawError("a layer's input was overwritten in place after it was read: guided Hessians need it")
        for calibration, part in zip(calibrations, grad_z.split(widths, dim=-1), strict=True):
            calibration.add(x, part)

    z.register_hook(gather)
    return z


@contextmanager
def guided_gathering(
    layers: Mapping[str, nn.Module], widths: Mapping[str, tuple[int, int]], groups: int = GROUPS
) -> Iterator[dict[str, GuidedCalibration]]:
    """While it lasts, every forward and backward pass through these layers adds to their calibrations.

    `widths` are (inputs, outputs). The layers may be of any class that maps (..., I) to (..., O). Groups that do not
    divide a layer's outputs raise BitlawError.
    """
    gathered = {name: GuidedCalibration(*widths[name], groups) for name in layers}

    def gather(name: str) -> Any:
        return lambda _layer, arguments, z: watched(arguments[0], z, gathered[name])

    handles = [layer.register_forward_hook(gather(name)) for name, layer in layers.items()]
    try:
        yield gathered
    finally:
        for handle in handles:
            handle.remove()


def grouped(weight_OI: Tensor, hessians_gII: Tensor) -> list[tuple[Tensor, Tensor]]:
    """Each group's channels with its Hessian.

    Raises BitlawError when the shapes do not fit, a value is not finite, or nothing depends on a group.
    """
    outputs, inputs = weight_OI.shape
    if hessians_gII.dim() != 3 or hessians_gII.shape[1:] != (inputs, inputs) or outputs % len(hessians_gII):
        raise BitlawError(
            f"guided Hessians of shape {tuple(hessians_gII.shape)} do not fit a matrix of {outputs} outputs and "
            f"{inputs} inputs: they must be (g, {inputs}, {inputs}) with a g that divides {outputs}"
        )
    if not bool(torch.isfinite(weight_OI).all()):
        raise BitlawError("the weight has NaN or infinite values: quantize a sound checkpoint")
    if not bool(torch.isfinite(hessians_gII).all()):
        raise BitlawError("a guided Hessian has NaN or infinite values: calibrate a sound checkpoint")
    dead = [k for k, traced in enumerate(hessians_gII.diagonal(dim1=1, dim2=2).sum(-1).tolist()) if traced <= 0]
    if dead:
        size = outputs // len(hessians_gII)
        raise BitlawError(
            f"no gradient reached output channels {dead[0] * size} to {dead[0] * size + size - 1} of a layer: "
            "give more calibration text or fewer guided groups"
        )
    return list(zip(weight_OI.chunk(len(hessians_gII)), hessians_gII, strict=True))


def guided_error(weight_OI: Tensor, rounded_OI: Tensor, hessians_gII: Tensor) -> float:
    """The objective of Eq. 7 over the rows: sum over groups and their channels of d H_k d^T, d = rounded - weight."""
    parts = grouped(weight_OI, hessians_gII)
    chunks = rounded_OI.chunk(len(parts))
    return sum(output_error(weight, rounded, h) for (weight, h), rounded in zip(parts, chunks, strict=True))


def guided_gptq(
    weight_OI: Tensor,
    hessians_gII: Tensor,
    quantizer: Quantizer,
    damping: float = 0.01,
    act_order: bool = False,
    block: int = BLOCK,
) -> Rounded:
    """GPTQ of each group of output channels with its own Hessian (the paper's use of it under SpinQuant, section 5.3).

    What a quantizer has once for a tensor (INT4@tensor, NVFP4) it has here once for a group of channels, and the bits
    per weight count that. Raises BitlawError as `grouped` and `gptq` do.
    """
    parts = [gptq(w, h, quantizer, damping, act_order, block) for w, h in grouped(weight_OI, hessians_gII)]
    return Rounded(
        torch.cat([part.weight for part in parts]),
        sum(part.bits_per_weight for part in parts) / len(parts),
        sum(part.squared_error for part in parts),
        sum(part.squared_norm for part in parts),
    )
