"""A set of FFN neurons: what one language gets, what is trained, and what a checkpoint holds beside its weights."""

from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

import torch
from torch import Tensor

from lightning_app import __version__
from lightning_app.errors import UserError
from lightning_app.files import digest, save_tensors
from lightning_app.identity import ModelIdentity
from lightning_app.neurons.neuron_file import NeuronFile

_KIND = "neuron set"
_LAYER = 32  # bits of an index in the key that pairs are compared by


@dataclass(frozen=True, eq=False)
class NeuronSet:
    """Neurons (l, i) of a model, by layer.

    Attributes:
        by_layer: Layer to its neurons' indices, int64, sorted, each once; only layers that have any, in order.

    >>> neurons = NeuronSet({2: torch.tensor([5, 1]), 0: torch.tensor([], dtype=torch.int64)})
    >>> len(neurons), neurons.layers, neurons.pairs.tolist(), neurons.parameters(hidden_size=8)
    (2, (2,), [[2, 1], [2, 5]], 48)
    """

    by_layer: Mapping[int, Tensor]

    def __post_init__(self) -> None:
        tidy = {layer: self.by_layer[layer].to("cpu", torch.int64).unique() for layer in sorted(self.by_layer)}
        object.__setattr__(self, "by_layer", {layer: indices for layer, indices in tidy.items() if len(indices)})

    @classmethod
    def from_pairs(cls, pairs: Tensor) -> "NeuronSet":
        """Returns the set of (layer, index) pairs, (neurons, 2)."""
        return cls({int(layer): pairs[pairs[:, 0] == layer, 1] for layer in pairs[:, 0].unique()})

    @cached_property
    def pairs(self) -> Tensor:
        """The sorted (layer, index) pairs, int64 (neurons, 2)."""
        pairs = [torch.stack([torch.full_like(i, layer), i], dim=1) for layer, i in self.by_layer.items()]
        return torch.cat(pairs) if pairs else torch.empty(0, 2, dtype=torch.int64)

    @property
    def identity(self) -> str:
        """Digest over the neurons: what weights trained for them must match."""
        return digest(self.pairs)

    @property
    def layers(self) -> tuple[int, ...]:
        """The layers that have neurons, lowest first."""
        return tuple(self.by_layer)

    def __len__(self) -> int:
        return len(self.pairs)

    def per_layer(self, layers: int) -> list[int]:
        """Returns the number of neurons in each of a model's ``layers``."""
        return torch.bincount(self.pairs[:, 0], minlength=layers).tolist()

    def parameters(self, hidden_size: int, projections: int = 3) -> int:
        """Returns the numbers that the neurons' vectors hold: hidden size times projections, for each."""
        return projections * hidden_size * len(self)

    def from_layer(self, layer: int) -> "NeuronSet":
        """Returns the neurons from ``layer`` up."""
        return NeuronSet({at: indices for at, indices in self.by_layer.items() if at >= layer})

    def union(self, *others: "NeuronSet") -> "NeuronSet":
        """Returns the neurons that are in any of the sets."""
        return NeuronSet.from_pairs(torch.cat([each.pairs for each in (self, *others)]))

    def is_in(self, other: "NeuronSet") -> Tensor:
        """Returns which neurons of this set ``other`` has, bool (neurons,)."""
        return torch.isin(_keys(self), _keys(other))

    def minus(self, other: "NeuronSet") -> "NeuronSet":
        """Returns the neurons that ``other`` lacks."""
        return NeuronSet.from_pairs(self.pairs[~self.is_in(other)])

    def overlap(self, other: "NeuronSet") -> float:
        """Returns the Jaccard index of two sets; 0 where both are empty."""
        shared = int(self.is_in(other).sum())
        either = len(self) + len(other) - shared
        return shared / either if either else 0.0

    def require_within(self, model: ModelIdentity, where: Path | str) -> None:
        """Raises `UserError` where a neuron lies outside ``model``."""
        if len(self) and (max(self.layers) >= model.layers or int(self.pairs[:, 1].max()) >= model.neurons_per_layer):
            raise UserError(f"subnetwork {where} names neurons that {model} does not have")

    def save(self, path: Path, model: ModelIdentity) -> None:
        """Writes the set with the model it belongs to, atomically."""
        save_tensors(path, {"neurons": self.pairs}, {"version": __version__, "model": model.as_dict()}, _KIND)

    @classmethod
    def load(cls, path: Path) -> tuple["NeuronSet", ModelIdentity]:
        """Returns a saved set and the model it belongs to.

        Raises:
            UserError: There is none at ``path``, or the file is damaged or of a later version.
        """
        file = NeuronFile(path, _KIND)
        if set(file.tensors) != {"neurons"}:
            raise file.refuse(f"it holds {len(file.tensors)} tensors, expected one named neurons")
        return cls.from_pairs(file.require_pairs("neurons")), file.model


def _keys(neurons: NeuronSet) -> Tensor:
    return (neurons.pairs[:, 0] << _LAYER) + neurons.pairs[:, 1]
