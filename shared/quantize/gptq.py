"""GPTQ (Frantar et al., arXiv 2210.17323): round a matrix column by column, and let the columns that are still free
make up for each error, so that the outputs on the calibration inputs change least.

With H = X^T X and U the upper Cholesky factor of H^-1, column i is rounded, and its error over U_ii times U_i,j is
taken from every later column j. That is done inside a block of columns at once, and for all later blocks as one
product ("lazy batch updates", section 3.3).

Shape letters: O outputs, I inputs, R calibration rows, G groups, E elements of a group, B columns of a block.
"""

import math

import torch
from torch import Tensor

from shared.errors import BitlawError
from shared.quantize.quantizer import Quantizer, cast_scaled, scales, tensor_scale
from shared.quantize.rtn import Rounded, measured

# Columns of a lazy batch: the paper's 128. Wider ones move work from products into the column loop.
BLOCK = 128
# Shares of the mean diagonal that are added to it, one after the other, until H can be factored.
DAMPINGS = (1.0, 10.0, 100.0)


@torch.no_grad()
def gptq(
    weight_OI: Tensor,
    hessian_II: Tensor,
    quantizer: Quantizer,
    damping: float = 0.01,
    act_order: bool = False,
    block: int = BLOCK,
) -> Rounded:
    """Quantize a matrix for the inputs that made `hessian_II` (any multiple of X^T X), in FP32 on the weight's device.

    damping     share of the mean diagonal added to it; ten and a hundred times that when the factorisation fails
    act_order   most active inputs first. The scales are then those of the weight before any correction ("static
                groups"), so that groups stay contiguous; else a group's scales are taken when its first column is
                reached, from the corrected weights of the whole group, also inside a block.
    Inputs that are always zero get zero weights.
    Raises BitlawError when the group does not divide I, the weight or H is not finite, H cannot be factored, or
    rounding is stochastic.
    """
    if quantizer.rounding == "stochastic":
        raise BitlawError(f"gptq rounds to nearest, {quantizer} is stochastic: leave out ':sr'")
    if not bool(torch.isfinite(weight_OI).all()):
        raise BitlawError("the weight has NaN or infinite values: quantize a sound checkpoint")
    inputs = weight_OI.shape[1]
    size = quantizer.group_size(inputs)
    # Rows of the transpose are what the loop reads and writes: contiguous.
    weight_IO = weight_OI.T.float().contiguous()
    never_I = hessian_II.diagonal() == 0
    weight_IO[never_I] = 0.0
    shared_scale = tensor_scale(weight_IO, quantizer)

    def grid(group_EO: Tensor) -> tuple[Tensor, Tensor | None]:
        """Scale and zero point (O,) of a group of columns."""
        scale, zero = scales(group_EO.T.unsqueeze(1), quantizer, shared_scale)
        return scale.flatten(), None if zero is None else zero.flatten()

    order_I = torch.arange(inputs, device=weight_IO.device)
    static: list[tuple[Tensor, Tensor | None]] | None = None
    if quantizer.group == "tensor":
        scale, zero = scales(weight_IO.reshape(1, 1, -1), quantizer, shared_scale)
        static = [(scale.reshape(1), None if zero is None else zero.reshape(1))]
    elif act_order:
        static = [grid(weight_IO[start : start + size]) for start in range(0, inputs, size)]
    if act_order:
        order_I = hessian_II.diagonal().argsort(descending=True, stable=True)
    upper_II = inverse_factor(hessian_II, never_I, order_I, damping)
    weight_IO = weight_IO[order_I]
    group_of = (order_I // size).tolist()
    # A group starts with a block or lies inside one, so that its scales see every correction.
    block = block // size * size if size <= block else max(d for d in range(1, block + 1) if size % d == 0)
    rounded_IO = torch.empty_like(weight_IO)
    scale, zero = static[0] if static else (weight_IO, None)
    for start in range(0, inputs, block):
        stop = min(start + block, inputs)
        block_BO = weight_IO[start:stop]
        error_BO = torch.empty_like(block_BO)
        upper_BB = upper_II[start:stop, start:stop]
        diagonal = upper_BB.diagonal().tolist()
        for i in range(stop - start):
            if static and act_order:
                scale, zero = static[group_of[start + i]] if len(static) > 1 else static[0]
            elif not static and (start + i) % size == 0:
                scale, zero = grid(weight_IO[start + i : start + i + size])
            column_O = block_BO[i]
            cast_O = rounded_IO[start + i]
            torch.mul(cast_scaled(column_O, scale, zero, quantizer.format, quantizer.rounding), scale, out=cast_O)
            torch.sub(column_O, cast_O, out=error_BO[i]).div_(diagonal[i])
            block_BO[i + 1 :].addr_(upper_BB[i, i + 1 :], error_BO[i], alpha=-1)
        weight_IO[stop:].addmm_(upper_II[start:stop, stop:].T, error_BO, alpha=-1)
    back_IO = torch.empty_like(rounded_IO)
    back_IO[order_I] = rounded_IO
    return measured(back_IO.T.contiguous(), weight_OI.float(), quantizer)


def inverse_factor(hessian_II: Tensor, never_I: Tensor, order_I: Tensor, damping: float) -> Tensor:
    """U, upper triangular, with U^T U = (H + damping)^-1, in the order of the columns."""
    mean = hessian_II.diagonal().float().mean().item()
    if not math.isfinite(mean):
        raise BitlawError("the calibration inputs have NaN or infinite values: quantize a sound checkpoint")
    for factor in DAMPINGS:
        damped_II = hessian_II[order_I][:, order_I].float()
        damped_II.diagonal().add_(never_I[order_I].float()).add_(factor * damping * mean)
        lower_II, failed = torch.linalg.cholesky_ex(damped_II)
        if failed:
            continue
        upper_II, failed = torch.linalg.cholesky_ex(torch.cholesky_inverse(lower_II), upper=True)
        if not failed:
            return upper_II.contiguous()
    raise BitlawError(
        f"the Hessian of a layer is singular even with damping {DAMPINGS[-1] * damping:g}: give more calibration text"
    )
