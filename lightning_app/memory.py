"""Memory that training will take, found by running the real step on the meta device: shapes without numbers."""

import ctypes
import resource
import sys
import weakref
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any, ClassVar

import torch
from torch import Tensor, nn
from torch.autograd.function import once_differentiable
from torch.optim import AdamW
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_map_only
from transformers import AttentionInterface, PreTrainedModel

from lightning_app.engine import build_engine
from lightning_app.ffn import find_gated_ffns
from lightning_app.loss import OutputHead, token_loss_sum

_ATTENTION = "shapes_of_attention"


@dataclass(frozen=True)
class Memory:
    """Bytes by kind, and the most at a time.

    Attributes:
        weights: The base's weights and buffers.
        neurons: Trained weights beside the base's own, their gradients and AdamW's states.
        activations: What a forward keeps for its backward.
        logits: What the loss needs beside that, for a chunk of logits.
        training: Peak of a training step, everything above in it.
        validation: Peak of a forward without gradients on a validation batch, loss included.
        profiling: Peak of a profiling forward.
        heap: On a CPU, what the C library will have taken for all tensors but weights and neuron weights: it keeps
            much of what is freed. None where that was not asked for or cannot be known.
    """

    weights: int
    neurons: int
    activations: int
    logits: int
    training: int
    validation: int
    profiling: int
    heap: int | None = None

    @property
    def most_in_tensors(self) -> int:
        """The highest of the peaks."""
        return max(self.training, self.validation, self.profiling)

    @property
    def most(self) -> int:
        """The highest of the peaks, or what the process will hold where that is known and more."""
        held = self.weights + self.neurons + self.heap if self.heap is not None else 0
        return max(self.most_in_tensors, held)


def simulate(
    model: PreTrainedModel,
    neurons: dict[int, Tensor] | None,
    engine: Any = "packed",
    projections: Iterable[str] = ("gate", "up", "down"),
    activation_checkpointing: bool = False,
    training: tuple[int, int] = (2, 512),
    validation: tuple[int, int] = (8, 512),
    profiling: tuple[int, int] | None = (1, 4096),
    with_heap: bool = False,
) -> Memory:
    """Returns the memory of a run on ``model``, whose weights are on the meta device; changes the model.

    Args:
        model: The base in the dtype it would be loaded in.
        neurons: Indices per layer, or None to train every weight.
        engine: Name of the engine.
        projections: Which of gate, up and down are trained.
        activation_checkpointing: Whether the decoder layers recompute their activations.
        training: Sequences and tokens per sequence of a training batch.
        validation: Of a validation batch.
        profiling: Of a profiling batch; None where there is no profiling.
        with_heap: Whether to replay the allocations with this machine's C library, without touching their memory.
    """
    heap = Heap() if with_heap and Heap.is_known() else None
    _use_attention_shapes(model.requires_grad_(False).eval())
    weights = _bytes(_tensors(model))
    profiling_peak = weights + _forward_peak(model, heap, *profiling, with_loss=False) if profiling else 0
    validation_peak = weights + _forward_peak(model, heap, *validation, with_loss=True)
    beside, optimizer, trained = _trained(model, neurons, engine, projections)
    if activation_checkpointing:
        model.gradient_checkpointing_enable({"use_reentrant": False})
    step = _Step(model.train(), optimizer)
    with LiveBytes((*_tensors(model), *trained), heap) as live:
        step.run(live, *training)  # makes the states of the optimiser
        states = live.now
        step.run(live, *training)
    gradients = sum(parameter.nbytes for parameter in trained)
    return Memory(
        weights=weights,
        neurons=beside + states + gradients,
        activations=step.activations,
        logits=step.logits,
        training=weights + beside + live.peak,
        validation=validation_peak + beside + states,
        profiling=profiling_peak,
        heap=heap.peak if heap is not None else None,
    )


def _trained(
    model: PreTrainedModel, neurons: dict[int, Tensor] | None, engine: Any, projections: Iterable[str]
) -> tuple[int, torch.optim.Optimizer, list[Tensor]]:
    """Returns the bytes that are held beside the base's weights, the optimiser, and what it trains."""
    before = _bytes(_tensors(model))
    optimizer: torch.optim.Optimizer
    if neurons is None:
        optimizer = AdamW(model.requires_grad_(True).parameters(), lr=1e-4)
    else:
        optimizer = build_engine(engine, find_gated_ffns(model), neurons, projections).optimizer(
            lr=1e-4, weight_decay=0.01
        )
    trained = [parameter for group in optimizer.param_groups for parameter in group["params"]]
    return _bytes([*_tensors(model), *trained]) - before, optimizer, trained


class LiveBytes(TorchDispatchMode):
    """Counts the bytes of meta tensors that live, and their peak, while it is on.

    Args:
        known: Tensors that existed before and do not count.
        heap: Replays the allocations.
    """

    def __init__(self, known: Iterable[Tensor] = (), heap: "Heap | None" = None) -> None:
        super().__init__()
        self.now = self.peak = 0
        self._heap = heap
        self._known = {tensor.untyped_storage()._cdata for tensor in known}

    def __torch_dispatch__(self, function: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        out = function(*args, **(kwargs or {}))
        tree_map_only(Tensor, self._count, out)
        return out

    def _count(self, tensor: Tensor) -> None:
        storage = tensor.untyped_storage()
        key, size = storage._cdata, storage.nbytes()
        if tensor.device.type != "meta" or key in self._known:
            return
        self._known.add(key)
        self.now += size
        self.peak = max(self.peak, self.now)
        if self._heap is not None:
            self._heap.allocate(key, size)
        weakref.finalize(storage, self._forget, key, size)  # when the last tensor on it, saved ones too, is gone

    def _forget(self, key: int, size: int) -> None:
        self._known.discard(key)
        self.now -= size
        if self._heap is not None:
            self._heap.free(key)


class Heap:
    """Replays allocations with the C library of this machine, to see how much memory it asks the system for.

    glibc keeps freed blocks and splits them: a step that needs 1.7 GiB at a time made it hold 2.6. The memory is never
    touched, so the replay takes none.
    """

    def __init__(self) -> None:
        self._blocks: dict[int, Tensor] = {}
        self._start = self._size()
        self.peak = 0

    @staticmethod
    def is_known() -> bool:
        """Whether the C library tells what it holds; glibc does."""
        return hasattr(ctypes.CDLL(None), "mallinfo2")

    def allocate(self, key: int, size: int) -> None:
        """Takes a block as torch would."""
        self._blocks[key] = torch.empty(size, dtype=torch.uint8)
        self.peak = max(self.peak, self._size() - self._start)

    def free(self, key: int) -> None:
        """Gives it back."""
        self._blocks.pop(key, None)

    @staticmethod
    def _size() -> int:
        info = ctypes.CDLL(None).mallinfo2
        info.restype = _MallInfo
        found = info()
        return found.arena + found.hblkhd


class _MallInfo(ctypes.Structure):
    _fields_: ClassVar = [
        (name, ctypes.c_size_t)
        for name in (
            "arena",
            "ordblks",
            "smblks",
            "hblks",
            "hblkhd",
            "usmblks",
            "fsmblks",
            "uordblks",
            "fordblks",
            "keep",
        )
    ]


class _Step:
    """A training step as the module and Lightning make it."""

    def __init__(self, model: PreTrainedModel, optimizer: torch.optim.Optimizer) -> None:
        self.model, self.optimizer, self.head = model, optimizer, OutputHead.of(model)
        self.activations = self.logits = 0

    def run(self, live: LiveBytes, batch_size: int, tokens: int) -> None:
        before = live.now
        ids = torch.zeros(batch_size, tokens, dtype=torch.int64, device="meta")
        hidden = self.model.base_model(input_ids=ids, use_cache=False).last_hidden_state
        self.activations, live.peak, forward_peak = live.now - before, live.now, live.peak
        loss = token_loss_sum(hidden[:, :-1], self.head, ids[:, 1:])
        self.logits = live.peak - self.activations - before
        live.peak = max(live.peak, forward_peak)
        del hidden
        (loss / 2).backward()
        self.optimizer.step()
        self.optimizer.zero_grad()


@torch.no_grad()
def _forward_peak(model: PreTrainedModel, heap: Heap | None, batch_size: int, tokens: int, with_loss: bool) -> int:
    with LiveBytes(_tensors(model), heap) as live:
        ids = torch.zeros(batch_size, tokens, dtype=torch.int64, device="meta")
        hidden = model.base_model(input_ids=ids, use_cache=False).last_hidden_state
        if with_loss:
            token_loss_sum(hidden[:, :-1], OutputHead.of(model), ids[:, 1:])
    return live.peak


def _tensors(module: nn.Module) -> list[Tensor]:
    return [*module.parameters(), *module.buffers()]


def _bytes(tensors: Iterable[Tensor]) -> int:
    storages = {tensor.untyped_storage()._cdata: tensor.untyped_storage().nbytes() for tensor in tensors}
    return sum(storages.values())


def _use_attention_shapes(model: PreTrainedModel) -> None:
    """Replaces fused attention by its shapes: on the meta device the real one would not choose its fused kernels."""
    is_eager = model.config.get_text_config()._attn_implementation == "eager"
    # Registered without a mask function: the ordinary ones look at values.
    AttentionInterface.register(_ATTENTION, _eager_attention if is_eager else _fused_attention)
    model.set_attn_implementation(_ATTENTION)


def _fused_attention(module: nn.Module, query: Tensor, key: Tensor, value: Tensor, *_: Any, **__: Any) -> Any:
    return _FlashShapes.apply(query, key, value), None


def _eager_attention(
    module: nn.Module, query: Tensor, key: Tensor, value: Tensor, mask: Tensor | None, *args: Any, **options: Any
) -> Any:
    mask = query.new_empty(query.shape[0], 1, query.shape[2], key.shape[2])
    own = sys.modules[type(module).__module__].eager_attention_forward
    return own(module, query, key, value, mask, *args, **options)


class _FlashShapes(torch.autograd.Function):
    """Keeps and makes what fused attention keeps and makes."""

    @staticmethod
    def forward(ctx: Any, query_BHTd: Tensor, key_BHTd: Tensor, value_BHTd: Tensor) -> Tensor:
        out_BTHd = torch.empty_like(query_BHTd.transpose(1, 2), memory_format=torch.contiguous_format)
        ctx.save_for_backward(query_BHTd, key_BHTd, value_BHTd, out_BTHd, query_BHTd.new_empty(query_BHTd.shape[:3]))
        return out_BTHd

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, ...]:
        return tuple(torch.empty_like(saved) for saved in ctx.saved_tensors[:3])


def peak_gib(device: torch.device) -> float:
    """Returns the most memory this process has held: allocated on a GPU, resident on a CPU."""
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated(device) / 2**30
    unit = 1 if sys.platform == "darwin" else 1024
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit / 2**30
