"""The protocol that every way to adapt a base follows; the rest of the program never asks which one runs."""

from abc import ABC, abstractmethod
from collections.abc import Callable, Iterable, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass, fields
from pathlib import Path
from typing import ClassVar

import torch
from torch import Tensor, nn
from torch.optim import Optimizer
from transformers import PreTrainedModel

from lightning_app.errors import UserError
from lightning_app.methods.adamw import FusedAdamW
from lightning_app.model.beside import NeuronsBeside
from lightning_app.model.ffn import PROJECTIONS, Projection, find_gated_ffns
from lightning_app.model.shards import like, local
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

    def write(self, base: PreTrainedModel, scale: float = 1.0) -> None:
        """Rounds the vectors into the live weights of ``base``, in place; beside them, where those are quantised.

        ``scale`` shrinks or stretches the change.
        """
        ffns = find_gated_ffns(base)
        projections = {name.split(".")[1] for name in self.vectors}
        for place, taken in self.neurons.by_layer.items():
            if ffns[place].is_quantized:
                NeuronsBeside(ffns[place], taken, [each for each in PROJECTIONS if each in projections])
        for name, vectors in self.vectors.items():
            layer, projection = name.split(".")
            ffn = ffns[int(layer)]
            neurons = self.neurons.by_layer[int(layer)].to(ffn.down.weight.device)
            vectors = vectors.to(ffn.down.weight.device)
            if scale != 1.0:
                vectors = ffn.read(projection, neurons).to(vectors.dtype).lerp(vectors, scale)
            ffn.write(projection, neurons, vectors)


@dataclass(frozen=True)
class Calibration:
    """Text that a method looks at before it trains, and how it runs through the base.

    Attributes:
        blocks: Returns up to so many sequences of so many token ids, (T,), of a language by its code, or of the
            languages that are adapted to where the code is None.
        device: Where the base is.
        forward_context: Makes the context that a forward pass runs in, autocast for example.
    """

    blocks: Callable[[str | None, int, int], Iterable[Tensor]]
    device: torch.device
    forward_context: Callable[[], AbstractContextManager[object]]


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

    def take(self, weights: Weights) -> None:
        """Takes over the weights of a checkpoint, wherever they are.

        Raises:
            UserError: Their names or shapes are others.
        """
        mine = self.weights()
        if {name: w.shape for name, w in mine.items()} != {name: w.shape for name, w in weights.items()}:
            raise UserError(
                f"the checkpoint's {len(weights)} weights do not fit the {len(mine)} of this run; "
                "they were made with other --model keys, another subnetwork or another base"
            )
        self.load_weights({name: w.to(mine[name].device) for name, w in weights.items()})

    @abstractmethod
    def identity(self) -> dict[str, object]:
        """Returns what a checkpoint must have been made with for its weights to be these, as plain data."""

    @abstractmethod
    def describe(self) -> str:
        """Returns what is trained, in a few words."""

    @property
    def trained_parameters(self) -> int:
        """Numbers that training may change."""
        return sum(weights.numel() for weights in self.trained())

    def calibrate(self, calibration: Calibration) -> None:
        """Looks at text before the first step, for methods that have to; what it finds is among `weights`."""

    def optimizer(self, lr: float, weight_decay: float, betas: tuple[float, float]) -> Optimizer:
        """Returns AdamW; weight decay reaches nothing that is not trained."""
        return FusedAdamW(self.trained(), lr, weight_decay, betas)

    def after_step(self) -> None:
        """Brings the live weights up to date, where they are not what the optimiser steps."""

    def check_gradients(self, base: PreTrainedModel) -> str:
        """Returns a line for people on what got no gradient in a step; empty where everything has one.

        Raises:
            RuntimeError: A gradient reached a frozen weight, or a frozen entry of one.
        """
        trained = self.trained()
        own = {id(weight) for weight in trained}
        for name, weight in base.named_parameters():
            if weight.grad is not None and id(weight) not in own and bool(weight.grad.any()):
                raise RuntimeError(f"the frozen weight {name} has a gradient")
        self.require_frozen_gradients_zero()
        without = sum(weight.grad is None for weight in trained)
        reason = "no text of this step reached them, or nothing of the loss depends on them"
        return f"warning: {without} of {len(trained)} trained matrices got no gradient: {reason}" if without else ""

    def require_frozen_gradients_zero(self) -> None:
        """Raises `RuntimeError` where a gradient reached a frozen entry, for methods in which one could."""

    def delta(self) -> Delta | None:
        """Returns what changed against the base, or None where that is not said by neurons."""
        return Delta(self.neurons, self.weights()) if self.neurons is not None else None

    def save(self, folder: Path) -> None:
        """Writes a `Method.result` as its own library reads it, by the first process. Collective where sharded."""


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

    @abstractmethod
    def gradients(self) -> dict[str, Tensor | None]:
        """Returns the gradients of `weights`, (S, D); None where there is none."""

    def check_gradients(self, base: PreTrainedModel) -> str:
        """Returns how many neurons got a gradient of exactly zero; see `Attached.check_gradients`.

        Raises:
            RuntimeError: As there, or a projection has no gradient at all.
        """
        super().check_gradients(base)
        is_reached: dict[str, Tensor] = {}
        for name, grad in self.gradients().items():
            layer, projection = name.split(".")
            if grad is None:
                raise RuntimeError(f"the neurons of layer {layer} have no gradient in {projection}_proj")
            reached = (grad != 0).any(1)
            is_reached[layer] = is_reached[layer] | reached if layer in is_reached else reached
        dead, every = sum(int((~reached).sum()) for reached in is_reached.values()), len(self.neurons)
        reason = "dead units, or such as no token of this step opens"
        return f"warning: {dead} of {every} neurons got a gradient of exactly zero: {reason}" if dead else ""

    def describe(self) -> str:
        return f"{len(self.neurons)} neurons in {len(self.neurons.layers)} layers ({'+'.join(self.projections)})"


@dataclass(frozen=True)
class Method(ABC):
    """A way to adapt a base. The fields of a subclass are its keys, ``--model.KEY`` on the command line.

    Args:
        seed: Of what the method draws at random.

    Attributes:
        name: What ``--model.method`` calls it.
        lr: Its learning rate where none is given.
        needs_neurons: Whether the neurons that speak the language have to be selected first.
        result: The file kind that its result is kept in once a run is complete, beside the checkpoints: ``model``, a
            transformers folder, or ``adapter``, PEFT's; None where the checkpoint is all.
        chooses_by_text: Whether `choose` looks at text; a run that goes on then keeps what it chose.
        trains_new_base: Whether it can train a base from random weights.
    """

    name: ClassVar[str]
    lr: ClassVar[float] = 1e-4
    needs_neurons: ClassVar[bool] = False
    chooses_by_text: ClassVar[bool] = False
    result: ClassVar[str | None] = None
    trains_new_base: ClassVar[bool] = False
    seed: int = 0

    @property
    def trains_beside(self) -> bool:
        """Whether what it trains stands, or can stand, beside the base's matrices, so that those can be quantised."""
        return False

    @property
    def settings(self) -> dict[str, object]:
        """The keys that are not at their defaults, the seed left out."""
        every = {each.name: (getattr(self, each.name), each.default) for each in fields(self) if each.name != "seed"}
        return {key: value for key, (value, default) in every.items() if value != default}

    def weight_dtype(self, dtype: torch.dtype) -> torch.dtype:
        """Returns the dtype to load a base in, where its frozen weights would be ``dtype``."""
        return dtype

    def widened(self, base: PreTrainedModel) -> Iterable[nn.Linear]:
        """Returns layers whose matrices it will train in more bits than the base has; once sharded it cannot."""
        return ()

    def choose(
        self, neurons: NeuronSet, base: PreTrainedModel, first_layer: int, calibration: Calibration
    ) -> NeuronSet:
        """Returns the neurons to train, where those that speak the language are ``neurons``.

        Args:
            neurons: Of the language, from ``first_layer`` up.
            base: Frozen.
            first_layer: The lowest layer whose neurons may be trained.
            calibration: Text to choose by.
        """
        return neurons

    @abstractmethod
    def attach(self, base: PreTrainedModel, neurons: NeuronSet | None) -> Attached:
        """Prepares a frozen base for training, in place; its weights may be on the meta device.

        Args:
            base: Nothing of it requires a gradient.
            neurons: The neurons to train; None unless ``needs_neurons``.

        Raises:
            UserError: The base has nothing of the kind that the method trains.
        """

    def restore(
        self, base: PreTrainedModel, neurons: NeuronSet | None, weights: Weights, scale: float = 1.0,
        is_merged: bool = False,
    ) -> None:  # fmt: skip
        """Writes a checkpoint's weights into a base, which stays a plain transformers model.

        Args:
            base: As it was before training.
            neurons: Those that were trained.
            weights: As `Attached.weights` gave them.
            scale: Shrinks or stretches what training changed; 0 is the base and 1 the trained model.
            is_merged: Whether what stands beside the base's weights is written into them.
        """
        if neurons is not None:
            Delta(neurons, weights).write(base, scale)
        else:
            write_weights(base, weights, scale)


def write_weights(base: PreTrainedModel, weights: Weights, scale: float) -> None:
    """Writes whole weights into a base by their names, in place."""
    live = base.state_dict()
    for name in weights.keys() & live.keys():
        here = local(live[name])
        new = local(like(live[name], weights[name])).to(here.device)
        here.copy_(new if scale == 1.0 else here.to(new.dtype).lerp(new, scale))
