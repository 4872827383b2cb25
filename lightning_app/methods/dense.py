"""Training whole matrices: every weight, or every weight of the FFNs. The paper's baselines; a base from scratch."""

from collections.abc import Callable, Sequence
from typing import ClassVar

import torch
from torch import Tensor, nn
from transformers import PreTrainedModel

from lightning_app.errors import UserError
from lightning_app.methods.method import Attached, Method, Weights
from lightning_app.model.ffn import find_gated_ffns
from lightning_app.neurons.neuron_set import NeuronSet


class DenseTraining(Attached):
    """Trains parameters of the base itself, in fp32 at least.

    Args:
        base: The base.
        is_trained: Which of its parameters are.
        name: Of the method, for checkpoints.
        what: The same for people.
    """

    def __init__(self, base: PreTrainedModel, is_trained: Callable[[nn.Parameter], bool], name: str, what: str) -> None:
        super().__init__()
        # In a tuple, so that the base is no part of this module and its parameters stand in one place only.
        self._base = (base,)
        self._name, self._what = name, what
        for parameter in base.parameters():
            parameter.requires_grad_(is_trained(parameter))

    def trained(self) -> Sequence[Tensor]:
        """Returns them in the base's order."""
        return [parameter for parameter in self._base[0].parameters() if parameter.requires_grad]

    @property
    def trained_parameters(self) -> int:
        """Numbers that training may change, tied ones once."""
        return sum(parameter.numel() for parameter in self.trained())

    def weights(self) -> Weights:
        """Returns the trained tensors by the base's own names, tied ones under each."""
        trained = {id(parameter) for parameter in self.trained()}
        named = self._base[0].state_dict(keep_vars=True)
        return {name: tensor.detach() for name, tensor in named.items() if id(tensor) in trained}

    def load_weights(self, weights: Weights) -> None:
        """Takes over tensors of the same names and shapes."""
        _load(self._base[0], weights)

    def identity(self) -> dict[str, object]:
        """Returns the method."""
        return {"method": self._name}

    def describe(self) -> str:
        """Returns which weights."""
        return self._what


class _Dense(Method):
    makes_model: ClassVar[bool] = True

    def weight_dtype(self, dtype: torch.dtype) -> torch.dtype:
        """Returns fp32 at least: the trained weights are the base's own."""
        return torch.promote_types(dtype, torch.float32)

    def restore(self, base: PreTrainedModel, neurons: NeuronSet | None, weights: Weights) -> None:
        """Loads the tensors."""
        _load(base, weights)


class FullTraining(_Dense):
    """Trains every weight."""

    name: ClassVar[str] = "full"
    trains_new_base: ClassVar[bool] = True

    def attach(self, base: PreTrainedModel, neurons: NeuronSet | None) -> Attached:
        """Makes every weight trainable."""
        return DenseTraining(base, lambda parameter: True, self.name, "every weight")


class FFNTraining(_Dense):
    """Trains every weight of the gated FFNs (the paper's baseline "FFN")."""

    name: ClassVar[str] = "ffn"

    def attach(self, base: PreTrainedModel, neurons: NeuronSet | None) -> Attached:
        """Makes gate, up and down of every layer trainable."""
        modules = [linear for ffn in find_gated_ffns(base) for linear in (ffn.gate, ffn.up, ffn.down)]
        trained = {id(parameter) for module in modules for parameter in module.parameters()}
        return DenseTraining(base, lambda parameter: id(parameter) in trained, self.name, "every weight of the FFNs")


def _load(base: PreTrainedModel, weights: Weights) -> None:
    unexpected = base.load_state_dict(weights, strict=False).unexpected_keys
    if unexpected:
        raise UserError(f"the checkpoint has weights that the base lacks: {', '.join(unexpected[:3])}")
