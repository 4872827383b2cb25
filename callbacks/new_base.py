"""Saves a base that was trained from scratch as an ordinary transformers folder."""

import shutil
from pathlib import Path

import torch
from lightning.pytorch import Callback
from safetensors import SafetensorError

from lightning_app.files import disk_full, is_disk_full, ordinary_mode
from lightning_app.module import SparseSubnetModule
from lightning_app.run import best_checkpoint
from lightning_app.trainer import NeuroglotTrainer


class SaveNewBase(Callback):
    """Writes the best weights and the tokenizer to ``model/`` in the run folder, for use as ``--model.base``.

    Args:
        folder: The run folder.
    """

    def __init__(self, folder: Path) -> None:
        self.folder = folder

    def on_fit_end(self, trainer: NeuroglotTrainer, pl_module: SparseSubnetModule) -> None:
        """Saves under ``method: full``, once training is complete."""
        best = best_checkpoint(self.folder)
        if pl_module.method != "full" or best is None or not trainer.is_global_zero:
            return
        pl_module.load_state_dict(torch.load(best, map_location="cpu", weights_only=True)["state_dict"])
        data = trainer.datamodule
        temporary, target = self.folder / ".model.partial", self.folder / "model"
        shutil.rmtree(temporary, ignore_errors=True)
        try:
            pl_module.base.save_pretrained(temporary)
            data.tokenizer.save_pretrained(temporary)
        except (OSError, SafetensorError, RuntimeError) as error:
            shutil.rmtree(temporary, ignore_errors=True)
            if is_disk_full(error):
                raise disk_full(target) from error
            raise
        for file in temporary.iterdir():
            file.chmod(ordinary_mode())
        shutil.rmtree(target, ignore_errors=True)
        temporary.rename(target)
        print(f"new base: {target}", flush=True)
