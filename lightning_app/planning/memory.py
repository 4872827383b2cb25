"""Memory that training will take, found by running the real step on the meta device: shapes without numbers."""

import os
import resource
import sys
import weakref
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.autograd.function import FunctionCtx, once_differentiable
from torch.optim import Optimizer
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_map_only
from transformers import AttentionInterface, PreTrainedModel

from lightning_app.methods.method import Method
from lightning_app.model.base import recompute_activations
from lightning_app.model.loss import OutputHead, token_loss_sum
from lightning_app.neurons.neuron_set import NeuronSet

_ATTENTION = "shapes_of_attention"

Attention = tuple[Tensor, Tensor | None]
"""What an attention function of transformers returns: the output and, where asked for, its weights."""


# Tokens of a batch that is followed operation by operation; what larger ones take beyond that grows in proportion.
_FOLLOWED_TOKENS = 2**15

# Of what lives at a time beside weights and states, what glibc holds more: it keeps and splits much of what is freed.
_HELD_BY_HEAP = 1.5


@dataclass(frozen=True)
class Batches:
    """Sequences, and tokens per sequence, of a batch of every phase; None where there is no profiling.

    Documents that are apart take a mask in training; that a GPU may do without one is not counted on.
    """

    training: tuple[int, int] = (2, 512)
    validation: tuple[int, int] = (8, 512)
    profiling: tuple[int, int] | None = (1, 4096)
    are_documents_apart: bool = False


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
    """

    weights: int
    neurons: int
    activations: int
    logits: int
    training: int
    validation: int
    profiling: int

    @property
    def most(self) -> int:
        """The highest of the peaks."""
        return max(self.training, self.validation, self.profiling)

    def on(self, device: torch.device) -> int:
        """Returns the bytes that a process takes for all of it on a kind of device."""
        kept = self.weights + self.neurons
        return self.most if device.type != "cpu" else round(kept + _HELD_BY_HEAP * max(0, self.most - kept))


def simulate(
    model: PreTrainedModel,
    method: Method,
    neurons: NeuronSet | None,
    batches: Batches,
    activation_checkpointing: bool = False,
) -> Memory:
    """Returns the memory of a run on ``model``, whose weights are on the meta device; changes the model.

    Args:
        model: The base in the dtype it would be loaded in.
        method: What is trained, and how.
        neurons: The neurons to train, where the method needs some.
        batches: Of every phase.
        activation_checkpointing: Whether the decoder layers recompute their activations.
    """
    _use_attention_shapes(model.requires_grad_(False).eval())
    weights = _bytes(_tensors(model))
    of_profiling = batches.profiling
    profiling_peak = weights + _forward_peak(model, *of_profiling, with_loss=False) if of_profiling else 0
    validation_peak = weights + _forward_peak(model, *batches.validation, with_loss=True)
    beside, optimizer, trained = _trained(model, method, neurons)
    if activation_checkpointing:
        recompute_activations(model)
    step = _Step(model.train(), optimizer)
    with LiveBytes((*_tensors(model), *trained)) as live:
        T = batches.training[1]
        step.run(live, 1, T)  # makes the states of the optimiser
        states = live.now

        def take(B: int) -> tuple[int, ...]:
            mask = torch.empty((B, 1, T, T) if batches.are_documents_apart else 0, dtype=model.dtype, device="meta")
            step.run(live, B, T)
            del mask
            return step.activations, step.logits, live.peak

        activations, logits, peak = _in_proportion(take, *batches.training)
    gradients = sum(parameter.nbytes for parameter in trained)
    return Memory(
        weights=weights, neurons=beside + states + gradients, activations=activations, logits=logits,
        training=weights + beside + peak,
        validation=validation_peak + beside + states, profiling=profiling_peak,
    )  # fmt: skip


def _in_proportion(take: Callable[[int], tuple[int, ...]], batch_size: int, tokens: int) -> tuple[int, ...]:
    """Returns what a batch takes: too large to be followed, what it takes beyond one that is not grows with its size.

    >>> _in_proportion(lambda batch_size: (5 + 3 * batch_size,), batch_size=10**9, tokens=2**15)
    (3000000005,)
    """
    small = max(1, _FOLLOWED_TOKENS // tokens)
    if batch_size <= 2 * small:
        return take(batch_size)
    pairs = zip(take(small), take(2 * small), strict=True)
    return tuple(twice + (twice - once) * (batch_size - 2 * small) // small for once, twice in pairs)


def _trained(model: PreTrainedModel, method: Method, neurons: NeuronSet | None) -> tuple[int, Optimizer, list[Tensor]]:
    """Returns the bytes that are held beside the base's weights, the optimiser, and what it trains."""
    before = _bytes(_tensors(model))
    optimizer = method.attach(model, neurons).optimizer(lr=1e-4, weight_decay=0.01, betas=(0.9, 0.999))
    trained = [parameter for group in optimizer.param_groups for parameter in group["params"]]
    return _bytes([*_tensors(model), *trained]) - before, optimizer, trained


class LiveBytes(TorchDispatchMode):
    """Counts the bytes of meta tensors that live, and their peak, while it is on.

    Args:
        known: Tensors that existed before and do not count.
    """

    def __init__(self, known: Iterable[Tensor] = ()) -> None:
        super().__init__()
        self.now = self.peak = 0
        self._known = {tensor.untyped_storage()._cdata for tensor in known}

    def __torch_dispatch__(
        self,
        function: Callable[..., object],
        types: object,
        args: tuple[object, ...] = (),
        kwargs: Mapping[str, object] | None = None,
    ) -> object:
        out = function(*args, **(kwargs or {}))
        tree_map_only(Tensor, self._count, out)
        return out

    def _count(self, tensor: Tensor) -> None:
        if tensor.layout != torch.strided:
            return  # its indices and values are tensors of their own
        storage = tensor.untyped_storage()
        key, size = storage._cdata, storage.nbytes()
        if tensor.device.type != "meta" or key in self._known:
            return
        self._known.add(key)
        self.now += size
        self.peak = max(self.peak, self.now)
        weakref.finalize(storage, self._forget, key, size)  # when the last tensor on it, saved ones too, is gone

    def _forget(self, key: int, size: int) -> None:
        self._known.discard(key)
        self.now -= size


class _Step:
    """A training step as the module and Lightning make it."""

    def __init__(self, model: PreTrainedModel, optimizer: Optimizer) -> None:
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


def _forward_peak(model: PreTrainedModel, batch_size: int, tokens: int, with_loss: bool) -> int:
    @torch.no_grad()
    def take(batch_size: int) -> tuple[int, ...]:
        with LiveBytes(_tensors(model)) as live:
            ids = torch.zeros(batch_size, tokens, dtype=torch.int64, device="meta")
            hidden = model.base_model(input_ids=ids, use_cache=False).last_hidden_state
            if with_loss:
                token_loss_sum(hidden[:, :-1], OutputHead.of(model), ids[:, 1:])
        return (live.peak,)

    (peak,) = _in_proportion(take, batch_size, tokens)
    return peak


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


def _fused_attention(
    module: nn.Module, query: Tensor, key: Tensor, value: Tensor, *_: object, **__: object
) -> Attention:
    return _FlashShapes.apply(query, key, value), None


def _eager_attention(
    module: nn.Module, query: Tensor, key: Tensor, value: Tensor, mask: object, *args: object, **options: object
) -> Attention:
    mask = query.new_empty(query.shape[0], 1, query.shape[2], key.shape[2])
    own = sys.modules[type(module).__module__].eager_attention_forward
    return own(module, query, key, value, mask, *args, **options)


class _FlashShapes(torch.autograd.Function):
    """Keeps and makes what fused attention keeps and makes."""

    @staticmethod
    def forward(ctx: FunctionCtx, query_BHTd: Tensor, key_BHTd: Tensor, value_BHTd: Tensor) -> Tensor:
        out_BTHd = torch.empty_like(query_BHTd.transpose(1, 2), memory_format=torch.contiguous_format)
        ctx.save_for_backward(query_BHTd, key_BHTd, value_BHTd, out_BTHd, query_BHTd.new_empty(query_BHTd.shape[:3]))
        return out_BTHd

    @staticmethod
    @once_differentiable
    def backward(ctx: FunctionCtx, grad: Tensor) -> tuple[Tensor, ...]:
        saved: tuple[Tensor, ...] = ctx.saved_tensors  # type: ignore[attr-defined]
        return tuple(map(torch.empty_like, saved[:3]))


def peak_gib(device: torch.device) -> float:
    """Returns the most memory this process has held: allocated on a GPU, resident on a CPU."""
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated(device) / 2**30
    unit = 1 if sys.platform == "darwin" else 1024
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit / 2**30


def room_gib(device: torch.device) -> tuple[float, str]:
    """Returns how much memory a device has, and its name."""
    if device.type == "cuda":
        properties = torch.cuda.get_device_properties(device)
        return properties.total_memory / 2**30, properties.name
    return os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE") / 2**30, "this machine"
