"""The packed engine: live weights, and fp32 rows for the trained neurons only.

The model's own weights are the adapted weights, always. The forward is the ordinary one; the backward makes input
gradients with the full matrices and weight gradients for the selected rows alone; after each optimiser step the rows
are rounded into the matrices in place. No clone, no extra forward work, optimiser states for the rows only, and
frozen entries cannot move. Gradients equal those of full training under a mask.

The neurons of a quantised base stand beside its matrices instead; see `lightning_app.model.beside`.

Shape suffixes: T tokens, D hidden size, N neurons per layer, S selected neurons.
"""

from collections.abc import Mapping, Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.autograd.function import once_differentiable

from lightning_app.methods.method import NeuronTraining, Weights
from lightning_app.model.beside import NeuronsBeside
from lightning_app.model.ffn import GatedFFN, Projection
from lightning_app.model.neuron_rows import NeuronRows, gated, gated_gradients, in_rows_dtype, rounded, row_gradients
from lightning_app.model.shards import VectorPlace
from lightning_app.neurons.neuron_set import NeuronSet


class _PackedFFN(torch.autograd.Function):
    """The whole gated FFN as one function: keeps x, gate and up for the backward and makes the rest again."""

    @staticmethod
    def forward(
        ctx: Any,
        x: Tensor,
        gate_rows: Tensor | None,
        up_rows: Tensor | None,
        down_rows: Tensor | None,
        ffn: GatedFFN,
        neurons: Tensor,
    ) -> Tensor:
        x = x.to(ffn.down.weight.dtype)
        with torch.autocast("cpu" if x.is_meta else x.device.type, enabled=False):
            gate = F.linear(x, ffn.gate.weight, ffn.gate.bias)
            if ffn.is_fused:
                gate, up = gate[..., : ffn.neurons], gate[..., ffn.neurons :]
            else:
                up = F.linear(x, ffn.up.weight, ffn.up.bias)
            h = gated(ffn.act, gate, up)
            h_S = None if down_rows is None else h.index_select(-1, neurons)
            out = F.linear(h, ffn.down.weight, ffn.down.bias)
        ctx.save_for_backward(x, gate, up, h_S)
        # Weights and indices go on the context, not among the saved tensors: they change in place between steps.
        ctx.ffn, ctx.neurons = ffn, neurons
        return out

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad_out: Tensor) -> tuple[Tensor | None, ...]:
        ffn, neurons = ctx.ffn, ctx.neurons
        needs_x, needs_gate, needs_up, needs_down = ctx.needs_input_grad[:4]
        shape = grad_out.shape
        *wide, h_S = ctx.saved_tensors
        x_TD, gate_TN, up_TN = (saved.flatten(0, -2) for saved in wide)
        grad_TD = grad_out.reshape(-1, shape[-1]).to(x_TD.dtype)
        grad_down = h_S.flatten(0, -2).t() @ grad_TD if needs_down else None
        down = ffn.down.weight
        if not needs_x:  # nothing below is trained: the selected columns are all that is needed
            gate_TN, up_TN = gate_TN.index_select(1, neurons), up_TN.index_select(1, neurons)
            down = down[:, neurons]
        grad_gate_out, grad_up_out = gated_gradients(ffn.act, gate_TN, up_TN, grad_TD @ down)
        both = (grad_gate_out if needs_gate else None, grad_up_out if needs_up else None)
        grad_gate, grad_up = row_gradients(x_TD, both, neurons if needs_x else None)
        grad_x = None
        if needs_x:
            if ffn.is_fused:
                grad_x = torch.cat([grad_gate_out, grad_up_out], dim=-1) @ ffn.gate.weight
            else:
                grad_x = grad_gate_out @ ffn.gate.weight
                grad_x.addmm_(grad_up_out, ffn.up.weight)
            grad_x = grad_x.reshape((*shape[:-1], x_TD.shape[-1]))
        grads = (None if grad is None else in_rows_dtype(grad) for grad in (grad_gate, grad_up, grad_down))
        return grad_x, *grads, None, None


class _PackedRows(NeuronRows):
    function = _PackedFFN
    _places: Mapping[str, VectorPlace] | None = None
    _places_on: torch.device | None = None

    def places(self) -> Mapping[str, VectorPlace]:
        if self._places is None or self._places_on != self.neurons.device:  # Lightning moves the base after a resume
            self._places = {name: self._ffn.place(name, self.neurons) for name, _ in self.named_parameters()}
            self._places_on = self.neurons.device
        return self._places


class PackedEngine(NeuronTraining):
    """Trains the neurons of one language as packed rows.

    Parameters are named ``{layer}.{projection}`` and hold the D-vectors of the layer's neurons, (S, D); columns of
    down_proj are stored as rows. They are fp32, or fp64 for an fp64 base: AdamW on bf16 rows loses 12 to 85 % of
    updates of 1e-4 to 1e-5 at weights of std 0.02.

    Args:
        ffns: The gated FFNs of the whole model.
        neurons: The neurons to train.
        projections: Which of gate, up and down are trained.
    """

    name = "packed"

    def __init__(self, ffns: list[GatedFFN], neurons: NeuronSet, projections: tuple[Projection, ...]) -> None:
        super().__init__(neurons, projections)
        self.rows, self._stepped = nn.ModuleDict(), list[NeuronRows]()
        for ffn in ffns:
            if ffn.layer < self.lowest_layer:
                continue  # nothing below needs a gradient: the plain module, which then keeps nothing for backward
            kind = NeuronsBeside if ffn.is_quantized else _PackedRows
            rows = kind(ffn, neurons.by_layer.get(ffn.layer), projections)
            if ffn.layer in neurons.by_layer:
                self.rows[str(ffn.layer)] = rows
                self._stepped.append(rows)

    def trained(self) -> Sequence[Tensor]:
        """Returns the rows; weight decay touches nothing else because nothing else is a parameter."""
        return list(self.parameters())

    def weights(self) -> Weights:
        """Returns the trained vectors by ``{layer}.{projection}``, (S, D)."""
        return {
            f"{layer}.{projection}": rows.detach()
            for layer, packed in self.rows.items()
            for projection, rows in packed.named_parameters()
        }

    def gradients(self) -> dict[str, Tensor | None]:
        return {
            f"{layer}.{projection}": rows.grad
            for layer, packed in self.rows.items()
            for projection, rows in packed.named_parameters()
        }

    @torch.no_grad()
    def load_weights(self, weights: Weights) -> None:
        for name, rows in self.weights().items():
            rows.copy_(weights[name])
        self.after_step()

    def after_step(self) -> None:
        """Rounds the rows of all layers at once, and writes them into the matrices."""
        places = [(rows, name, place) for rows in self._stepped for name, place in rows.places().items()]
        matrices = [rows.matrix(name) for rows, name, _ in places]
        vectors = rounded([rows.get_parameter(name).detach() for rows, name, _ in places], matrices)
        for (_, _, place), matrix, own in zip(places, matrices, vectors, strict=True):
            place.write(matrix, own)
