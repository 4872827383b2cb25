"""Whether a run fits into a device's memory, and the keys that make it fit, the cheapest first."""

import re
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace

import torch
from torch import nn
from transformers import PreTrainedModel

from lightning_app.errors import UserError
from lightning_app.methods.method import Method
from lightning_app.model.layers import decoder_layers
from lightning_app.model.neuron_rows import widen
from lightning_app.model.quantized import bytes_of_quantized
from lightning_app.neurons.neuron_set import NeuronSet
from lightning_app.planning.memory import Batches, Memory, simulate

_GIB = 2**30
_SHORTEST_BLOCK = 512


@dataclass(frozen=True)
class Setting:
    """What of a run decides about its memory.

    Attributes:
        method: What is trained, and how.
        neurons: The neurons to train, where the method needs some.
        batches: Of every phase.
        recomputes: Whether activations are made again in the backward.
        quantization: What the frozen matrices are kept in; None for as they are.
        shards: Processes over which the base is spread (FSDP2); 1 where each holds all of it.
    """

    method: Method
    neurons: NeuronSet | None
    batches: Batches
    recomputes: bool
    quantization: str | None
    shards: int = 1

    def memory(self, model: PreTrainedModel) -> Memory:
        """Returns the memory of a run on ``model``, whose weights are on the meta device; changes the model."""
        # By their shapes before a method puts anything beside them.
        spared = gathered = 0
        if self.quantization is not None:
            spared, gathered = _spared_by(model, self.quantization)
        elif self.shards > 1:
            for linear in self.method.widened(model):
                widen(linear)
            spared, gathered = _spared_by_shards(model, self.shards)
        found = simulate(model, self.method, self.neurons, self.batches, self.recomputes)
        # What is trained of the base is spread with it, gradients and states too.
        states = (
            0 if self.shards == 1 or self.method.trains_beside else found.neurons * (self.shards - 1) // self.shards
        )
        peaks = {
            name: getattr(found, name) - spared + gathered - states * (name != "profiling")
            for name in ("training", "validation", "profiling") if getattr(found, name)
        }  # fmt: skip
        return replace(found, weights=found.weights - spared, neurons=found.neurons - states, **peaks)


def _spared_by_shards(model: PreTrainedModel, shards: int) -> tuple[int, int]:
    """Returns the bytes of other processes' rows, and those that are gathered at a time.

    These are embeddings and output head, and two layers: the one that computes and the one that comes next.
    """
    layers = [sum(weight.nbytes for weight in layer.parameters()) for layer in decoder_layers(model)]
    every = sum(weight.nbytes for weight in model.parameters())
    return every * (shards - 1) // shards, every - sum(layers) + 2 * max(layers)


def _spared_by(model: PreTrainedModel, quantization: str) -> tuple[int, int]:
    """Returns the bytes that quantised matrices spare, and those of the largest one, made dense for its product."""
    linears = {
        linear.weight: linear for layer in decoder_layers(model) for linear in layer.modules()
        if isinstance(linear, nn.Linear)
    }  # fmt: skip
    spared = [weight.nbytes - bytes_of_quantized(linear, quantization) for weight, linear in linears.items()]
    return sum(spared), max(weight.nbytes for weight in linears)


def advise(setting: Setting, make_model: Callable[[], PreTrainedModel], room: float, device: torch.device) -> str:
    """Returns the keys that make a run fit into ``room`` bytes, those that cost least first, or that none does.

    Args:
        setting: Of the run as it is.
        make_model: Returns the base on the meta device, each time another one.
        room: Bytes.
        device: Of what kind the memory is.
    """
    least = setting.memory(make_model())
    for keys, tried in _cheaper(setting):
        found = tried.memory(make_model())
        keys, shorter = _shorter_passes(keys, tried, found, room)
        if shorter != tried:
            found = shorter.memory(make_model())
        if keys and found.on(device) <= room:
            return f"{' '.join(keys)} makes it fit ({found.on(device) / _GIB:.2f} GiB)"
        least = min(least, found, key=lambda each: each.on(device))
    return (
        f"no key makes it fit: at the least it takes {least.on(device) / _GIB:.2f} GiB, the weights alone "
        f"{least.weights / _GIB:.2f} GiB; take a smaller --model.base"
    )


def _shorter_passes(keys: list[str], setting: Setting, memory: Memory, room: float) -> tuple[list[str], Setting]:
    """Returns the keys, and the setting, in which validation and profiling take less, where they do not fit."""
    batches = setting.batches
    if memory.validation > room and batches.validation[0] > 1:
        keys = [*keys, "--data.validation_batch_size 1"]
        batches = replace(batches, validation=(1, batches.validation[1]))
    if memory.profiling > room and batches.profiling is not None:
        keys = [*keys, "--profiling.block_size 512 --profiling.batch_size 1"]
        batches = replace(batches, profiling=(1, min(_SHORTEST_BLOCK, batches.profiling[1])))
    return keys, replace(setting, batches=batches)


def _cheaper(setting: Setting) -> Iterator[tuple[list[str], Setting]]:
    """Yields keys with the setting that they make, from what costs nothing to what costs most.

    A smaller batch with as many of them to a step trains the same; recomputing costs a third of the time; 4 bits cost
    time and a little of the loss; more devices cost money; a shorter block is another text.
    """
    sequences, block = setting.batches.training
    one = replace(setting, batches=replace(setting.batches, training=(1, block)))
    batch = [f"--data.batch_size 1 --trainer.accumulate_grad_batches {sequences}"] if sequences > 1 else []
    recomputing = [] if setting.recomputes else ["--model.activation_checkpointing true"]
    quantized = ["--model.quantization nf4"] if setting.quantization is None and setting.method.trains_beside else []
    yield [], setting
    yield batch, one
    if recomputing:
        yield recomputing, replace(setting, recomputes=True)
        yield [*batch, *recomputing], replace(one, recomputes=True)
    if quantized:
        yield quantized, replace(setting, quantization="nf4")
        yield [*batch, *quantized], replace(one, quantization="nf4")
        yield [*batch, *recomputing, *quantized], replace(one, quantization="nf4", recomputes=True)
    for shards in (2, 4, 8) if setting.shards == 1 and setting.quantization is None else ():
        devices = [f"--trainer.strategy fsdp2 --trainer.devices {shards}"]
        for more, tried in (([], setting), ([*batch, *recomputing], replace(one, recomputes=True))):
            yield [*devices, *more], replace(tried, shards=shards)
    if block > _SHORTEST_BLOCK // 2:
        short = replace(one.batches, training=(1, _SHORTEST_BLOCK // 2))
        last = replace(one, batches=short, recomputes=True)
        last = replace(last, quantization="nf4") if quantized else last
        yield [*batch, *recomputing, *quantized, f"--data.block_size {_SHORTEST_BLOCK // 2}"], last


def read_card(text: str) -> float:
    """Returns the gigabytes (1e9 bytes) of a card as people call it.

    >>> read_card("12gb"), read_card("24"), read_card("7.5 GB")
    (12.0, 24.0, 7.5)

    Raises:
        UserError: It is no such size.
    """
    found = re.fullmatch(r"\s*(\d+(?:\.\d+)?)\s*(?:g|gb|gib)?\s*", text.lower())
    if found is None or not float(found[1]):
        raise UserError(f"--for is {text[:40]!a}; expected the memory of a card, 12gb, say")
    return float(found[1])
