"""What training changed in the FFNs, by layer and projection.

Shape suffixes: S neurons of a layer, D hidden size.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from statistics import fmean

import torch
from torch import Tensor
from transformers import PreTrainedModel

from lightning_app.analysis.scores import Histogram
from lightning_app.errors import UserError
from lightning_app.model.ffn import PROJECTIONS, Projection, find_gated_ffns
from lightning_app.neurons.neuron_set import NeuronSet
from lightning_app.neurons.selection import all_neurons

Vectors = Mapping[tuple[int, Projection], Tensor]
"""Vectors of neurons by layer and projection, (S, D): rows of gate and up, columns of down."""

_FEWEST_BINS, _MOST_BINS = 8, 40


def read_vectors(model: PreTrainedModel, neurons: NeuronSet | None) -> Vectors:
    """Returns copies of the neurons' vectors on the CPU; of every neuron where none are named."""
    ffns = find_gated_ffns(model)
    neurons = neurons or all_neurons(len(ffns), ffns[0].neurons)
    device = ffns[0].down.weight.device
    return {
        (layer, projection): ffns[layer].read(projection, index.to(device)).cpu()
        for layer, index in neurons.by_layer.items()
        for projection in PROJECTIONS
    }


@dataclass(frozen=True)
class ProjectionChange:
    """What changed in one projection of one layer.

    Attributes:
        layer: Of the decoder.
        projection: gate, up or down.
        neurons: Whose vectors were looked at.
        unmoved: Those whose vector is exactly what it was.
        l2: Norm of the change of all of these vectors together.
        mean_l2: Mean over the neurons of the norm of their vector's change.
        relative: ``l2`` over the norm of the vectors before.
        histogram: Neurons that moved, by the norm of their vector's change.
    """

    layer: int
    projection: Projection
    neurons: int
    unmoved: int
    l2: float
    mean_l2: float
    relative: float
    histogram: Histogram


@dataclass(frozen=True)
class WeightChange:
    """What training changed (arXiv 2510.13580, weight change per layer and projection).

    Attributes:
        changes: Lowest layer first; of each layer gate, up, down.
        asymmetry: By layer, ``mean_l2`` of down over the mean of gate and up; only layers where those moved.
        asymmetry_last_third: Mean of it over the layers from 2 L // 3 up; None where there are none.
    """

    changes: tuple[ProjectionChange, ...]
    asymmetry: Mapping[int, float]
    asymmetry_last_third: float | None


def change_norms(before: Vectors, after: Vectors) -> dict[tuple[int, Projection], Tensor]:
    """Returns the norm of the change of every neuron's vector, float64 (S,), by layer and projection.

    Raises:
        UserError: The two are not of the same neurons.
    """
    if {key: each.shape for key, each in before.items()} != {key: each.shape for key, each in after.items()}:
        raise UserError("the vectors before and after are not of the same neurons; read both of the same set")
    return {key: (after[key].double() - old.double()).norm(dim=1) for key, old in before.items()}


def measure_change(before: Vectors, after: Vectors, layers: int) -> WeightChange:
    """Returns how far the vectors of neurons moved.

    Args:
        before: Those of the base.
        after: Those of the adapted model, of the same neurons.
        layers: Of the whole model.

    Raises:
        UserError: The two are not of the same neurons.
    """
    norms = change_norms(before, after)
    edges = _edges(torch.cat([*norms.values(), torch.zeros(0, dtype=torch.float64)]))
    changes = [
        ProjectionChange(
            layer,
            projection,
            len(norm_S),
            int((norm_S == 0).sum()),
            float(norm_S.norm()),
            float(norm_S.mean()),
            float(norm_S.norm() / before[layer, projection].double().norm()),
            Histogram.of(norm_S[norm_S > 0], edges),
        )
        for (layer, projection), norm_S in norms.items()
    ]
    mean = {(each.layer, each.projection): each.mean_l2 for each in changes}
    asymmetry = {
        layer: mean[layer, "down"] / inner
        for layer in sorted({each.layer for each in changes})
        if (inner := fmean((mean[layer, "gate"], mean[layer, "up"])))
    }
    last = [ratio for layer, ratio in asymmetry.items() if layer >= 2 * layers // 3]
    return WeightChange(tuple(changes), asymmetry, fmean(last) if last else None)


def _edges(norms: Tensor) -> Tensor:
    """Returns edges that hold all norms above zero, evenly spaced in their logarithm."""
    moved = norms[norms > 0]
    if not len(moved):
        return torch.tensor([0.0, 1.0], dtype=torch.float64)
    low, high = float(moved.min()), float(moved.max())
    bins = min(_MOST_BINS, max(_FEWEST_BINS, round(len(moved) ** 0.5)))
    edges = torch.logspace(0, 1, bins + 1, base=max(high / low, 1 + 1e-9), dtype=torch.float64) * low
    edges[0], edges[-1] = low, high  # rounding must leave none outside
    return edges
