"""Training whole matrices: every weight, or every weight of the FFNs. The paper's baselines; a base from scratch."""

from collections.abc import Sequence
from typing import ClassVar

import torch
from torch import Tensor, nn
from transformers import PreTrainedModel

from lightning_app.methods.method import Attached, Method, Weights
from lightning_app.model.ffn import find_gated_ffns
from lightning_app.neurons.neuron_set import NeuronSet


class DenseTraining(Attached):
    """Trains parameters of the base itself.

    Args:
        base: The base.
        parts: Modules of it that are trained as a whole.
        method: Who asks.
    """

    def __init__(self, base: PreTrainedModel, parts: Sequence[nn.Module], method: "DenseMethod") -> None:
        super().__init__()
        # In a tuple, so that the base is no part of this module and its parameters stand in one place only.
        self._base, self._method = (base,), method
        for part in parts:
            part.requires_grad_(True)

    def trained(self) -> Sequence[Tensor]:
        return [parameter for parameter in self._base[0].parameters() if parameter.requires_grad]

    @property
    def trained_parameters(self) -> int:
        return sum(parameter.numel() for parameter in self.trained())

    def weights(self) -> Weights:
        trained = {id(parameter) for parameter in self.trained()}
        named = self._base[0].state_dict(keep_vars=True)  # tied ones under each of their names
        return {name: tensor.detach() for name, tensor in named.items() if id(tensor) in trained}

    def load_weights(self, weights: Weights) -> None:
        self._base[0].load_state_dict(weights, strict=False)

    def identity(self) -> dict[str, object]:
        return {"method": self._method.name}

    def describe(self) -> str:
        return self._method.what


class DenseMethod(Method):
    """What the dense methods have in common."""

    what: ClassVar[str]
    makes_model: ClassVar[bool] = True

    def weight_dtype(self, dtype: torch.dtype) -> torch.dtype:
        return torch.promote_types(dtype, torch.float32)  # the trained weights are the base's own


class FullTraining(DenseMethod):
    """Trains every weight."""

    name: ClassVar[str] = "full"
    what: ClassVar[str] = "every weight"
    trains_new_base: ClassVar[bool] = True

    def attach(self, base: PreTrainedModel, neurons: NeuronSet | None) -> Attached:
        return DenseTraining(base, [base], self)


class FFNTraining(DenseMethod):
    """Trains every weight of the gated FFNs (the paper's baseline "FFN")."""

    name: ClassVar[str] = "ffn"
    what: ClassVar[str] = "every weight of the FFNs"

    def attach(self, base: PreTrainedModel, neurons: NeuronSet | None) -> Attached:
        return DenseTraining(base, [x for ffn in find_gated_ffns(base) for x in (ffn.gate, ffn.up, ffn.down)], self)
