"""The protocol that every way to adapt a base follows; the rest of the program never asks which one runs."""

from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor, nn
from torch.optim import AdamW, Optimizer
from transformers import PreTrainedModel

from lightning_app.model.ffn import Projection, find_gated_ffns
from lightning_app.neurons.neuron_set import NeuronSet

Weights = dict[str, Tensor]
"""Trained weights by name, as a checkpoint holds them."""


@dataclass(frozen=True)
class Delta:
    """What training changed, where that can be said by neurons.

    Attributes:
        neurons: The neurons that changed.
        vectors: Their new vectors by ``{layer}.{projection}``, (S, D); columns of down_proj are stored as rows.
    """

    neurons: NeuronSet
    vectors: Weights

    def write(self, base: PreTrainedModel) -> None:
        """Rounds the vectors into the live weights of ``base``, in place."""
        ffns = find_gated_ffns(base)
        for name, vectors in self.vectors.items():
            layer, projection = name.split(".")
            device = ffns[int(layer)].down.weight.device
            ffns[int(layer)].write(projection, self.neurons.by_layer[int(layer)].to(device), vectors.to(device))


class Attached(nn.Module, ABC):
    """A method at work on a base: what is trained, and how it reaches the live weights.

    Attributes:
        neurons: The neurons that are trained, or None where what is trained is not said by neurons.
        lowest_layer: The lowest decoder layer with something trained; nothing below it needs a graph.
    """

    neurons: NeuronSet | None = None
    lowest_layer: int = 0

    @abstractmethod
    def trained(self) -> Sequence[Tensor]:
        """Returns the parameters that the optimiser steps."""

    @abstractmethod
    def weights(self) -> Weights:
        """Returns the trained weights as a checkpoint holds them."""

    @abstractmethod
    def load_weights(self, weights: Weights) -> None:
        """Takes over weights of the same names and shapes, and brings the live weights up to date."""

    @abstractmethod
    def identity(self) -> dict[str, object]:
        """Returns what a checkpoint must have been made with for its weights to be these, as plain data."""

    @abstractmethod
    def describe(self) -> str:
        """Returns what is trained, in a few words."""

    @property
    def trained_parameters(self) -> int:
        """Numbers that training may change."""
        return sum(weights.numel() for weights in self.weights().values())

    def optimizer(self, lr: float, weight_decay: float, betas: tuple[float, float]) -> Optimizer:
        """Returns AdamW; weight decay reaches nothing that is not trained."""
        return AdamW(self.trained(), lr=lr, weight_decay=weight_decay, betas=betas)

    def after_step(self) -> None:
        """Brings the live weights up to date, where they are not what the optimiser steps."""

    def require_frozen_gradients_zero(self) -> None:
        """Raises `RuntimeError` where a gradient reached a frozen entry, for methods in which one could."""

    def delta(self) -> Delta | None:
        """Returns what changed against the base, or None where that is not said by neurons."""
        return Delta(self.neurons, self.weights()) if self.neurons is not None else None


class NeuronTraining(Attached):
    """What ways to train the same vectors have in common, so that their checkpoints are alike.

    Args:
        neurons: The neurons to train.
        projections: Which of gate, up and down are trained.
    """

    name: ClassVar[str]

    def __init__(self, neurons: NeuronSet, projections: tuple[Projection, ...]) -> None:
        super().__init__()
        self.neurons: NeuronSet = neurons
        self.projections = projections
        self.lowest_layer = min(neurons.layers, default=0)

    def identity(self) -> dict[str, object]:
        # The engine too: each has its own optimiser states.
        own = {"subnetwork": self.neurons.identity, "projections": list(self.projections), "engine": self.name}
        return {"method": "subnetwork", **own}

    def describe(self) -> str:
        return f"{len(self.neurons)} neurons in {len(self.neurons.layers)} layers ({'+'.join(self.projections)})"


@dataclass(frozen=True)
class Method(ABC):
    """A way to adapt a base. The fields of a subclass are its keys, ``--model.KEY`` on the command line.

    Attributes:
        name: What ``--model.method`` calls it.
        needs_neurons: Whether it trains neurons, which have to be selected first.
        makes_model: Whether its result is a whole model, kept as a transformers folder once the run is complete.
        trains_new_base: Whether it can train a base from random weights.
    """

    name: ClassVar[str]
    needs_neurons: ClassVar[bool] = False
    makes_model: ClassVar[bool] = False
    trains_new_base: ClassVar[bool] = False

    def weight_dtype(self, dtype: torch.dtype) -> torch.dtype:
        """Returns the dtype to load a base in, where its frozen weights would be ``dtype``."""
        return dtype

    @abstractmethod
    def attach(self, base: PreTrainedModel, neurons: NeuronSet | None) -> Attached:
        """Prepares a frozen base for training, in place; its weights may be on the meta device.

        Args:
            base: Nothing of it requires a gradient.
            neurons: The neurons to train; None unless ``needs_neurons``.
        """

    def restore(self, base: PreTrainedModel, neurons: NeuronSet | None, weights: Weights) -> None:
        """Writes a checkpoint's weights into a base, which stays a plain transformers model."""
        if neurons is not None:
            Delta(neurons, weights).write(base)
        else:
            base.load_state_dict(weights, strict=False)
