"""Training whole matrices: every weight, or those of some parts. The paper's baselines; a base from scratch."""

from collections.abc import Iterable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import ClassVar

import torch
from torch import Tensor, nn
from transformers import PreTrainedModel

from lightning_app.errors import UserError
from lightning_app.methods.method import Attached, Method, Weights
from lightning_app.model.ffn import find_gated_ffns
from lightning_app.model.layers import attention_linears, decoder_layers
from lightning_app.model.shards import assembled, is_first, like, shed
from lightning_app.neurons.neuron_set import NeuronSet


class DenseTraining(Attached):
    """Trains parameters of the base itself.

    Args:
        base: The base.
        trained: Which of its parameters.
        method: Who asks.
    """

    def __init__(self, base: PreTrainedModel, trained: Iterable[nn.Parameter], method: "DenseMethod") -> None:
        super().__init__()
        # In a tuple, so that the base is no part of this module and its parameters stand in one place only.
        self._base, self._method = (base,), method
        for parameter in trained:
            parameter.requires_grad_(True)

    @property
    def base(self) -> PreTrainedModel:
        """The base that is trained."""
        return self._base[0]

    def trained(self) -> Sequence[Tensor]:
        shed(self.base)
        return [parameter for parameter in self.base.parameters() if parameter.requires_grad]

    def weights(self) -> Weights:
        trained = {id(parameter) for parameter in self.trained()}
        named = self.base.state_dict(keep_vars=True)  # tied ones under each of their names
        return {name: assembled(tensor.detach()) for name, tensor in named.items() if id(tensor) in trained}

    def load_weights(self, weights: Weights) -> None:
        live = self.base.state_dict()
        self.base.load_state_dict({name: like(live[name], tensor) for name, tensor in weights.items()}, strict=False)

    def identity(self) -> dict[str, object]:
        return {"method": self._method.name, **asdict(self._method)}

    def describe(self) -> str:
        return self._method.what

    def save(self, folder: Path) -> None:
        every = {name: assembled(tensor) for name, tensor in self.base.state_dict().items()}
        if is_first():
            self.base.save_pretrained(folder, state_dict=every)


class DenseMethod(Method):
    """What the dense methods have in common."""

    lr: ClassVar[float] = 1e-5  # the paper's, for full and FFN training
    what: ClassVar[str]
    result: ClassVar[str | None] = "model"

    def weight_dtype(self, dtype: torch.dtype) -> torch.dtype:
        return torch.promote_types(dtype, torch.float32)  # the trained weights are the base's own


class FullTraining(DenseMethod):
    """Trains every weight."""

    name: ClassVar[str] = "full"
    what: ClassVar[str] = "every weight"
    trains_new_base: ClassVar[bool] = True

    def attach(self, base: PreTrainedModel, neurons: NeuronSet | None) -> Attached:
        return DenseTraining(base, base.parameters(), self)


class FFNTraining(DenseMethod):
    """Trains every weight of the gated FFNs (the paper's baseline "FFN")."""

    name: ClassVar[str] = "ffn"
    what: ClassVar[str] = "every weight of the FFNs"

    def attach(self, base: PreTrainedModel, neurons: NeuronSet | None) -> Attached:
        linears = [linear for ffn in find_gated_ffns(base) for linear in (ffn.gate, ffn.up, ffn.down)]
        return DenseTraining(base, [parameter for linear in linears for parameter in linear.parameters()], self)


@dataclass(frozen=True)
class LastLayers(DenseMethod):
    """Trains every weight of the last decoder layers.

    Args:
        last_layers: How many.
    """

    name: ClassVar[str] = "last_layers"
    what: ClassVar[str] = "every weight of the last decoder layers"

    last_layers: int = 2

    def attach(self, base: PreTrainedModel, neurons: NeuronSet | None) -> Attached:
        layers = decoder_layers(base)
        if not 0 < self.last_layers <= len(layers):
            raise UserError(
                f"--model.last_layers is {self.last_layers}; expected 1 to {len(layers)}, the base's layers"
            )
        trained = layers[-self.last_layers :]
        attached = DenseTraining(base, [parameter for layer in trained for parameter in layer.parameters()], self)
        attached.lowest_layer = len(layers) - self.last_layers
        return attached


class HalfFineTuning(DenseMethod):
    """Freezes half of the matrices of every decoder layer, drawn at random, and trains everything else.

    Of four attention matrices two are frozen; of three FFN matrices two in a random half of the layers and one in the
    others (HFT, arXiv 2404.18466, in the form that arXiv 2512.04844 compares with). Norms, embeddings and head train.
    """

    name: ClassVar[str] = "hft"
    lr: ClassVar[float] = 5e-5  # as arXiv 2512.04844 trains it
    what: ClassVar[str] = "every weight but half of each layer's matrices"

    def attach(self, base: PreTrainedModel, neurons: NeuronSet | None) -> Attached:
        frozen = {id(parameter) for linear in self.frozen(base) for parameter in linear.parameters()}
        return DenseTraining(base, [weight for weight in base.parameters() if id(weight) not in frozen], self)

    def frozen(self, base: PreTrainedModel) -> list[nn.Linear]:
        """Returns the linear layers that are frozen; the same for the same seed."""
        generator = torch.Generator().manual_seed(self.seed)
        layers, ffns = decoder_layers(base), find_gated_ffns(base)
        with_two = set(torch.randperm(len(layers), generator=generator)[: len(layers) // 2].tolist())

        def drawn(linears: list[nn.Linear], count: int) -> list[nn.Linear]:
            return [linears[i] for i in torch.randperm(len(linears), generator=generator)[:count].tolist()]

        frozen: list[nn.Linear] = []
        for number, (layer, ffn) in enumerate(zip(layers, ffns, strict=True)):
            attention = attention_linears(layer, ffn)
            frozen += drawn(attention, len(attention) // 2)
            of_ffn = list(dict.fromkeys((ffn.gate, ffn.up, ffn.down)))  # fused gate and up are one matrix
            frozen += drawn(of_ffn, 2 if number in with_two and len(of_ffn) > 2 else 1)
        return frozen
