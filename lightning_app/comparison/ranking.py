"""Means over seeds with their intervals, the best rate of every method, and which methods can be told apart."""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from lightning_app.comparison.results import RunResult

# 97.5 % quantiles of Student's t for 1 to 30 degrees of freedom; with more, that of 30, which is a little too wide.
_T_975 = (
    12.706, 4.303, 3.182, 2.776, 2.571, 2.447, 2.365, 2.306, 2.262, 2.228, 2.201, 2.179, 2.160, 2.145, 2.131,
    2.120, 2.110, 2.101, 2.093, 2.086, 2.080, 2.074, 2.069, 2.064, 2.060, 2.056, 2.052, 2.048, 2.045, 2.042,
)  # fmt: skip

Metric = Callable[[RunResult], float]


@dataclass(frozen=True)
class Estimate:
    """A mean over seeds and the half width of its 95 % Student-t interval; None where one seed says nothing of it."""

    mean: float
    half_width: float | None
    n: int

    @property
    def excludes_zero(self) -> bool:
        """Whether the interval lies on one side of zero; False without an interval."""
        return self.half_width is not None and abs(self.mean) > self.half_width


def estimate(values: Sequence[float]) -> Estimate:
    """Returns the mean of ``values`` with its interval.

    >>> estimate([0.0, 2.0])
    Estimate(mean=1.0, half_width=12.706, n=2)
    >>> estimate([2.0])
    Estimate(mean=2.0, half_width=None, n=1)
    """
    n = len(values)
    mean = math.fsum(values) / n
    if n < 2 or not math.isfinite(mean):
        return Estimate(mean, None, n)
    deviation = math.sqrt(math.fsum((value - mean) ** 2 for value in values) / (n - 1))
    quantile = _T_975[min(n - 1, len(_T_975)) - 1]
    return Estimate(mean, quantile * deviation / math.sqrt(n), n)


@dataclass(frozen=True)
class Group:
    """The runs of one method at one rate, by seed."""

    label: str
    lr: float
    runs: tuple[RunResult, ...]

    @property
    def seeds(self) -> list[int]:
        return [run.seed for run in self.runs]

    def estimate(self, metric: Metric) -> Estimate:
        """Returns the mean of a number over the seeds, with its interval."""
        return estimate([metric(run) for run in self.runs])

    def mean(self, metric: Metric) -> float:
        return self.estimate(metric).mean


def target_loss(run: RunResult) -> float:
    """Returns what methods are ranked by."""
    return run.target_loss


def rise_of(code: str) -> Metric:
    """Returns what reads the rise of the loss of a watched language."""
    return lambda run: run.retention[code]


def group_results(results: Sequence[RunResult]) -> list[Group]:
    """Returns the runs by method, in order of appearance, and rising rate."""
    labels = list(dict.fromkeys(run.label for run in results))
    keys = sorted({(run.label, run.lr) for run in results}, key=lambda key: (labels.index(key[0]), key[1]))
    return [
        Group(label, lr, tuple(sorted((r for r in results if (r.label, r.lr) == (label, lr)), key=lambda r: r.seed)))
        for label, lr in keys
    ]


def best_groups(groups: Sequence[Group]) -> list[Group]:
    """Returns every method at the rate with the lowest mean target loss, the best method first."""
    by_label: dict[str, list[Group]] = {}
    for group in groups:
        by_label.setdefault(group.label, []).append(group)
    return sorted((min(rates, key=_mean_loss) for rates in by_label.values()), key=_mean_loss)


def _mean_loss(group: Group) -> float:
    return _finite(group.mean(target_loss))


def _finite(value: float) -> float:
    return value if math.isfinite(value) else math.inf


@dataclass(frozen=True)
class Difference:
    """How much higher a method is than the best one, over shared seeds; no estimate where they share none."""

    group: Group
    estimate: Estimate | None

    @property
    def is_told_apart(self) -> bool:
        return self.estimate is not None and self.estimate.excludes_zero


@dataclass(frozen=True)
class Ranking:
    """The method that is best by the mean, and how the others differ from it."""

    best: Group
    others: tuple[Difference, ...]

    @property
    def is_clear(self) -> bool:
        """Whether there are others, and every one is told apart from the best."""
        return bool(self.others) and all(other.is_told_apart for other in self.others)


def rank(groups: Sequence[Group], metric: Metric = target_loss) -> Ranking:
    """Returns which of ``groups`` has the lowest mean, and the others' paired differences to it.

    The same seed gives the same order of text, so differences are taken seed by seed: what a seed does to both cancels.
    Groups with a run that broke (no finite number) are left out, unless there are no others.
    """
    whole = [group for group in groups if math.isfinite(group.mean(metric))] or groups
    best, *rest = sorted(whole, key=lambda group: _finite(group.mean(metric)))
    return Ranking(best, tuple(Difference(group, _paired(group, best, metric)) for group in rest))


def _paired(group: Group, best: Group, metric: Metric) -> Estimate | None:
    ours, theirs = ({run.seed: metric(run) for run in each.runs} for each in (best, group))
    shared = sorted(ours.keys() & theirs.keys())
    return estimate([theirs[seed] - ours[seed] for seed in shared]) if shared else None
