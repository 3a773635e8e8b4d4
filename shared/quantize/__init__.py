"""Quantizers composed from grid, scale rule, rounding and (in training) gradient estimator; PTQ methods."""
