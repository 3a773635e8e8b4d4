"""How strongly the loss depends on each weight: Fisher diagonal, its surrogates, and exact second derivatives.

The page wants G_ij = |d2L / dw_i dw_j|: a number for each pair of weights. What is gathered instead, in one forward and
backward pass over a calibration text of the unquantized model, matrix by matrix:

  position_OI   mean over tokens t of (dl/dz_o x_i)^2, l the sum of a window's losses, z = W x: the diagonal of
                GuidedQuant's Hessians with a group for each output channel (arXiv 2505.07004, Eq. 7)
  sequence_OI   mean over windows of (dl/dw_oi)^2 / T: the squared gradient of a whole window's loss, so that what two
                tokens add with opposite signs cancels. A diagonal of the empirical Fisher matrix per token
  guided_gII    GuidedQuant's blocks, one for each of g groups of output channels: pairs of weights of one row
  inputs_II     X^T X / R, GPTQ's Hessian: the same without gradients

`second_derivatives` are exact, for a few weights: what these are judged by (surrogates.py).

Shape letters: O outputs, I inputs, g groups of outputs, S windows, B windows of a batch, T positions, n weights.
"""

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn

from shared.errors import BitlawError
from shared.model.transformer import token_losses
from shared.ptq.layers import block_list, matrices, weight_OI
from shared.ptq.sequential import guided_groups
from shared.quantize.calibration import Calibration
from shared.quantize.guided import GuidedCalibration

# Second derivatives are found for so many weights at once; memory grows with it.
CHUNK = 16


@dataclass
class Curvature:
    """What is known of one matrix, summed window by window."""

    outputs: int
    inputs: int
    plain: Calibration = field(init=False, repr=False)
    guided: GuidedCalibration = field(init=False, repr=False)
    positions_OI: Tensor | None = field(default=None, repr=False)
    sequences_OI: Tensor | None = field(default=None, repr=False)
    tokens: int = 0

    def __post_init__(self) -> None:
        self.plain = Calibration(self.inputs)
        self.guided = GuidedCalibration(self.inputs, self.outputs, guided_groups(self.outputs))

    @torch.no_grad()
    def add(self, x_BTI: Tensor, grad_BTO: Tensor) -> None:
        """Inputs of the layer and the gradient of the summed loss by its outputs, over whole windows."""
        self.plain.add(x_BTI)
        self.guided.add(x_BTI, grad_BTO)
        if self.positions_OI is None or self.sequences_OI is None:
            self.positions_OI = torch.zeros(self.outputs, self.inputs, device=x_BTI.device)
            self.sequences_OI = torch.zeros_like(self.positions_OI)
        x_BTI, grad_BTO = x_BTI.float(), grad_BTO.float()
        self.positions_OI += grad_BTO.square().flatten(0, 1).T @ x_BTI.square().flatten(0, 1)
        self.sequences_OI += (grad_BTO.transpose(1, 2) @ x_BTI).square().sum(0)
        self.tokens += x_BTI.shape[0] * x_BTI.shape[1]

    @property
    def position_OI(self) -> Tensor:
        return self._mean(self.positions_OI)

    @property
    def sequence_OI(self) -> Tensor:
        return self._mean(self.sequences_OI)

    @property
    def inputs_II(self) -> Tensor:
        return self.plain.hessian_II

    @property
    def guided_gII(self) -> Tensor:
        return self.guided.hessians_gII

    def _mean(self, sums_OI: Tensor | None) -> Tensor:
        if sums_OI is None:
            raise BitlawError("no gradient reached a layer: run a forward and a backward pass over some text")
        return sums_OI / self.tokens


def curvatures(model: Any, windows_ST: Tensor, tell: Callable[[], None] = lambda: None) -> dict[str, Curvature]:
    """Of every matrix of the model's blocks, by name, one window at a time; the model stays as it is.

    Raises BitlawError when a layer gives no window of outputs, or no text or gradient reaches it.
    """
    prefix, blocks = block_list(model)
    layers = {
        f"{prefix}.{k}.{name}": layer for k, block in enumerate(blocks) for name, layer in matrices(block).items()
    }
    found = {name: Curvature(*weight_OI(layer).shape) for name, layer in layers.items()}

    def watch(name: str) -> Callable[[nn.Module, tuple[Any, ...], Tensor], Tensor]:
        def note(_layer: nn.Module, arguments: tuple[Any, ...], z: Tensor) -> Tensor:
            x = arguments[0].detach()
            if x.dim() != 3:
                raise BitlawError(
                    f"{name}: its input has shape {tuple(x.shape)}, not windows of tokens: no Fisher here"
                )
            z = z if z.requires_grad else z.detach().requires_grad_()
            z.register_hook(lambda grad: found[name].add(x, grad))
            return z

        return note

    learning = [parameter for parameter in model.parameters() if parameter.requires_grad]
    handles = [layer.register_forward_hook(watch(name)) for name, layer in layers.items()]
    try:
        model.requires_grad_(False)
        for windows_BT in windows_ST.to(next(model.parameters()).device).split(1):
            with torch.enable_grad():
                _losses(model, windows_BT).sum().backward()
            tell()
    finally:
        for handle in handles:
            handle.remove()
        for parameter in learning:
            parameter.requires_grad_(True)
    return found


def second_derivatives(model: Any, layer: nn.Module, rows: int, windows_ST: Tensor) -> Tensor:
    """d2L / dw_i dw_j (n, n) of the layer's first `rows` output channels, n = rows I; L the mean loss a token.

    Exact up to rounding, by differentiating twice; symmetric in its making only up to rounding, so it is averaged with
    its transpose. Time and memory grow with n times the text: for a few hundred weights.
    """
    from torch.nn.attention import SDPBackend, sdpa_kernel

    weight = layer.weight
    assert isinstance(weight, nn.Parameter)
    transposed = not isinstance(layer, nn.Linear)
    before = {parameter: parameter.requires_grad for parameter in model.parameters()}
    try:
        model.requires_grad_(False)
        weight.requires_grad_(True)
        # The fused attention kernels can be differentiated only once.
        with torch.enable_grad(), sdpa_kernel(SDPBackend.MATH):
            loss = _losses(model, windows_ST.to(weight.device)).mean()
            (grad,) = torch.autograd.grad(loss, weight, create_graph=True)
            grad_n = (grad.T if transposed else grad)[:rows].flatten()
            parts = []
            for eye_Kn in torch.eye(len(grad_n), device=weight.device).split(CHUNK):
                (second,) = torch.autograd.grad(grad_n, weight, eye_Kn, retain_graph=True, is_grads_batched=True)
                second = second.transpose(1, 2) if transposed else second
                parts.append(second[:, :rows].flatten(1))
    finally:
        for parameter, learned in before.items():
            parameter.requires_grad_(learned)
    hessian_nn = torch.cat(parts).double()
    return (hessian_nn + hessian_nn.T) / 2


def _losses(model: Any, windows_BT: Tensor) -> Tensor:
    """Of each token but the first, nats."""
    logits_BTV = model(input_ids=windows_BT, use_cache=False).logits
    return token_losses(logits_BTV[:, :-1], windows_BT[:, 1:])
