"""Figures as seaborn-styled matplotlib, one module a kind: the same numbers give the same SVG and PNG bytes."""
