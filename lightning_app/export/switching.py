"""A base and what was adapted from it as one loaded model, changed from the one to the other within milliseconds."""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Any, Protocol

import torch
from torch import Tensor
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from lightning_app.adapted import Adaptation, as_trained, load_adapted
from lightning_app.export.source import Source
from lightning_app.files import load_checkpoint
from lightning_app.identity import ModelIdentity
from lightning_app.model.base import load_base, load_tokenizer, on_device
from lightning_app.model.ffn import GatedFFN, find_gated_ffns
from lightning_app.neurons.neuron_set import NeuronSet


class Change(Protocol):
    """A part of a model that has two states."""

    def switch(self, is_adapted: bool) -> None:
        """Makes it the adapted model's, or the base's."""


@dataclass(frozen=True, eq=False)
class VectorChange:
    """Vectors of one matrix, which are written over each other.

    Attributes:
        weight: The live matrix.
        dim: 0 where they are rows, 1 where they are columns.
        index: Where they are, (k,).
        base: The base's, in the shape of what is replaced.
        adapted: The adapted model's.
    """

    weight: Tensor
    dim: int
    index: Tensor
    base: Tensor
    adapted: Tensor

    @torch.no_grad()
    def switch(self, is_adapted: bool) -> None:
        self.weight.index_copy_(self.dim, self.index, self.adapted if is_adapted else self.base)


@dataclass(frozen=True, eq=False)
class NeuronChange:
    """Neurons' vectors in one projection of an FFN, (S, D)."""

    ffn: GatedFFN
    projection: str
    neurons: Tensor
    base: Tensor
    adapted: Tensor

    def switch(self, is_adapted: bool) -> None:
        self.ffn.write(self.projection, self.neurons, self.adapted if is_adapted else self.base)


@dataclass(frozen=True, eq=False)
class WeightChange:
    """A whole weight, of which both states are held."""

    weight: Tensor
    base: Tensor
    adapted: Tensor

    def switch(self, is_adapted: bool) -> None:
        self.weight.data = self.adapted if is_adapted else self.base


@dataclass(frozen=True, eq=False)
class AdapterChange:
    """A layer with an adapter of PEFT, which computes what its base layer does while that is off."""

    layer: Any

    def switch(self, is_adapted: bool) -> None:
        self.layer.enable_adapters(is_adapted)


class BaseAndAdapted:
    """One loaded model that is the base or the adapted one.

    Args:
        model: In evaluation mode, on its device, adapted.
        tokenizer: Its.
        identity: The base's.
        changes: What differs.
    """

    def __init__(
        self, model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, identity: ModelIdentity,
        changes: Sequence[Change],
    ) -> None:  # fmt: skip
        self.model, self.tokenizer, self.identity = model, tokenizer, identity
        self._changes = changes

    def switch(self, is_adapted: bool) -> None:
        """Makes it the adapted model, or the base bit for bit."""
        for change in self._changes:
            change.switch(is_adapted)

    @property
    def context(self) -> int | None:
        """The longest sequence in tokens that the base was made for; None where its configuration does not say."""
        return getattr(self.model.config.get_text_config(), "max_position_embeddings", None)

    @classmethod
    def load(cls, source: Source, device: torch.device) -> "BaseAndAdapted":
        """Loads what a run trained, or one or several deltas, with its base.

        A checkpoint's base has the dtype that it had in training, that of deltas the dtype of its files.

        Raises:
            UserError: The base is another one, or neurons are shared and no policy says what becomes of them.
        """
        if source.adaptation is not None:
            return cls._of_checkpoint(source, source.adaptation, device)
        patches = source.delta.patches(source.files)
        base = load_base(source.base, source.revision, None)
        source.require_base(base.identity)
        model = _on(base.model, device)
        named = dict(model.named_parameters())
        changes = [
            _vectors(named[name], patch.dim, patch.index, patch.vectors.t() if patch.dim else patch.vectors)
            for name, patch in patches.items()
        ]
        return cls(model, load_tokenizer(source.base, source.revision), base.identity, changes)

    @classmethod
    def _of_checkpoint(cls, source: Source, adaptation: Adaptation, device: torch.device) -> "BaseAndAdapted":
        base = load_adapted(source.paths[0], source.base, source.revision, scale=0.0, load=as_trained(device))
        model, neurons = _on(base.model, device), adaptation.neurons
        weights = load_checkpoint(source.paths[0], is_mapped=True)["state_dict"]

        def restore() -> None:
            adaptation.method.restore(model, neurons, weights, source.scale)
            _on(model, device)  # adapters are made on the CPU

        if neurons is not None:
            changes = _changes_of_neurons(model, neurons, weights, restore)
        elif adaptation.method.result == "adapter" and source.scale == 1.0:  # at others it is merged
            changes = _changes_by_adapters(model, restore)
        else:
            changes = _changes_of_weights(model, restore)
        return cls(model, base.tokenizer, base.base, changes)


def _on(model: PreTrainedModel, device: torch.device) -> PreTrainedModel:
    return on_device(model, device).eval()


def _vectors(weight: Tensor, dim: int, index: Tensor, new: Tensor) -> VectorChange:
    index = index.to(weight.device)
    old = weight.detach().index_select(dim, index)
    return VectorChange(weight, dim, index, old, new.to(weight))


def _changes_of_neurons(
    model: PreTrainedModel, neurons: NeuronSet, weights: dict[str, Tensor], restore: Callable[[], None]
) -> list[Change]:
    def present() -> Iterator[NeuronChange]:
        for ffn in find_gated_ffns(model):
            for projection in ("gate", "up", "down"):
                if f"{ffn.layer}.{projection}" in weights:
                    index = neurons.by_layer[ffn.layer].to(ffn.down.weight.device)
                    now = ffn.read(projection, index)
                    yield NeuronChange(ffn, projection, index, now, now)

    before = list(present())
    restore()
    return [replace(old, adapted=new.adapted) for old, new in zip(before, present(), strict=True)]


def _changes_by_adapters(model: PreTrainedModel, restore: Callable[[], None]) -> list[Change]:
    from peft.tuners.tuners_utils import BaseTunerLayer

    restore()
    return [AdapterChange(layer) for layer in model.modules() if isinstance(layer, BaseTunerLayer)]


def _changes_of_weights(model: PreTrainedModel, restore: Callable[[], None]) -> list[Change]:
    before = {name: weight.detach().clone() for name, weight in model.named_parameters()}
    restore()
    now = {name: weight for name, weight in model.named_parameters() if not torch.equal(weight, before[name])}
    return [WeightChange(weight, before[name], weight.data) for name, weight in now.items()]
