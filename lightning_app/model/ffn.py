"""Finds the gated FFNs of a transformers model: where a neuron's gate row, up row and down column live."""

import re
from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor, nn
from transformers import PreTrainedModel

from lightning_app.errors import UserError
from lightning_app.model.quantized import is_quantized, product_dtype, unquantized
from lightning_app.model.shards import VectorPlace, gathered, vectors_of

Projection = Literal["gate", "up", "down"]
PROJECTIONS: tuple[Projection, ...] = ("gate", "up", "down")

_SEPARATE = (("gate_proj", "up_proj", "down_proj"), ("w1", "w3", "w2"))
_FUSED = (("gate_up_proj", "down_proj"),)
_ACTIVATIONS = ("act_fn", "activation_fn", "act", "activation")


@dataclass(frozen=True, eq=False)
class GatedFFN:
    """One FFN(h) = W_down(act(W_gate h) * (W_up h)) of a decoder layer.

    Attributes:
        layer: Index of the decoder layer.
        module: The FFN module of transformers.
        gate: Linear layer that holds the gate rows; the same as ``up`` where the two are fused, gate rows first.
        up: Linear layer that holds the up rows.
        down: Linear layer that holds the down columns.
        act: Elementwise activation with act(x) > 0 exactly where x > 0.
    """

    layer: int
    module: nn.Module
    gate: nn.Linear
    up: nn.Linear
    down: nn.Linear
    act: Callable[[Tensor], Tensor]

    @property
    def neurons(self) -> int:
        return self.down.in_features

    @property
    def is_fused(self) -> bool:
        return self.gate is self.up

    @property
    def is_quantized(self) -> bool:
        return is_quantized(self.down)

    @property
    def dtype(self) -> torch.dtype:
        """Of its products; that of its matrices, unless they are quantised."""
        return product_dtype(self.down)

    def linear(self, projection: str) -> nn.Linear:
        """Returns the linear layer that holds a projection."""
        return getattr(self, projection)

    def gate_of(self, output: Tensor) -> Tensor:
        """Returns the gate part, (..., N), of what ``self.gate`` put out."""
        return output[..., : self.neurons]

    def rows_of(self, projection: str, neurons: Tensor) -> Tensor:
        """Returns where the neurons' vectors lie in a projection's matrix: rows of gate and up, columns of down."""
        return neurons + self.neurons if projection == "up" and self.is_fused else neurons

    def read(self, projection: str, neurons: Tensor) -> Tensor:
        """Returns a copy of the neurons' vectors in one projection, (neurons, D). Collective where it is sharded.

        Of a quantised matrix they are as they were before it was quantised, unless they stand beside it.
        """
        if self.is_quantized:
            if (beside := self._beside(projection, neurons)) is not None:
                return beside.detach().clone()
            index = self.rows_of(projection, neurons)
            return unquantized(self.linear(projection)).vectors(int(projection == "down"), index)
        return self.take(projection, neurons, self.linear(projection).weight).detach().clone()

    def take(self, projection: str, neurons: Tensor, matrix: Tensor) -> Tensor:
        """Returns the neurons' vectors, (neurons, D), of a matrix in a projection's place: its weight or gradient."""
        return vectors_of(matrix, int(projection == "down"), self.rows_of(projection, neurons))

    @torch.no_grad()
    def write(self, projection: str, neurons: Tensor, vectors: Tensor) -> None:
        """Rounds ``vectors`` (neurons, D) to the matrix's dtype and writes them in place.

        In a quantised FFN they have to stand beside the matrix already; see `lightning_app.model.beside`.
        """
        if self.is_quantized:
            beside = self._beside(projection, neurons)
            if beside is None:
                raise RuntimeError(f"layer {self.layer} is quantised, and these neurons do not stand beside it")
            beside.copy_(vectors)
            return
        weight = self.linear(projection).weight
        self.place(projection, neurons).write(weight, vectors.to(weight.dtype))

    def place(self, projection: str, neurons: Tensor) -> VectorPlace:
        """Returns where the neurons' vectors are written in a projection's matrix, to be kept by who writes often."""
        index = self.rows_of(projection, neurons)
        return VectorPlace(self.linear(projection).weight, int(projection == "down"), index)

    def _beside(self, projection: str, neurons: Tensor) -> Tensor | None:
        """Returns the neurons' own rows, (neurons, D), where just they stand beside a quantised matrix."""
        beside = getattr(self.module, "beside", None)
        if beside is None or not torch.equal(beside.neurons, neurons.to(beside.neurons.device)):
            return None
        return getattr(beside, projection, None)

    def reference(self, x: Tensor) -> Tensor:
        """Computes the FFN by its defining equation."""
        gate, up = self.gate(x), self.up(x)
        if self.is_fused:
            gate, up = gate[..., : self.neurons], up[..., self.neurons :]
        return self.down(self.act(gate) * up)


def find_gated_ffns(model: PreTrainedModel) -> list[GatedFFN]:
    """Returns the gated FFN of every decoder layer, in order. Collective where the model is sharded.

    Raises:
        UserError: The architecture has no gated FFN in every layer, mixes experts, or computes something else.
    """
    architecture = type(model).__name__
    layers = model.config.get_text_config().num_hidden_layers
    if any(re.search(r"\bexperts?\b", name) for name, _ in model.named_modules()):
        raise UserError(f"{architecture} is a mixture of experts; neurons are only known in dense gated FFNs")
    found = [ffn for name, module in model.named_modules() if (ffn := _as_gated_ffn(name, module)) is not None]
    if [ffn.layer for ffn in found] != list(range(layers)):
        raise UserError(
            f"{architecture} has no gated FFN (gate, up and down projections): found {len(found)} in {layers} layers. "
            "Llama, Mistral, Cohere, Gemma, Qwen, Phi-3 and models of their kind have one in each"
        )
    if len({ffn.neurons for ffn in found}) > 1:
        raise UserError(f"{architecture} has layers with different numbers of neurons; they are not comparable")
    with gathered(model, found[0].module):
        _require_equation(found[0], architecture)
    return found


def _as_gated_ffn(name: str, module: nn.Module) -> GatedFFN | None:
    layer = re.search(r"\.(\d+)\.", f"{name}.")
    act = next((getattr(module, a) for a in _ACTIVATIONS if callable(getattr(module, a, None))), None)
    if layer is None or act is None:
        return None
    for names in _SEPARATE + _FUSED:
        linears = [getattr(module, n, None) for n in names]
        if all(isinstance(linear, nn.Linear) for linear in linears):
            return GatedFFN(int(layer[1]), module, linears[0], linears[-2], linears[-1], act)  # type: ignore[arg-type]
    return None


@torch.no_grad()
def _require_equation(ffn: GatedFFN, architecture: str) -> None:
    """Compares the module with the equation on two inputs: an unknown multiplier must not go unnoticed."""
    weight = ffn.down.weight
    if weight.is_meta or hasattr(ffn.module, "beside"):  # which has been compared before
        return
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(2, ffn.gate.in_features, generator=generator).to(weight.device, ffn.dtype)
    grid = torch.linspace(-8, 8, 1000, device=weight.device)
    training = ffn.module.training
    same = torch.equal(ffn.act(grid) > 0, grid > 0) and torch.allclose(
        ffn.module.eval()(x).float(), ffn.reference(x).float(), rtol=2e-2, atol=1e-4
    )
    ffn.module.train(training)
    if not same:
        raise UserError(
            f"{architecture} has gate, up and down projections but computes something else than "
            "down(act(gate) * up) from them; it is not supported"
        )
