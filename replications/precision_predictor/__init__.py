"""A teaching page on precision scaling, and the two papers that it builds on (arXiv 2410.13461, 2505.07004)."""
