"""What other languages keep: losses before and after training, on the target and on every watched language."""

from pathlib import Path

import torch
from lightning.pytorch import Callback

from lightning_app.files import JSON, load_checkpoint
from lightning_app.training.metrics import Losses
from lightning_app.training.module import SparseSubnetModule
from lightning_app.training.trainer import NeuroglotTrainer


class Retention(Callback):
    """Remembers the losses of the first validation, and logs how far every later one is from them.

    Attributes:
        before: Losses before training; they travel with every checkpoint.
        after: Losses of the newest validation.
    """

    def __init__(self) -> None:
        self.before: Losses = {}
        self.after: Losses = {}

    @classmethod
    def of(cls, checkpoint: Path | None) -> "Retention":
        """Returns one that knows what a checkpoint's run began with."""
        retention = cls()
        if checkpoint is not None:
            states = load_checkpoint(checkpoint, is_mapped=True).get("callbacks", {})
            retention.load_state_dict(states.get(retention.state_key, {"before": {}}))
        return retention

    def state_dict(self) -> JSON:
        """Returns the losses before training."""
        return {"before": self.before}

    def load_state_dict(self, state_dict: JSON) -> None:
        """Takes them over."""
        self.before = state_dict["before"]

    @property
    def baseline(self) -> Losses:
        """What the newest losses are compared with; nothing where they are themselves the first."""
        return {} if self.before is self.after else self.before

    def on_validation_epoch_end(self, trainer: NeuroglotTrainer, pl_module: SparseSubnetModule) -> None:
        """Takes the losses and logs the changes in nats per token; before the module begins anew."""
        losses = pl_module.losses_now()
        self.before = self.before or losses
        self.after = losses
        changes = {code: loss - self.before.get(code, [loss])[0] for code, (loss, _) in losses.items()}
        logged = {f"val/change/{code}": torch.tensor(change, dtype=torch.float64) for code, change in changes.items()}
        pl_module.log_dict(logged)

    def on_test_epoch_end(self, trainer: NeuroglotTrainer, pl_module: SparseSubnetModule) -> None:
        """As `on_validation_epoch_end`, on devtest."""
        self.on_validation_epoch_end(trainer, pl_module)
