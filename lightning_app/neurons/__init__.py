"""Which neurons speak which language: sets of neurons, activation counts, and how sets are chosen from them."""
