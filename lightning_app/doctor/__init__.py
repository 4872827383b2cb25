"""Whether a run could be made here: what is in order, what is not, and what mends it."""
