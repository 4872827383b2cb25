"""The best and the last checkpoint of a run."""

import time
from pathlib import Path

from lightning.pytorch import LightningModule
from lightning.pytorch.callbacks import Checkpoint, ModelCheckpoint

from datamodules.glotcc import Batch
from lightning_app.files import JSON, sweep_temporary_files
from lightning_app.run import RunFolder
from lightning_app.training.trainer import NeuroglotTrainer

_LOOK_EVERY = 10  # steps, between looks at the clock


class BestCheckpoint(ModelCheckpoint):
    """Keeps the checkpoint with the lowest target loss, named after its step and that loss."""

    def __init__(self, folder: RunFolder) -> None:
        super().__init__(
            dirpath=folder.checkpoints,
            filename="best-step{step:06d}-loss{val/loss:.4f}",
            monitor="val/loss",
            mode="min",
            save_top_k=1,
            auto_insert_metric_name=False,
            enable_version_counter=False,
            save_on_train_epoch_end=False,
        )

    def on_validation_end(self, trainer: NeuroglotTrainer, pl_module: LightningModule) -> None:
        """Saves after a validation in training; the one before training is no result."""
        if trainer.global_step > 0:
            super().on_validation_end(trainer, pl_module)
        if trainer.is_global_zero:
            self._remove_others()

    def load_state_dict(self, state_dict: JSON) -> None:
        """Takes over all of it; Lightning's own leaves the newest score out."""
        super().load_state_dict(state_dict)
        self.current_score = state_dict["current_score"]

    def _remove_others(self) -> None:
        """Removes what a kill left between a save and a removal, and a file that the run went on from."""
        best = Path(self.best_model_path)
        for path in best.parent.glob("best-*.ckpt") if self.best_model_path and best.is_file() else []:
            if path.name != best.name:
                path.unlink()


class LastCheckpoint(Checkpoint):
    """Keeps the newest state, saved after every validation and at the end: what a killed run goes on from."""

    def __init__(self, folder: RunFolder) -> None:
        self.path = folder.last_checkpoint
        self._saved_step, self._saved_at = -1, time.monotonic()

    def setup(self, trainer: NeuroglotTrainer, pl_module: LightningModule, stage: str) -> None:
        """Removes what a killed save left behind."""
        if stage == "fit" and trainer.is_global_zero:
            sweep_temporary_files(self.path.parent)

    def on_train_start(self, trainer: NeuroglotTrainer, pl_module: LightningModule) -> None:
        """Starts the clock of `NeuroglotTrainer.save_every`."""
        self._saved_at = time.monotonic()
        if trainer.ckpt_path is not None and Path(trainer.ckpt_path) == self.path:
            self._saved_step = trainer.global_step

    def on_validation_end(self, trainer: NeuroglotTrainer, pl_module: LightningModule) -> None:
        """Saves after the best checkpoint was decided on."""
        self.save(trainer)

    def on_train_batch_end(
        self, trainer: NeuroglotTrainer, pl_module: LightningModule, outputs: Batch, batch: Batch, batch_idx: int
    ) -> None:
        """Asks for a validation after the last step, wherever it falls; saves where the last time is long ago."""
        if trainer.global_step >= trainer.length.steps:
            trainer.should_stop = True
        elif is_validated_next(trainer, batch_idx):
            return  # a run that went on from here would leave the validation out; it saves when it is done
        elif (batch_idx + 1) % (_LOOK_EVERY * trainer.accumulate_grad_batches) == 0:
            is_due = time.monotonic() - self._saved_at > 60 * trainer.save_every
            if trainer.strategy.broadcast(is_due):
                self.save(trainer)

    def on_train_end(self, trainer: NeuroglotTrainer, pl_module: LightningModule) -> None:
        """Saves also where validation is switched off."""
        self.save(trainer)

    def save(self, trainer: NeuroglotTrainer) -> None:
        """Saves, unless that was done at this step. Collective."""
        if trainer.state.fn != "fit" or trainer.sanity_checking or self._saved_step == trainer.global_step:
            return
        self._saved_step, self._saved_at = trainer.global_step, time.monotonic()
        trainer.save_checkpoint(self.path)


def is_validated_next(trainer: NeuroglotTrainer, batch_idx: int) -> bool:
    """Tells, at the end of a batch, whether the step that it ended is validated before the next one begins."""
    is_due = (batch_idx + 1) % (trainer.validate_every * trainer.accumulate_grad_batches) == 0
    return is_due and trainer.enable_validation
