"""Rows of an FFN's neurons, trained by themselves: what both ways to compute with them have in common.

Shape suffixes: N neurons per layer, D hidden size, S selected neurons.
"""

from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any, ClassVar

import torch
from torch import Tensor, nn
from torch.autograd import Function

from lightning_app.model.ffn import GatedFFN, Projection
from lightning_app.model.shards import VectorPlace


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
            rows = in_rows_dtype(ffn.read(projection, self.neurons))
            self.register_parameter(projection, nn.Parameter(rows.contiguous()))  # as their gradients are made
        ffn.module.forward = self.forward

    def forward(self, x: Tensor) -> Tensor:
        rows = [self._parameters.get(projection) for projection in ("gate", "up", "down")]
        return self.function.apply(x, *rows, self._ffn, self.neurons)

    def places(self) -> Mapping[str, VectorPlace]:
        """Returns where each projection's rows are written in its matrix; nowhere where they compute themselves."""
        return {}

    def matrix(self, projection: str) -> Tensor:
        """Returns the FFN's own matrix of a projection."""
        return self._ffn.linear(projection).weight


def in_rows_dtype(tensor: Tensor) -> Tensor:
    """Returns a tensor in the dtype that rows of its kind are trained in."""
    return tensor.to(torch.promote_types(tensor.dtype, torch.float32))


def rounded(vectors: Sequence[Tensor], matrices: Sequence[Tensor]) -> Sequence[Tensor]:
    """Returns each of the vectors in the dtype of its matrix, all by one call where one has another."""
    dtypes = [matrix.dtype for matrix in matrices]
    if dtypes == [own.dtype for own in vectors]:
        return vectors
    found = [torch.empty_like(own, dtype=dtype) for own, dtype in zip(vectors, dtypes, strict=True)]
    torch._foreach_copy_(found, list(vectors))
    return found


def widen(linear: nn.Linear) -> None:
    """Lets a linear layer have its frozen matrix in the dtype that rows of it would be trained in."""
    linear.weight = nn.Parameter(in_rows_dtype(linear.weight.detach()), requires_grad=False)


def gated(act: Callable[[Tensor], Tensor], gate: Tensor, up: Tensor) -> Tensor:
    """Returns h = act(gate) * up, for which no second tensor of its size is made."""
    h = act(gate)
    return h * up if h is gate else h.mul_(up)


def gated_gradients(act: Callable[[Tensor], Tensor], gate: Tensor, up: Tensor, grad_h: Tensor) -> tuple[Tensor, Tensor]:
    """Returns the gradients with respect to gate and up of `gated`; the one with respect to h is overwritten.

    New tensors of this size cost a CPU as much as what is computed, so there are as few as can be.
    """
    if torch.compiler.is_compiling():  # Dynamo traces this one; eagerly it costs four times the others
        h, backward, *_ = torch.func.vjp(act, gate)
        return backward(grad_h * up)[0], grad_h * h
    with torch.enable_grad():
        leaf = gate.detach().requires_grad_()
        out = act(leaf)
    if _is_silu_of(out, leaf):  # whose backward needs its input alone, and can write where its gradient was
        grad_up = out.detach().mul_(grad_h)
        return torch.ops.aten.silu_backward.grad_input(grad_h.mul_(up), gate, grad_input=grad_h), grad_up
    grad_gate = torch.autograd.grad(out, leaf, grad_h * up)[0]
    return grad_gate, grad_h.mul_(out.detach())


def _is_silu_of(out: Tensor, leaf: Tensor) -> bool:
    made_by: Any = out.grad_fn
    return made_by.name() == "SiluBackward0" and getattr(made_by.next_functions[0][0], "variable", None) is leaf


def row_gradients(x: Tensor, grads: Sequence[Tensor | None], neurons: Tensor | None = None) -> Sequence[Tensor | None]:
    """Returns the gradients of rows, (S, D), by one product for all; None where there is none.

    Args:
        x: Input of the rows, (T, D).
        grads: With respect to what they put out, (T, N), or (T, S) where ``neurons`` is None.
        neurons: Which columns, (S,).
    """
    own = [grad if neurons is None else grad.index_select(1, neurons) for grad in grads if grad is not None]
    found = iter((torch.cat(own, dim=1).t() @ x).chunk(len(own)) if own else ())
    return [None if grad is None else next(found) for grad in grads]
