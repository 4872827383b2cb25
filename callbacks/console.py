"""What a run shows: a bar with loss, tokens per second, tokens of the budget and time left; plain lines in a log."""

from lightning.pytorch.callbacks import ProgressBar

from callbacks.retention import Retention
from datamodules.glotcc import Batch
from lightning_app.progress import TokenProgress, short
from lightning_app.reports.tables import format_losses
from lightning_app.training.module import SparseSubnetModule
from lightning_app.training.trainer import NeuroglotTrainer

_PAPER = "val/paper_loss/"


class Console(ProgressBar):
    """Prints to stdout on the first process only. The loss is read from the device every ``log_every_n_steps``.

    Args:
        retention: What knows the losses of a validation.
    """

    def __init__(self, retention: Retention) -> None:
        super().__init__()
        self.retention = retention
        self._progress: TokenProgress | None = None
        self._is_enabled = True

    def disable(self) -> None:
        """Called by Lightning on all processes but the first."""
        self._is_enabled = False

    def enable(self) -> None:
        """Called by Lightning to undo `disable`."""
        self._is_enabled = True

    def print(self, *args: object, **kwargs: object) -> None:
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
        attached = pl_module.attached
        if attached is None:
            return
        parts = [attached.describe()]
        if pl_module.languages:
            parts[0] += f" for {', '.join(map(str, pl_module.languages))}"
        if pl_module.subnetworks is not None and pl_module.first_layer and attached.neurons is not None:
            kept = len(attached.neurons) / len(pl_module.subnetworks.to_train(pl_module.targets, 0, ""))
            parts.append(f"from layer {pl_module.first_layer} up, {100 * kept:.0f} % of them")
        trained, total = attached.trained_parameters, pl_module.base.identity.parameters
        parts.append(f"{short(trained)} of {short(total)} parameters, {100 * trained / total:.2f} %")
        parts.append(f"at a learning rate of {pl_module.lr:g}")
        self.print(f"training {', '.join(parts)}")

    def on_train_start(self, trainer: NeuroglotTrainer, pl_module: SparseSubnetModule) -> None:
        """Starts the bar where the run stands."""
        length, step = trainer.length, trainer.global_step
        self._tokens_per_batch = round(length.tokens_per_batch)
        resumed = f", going on from step {step}" if step else ""
        per_step = round(length.tokens_per_batch * length.accumulate)
        self.print(f"{length.steps} steps of {per_step} tokens, {short(length.tokens)} tokens in all{resumed}")
        self._progress = TokenProgress("training", length.tokens, length.tokens_after(step), self._is_enabled)

    def on_train_batch_end(
        self, trainer: NeuroglotTrainer, pl_module: SparseSubnetModule, outputs: Batch, batch: Batch, batch_idx: int
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
        targets = [language.short for language in pl_module.languages]
        of_paper = {k.removeprefix(_PAPER): v for k, v in trainer.callback_metrics.items() if k.startswith(_PAPER)}
        paper = ", ".join(f"{code} {float(loss):.4f}" for code, loss in of_paper.items())
        if trainer.state.fn != "fit":
            self.print(format_losses(self.retention.after, self.retention.baseline, targets))
            if paper:
                self.print(f"as the paper's script takes it: {paper}")
            return
        when = "before training" if trainer.sanity_checking else f"step {trainer.global_step}"
        parts = []
        for code, (loss, _) in self.retention.after.items():
            change = "" if trainer.sanity_checking else f" ({loss - self.retention.before[code][0]:+.4f})"
            parts.append(f"{code} {loss:.4f}{change}")
        beside = f"; as the paper's script takes it {paper}" if paper else ""
        self.print(f"{when}: loss {', '.join(parts)}{beside}")
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

    def on_exception(self, trainer: NeuroglotTrainer, pl_module: SparseSubnetModule, exception: BaseException) -> None:
        """Takes the bar away."""
        self.on_train_end(trainer, pl_module)
