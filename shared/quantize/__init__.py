"""Quantizers composed from format, scale rule, rounding and (in training) gradient estimator; PTQ methods."""

from shared.quantize.gradients import clipped_straight_through, learned_clip, straight_through
from shared.quantize.quantizer import Quantizer, fake_quantize, parse_quantizer

__all__ = [
    "Quantizer",
    "clipped_straight_through",
    "fake_quantize",
    "learned_clip",
    "parse_quantizer",
    "straight_through",
]
