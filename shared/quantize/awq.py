"""AWQ (Lin et al., arXiv 2306.00978): scale up the inputs' columns that matter before rounding, and their inputs down.

Column i of the matrices that share an input is multiplied by s_i = (mean |x_i|)^alpha before rounding, and the input is
divided by it; whatever makes that input (a norm's gain, the matrix before) takes the 1 / s_i, so it costs no bits. The
one alpha of a grid that changes the outputs least is kept. Then each group's range may be clipped, by the same measure.

The authors' code compares the outputs of a whole attention or feed-forward block for alpha; here it is the outputs of
the matrices themselves, which their second moments give without running the block.

Shape letters: O outputs, I inputs, G groups, E elements of a group.
"""

from collections.abc import Sequence

import torch
from torch import Tensor

from shared.errors import BitlawError
from shared.quantize.calibration import Calibration
from shared.quantize.quantizer import Quantizer, fake_quantize
from shared.quantize.rtn import Rounded, measured

# llm-awq, auto_scale.py: 20 alphas from 0 on; auto_clip.py: the range shrunk by up to a half in steps of a twentieth.
ALPHAS = tuple(k / 20 for k in range(20))
CLIPS = tuple(1 - k / 20 for k in range(10))
SMALLEST_SCALE = 1e-4


@torch.no_grad()
def awq(
    weights_OI: Sequence[Tensor], calibration: Calibration, quantizer: Quantizer, clip: bool = True
) -> tuple[list[Rounded], Tensor]:
    """Quantize the matrices that read one input; they come back unscaled again (for the input as it is), and s (I).

    `clip` also searches each group's range (llm-awq leaves queries and keys out of that).
    Raises BitlawError when the group does not divide I or a weight is not finite.
    """
    for weight_OI in weights_OI:
        if not bool(torch.isfinite(weight_OI).all()):
            raise BitlawError("the weight has NaN or infinite values: quantize a sound checkpoint")
    hessian_II = calibration.hessian_II
    all_OI = torch.cat([weight_OI.float() for weight_OI in weights_OI])
    best_I, least = torch.ones_like(calibration.mean_abs_I), torch.inf
    for alpha in ALPHAS:
        scale_I = input_scales(calibration.mean_abs_I, alpha)
        difference_OI = fake_quantize(all_OI * scale_I, quantizer) / scale_I - all_OI
        error = (difference_OI @ hessian_II * difference_OI).sum().item()
        if error < least:
            best_I, least = scale_I, error
    scaled_OI = all_OI * best_I
    if clip:
        scaled_OI = clipped(scaled_OI, hessian_II / torch.outer(best_I, best_I), quantizer)
    rounded_OI = fake_quantize(scaled_OI, quantizer) / best_I
    parts = rounded_OI.split([len(weight_OI) for weight_OI in weights_OI])
    made = [measured(part, weight.float(), quantizer) for part, weight in zip(parts, weights_OI, strict=True)]
    return made, best_I


def input_scales(mean_abs_I: Tensor, alpha: float) -> Tensor:
    """(mean |x|)^alpha, bounded below, and centred so that the largest times the smallest is one."""
    scale_I = mean_abs_I.pow(alpha).clamp_min(SMALLEST_SCALE)
    return scale_I / (scale_I.max() * scale_I.min()).sqrt()


def clipped(weight_OI: Tensor, hessian_II: Tensor, quantizer: Quantizer) -> Tensor:
    """Each group of each output clipped to the share of its largest magnitude that changes its own output least."""
    outputs, inputs = weight_OI.shape
    size = quantizer.group_size(inputs)
    weight_OGE = weight_OI.reshape(outputs, -1, size)
    # The blocks of H on the diagonal: a group's error counts alone, as in llm-awq.
    hessian_GEE = torch.stack([hessian_II[k : k + size, k : k + size] for k in range(0, inputs, size)])
    most_OG1 = weight_OGE.abs().amax(-1, keepdim=True)
    best_OGE, least_OG1 = weight_OGE, torch.full_like(most_OG1, torch.inf)
    for ratio in CLIPS:
        narrow_OGE = torch.clamp(weight_OGE, -most_OG1 * ratio, most_OG1 * ratio)
        rounded_OI = fake_quantize(narrow_OGE.reshape(outputs, inputs), quantizer)
        difference_OGE = rounded_OI.reshape(weight_OGE.shape) - weight_OGE
        through_OGE = torch.einsum("oge,gef->ogf", difference_OGE, hessian_GEE)
        error_OG1 = (through_OGE * difference_OGE).sum(-1, keepdim=True)
        better_OG1 = error_OG1 < least_OG1
        best_OGE = torch.where(better_OG1, narrow_OGE, best_OGE)
        least_OG1 = torch.where(better_OG1, error_OG1, least_OG1)
    return best_OGE.reshape(outputs, inputs)
