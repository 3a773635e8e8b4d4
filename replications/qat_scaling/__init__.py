"""Chen et al. 2025, Scaling Law for Quantization-Aware Training (arXiv 2505.14302)."""
