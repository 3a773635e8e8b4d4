"""Number formats as data: a name, the values it can hold, and nothing about tensors or scales.

Each format has a slow readable oracle beside its fast path.
"""
