"""Figures that are taken at every validation beside the losses, shown with their change since training began."""

import time
from abc import ABC, abstractmethod
from pathlib import Path
from typing import ClassVar

import torch
from lightning.pytorch import Callback

from lightning_app.files import JSON, load_checkpoint
from lightning_app.progress import duration
from lightning_app.training.module import SparseSubnetModule
from lightning_app.training.trainer import NeuroglotTrainer


class Figures(Callback, ABC):
    """Takes figures before training and at every validation, logs them and prints them in one line.

    Attributes:
        title: What the line begins with.
        after: Those of the newest validation, by the name that they are logged under.
        asked: Digest of what the model is asked, once `setup` has read it.
    """

    title: ClassVar[str]

    def __init__(self) -> None:
        self.after: dict[str, float] = {}
        self.asked = ""
        self._before: dict[str, float] = {}
        self._asked_before = ""
        self._seconds = 0.0

    @abstractmethod
    def measure(self, trainer: NeuroglotTrainer, module: SparseSubnetModule) -> dict[str, float]:
        """Returns the figures of the model as it is, the same on all processes. Collective."""

    @abstractmethod
    def describe(self, figures: dict[str, float]) -> str:
        """Returns its own among figures for people, each with its change since training began where that is known."""

    @property
    def before(self) -> dict[str, float]:
        """Figures before training, where they were taken by the same questions."""
        return self._before if self._asked_before == self.asked else {}

    def state_dict(self) -> JSON:
        """Returns the figures before training, and of what they are."""
        return {"before": self._before, "asked": self._asked_before}

    def load_state_dict(self, state_dict: JSON) -> None:
        """Takes them over."""
        self._before, self._asked_before = state_dict["before"], state_dict["asked"]

    def remember(self, checkpoint: Path | None) -> None:
        """Takes over what a checkpoint's run began with, for a validation outside training."""
        if checkpoint is not None:
            states = load_checkpoint(checkpoint, is_mapped=True).get("callbacks", {})
            self.load_state_dict(states.get(self.state_key, self.state_dict()))

    def share(self, trainer: NeuroglotTrainer, some: int, of: int) -> float:
        """Returns the share of some in all, counted over the processes. Collective."""
        counts = torch.tensor([some, of], dtype=torch.float64, device=trainer.strategy.root_device)
        total_some, total = trainer.strategy.reduce(counts, reduce_op="sum").tolist()
        return total_some / total

    def change(self, name: str, value: float) -> float | None:
        """Returns how far a figure is from that before training; None where that is not known, or it is that."""
        return value - self.before[name] if name in self.before and self.after is not self.before else None

    def on_validation_epoch_end(self, trainer: NeuroglotTrainer, pl_module: SparseSubnetModule) -> None:
        """Takes the figures, in the precision and with the weights that the losses were taken with."""
        started = time.monotonic()
        with torch.no_grad(), trainer.precision_plugin.forward_context():
            self.after = self.measure(trainer, pl_module)
        self._seconds = time.monotonic() - started
        if trainer.sanity_checking:
            self._before, self._asked_before = self.after, self.asked
        pl_module.log_dict({name: torch.tensor(value, dtype=torch.float64) for name, value in self.after.items()})

    def on_validation_end(self, trainer: NeuroglotTrainer, pl_module: SparseSubnetModule) -> None:
        """Prints the line."""
        when = "before training: " if trainer.sanity_checking else f"step {trainer.global_step}: "
        took = f"; took {duration(self._seconds)}" if trainer.sanity_checking else ""
        when = when if trainer.state.fn == "fit" else ""
        pl_module.print(f"{when}{self.title}: {self.describe(self.after)}{took}")
