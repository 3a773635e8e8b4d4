"""What a checkpoint is like inside: kurtosis of what its products read, how far its weights have moved, and whether it
copies from its context.

Shape letters: S windows, T positions, B windows of a batch, I inputs of a product.
"""

from collections import defaultdict
from collections.abc import Callable

import torch
from torch import Tensor

from shared.evaluate.losses import BATCH_SEQUENCES
from shared.model import Decoder
from shared.model.transformer import Block, Linear, token_losses
from shared.quantize.training import PRODUCTS


@torch.no_grad()
def input_kurtosis(model: Decoder, windows_ST: Tensor) -> dict[str, float]:
    """Fourth moment over the squared second of all values that a product reads (3 for Gaussians), by product.

    About zero, pooled over blocks, positions and channels; of a model with casts, before its inputs are cast.
    """
    sums: dict[str, Tensor] = defaultdict(lambda: torch.zeros(3, dtype=torch.float64))

    def watched(block: Block) -> Callable[..., Tensor]:
        def product(name: str, x_BTI: Tensor, *layers: Linear) -> Tensor:
            square = x_BTI.double().square()
            sums[name] += torch.stack((square.new_tensor(square.numel()), square.sum(), square.square().sum())).cpu()
            return Block.product(block, name, x_BTI, *layers)

        return product

    blocks = [block for block in model.layers if isinstance(block, Block)]
    try:
        for block in blocks:
            # Beside the class's own method, which stays what computes: casts and plain products alike.
            object.__setattr__(block, "product", watched(block))
        for windows_BT in windows_ST.split(BATCH_SEQUENCES):
            model(windows_BT[:, :-1].to(model.lm_head.weight.device), torch.float32)
    finally:
        for block in blocks:
            vars(block).pop("product", None)
    return {name: float(count * fourth / second**2) for name, (count, second, fourth) in sums.items()}


def weight_change(before: dict[str, Tensor], after: dict[str, Tensor]) -> dict[str, float]:
    """Squared change of the matrices over their squared norm before, by product and for `all`: as `relative_mse`."""
    parts: dict[str, list[float]] = defaultdict(lambda: [0.0, 0.0])
    for name, old in before.items():
        product = next((p for p, matrices in PRODUCTS.items() if name.split(".")[-2] in matrices), None)
        if product is None or not name.startswith("layers.") or old.dim() != 2:
            continue
        change, norm = float((after[name].double() - old).square().sum()), float(old.double().square().sum())
        for key in (product, "all"):
            parts[key][0] += change
            parts[key][1] += norm
    return {key: change / norm for key, (change, norm) in parts.items()}


@torch.no_grad()
def copying(model: Decoder, windows_ST: Tensor) -> float:
    """Nats per token by which the second half of a window is easier than the first when it is the first once more: what
    a model gains by copying from its context.

    Models learn this within few steps, as heads of two layers join (induction heads, Olsson et al., arXiv 2209.11895).
    Each half is predicted from its second token on, so that both have the same targets.
    """
    half = windows_ST.shape[1] // 2
    twice_ST = windows_ST[:, :half].repeat(1, 2)
    device = model.lm_head.weight.device
    first, second = 0.0, 0.0
    for windows_BT in twice_ST.split(BATCH_SEQUENCES):
        windows_BT = windows_BT.to(device)
        losses_BT = token_losses(model(windows_BT[:, :-1], torch.float32), windows_BT[:, 1:])
        first += float(losses_BT[:, : half - 1].double().sum())
        second += float(losses_BT[:, half:].double().sum())
    return (first - second) / (len(twice_ST) * (half - 1))
