"""Kumar et al. 2024, Scaling Laws for Precision (arXiv 2411.04330)."""
