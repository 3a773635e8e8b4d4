"""Training: one trunk at a constant learning rate, and a cooldown branch from it at each horizon.

`recipe` says what changes the numbers, `batches` which tokens a step sees, `trunk` runs the loop, `state` keeps it.
"""
