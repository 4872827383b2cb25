"""Counting the open gates of one language's text, in two halves that can be compared."""

from collections.abc import Callable
from typing import Self

import torch
from torch import Tensor, nn
from transformers import PreTrainedModel

from datamodules.chunking import Blocks
from datamodules.sources import Identity
from lightning_app.languages import Language
from lightning_app.model.ffn import GatedFFN
from lightning_app.model.shards import is_sharded
from lightning_app.profiling.processes import Processes
from lightning_app.progress import TokenProgress


class GateCounter:
    """Hooks on the gates that count, per neuron, the tokens with a positive gate; act(x) > 0 exactly where x > 0.

    Attributes:
        counts_HLN: The counts of two halves of the text, int64 (2, L, N).
        half: Which of them is being counted.
    """

    def __init__(self, ffns: list[GatedFFN], device: torch.device) -> None:
        self.counts_HLN = torch.zeros(2, len(ffns), ffns[0].neurons, dtype=torch.int64, device=device)
        self.half = 0
        self._ffns = ffns
        self._handles: list[torch.utils.hooks.RemovableHandle] = []

    def __enter__(self) -> Self:
        self._handles = [ffn.gate.register_forward_hook(self._hook(ffn)) for ffn in self._ffns]
        return self

    def __exit__(self, *_: object) -> None:
        for handle in self._handles:
            handle.remove()

    def _hook(self, ffn: GatedFFN) -> Callable[[nn.Module, tuple[Tensor, ...], Tensor], None]:
        halves = [counts_LN[ffn.layer] for counts_LN in self.counts_HLN]

        def count(module: nn.Module, args: tuple[Tensor, ...], output: Tensor) -> None:
            # Summing in int32 takes half the time of the default int64.
            halves[self.half].add_((ffn.gate_of(output) > 0).flatten(0, -2).sum(0, dtype=torch.int32))

        return count


class LanguageCount:
    """The count of one language: its text, and how far it has come.

    Attributes:
        tokens: Tokens counted so far, by all processes.
        tokens_per_second: Of all processes, while counting.
        curve: Tokens and overlap of the two halves' sets, wherever that was looked at.
        is_ended: Whether it goes no further, though there may be more text.
    """

    def __init__(self, language: Language, blocks: Blocks, source: Identity, counter: GateCounter) -> None:
        self.language, self.blocks, self.source = language, blocks, source
        self.curve: list[tuple[int, float]] = []
        self.tokens, self.tokens_per_second, self.is_ended = 0, 0.0, False
        self._counter, self._tokens_H, self._batches, self._done, self._blocks = counter, [0, 0], 0, 0, 0

    @property
    def is_exhausted(self) -> bool:
        return self.tokens == self.blocks.tokens

    @torch.no_grad()
    def advance(self, model: PreTrainedModel, processes: Processes, until: int, batch_size: int) -> None:
        """Runs this process's blocks up to number ``until`` through the decoder; batches go to the halves in turn."""
        until = min(until, len(self.blocks))
        mine = range(processes.rank, until, processes.count)
        title = f"profiling {self.language}"
        with self._counter, TokenProgress(title, self.blocks.tokens, self.tokens, processes.is_first) as progress:
            for first in range(self._done, len(mine), batch_size):
                batch_BT = torch.stack([self.blocks[i] for i in mine[first : first + batch_size]])
                self._counter.half = self._batches % 2
                self._run(model, batch_BT, processes)
                self._tokens_H[self._counter.half] += batch_BT.numel()
                self._batches += 1
                progress.advance(batch_BT.numel() * processes.count)
            self.tokens_per_second = progress.rate or self.tokens_per_second
        if is_sharded(model):
            own = -(-(len(mine) - self._done) // batch_size)
            for _ in range(self._most_batches(until, batch_size, processes) - own):
                self._run(model, self.blocks[0].unsqueeze(0), processes)  # the others need this one's weights
        self._go_to(until, processes)

    @staticmethod
    def _run(model: PreTrainedModel, batch_BT: Tensor, processes: Processes) -> None:
        with processes.forward_context():
            model.base_model(input_ids=batch_BT.to(processes.device, non_blocking=True), use_cache=False)

    def _most_batches(self, until: int, batch_size: int, processes: Processes) -> int:
        """Returns the batches of the process that has the most of them, up to block ``until``."""
        todo = (
            len(range(rank, until, processes.count)) - len(range(rank, self._blocks, processes.count))
            for rank in range(processes.count)
        )
        return max(-(-blocks // batch_size) for blocks in todo)

    def _go_to(self, block: int, processes: Processes) -> None:
        self._blocks, self._done = block, len(range(processes.rank, block, processes.count))
        self.tokens = block * self.blocks.tokens // len(self.blocks)

    def halves(self, processes: Processes) -> tuple[Tensor, Tensor]:
        """Returns counts (2, L, N) and tokens (2,) of both halves, summed over processes, on the CPU. Collective."""
        counts_HLN = processes.sum(self._counter.counts_HLN)
        tokens_H = processes.sum(torch.tensor(self._tokens_H, device=counts_HLN.device))
        return counts_HLN.cpu(), tokens_H.cpu()

    def state(self, processes: Processes) -> dict[str, Tensor]:
        """Returns what all processes have counted, and how far they are, for `take`. Collective."""
        counts_HLN, tokens_H = self.halves(processes)
        batches_P = torch.zeros(processes.count, dtype=torch.int64, device=self._counter.counts_HLN.device)
        batches_P[processes.rank] = self._batches
        blocks = torch.tensor(self._blocks)
        return {"counts": counts_HLN, "tokens": tokens_H, "batches": processes.sum(batches_P).cpu(), "blocks": blocks}

    def take(self, state: dict[str, Tensor], processes: Processes) -> None:
        """Takes over a `state`; the first process has the counts of all."""
        if processes.is_first:
            self._counter.counts_HLN.copy_(state["counts"])
            self._tokens_H = state["tokens"].tolist()
        self._batches = int(state["batches"][processes.rank])
        self._go_to(int(state["blocks"]), processes)
