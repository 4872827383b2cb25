"""What a run shows: a bar with loss, tokens per second, tokens of the budget and time left; plain lines in a log."""

from typing import Any

from lightning.pytorch.callbacks import ProgressBar

from lightning_app.module import SparseSubnetModule
from lightning_app.progress import TokenProgress, short
from lightning_app.report import format_losses
from lightning_app.trainer import NeuroglotTrainer


class Console(ProgressBar):
    """Prints to stdout on the first process only. The loss is read from the device every ``log_every_n_steps``."""

    def __init__(self) -> None:
        super().__init__()
        self._progress: TokenProgress | None = None
        self._is_enabled = True

    def disable(self) -> None:
        """Called by Lightning on all processes but the first."""
        self._is_enabled = False

    def enable(self) -> None:
        """Called by Lightning to undo `disable`."""
        self._is_enabled = True

    def print(self, *args: Any, **kwargs: Any) -> None:
        """Prints above the bar."""
        text = " ".join(str(arg) for arg in args)
        if not self._is_enabled:
            return
        if self._progress is not None:
            self._progress.write(text)
        else:
            print(text, flush=True)

    def on_fit_start(self, trainer: NeuroglotTrainer, pl_module: SparseSubnetModule) -> None:
        """Says what will be trained."""
        total = pl_module.identity.parameters
        trained = pl_module.trainable_parameters
        what = f"every weight, {short(trained)} parameters"
        if pl_module.subnetwork is not None:
            neurons = sum(map(len, pl_module.neurons.values()))
            every = len(pl_module.subnetwork.of(pl_module.target))
            kept = f"from layer {pl_module.first_layer} up, {100 * neurons / every:.0f} % of them, "
            what = (
                f"{neurons} neurons of {pl_module.target} in {len(pl_module.neurons)} layers "
                f"({'+'.join(pl_module.projections)}), {kept if pl_module.first_layer else ''}"
                f"{short(trained)} of {short(total)} parameters, {100 * trained / total:.2f} %"
            )
        self.print(f"training {what}")

    def on_train_start(self, trainer: NeuroglotTrainer, pl_module: SparseSubnetModule) -> None:
        """Starts the bar where the run stands."""
        data = trainer.datamodule
        steps = trainer.total_steps
        per_batch = data.tokens_per_sequence * data.batch_size * trainer.world_size
        self._tokens_per_batch = round(per_batch)
        total = round(steps * per_batch * trainer.accumulate_grad_batches)
        done = round(trainer.global_step * per_batch * trainer.accumulate_grad_batches)
        resumed = f", going on from step {trainer.global_step}" if trainer.global_step else ""
        self.print(f"{steps} steps of {round(total / steps)} tokens, {short(total)} tokens in all{resumed}")
        self._progress = TokenProgress("training", total, done, is_shown=self._is_enabled)

    def on_train_batch_end(
        self, trainer: NeuroglotTrainer, pl_module: SparseSubnetModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        """Moves the bar on; reads the loss now and then, because that waits for the device."""
        if self._progress is None:
            return
        if batch_idx % trainer.log_every_n_steps == 0:
            self._loss = f"loss {outputs['nats_per_token'].item():.3f}"
        self._progress.advance(self._tokens_per_batch, getattr(self, "_loss", ""))

    def on_validation_start(self, trainer: NeuroglotTrainer, pl_module: SparseSubnetModule) -> None:
        """Stops the clock of the training speed."""
        if self._progress is not None:
            self._progress.pause()

    def on_validation_end(self, trainer: NeuroglotTrainer, pl_module: SparseSubnetModule) -> None:
        """Prints the losses: all of them outside training, one line inside it."""
        target = pl_module.language.short if pl_module.language is not None else None
        if trainer.state.fn != "fit":
            self.print(format_losses(pl_module.before, pl_module.after, target))
            return
        when = "before training" if trainer.sanity_checking else f"step {trainer.global_step}"
        parts = []
        for code, (loss, _) in pl_module.after.items():
            change = "" if trainer.sanity_checking else f" ({loss - pl_module.before[code][0]:+.4f})"
            parts.append(f"{code} {loss:.4f}{change}")
        self.print(f"{when}: loss {', '.join(parts)}")
        if self._progress is not None:
            self._progress.resume()

    def on_test_end(self, trainer: NeuroglotTrainer, pl_module: SparseSubnetModule) -> None:
        """Prints the losses on devtest."""
        self.on_validation_end(trainer, pl_module)

    def on_train_end(self, trainer: NeuroglotTrainer, pl_module: SparseSubnetModule) -> None:
        """Takes the bar away."""
        if self._progress is not None:
            self._progress.close()
            self._progress = None

    def on_exception(self, trainer: NeuroglotTrainer, pl_module: Any, exception: BaseException) -> None:
        """Takes the bar away."""
        self.on_train_end(trainer, pl_module)
