"""The parts of a causal language model that are quantized: the matrices of its blocks, and its head when asked.

Shape letters: O outputs, I inputs, B sequences, T positions.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from shared.errors import BitlawError


@dataclass(frozen=True)
class Matrix:
    """Name in the model, outputs and inputs."""

    name: str
    outputs: int
    inputs: int

    @property
    def weights(self) -> int:
        return self.outputs * self.inputs


def block_list(model: Any) -> tuple[str, nn.ModuleList]:
    """The model's blocks: of its lists of modules that hold matrices, the outermost one with the most weights.

    Raises BitlawError when there is none.
    """
    best: tuple[int, str, nn.ModuleList] | None = None
    for name, module in model.named_modules():
        if not isinstance(module, nn.ModuleList):
            continue
        weights = sum(weight_OI(layer).numel() for block in module for layer in matrices(block).values())
        if weights and (best is None or weights > best[0]):
            best = (weights, name, module)
    if best is None:
        raise BitlawError("the model has no list of blocks with Linear or Conv1D layers: nothing to quantize")
    return best[1], best[2]


def matrices(block: nn.Module) -> dict[str, nn.Module]:
    """Linear layers and GPT-2's Conv1D by name, in the block's order."""
    from transformers.pytorch_utils import Conv1D

    return {name: layer for name, layer in block.named_modules() if isinstance(layer, nn.Linear | Conv1D)}


def weight_OI(layer: nn.Module) -> Tensor:
    """A view of the layer's weight with outputs first: Conv1D keeps it the other way round."""
    weight = layer.weight
    assert isinstance(weight, Tensor)
    return weight.detach() if isinstance(layer, nn.Linear) else weight.detach().T


def head(model: Any) -> tuple[str, nn.Module]:
    """The layer that makes the logits. Raises BitlawError when it is none that can be quantized."""
    layer = model.get_output_embeddings()
    for name, module in model.named_modules():
        if module is layer and isinstance(layer, nn.Linear):
            return name, layer
    raise BitlawError("the model's head is no Linear layer: leave out --head")


def tied(model: Any) -> bool:
    """Whether head and embedding are one matrix."""
    made = model.get_output_embeddings()
    return made is not None and made.weight is model.get_input_embeddings().weight


def listed(model: Any, with_head: bool) -> list[Matrix]:
    """Every matrix that is quantized, block by block, then the head when it is asked for."""
    prefix, blocks = block_list(model)
    named = [
        (f"{prefix}.{number}.{name}", layer)
        for number, block in enumerate(blocks)
        for name, layer in matrices(block).items()
    ]
    if with_head:
        named.append(head(model))
    return [Matrix(name, *weight_OI(layer).shape) for name, layer in named]


def left_alone(model: Any) -> int:
    """Weights of the blocks in tensors of two and more dimensions that are in no Linear or Conv1D: experts, say."""
    _, blocks = block_list(model)
    held = {id(layer.weight) for block in blocks for layer in matrices(block).values()}
    return sum(p.numel() for p in blocks.parameters() if p.dim() >= 2 and id(p) not in held)


def sharing(layers: Mapping[str, nn.Module], forward: Callable[[], object]) -> list[tuple[str, ...]]:
    """Which layers read the same input: those that one `forward` gives the identical tensor. In order.

    Layers that it does not reach (an expert that no token chose) come alone.
    """
    seen: dict[str, Tensor] = {}  # holding the tensors keeps their identities apart

    def note(name: str) -> Callable[[nn.Module, tuple[Any, ...]], None]:
        return lambda _layer, arguments: seen.__setitem__(name, arguments[0])

    handles = [layer.register_forward_pre_hook(note(name)) for name, layer in layers.items()]
    try:
        with torch.no_grad():
            forward()
    finally:
        for handle in handles:
            handle.remove()
    groups: dict[int, list[str]] = {}
    for name in layers:
        groups.setdefault(id(seen.get(name, layers[name])), []).append(name)
    return [tuple(group) for group in groups.values()]
