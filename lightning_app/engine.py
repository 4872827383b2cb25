"""The two ways to train a subnetwork, behind one interface."""

from collections.abc import Iterable
from typing import Any, Literal, Protocol

import torch
from torch import Tensor, nn
from torch.optim import Optimizer
from transformers import PreTrainedModel

from lightning_app.errors import UserError
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


def require_compiler(device: torch.device) -> None:
    """Compiles next to nothing, so that a machine without a compiler is told before the first step.

    Raises:
        UserError: torch.compile does not work here.
    """
    try:
        torch.compile(torch.sin)(torch.ones(2, device=device))
    except RuntimeError as error:
        reason = str(error).split("\n")[0]
        raise UserError(
            f"torch.compile does not work on this machine: {reason[:160]}; install a C++ compiler, or --model.compile "
            "false"
        ) from error


def compile_layers(model: PreTrainedModel, engine: Engine | None, **options: Any) -> None:
    """Compiles every decoder layer on its own, so that layers of a kind share one compilation.

    Args:
        model: The base, with the engine in place.
        engine: What trains it. Its rows differ in number from layer to layer; they are marked as dynamic, or every
            layer would be compiled anew and Dynamo would give up after a few.
        options: For torch.compile.
    """
    config = torch._dynamo.config
    config.force_parameter_static_shapes = config.force_nn_module_property_static_shapes = False
    # Below the first trained layer, that layer, without neurons, with one, with more; for each kind of attention.
    config.recompile_limit = max(config.recompile_limit, 32)
    if isinstance(engine, nn.Module):
        for rows in (*engine.parameters(), *engine.buffers()):
            torch._dynamo.maybe_mark_dynamic(rows, 0)
    for layer in model.modules():
        if type(layer).__name__ in (model._no_split_modules or ()):
            layer.compile(**options)
