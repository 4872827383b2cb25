"""The length and the order of training: pure functions of the seed and of how many blocks there are.

No part of it depends on workers, prefetching or the number of processes, so a run can go on anywhere, on any number
of processes, from the count of sequences that were consumed.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from lightning_app.errors import UserError


@dataclass(frozen=True)
class RunLength:
    """How long a run is, in every unit.

    Attributes:
        sequences: Sequences that the text and the token budget give.
        tokens_per_sequence: Mean, padding left out.
        batch_size: Sequences per device and forward pass.
        processes: Number of processes.
        accumulate: Batches per optimiser step.
        max_steps: Optimiser steps at most; -1 where nothing limits them.
        steps_done: Steps made before, perhaps by another number of processes.
        consumed: Sequences that they read.

    >>> length = RunLength(1000, 512.0, batch_size=2, processes=4, accumulate=3)
    >>> length.sequences_per_step, length.steps, length.tokens
    (24, 41, 503808)
    >>> on_one = RunLength(1000, 512.0, batch_size=2, processes=1, accumulate=3, steps_done=40, consumed=960)
    >>> on_one.steps, on_one.tokens_after(40), on_one.tokens
    (46, 491520, 509952)
    """

    sequences: int
    tokens_per_sequence: float
    batch_size: int
    processes: int
    accumulate: int
    max_steps: int = -1
    steps_done: int = 0
    consumed: int = 0

    @property
    def sequences_per_step(self) -> int:
        return self.batch_size * self.processes * self.accumulate

    @property
    def steps_of_text(self) -> int:
        """Optimiser steps that the text gives: those made before, and what is left by today's step."""
        return self.steps_done + (self.sequences - self.consumed) // self.sequences_per_step

    def require_step(self, block_size: int) -> None:
        """Raises `UserError` where the text, in sequences of ``block_size`` tokens, is less than one step."""
        if self.steps_of_text == 0:
            raise UserError(
                f"the text gives {self.sequences} sequences of {block_size} tokens and one step takes "
                f"{self.sequences_per_step}; raise --data.token_budget, or lower --data.batch_size or "
                "--trainer.accumulate_grad_batches"
            )

    @property
    def sequences_read(self) -> int:
        """Sequences that the steps of the text read, from the first one on."""
        return self.consumed + (self.steps_of_text - self.steps_done) * self.sequences_per_step

    @property
    def steps(self) -> int:
        """Optimiser steps of the run."""
        return min(self.steps_of_text, self.max_steps) if self.max_steps > 0 else self.steps_of_text

    @property
    def tokens_per_batch(self) -> float:
        """Mean tokens that all processes read at a time."""
        return self.tokens_per_sequence * self.batch_size * self.processes

    def tokens_after(self, steps: int) -> int:
        """Returns the tokens read in a number of steps."""
        return round((self.consumed + (steps - self.steps_done) * self.sequences_per_step) * self.tokens_per_sequence)

    @property
    def tokens(self) -> int:
        """Tokens of the whole run."""
        return self.tokens_after(self.steps)


def training_order(available: Sequence[int], wanted: Sequence[int], seed: int) -> Tensor:
    """Returns positions into the concatenation of several sets of blocks, int64 (sum of ``wanted``,).

    Each set is shuffled and passed as often as needed, a fresh shuffle each time; the sets are mixed evenly.

    Args:
        available: Blocks in each set.
        wanted: Blocks to draw from each set.
        seed: Of the shuffles.

    >>> sorted(training_order([3, 2], [3, 4], seed=0).tolist())
    [0, 1, 2, 3, 3, 4, 4]
    """
    generator = torch.Generator().manual_seed(seed)
    drawn, offset = [], 0
    for size, count in zip(available, wanted, strict=True):
        passes = [torch.randperm(size, generator=generator) for _ in range(-(-count // size) if count else 0)]
        drawn.append(torch.cat(passes)[:count] + offset if passes else torch.empty(0, dtype=torch.int64))
        offset += size
    labels = torch.cat([torch.full((count,), which) for which, count in enumerate(wanted)])
    labels = labels[torch.randperm(len(labels), generator=generator)]
    order = torch.empty(len(labels), dtype=torch.int64)
    for which, positions in enumerate(drawn):
        order[labels == which] = positions
    return order


class ResumableBatches:
    """Batches of one process: rank r takes the positions consumed + r, step world size.

    Every process gets the same number of batches, by construction.

    Args:
        order: Positions of all sequences, the same on all processes.
        batch_size: Sequences per batch and process.
        rank: Of this process.
        world_size: Number of processes.
        consumed: Sequences that all processes together have consumed already.
        batches_done: Batches that a resumed loop has counted already; they count in the length.
    """

    def __init__(
        self, order: Tensor, batch_size: int, rank: int, world_size: int, consumed: int = 0, batches_done: int = 0
    ) -> None:
        self.order, self.batch_size, self.rank, self.world_size = order, batch_size, rank, world_size
        self.consumed, self.batches_done = consumed, batches_done

    def __len__(self) -> int:
        return self.batches_done + (len(self.order) - self.consumed) // (self.batch_size * self.world_size)

    def __iter__(self) -> Iterator[list[int]]:
        for batch in range(self.batches_done, len(self)):
            yield self.order[self.positions(batch)].tolist()

    def positions(self, batch: int) -> list[int]:
        """Returns where in the order the sequences of a batch stand, the batches of a resumed loop counted on."""
        step = self.batch_size * self.world_size
        start = self.consumed + (batch - self.batches_done) * step
        return list(range(start + self.rank, start + step, self.world_size))
