"""Runs that other groups have published: where they come from, and the papers' laws refitted to them."""
