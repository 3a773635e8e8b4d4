"""What compares the papers: the common held-out set now, laws against laws on one table later."""
