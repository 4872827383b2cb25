"""Neuroglot: teach a language model a language by training only the neurons that speak it."""

__version__ = "0.1.0"
