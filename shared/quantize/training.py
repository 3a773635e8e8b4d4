"""Training in low precision: which inputs of which products are cast, and to what.

Shape letters: B sequences, T positions, I inputs, O outputs of a product, R rows (B T).

A linear product and its two backward ones have six inputs (Sun et al., arXiv 2501.02423, section 2):
    Y = X W^T     P1 = X, P2 = W         dX = dY W     P3 = dY, P4 = W         dW = dY^T X     P5 = dY, P6 = X
Integer QAT casts P1 and P2 and lets the gradient pass straight through, so that the backward products read the same
cast tensors (P4 = P2, P6 = P1): `weights_backward` and `activations_backward` are then "forward". Sun casts P2, P4 and
P6. Every cast runs along the last dimension of its tensor (Sun: "along the channel (input) dimension").
"""

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from shared.errors import BitlawError, nearest
from shared.model import Decoder
from shared.model.transformer import Block, multiplied
from shared.quantize.gradients import learned_clip, straight_through
from shared.quantize.quantizer import Quantizer, fake_quantize, parse_quantizer

PRODUCTS = {
    "qkv": ("q_proj", "k_proj", "v_proj"),
    "o": ("o_proj",),
    "gate_up": ("gate_proj", "up_proj"),
    "down": ("down_proj",),
}
# Roles of the six inputs, in the order P1 to P6.
ROLES = (
    "activations",
    "weights",
    "gradients_to_inputs",
    "weights_backward",
    "gradients_to_weights",
    "activations_backward",
)
FORWARD = "forward"


@dataclass(frozen=True)
class Precision:
    """Quantizers of a training run as text (`parse_quantizer`); "none" and 16 bits or more leave a tensor alone.

    `exceptions` lists what differs, as "down.activations=INT8@8" (Chen's FC2 input), "3.qkv.weights=none" (the fourth
    block only), separated by commas. `learned_clip` learns a factor on the activations' scales (Chen's LAC).
    """

    weights: str = "none"
    activations: str = "none"
    queries: str = "none"
    keys_values: str = "none"
    weights_backward: str = FORWARD
    activations_backward: str = FORWARD
    gradients_to_inputs: str = "none"
    gradients_to_weights: str = "none"
    learned_clip: bool = False
    exceptions: str = ""

    def __post_init__(self) -> None:
        """Raises BitlawError for a quantizer or an exception that cannot be read."""
        for role in (*ROLES, "queries", "keys_values"):
            self.quantizer(role)
        for *_, role, text in self.listed():
            if role not in ROLES:
                raise BitlawError(
                    f"exceptions: {role!r} is no role{nearest(role, list(ROLES))}: use {', '.join(ROLES)}"
                )
            read(text)
        if self.learned_clip and self.quantizer("activations") is None:
            raise BitlawError("learned_clip needs quantized activations: give activations, or leave it off")
        if self.learned_clip and self.in_backward():
            raise BitlawError("learned_clip goes with forward casts only: leave the backward roles at their defaults")

    def quantizer(self, role: str) -> Quantizer | None:
        return read(getattr(self, role))

    def in_backward(self) -> bool:
        """Whether any of the backward products reads something other than what plain straight-through gives."""
        backward = [self.weights_backward, self.activations_backward] != [FORWARD, FORWARD]
        return backward or any(read(t) for t in (self.gradients_to_inputs, self.gradients_to_weights))

    def listed(self) -> list[tuple[int | None, str, str, str]]:
        """Exceptions as (block or None, product, role, quantizer). Raises BitlawError when one cannot be read."""
        found = []
        for part in filter(None, (part.strip() for part in self.exceptions.split(","))):
            place, equals, text = part.partition("=")
            names = place.split(".")
            block = int(names.pop(0)) if names[0].isdigit() else None
            if not equals or len(names) != 2 or names[0] not in PRODUCTS:
                raise BitlawError(
                    f"exceptions: {part!r} cannot be read: write [BLOCK.]PRODUCT.ROLE=QUANTIZER, as in "
                    f"down.activations=INT8@8, with a product of {', '.join(PRODUCTS)}"
                )
            found.append((block, names[0], names[1], text))
        return found

    def roles(self, block: int, product: str) -> dict[str, str]:
        """The text of each of the six roles for one product of one block."""
        roles = {role: str(getattr(self, role)) for role in ROLES}
        for where, what, role, text in self.listed():
            if where in (None, block) and what == product:
                roles[role] = text
        return roles


def read(text: str) -> Quantizer | None:
    return None if text == FORWARD else parse_quantizer(text)


def cast(x: Tensor, quantizer: Quantizer | None) -> Tensor:
    """x as the quantizer holds it, in x's type; no gradient."""
    if quantizer is None:
        return x
    return fake_quantize(x, quantizer, noise(x, quantizer)).to(x.dtype)


def noise(x: Tensor, quantizer: Quantizer) -> Tensor | None:
    """For stochastic rounding, from torch's generator (the trainer seeds it at each step)."""
    return torch.rand(x.shape, device=x.device) if quantizer.rounding == "stochastic" else None


class _SixInputs(torch.autograd.Function):
    """Y = P1 P2^T with dX = P3 P4 and dW = P5^T P6; rounding itself has gradient one (straight through)."""

    @staticmethod
    def forward(ctx: Any, x_RI: Tensor, w_OI: Tensor, casts: tuple[Quantizer | None, ...]) -> Tensor:
        ctx.save_for_backward(x_RI, w_OI)
        ctx.casts = casts
        return cast(x_RI, casts[0]) @ cast(w_OI, casts[1]).to(x_RI.dtype).T

    @staticmethod
    def backward(ctx: Any, g_RO: Tensor) -> tuple[Tensor, Tensor, None]:
        x_RI, w_OI = ctx.saved_tensors
        _, _, p3, p4, p5, p6 = ctx.casts
        dx_RI = cast(g_RO, p3) @ cast(w_OI, p4).to(g_RO.dtype)
        dw_OI = cast(g_RO, p5).T @ cast(x_RI, p6)
        return dx_RI, dw_OI.to(w_OI.dtype), None


class Product(nn.Module):
    """One linear product of a block with its six casts; takes the place of a plain one (`Block.product`)."""

    fast = False  # as the model's (`Decoder.fast`)

    def __init__(self, roles: dict[str, str], inputs: int, learn: bool) -> None:
        super().__init__()
        p1, p2, p3, p4, p5, p6 = (read(roles[role]) for role in ROLES)
        self.activations, self.weights = p1, p2
        plain = roles["weights_backward"] == FORWARD and roles["activations_backward"] == FORWARD and not (p3 or p5)
        p4 = p2 if roles["weights_backward"] == FORWARD else p4
        p6 = p1 if roles["activations_backward"] == FORWARD else p6
        six = (p1, p2, p3, p4, p5, p6)
        self.six = None if plain or not any(six) else six
        self.weights_only = self.six is None and p1 is None
        self.gamma_G: nn.Parameter | None = None
        if learn and p1 is not None:
            groups = 1 if p1.group == "tensor" else inputs // p1.group_size(inputs)
            self.gamma_G = nn.Parameter(torch.ones(groups))

    def forward(self, x_BTI: Tensor, weights: list[Tensor]) -> Tensor:
        dtype = x_BTI.dtype
        if self.six is not None:
            w_OI = torch.cat(weights)
            return _SixInputs.apply(x_BTI.flatten(0, 1), w_OI, self.six).unflatten(0, x_BTI.shape[:2])
        if self.activations is not None and self.gamma_G is not None:
            x_BTI = learned_clip(x_BTI, self.activations, self.gamma_G).to(dtype)
        elif self.activations is not None:
            x_BTI = straight_through(x_BTI, self.activations, noise(x_BTI, self.activations)).to(dtype)
        if self.weights is not None:
            weights = [straight_through(w, self.weights, noise(w, self.weights)) for w in weights]
        weights = [w.to(dtype) for w in weights]
        return multiplied(x_BTI, torch.cat(weights) if len(weights) > 1 else weights[0], self.fast)


class Rounded(nn.Module):
    """Queries, keys or values, (B, T, H, K), cast straight through; a token's or channel's scale spans a head."""

    def __init__(self, quantizer: Quantizer) -> None:
        super().__init__()
        self.quantizer = quantizer

    def forward(self, x_BTHK: Tensor) -> Tensor:
        return straight_through(x_BTHK, self.quantizer, noise(x_BTHK, self.quantizer)).to(x_BTHK.dtype)


def attach(model: Decoder, precision: Precision) -> None:
    """Give each block of the model its casts; nothing where nothing is cast, so that 16 bits stay bit-identical.

    Raises BitlawError when a group does not divide a matrix, or an exception names a block that is not there.
    """
    for block, *_ in precision.listed():
        if block is not None and block >= len(model.layers):
            raise BitlawError(
                f"exceptions: block {block} is not there, the model has {len(model.layers)}, counted from 0"
            )
    query, key_value = precision.quantizer("queries"), precision.quantizer("keys_values")
    for number, layer in enumerate(model.layers):
        assert isinstance(layer, Block)
        for product, names in PRODUCTS.items():
            roles = precision.roles(number, product)
            outputs, inputs = getattr(layer, names[0]).weight.shape
            made = Product(roles, inputs, precision.learned_clip)
            if made.six is None and made.activations is None and made.weights is None:
                continue
            for role in ROLES:
                quantizer = read(roles[role])
                if quantizer is not None:
                    quantizer.group_size(outputs if role.startswith("gradients") else inputs)
            layer.casts[product] = made
        for name, quantizer in (("query", query), ("key", key_value), ("value", key_value)):
            if quantizer is not None:
                quantizer.group_size(model.shape.head_size)
                layer.casts[name] = Rounded(quantizer)


def stochastic(precision: Precision) -> bool:
    """Whether any cast draws random numbers."""
    texts = [getattr(precision, role) for role in (*ROLES, "queries", "keys_values")]
    texts += [text for *_, text in precision.listed()]
    return any(q is not None and q.rounding == "stochastic" for q in map(read, texts))


@torch.no_grad()
def baked(model: Decoder) -> Decoder:
    """A plain model whose matrices are what the products of a weight-quantized one read: for export, in FP32.

    Raises BitlawError when activations, queries, keys or values are cast too: no plain model computes that.
    """
    plain = Decoder(model.shape)
    names = dict(plain.named_parameters())
    plain.load_state_dict({name: value for name, value in model.state_dict().items() if name in names}, strict=False)
    for number, (layer, bare) in enumerate(zip(model.layers, plain.layers, strict=True)):
        assert isinstance(layer, Block)
        for name, made in layer.casts.items():
            if not isinstance(made, Product) or made.activations is not None:
                raise BitlawError(f"block {number} casts more than weights ({name}): a plain model cannot hold that")
            if made.weights is None:
                continue
            for projection in PRODUCTS[name]:
                weight_OI = getattr(layer, projection).weight
                getattr(bare, projection).weight.copy_(cast(weight_OI, made.weights))
    return plain.eval()
