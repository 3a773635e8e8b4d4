"""Frantar et al. 2025, Compression Scaling Laws: Unifying Sparsity and Quantization (arXiv 2502.16440)."""
