"""Ctrl-C, SIGTERM and SIGUSR1 in training: save after the step that is being made, say how the run goes on, and end.

SIGUSR1 is what SLURM sends before it ends a job, where ``--signal`` asks for it; the job is then to be queued again.
"""

import os
import signal
from types import FrameType

import torch
import torch.distributed
from lightning.pytorch import Callback

from callbacks.checkpoints import LastCheckpoint, is_validated_next
from datamodules.glotcc import Batch
from lightning_app.errors import TRY_AGAIN, Interrupted
from lightning_app.training.module import SparseSubnetModule
from lightning_app.training.trainer import NeuroglotTrainer

_SIGNALS = (signal.SIGINT, signal.SIGTERM, signal.SIGUSR1)


def end_at_once(number: int, frame: FrameType | None) -> None:
    """Ends the process where nothing is to be saved yet, or all is: every file is whole at any time."""
    os._exit(TRY_AGAIN)


class Interruption(Callback):
    """Ends a run at a step's end, on all processes at the same one, where one of them was asked to end.

    The handler only sets a flag: saving in it could meet the other processes at another place, and wait for ever. A
    second signal ends the process at once, which is safe, as every file is whole at any time.

    Args:
        last: What saves.

    Raises:
        Interrupted: After saving.
    """

    def __init__(self, last: LastCheckpoint) -> None:
        self.last = last
        self._signal = 0
        self._step, self._is_validated = -1, False
        self._group: torch.distributed.ProcessGroup | None = None

    def on_sanity_check_start(self, trainer: NeuroglotTrainer, pl_module: SparseSubnetModule) -> None:
        """Nothing is to be saved yet: lets signals end the process at once, where Lightning's handlers would not."""
        signal.signal(signal.SIGTERM, signal.SIG_DFL)

    def on_train_start(self, trainer: NeuroglotTrainer, pl_module: SparseSubnetModule) -> None:
        """Takes the place of Lightning's own handlers, which it has set by now."""
        self._step = trainer.global_step
        self._group = torch.distributed.new_group(backend="gloo") if trainer.world_size > 1 else None
        for number in _SIGNALS:
            signal.signal(number, self._remember)

    def _remember(self, number: int, frame: FrameType | None) -> None:
        self._signal = number
        for each in _SIGNALS:
            signal.signal(each, signal.SIG_DFL)

    def on_train_batch_end(
        self, trainer: NeuroglotTrainer, pl_module: SparseSubnetModule, outputs: Batch, batch: Batch, batch_idx: int
    ) -> None:
        """Saves and ends, once a step is whole; where it is to be validated, once that is done and saved."""
        if trainer.global_step == self._step or trainer.global_step >= trainer.length.steps:
            return
        self._step, self._is_validated = trainer.global_step, is_validated_next(trainer, batch_idx)
        if not self._is_validated:
            self._end_if_asked(trainer)

    def on_train_batch_start(
        self, trainer: NeuroglotTrainer, pl_module: SparseSubnetModule, batch: Batch, batch_idx: int
    ) -> None:
        """Ends after a validation; a run that went on from a save before it would leave it out."""
        if self._is_validated:
            self._is_validated = False
            self._end_if_asked(trainer)

    def _end_if_asked(self, trainer: NeuroglotTrainer) -> None:
        if number := self._signal_of_any():
            self.last.save(trainer)
            if number == signal.SIGUSR1:  # srun ends the others as soon as one has ended, and takes the highest code
                signal.signal(signal.SIGTERM, end_at_once)
            name, steps = signal.Signals(number).name, trainer.length.steps
            line = f"ended by {name} at step {self._step} of {steps}; saved, the same command goes on from there"
            raise Interrupted(number, line)

    def _signal_of_any(self) -> int:
        """Returns the signal that any process was sent, 0 for none. Collective, without waiting for a device."""
        if self._group is None:
            return self._signal
        number = torch.tensor(self._signal)
        torch.distributed.all_reduce(number, torch.distributed.ReduceOp.MAX, group=self._group)
        return int(number)

    def teardown(self, trainer: NeuroglotTrainer, pl_module: SparseSubnetModule, stage: str) -> None:
        """Gives the signals back."""
        if signal.getsignal(signal.SIGINT) == self._remember:
            signal.signal(signal.SIGINT, signal.default_int_handler)
            signal.signal(signal.SIGTERM, signal.SIG_DFL)
            signal.signal(signal.SIGUSR1, end_at_once)
