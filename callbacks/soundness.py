"""Refuses a run that its text cannot make, as soon as the text is known: before the pool is profiled, not after."""

from lightning.pytorch import Callback

from lightning_app.errors import UserError
from lightning_app.training.compilation import require_compiler
from lightning_app.training.module import SparseSubnetModule
from lightning_app.training.trainer import NeuroglotTrainer


class Soundness(Callback):
    """Comes before every other callback that works.

    Raises:
        UserError: The text is less than a step, the warm-up longer than the run, a validation less than a batch, or
            there is no compiler.
    """

    def setup(self, trainer: NeuroglotTrainer, pl_module: SparseSubnetModule, stage: str) -> None:
        """Looks at the length of the run, and at what else only a process with its device knows."""
        if stage != "fit":
            return
        steps, warmup = trainer.length.steps, pl_module.warmup_steps
        if warmup >= steps:
            raise UserError(
                f"--model.warmup_steps is {warmup}, but the run has {steps} steps: its rate would never be --model.lr; "
                "lower it"
            )
        data, limit = trainer.datamodule, trainer.limit_val_batches
        fewest = min(len(data.evaluation[language.glotcc]) for language in data.validation_languages)
        batches = -(-fewest // (data.validation_batch_size * trainer.world_size))
        if isinstance(limit, float) and limit * batches < 1:
            raise UserError(
                f"--trainer.limit_val_batches is {limit:g}, less than one of the {batches} batches of a language; "
                "raise it, or leave it out"
            )
        if pl_module.is_compiled:
            require_compiler(trainer.strategy.root_device)
