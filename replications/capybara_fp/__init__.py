"""Sun et al. 2025, Scaling Laws for Floating-Point Quantization Training (arXiv 2501.02423)."""
