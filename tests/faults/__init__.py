"""What may go wrong on a machine, done on purpose: a file a family of faults.

Not part of a normal run: `make test-faults` runs all, `pytest -m "faults and not long"` a sample of minutes. Whatever
happens, no finished row is lost and none is wrong: each test ends by comparing with an undisturbed run.
"""
