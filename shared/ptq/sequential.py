"""Quantize a model block by block: the calibration text runs through the blocks that are quantized already.

The activations of all calibration windows before block i are kept; the block reads them, its matrices' inputs are
summed up (`Calibration`), the matrices are quantized, and the block runs again to make the activations before block
i + 1 (Frantar et al., arXiv 2210.17323, section 4). So beside the model there are in memory one block's second moments,
the kept activations, and what one batch needs.

Shape letters: O outputs, I inputs, S windows, B windows of a batch, T positions, C channels, V tokens of the
vocabulary, R rows (tokens of a batch), g groups of output channels.
"""

import math
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from shared.errors import BitlawError
from shared.model.transformer import token_losses
from shared.ptq.layers import block_list, head, matrices, sharing, weight_OI
from shared.ptq.methods import Known, Method
from shared.ptq.models import release
from shared.quantize.calibration import gathering
from shared.quantize.guided import GROUPS, GuidedCalibration
from shared.quantize.quantizer import Quantizer

Tell = Callable[[], None]


@dataclass(frozen=True)
class Quantized:
    """Sums over the matrices of a model."""

    weights: int
    bits_per_weight: float
    relative_mse: float


@dataclass(frozen=True)
class Arguments:
    """What a block takes beside the hidden states: mask, positions, and so on, for one size of batch."""

    rest: tuple[Any, ...]
    named: dict[str, Any]
    by_name: bool  # the hidden states come as `hidden_states`


@torch.no_grad()
def quantize(
    model: Any,
    method: Method,
    quantizer: Quantizer | None,
    windows_ST: Tensor,
    batch: int,
    *,
    with_head: bool,
    tell: Tell,
) -> Quantized:
    """Quantize the model in place; `tell` is called after each block.

    Raises BitlawError, naming the layer, when a method cannot do it, and when the model's blocks do not simply follow
    one another.
    """
    prefix, blocks = block_list(model)
    done: list[Rounding] = []
    stream = None
    if method.needs != "nothing":
        roots = root_saliencies(model, windows_ST, with_head) if method.needs == "gradients" else {}
        stream = Stream(model, prefix, blocks, windows_ST, batch, roots)
    for number, block in enumerate(blocks):
        layers = matrices(block)
        gathered = stream.gather(number, layers) if stream else [((name,), Known()) for name in layers]
        while gathered:  # what is known of an input goes as soon as it is used
            names, known = gathered.pop(0)
            where = ", ".join(f"{prefix}.{number}.{name}" for name in names)
            release()
            done += _round([layers[name] for name in names], where, known, method, quantizer, len(done))
            del known
            for name in names if method.module else ():
                block.set_submodule(name, _module(layers[name], method))
        if stream and number + 1 < len(blocks):
            stream.advance(number)
        release()
        tell()
    if with_head:
        name, layer = head(model)
        if stream:
            stream.states_BTC.clear()
        release()
        known = _known_head(model, name, layer, windows_ST, batch, stream) if stream else Known()
        done += _round([layer], name, known, method, quantizer, len(done))
        if method.module:
            model.set_submodule(name, _module(layer, method))
        tell()
    weights = sum(one.weights for one in done)
    return Quantized(
        weights,
        sum(one.weights * one.bits for one in done) / weights,
        sum(one.error for one in done) / sum(one.norm for one in done),
    )


@dataclass(frozen=True)
class Rounding:
    """Of one matrix."""

    weights: int
    bits: float
    error: float
    norm: float


def _round(
    layers: Sequence[nn.Module], where: str, known: Known, method: Method, quantizer: Quantizer | None, seed: int
) -> list[Rounding]:
    """Quantize layers of one input in place."""
    try:
        made = method.quantize([weight_OI(layer) for layer in layers], known, quantizer, seed)
    except BitlawError as error:
        raise BitlawError(f"{where}: {error}") from error
    if not method.module:  # which takes the weights as they are
        for layer, rounded in zip(layers, made, strict=True):
            weight_OI(layer).copy_(rounded.weight)
    return [Rounding(r.weight.numel(), r.bits_per_weight, r.squared_error, r.squared_norm) for r in made]


def _module(layer: nn.Module, method: Method) -> nn.Module:
    assert method.module
    bias = layer.bias
    return method.module(weight_OI(layer), bias if isinstance(bias, Tensor) else None)


def _known_head(model: Any, name: str, layer: nn.Module, windows_ST: Tensor, batch: int, stream: "Stream") -> Known:
    """By whole passes of the model, its blocks quantized."""
    inputs = weight_OI(layer).shape[1]
    batches = list(windows_ST.to(weight_OI(layer).device).split(batch))
    with gathering({name: layer}, {name: inputs}) as found, guiding({name: layer}, stream.roots, "") as guided:
        for windows_BT in batches:
            model(input_ids=windows_BT, use_cache=False)
    return Known(found[name], tuple(one.hessians_gII for one in guided.values()))


def root_saliencies(model: Any, windows_ST: Tensor, with_head: bool) -> dict[str, Tensor]:
    """For each matrix the root of Eq. 7's mean squared gradients, (S, T, g): of the model before it is quantized.

    One window at a time goes forward and back; the loss is the sum over its tokens (shared/quantize/guided.py).
    """
    prefix, blocks = block_list(model)
    named = {f"{prefix}.{k}.{name}": layer for k, block in enumerate(blocks) for name, layer in matrices(block).items()}
    if with_head:
        name, layer = head(model)
        named[name] = layer
    found: dict[str, list[Tensor]] = {name: [] for name in named}

    def watch(name: str, groups: int) -> Callable[[nn.Module, tuple[Any, ...], Tensor], Tensor]:
        def note(_layer: nn.Module, _arguments: tuple[Any, ...], z: Tensor) -> Tensor:
            z = z if z.requires_grad else z.detach().requires_grad_()
            z.register_hook(
                lambda grad_BTO: found[name].append(grad_BTO.unflatten(-1, (groups, -1)).square().mean(-1).sqrt())
            )
            return z

        return note

    frozen = [parameter for parameter in model.parameters() if parameter.requires_grad]
    handles = [
        layer.register_forward_hook(watch(name, guided_groups(len(weight_OI(layer))))) for name, layer in named.items()
    ]
    try:
        model.requires_grad_(False)
        device = next(model.parameters()).device
        for windows_BT in windows_ST.to(device).split(1):
            with torch.enable_grad():
                logits_BTV = model(input_ids=windows_BT, use_cache=False).logits
                token_losses(logits_BTV[:, :-1], windows_BT[:, 1:]).sum().backward()
    finally:
        for handle in handles:
            handle.remove()
        for parameter in frozen:
            parameter.requires_grad_(True)
    return {name: torch.cat(parts) for name, parts in found.items() if parts}


def guided_groups(outputs: int) -> int:
    """The paper's number of groups of output channels, or the largest number below that divides them."""
    return math.gcd(outputs, GROUPS)


@contextmanager
def guiding(
    layers: dict[str, nn.Module], roots: dict[str, Tensor], prefix: str
) -> Iterator[dict[str, GuidedCalibration]]:
    """While it lasts, each layer's inputs, from the first window on, are summed with their `root_saliencies`."""
    named = {name: roots[f"{prefix}{name}"] for name in layers if f"{prefix}{name}" in roots}
    found: dict[str, GuidedCalibration] = {}
    at = dict.fromkeys(named, 0)

    def gather(name: str) -> Callable[[nn.Module, tuple[Any, ...]], None]:
        def note(_layer: nn.Module, arguments: tuple[Any, ...]) -> None:
            x = arguments[0].reshape(-1, found[name].inputs)
            root_Rg = named[name].flatten(0, 1)[at[name] : at[name] + len(x)]
            # Spread over the outputs of its group, the mean of squares is that of the gradients.
            found[name].add(x, root_Rg.repeat_interleave(found[name].outputs // found[name].groups, -1))
            at[name] += len(x)

        return note

    for name, root_STg in named.items():
        outputs, inputs = weight_OI(layers[name]).shape
        found[name] = GuidedCalibration(inputs, outputs, root_STg.shape[-1])
    handles = [layers[name].register_forward_pre_hook(gather(name)) for name in named]
    try:
        yield found
    finally:
        for handle in handles:
            handle.remove()


class Stream:
    """The hidden states of all calibration windows before one block, batch by batch; they move on with the blocks."""

    def __init__(
        self,
        model: Any,
        prefix: str,
        blocks: nn.ModuleList,
        windows_ST: Tensor,
        batch: int,
        roots: dict[str, Tensor],
    ) -> None:
        self.prefix, self.blocks, self.roots = prefix, blocks, roots
        device = next(model.parameters()).device
        batches = [windows_BT.to(device) for windows_BT in windows_ST.split(batch)]
        self.arguments: dict[int, list[Arguments]] = {}
        for number, windows_BT in enumerate(batches):
            # A second batch of the same size shows whether anything but the hidden states differs between batches.
            if len(windows_BT) not in self.arguments:
                self.arguments[len(windows_BT)] = _arguments(model, blocks, windows_BT)
            elif number == 1 and not _equal(
                [(a.rest, a.named) for a in self.arguments[len(windows_BT)]],
                [(a.rest, a.named) for a in _arguments(model, blocks, windows_BT)],
            ):
                raise BitlawError("the model gives its blocks more than hidden states of each text: use method rtn")
        self.states_BTC = _first_inputs(model, blocks, batches)

    def run(self, number: int, state_BTC: Tensor) -> Tensor:
        arguments = self.arguments[len(state_BTC)][number]
        if arguments.by_name:
            return _state(self.blocks[number](*arguments.rest, hidden_states=state_BTC, **arguments.named))
        return _state(self.blocks[number](state_BTC, *arguments.rest, **arguments.named))

    def gather(self, number: int, layers: dict[str, nn.Module]) -> list[tuple[tuple[str, ...], Known]]:
        """Layers of one input with what is known of it."""
        groups = sharing(layers, lambda: self.run(number, self.states_BTC[0]))
        first = {group[0]: layers[group[0]] for group in groups if not self.roots}
        widths = {name: weight_OI(layer).shape[1] for name, layer in first.items()}
        with gathering(first, widths) as found, guiding(layers, self.roots, f"{self.prefix}.{number}.") as guided:
            for state_BTC in self.states_BTC:
                self.run(number, state_BTC)
        if self.roots:
            # Each sum goes as soon as its mean is there.
            return [
                (group, Known(guided_gII=tuple(guided.pop(name).hessians_gII for name in group))) for group in groups
            ]
        return [(group, Known(found[group[0]])) for group in groups]

    def advance(self, number: int) -> None:
        """Through block `number`, in place."""
        for state_BTC in self.states_BTC:
            state_BTC.copy_(self.run(number, state_BTC))


class _Reached(Exception):  # noqa: N818
    """The first block was reached: what comes after is not needed."""


def _first_inputs(model: Any, blocks: nn.ModuleList, batches: list[Tensor]) -> list[Tensor]:
    """What enters the first block, batch by batch: views of one tensor, since many small ones leave holes in memory."""
    all_STC: Tensor | None = None
    parts: list[Tensor] = []
    done = 0
    for windows_BT in batches:
        first_BTC = _first_input(model, blocks, windows_BT)
        if all_STC is None:
            all_STC = first_BTC.new_empty((sum(map(len, batches)), *first_BTC.shape[1:]))
        parts.append(all_STC[done : done + len(first_BTC)].copy_(first_BTC))
        done += len(first_BTC)
    return parts


def _first_input(model: Any, blocks: nn.ModuleList, windows_BT: Tensor) -> Tensor:
    found: list[Tensor] = []

    def stop(_block: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        found.append(_hidden(args, kwargs))
        raise _Reached

    handle = blocks[0].register_forward_pre_hook(stop, with_kwargs=True)
    try:
        model(input_ids=windows_BT, use_cache=False)
    except _Reached:
        return found[0].clone()
    finally:
        handle.remove()
    raise BitlawError("the model never calls its first block: use method rtn")


def _arguments(model: Any, blocks: nn.ModuleList, windows_BT: Tensor) -> list[Arguments]:
    """Each block's arguments in one whole pass, in which every block must read what the one before it wrote."""
    found: dict[int, Arguments] = {}
    last: list[Tensor] = []

    def before(number: int) -> Callable[[nn.Module, tuple[Any, ...], dict[str, Any]], None]:
        def note(_block: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
            if number and (not last or _hidden(args, kwargs) is not last[0]):
                raise BitlawError("the model's blocks do not simply follow one another: use method rtn")
            by_name = not args
            rest = {name: value for name, value in kwargs.items() if not (by_name and name == "hidden_states")}
            found[number] = Arguments(args[1:], rest, by_name)

        return note

    def after(_block: nn.Module, _args: tuple[Any, ...], output: Any) -> None:
        last[:] = [_state(output)]

    handles = [block.register_forward_pre_hook(before(i), with_kwargs=True) for i, block in enumerate(blocks)]
    handles += [block.register_forward_hook(after) for block in blocks]
    try:
        model(input_ids=windows_BT, use_cache=False)
    finally:
        for handle in handles:
            handle.remove()
    if sorted(found) != list(range(len(blocks))):
        raise BitlawError("the model leaves out some of its blocks: use method rtn")
    return [found[number] for number in range(len(blocks))]


def _hidden(args: tuple[Any, ...], kwargs: dict[str, Any]) -> Tensor:
    state = args[0] if args else kwargs.get("hidden_states")
    if not isinstance(state, Tensor):
        raise BitlawError("the model's blocks take no hidden states first: use method rtn")
    return state


def _state(output: Any) -> Tensor:
    state = output[0] if isinstance(output, tuple) else output
    assert isinstance(state, Tensor)
    return state


def _equal(one: Any, other: Any) -> bool:
    """Whether nested arguments are the same; objects that are neither tensors nor containers are taken for equal."""
    if isinstance(one, Tensor):
        return isinstance(other, Tensor) and one.shape == other.shape and torch.equal(one, other)
    if isinstance(one, list | tuple):
        return len(one) == len(other) and all(_equal(a, b) for a, b in zip(one, other, strict=True))
    if isinstance(one, dict):
        return one.keys() == other.keys() and all(_equal(value, other[key]) for key, value in one.items())
    return True
