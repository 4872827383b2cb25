"""What changed from one model to another in a task, and whether that is more than chance: paired bootstrap."""

import math
from dataclasses import dataclass

import numpy as np

from lightning_app.errors import UserError
from lightning_app.evaluation.scores import Metric, Scores
from lightning_app.evaluation.translation import corpus_p

RESAMPLES = 10_000
_FEWEST_ITEMS = 10  # fewer, resampled, look surer than they are
_SEED = 12345  # sacrebleu's own
_AT_ONCE = 2_000_000  # numbers in a block of resamples


@dataclass(frozen=True)
class Difference:
    """A change of one figure from the base to the adapted model, over the same items.

    Attributes:
        base: The figure of the base.
        adapted: That of the adapted model.
        is_beyond_noise: Whether chance in the choice of items hardly explains it (5 % level).
        low: Lower end of the 95 % interval of the change; NaN of a corpus's figure, which has ``p`` instead.
        high: Its upper end.
        p: Of sacrebleu's paired bootstrap test; NaN of a mean over items.
        higher_is_better: Which way is up.
    """

    base: float
    adapted: float
    is_beyond_noise: bool
    low: float = math.nan
    high: float = math.nan
    p: float = math.nan
    higher_is_better: bool = True

    @property
    def change(self) -> float:
        """Adapted minus base."""
        return self.adapted - self.base

    @property
    def is_tested(self) -> bool:
        """Whether noise was estimated: not for few items, nor a figure that is neither their mean nor of translations.

        >>> Difference(0.5, 0.6, True, 0.05, 0.15).is_tested, Difference(9.0, 8.0, False).is_tested
        (True, False)
        """
        return not (math.isnan(self.low) and math.isnan(self.p))

    @property
    def verdict(self) -> str:
        """``better`` or ``worse`` where the change is beyond noise, else an empty string.

        >>> Difference(0.5, 0.6, True).verdict, Difference(1.0, 0.9, True, higher_is_better=False).verdict
        ('better', 'better')
        >>> Difference(0.5, 0.4, True).verdict, Difference(0.5, 0.51, False).verdict
        ('worse', '')
        """
        if not self.is_beyond_noise:
            return ""
        return "better" if (self.change > 0) == self.higher_is_better else "worse"


def differences(base: Scores, adapted: Scores) -> dict[str, Difference]:
    """Returns the change of every metric that both have, items resampled in pairs.

    Raises:
        UserError: The two were not measured on the same items.
    """
    if base.asked != adapted.asked:
        raise UserError("the base and the adapted model were measured on other items or settings; evaluate both again")
    return {name: _difference(base, adapted, name) for name in base.metrics if name in adapted.metrics}


def _difference(base: Scores, adapted: Scores, name: str) -> Difference:
    before, after = base.metrics[name], adapted.metrics[name]
    untested = Difference(before.value, after.value, False, higher_is_better=before.higher_is_better)
    if base.items < _FEWEST_ITEMS:
        return untested
    if before.items is not None and after.items is not None:
        low, high = _interval(before, after)
        is_beyond = not low <= 0 <= high
        return Difference(before.value, after.value, is_beyond, low, high, higher_is_better=before.higher_is_better)
    if before.signature is None:
        return untested
    # sacrebleu's test calls a difference of nought significant where no resample has another.
    is_same = before.value == after.value
    p = 1.0 if is_same else corpus_p(name, base.answers, adapted.answers, base.expected)
    return Difference(before.value, after.value, p < 0.05, p=p, higher_is_better=before.higher_is_better)


def _interval(before: Metric, after: Metric) -> tuple[float, float]:
    """Returns the 2.5 and 97.5 % quantiles of the change of a mean over resampled items, weighted where they are."""
    change = np.asarray(after.items, dtype=np.float64) - np.asarray(before.items, dtype=np.float64)
    weights = np.ones_like(change) if before.weights is None else np.asarray(before.weights, dtype=np.float64)
    weighted, generator, size = change * weights, np.random.default_rng(_SEED), len(change)
    block = max(1, _AT_ONCE // size)
    means = []
    for first in range(0, RESAMPLES, block):
        drawn = generator.integers(0, size, (min(block, RESAMPLES - first), size))
        means.append(weighted[drawn].sum(axis=1) / weights[drawn].sum(axis=1))
    low, high = np.quantile(np.concatenate(means), [0.025, 0.975])
    return float(low), float(high)
