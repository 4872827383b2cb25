"""The LightningModule: a frozen causal language model, of which a method trains a part."""

from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Literal, cast

import torch
from lightning.pytorch import LightningModule
from lightning.pytorch.core.optimizer import LightningOptimizer
from lightning.pytorch.utilities.types import OptimizerLRScheduler
from torch import Tensor
from torch.optim import Optimizer
from torch.optim.lr_scheduler import LambdaLR
from transformers import get_scheduler

from datamodules.glotcc import Batch, GlotCCDataModule
from lightning_app.adapted import Adaptation, load_adapted
from lightning_app.errors import UserError
from lightning_app.files import JSON, load_checkpoint
from lightning_app.hub import local_file
from lightning_app.languages import Language, find_languages
from lightning_app.methods.method import Attached, Calibration, Weights
from lightning_app.methods.registry import DEFAULT, build_method
from lightning_app.model.attention import attend_without_masks, require_documents_apart, seen_within_documents
from lightning_app.model.base import Base, base_dtype, new_base, recompute_activations
from lightning_app.model.generation import continue_text
from lightning_app.model.loss import IGNORED, OutputHead, paper_loss, sequence_loss_sums, token_loss_sum
from lightning_app.model.quantized import Quantization
from lightning_app.neurons.neuron_set import NeuronSet
from lightning_app.neurons.subnetworks import Subnetworks
from lightning_app.training.calibration import make_calibration
from lightning_app.training.compilation import compile_layers
from lightning_app.training.metrics import Losses, ValidationLosses
from lightning_app.training.sharded_strategy import load_under
from lightning_app.training.trainer import NeuroglotTrainer


class SparseSubnetModule(LightningModule):
    """Loads a base, freezes it and trains a part of it by a method (arXiv 2510.13580, section 3).

    Frozen weights stay bit-identical. Checkpoints hold the trained weights and what they are, never the base.

    Args:
        base: Causal language model on the hub, or a folder.
        revision: Branch, tag or commit of the base.
        quantization: Keep the base's matrices in fewer bits, ``nf4`` or ``int8``; what is trained is fp32 beside them.
        architecture: transformers configuration of a new base (``model_type`` and its keys), instead of ``base``.
        method: What is trained, and how; see ``lightning_app/methods``.
        first_layer: Train only neurons from this layer up; the layers below run without a graph, which is faster and
            keeps fewer activations, but is another method than the paper's.
        subnetwork: Subnetwork file, or hub:OWNER/NAME; selected from the atlas where not given.
        language: Target language, or several with their shares of the text: ``cy,mt`` or ``cy:2,mt:1``.
        lr: Learning rate of AdamW; the method's own where not given.
        weight_decay: Of AdamW, on trained weights only.
        betas: Of AdamW.
        warmup_steps: Steps of linear warm-up.
        schedule: What the rate does after the warm-up.
        activation_checkpointing: Recompute activations in the backward: less memory, about a third slower.
        compile: Train through torch.compile, layer by layer; the first steps take minutes. Validation does not.
        ema: Decay of an average of the trained weights over steps, 0.999 say; it is validated and kept in their place.
        method_keys: Keys of the methods; each reads its own.

    Attributes:
        checkpoint: What to go on from in ``fit``, or the adapted model to measure, its change times ``scale``; or None.
        subnetworks: The pool that the neurons were selected from, where that is known.
        neurons: The neurons to train, where the method needs some, once they are known.
        attached: The method at work, in ``fit``.
    """

    def __init__(
        self,
        base: str | None = "meta-llama/Llama-3.1-8B",
        revision: str | None = None,
        quantization: Quantization | None = None,
        architecture: JSON | None = None,
        method: str = DEFAULT,
        first_layer: int = 0,
        subnetwork: str | None = None,
        language: str | None = None,
        lr: float | None = None,
        weight_decay: float = 0.01,
        betas: tuple[float, float] = (0.9, 0.999),
        warmup_steps: int = 0,
        schedule: Literal["constant", "linear", "cosine"] = "constant",
        activation_checkpointing: bool = False,
        compile: bool = False,
        ema: float | None = None,
        **method_keys: object,
    ) -> None:
        super().__init__()
        self.base_name, self.revision, self.quantization, self.architecture = base, revision, quantization, architecture
        self.method, self.first_layer = build_method(method, method_keys), first_layer
        published = ("subnetwork.safetensors", "--model.subnetwork")
        self.subnetwork_path = local_file(subnetwork, *published) if subnetwork else None
        self.languages: list[Language] = [each for each, _ in find_languages(language)] if language else []
        self.lr = self.method.lr if lr is None else lr
        self.weight_decay, self.betas, self.ema, self.warmup_steps = weight_decay, betas, ema, warmup_steps
        self.schedule, self.activation_checkpointing, self.is_compiled = schedule, activation_checkpointing, compile
        self.checkpoint: Path | None = None
        self.scale, self.strict_loading, self._checked_gradients, self._checked_head = 1.0, False, False, False
        self.subnetworks: Subnetworks | None = None
        self.neurons: NeuronSet | None = None
        self.attached: Attached | None = None
        self._base: Base | None = None

    @property
    def base(self) -> Base:
        """The base with its live weights, loaded on first use."""
        if self._base is None:
            self._base = self._load()
            self.model = attend_without_masks(self._base.model)  # a part of this module: Lightning moves it
        return self._base

    def _load(self) -> Base:
        dtype, strategy = base_dtype(str(self.trainer.precision)), self._running.strategy
        if self.checkpoint is not None and self._running.state.fn != "fit":
            return load_adapted(
                self.checkpoint, self.base_name, self.revision, dtype, self.scale, load=partial(load_under, strategy)
            ).as_base
        dtype = self.method.weight_dtype(dtype)
        if self.architecture is not None:
            return new_base(self.architecture, self.data.tokenizer, dtype)
        own = cast(str, self.base_name), self.revision, dtype, self.quantization
        return load_under(strategy, *own, widened=self.method.widened)

    @property
    def _running(self) -> NeuroglotTrainer:
        return cast(NeuroglotTrainer, self.trainer)

    @property
    def data(self) -> GlotCCDataModule:
        """The text that this module is trained and measured on."""
        return self._running.datamodule

    @property
    def targets(self) -> list[Language]:
        """The languages to adapt to; raises `UserError` where none is given."""
        if not self.languages:
            raise UserError("no language to adapt to: give --language (cy, say) or --config cy.yaml")
        return self.languages

    @property
    def needs_selection(self) -> bool:
        """Whether nothing says yet which neurons to train, and the method needs some."""
        known = (self.neurons, self.subnetwork_path, self.checkpoint)
        return self.method.needs_neurons and all(each is None for each in known)

    def train_neurons(self, subnetworks: Subnetworks, where: Path | str) -> None:
        """Takes the neurons that the method chooses where these, the base's, speak the languages. Collective."""
        subnetworks.model.require_same(self.base.identity, "subnetwork", where)
        speaking = subnetworks.to_train(self.targets, self.first_layer, where)
        speaking.require_within(self.base.identity, where)
        self.base.prepare_on(self._running.strategy.root_device)
        chosen = self.method.choose(speaking, self.base.model, self.first_layer, self._calibration())
        pairs = self._running.strategy.broadcast(chosen.pairs)  # rounding may differ from device to device
        self.subnetworks, self.neurons = subnetworks, NeuronSet.from_pairs(pairs)

    def _calibration(self) -> Calibration:
        return make_calibration(self.base, self.data.corpus, self.languages, self._running)

    def setup(self, stage: str) -> None:
        """Takes the neurons that a key or the checkpoint names, where a callback has not selected them."""
        if stage != "fit" or not self.method.needs_neurons or self.neurons is not None:
            return
        path, begun = self.subnetwork_path, self.checkpoint
        if begun is not None and (path is None or self.method.chooses_by_text):
            self.subnetworks = Subnetworks.load(path) if path is not None else None
            self.neurons = Adaptation.read(load_checkpoint(begun, is_mapped=True)).neurons
        elif path is not None:
            self.train_neurons(Subnetworks.load(path), path)

    def configure_model(self) -> None:
        """Builds the base, and in ``fit`` puts the method to work, once."""
        if self.attached is not None:
            return
        model, is_trained = self.base.model, self._running.state.fn == "fit"
        blocks = [len(self.data.evaluation.get(each.glotcc, [])) for each in self.data.validation_languages]
        self.losses = ValidationLosses(blocks, len(self.data.paper_languages))
        self.head = OutputHead.of(model)
        if is_trained:
            if self.activation_checkpointing:
                recompute_activations(model)
            self.attached = self.method.attach(model, self.neurons)
            if self.is_compiled:
                compile_layers(model, self.attached)
        model.train(is_trained)

    def _hidden(self, batch: Batch) -> tuple[Tensor, Tensor]:
        """Returns the last hidden states and the tokens they predict; position t predicts token t + 1."""
        inputs = seen_within_documents(self.base.model, batch)
        # Outside training nothing is compiled: lengths vary there, and a loss must not depend on how it was trained.
        with torch.compiler.set_stance("default" if self.training else "force_eager"):
            hidden = self.base.model.base_model(**inputs, use_cache=False).last_hidden_state
        return hidden[:, :-1], batch["labels"][:, 1:]

    def training_step(self, batch: Batch, batch_idx: int) -> dict[str, Tensor]:
        """Returns the loss to train on, and the mean per predicted token in nats for people."""
        # What a method or a base draws (dropout) is a function of the position, so that a resumed run draws the same.
        torch.manual_seed(self.data.seed + 1_000_003 * batch_idx + self.global_rank)
        hidden, labels = self._hidden(batch)
        predicted = (labels != IGNORED).sum().clamp(min=1)  # none where every document has but one token
        nats = token_loss_sum(hidden, self.head, labels)
        # Of positions every block has as many; of predictions not, so that a step would depend on who gets which block.
        counted = labels.numel() if self.data.chunking == "documents" else predicted
        return {"loss": nats / counted, "nats_per_token": nats.detach() / predicted}

    def _at_work(self) -> Attached:
        if self.attached is None:
            raise RuntimeError("nothing is trained outside of fit")
        return self.attached

    def configure_optimizers(self) -> OptimizerLRScheduler:
        """Returns the method's optimiser, and the schedule where it is not constant."""
        optimizer = self._at_work().optimizer(lr=self.lr, weight_decay=self.weight_decay, betas=self.betas)
        if self.schedule == "constant" and self.warmup_steps == 0:
            return optimizer
        name = "constant_with_warmup" if self.schedule == "constant" else self.schedule
        schedule = cast(LambdaLR, get_scheduler(name, optimizer, self.warmup_steps, self._running.length.steps))
        return {"optimizer": optimizer, "lr_scheduler": {"scheduler": schedule, "interval": "step"}}

    def on_before_optimizer_step(self, optimizer: Optimizer) -> None:
        """Checks the gradients of the first step: none where nothing is trained, one wherever something is."""
        if not self._checked_gradients:
            self._checked_gradients = True
            if note := self._at_work().check_gradients(self.base.model):
                self.print(note)

    def optimizer_step(
        self,
        epoch: int,
        batch_idx: int,
        optimizer: Optimizer | LightningOptimizer,
        optimizer_closure: Callable[[], object] | None = None,
    ) -> None:
        """Steps, then brings the live weights up to date."""
        super().optimizer_step(epoch, batch_idx, optimizer, optimizer_closure)
        self._at_work().after_step()

    def on_fit_start(self) -> None:
        """Lets the method look at text, where a run begins, and keeps documents apart, where they are to be."""
        if self.checkpoint is None:
            self._at_work().calibrate(self._calibration())
        if self.data.chunking == "documents":
            with self._running.precision_plugin.forward_context():
                require_documents_apart(self.base.model)

    def validation_step(self, batch: Batch, batch_idx: int, dataloader_idx: int = 0) -> None:
        """Adds a batch of FLORES blocks to its language's loss."""
        if dataloader_idx >= len(self.losses.of_languages):
            loss = paper_loss(self.base.model, **batch)
            if batch["attention_mask"].any():
                self.losses.add_paper(dataloader_idx, loss)
            return
        if not self._checked_head:
            self.head.require_agreement(self.base.model, batch["input_ids"][:1, :8])
            self._checked_head = True
        hidden, labels = self._hidden(batch)
        nats_B = sequence_loss_sums(hidden, self.head, labels)
        self.losses.add(dataloader_idx, batch["blocks"], nats_B, (labels != IGNORED).sum(1), batch["text_bytes"])

    def losses_now(self) -> Losses:
        """Returns the losses of the validation that has just run over all processes. Collective the first time."""
        return self.losses.of([language.short for language in self.data.validation_languages])

    def on_validation_epoch_end(self) -> None:
        """Logs loss and bits per byte of every language, and their mean over those that are adapted to."""
        shares = {share.language.short: share.share for share in self.data.targets}
        figures = self.losses.figures(self.losses_now(), shares, [each.short for each in self.data.paper_languages])
        # Under this name Lightning takes the step from us; its own count lags by one during validation.
        figures["step"] = float(self.global_step)
        self.log_dict({name: torch.tensor(value, dtype=torch.float64) for name, value in figures.items()})
        self.losses.reset()

    test_step = validation_step  # on devtest
    on_test_epoch_end = on_validation_epoch_end

    def predict_step(self, batch: list[str], batch_idx: int) -> dict[str, str]:
        """Continues a prompt greedily by up to 64 tokens."""
        return {"prompt": batch[0], "continuation": continue_text(self.base.model, self.data.tokenizer, batch[0], 64)}

    def state_dict(self, *args: object, **kwargs: object) -> Weights:
        """Returns the trained weights alone; see `Attached.weights`."""
        return self.attached.weights() if self.attached is not None else {}

    def load_state_dict(self, state_dict: Weights, strict: bool = True, assign: bool = False) -> None:
        """Takes over trained weights; raises `UserError` unless their names and shapes match exactly."""
        self._at_work().take(state_dict)

    def _adaptation(self) -> Adaptation:
        attached, model = self._at_work(), self.base.model
        return Adaptation(
            base=self.base.identity, architecture=self.architecture, dtype=str(model.dtype).removeprefix("torch."),
            quantization=self.quantization, tokenizer=self.data.tokenizer.name_or_path,
            language=",".join(language.glotcc for language in self.languages) or None,
            method=self.method, trained=attached.identity(), neurons=self.neurons,
        )  # fmt: skip

    def on_save_checkpoint(self, checkpoint: JSON) -> None:
        """Writes into the checkpoint what its weights are."""
        self._adaptation().write(checkpoint)

    def on_load_checkpoint(self, checkpoint: JSON) -> None:
        """Raises `UserError` unless the checkpoint belongs to this base, these neurons and this method."""
        Adaptation.read(checkpoint).require_same(self._adaptation())
