"""FSDP2 under Lightning: every process holds a part of the base, and checkpoints are those of one process."""

from collections.abc import Callable, Iterable
from functools import cached_property, partial
from typing import Any

import torch
import torch.distributed
from lightning.fabric.utilities.optimizer import _optimizer_to_device
from lightning.fabric.utilities.types import _PATH
from lightning.pytorch import LightningModule
from lightning.pytorch.core.optimizer import LightningOptimizer
from lightning.pytorch.strategies import ModelParallelStrategy, Strategy
from lightning.pytorch.strategies.parallel import ParallelStrategy
from torch import Tensor, nn
from torch.distributed.device_mesh import DeviceMesh, init_device_mesh
from torch.distributed.tensor import DTensor
from torch.nn import Module
from torch.optim import Optimizer
from transformers import PreTrainedModel

from lightning_app.files import JSON
from lightning_app.model.base import Base, load_base
from lightning_app.model.sharding import load_sharded
from lightning_app.model.shards import assembled, like

SHARDED = "fsdp2"
"""What ``--trainer.strategy`` calls it."""


class ShardedStrategy(ModelParallelStrategy):
    """Shards the base over all processes, by data alone: tensor and pipeline parallelism are not built.

    What a method trains beside the base (neurons, adapters) is whole on every process, and its gradients are averaged
    over them before they are looked at, clipped and stepped with. What it trains of the base is sharded as the base.
    Checkpoints hold whole tensors, as those of one process do, so that each goes on where the other has stopped.
    """

    def __init__(self) -> None:
        super().__init__(save_distributed_checkpoint=False)

    def setup_environment(self) -> None:
        """Starts the process group, with one mesh over all of it."""
        self._data_parallel_size, self._tensor_parallel_size = self.num_nodes * self.num_processes, 1
        super().setup_environment()

    @cached_property
    def mesh(self) -> DeviceMesh:
        """All processes in a row. Collective the first time."""
        return mesh_over(self.root_device, self.world_size)

    @property
    def restore_checkpoint_after_setup(self) -> bool:
        """As of one process: a method's weights are taken over once it is at work."""
        return False

    @property
    def lightning_restore_optimizer(self) -> bool:
        """Through `load_optimizer_state_dict`."""
        return True

    def lightning_module_state_dict(self) -> JSON:
        """Returns the trained weights, whole. Collective."""
        return self._module.state_dict()

    def load_model_state_dict(self, checkpoint: JSON, strict: bool = True) -> None:
        """Takes over the trained weights of a checkpoint that every process has read."""
        self._module.load_state_dict(checkpoint["state_dict"], strict=strict)

    @property
    def _module(self) -> LightningModule:
        if self.lightning_module is None:
            raise RuntimeError("there is no module yet")
        return self.lightning_module

    def optimizer_state(self, optimizer: Optimizer) -> JSON:
        """Returns an optimiser's states, whole, on the first process, which saves them; none elsewhere. Collective."""
        optimizer = optimizer._optimizer if isinstance(optimizer, LightningOptimizer) else optimizer

        def kept(tensor: Tensor) -> Tensor | None:
            every = assembled(tensor)
            return every if self.is_global_zero else None

        states = _mapped(optimizer.state_dict(), kept)
        return states if self.is_global_zero else {}

    def load_optimizer_state_dict(self, checkpoint: JSON) -> None:
        """Takes over whole states; of those of sharded weights the parts that are here."""
        for optimizer, saved in zip(self.optimizers, checkpoint["optimizer_states"], strict=True):
            every = [weight for group in optimizer.param_groups for weight in group["params"]]
            numbers = [number for group in saved["param_groups"] for number in group["params"]]
            weights = dict(zip(numbers, every, strict=True))
            state = {
                number: _mapped(states, partial(_as_part, weights[number])) for number, states in saved["state"].items()
            }
            optimizer.load_state_dict({**saved, "state": state})
            _optimizer_to_device(optimizer, self.root_device)

    def save_checkpoint(self, checkpoint: JSON, filepath: _PATH, storage_options: object = None) -> None:
        """Saves what all have put together, by the first process."""
        ParallelStrategy.save_checkpoint(self, checkpoint, filepath, storage_options)

    def load_checkpoint(self, checkpoint_path: _PATH, weights_only: bool | None = None) -> JSON:
        """Reads a checkpoint, on every process."""
        return ParallelStrategy.load_checkpoint(self, checkpoint_path, weights_only)

    def optimizer_step(
        self,
        optimizer: Optimizer,
        closure: Callable[[], Any],
        model: LightningModule | Module | None = None,
        **kwargs: Any,
    ) -> Any:
        """Makes a step with gradients that are the mean over all processes."""

        def averaged() -> object:
            result = closure()
            average_gradients([weight for group in optimizer.param_groups for weight in group["params"]])
            return result

        return super().optimizer_step(optimizer, averaged, model, **kwargs)


def mesh_over(device: torch.device, processes: int) -> DeviceMesh:
    """Returns all processes in a row. Collective.

    PEFT knows by its dimension's name that a layer computes with whole matrices, and not with the parts of them.
    """
    return init_device_mesh(device.type, (processes,), mesh_dim_names=("fsdp",))


def load_under(
    strategy: Strategy,
    name: str,
    revision: str | None,
    dtype: torch.dtype,
    quantization: str | None,
    widened: Callable[[PreTrainedModel], Iterable[nn.Linear]] = lambda model: (),
) -> Base:
    """Loads a base as a strategy keeps one: this process's part of it where it is sharded. Collective there.

    A sharded base is not quantised: see `check_base_can_be_sharded`.
    """
    if isinstance(strategy, ShardedStrategy):
        device, agree = strategy.root_device, strategy.broadcast
        return load_sharded(name, revision, dtype, strategy.mesh, device, agree, widened)
    return load_base(name, revision, dtype, quantization, strategy.root_device)


@torch.no_grad()
def average_gradients(weights: list[Tensor]) -> None:
    """Replaces the gradients of weights that every process has whole by their means. Collective.

    Where a process has none it counts as zero; where none has one there is none. FSDP2 has averaged those of sharded
    weights itself.
    """
    own = [weight for weight in weights if not _is_part(weight)]
    if not own:
        return
    has_one = torch.tensor([weight.grad is not None for weight in own], dtype=torch.int32, device=own[0].device)
    torch.distributed.all_reduce(has_one, torch.distributed.ReduceOp.MAX)
    grads = []
    for weight, is_reached in zip(own, has_one.tolist(), strict=True):
        if is_reached:
            weight.grad = torch.zeros_like(weight) if weight.grad is None else weight.grad
            grads.append(weight.grad)
    if grads:
        every = torch.cat([grad.flatten() for grad in grads])  # in one message
        torch.distributed.all_reduce(every)
        every /= torch.distributed.get_world_size()
        for grad, mean in zip(grads, every.split([grad.numel() for grad in grads]), strict=True):
            grad.copy_(mean.view_as(grad))


def _is_part(tensor: Tensor) -> bool:
    return isinstance(tensor, DTensor)


def _as_part(weight: Tensor, state: Tensor) -> Tensor:
    return like(weight, state) if state.shape == weight.shape else state  # but for the number of steps


def _mapped(content: Any, change: Callable[[Tensor], Tensor | None]) -> Any:
    """Returns nested plain data with every tensor changed, in their order."""
    if isinstance(content, Tensor):
        return change(content)
    if isinstance(content, dict):
        return {key: _mapped(value, change) for key, value in content.items()}
    if isinstance(content, list):
        return [_mapped(value, change) for value in content]
    return content
