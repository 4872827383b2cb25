"""What a run shows: a bar with loss, tokens per second, tokens of the budget and time left; plain lines in a log."""

from lightning.pytorch.callbacks import ProgressBar

from callbacks.retention import Retention
from datamodules.glotcc import Batch
from lightning_app.model.loss import IGNORED
from lightning_app.progress import TokenProgress, short
from lightning_app.reports.tables import LOSSES, format_losses, worst_first
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
        self._measuring: TokenProgress | None = None
        self._is_enabled, self._is_explained = True, False

    def disable(self) -> None:
        """Called by Lightning on all processes but the first."""
        self._is_enabled = False

    def enable(self) -> None:
        """Called by Lightning to undo `disable`."""
        self._is_enabled = True

    @property
    def is_enabled(self) -> bool:
        """Whether this is the first process; Lightning's ``print`` asks."""
        return self._is_enabled

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
        if pl_module.is_compiled:
            self.print("the layers are compiled in the first steps, which takes minutes")

    def on_train_start(self, trainer: NeuroglotTrainer, pl_module: SparseSubnetModule) -> None:
        """Starts the bar where the run stands."""
        length, step = trainer.length, trainer.global_step
        self._tokens_per_batch = round(length.tokens_per_batch)
        resumed = f", going on from step {step}" if step else ""
        per_step = round(length.tokens_per_batch * length.accumulate)
        self.print(f"{length.steps} steps of {per_step} tokens, {short(length.tokens)} tokens in all{resumed}")
        self._progress = TokenProgress("training", length.tokens, length.tokens_after(step), self._is_enabled)

    def on_train_batch_start(
        self, trainer: NeuroglotTrainer, pl_module: SparseSubnetModule, batch: Batch, batch_idx: int
    ) -> None:
        """Lets the clock run on after a validation and what was saved then."""
        if self._progress is not None:
            self._progress.resume()

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
        """Stops the clock of the training speed, and starts a bar of the validation's own."""
        if self._progress is not None:
            self._progress.pause()
        title = "measuring the base" if trainer.sanity_checking else "validating"
        tokens = trainer.datamodule.evaluation_text.tokens
        self._measuring = TokenProgress(title, tokens, is_shown=self._is_enabled, is_brief=True)

    def on_validation_batch_end(
        self,
        trainer: NeuroglotTrainer,
        pl_module: SparseSubnetModule,
        outputs: None,
        batch: Batch,
        batch_idx: int,
        dataloader_idx: int = 0,
    ) -> None:
        """Moves that bar on."""
        if self._measuring is not None and "labels" in batch:
            self._measuring.advance(int((batch["labels"] != IGNORED).sum()) * trainer.world_size)

    def on_validation_end(self, trainer: NeuroglotTrainer, pl_module: SparseSubnetModule) -> None:
        """Prints the losses: all of them outside training, one line inside it; what they are, the first time."""
        if self._measuring is not None:
            self._measuring.close()
            self._measuring = None
        if not self._is_explained:
            self.print(f"losses: {LOSSES}")
            self._is_explained = True
        targets = [language.short for language in pl_module.languages]
        of_paper = {k.removeprefix(_PAPER): v for k, v in trainer.callback_metrics.items() if k.startswith(_PAPER)}
        paper = ", ".join(f"{code} {float(loss):.4f}" for code, loss in of_paper.items())
        if trainer.state.fn != "fit":
            retention = self.retention
            self.print(format_losses(retention.after, retention.baseline, targets, retention.errors))
            if paper:
                self.print(f"as the paper's script takes it: {paper}")
            return
        when = "before training" if trainer.sanity_checking else f"step {trainer.global_step}"
        beside = f"; as the paper's script takes it {paper}" if paper else ""
        self.print(f"{when}: {', '.join(self._losses(not trainer.sanity_checking))}{beside}")

    def _losses(self, with_changes: bool) -> list[str]:
        """Returns loss, change and bits per byte of every language, what got worse first."""
        after, before = self.retention.after, self.retention.before
        parts = []
        for code, is_worse in worst_first(after, before, self.retention.errors).items():
            loss, bits = after[code]
            change = f" ({loss - before[code][0]:+.4f}{' worse' if is_worse else ''})" if with_changes else ""
            parts.append(f"{code} {loss:.4f}{change} {bits:.4f} bits/byte")
        return parts

    def on_test_start(self, trainer: NeuroglotTrainer, pl_module: SparseSubnetModule) -> None:
        """Starts a bar."""
        self.on_validation_start(trainer, pl_module)

    def on_test_batch_end(
        self,
        trainer: NeuroglotTrainer,
        pl_module: SparseSubnetModule,
        outputs: None,
        batch: Batch,
        batch_idx: int,
        dataloader_idx: int = 0,
    ) -> None:
        """Moves it on."""
        self.on_validation_batch_end(trainer, pl_module, outputs, batch, batch_idx, dataloader_idx)

    def on_test_end(self, trainer: NeuroglotTrainer, pl_module: SparseSubnetModule) -> None:
        """Prints the losses on devtest."""
        self.on_validation_end(trainer, pl_module)

    def on_train_end(self, trainer: NeuroglotTrainer, pl_module: SparseSubnetModule) -> None:
        """Takes the bars away."""
        for progress in (self._measuring, self._progress):
            if progress is not None:
                progress.close()
        self._measuring = self._progress = None

    def on_exception(self, trainer: NeuroglotTrainer, pl_module: SparseSubnetModule, exception: BaseException) -> None:
        """Takes the bars away."""
        self.on_train_end(trainer, pl_module)
