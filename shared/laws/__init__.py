"""Scaling laws as data, and their fit to a table: law, cells, noise, solver, intervals, elasticities.

Only numpy, scipy and pandas are used. Nothing here knows a paper, a model or a training loop; a paper's law is a `Law`
in its folder of `replications`.
"""
