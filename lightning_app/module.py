"""The LightningModule: a frozen causal language model of which one language's neurons are trained."""

from pathlib import Path
from typing import Any, Literal, cast

import torch
from lightning.pytorch import LightningModule
from torch import Tensor, nn
from torch.optim import AdamW, Optimizer
from torch.optim.lr_scheduler import LambdaLR
from transformers import PreTrainedModel, get_scheduler

from lightning_app.base import attend_without_masks, base_dtype, identity_of, load_base, new_base
from lightning_app.engine import Engine, build_engine, compile_layers, require_compiler
from lightning_app.errors import UserError
from lightning_app.ffn import PROJECTIONS, GatedFFN, find_gated_ffns
from lightning_app.identity import ModelIdentity
from lightning_app.languages import Language, find_language
from lightning_app.loss import IGNORED, OutputHead, token_loss_sum
from lightning_app.metrics import LanguageLoss, validation_figures
from lightning_app.preflight import require_belonging
from lightning_app.subnetwork import Subnetwork


class SparseSubnetModule(LightningModule):
    """Loads a base, freezes it and trains the neuron weights of one language (arXiv 2510.13580, section 3).

    Frozen weights stay bit-identical. Checkpoints hold the neuron weights, never the base.

    Args:
        base: Causal language model on the hub, or a folder.
        revision: Branch, tag or commit of the base.
        architecture: transformers configuration of a new base (``model_type`` and its keys), with ``method: full``.
        method: ``subnetwork`` trains one language's neurons; ``full`` trains every weight.
        engine: ``packed`` (rows only, fast) or ``masked`` (gradient masks on full matrices, the reference).
        projections: Which of gate, up and down are trained.
        first_layer: Train only neurons from this layer up; the layers below run without a graph, which is faster and
            keeps fewer activations, but is another method than the paper's.
        subnetwork: Subnetwork file; selected from the atlas where not given.
        language: Target language.
        lr: Learning rate of AdamW.
        weight_decay: Of AdamW, on trained weights only.
        betas: Of AdamW.
        warmup_steps: Steps of linear warm-up.
        schedule: What the rate does after the warm-up.
        activation_checkpointing: Recompute activations in the backward: less memory, about a third slower.
        compile: Train through torch.compile, layer by layer; the first steps take minutes. Validation does not.
    """

    def __init__(
        self,
        base: str | None = None,
        revision: str | None = None,
        architecture: dict[str, Any] | None = None,
        method: Literal["subnetwork", "full"] = "subnetwork",
        engine: Literal["packed", "masked"] = "packed",
        projections: list[Literal["gate", "up", "down"]] | None = None,
        first_layer: int = 0,
        subnetwork: str | None = None,
        language: str | None = None,
        lr: float = 1e-4,
        weight_decay: float = 0.01,
        betas: tuple[float, float] = (0.9, 0.999),
        warmup_steps: int = 0,
        schedule: Literal["constant", "linear", "cosine"] = "constant",
        activation_checkpointing: bool = False,
        compile: bool = False,
    ) -> None:
        super().__init__()
        self.base_name, self.revision, self.architecture = base, revision, architecture
        self.method, self.engine_name = method, engine
        self.projections = tuple(p for p in PROJECTIONS if p in (projections or PROJECTIONS))
        self.first_layer = first_layer
        self.subnetwork_path = Path(subnetwork) if subnetwork else None
        self.language = find_language(language) if language else None
        self.adamw = {"lr": lr, "weight_decay": weight_decay, "betas": tuple(betas)}
        self.warmup_steps, self.schedule = warmup_steps, schedule
        self.activation_checkpointing, self.is_compiled = activation_checkpointing, compile
        self.strict_loading = False
        self.before: dict[str, list[float]] = {}
        self.after: dict[str, list[float]] = {}
        self.subnetwork: Subnetwork | None = None
        self.engine: Engine | None = None
        self._base: PreTrainedModel | None = None
        self._checked_gradients = self._checked_head = False
        if base is not None and architecture is not None:
            raise UserError(f"--model.base is {base} and --model.architecture is given too; expected one of the two")
        if architecture is not None and method != "full":
            raise UserError("a new base from --model.architecture has nothing to adapt yet; set --model.method full")

    @property
    def base(self) -> PreTrainedModel:
        """The base model with its live weights, loaded on first use."""
        if self._base is None:
            dtype = base_dtype(str(self.trainer.precision))
            if self.method == "full":
                dtype = torch.promote_types(dtype, torch.float32)
            if self.architecture is not None:
                self._base = new_base(self.architecture, self._data.tokenizer, dtype)
            else:
                self._base = load_base(cast(str, self.base_name), self.revision, dtype)
            self._base.requires_grad_(False)
            attend_without_masks(self._base)
            self._identity = identity_of(self._base, self.base_name or "new")
        return self._base

    @property
    def identity(self) -> ModelIdentity:
        """Identity of the base as it was loaded."""
        return self._identity if self._base is not None else identity_of(self.base, self.base_name or "new")

    @property
    def ffns(self) -> list[GatedFFN]:
        """The gated FFNs of the base."""
        return find_gated_ffns(self.base)

    @property
    def target(self) -> Language:
        """The language to adapt to.

        Raises:
            UserError: None is given.
        """
        if self.language is None:
            raise UserError("no language to adapt to: give --language (cy, say) or --config cy.yaml")
        return self.language

    @property
    def _data(self) -> Any:
        return self.trainer.datamodule  # type: ignore[attr-defined]

    @property
    def needs_subnetwork(self) -> bool:
        """Whether training still lacks its neurons."""
        return self.method == "subnetwork" and self.subnetwork is None

    def use(self, subnetwork: Subnetwork, where: Path | str) -> None:
        """Takes the neurons to train.

        Raises:
            UserError: They belong to another model, or the language has none.
        """
        subnetwork.model.require_same(self.identity, "subnetwork", where)
        pairs = subnetwork.of(self.target)
        if len(pairs) == 0:
            raise UserError(
                f"subnetwork {where} holds no neurons for {self.target}; select it again at a higher --profiling.rate"
            )
        if pairs[:, 0].max() >= self.identity.layers or pairs[:, 1].max() >= self.identity.neurons_per_layer:
            raise UserError(f"subnetwork {where} names neurons that {self.identity} does not have")
        self.subnetwork = subnetwork
        if not self.neurons:
            raise UserError(
                f"--model.first_layer is {self.first_layer}, but the neurons of {self.target} lie in layers "
                f"{int(pairs[:, 0].min())} to {int(pairs[:, 0].max())}"
            )

    @property
    def neurons(self) -> dict[int, Tensor]:
        """Indices of the neurons that are trained, for the layers that have any."""
        by_layer = cast(Subnetwork, self.subnetwork).by_layer(self.target)
        return {layer: indices for layer, indices in by_layer.items() if layer >= self.first_layer}

    def setup(self, stage: str) -> None:
        """Reads the subnetwork that a key names, where a callback has not selected one."""
        if self.needs_subnetwork and self.subnetwork_path is not None:
            self.use(Subnetwork.load(self.subnetwork_path), self.subnetwork_path)

    def configure_model(self) -> None:
        """Builds the base, and the engine where there is a subnetwork. Does nothing the second time."""
        if self.engine is not None:
            return
        base = self.base
        self.losses = nn.ModuleList(LanguageLoss() for _ in self._data.validation_languages)
        self.head = OutputHead.of(base)
        if self.activation_checkpointing:
            enable = getattr(base, "activation_checkpointing_enable", None) or base.gradient_checkpointing_enable
            enable({"use_reentrant": False})
        if self.method == "full":
            base.requires_grad_(True)
        elif self.subnetwork is not None:
            self.engine = build_engine(self.engine_name, self.ffns, self.neurons, self.projections)
        if self.is_compiled and self.trainer.state.fn == "fit":
            require_compiler(self.trainer.strategy.root_device)
            compile_layers(base, self.engine)
        base.train(self.trainer.training or self.trainer.state.fn == "fit")

    @property
    def trainable_parameters(self) -> int:
        """Numbers that training may change."""
        if self.engine is not None:
            return sum(weights.numel() for weights in self.engine.neuron_weights().values())
        return sum(weight.numel() for weight in self.base.parameters()) if self.method == "full" else 0

    def hidden_states(self, input_ids: Tensor) -> Tensor:
        """Returns the decoder's last hidden states, (B, T, D), without making logits."""
        # Outside training nothing is compiled: lengths vary there, and a loss must not depend on how it was trained.
        with torch.compiler.set_stance("default" if self.training else "force_eager"):
            return self.base.base_model(input_ids=input_ids, use_cache=False).last_hidden_state

    def _loss_sum(self, batch: dict[str, Tensor]) -> tuple[Tensor, Tensor]:
        """Returns summed nats and the number of predicted tokens; position t predicts token t + 1."""
        hidden = self.hidden_states(batch["input_ids"])
        labels = batch["labels"][:, 1:]
        return token_loss_sum(hidden[:, :-1], self.head, labels), (labels != IGNORED).sum()

    def training_step(self, batch: dict[str, Tensor], batch_idx: int) -> dict[str, Tensor]:
        """Returns the mean loss per token of a batch, in nats; twice, because Lightning scales ``loss`` in place."""
        nats, tokens = self._loss_sum(batch)
        return {"loss": nats / tokens, "nats_per_token": (nats / tokens).detach()}

    def configure_optimizers(self) -> Any:
        """Returns AdamW over the trained weights, and the schedule where it is not constant."""
        if self.engine is not None:
            optimizer = self.engine.optimizer(**self.adamw)
        else:
            optimizer = AdamW((p for p in self.parameters() if p.requires_grad), **self.adamw)  # type: ignore[arg-type]
        if self.schedule == "constant" and self.warmup_steps == 0:
            return optimizer
        name = "constant_with_warmup" if self.schedule == "constant" else self.schedule
        steps = self.trainer.total_steps  # type: ignore[attr-defined]
        schedule = cast(LambdaLR, get_scheduler(name, optimizer, self.warmup_steps, steps))
        return {"optimizer": optimizer, "lr_scheduler": {"scheduler": schedule, "interval": "step"}}

    def on_before_optimizer_step(self, optimizer: Optimizer) -> None:
        """Checks once that masked gradients are masked."""
        if self.engine is not None and not self._checked_gradients:
            self.engine.require_frozen_gradients_zero()
            self._checked_gradients = True

    def optimizer_step(self, *args: Any, **kwargs: Any) -> None:
        """Steps, then brings the live weights up to date."""
        super().optimizer_step(*args, **kwargs)
        if self.engine is not None:
            self.engine.after_step()

    def validation_step(self, batch: dict[str, Tensor], batch_idx: int, dataloader_idx: int = 0) -> None:
        """Adds a batch of FLORES blocks to its language's loss."""
        if not self._checked_head:
            self.head.require_agreement(self.base, batch["input_ids"][:1, :8])
            self._checked_head = True
        nats, tokens = self._loss_sum(batch)
        cast(LanguageLoss, self.losses[dataloader_idx]).update(nats, tokens, batch["text_bytes"])

    def on_validation_epoch_end(self) -> None:
        """Logs loss and bits per byte of every language; the first time they become the values before training."""
        languages: list[Language] = self._data.validation_languages
        values: dict[str, list[float]] = {}
        for language, metric in zip(languages, self.losses, strict=True):
            values[language.short] = cast(LanguageLoss, metric).compute().tolist()
            cast(LanguageLoss, metric).reset()
        self.before = self.before or values
        self.after = values
        shares = {share.language.short: share.share for share in self._data.shares}
        figures = validation_figures(values, self.before, shares)
        # Under this name Lightning takes the step from us; its own count lags by one during validation.
        figures["step"] = float(self.global_step)
        self.log_dict({name: torch.tensor(value, dtype=torch.float64) for name, value in figures.items()})

    test_step = validation_step  # on devtest
    on_test_epoch_end = on_validation_epoch_end

    @torch.no_grad()
    def predict_step(self, batch: list[str], batch_idx: int) -> dict[str, str]:
        """Continues a prompt greedily by up to 64 tokens."""
        tokenizer = self._data.tokenizer
        ids = tokenizer(batch[0], return_tensors="pt", return_token_type_ids=False).to(self.device)
        out = cast(Any, self.base).generate(
            **ids, max_new_tokens=64, do_sample=False, pad_token_id=tokenizer.pad_token_id or tokenizer.eos_token_id
        )
        continuation = tokenizer.decode(out[0, ids["input_ids"].shape[1] :], skip_special_tokens=True)
        return {"prompt": batch[0], "continuation": continuation}

    def state_dict(self, *args: Any, **kwargs: Any) -> dict[str, Any]:
        """Returns the trained weights alone: vectors by ``{layer}.{projection}``, or the whole base under ``full``."""
        if self.engine is not None:
            return self.engine.neuron_weights()
        return self.base.state_dict() if self.method == "full" else {}

    def load_state_dict(self, state_dict: Any, strict: bool = True, assign: bool = False) -> Any:
        """Takes over trained weights whose names and shapes match exactly.

        Raises:
            UserError: They do not.
        """
        mine = self.state_dict()
        if {name: w.shape for name, w in mine.items()} != {name: w.shape for name, w in state_dict.items()}:
            raise UserError(
                f"the checkpoint's {len(state_dict)} weights do not fit the {len(mine)} of this run; "
                "they were made with other --model.projections, another subnetwork or another base"
            )
        if self.engine is not None:
            self.engine.load_neuron_weights({name: w.to(mine[name].device) for name, w in state_dict.items()})
        elif self.method == "full":
            self.base.load_state_dict(state_dict)

    def on_save_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Writes into the checkpoint what it belongs to, and the losses before training."""
        checkpoint["neuroglot"] = {**self._belongs_to(), "before": self.before, "engine": self.engine_name}

    def _belongs_to(self) -> dict[str, Any]:
        neurons = self.subnetwork.id_of(self.target) if self.subnetwork is not None else ""
        base = self.identity.fingerprint if self.architecture is None else ""
        return {
            "method": self.method,
            "base": base,
            "subnetwork": neurons,
            "first layer": self.first_layer,
            "projections": list(self.projections),
        }

    def on_load_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Checks that the checkpoint belongs to this base and subnetwork.

        Raises:
            UserError: It does not.
        """
        found: dict[str, Any] = checkpoint.get("neuroglot") or {}
        engine = self.engine_name if self.trainer.state.fn == "fit" else None
        require_belonging(found, self._belongs_to(), engine)
        self.before = found["before"]
