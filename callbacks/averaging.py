"""An average of the trained weights over steps, which is validated and kept in their place."""

import torch
from lightning.pytorch import Callback

from datamodules.glotcc import Batch
from lightning_app.errors import UserError
from lightning_app.files import JSON
from lightning_app.methods.method import Weights
from lightning_app.training.module import SparseSubnetModule
from lightning_app.training.trainer import NeuroglotTrainer


class WeightAverage(Callback):
    """Keeps an exponential moving average of the trained weights, with a short memory at first.

    After step t it moves by ``1 - min(decay, (1 + t) / (10 + t))`` towards the weights. Validation and both checkpoints
    see the average; a checkpoint holds the weights of the optimiser beside it, and a resumed run goes on from those.

    Args:
        decay: Of the average; None keeps none.

    Raises:
        UserError: The decay does not lie between 0 and 1.
    """

    def __init__(self, decay: float | None) -> None:
        if decay is not None and not 0 < decay < 1:
            raise UserError(f"--model.ema is {decay}; expected a decay above 0 and below 1, 0.999 say, or null")
        self.decay = decay
        self._average: Weights = {}
        self._stepped: Weights | None = None  # what the optimiser steps, while the average is in the model
        self._step = 0

    def state_dict(self) -> JSON:
        """Returns the one of the two sets of weights that is not in the model."""
        return {"stepped": self._stepped, "average": {} if self._stepped is not None else self._average}

    def load_state_dict(self, state_dict: JSON) -> None:
        """Takes it over."""
        self._stepped, self._average = state_dict["stepped"], state_dict["average"]

    def on_train_start(self, trainer: NeuroglotTrainer, pl_module: SparseSubnetModule) -> None:
        """Begins the average, or goes on with that of a checkpoint."""
        if self.decay is None:
            return
        self._step = trainer.global_step
        live = self._weights(pl_module)
        if self._stepped is not None or not self._average:
            self._average = live
        self._average = {name: weights.to(live[name].device) for name, weights in self._average.items()}
        self._take_back(pl_module)

    def on_train_batch_start(
        self, trainer: NeuroglotTrainer, pl_module: SparseSubnetModule, batch: Batch, batch_idx: int
    ) -> None:
        """Puts back what the optimiser steps, after a validation."""
        self._take_back(pl_module)

    @torch.no_grad()
    def on_train_batch_end(
        self, trainer: NeuroglotTrainer, pl_module: SparseSubnetModule, outputs: Batch, batch: Batch, batch_idx: int
    ) -> None:
        """Moves the average on after each optimiser step."""
        if self.decay is None or trainer.global_step == self._step or pl_module.attached is None:
            return
        self._step = trainer.global_step
        keep = min(self.decay, (1 + self._step) / (10 + self._step))
        for name, weights in pl_module.attached.weights().items():
            if weights.is_floating_point():
                self._average[name].lerp_(weights, 1 - keep)

    def on_validation_start(self, trainer: NeuroglotTrainer, pl_module: SparseSubnetModule) -> None:
        """Puts the average into the model; it stays there until the next step, so that it is what is saved."""
        if self.decay is not None and not trainer.sanity_checking and self._stepped is None and self._average:
            self._stepped = self._weights(pl_module)
            self._load(pl_module, self._average)

    def on_train_end(self, trainer: NeuroglotTrainer, pl_module: SparseSubnetModule) -> None:
        """The average is the result, also where validation is switched off."""
        self.on_validation_start(trainer, pl_module)

    def _take_back(self, module: SparseSubnetModule) -> None:
        if self._stepped is not None:
            self._load(module, self._stepped)
            self._stepped = None

    def _weights(self, module: SparseSubnetModule) -> Weights:
        return {name: weights.clone() for name, weights in module.state_dict().items()}

    def _load(self, module: SparseSubnetModule, weights: Weights) -> None:
        if module.attached is not None:
            module.attached.take(weights)
