"""Stops a run whose numbers are no numbers any more, before they overwrite anything."""

import math
from pathlib import Path

import torch
import torch.distributed
from lightning.pytorch import Callback

from datamodules.glotcc import Batch
from lightning_app.errors import UserError
from lightning_app.files import JSON, write_json
from lightning_app.run import RunFolder
from lightning_app.training.module import SparseSubnetModule
from lightning_app.training.trainer import NeuroglotTrainer

_SHOWN = 3


class StopDiverged(Callback):
    """Ends a run with an error where its loss is NaN or infinite: in so many batches in a row, or in a validation.

    It comes before the callbacks that save, and looks at the trained weights whenever they are saved, so that the best
    and the last checkpoint stay those before. The documents of the batches in question are written to the run folder.

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
        self._batch = -1

    def on_train_batch_end(
        self, trainer: NeuroglotTrainer, pl_module: SparseSubnetModule, outputs: Batch, batch: Batch, batch_idx: int
    ) -> None:
        """Counts; looks now and then, because that waits for the device and for the other processes."""
        is_finite = torch.isfinite(outputs["nats_per_token"])
        self._in_a_row, self._batch = (self._in_a_row + 1) * (~is_finite), batch_idx
        if batch_idx % max(1, min(trainer.log_every_n_steps, self.patience)) == 0:
            most = int(trainer.strategy.reduce(self._in_a_row.clone(), reduce_op="max"))
            if most >= self.patience:
                self._stop(trainer, pl_module, f"the last {most} batches have a loss that is no number")

    def on_validation_end(self, trainer: NeuroglotTrainer, pl_module: SparseSubnetModule) -> None:
        """Ends the run where the loss of a validation is no number."""
        loss = trainer.callback_metrics.get("val/loss")
        if loss is not None and not math.isfinite(float(loss)):
            self._stop(trainer, pl_module, f"the validation loss is {float(loss)}")

    def on_save_checkpoint(self, trainer: NeuroglotTrainer, pl_module: SparseSubnetModule, checkpoint: JSON) -> None:
        """Ends the run where the weights that are about to be saved are no numbers, though the loss still was one."""
        weights = checkpoint["state_dict"].values()
        if not all(bool(torch.isfinite(each).all()) for each in weights if each.is_floating_point()):
            self._stop(trainer, pl_module, "trained weights are no numbers")

    def _stop(self, trainer: NeuroglotTrainer, module: SparseSubnetModule, what: str) -> None:
        kept = self.folder.last_checkpoint
        left = f"{kept} is from before" if kept.is_file() else "nothing was saved before"
        sequences = trainer.datamodule.state_dict()["sequences_consumed"]
        raise UserError(
            f"the run diverged at step {trainer.global_step} (sequence {sequences} of its text): {what}; {left}. "
            f"{self._documents(trainer)}Train with a lower --model.lr than {module.lr:g} and another --name, or look "
            "at the text"
        )

    def _documents(self, trainer: NeuroglotTrainer) -> str:
        """Writes down what was read, and returns the documents that were the first without a finite loss. Collective.

        The batches of the step before are written, too: a gradient can overflow where the loss does not.
        """
        if self._batch < 0:
            return ""
        in_a_row = int(self._in_a_row)
        first = self._batch - max(in_a_row, 1) + 1
        before = range(first - trainer.accumulate_grad_batches, first)
        own = {
            "process": trainer.global_rank,
            "nonfinite_batches": in_a_row,
            "batch": first,
            "sequences": trainer.datamodule.trace([first]),
            "sequences_of_the_step_before": trainer.datamodule.trace(before),
        }
        every: list[JSON] = [own]
        if trainer.world_size > 1:
            every = [{}] * trainer.world_size
            torch.distributed.all_gather_object(every, own)
        every.sort(key=lambda each: -each["nonfinite_batches"])  # where it began comes first
        if trainer.is_global_zero:
            write_json(self.folder.diverged, {"step": trainer.global_step, "processes": every})
        trainer.strategy.barrier()  # the first process that ends ends the one that writes, too
        return f"It was reading {_named(every[0]['sequences'])}; all of it is in {self.folder.diverged}. "


def _named(sequences: list[JSON]) -> str:
    """Returns the documents of sequences for people, by their numbers in the token cache and their files."""
    documents = {
        (sequence["language"], each["document"]): each for sequence in sequences for each in sequence["documents"]
    }
    names = []
    for (language, number), each in list(documents.items())[:_SHOWN]:
        unit = "row" if "row" in each else "byte"
        place = f" ({Path(each['file']).name}, {unit} {each[unit]})" if "file" in each else ""
        names.append(f"{language} document {number}{place}")
    more = len(documents) - _SHOWN
    return ", ".join(names) + (f" and {more} more" if more > 0 else "")
