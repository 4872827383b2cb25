"""Saves the result of a run in the form that its users read: a delta, a transformers folder, or PEFT's adapter."""

import shutil
from pathlib import Path

from lightning.pytorch import Callback
from safetensors import SafetensorError

from lightning_app.errors import UserError
from lightning_app.export.delta import LanguageDelta
from lightning_app.files import disk_full, is_disk_full, load_checkpoint, ordinary_mode, size_on_disk, sync
from lightning_app.methods.method import Attached
from lightning_app.model.base_files import BaseFiles
from lightning_app.model.shards import is_sharded
from lightning_app.progress import ByteProgress, bytes_of, short, watched
from lightning_app.run import RunFolder
from lightning_app.training.module import SparseSubnetModule
from lightning_app.training.trainer import NeuroglotTrainer


class SaveResult(Callback):
    """Writes the best weights to ``delta.safetensors``, where neurons were trained, or to ``model/`` or ``adapter/``.

    Args:
        folder: The run folder.
    """

    def __init__(self, folder: RunFolder) -> None:
        self.folder = folder

    def on_fit_end(self, trainer: NeuroglotTrainer, pl_module: SparseSubnetModule) -> None:
        """Saves the best weights, once training is complete; on all processes where each holds a part of the base."""
        best, kind, attached = self.folder.best_checkpoint(), pl_module.method.result, pl_module.attached
        if is_sharded(pl_module.base.model):
            best = trainer.strategy.broadcast(best)
        elif not trainer.is_global_zero:
            return
        if best is None or attached is None:
            return
        if trainer.is_global_zero and pl_module.neurons is not None and pl_module.base_name is not None:
            self._save_delta(best, pl_module.base_name, pl_module.revision)
        if kind is None:
            return
        pl_module.load_state_dict(load_checkpoint(best)["state_dict"])
        size = sum(weight.nbytes for weight in pl_module.parameters()) if kind == "model" else 0
        self._save(self.folder.result(kind), size, attached, trainer)

    def _save(self, target: Path, size: int, attached: Attached, trainer: NeuroglotTrainer) -> None:
        temporary = target.with_name(f".{target.name}.partial")
        if not trainer.is_global_zero:
            attached.save(temporary)
            return
        shutil.rmtree(temporary, ignore_errors=True)
        try:
            with watched(ByteProgress(f"saving {target.name}/", size, is_brief=True), lambda: bytes_of(temporary)):
                attached.save(temporary)
                trainer.datamodule.tokenizer.save_pretrained(temporary)
        except (OSError, SafetensorError, RuntimeError) as error:
            shutil.rmtree(temporary, ignore_errors=True)
            if is_disk_full(error):
                raise disk_full(target) from error
            raise
        for file in temporary.iterdir():
            file.chmod(ordinary_mode())
            sync(file)  # a run whose record says complete has it after a power cut, too
        sync(temporary)
        shutil.rmtree(target, ignore_errors=True)
        temporary.rename(target)
        sync(target.parent)
        print(f"{target.name}: {target}", flush=True)

    def _save_delta(self, best: Path, base: str, revision: str | None) -> None:
        try:
            LanguageDelta.of(best, BaseFiles.find(base, revision)).save(self.folder.delta)
        except UserError as error:
            print(f"no delta was written: {error}", flush=True)  # the checkpoint holds all that it would
            return
        print(f"delta: {self.folder.delta} ({short(size_on_disk(self.folder.delta))}B)", flush=True)
