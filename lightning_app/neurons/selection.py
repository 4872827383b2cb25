"""Choosing neurons: by a pool's activation counts (LAPE), all of them, at random, or by a score, for comparison."""

from collections.abc import Sequence

import torch
from torch import Tensor

from lightning_app.languages import Language
from lightning_app.neurons import lape
from lightning_app.neurons.atlas import Atlas
from lightning_app.neurons.neuron_set import NeuronSet
from lightning_app.neurons.sizes import Sizes, select
from lightning_app.neurons.subnetworks import Subnetworks

_RATES_TO_SUGGEST = (0.01, 0.02, 0.05, 0.1, 0.2, 0.3, 0.5)


def select_subnetworks(atlas: Atlas, pool: list[Language], sizes: Sizes) -> Subnetworks:
    """Selects the subnetworks of all languages of ``pool`` (arXiv 2510.13580, section 3), in the sizes asked for.

    Raises:
        UserError: The atlas lacks a language, or one that is not in the pool has a rate of its own.
    """
    sizes.require_pool(pool)
    pairs, taus = select(atlas.probability(pool), pool, sizes, atlas.model.hidden_size)
    codes = [language.glotcc for language in pool]
    neurons = dict(zip(codes, map(NeuronSet.from_pairs, pairs), strict=True))
    own = sizes.own()
    if sizes.threshold == "language":
        own["taus"] = dict(zip(codes, taus, strict=True))
    tau = taus[0] if sizes.threshold == "pool" else None
    return Subnetworks(atlas.model, codes, neurons, sizes.rate, sizes.quantile, tau, atlas.pool_id(codes), own)


def suggest_rates(atlas: Atlas, pool: list[Language], language: Language, quantile: float) -> str:
    """Returns a sentence part with the neurons that ``language`` would get at other rates."""
    sizes = lape.sizes_at_rates(atlas.probability(pool), pool.index(language), _RATES_TO_SUGGEST, quantile)
    return ", ".join(f"{size} at rate {rate:g}" for rate, size in sizes.items())


def all_neurons(layers: int, neurons_per_layer: int) -> NeuronSet:
    """Returns every neuron of a model; with fewer ``neurons_per_layer``, the first ones of each layer."""
    return NeuronSet({layer: torch.arange(neurons_per_layer) for layer in range(layers)})


def random_neurons(count: int, layers: int, neurons_per_layer: int, seed: int, first_layer: int = 0) -> NeuronSet:
    """Returns ``count`` neurons drawn uniformly over a model from ``first_layer`` up: the paper's random baseline."""
    generator = torch.Generator().manual_seed(seed)
    flat = torch.randperm((layers - first_layer) * neurons_per_layer, generator=generator)[:count]
    return NeuronSet.from_pairs(torch.stack([flat // neurons_per_layer + first_layer, flat % neurons_per_layer], dim=1))


def random_per_layer(counts: Sequence[int], neurons_per_layer: int, seed: int) -> NeuronSet:
    """Returns random neurons, as many in each layer as ``counts`` says: a language's own depth, other neurons."""
    generator = torch.Generator().manual_seed(seed)
    drawn = {
        layer: torch.randperm(neurons_per_layer, generator=generator)[:count]
        for layer, count in enumerate(counts)
        if count
    }
    return NeuronSet(drawn)


def highest_neurons(score_LN: Tensor, count: int, first_layer: int = 0) -> NeuronSet:
    """Returns the ``count`` neurons with the highest score from ``first_layer`` up; of equals the lowest (l, i).

    >>> highest_neurons(torch.tensor([[9.0, 1.0], [2.0, 2.0], [0.0, 3.0]]), count=2, first_layer=1).pairs.tolist()
    [[1, 0], [2, 1]]
    """
    neurons_per_layer = score_LN.shape[1]
    order = score_LN[first_layer:].flatten().sort(descending=True, stable=True).indices[:count]
    layer = order // neurons_per_layer + first_layer
    return NeuronSet.from_pairs(torch.stack([layer, order % neurons_per_layer], dim=1))
