"""What the harness found in a task, as figures with their items and standard errors."""

import math
import statistics
from collections.abc import Sequence
from typing import Any

from lightning_app.evaluation.scores import Metric
from lightning_app.files import JSON


def read_figures(found: JSON, name: str) -> tuple[list[JSON], dict[str, Metric]]:
    """Returns what the first of a task's filters made of each item, in their order, and of all.

    Args:
        found: As the harness gives it, with samples.
        name: Of the task.
    """
    figures, higher = found["results"][name], found["higher_is_better"][name]
    samples = sorted(found["samples"][name], key=lambda sample: sample["doc_id"])
    first = samples[0]["filter"]
    samples = [sample for sample in samples if sample["filter"] == first]
    metrics = {}
    for key, value in figures.items():
        metric, _, of_filter = key.partition(",")
        if of_filter == first and not metric.endswith("_stderr") and isinstance(value, (int, float)):
            items = [sample.get(metric) for sample in samples]
            metrics[metric] = _metric(float(value), items, higher.get(metric) is not False)
    return samples, metrics


def _metric(value: float, items: list[Any], higher_is_better: bool) -> Metric:
    """Returns a figure with its items where it is their mean, or a ratio of their sums; alone where it is neither."""
    if all(isinstance(item, (int, float)) for item in items):
        ratios, weights = [float(item) for item in items], None
    elif all(_is_fraction(item) for item in items):
        weights = [float(below) for _, below in items]
        ratios = [float(above) / below for above, below in items]
    else:
        return Metric(value, higher_is_better=higher_is_better)
    mean = statistics.fmean(ratios, weights)
    if not math.isclose(mean, value, rel_tol=1e-6, abs_tol=1e-9):
        return Metric(value, higher_is_better=higher_is_better)  # exp of it, say, as perplexity is
    return Metric(value, _standard_error(ratios, weights, mean), higher_is_better, ratios, weights)


def _is_fraction(item: Any) -> bool:
    is_pair = isinstance(item, (tuple, list)) and len(item) == 2 and all(isinstance(n, (int, float)) for n in item)
    return is_pair and item[1] > 0


def _standard_error(ratios: Sequence[float], weights: Sequence[float] | None, mean: float) -> float:
    """Returns the standard error of a mean of items, by the delta method where they have weights."""
    size = len(ratios)
    if size < 2:
        return math.nan
    weights = weights or [1.0] * size
    squares = sum((weight * (ratio - mean)) ** 2 for ratio, weight in zip(ratios, weights, strict=True))
    return math.sqrt(squares * size / (size - 1)) / sum(weights)


def read_answer(sample: JSON) -> str:
    """Returns what was generated, or the number of the choice with the highest likelihood."""
    filtered = sample["filtered_resps"]
    if isinstance(filtered[0], str):
        return filtered[0]
    likelihoods = [each[0] if isinstance(each, (list, tuple)) else each for each in filtered]
    best = max(range(len(likelihoods)), key=likelihoods.__getitem__)
    return str(best) if len(likelihoods) > 1 else str(likelihoods[0])
