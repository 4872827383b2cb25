"""Neurons taken out of a quantised FFN and computed beside it.

Rows cannot live in a quantised matrix: a step of AdamW is far smaller than the distance of its levels. So the selected
neurons leave the quantised path. What gate and up put out for them is replaced by the product with their own rows, and
their part of down's input is set to zero there and multiplied with their own columns. One thin product for each; no
dense copy of a matrix beside the one that the library makes for its own product, and no second dense product.

Shape suffixes: T tokens, D hidden size, N neurons per layer, S selected neurons.
"""

from collections.abc import Iterable
from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from lightning_app.model.ffn import GatedFFN, Projection
from lightning_app.model.neuron_rows import NeuronRows, gated, gated_gradients, in_rows_dtype, row_gradients
from lightning_app.model.quantized import dequantized


class _BesideFFN(torch.autograd.Function):
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
        x = x.to(ffn.dtype)
        with torch.autocast(x.device.type, enabled=False):
            gate = ffn.gate(x)
            if ffn.is_fused:
                gate, up = gate[..., : ffn.neurons], gate[..., ffn.neurons :]
            else:
                up = ffn.up(x)
            for out, projection, rows in ((gate, "gate", gate_rows), (up, "up", up_rows)):
                if rows is not None:
                    out.index_copy_(-1, neurons, _product(x, rows, ffn, projection, neurons))
            h, h_S = gated(ffn.act, gate, up), None
            if down_rows is None:
                out = ffn.down(h)
            else:
                h_S = h.index_select(-1, neurons)
                h.index_fill_(-1, neurons, 0)
                out = ffn.down(h) + h_S @ down_rows.to(h.dtype)
        ctx.save_for_backward(x, gate, up, h_S)
        # On the context, not among the saved tensors: the rows change in place between steps.
        ctx.ffn, ctx.neurons, ctx.rows = ffn, neurons, (gate_rows, up_rows, down_rows)
        return out

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad_out: Tensor) -> tuple[Tensor | None, ...]:
        ffn, neurons = ctx.ffn, ctx.neurons
        gate_rows, up_rows, down_rows = ctx.rows
        needs_x, needs_gate, needs_up, needs_down = ctx.needs_input_grad[:4]
        shape = grad_out.shape
        *wide, h_S = ctx.saved_tensors
        x_TD, gate_TN, up_TN = (saved.flatten(0, -2) for saved in wide)
        grad_TD = grad_out.reshape(-1, shape[-1]).to(x_TD.dtype)
        grad_down = h_S.flatten(0, -2).t() @ grad_TD if needs_down else None
        if down_rows is not None and not needs_x:
            grad_h = grad_TD @ down_rows.t().to(grad_TD.dtype)
        else:
            grad_h = grad_TD @ dequantized(ffn.down)
            if down_rows is not None:
                grad_h.index_copy_(1, neurons, grad_TD @ down_rows.t().to(grad_TD.dtype))
            elif not needs_x:
                grad_h = grad_h[:, neurons]
        selected: Any = neurons
        if not needs_x:  # nothing below is trained: the selected columns are all that is needed
            gate_TN, up_TN, selected = gate_TN[:, neurons], up_TN[:, neurons], slice(None)
        grad_gate_out, grad_up_out = gated_gradients(ffn.act, gate_TN, up_TN, grad_h)
        grad_gate_S, grad_up_S = grad_gate_out[:, selected], grad_up_out[:, selected]
        both = (grad_gate_S if needs_gate else None, grad_up_S if needs_up else None)
        grad_gate, grad_up = row_gradients(x_TD, both)
        grad_x = None
        if needs_x:
            own = [(grad_gate_out, grad_gate_S, gate_rows), (grad_up_out, grad_up_S, up_rows)]
            grad_x = _input_gradient(ffn, own, neurons).reshape((*shape[:-1], x_TD.shape[-1]))
        grads = (None if grad is None else in_rows_dtype(grad) for grad in (grad_gate, grad_up, grad_down))
        return grad_x, *grads, None, None


def _product(x: Tensor, rows: Tensor, ffn: GatedFFN, projection: str, neurons: Tensor) -> Tensor:
    """Returns what the neurons' own rows put out, (..., S)."""
    out = x @ rows.t().to(x.dtype)
    bias = ffn.linear(projection).bias
    return out if bias is None else out + bias[ffn.rows_of(projection, neurons)].to(out.dtype)


def _input_gradient(ffn: GatedFFN, parts: list[tuple[Tensor, Tensor, Tensor | None]], neurons: Tensor) -> Tensor:
    """Returns the gradient with respect to x, (T, D), of gate and up by the gradients of what they put out.

    Args:
        ffn: The FFN.
        parts: Of gate and up: the gradient, (T, N), which is overwritten, its columns of the neurons, (T, S), and
            their rows, where they stand beside the matrix.
        neurons: Which, (S,).
    """
    for grad_TN, _, rows in parts:
        if rows is not None:
            grad_TN.index_fill_(1, neurons, 0)
    if ffn.is_fused:
        grad_x = torch.cat([grad_TN for grad_TN, _, _ in parts], dim=-1) @ dequantized(ffn.gate)
    else:
        grad_x = parts[0][0] @ dequantized(ffn.gate)
        grad_x.addmm_(parts[1][0], dequantized(ffn.up))
    for _, grad_TS, rows in parts:
        if rows is not None:
            grad_x.addmm_(grad_TS, rows.to(grad_TS.dtype))
    return grad_x


class NeuronsBeside(NeuronRows):
    """Neurons of a quantised FFN beside it: what is stepped is what computes. At first as in the files of the base."""

    function = _BesideFFN

    def __init__(self, ffn: GatedFFN, neurons: Tensor | None, projections: Iterable[Projection]) -> None:
        super().__init__(ffn, neurons, projections)
        vars(ffn.module)["beside"] = self  # no submodule: it belongs to who trains it
