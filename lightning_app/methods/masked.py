"""The masked engine: gradient masks on the full FFN matrices. Plain, obviously right, the reference for `packed`."""

from collections.abc import Callable, Sequence

import torch
from torch import Tensor, nn
from torch.optim import AdamW, Optimizer

from lightning_app.methods.method import NeuronTraining, Weights
from lightning_app.model.ffn import GatedFFN, Projection
from lightning_app.neurons.neuron_set import NeuronSet


class MaskedEngine(NeuronTraining):
    """Trains the neurons of one language by masking the gradients of whole matrices.

    The FFN matrices that hold neurons become trainable in fp32 (fp64 for an fp64 base), a hook multiplies their
    gradients with the neurons' mask, and weight decay is applied to the masked entries alone. Gradients and AdamW
    states exist for every entry of these matrices, so this costs what full FFN training costs.

    Args:
        ffns: The gated FFNs of the whole model.
        neurons: The neurons to train.
        projections: Which of gate, up and down are trained.
    """

    name = "masked"

    def __init__(self, ffns: list[GatedFFN], neurons: NeuronSet, projections: tuple[Projection, ...]) -> None:
        super().__init__(neurons, projections)
        self._ffns = [ffn for ffn in ffns if ffn.layer in neurons.by_layer]
        self._masks: list[tuple[nn.Linear, Tensor]] = []
        for ffn in self._ffns:
            for linear, mask in self._masks_of(ffn):
                weight = linear.weight.detach()
                linear.weight = nn.Parameter(weight.to(torch.promote_types(weight.dtype, torch.float32)))
                linear.weight.register_hook(_masking_hook(mask))
                self._masks.append((linear, mask))

    def _masks_of(self, ffn: GatedFFN) -> list[tuple[nn.Linear, Tensor]]:
        """Returns each trained matrix with a mask that broadcasts over it; fused gate and up share one matrix."""
        masks: dict[nn.Linear, Tensor] = {}
        for projection in self.projections:
            linear = ffn.linear(projection)
            mask = masks.setdefault(linear, torch.zeros(linear.weight.shape[projection == "down"], dtype=torch.bool))
            mask[ffn.rows_of(projection, self.neurons.by_layer[ffn.layer])] = True
        return [
            (linear, (mask.unsqueeze(0) if linear is ffn.down else mask.unsqueeze(1)).to(linear.weight.device))
            for linear, mask in masks.items()
        ]

    def trained(self) -> Sequence[Tensor]:
        return [linear.weight for linear, _ in self._masks]

    @property
    def trained_parameters(self) -> int:
        """The neurons' own numbers, not those of the matrices they lie in."""
        return self.neurons.parameters(self._ffns[0].gate.in_features, len(self.projections))

    def weights(self) -> Weights:
        """Returns the trained vectors by ``{layer}.{projection}``, (S, D): the layout of the packed engine."""
        return {
            f"{ffn.layer}.{projection}": ffn.read(projection, self._neurons_on(ffn))
            for ffn in self._ffns
            for projection in self.projections
        }

    def load_weights(self, weights: Weights) -> None:
        for ffn in self._ffns:
            for projection in self.projections:
                vectors = weights[f"{ffn.layer}.{projection}"].to(ffn.down.weight.device)
                ffn.write(projection, self._neurons_on(ffn), vectors)

    def _neurons_on(self, ffn: GatedFFN) -> Tensor:
        return self.neurons.by_layer[ffn.layer].to(ffn.down.weight.device)

    def optimizer(self, lr: float, weight_decay: float, betas: tuple[float, float]) -> Optimizer:
        """Returns AdamW over the matrices, with weight decay on the neurons' entries alone."""
        return MaskedAdamW(self._masks, lr=lr, weight_decay=weight_decay, betas=betas)

    def require_frozen_gradients_zero(self) -> None:
        """Checks that the hooks reached every gradient; some sharding strategies never call them.

        Raises:
            RuntimeError: A frozen entry has a gradient.
        """
        for linear, mask in self._masks:
            grad = linear.weight.grad
            if grad is not None and torch.any(grad.masked_fill(mask.to(grad.device), 0) != 0):
                raise RuntimeError("a gradient mask was not applied: this strategy does not run gradient hooks")


class MaskedAdamW(AdamW):
    """AdamW whose decoupled weight decay reaches only the masked entries; an entry without gradient does not move."""

    def __init__(
        self, masks: list[tuple[nn.Linear, Tensor]], lr: float, weight_decay: float, betas: tuple[float, float]
    ) -> None:
        super().__init__([linear.weight for linear, _ in masks], lr=lr, weight_decay=0.0, betas=betas)
        self._masks = [mask for _, mask in masks]
        self._decay = weight_decay

    def step(self, closure: Callable[[], float] | None = None) -> float | None:
        """Makes one step. The closure, which computes the gradients, runs before any weight moves."""
        loss = None
        if closure is not None:
            with torch.enable_grad():
                loss = closure()
        for group in self.param_groups:
            shrink = 1 - group["lr"] * self._decay
            for weight, mask in zip(group["params"], self._masks, strict=True):
                with torch.no_grad():
                    weight.copy_(torch.where(mask.to(weight.device), weight * shrink, weight))
        super().step()
        return loss


def _masking_hook(mask: Tensor) -> Callable[[Tensor], Tensor]:
    return lambda grad: grad * mask.to(grad.device)
