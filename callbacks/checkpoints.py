"""The best and the last checkpoint of a run."""

import math
import time
from collections.abc import Sequence
from pathlib import Path

from lightning.pytorch import LightningModule
from lightning.pytorch.callbacks import Checkpoint

from callbacks.figures import Figures
from callbacks.retention import Retention
from datamodules.glotcc import Batch
from lightning_app.errors import UserError
from lightning_app.files import JSON, load_checkpoint, sweep_temporary_files
from lightning_app.languages import find_language
from lightning_app.run import RunFolder
from lightning_app.training.module import SparseSubnetModule
from lightning_app.training.trainer import NeuroglotTrainer

_LOOK_EVERY = 10  # steps, between looks at the clock


class BestCheckpoint(Checkpoint):
    """Keeps the checkpoint with the lowest target loss, named after its step and that loss.

    With a limit, of those at which no watched language has risen by more than that over its loss before training. Until
    there is one, the checkpoint with the smallest worst rise is kept instead, as ``least-rise-...``.

    Args:
        folder: The run folder.
        retention: What knows the losses of a validation and those before training.
        limit: ``--trainer.max_retention_loss``, in nats per token; None lets the target loss alone decide, as in the
            paper.
        watched: Short codes of the languages that the limit is for.
        figures: What is taken at a validation beside the losses, and remembered with the checkpoint.

    Attributes:
        kept: Of the checkpoint that is kept: its name (``checkpoint``), ``step``, target ``loss``, ``losses`` of every
            language with the ``errors`` of their changes, ``figures``, and, where there is a limit, the ``worst_rise``
            and whether that ``is_within_limit``.

    Raises:
        UserError: The limit is below zero, or no language is watched.
    """

    def __init__(
        self,
        folder: RunFolder,
        retention: Retention,
        limit: float | None = None,
        watched: Sequence[str] = (),
        figures: Sequence[Figures] = (),
    ) -> None:
        if limit is not None and not limit >= 0:
            raise UserError(f"--trainer.max_retention_loss is {limit:g}; expected nats per token, at least 0, or null")
        if limit is not None and not watched:
            raise UserError(
                f"--trainer.max_retention_loss is {limit:g}, but no language is watched beside the targets; give "
                "--data.watch, or leave the limit out"
            )
        self.folder, self.retention, self.limit = folder, retention, limit
        self.watched, self.figures = watched, figures
        self.kept: JSON = {}

    def state_dict(self) -> JSON:
        """Returns what a resumed run compares later validations with."""
        return {"kept": self.kept}

    def load_state_dict(self, state_dict: JSON) -> None:
        """Takes it over."""
        self.kept = state_dict["kept"]

    def on_train_start(self, trainer: NeuroglotTrainer, pl_module: SparseSubnetModule) -> None:
        """Finds what is kept where that of the state is gone: by a later best one before a kill, or in another folder.

        A later one knows that it was better; a folder without any begins anew.
        """
        name = self.kept.get("checkpoint")
        if name is not None and not trainer.strategy.broadcast((self.folder.checkpoints / name).is_file()):
            self.kept = trainer.strategy.broadcast(self._kept_by_newest())

    def _kept_by_newest(self) -> JSON:
        newest = self.folder.best_checkpoint()
        states = load_checkpoint(newest, is_mapped=True).get("callbacks", {}) if newest is not None else {}
        return dict(states.get(self.state_key, {}).get("kept", {}))

    def on_validation_end(self, trainer: NeuroglotTrainer, pl_module: SparseSubnetModule) -> None:
        """Saves after a validation in training where it is better; the one before training is no result."""
        if trainer.state.fn != "fit" or trainer.global_step == 0:
            return
        seen, kept = self._seen(trainer), self.kept
        if seen["step"] != kept.get("step"):
            if self._is_better(seen):
                self.kept = seen
                trainer.save_checkpoint(self.folder.checkpoints / seen["checkpoint"])
            if not _is_within(seen) and (not _is_within(kept) or seen["loss"] < kept["loss"]):
                pl_module.print(f"step {seen['step']}: {self._why_not(seen)}")
        if trainer.is_global_zero:
            self._remove_others()

    def _remove_others(self) -> None:
        """Removes the one before, also where a kill left it, and a file that the run went on from."""
        kept = self.kept.get("checkpoint")
        for path in self.folder.best_checkpoints() if kept and (self.folder.checkpoints / kept).is_file() else []:
            if path.name != kept:
                path.unlink()

    @property
    def remark(self) -> str:
        """What has to be said of the checkpoint that is kept where none is within the limit."""
        if not self.kept or _is_within(self.kept):
            return ""
        return (
            f", kept for its smallest worst rise, {self.kept['worst_rise']:.4f} nats: no validation kept every watched "
            f"language within --trainer.max_retention_loss {self.limit:g}"
        )

    @property
    def figures_before(self) -> dict[str, float]:
        """The figures beside the losses, before training."""
        return {name: value for each in self.figures for name, value in each.before.items()}

    @property
    def figures_now(self) -> dict[str, float]:
        """Those of the newest validation."""
        return {name: value for each in self.figures for name, value in each.after.items()}

    def _seen(self, trainer: NeuroglotTrainer) -> JSON:
        """Returns what `kept` would be for the validation that has just run."""
        step, loss = trainer.global_step, float(trainer.callback_metrics["val/loss"])
        seen: JSON = {"step": step, "loss": loss, "losses": self.retention.after, "errors": self.retention.errors}
        seen["figures"], name = self.figures_now, f"best-step{step:06d}-loss{loss:.4f}.ckpt"
        if self.limit is not None:
            rises = self.retention.rises(self.watched)
            worst = max(rises.values(), key=lambda rise: (math.isnan(rise), rise))
            seen |= {"rises": rises, "worst_rise": worst, "is_within_limit": worst <= self.limit}
            if not seen["is_within_limit"]:
                name = f"least-rise-step{step:06d}-rise{worst:.4f}-loss{loss:.4f}.ckpt"
        return {"checkpoint": name, **seen}

    def _is_better(self, seen: JSON) -> bool:
        if not _is_within(seen):
            return not _is_within(self.kept) and seen["worst_rise"] < self.kept.get("worst_rise", math.inf)
        return not _is_within(self.kept) or seen["loss"] < self.kept["loss"]

    def _why_not(self, seen: JSON) -> str:
        limit = math.inf if self.limit is None else self.limit
        above = {code: rise for code, rise in seen["rises"].items() if not rise <= limit}
        risen = " and ".join(f"{find_language(code)} has risen by {rise:.4f}" for code, rise in above.items())
        return (
            f"a target loss of {seen['loss']:.4f} is passed over: {risen} nats, more than "
            f"--trainer.max_retention_loss {limit:g} allows"
        )


def _is_within(kept: JSON) -> bool:
    """Tells whether a checkpoint is kept, and within the limit where there is one."""
    return bool(kept) and kept.get("is_within_limit", True)


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
