"""``show`` with every kind of result that it knows."""

from lightning_app.reports.analysis import changes, neurons, scores
from lightning_app.reports.analysis.shown import Shown, show

__all__ = ["KINDS", "Shown", "show"]

KINDS = (neurons, scores, changes)
"""The files that register what they show."""
