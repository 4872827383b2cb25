"""Rows of an FFN's neurons, trained by themselves: what both ways to compute with them have in common.

Shape suffixes: N neurons per layer, D hidden size, S selected neurons.
"""

from collections.abc import Callable, Iterable
from typing import ClassVar

import torch
from torch import Tensor, nn
from torch.autograd import Function

from lightning_app.model.ffn import GatedFFN, Projection


class NeuronRows(nn.Module):
    """An FFN's neurons as parameters by projection, (S, D); columns of down_proj are stored as rows.

    They are fp32, or fp64 for an fp64 base.

    Args:
        ffn: The FFN, which computes through `function` from now on.
        neurons: Which, int64 (S,), sorted; None where none.
        projections: Which of gate, up and down are held.

    Attributes:
        function: Of x, the rows of gate, up and down (None where one is not held), the FFN and the neurons.
    """

    function: ClassVar[type[Function]]
    neurons: Tensor

    def __init__(self, ffn: GatedFFN, neurons: Tensor | None, projections: Iterable[Projection]) -> None:
        super().__init__()
        self._ffn = ffn
        selected = torch.empty(0, dtype=torch.int64) if neurons is None else neurons
        self.register_buffer("neurons", selected.to(ffn.down.weight.device), persistent=False)
        for projection in projections if neurons is not None else ():
            rows = ffn.read(projection, self.neurons)
            self.register_parameter(projection, nn.Parameter(in_rows_dtype(rows)))
        ffn.module.forward = self.forward

    def forward(self, x: Tensor) -> Tensor:
        rows = [self._parameters.get(projection) for projection in ("gate", "up", "down")]
        return self.function.apply(x, *rows, self._ffn, self.neurons)

    def write_back(self) -> None:
        """Brings the FFN's own matrices up to date, where it computes with them."""


def in_rows_dtype(tensor: Tensor) -> Tensor:
    """Returns a tensor in the dtype that rows of its kind are trained in."""
    return tensor.to(torch.promote_types(tensor.dtype, torch.float32))


def widen(linear: nn.Linear) -> None:
    """Lets a linear layer have its frozen matrix in the dtype that rows of it would be trained in."""
    linear.weight = nn.Parameter(in_rows_dtype(linear.weight.detach()), requires_grad=False)


def activation_with_gradient(act: Callable[[Tensor], Tensor], gate: Tensor, grad: Tensor) -> tuple[Tensor, Tensor]:
    """Returns act(gate), and the gradient with respect to gate where that with respect to act(gate) is ``grad``."""
    if torch.compiler.is_compiling():  # Dynamo traces this one; eagerly it costs four times the other
        out, backward, *_ = torch.func.vjp(act, gate)
        return out, backward(grad)[0]
    with torch.enable_grad():
        leaf = gate.detach().requires_grad_()
        out = act(leaf)
    return out.detach(), torch.autograd.grad(out, leaf, grad)[0]
