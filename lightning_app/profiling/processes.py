"""The processes that profile together, whoever launched them: a Trainer before fit, or Fabric."""

from collections.abc import Callable
from contextlib import AbstractContextManager
from dataclasses import dataclass
from typing import TypeVar

import torch
import torch.distributed
from torch import Tensor

Value = TypeVar("Value")


@dataclass(frozen=True)
class Processes:
    """This process's place among them, its device and its precision.

    Attributes:
        rank: Of this process.
        count: How many there are.
        device: This process's own.
        forward_context: Makes the context that a forward pass runs in, autocast for example.
    """

    rank: int
    count: int
    device: torch.device
    forward_context: Callable[[], AbstractContextManager[object]]

    @property
    def is_first(self) -> bool:
        return self.rank == 0

    def say(self, text: str) -> None:
        """Prints on the first process."""
        if self.is_first:
            print(text, flush=True)

    def sum(self, tensor: Tensor) -> Tensor:
        """Returns the sum of a tensor over all processes, as a new tensor. Collective."""
        total = tensor.clone()
        if self.count > 1:
            torch.distributed.all_reduce(total)
        return total

    def agree(self, value: Value) -> Value:
        """Returns the first process's value on all. Collective."""
        values = [value]
        if self.count > 1:
            torch.distributed.broadcast_object_list(values, src=0, device=self.device)
        return values[0]

    def wait(self) -> None:
        """Returns once all processes have come here. Collective."""
        if self.count > 1:
            torch.distributed.barrier()
