"""Losses of a checkpoint on the validation text, as it is and quantized, paired over the same sequences."""
