"""What an evaluation takes, from the arithmetic of its requests, without a model's weights."""

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property

import torch
from transformers import PreTrainedTokenizerBase

from lightning_app.errors import UserError
from lightning_app.evaluation.batches import fitting, free_bytes, sequence_bytes
from lightning_app.evaluation.harness import SHARE_OF_FREE_MEMORY
from lightning_app.evaluation.loading import TaskData
from lightning_app.evaluation.suites import Task, choose_tasks
from lightning_app.languages import Language
from lightning_app.model.base import Base
from lightning_app.model.limit import device_bandwidth, device_rate, forward_flop, known_bandwidth, known_peak
from lightning_app.planning.plan import EvaluationPlan, TaskPlan
from lightning_app.planning.task_load import Load, find_load

_GIB = 2**30
_LOGITS_PASSES = 3  # through memory: written, read, and written once more as log-softmax
_KNOWN_GB = {"NVIDIA H100": 80, "NVIDIA A100": 80, "NVIDIA RTX 4090": 24}


@dataclass(frozen=True)
class Place:
    """A device that an evaluation may run on.

    Attributes:
        name: For people.
        rate: Operations per second.
        bandwidth: Bytes per second of its memory.
        free: Bytes for batches, beside the weights; below zero where these do not fit.
    """

    name: str
    rate: float
    bandwidth: float
    free: float


@dataclass(frozen=True)
class EvaluationPlanner:
    """Plans an evaluation of a base; of what it is adapted to it takes as long. Loads no weights, downloads nothing.

    Attributes:
        base: Its weights on the meta device, in the dtype that they would be measured in.
        tokenizer: The base's.
        data: Where the items are.
        device: That it would run on.
    """

    base: Base
    tokenizer: PreTrainedTokenizerBase
    data: TaskData
    device: torch.device

    def plan(self, names: Sequence[str], languages: Sequence[Language]) -> EvaluationPlan:
        """Returns the plan for suites and tasks, named as ``evaluate --tasks`` names them.

        Raises:
            UserError: There is no such suite or task, or it needs a language.
        """
        try:
            tasks = choose_tasks(names, languages)
        except UserError as error:
            raise UserError(str(error).replace("--tasks", "--evaluate")) from error
        planned: list[TaskPlan] = []
        batches: list[tuple[int, tuple[int, int]]] = []
        for task in tasks:
            try:
                load = find_load(task, self.tokenizer, self.data, self.base.context)
            except UserError as error:
                planned.append(TaskPlan(task.name, why_not=str(error)))
                continue
            planned.append(self._task(task, load))
            for count, longest in self.batches(load, self.places[0]):
                tokens = self._with_answer(load, longest)
                taken = count * sequence_bytes(self.base.model, tokens, load.answer_tokens > 0)
                batches.append((taken, (count, tokens)))
        most, batch = max(batches, default=(0, (0, 0)))
        limit_s = {place.name: sum(each.limit_s.get(place.name, 0.0) for each in planned) for place in self.places}
        return EvaluationPlan(planned, limit_s, batch, most / _GIB, self._weights / _GIB)

    @cached_property
    def places(self) -> list[Place]:
        """This machine first, then known GPUs where it has none."""
        rate, source = device_rate(self.device, self.base.model.dtype)
        free = free_bytes(self.device) - self._weights
        places = [Place(f"this machine ({source})", rate, device_bandwidth(self.device), free)]
        for name, gigabytes in _KNOWN_GB.items() if self.device.type != "cuda" else ():
            peak, bandwidth = known_peak(name), known_bandwidth(name)
            if peak is not None and bandwidth is not None:
                places.append(Place(name, peak, bandwidth, gigabytes * 1e9 - self._weights))
        return places

    def _task(self, task: Task, load: Load) -> TaskPlan:
        seconds = {place.name: self._seconds(load, place) for place in self.places}
        return TaskPlan(
            task.name, load.items, load.sequences, load.tokens, load.answer_tokens, load.is_from_data, seconds
        )

    def _seconds(self, load: Load, place: Place) -> float:
        """Returns the seconds of a task at the limit of a device."""
        alone, per_token = self._flop
        seconds = 0.0
        for count, longest in self.batches(load, place):
            seconds += count * longest * (alone + per_token * longest) / place.rate
            if not load.answer_tokens:
                seconds += count * longest * _LOGITS_PASSES * self._logits_bytes / place.bandwidth
                continue
            # Every token of an answer reads the weights and what is cached of the sequences before it, or takes as long
            # as its arithmetic; a batch goes on until its last answer has ended.
            before = longest + load.answer_tokens / 2
            arithmetic = count * (alone + 2 * per_token * before) / place.rate
            reading = (self._weights + count * before * self._cached_bytes) / place.bandwidth
            seconds += load.answer_tokens * max(arithmetic, reading)
        return seconds

    def batches(self, load: Load, place: Place) -> list[tuple[int, int]]:
        """Returns sequences, and tokens without answers of the longest, of every batch; the others are padded to it."""
        found, total, ordered = list[tuple[int, int]](), load.sequences, sorted(load.lengths, reverse=True)
        free, done = SHARE_OF_FREE_MEMORY * max(0.0, place.free), 0
        while done < total:
            longest = ordered[done * len(ordered) // total]
            fits = fitting(self.base.model, self._with_answer(load, longest), load.answer_tokens > 0, free)
            found.append((min(fits, total - done), longest))
            done += fits
        return found

    def _with_answer(self, load: Load, length: int) -> int:
        tokens = length + load.answer_tokens
        return tokens if self.base.context is None else min(tokens, self.base.context)

    @property
    def _weights(self) -> int:
        return sum(weight.nbytes for weight in self.base.model.parameters())

    @cached_property
    def _flop(self) -> tuple[float, float]:
        """Operations of a forward per token: of the weights, and of attention per token of the sequence."""
        alone = forward_flop(self.base.model, 0)
        return alone, forward_flop(self.base.model, 1) - alone

    @property
    def _logits_bytes(self) -> int:
        """Logits of a token."""
        return self.base.model.config.get_text_config().vocab_size * self.base.model.dtype.itemsize

    @property
    def _cached_bytes(self) -> int:
        """Keys and values of a token."""
        config = self.base.model.config.get_text_config()
        heads = getattr(config, "num_key_value_heads", None) or config.num_attention_heads
        size = getattr(config, "head_dim", None) or config.hidden_size // config.num_attention_heads
        return 2 * config.num_hidden_layers * heads * size * self.base.model.dtype.itemsize
