"""The Trainer: Lightning's, with the settings this method needs and atomic checkpoints."""

from pathlib import Path
from typing import Any

from lightning.fabric.plugins.environments import SLURMEnvironment
from lightning.fabric.utilities.types import _PATH
from lightning.pytorch import Callback, Trainer
from lightning.pytorch.plugins.io import TorchCheckpointIO
from lightning.pytorch.strategies import Strategy
from torch import Tensor

from datamodules.glotcc import GlotCCDataModule
from datamodules.order import RunLength
from lightning_app.errors import UserError
from lightning_app.files import JSON, load_checkpoint, save_checkpoint
from lightning_app.model.base import base_dtype
from lightning_app.progress import ByteProgress, bytes_of, watched
from lightning_app.training.launching import end_together, require_started
from lightning_app.training.sharded_strategy import SHARDED, ShardedStrategy


class AtomicCheckpointIO(TorchCheckpointIO):
    """Writes a checkpoint beside its target, syncs and renames: a killed save leaves the previous file whole."""

    def save_checkpoint(self, checkpoint: JSON, path: _PATH, storage_options: object = None) -> None:
        """Saves ``checkpoint`` to ``path``."""
        path = Path(path)
        progress = ByteProgress(f"saving {path.name}", _tensor_bytes(checkpoint), is_brief=True)
        with watched(progress, lambda: bytes_of(path.parent, f".{path.name}.*")):
            save_checkpoint(path, checkpoint)

    def load_checkpoint(self, path: _PATH, map_location: object = None, weights_only: bool | None = None) -> JSON:
        """Loads a checkpoint to the CPU, tensors and plain data only; raises `UserError` where it cannot."""
        checkpoint = load_checkpoint(Path(path))
        checkpoint.get("callbacks", {}).pop("Timer", None)  # a limit of time is of each start, not of the whole run
        return checkpoint


class NeuroglotTrainer(Trainer):
    """Lightning's Trainer for one pass over the token budget.

    Validation runs before training (the values that changes are shown against), every ``validate_every`` optimiser
    steps, and after the last one.

    Args:
        precision: ``bf16-mixed`` (frozen weights bf16, trained ones and optimiser states fp32), ``32-true`` or
            ``64-true``.
        accumulate_grad_batches: Batches per optimiser step.
        gradient_clip_val: Longest gradient over all that is trained.
        validate_every: Optimiser steps between validations; the best and the last checkpoint are saved then.
        save_every: Minutes after which the last checkpoint is saved between validations, too.
        stop_after_nonfinite: Batches in a row with a loss that is no number after which a run ends as diverged.
        max_retention_loss: Nats per token by which a watched language's loss may have risen at the best checkpoint, at
            most; the target loss alone decides where not given.
        translate: Sentences of FLORES dev to translate at every validation, from each target language into English and
            back; 0 for none.
        probe: Whether to ask at every validation what the model learns from its context alone.
        log_every_n_steps: Batches between lines of metrics.
        accelerator: ``cpu``, ``gpu`` or ``auto``.
        devices: Processes on each node, one a device; -1 takes all there are.
        strategy: How processes work together: ``ddp``, each with the whole base, or ``fsdp2``, each with a part of it.
        plugins: More plugins for Lightning.
        kwargs: Lightning's other keys.
    """

    datamodule: GlotCCDataModule
    callbacks: list[Callback]
    log_every_n_steps: int

    def __init__(
        self,
        *args: Any,
        precision: str = "bf16-mixed",
        accumulate_grad_batches: int = 1,
        gradient_clip_val: float | None = 1.0,
        validate_every: int = 500,
        save_every: float = 30.0,
        stop_after_nonfinite: int = 3,
        max_retention_loss: float | None = None,
        translate: int = 0,
        probe: bool = False,
        log_every_n_steps: int = 10,
        accelerator: str = "auto",
        devices: list[int] | str | int = 1,
        strategy: str | Strategy = "auto",
        plugins: Any = None,
        **kwargs: Any,
    ) -> None:
        base_dtype(precision)
        require_trainer_keys({
            **kwargs, "validate_every": validate_every, "accumulate_grad_batches": accumulate_grad_batches,
            "save_every": save_every, "log_every_n_steps": log_every_n_steps, "devices": devices,
            "gradient_clip_val": gradient_clip_val,
        })  # fmt: skip
        super().__init__(
            *args, precision=precision, accumulate_grad_batches=accumulate_grad_batches,  # type: ignore[arg-type]
            log_every_n_steps=log_every_n_steps, accelerator=accelerator, devices=devices, plugins=_plugins(plugins),
            strategy=ShardedStrategy() if strategy == SHARDED else strategy, gradient_clip_val=gradient_clip_val,
            # One pass over an order that holds every epoch, as long as the data module says: a position is one number,
            # which is not true of batches repeated for ever, or of a loader that begins at the checkpoint's again.
            max_epochs=1, min_epochs=None, min_steps=None, overfit_batches=0.0, reload_dataloaders_every_n_epochs=0,
            # Counted over the whole run, not within an epoch; and in batches, where ours is counted in steps.
            check_val_every_n_epoch=None, val_check_interval=validate_every * accumulate_grad_batches,
            # The check before training is the measurement of the base: all of it, not a few batches. The sampler of
            # Lightning pads, and would count some sentences twice. Tensors made in inference mode cannot be saved for a
            # backward afterwards: cached rotary tables are.
            num_sanity_val_steps=-1, use_distributed_sampler=False, inference_mode=False,
            # Our own line says what is trained, and Lightning's would count a frozen base for minutes. Without
            # checkpoints a run cannot go on, nor its best step be found; barebones takes away all callbacks.
            enable_model_summary=False, enable_checkpointing=True, barebones=False, **kwargs,
        )  # fmt: skip
        self.validate_every, self.save_every, self.translate, self.probe = validate_every, save_every, translate, probe
        self.stop_after_nonfinite, self.max_retention_loss = stop_after_nonfinite, max_retention_loss
        end_together(self.strategy, Path(self.default_root_dir).parent)  # of all runs

    @property
    def length(self) -> RunLength:
        """How long the run is: the token budget's length, or ``max_steps`` where that is less."""
        return self.datamodule.length


def require_trainer_keys(keys: JSON) -> None:
    """Raises `UserError` for keys with which a run fails, trains or validates nothing, or could never go on."""
    for name in ("validate_every", "save_every", "accumulate_grad_batches", "log_every_n_steps"):
        if not keys[name] > 0:
            raise UserError(f"--trainer.{name} is {keys[name]}; expected a number above zero")
    if keys.get("max_steps") == 0:
        raise UserError("--trainer.max_steps is 0, which trains nothing; expected a number above zero, or -1")
    if keys.get("limit_val_batches") == 0:
        raise UserError(
            "--trainer.limit_val_batches is 0, which measures nothing, so that no checkpoint would be the best; "
            "leave it out, or validate less often with --trainer.validate_every"
        )
    limit = keys.get("limit_train_batches")
    if limit is not None and not (isinstance(limit, float) and limit == 1.0):
        raise UserError(
            f"--trainer.limit_train_batches is {limit}: a run limited so could never go on; limit its steps, "
            "--trainer.max_steps, or its text, --data.token_budget"
        )
    if keys.get("fast_dev_run"):
        raise UserError("--trainer.fast_dev_run keeps nothing that a run is made of; give --trainer.max_steps 1")
    clip = keys["gradient_clip_val"]
    if clip is not None and not clip > 0:
        raise UserError(f"--trainer.gradient_clip_val is {clip}; expected a number above zero, or null")
    require_started(keys.get("num_nodes", 1), keys["devices"])


def _tensor_bytes(content: object) -> int:
    """Returns the bytes of all tensors in a checkpoint."""
    if isinstance(content, Tensor):
        return content.nbytes
    inside = content.values() if isinstance(content, dict) else content if isinstance(content, list | tuple) else ()
    return sum(map(_tensor_bytes, inside))


def _plugins(given: Any) -> list[Any]:
    own: list[Any] = [AtomicCheckpointIO()]
    if SLURMEnvironment.detect():
        # Lightning's requeue saves inside the signal handler, which can deadlock; the same command resumes anyway.
        own.append(SLURMEnvironment(auto_requeue=False))
    return [*own, *(given if isinstance(given, list) else [given] if given is not None else [])]
