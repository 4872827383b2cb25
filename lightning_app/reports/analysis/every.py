"""``show`` with every kind of result that it knows."""

from lightning_app.reports.analysis import alignment, causality, changes, finished_runs, neurons, promotion, scores
from lightning_app.reports.analysis.shown import Shown, show

__all__ = ["KINDS", "Shown", "show"]

KINDS = (neurons, scores, changes, alignment, promotion, causality, finished_runs)
"""The files that register what they show."""
