"""AdamW as everything here is stepped with: all weights by one kernel, weight decay on what is trained."""

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor
from torch.optim import AdamW

from lightning_app.model.shards import local


class FusedAdamW(AdamW):
    """torch's fused AdamW: one pass over all weights, which makes no tensor beside its states.

    torch's other ways make temporaries of the size of all that is trained. The fused kernels read a weight, its
    gradient and its states in the order of memory whatever their strides are, so states are loaded in the layout of
    their weight: a column-major weight with row-major states from a file would be stepped with the wrong entries.

    Args:
        weights: What is stepped; plain AdamW where they are on the meta device, for which nothing is fused.
        lr: Learning rate.
        weight_decay: Of all weights.
        betas: Of AdamW.
    """

    def __init__(self, weights: Sequence[Tensor], lr: float, weight_decay: float, betas: tuple[float, float]) -> None:
        is_fused = not any(weight.is_meta for weight in weights)
        super().__init__(weights, lr=lr, weight_decay=weight_decay, betas=betas, fused=is_fused)
        # Where torch sets it, Lightning refuses to clip, lest gradients be of a scaled loss; none is scaled here.
        self._step_supports_amp_scaling = False

    @torch.no_grad()
    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Takes over saved states, each in the layout of its weight; how they are stepped is this optimiser's own."""
        pairs = zip(state_dict["param_groups"], self.param_groups, strict=True)
        groups = [{**group, "fused": own["fused"]} for group, own in pairs]
        super().load_state_dict({**state_dict, "param_groups": groups})
        for weight, states in self.state.items():
            for name, state in states.items():
                if state.shape == weight.shape and local(state).stride() != local(weight).stride():
                    states[name] = torch.empty_like(weight).copy_(state)


class MaskedAdamW(FusedAdamW):
    """AdamW whose decoupled weight decay reaches only the masked entries; an entry without gradient does not move.

    Args:
        weights: What is stepped.
        masks: Of each weight, what of it is trained; broadcast over what is here of it. None where all of it is.
        lr: Learning rate.
        weight_decay: Of what is trained.
        betas: Of AdamW.
    """

    def __init__(
        self,
        weights: Sequence[Tensor],
        masks: Sequence[Tensor | None],
        lr: float,
        weight_decay: float,
        betas: tuple[float, float],
    ) -> None:
        super().__init__(weights, lr, 0.0, betas)
        self._masks, self._decay = list(masks), weight_decay

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
                    here = local(weight)
                    shrunk = here * shrink
                    here.copy_(shrunk if mask is None else torch.where(mask.to(here.device), shrunk, here))
        super().step()
        return loss
