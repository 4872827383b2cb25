"""The Trainer: Lightning's, with the settings this method needs, atomic checkpoints and two more verbs."""

import json
import os
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from lightning.fabric.plugins.environments import SLURMEnvironment
from lightning.pytorch import Callback, LightningDataModule, LightningModule, Trainer
from lightning.pytorch.plugins.io import TorchCheckpointIO

from lightning_app.atlas import Atlas
from lightning_app.base import base_dtype, base_without_weights, identity_of
from lightning_app.errors import UserError
from lightning_app.files import replacing
from lightning_app.identity import ModelIdentity
from lightning_app.languages import find_language
from lightning_app.plan import Planner
from lightning_app.report import describe_subnetwork, format_plan, format_subnetwork
from lightning_app.subnetwork import read_subnetwork, select_subnetwork

if TYPE_CHECKING:
    from datamodules.glotcc import GlotCCDataModule


class AtomicCheckpointIO(TorchCheckpointIO):
    """Writes a checkpoint beside its target, syncs and renames: a killed save leaves the previous file whole."""

    def save_checkpoint(self, checkpoint: dict[str, Any], path: Any, storage_options: Any = None) -> None:
        """Saves ``checkpoint`` to ``path``."""
        with replacing(Path(path)) as temporary, temporary.open("wb") as file:
            torch.save(checkpoint, file)

    def load_checkpoint(self, path: Any, map_location: Any = "cpu", weights_only: bool | None = None) -> dict[str, Any]:
        """Loads a checkpoint.

        Raises:
            UserError: The file is missing or damaged.
        """
        if not Path(path).is_file():
            raise UserError(f"there is no checkpoint at {path}; check --ckpt_path or --resume")
        try:
            return torch.load(path, map_location=map_location, weights_only=True)
        except (RuntimeError, EOFError, OSError, ValueError) as error:
            reason = str(error).split("\n")[0][:120]
            raise UserError(f"checkpoint {path} is damaged ({reason}); give another one, or --resume never") from error


class NeuroglotTrainer(Trainer):
    """Lightning's Trainer for one pass over the token budget.

    Validation runs before training (the values that changes are shown against), every ``validate_every`` optimiser
    steps, and after the last one.

    Args:
        validate_every: Optimiser steps between validations; the best and the last checkpoint are saved then.
        accumulate_grad_batches: Batches per optimiser step.
        plugins: More plugins for Lightning.
    """

    datamodule: "GlotCCDataModule"
    callbacks: list[Callback]
    log_every_n_steps: int

    def __init__(
        self,
        *args: Any,
        validate_every: int = 500,
        accumulate_grad_batches: int = 1,
        plugins: Any = None,
        **kwargs: Any,
    ) -> None:
        if validate_every < 1 or accumulate_grad_batches < 1:
            raise UserError("--trainer.validate_every and --trainer.accumulate_grad_batches must be above zero")
        base_dtype(str(kwargs.get("precision") or "32-true"))
        own: list[Any] = [AtomicCheckpointIO()]
        if SLURMEnvironment.detect():
            _require_srun()
            # Lightning's requeue saves inside the signal handler, which can deadlock; the same command resumes anyway.
            own.append(SLURMEnvironment(auto_requeue=False))
        given = plugins if isinstance(plugins, list) else [plugins] if plugins is not None else []
        super().__init__(
            *args,
            accumulate_grad_batches=accumulate_grad_batches,
            plugins=[*own, *given],
            max_epochs=1,
            min_epochs=None,
            min_steps=None,
            overfit_batches=0.0,
            reload_dataloaders_every_n_epochs=0,
            check_val_every_n_epoch=None,
            val_check_interval=validate_every * accumulate_grad_batches,
            num_sanity_val_steps=-1,
            use_distributed_sampler=False,
            inference_mode=False,
            enable_model_summary=False,
            enable_checkpointing=True,
            barebones=False,
            **kwargs,
        )
        self.is_profiling = False
        self.validate_every = validate_every

    @property
    def total_steps(self) -> int:
        """Optimiser steps of the run: the token budget's, or ``max_steps`` where that is less."""
        steps = self.datamodule.steps(self.world_size, self.accumulate_grad_batches)
        return min(steps, self.max_steps) if self.max_steps > 0 else steps

    def fit(self, *args: Any, **kwargs: Any) -> None:
        """Profile where needed, train the neurons that speak a language, and validate; goes on where it stopped."""
        super().fit(*args, **kwargs)

    def validate(self, *args: Any, verbose: bool = False, **kwargs: Any) -> Any:
        """Measure loss and bits per byte on FLORES dev, of the base or of an adapted model."""
        return super().validate(*args, verbose=verbose, **kwargs)  # type: ignore[misc]

    def test(self, *args: Any, verbose: bool = False, **kwargs: Any) -> Any:
        """Measure loss and bits per byte on FLORES devtest."""
        return super().test(*args, verbose=verbose, **kwargs)  # type: ignore[misc]

    def predict(self, *args: Any, **kwargs: Any) -> Any:
        """Continue prompts in the language and write them to predictions.jsonl in the run folder."""
        return super().predict(*args, **kwargs)

    def profile(
        self,
        model: LightningModule | None = None,
        datamodule: LightningDataModule | None = None,
        ckpt_path: str | None = None,
        weights_only: bool | None = None,
    ) -> None:
        """Count activations of the languages of the pool and add them to the atlas; train nothing."""
        self.is_profiling = True
        # Through predict, so that it runs on all ranks and in every precision; the profiling callback does the work.
        super().predict(model, datamodule=datamodule, return_predictions=False)

    def plan(
        self,
        model: Any = None,
        datamodule: Any = None,
        json_: bool = False,
        profiling: Any = None,
        ckpt_path: str | None = None,
        weights_only: bool | None = None,
    ) -> None:
        """Say what fit would take in memory, text, time and disk, and what is cached; load no weights."""
        plan = Planner(self, model, datamodule, profiling).plan()
        if self.is_global_zero:
            print(json.dumps(plan, ensure_ascii=False) if json_ else format_plan(plan), flush=True)

    def subnetwork(
        self,
        model: Any = None,
        datamodule: LightningDataModule | None = None,
        file: str | None = None,
        languages: str | None = None,
        atlas: str | list[str] | None = None,
        shape: dict[str, int] | None = None,
        write: str | None = None,
        write_atlas: str | None = None,
        json_: bool = False,
        profiling: Any = None,
        ckpt_path: str | None = None,
        weights_only: bool | None = None,
    ) -> None:
        """Select neurons from an atlas, or read a subnetwork file or released masks, and describe them.

        Args:
            file: Subnetwork file or released masks (.pt, .pth) to read instead of selecting.
            languages: Order of the languages of released masks, as ``mt,af,is,...``.
            atlas: Atlas to select from; a list of several of the same model is added up.
            shape: Numbers of the model where --model.base is not at hand: layers, neurons_per_layer, hidden_size and
                parameters.
            write: Write the subnetwork to this file.
            write_atlas: Write the summed atlas to this file.
        """
        if file is not None:
            found = read_subnetwork(Path(file), languages)
        else:
            summed = _sum_atlases(atlas)
            if write_atlas:
                summed.save(Path(write_atlas))
            codes = languages.split(",") if languages else profiling.languages if not atlas else None
            pool = [find_language(code) for code in codes or summed.counts]
            found = select_subnetwork(summed, pool, profiling.rate, profiling.quantile)
        identity = _shape(shape, found.model)
        if not found.model.parameters and shape is None and model is not None and model.base_name:
            identity = identity_of(base_without_weights(model.base_name, model.revision), model.base_name)
            found.model.require_same(identity, "subnetwork", file or "selected")
        if write:
            found.save(Path(write))
        described = describe_subnetwork(found, identity)
        print(json.dumps(described, ensure_ascii=False) if json_ else format_subnetwork(described), flush=True)


def _sum_atlases(paths: str | list[str] | None) -> Atlas:
    paths = [paths] if isinstance(paths, str) else paths
    if not paths:
        raise UserError(
            "nothing to read: give --atlas FILE (or several), or --file with a subnetwork or released masks"
        )
    first, *others = [(Path(path), Atlas.load(Path(path))) for path in paths]
    for path, other in others:
        first[1].merge(other, path)
    return first[1]


def _shape(shape: dict[str, int] | None, model: ModelIdentity) -> ModelIdentity:
    known = {key: shape.get(key, getattr(model, key)) if shape else getattr(model, key) for key in _SHAPE_KEYS}
    unknown = set(shape or {}) - set(_SHAPE_KEYS)
    if unknown:
        raise UserError(f"--shape has no {', '.join(sorted(unknown))}; expected {', '.join(_SHAPE_KEYS)}")
    return ModelIdentity(model.name, model.revision, model.fingerprint, **known)


_SHAPE_KEYS = ("layers", "neurons_per_layer", "hidden_size", "parameters")


def _require_srun() -> None:
    tasks = int(os.environ.get("SLURM_NTASKS", "1"))
    if tasks > 1 and "SLURM_STEP_ID" not in os.environ:
        raise UserError(
            f"this SLURM allocation has {tasks} tasks but the program was not started by srun, so the others would "
            "never join; put srun in front of the command"
        )
