"""Ouyang et al. 2024, Low-Bit Quantization Favors Undertrained LLMs (arXiv 2411.17691)."""
