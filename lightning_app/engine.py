"""The two ways to train a subnetwork, behind one interface."""

from collections.abc import Iterable
from typing import Any, Literal, Protocol

from torch import Tensor
from torch.optim import Optimizer

from lightning_app.ffn import GatedFFN
from lightning_app.masked import MaskedEngine
from lightning_app.packed import PackedEngine


class Engine(Protocol):
    """Owns the neuron weights: what is trained, what is saved, and how it reaches the live weights."""

    name: str

    def neuron_weights(self) -> dict[str, Tensor]: ...
    def load_neuron_weights(self, weights: dict[str, Tensor]) -> None: ...
    def after_step(self) -> None: ...
    def optimizer(self, **options: Any) -> Optimizer: ...
    def require_frozen_gradients_zero(self) -> None: ...


def build_engine(
    name: Literal["packed", "masked"], ffns: list[GatedFFN], neurons: dict[int, Tensor], projections: Iterable[str]
) -> Engine:
    """Returns the engine of that name for the given neurons per layer."""
    if name == "packed":
        return PackedEngine(ffns, neurons, projections)
    return MaskedEngine(ffns, neurons, projections)
