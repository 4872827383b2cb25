"""Where the neurons of languages lie, and what two languages share."""

from collections.abc import Sequence
from dataclasses import dataclass
from statistics import fmean, median
from typing import Literal

from lightning_app.languages import Language, find_language
from lightning_app.neurons.neuron_set import NeuronSet
from lightning_app.neurons.subnetworks import Subnetworks, shared_neurons

Grouping = Literal["family", "script"]
GROUPINGS: tuple[Grouping, ...] = ("family", "script")


@dataclass(frozen=True)
class NeuronMap:
    """Neurons per layer of every language of a pool, K languages and L layers.

    Attributes:
        model: Name of the model.
        languages: In the pool's order.
        neurons: Of each language, in all layers.
        per_layer: Of each language in each layer, (K, L).
        union_per_layer: Neurons that any language has, (L,).
        union_share: Of all FFN neurons; None where the model's width is unknown.
        last_third: Share of the union that lies from layer 2 L // 3 up.
    """

    model: str
    languages: tuple[Language, ...]
    neurons: tuple[int, ...]
    per_layer: tuple[tuple[int, ...], ...]
    union_per_layer: tuple[int, ...]
    union_share: float | None
    last_third: float

    @property
    def layers(self) -> int:
        return len(self.union_per_layer)


def map_neurons(subnetworks: Subnetworks, neurons_per_layer: int | None = None) -> NeuronMap:
    """Returns how many neurons each language has in each layer (arXiv 2510.13580, neurons per layer and language).

    Args:
        subnetworks: Those of a pool.
        neurons_per_layer: N, where the subnetworks do not say it, as released masks.
    """
    layers, width = subnetworks.model.layers, neurons_per_layer or subnetworks.model.neurons_per_layer
    sets = [subnetworks.neurons[code] for code in subnetworks.pool]
    union = NeuronSet({}).union(*sets)
    return NeuronMap(
        subnetworks.model.name,
        tuple(map(find_language, subnetworks.pool)),
        tuple(map(len, sets)),
        tuple(tuple(each.per_layer(layers)) for each in sets),
        tuple(union.per_layer(layers)),
        len(union) / (layers * width) if width else None,
        len(union.from_layer(2 * layers // 3)) / max(1, len(union)),
    )


@dataclass(frozen=True)
class OverlapMatrix:
    """What every two languages of a pool share, languages of one family or script side by side.

    Attributes:
        model: Name of the model.
        by: What they are grouped by.
        languages: In the order of the rows and columns.
        groups: Family or script of each.
        neurons: Of each.
        shared: Neurons that two have in common, (K, K); on the diagonal all that one has.
        jaccard: Their share of those that either has, (K, K); 0 where both have none.
        within: Mean Jaccard of two languages of one group; None where no group has two.
        between: Mean Jaccard of two of different groups; None where there is one group.
        median: Of all pairs; None of a single language.
    """

    model: str
    by: Grouping
    languages: tuple[Language, ...]
    groups: tuple[str, ...]
    neurons: tuple[int, ...]
    shared: tuple[tuple[int, ...], ...]
    jaccard: tuple[tuple[float, ...], ...]
    within: float | None
    between: float | None
    median: float | None


def compare_languages(subnetworks: Subnetworks, by: Grouping) -> OverlapMatrix:
    """Returns the overlap of every two languages, ordered by family or script, and by name within it."""
    languages = sorted(map(find_language, subnetworks.pool), key=lambda each: (getattr(each, by), each.name))
    sets = [subnetworks.neurons[each.glotcc] for each in languages]
    groups = [getattr(each, by) for each in languages]
    shared = [[int(count) for count in row] for row in shared_neurons(sets).tolist()]
    sizes, places = list(map(len, sets)), range(len(sets))
    jaccard = [[shared[a][b] / max(1, sizes[a] + sizes[b] - shared[a][b]) for b in places] for a in places]
    pairs = [(jaccard[a][b], groups[a] == groups[b]) for a in places for b in range(a)]
    return OverlapMatrix(
        subnetworks.model.name,
        by,
        tuple(languages),
        tuple(groups),
        tuple(sizes),
        tuple(map(tuple, shared)),
        tuple(map(tuple, jaccard)),
        _mean([value for value, is_one_group in pairs if is_one_group]),
        _mean([value for value, is_one_group in pairs if not is_one_group]),
        median(value for value, _ in pairs) if pairs else None,
    )


def _mean(values: Sequence[float]) -> float | None:
    return fmean(values) if values else None
