"""Writes what ``predict`` generates."""

import json
from pathlib import Path

from lightning.pytorch import Callback

from lightning_app.files import write_text
from lightning_app.training.module import SparseSubnetModule
from lightning_app.training.trainer import NeuroglotTrainer


class WritePredictions(Callback):
    """Collects prompts with their continuations and writes them as JSON lines; each process writes its own file.

    Args:
        path: Where the file goes; other processes than the first put their rank into the name.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        self._rows: list[dict[str, str]] = []

    def on_predict_batch_end(
        self,
        trainer: NeuroglotTrainer,
        pl_module: SparseSubnetModule,
        outputs: dict[str, str],
        batch: list[str],
        batch_idx: int,
        dataloader_idx: int = 0,
    ) -> None:
        """Keeps a prediction and shows it."""
        self._rows.append(outputs)
        if trainer.is_global_zero:
            print(f"{outputs['prompt']} | {outputs['continuation']}", flush=True)

    def on_predict_end(self, trainer: NeuroglotTrainer, pl_module: SparseSubnetModule) -> None:
        """Writes the file."""
        rank = trainer.global_rank
        path = self.path if rank == 0 else self.path.with_stem(f"{self.path.stem}-{rank}")
        write_text(path, "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in self._rows))
        if trainer.is_global_zero:
            print(f"predictions: {path}", flush=True)
