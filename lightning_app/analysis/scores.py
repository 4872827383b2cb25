"""What a selection is made of: activation probabilities and entropies beside their thresholds, and its stability."""

import math
from dataclasses import dataclass

import torch
from torch import Tensor

from lightning_app.languages import Language, find_language
from lightning_app.neurons import lape
from lightning_app.neurons.atlas import Atlas

_BINS = 60


@dataclass(frozen=True)
class Histogram:
    """Counts between edges, the last edge included.

    Attributes:
        edges: One more than there are counts.
        counts: Of values from each edge up to the next.
    """

    edges: tuple[float, ...]
    counts: tuple[int, ...]

    @classmethod
    def of(cls, values: Tensor, edges: Tensor) -> "Histogram":
        """Counts values between ascending edges; none may lie outside.

        >>> Histogram.of(torch.tensor([0.0, 0.5, 1.0]), torch.tensor([0.0, 0.5, 1.0])).counts
        (1, 2)
        """
        edges = edges.to(values.dtype)
        place = (torch.bucketize(values, edges, right=True) - 1).clamp(0, len(edges) - 2)
        return cls(tuple(edges.tolist()), tuple(torch.bincount(place, minlength=len(edges) - 1).tolist()))


@dataclass(frozen=True)
class ScoreDistribution:
    """LAPE's two thresholds, and what lies on either side of them.

    Attributes:
        model: Name of the model.
        languages: The pool, K of them.
        rate: Share of the neurons that is taken.
        quantile: Where tau lies among all probabilities.
        tau: The activation threshold.
        highest: ln K, the entropy of a neuron that all languages open alike.
        cut: The highest entropy that is taken; None where there are fewer active neurons than the rate would take.
        neurons: All neurons of the model.
        silent: Those that no language opens more often than tau; none of them is taken.
        taken: Those that are taken.
        entropies: Of the others, by entropy from 0 to ln K.
        silent_entropies: Of the silent ones.
        probabilities: Of all neurons and languages, from 0 to 1.
    """

    model: str
    languages: tuple[Language, ...]
    rate: float
    quantile: float
    tau: float
    highest: float
    cut: float | None
    neurons: int
    silent: int
    taken: int
    entropies: Histogram
    silent_entropies: Histogram
    probabilities: Histogram


def distribute_scores(
    atlas: Atlas, pool: list[Language], rate: float = 0.05, quantile: float = 0.95
) -> ScoreDistribution:
    """Returns how LAPE's scores are distributed (arXiv 2510.13580, eq. 1 to 3), and where it cuts.

    Raises:
        UserError: The atlas lacks a language.
    """
    prob_LNK = atlas.probability(pool)
    tau = lape.activation_threshold(prob_LNK, quantile)
    entropy_LN = torch.stack([lape.entropy(prob_NK) for prob_NK in prob_LNK])
    is_active_LN = (prob_LNK > tau).any(-1)
    active = entropy_LN[is_active_LN].sort().values
    taken = min(round(rate * entropy_LN.numel()), len(active))
    highest = math.log(len(pool)) or 1.0  # of one language every entropy is 0
    edges = torch.linspace(0, highest, _BINS + 1, dtype=torch.float64)
    return ScoreDistribution(
        atlas.model.name,
        tuple(pool),
        rate,
        quantile,
        tau,
        math.log(len(pool)),
        float(active[taken - 1]) if taken == round(rate * entropy_LN.numel()) > 0 else None,
        entropy_LN.numel(),
        int((~is_active_LN).sum()),
        taken,
        Histogram.of(active, edges),
        Histogram.of(entropy_LN[~is_active_LN], edges),
        Histogram.of(prob_LNK.flatten(), torch.linspace(0, 1, _BINS + 1, dtype=torch.float64)),
    )


@dataclass(frozen=True)
class StabilityCurve:
    """How far the sets that two halves of a language's text give overlap, as the text grows.

    Attributes:
        language: Whose.
        tokens: Counted so far.
        overlaps: Jaccard of the two halves' sets there.
    """

    language: Language
    tokens: tuple[int, ...]
    overlaps: tuple[float, ...]


@dataclass(frozen=True)
class Stability:
    """The curves of an atlas, of the languages that were counted with ``--profiling.stop_when_stable``.

    Attributes:
        model: Name of the model.
        curves: One a language.
    """

    model: str
    curves: tuple[StabilityCurve, ...]


def trace_stability(atlas: Atlas) -> Stability:
    """Returns the curves that an atlas keeps."""
    curves = []
    for code, kept in atlas.stability.items():
        tokens, overlaps = zip(*kept["curve"], strict=True)
        curves.append(StabilityCurve(find_language(code), tuple(map(int, tokens)), tuple(map(float, overlaps))))
    return Stability(atlas.model.name, tuple(curves))
