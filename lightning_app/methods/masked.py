"""The masked engine: gradient masks on the full FFN matrices. Plain, obviously right, the reference for `packed`."""

from collections.abc import Callable, Sequence

import torch
from torch import Tensor, nn
from torch.distributed.tensor import DTensor
from torch.optim import Optimizer

from lightning_app.methods.adamw import MaskedAdamW
from lightning_app.methods.method import NeuronTraining, Weights
from lightning_app.model.ffn import GatedFFN, Projection
from lightning_app.model.neuron_rows import widen
from lightning_app.model.shards import local, rows_of
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
                if not isinstance(linear.weight, DTensor):  # which has been widened before it was sharded
                    widen(linear)
                linear.weight.requires_grad_(True)
                mask_gradients(linear.weight, masking(mask))
                self._masks.append((linear, mask))

    def _masks_of(self, ffn: GatedFFN) -> list[tuple[nn.Linear, Tensor]]:
        """Returns each trained matrix with a mask that broadcasts over it, or over the rows of it that are here.

        Fused gate and up share one matrix.
        """
        masks: dict[nn.Linear, Tensor] = {}
        for projection in self.projections:
            linear = ffn.linear(projection)
            mask = masks.setdefault(linear, torch.zeros(linear.weight.shape[projection == "down"], dtype=torch.bool))
            mask[ffn.rows_of(projection, self.neurons.by_layer[ffn.layer])] = True
        return [
            (linear, (mask.unsqueeze(0) if linear is ffn.down else mask[here].unsqueeze(1)).to(linear.weight.device))
            for linear, mask in masks.items()
            for here in (slice(rows_of(linear.weight).start, rows_of(linear.weight).stop),)
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

    def gradients(self) -> dict[str, Tensor | None]:
        return {
            f"{ffn.layer}.{projection}": ffn.take(projection, self._neurons_on(ffn), grad) if grad is not None else None
            for ffn in self._ffns
            for projection in self.projections
            for grad in (ffn.linear(projection).weight.grad,)
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
        masks = [mask for _, mask in self._masks]
        return MaskedAdamW(self.trained(), masks, lr=lr, weight_decay=weight_decay, betas=betas)

    def require_frozen_gradients_zero(self) -> None:
        """Raises `RuntimeError` where a hook did not reach a gradient."""
        for linear, mask in self._masks:
            require_masked(linear.weight.grad, mask)


def masking(mask: Tensor) -> Callable[[Tensor], Tensor]:
    """Returns a function that keeps a gradient where ``mask``, which broadcasts over it, is true."""
    return lambda grad: grad * mask.to(grad.device)


def mask_gradients(weight: Tensor, mask: Callable[[Tensor], Tensor]) -> None:
    """Lets ``mask`` change a weight's gradients; of a sharded one, what is here of them."""

    def after(sharded: Tensor) -> None:
        if sharded.grad is not None:
            here = local(sharded.grad)
            here.copy_(mask(here))

    if isinstance(weight, DTensor):  # FSDP2 sets the gradient itself, without the hooks before
        weight.register_post_accumulate_grad_hook(after)
    else:
        weight.register_hook(mask)


def require_masked(grad: Tensor | None, mask: Tensor) -> None:
    """Checks that a masking hook reached a gradient; some sharding strategies never call them.

    Raises:
        RuntimeError: An entry outside the mask has a gradient.
    """
    if grad is not None and torch.any(local(grad).masked_fill(mask.to(grad.device), 0) != 0):
        raise RuntimeError("a gradient mask was not applied: this strategy does not run gradient hooks")
