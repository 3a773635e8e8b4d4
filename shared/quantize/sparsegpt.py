"""Post-training sparsity of a weight matrix: by magnitude, and by SparseGPT (Frantar and Alistarh, arXiv 2301.00774),
alone or with quantization of the weights that stay.

SparseGPT is GPTQ's loop over columns with another rounding: a pruned weight becomes zero, and the columns that are
still free make up for it. With U the upper Cholesky factor of H^-1, U_jj^2 is entry j of the inverse of what is left of
H at column j, so w^2 / U_jj^2 is the error that pruning w causes after the best correction (OBS, section 3.1; the
paper's Algorithm 1 calls U itself H^-1, hence its square of the diagonal).

Bits per weight: a kept weight takes its format's bits (16, those of BF16, when it is not quantized), a pruned one none;
scales and zero points count for every group, empty or not; and the mask takes 1 bit a weight. Unstructured that is a
bitmap (so 50 % at 4 bits costs 3 bits and the scales). 2:4 stores two indices of 2 bits for each four weights, which is
1 bit a weight too; the least possible would be log2(6) / 4 = 0.65. A share of 0 needs no mask.

Shape letters: O outputs, I inputs, E columns of a group or of a span, B columns of a block.
"""

import torch
from torch import Tensor

from shared.errors import BitlawError
from shared.quantize.gptq import BLOCK, inverse_factor
from shared.quantize.quantizer import Quantizer, cast_scaled, scales, tensor_scale
from shared.quantize.rtn import Rounded, round_to_nearest
from shared.quantize.sparsity import Sparsity, mask_of

# Columns among which an unstructured mask is chosen: the paper's B_s (section 3.3).
MASK_BLOCK = 128
MASK_BITS = 1.0
# A kept weight that is not quantized: BF16.
PLAIN_BITS = 16.0


@torch.no_grad()
def magnitude(
    weight_OI: Tensor, share: float, pattern: str = "unstructured", quantizer: Quantizer | None = None, seed: int = 0
) -> Rounded:
    """Set the smallest magnitudes to zero (`mask_of`) and round the others to nearest, in FP32.

    Scales are those of the whole groups, as in `sparsegpt`; `seed` is for stochastic rounding.
    Raises BitlawError for a share outside [0, 1), an unknown pattern, 2:4 with another share than 1/2 or with inputs
    that four does not divide, a group that does not divide them, and a weight that is not finite.
    """
    _check(weight_OI, share, pattern)
    kept_OI = mask_of(weight_OI, share, pattern)
    made_OI = weight_OI.float() if quantizer is None else round_to_nearest(weight_OI, quantizer, seed).weight
    return _measured(torch.where(kept_OI, made_OI, 0.0), kept_OI, weight_OI, quantizer)


@torch.no_grad()
def sparsegpt(
    weight_OI: Tensor,
    hessian_II: Tensor,
    share: float,
    pattern: str = "unstructured",
    quantizer: Quantizer | None = None,
    damping: float = 0.01,
    block: int = BLOCK,
    mask_block: int = MASK_BLOCK,
) -> Rounded:
    """Prune a matrix for the inputs that made `hessian_II` (any multiple of X^T X), in FP32 on the weight's device.

    share       of zeros, int(share O I) weights; each `mask_block` columns have the same share, spread freely over
                them and the rows (Algorithm 1). The mask is chosen when their first column is reached, from weights
                with every correction so far
    pattern     unstructured, or 2:4 with share 1/2: two zeros in each four inputs of a row, chosen at the first of them
    quantizer   rounds the kept weights in the same pass (section 3.5), with a group's scales taken when its first
                column is reached, from all its weights as GPTQ does. A share of 0 is `gptq`, bit for bit
    damping     as in `gptq`, with its retries
    block       columns of a lazy batch: the work, not the result
    Inputs that are always zero get zero weights, which are the first to be pruned.
    Raises BitlawError as `magnitude` does, and when H is not finite or cannot be factored, or rounding is stochastic.
    """
    _check(weight_OI, share, pattern)
    if quantizer is not None and quantizer.rounding == "stochastic":
        raise BitlawError(f"sparsegpt rounds to nearest, {quantizer} is stochastic: leave out ':sr'")
    if pattern == "2:4" and weight_OI.shape[1] % 4:
        raise BitlawError(f"2:4 sparsity needs a multiple of 4 inputs, a matrix has {weight_OI.shape[1]}")
    # Rows of the transpose are what the loop reads and writes: contiguous.
    weight_IO = weight_OI.T.float().contiguous()
    inputs, outputs = weight_IO.shape
    never_I = hessian_II.diagonal() == 0
    weight_IO[never_I] = 0.0
    upper_II = inverse_factor(hessian_II, never_I, torch.arange(inputs, device=weight_IO.device), damping)
    price_I1 = upper_II.diagonal().square().unsqueeze(1)
    kept_IO = torch.ones_like(weight_IO, dtype=torch.bool)
    made_IO = torch.empty_like(weight_IO)
    span = (4 if pattern == "2:4" else mask_block) if share else inputs
    size = inputs
    if quantizer is not None:
        size = quantizer.group_size(inputs)
        shared = tensor_scale(weight_IO, quantizer)
        # As in gptq: a group starts with a block or lies inside one, so that its scales see every correction.
        block = block // size * size if size <= block else max(d for d in range(1, block + 1) if size % d == 0)

    for start in range(0, inputs, block):
        stop = min(start + block, inputs)
        block_BO = weight_IO[start:stop]
        error_BO = torch.empty_like(block_BO)
        upper_BB = upper_II[start:stop, start:stop]
        diagonal = upper_BB.diagonal().tolist()
        for i in range(stop - start):
            column = start + i
            if share and column % span == 0:
                last = min(column + span, inputs)
                span_EO = weight_IO[column:last]
                if last > stop:  # the columns beyond the block still lack its corrections
                    beyond_EO = weight_IO[stop:last].addmm(upper_II[start:column, stop:last].T, error_BO[:i], alpha=-1)
                    span_EO = torch.cat((block_BO[i:], beyond_EO))
                score_EO = span_EO.square() / price_I1[column:last]
                if pattern == "2:4":
                    kept_IO[column:last] = _best_two(score_EO)
                else:  # so that the spans add up to int(share O I)
                    zeros = int(share * (last * outputs)) - int(share * (column * outputs))
                    kept_IO[column:last] = _all_but(zeros, score_EO)
            column_O, made_O = block_BO[i], made_IO[column]
            if quantizer is None:
                made_O.copy_(column_O)
            else:
                if column % size == 0:
                    whole = quantizer.group == "tensor"
                    group = weight_IO.reshape(1, 1, -1) if whole else weight_IO[column : column + size].T.unsqueeze(1)
                    scale, zero = scales(group, quantizer, shared)
                    scale, zero = scale.flatten(), None if zero is None else zero.flatten()
                cast_O = cast_scaled(column_O, scale, zero, quantizer.format, quantizer.rounding)
                torch.mul(cast_O, scale, out=made_O)
            made_O.masked_fill_(~kept_IO[column], 0.0)
            torch.sub(column_O, made_O, out=error_BO[i]).div_(diagonal[i])
            block_BO[i + 1 :].addr_(upper_BB[i, i + 1 :], error_BO[i], alpha=-1)
        weight_IO[stop:].addmm_(upper_II[start:stop, stop:].T, error_BO, alpha=-1)
    return _measured(made_IO.T.contiguous(), kept_IO.T, weight_OI, quantizer)


def _check(weight_OI: Tensor, share: float, pattern: str) -> None:
    Sparsity(share, pattern)  # its rules for share and pattern are these
    if not bool(torch.isfinite(weight_OI).all()):
        raise BitlawError("the weight has NaN or infinite values: prune a sound checkpoint")


def _all_but(zeros: int, score_EO: Tensor) -> Tensor:
    """True but for the lowest scores; of equal ones the earlier go first."""
    kept = torch.ones(score_EO.numel(), dtype=torch.bool, device=score_EO.device)
    kept[score_EO.flatten().argsort(stable=True)[:zeros]] = False
    return kept.view(score_EO.shape)


def _best_two(score_EO: Tensor) -> Tensor:
    """Of four inputs True for the two highest of each output."""
    lowest = score_EO.argsort(dim=0, stable=True)[:2]
    return torch.ones_like(score_EO, dtype=torch.bool).scatter_(0, lowest, False)


def _measured(made_OI: Tensor, kept_OI: Tensor, weight_OI: Tensor, quantizer: Quantizer | None) -> Rounded:
    """What the pruned matrix takes by the rule above and loses."""
    outputs, inputs = weight_OI.shape
    zeros = weight_OI.numel() - int(kept_OI.sum())
    element = PLAIN_BITS if quantizer is None else quantizer.format.bits
    bits = PLAIN_BITS if quantizer is None else quantizer.bits_per_value(inputs, outputs)
    if zeros:
        bits += MASK_BITS - element * (zeros / weight_OI.numel())
    error = (made_OI - weight_OI).double().square().sum().item()
    return Rounded(made_OI, bits, error, weight_OI.double().square().sum().item())
