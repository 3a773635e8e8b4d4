"""Layers that compute with 8- and 4-bit weights on the CPU, by the kernels that torch has for it.

Weights are what `fake_quantize` makes of INT8@channel:bf16 and INT4@32:bf16, kept as integers and scales in BF16. torch
has no kernel for 3 bits: that width can be simulated, and has no speed here.

Shape letters: O outputs, I inputs, R rows (tokens), G groups of inputs.
"""

from typing import Any

import torch
from torch import Tensor, nn

from shared.errors import BitlawError
from shared.ptq.layers import block_list, matrices, weight_OI
from shared.quantize.quantizer import named_quantizer, with_scales

GROUP = 32
OUTPUTS = 16  # int4 kernel: outputs come in blocks of so many
QUANTIZERS = {8: "INT8@channel:bf16", 4: f"INT4@{GROUP}:bf16", 3: f"INT3@{GROUP}:bf16"}
ZERO = 8  # of the int4 kernel: codes 0 to 15 stand for -8 to 7


class Int8Linear(nn.Module):
    """x W' + b with INT8 weights and one scale for each output; activations in BF16."""

    codes: Tensor
    scales: Tensor
    bias: Tensor | None

    def __init__(self, weight: Tensor, bias: Tensor | None) -> None:
        super().__init__()
        codes_OI, scales_O1 = _codes(weight, 8)
        self.register_buffer("codes", codes_OI.to(torch.int8).contiguous())
        self.register_buffer("scales", scales_O1[:, 0].to(torch.bfloat16))
        self.register_buffer("bias", None if bias is None else bias.detach().to(torch.bfloat16))

    def forward(self, x: Tensor) -> Tensor:
        y_RO = torch._weight_int8pack_mm(x.reshape(-1, x.shape[-1]), self.codes, self.scales)
        return _out(y_RO, self.bias, x)


class Int4Linear(nn.Module):
    """x W' + b with INT4 weights in groups of 32 inputs; activations in BF16."""

    packed: Tensor
    scales: Tensor
    bias: Tensor | None

    def __init__(self, weight: Tensor, bias: Tensor | None) -> None:
        super().__init__()
        codes_OI, scales_OG = _codes(weight, 4)
        packed = torch._convert_weight_to_int4pack_for_cpu((codes_OI + ZERO).to(torch.int32).contiguous(), 1)
        scales_GO = scales_OG.T.to(torch.bfloat16)
        self.register_buffer("packed", packed)
        self.register_buffer("scales", torch.stack([scales_GO, torch.zeros_like(scales_GO)], -1).contiguous())
        self.register_buffer("bias", None if bias is None else bias.detach().to(torch.bfloat16))

    def forward(self, x: Tensor) -> Tensor:
        y_RO = torch._weight_int4pack_mm_for_cpu(x.reshape(-1, x.shape[-1]), self.packed, GROUP, self.scales)
        return _out(y_RO, self.bias, x)


KERNELS: dict[int, type[nn.Module]] = {8: Int8Linear, 4: Int4Linear}


def _codes(weight_OI: Tensor, bits: int) -> tuple[Tensor, Tensor]:
    """Integers (O, I) and scales (O, G)."""
    quantizer = named_quantizer(QUANTIZERS[bits])
    w_OGE, scale_OG1, _ = with_scales(weight_OI.detach().float(), quantizer)
    safe_OG1 = torch.where(scale_OG1 > 0, scale_OG1, torch.ones_like(scale_OG1))
    codes_OGE = (w_OGE / safe_OG1).round().clamp(-quantizer.format.limit, quantizer.format.limit)
    return codes_OGE.reshape(weight_OI.shape), scale_OG1.squeeze(-1)


def _out(y_RO: Tensor, bias: Tensor | None, x: Tensor) -> Tensor:
    return (y_RO if bias is None else y_RO + bias).reshape(*x.shape[:-1], -1)


def refuses(model: Any, bits: int) -> str | None:
    """Why torch has no kernel for the model's matrices at this width on its device, or None."""
    if bits not in KERNELS:
        return f"torch has no {bits}-bit kernel"
    if next(model.parameters()).device.type != "cpu":
        return "the kernels that are used here are the CPU's"
    for block in block_list(model)[1]:
        for name, layer in matrices(block).items():
            outputs, inputs = weight_OI(layer).shape
            if bits == 4 and (outputs % OUTPUTS or inputs % GROUP):
                return f"the 4-bit kernel takes {OUTPUTS}k outputs and {GROUP}k inputs; {name} has {outputs} x {inputs}"
    return None


def replace_layers(model: Any, bits: int) -> Any:
    """The model in BF16, in place, its blocks' matrices at so many bits. Raises BitlawError as `refuses` says."""
    reason = refuses(model, bits)
    if reason:
        raise BitlawError(reason)
    made = {
        (number, name): KERNELS[bits](weight_OI(layer), layer.bias if isinstance(layer.bias, Tensor) else None)
        for number, block in enumerate(block_list(model)[1])
        for name, layer in matrices(block).items()
    }
    model.to(torch.bfloat16)
    blocks = block_list(model)[1]
    for (number, name), layer in made.items():
        blocks[number].set_submodule(name, layer)
    return model.eval()
