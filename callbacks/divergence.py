"""Stops a run whose numbers are no numbers any more, before they overwrite anything."""

import math

import torch
from lightning.pytorch import Callback

from datamodules.glotcc import Batch
from lightning_app.errors import UserError
from lightning_app.run import RunFolder
from lightning_app.training.module import SparseSubnetModule
from lightning_app.training.trainer import NeuroglotTrainer


class StopDiverged(Callback):
    """Ends a run with an error where its loss is NaN or infinite: in so many batches in a row, or in a validation.

    It comes before the callbacks that save, so that the best and the last checkpoint stay those before.

    Args:
        folder: The run folder.
        patience: Batches in a row.

    Raises:
        UserError: The run diverged, or the patience is not above zero.
    """

    def __init__(self, folder: RunFolder, patience: int) -> None:
        if patience < 1:
            raise UserError(f"--trainer.stop_after_nonfinite is {patience}; expected a whole number above zero")
        self.folder, self.patience = folder, patience
        self._in_a_row: torch.Tensor | int = 0  # on the device, so that adding to it waits for nothing

    def on_train_batch_end(
        self, trainer: NeuroglotTrainer, pl_module: SparseSubnetModule, outputs: Batch, batch: Batch, batch_idx: int
    ) -> None:
        """Counts; looks now and then, because that waits for the device."""
        is_finite = torch.isfinite(outputs["nats_per_token"])
        self._in_a_row = (self._in_a_row + 1) * (~is_finite)
        is_looked_at = batch_idx % max(1, min(trainer.log_every_n_steps, self.patience)) == 0
        if is_looked_at and int(self._in_a_row) >= self.patience:
            self._stop(trainer, pl_module, f"the last {int(self._in_a_row)} batches have a loss that is no number")

    def on_validation_end(self, trainer: NeuroglotTrainer, pl_module: SparseSubnetModule) -> None:
        """Ends the run where the loss of a validation is no number."""
        loss = trainer.callback_metrics.get("val/loss")
        if loss is not None and not math.isfinite(float(loss)):
            self._stop(trainer, pl_module, f"the validation loss is {float(loss)}")

    def _stop(self, trainer: NeuroglotTrainer, module: SparseSubnetModule, what: str) -> None:
        kept = self.folder.last_checkpoint
        left = f"{kept} is from before" if kept.is_file() else "nothing was saved before"
        sequences = trainer.datamodule.state_dict()["sequences_consumed"]
        raise UserError(
            f"the run diverged at step {trainer.global_step} (sequence {sequences} of its text): {what}; {left}. Train "
            f"with a lower --model.lr than {module.lr:g} and another --name, or look at the text"
        )
