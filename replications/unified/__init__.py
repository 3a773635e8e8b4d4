"""One law for all: the format enters by its relative error alone. Its forms, their selection, and the tournament."""
