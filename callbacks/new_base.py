"""Saves the result of a method that makes a whole model as an ordinary transformers folder."""

import shutil

from lightning.pytorch import Callback
from safetensors import SafetensorError

from lightning_app.files import disk_full, is_disk_full, load_checkpoint, ordinary_mode
from lightning_app.run import RunFolder
from lightning_app.training.module import SparseSubnetModule
from lightning_app.training.trainer import NeuroglotTrainer


class SaveNewBase(Callback):
    """Writes the best weights and the tokenizer to ``model/`` in the run folder, for use as ``--model.base``.

    Args:
        folder: The run folder.
    """

    def __init__(self, folder: RunFolder) -> None:
        self.folder = folder

    def on_fit_end(self, trainer: NeuroglotTrainer, pl_module: SparseSubnetModule) -> None:
        """Saves the best weights, once training is complete."""
        best = self.folder.best_checkpoint()
        if not pl_module.method.makes_model or best is None or not trainer.is_global_zero:
            return
        pl_module.load_state_dict(load_checkpoint(best)["state_dict"])
        target = self.folder.model
        temporary = target.with_name(f".{target.name}.partial")
        shutil.rmtree(temporary, ignore_errors=True)
        try:
            pl_module.base.model.save_pretrained(temporary)
            trainer.datamodule.tokenizer.save_pretrained(temporary)
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
