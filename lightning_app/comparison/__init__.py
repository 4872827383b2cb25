"""Finished runs beside one another: what they gained, what they kept, and what can be told apart."""
