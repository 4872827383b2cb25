"""Measurements against the bound of frozen training and against other ways to train few parameters."""
