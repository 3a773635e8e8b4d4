"""The decoder-only transformer that every run trains, its parameter count, and its form in `transformers`."""

from shared.model.shape import Shape
from shared.model.transformer import Decoder

__all__ = ["Decoder", "Shape"]
