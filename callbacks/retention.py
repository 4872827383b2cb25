"""What other languages keep: losses before and after training, on the target and on every watched language."""

from collections.abc import Sequence
from pathlib import Path

import torch
from lightning.pytorch import Callback
from torch import Tensor

from lightning_app.errors import UserError
from lightning_app.files import JSON, load_checkpoint
from lightning_app.languages import find_language
from lightning_app.training.metrics import Errors, Losses, change_error
from lightning_app.training.module import SparseSubnetModule
from lightning_app.training.trainer import NeuroglotTrainer


class Retention(Callback):
    """Remembers the losses of the first validation, and logs how far every later one is from them.

    Attributes:
        before: Losses before training; they travel with every checkpoint.
        after: Losses of the newest validation.
        errors: Standard errors of the changes between the two.
    """

    def __init__(self) -> None:
        self.before: Losses = {}
        self.after: Losses = {}
        self.errors: Errors = {}
        self._blocks: dict[str, Tensor] = {}  # nats of every block, of the first losses
        self._text: dict[str, str] = {}  # digest of the text that the first losses are of, by language
        self._text_now: dict[str, str] = {}

    @classmethod
    def of(cls, checkpoint: Path | None) -> "Retention":
        """Returns one that knows what a checkpoint's run began with."""
        retention = cls()
        if checkpoint is not None:
            states = load_checkpoint(checkpoint, is_mapped=True).get("callbacks", {})
            if (state := states.get(retention.state_key)) is not None:
                retention.load_state_dict(state)
        return retention

    def state_dict(self) -> JSON:
        """Returns the losses before training and of the newest validation, and of which text the first are."""
        newest = {"after": self.after, "errors": self.errors}
        return {"before": self.before, "blocks": self._blocks, "text": self._text, **newest}

    def load_state_dict(self, state_dict: JSON) -> None:
        """Takes them over."""
        self.before, self._text = state_dict["before"], state_dict["text"]
        self._blocks = state_dict.get("blocks", {})
        # A run that has only its summary left to write knows no other.
        self.after, self.errors = state_dict.get("after", {}), state_dict.get("errors", {})

    @property
    def baseline(self) -> Losses:
        """What the newest losses are compared with: the first ones of the same text, where there are such."""
        first = {} if self.before is self.after else self.before
        return {code: loss for code, loss in first.items() if self._text.get(code) == self._text_now.get(code)}

    def rises(self, codes: Sequence[str]) -> dict[str, float]:
        """Returns how far the newest loss of each language is above that before training, in nats per token.

        Raises:
            UserError: The loss before training is not known of the text that is validated on now.
        """
        first = self.baseline
        if missing := next((code for code in codes if code not in first), None):
            raise UserError(
                f"the loss of {find_language(missing)} before training is not known on this text, which "
                "--trainer.max_retention_loss is counted from; go on with the same --data.flores and --data.watch, or "
                "leave the limit out"
            )
        return {code: self.after[code][0] - first[code][0] for code in codes}

    def on_validation_epoch_end(self, trainer: NeuroglotTrainer, pl_module: SparseSubnetModule) -> None:
        """Takes the losses and logs the changes in nats per token; before the module begins anew."""
        losses, self._text_now = pl_module.losses_now(), trainer.datamodule.validation_id()
        blocks = pl_module.losses.of_blocks(list(losses))
        if not self.before:
            self.before, self._text = losses, self._text_now
            self._blocks = {code: nats_B for code, (nats_B, _) in blocks.items()}
        self.after = losses
        self.errors = {
            code: change_error(self._blocks[code], *blocks[code])
            for code in blocks
            if code in self._blocks and self._text.get(code) == self._text_now[code]
        }
        changes = {code: loss - self.before.get(code, [loss])[0] for code, (loss, _) in losses.items()}
        logged = {f"val/change/{code}": torch.tensor(change, dtype=torch.float64) for code, change in changes.items()}
        pl_module.log_dict(logged)

    def on_test_epoch_end(self, trainer: NeuroglotTrainer, pl_module: SparseSubnetModule) -> None:
        """As `on_validation_epoch_end`, on devtest."""
        self.on_validation_epoch_end(trainer, pl_module)
