"""What the machine does while it trains: tokens per second, share of the limit, memory, time spent on data."""

import time

import torch
from lightning.pytorch import Callback

from datamodules.glotcc import Batch
from lightning_app.model.limit import device_rate, frozen_step_flop
from lightning_app.model.loss import IGNORED
from lightning_app.planning.memory import peak_gib
from lightning_app.progress import short
from lightning_app.training.module import SparseSubnetModule
from lightning_app.training.trainer import NeuroglotTrainer


class Throughput(Callback):
    """Counts tokens and time of all processes. Waits for the device only when it is read, not at every step.

    The first batch, in which libraries warm up, and the time of validation and checkpoints are not counted.
    """

    def __init__(self) -> None:
        self._mark: float | None = None  # the clock runs from here; None while it stands
        self._is_warm = False
        self._elapsed_s = self._waited_s = 0.0
        self._tokens: torch.Tensor | int = 0  # on the device, so that adding to it waits for nothing
        self._totals = {"tokens": 0.0, "elapsed_s": 0.0, "waited_s": 0.0}
        self._speed = 0.0

    def on_train_start(self, trainer: NeuroglotTrainer, pl_module: SparseSubnetModule) -> None:
        """Works out the limit of frozen training for this model and device."""
        model = pl_module.base.model
        lowest_layer = pl_module.attached.lowest_layer if pl_module.attached is not None else 0
        flop = frozen_step_flop(model, lowest_layer, trainer.datamodule.block_size)
        rate, self._source = device_rate(trainer.strategy.root_device, model.dtype)
        self._limit = rate / flop * trainer.world_size

    def on_train_batch_start(
        self, trainer: NeuroglotTrainer, pl_module: SparseSubnetModule, batch: Batch, batch_idx: int
    ) -> None:
        """Ends the wait for data that began with the end of the last batch."""
        self._waited_s += self._advance()

    def on_train_batch_end(
        self, trainer: NeuroglotTrainer, pl_module: SparseSubnetModule, outputs: Batch, batch: Batch, batch_idx: int
    ) -> None:
        """Counts the batch's tokens, padding left out."""
        self._tokens = self._tokens + (batch["labels"] != IGNORED).sum()
        if not self._is_warm:
            self.read(trainer)
            self._is_warm, self._totals = True, dict.fromkeys(self._totals, 0.0)
        self._advance()

    def on_validation_start(self, trainer: NeuroglotTrainer, pl_module: SparseSubnetModule) -> None:
        """Stops the clock until the next batch begins."""
        if self._mark is not None:
            self._advance()
            self._mark = None

    def _advance(self) -> float:
        """Lets the clock run, and returns the seconds it ran since the last time."""
        now = time.perf_counter()
        seconds = now - self._mark if self._mark is not None else 0.0
        self._elapsed_s, self._mark = self._elapsed_s + seconds, now
        return seconds

    def read(self, trainer: NeuroglotTrainer) -> dict[str, float]:
        """Returns the figures since the last reading and starts anew. Collective; waits for the device."""
        device = trainer.strategy.root_device
        tokens = float(self._tokens)  # waits, and only then the clock is read
        if self._mark is not None:
            self._advance()
        sums = torch.tensor([tokens, self._elapsed_s, self._waited_s], dtype=torch.float64)
        tokens, elapsed_s, waited_s = trainer.strategy.reduce(sums.to(device), reduce_op="sum").tolist()
        self._elapsed_s, self._waited_s, self._tokens = 0.0, 0.0, 0
        for name, value in zip(self._totals, (tokens, elapsed_s, waited_s), strict=True):
            self._totals[name] += value
        return self._figures(tokens, elapsed_s, waited_s, trainer.world_size) | {"peak_gib": peak_gib(device)}

    def _figures(self, tokens: float, elapsed_s: float, waited_s: float, processes: int) -> dict[str, float]:
        if elapsed_s <= 0:
            return {}
        tokens_per_second = tokens / (elapsed_s / processes)
        return {
            "tokens_per_second": tokens_per_second,
            "share_of_limit": tokens_per_second / self._limit,
            "data_wait_share": waited_s / elapsed_s,
        }

    def on_train_end(self, trainer: NeuroglotTrainer, pl_module: SparseSubnetModule) -> None:
        """Prints the figures of the whole training."""
        self.read(trainer)
        totals = self._totals
        figures = self._figures(totals["tokens"], totals["elapsed_s"], totals["waited_s"], trainer.world_size)
        self._speed = figures.get("tokens_per_second", 0.0)
        if trainer.is_global_zero and (line := self.summary(trainer)):
            print(line, flush=True)

    @property
    def tokens_per_second(self) -> float | None:
        """The speed of the training of this process's life; None where there was a single batch."""
        return self._speed or None

    def summary(self, trainer: NeuroglotTrainer) -> str:
        """Returns one line on the training so far, of this process's life; empty where there was a single batch."""
        totals = self._totals
        figures = self._figures(totals["tokens"], totals["elapsed_s"], totals["waited_s"], trainer.world_size)
        if not figures:
            return ""
        device = trainer.strategy.root_device
        speed, share = short(figures["tokens_per_second"]), 100 * figures["share_of_limit"]
        return (
            f"speed: {speed} tokens/s, {share:.0f} % of the limit of frozen training (by the {self._source}); "
            f"{100 * figures['data_wait_share']:.1f} % of the time waiting for data; "
            f"peak {'GPU' if device.type == 'cuda' else 'process'} memory {peak_gib(device):.2f} GiB"
        )
