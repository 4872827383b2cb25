"""Counting a base's activations on the text of several languages."""
