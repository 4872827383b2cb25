"""The best and the last checkpoint of a run."""

import signal

from lightning.pytorch import LightningModule
from lightning.pytorch.callbacks import Checkpoint, ModelCheckpoint
from lightning.pytorch.strategies import ParallelStrategy

from datamodules.glotcc import Batch
from lightning_app.files import sweep_temporary_files
from lightning_app.run import RunFolder
from lightning_app.training.trainer import NeuroglotTrainer


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


class LastCheckpoint(Checkpoint):
    """Keeps the newest state, saved after every validation and at the end: what a killed run goes on from."""

    def __init__(self, folder: RunFolder) -> None:
        self.path = folder.last_checkpoint
        self._saved_step = -1

    def setup(self, trainer: NeuroglotTrainer, pl_module: LightningModule, stage: str) -> None:
        """Removes what a killed save left behind."""
        if stage == "fit" and trainer.is_global_zero:
            sweep_temporary_files(self.path.parent)

    def on_sanity_check_start(self, trainer: NeuroglotTrainer, pl_module: LightningModule) -> None:
        """As `on_train_start`."""
        self.on_train_start(trainer, pl_module)

    def on_train_start(self, trainer: NeuroglotTrainer, pl_module: LightningModule) -> None:
        """Lets SIGTERM end the process at once, which is safe here, as every file is whole at any time.

        Lightning's handler calls a collective wherever the process stands, and ranks that are not at the same place
        wait for each other until they are killed.
        """
        strategy = trainer.strategy
        environment = strategy.cluster_environment if isinstance(strategy, ParallelStrategy) else None
        if trainer.world_size > 1 and environment is not None and environment.creates_processes_externally:
            signal.signal(signal.SIGTERM, signal.SIG_DFL)

    def on_validation_end(self, trainer: NeuroglotTrainer, pl_module: LightningModule) -> None:
        """Saves after the best checkpoint was decided on."""
        self._save(trainer)

    def on_train_batch_end(
        self, trainer: NeuroglotTrainer, pl_module: LightningModule, outputs: Batch, batch: Batch, batch_idx: int
    ) -> None:
        """Asks for a validation after the last step, wherever it falls."""
        if trainer.global_step >= trainer.length.steps:
            trainer.should_stop = True

    def on_train_end(self, trainer: NeuroglotTrainer, pl_module: LightningModule) -> None:
        """Saves also where validation is switched off."""
        self._save(trainer)

    def _save(self, trainer: NeuroglotTrainer) -> None:
        if trainer.state.fn != "fit" or trainer.sanity_checking or self._saved_step == trainer.global_step:
            return
        self._saved_step = trainer.global_step
        trainer.save_checkpoint(self.path)
