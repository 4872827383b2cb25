"""Gain in the target against what other languages lose, and what methods lose at the same gain."""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import pairwise
from operator import attrgetter
from pathlib import Path

from lightning_app.comparison.ranking import Group


@dataclass(frozen=True)
class ScaledPoint:
    """A finished change, scaled: what it gains and how much the watched languages' mean loss rises (nats per token).

    Attributes:
        scale: Factor on the change; 0 is the base, 1 the run as it was trained.
        gain: Fall of the target loss.
        retention: Mean rise of the watched languages' losses.
        losses: Nats per token and bits per byte of each language.
    """

    scale: float
    gain: float
    retention: float
    losses: Mapping[str, Sequence[float]]


Scaled = Mapping[Path, Sequence[ScaledPoint]]
"""Scale curves by run folder."""


@dataclass(frozen=True)
class FrontPoint:
    """Mean gain and mean retention loss of a method at one rate and scale."""

    gain: float
    retention: float
    lr: float
    scale: float | None = None


@dataclass(frozen=True)
class Front:
    """What a method can do.

    Attributes:
        label: The method.
        rates: A point per rate, by gain.
        scaled: Points of the scale curves, by rate and scale.
    """

    label: str
    rates: tuple[FrontPoint, ...]
    scaled: tuple[FrontPoint, ...] = ()

    @property
    def line(self) -> tuple[tuple[float, float], ...]:
        """The base (0, 0), then the points that no other point beats in both, by gain.

        Of a rate that is too high, which gains less and loses more than a lower one, nobody would make use.
        """
        line: list[tuple[float, float]] = []
        points = ((p.gain, p.retention) for p in (*self.rates, *self.scaled))
        usable = [point for point in points if point[0] > 0 and all(map(math.isfinite, point))]
        for gain, retention in sorted(usable, key=lambda point: (-point[0], point[1])):
            if not line or retention < line[-1][1]:
                line.append((gain, retention))
        return ((0.0, 0.0), *reversed(line))

    @property
    def largest_gain(self) -> float:
        return self.line[-1][0]

    def retention_at(self, gain: float) -> float | None:
        """Returns the retention loss at a gain, straight between neighbours of the line; None beyond its ends."""
        line = self.line
        for (low, at_low), (high, at_high) in pairwise(line):
            if low <= gain <= high:
                return at_low + (at_high - at_low) * (gain - low) / (high - low)
        return 0.0 if gain == 0 else None


def build_fronts(groups: Sequence[Group], scaled: Scaled | None = None) -> list[Front]:
    """Returns the front of every method, in the order of ``groups``."""
    fronts = []
    for label in dict.fromkeys(group.label for group in groups):
        own = [group for group in groups if group.label == label]
        rates = [FrontPoint(g.mean(attrgetter("gain")), g.mean(attrgetter("mean_retention")), g.lr) for g in own]
        curves = [point for group in own for point in _scale_curve(group, scaled or {})]
        fronts.append(Front(label, tuple(sorted(rates, key=lambda point: point.gain)), tuple(curves)))
    return fronts


def _scale_curve(group: Group, scaled: Scaled) -> list[FrontPoint]:
    """Returns the mean over a group's runs at every scale that all of those with a curve were given."""
    curves = [{p.scale: p for p in scaled[run.folder]} for run in group.runs if run.folder in scaled]
    if not curves:
        return []
    n = len(curves)
    return [
        FrontPoint(sum(c[s].gain for c in curves) / n, sum(c[s].retention for c in curves) / n, group.lr, s)
        for s in sorted(set.intersection(*(set(curve) for curve in curves)))
    ]


def common_gain(fronts: Sequence[Front]) -> tuple[float, str] | None:
    """Returns a gain that at least half of the methods reach, and the method that sets it by its largest gain.

    The smallest of the largest gains would be reached by all, but one method that hardly gains would decide it.
    """
    reached = sorted((front.largest_gain, front.label) for front in fronts if front.largest_gain > 0)
    return reached[(len(reached) - 1) // 2] if reached else None
