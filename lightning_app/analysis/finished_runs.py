"""What several finished runs say together: fewer projections, more text, languages rich and poor in resources."""

import json
import math
import random
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from statistics import fmean

from lightning_app.comparison.results import RunResult
from lightning_app.languages import Language, find_language
from lightning_app.model.ffn import PROJECTIONS
from lightning_app.run import RunFolder

_PERMUTATIONS = 10_000
_FEWEST_LANGUAGES = 3


@dataclass(frozen=True)
class Outcome:
    """What runs that differ in nothing but their seed came to.

    Attributes:
        runs: How many.
        trained_parameters: Of one of them.
        gain: Fall of the targets' loss in nats per token, mean over the runs.
        lowest: The smallest gain.
        highest: The largest.
        bits_gain: Fall of their bits per byte, mean over the runs.
        retention: Rise of the watched languages' loss, mean over languages and runs; NaN where none is watched.
    """

    runs: int
    trained_parameters: int
    gain: float
    lowest: float
    highest: float
    bits_gain: float
    retention: float

    @classmethod
    def of(cls, runs: Sequence[RunResult]) -> "Outcome":
        """Returns it of one run or more."""
        gains = [run.gain for run in runs]
        return cls(
            len(runs), runs[0].trained_parameters, fmean(gains), min(gains), max(gains),
            fmean(run.bits_gain for run in runs), fmean(run.mean_retention for run in runs),
        )  # fmt: skip


@dataclass(frozen=True)
class Ablation:
    """Runs that differ in the projections that they trained (arXiv 2510.13580, component ablation).

    Attributes:
        targets: Short codes of what they adapted to.
        what: Method, settings and rate that they share.
        outcomes: By projections, ``gate+down``; the fewest first.
    """

    targets: tuple[str, ...]
    what: str
    outcomes: Mapping[str, Outcome]


@dataclass(frozen=True)
class SizeEffect:
    """Runs that differ in how much text they trained on (arXiv 2510.13580, training-size effect).

    Attributes:
        targets: Short codes of what they adapted to.
        what: Method, settings and rate that they share.
        outcomes: By tokens; the fewest first.
    """

    targets: tuple[str, ...]
    what: str
    outcomes: Mapping[int, Outcome]


@dataclass(frozen=True)
class Correlation:
    """Rank correlation of the gains with a measure of resources.

    Attributes:
        languages: How many have both.
        rho: Spearman's.
        p: Share of random orders with a correlation at least as far from 0.
    """

    languages: int
    rho: float
    p: float


@dataclass(frozen=True)
class ResourceEffect:
    """Gains beside how much text of a language there is (arXiv 2510.13580, correlation with the resource level).

    CC-100's sizes are those of arXiv 1911.02116, table 6, classes those of arXiv 2004.09095; see `Language`.

    Attributes:
        what: Base, method, settings and rate that the runs share.
        languages: One for each outcome.
        outcomes: Gains are compared in bits per byte, which do not depend on the tokenizer.
        by_size: With the size of CC-100; None where too few languages have one.
        by_class: With the Joshi class.
    """

    what: str
    languages: tuple[Language, ...]
    outcomes: tuple[Outcome, ...]
    by_size: Correlation | None
    by_class: Correlation | None


def ablate(results: Sequence[RunResult]) -> list[Ablation]:
    """Returns the groups of runs that differ in the projections that they trained."""
    found = []
    for (targets, what), own in _grouped(results, ("projections",)).items():
        for tokens in sorted({run.tokens for run in own}):
            by_projections: dict[tuple[str, ...], list[RunResult]] = {}
            for run in own:
                if run.tokens == tokens:
                    by_projections.setdefault(_projections(run), []).append(run)
            ordered = sorted(by_projections.items(), key=lambda item: (len(item[0]), item[0]))
            if len(ordered) > 1:
                found.append(Ablation(targets, what, {"+".join(key): Outcome.of(runs) for key, runs in ordered}))
    return found


def follow_size(results: Sequence[RunResult]) -> list[SizeEffect]:
    """Returns the groups of runs that differ in how many tokens they trained on."""
    found = []
    for (targets, what), own in _grouped(results).items():
        sizes = sorted({run.tokens for run in own})
        if len(sizes) > 1:
            outcomes = {size: Outcome.of([run for run in own if run.tokens == size]) for size in sizes}
            found.append(SizeEffect(targets, what, outcomes))
    return found


def follow_resources(results: Sequence[RunResult]) -> list[ResourceEffect]:
    """Returns the groups of runs that differ in their one target language, where those are three or more."""
    every: dict[str, dict[str, list[RunResult]]] = {}
    for (targets, what), own in _grouped(results).items():
        if len(targets) == 1:
            largest = max(run.tokens for run in own)
            every.setdefault(what, {})[targets[0]] = [run for run in own if run.tokens == largest]
    found = []
    for what, by_code in every.items():
        if len(by_code) < _FEWEST_LANGUAGES:
            continue
        languages = tuple(map(find_language, by_code))
        outcomes = tuple(map(Outcome.of, by_code.values()))
        gains = [each.bits_gain for each in outcomes]
        by_size = correlate([each.cc100_gib for each in languages], gains)
        by_class = correlate([each.joshi for each in languages], gains)
        found.append(ResourceEffect(what, languages, outcomes, by_size, by_class))
    return found


def _settings(run: RunResult) -> Mapping[str, object]:
    return RunFolder(run.folder).record().get("settings") or {}


def _projections(run: RunResult) -> tuple[str, ...]:
    named = _settings(run).get("projections")
    return tuple(name for name in PROJECTIONS if not isinstance(named, list) or name in named)


def _grouped(
    results: Sequence[RunResult], but: Sequence[str] = ()
) -> dict[tuple[tuple[str, ...], str], list[RunResult]]:
    """Returns runs by targets and by what else they have in common, settings ``but`` these."""
    groups: dict[tuple[tuple[str, ...], str], list[RunResult]] = {}
    for run in results:
        settings = {key: value for key, value in _settings(run).items() if key not in but}
        own = f", {json.dumps(settings, sort_keys=True)}" if settings else ""
        what = f"{run.method}{own} at {run.lr:g} on {run.base} ({run.fingerprint[:8]})"
        groups.setdefault((tuple(run.targets), what), []).append(run)
    return groups


def correlate(measures: Sequence[float | None], gains: Sequence[float]) -> Correlation | None:
    """Returns the rank correlation of gains with a measure, over those that have one; None where it is not defined.

    >>> correlate([1, 2, None, 3, 4], [0.1, 0.2, 9.0, 0.3, 0.4]).rho
    1.0
    >>> correlate([1, 1, 1], [0.1, 0.2, 0.3]) is None
    True
    """
    pairs = [(x, y) for x, y in zip(measures, gains, strict=True) if x is not None and math.isfinite(y)]
    xs, ys = [_ranks([pair[side] for pair in pairs]) for side in (0, 1)]
    if len(pairs) < _FEWEST_LANGUAGES or len(set(xs)) == 1 or len(set(ys)) == 1:
        return None
    rho, shuffled, as_far = _pearson(xs, ys), list(ys), 0
    draw = random.Random(0)
    for _ in range(_PERMUTATIONS):
        draw.shuffle(shuffled)
        as_far += abs(_pearson(xs, shuffled)) >= abs(rho) - 1e-12
    return Correlation(len(pairs), rho, as_far / _PERMUTATIONS)


def _ranks(values: Sequence[float]) -> list[float]:
    """Returns ranks from 0, equal values at the mean of theirs.

    >>> _ranks([5, 1, 5, 9])
    [1.5, 0.0, 1.5, 3.0]
    """
    below = [sum(other < value for other in values) for value in values]
    return [low + (values.count(value) - 1) / 2 for low, value in zip(below, values, strict=True)]


def _pearson(xs: Sequence[float], ys: Sequence[float]) -> float:
    x, y = fmean(xs), fmean(ys)
    deviations = [(a - x, b - y) for a, b in zip(xs, ys, strict=True)]
    spread = math.sqrt(sum(a * a for a, _ in deviations) * sum(b * b for _, b in deviations))
    return round(sum(a * b for a, b in deviations) / spread, 12)
