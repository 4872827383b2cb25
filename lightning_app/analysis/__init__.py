"""What is in sets of neurons, atlases and finished runs: figures as plain data, each a function of its own.

Every result is a small frozen dataclass. `lightning_app.reports.analysis` makes tables and pictures of them.
"""
