"""Whether neurons do what they are selected for: a language's neurons are switched off, and every language's loss read.

The selectivity matrix of arXiv 2402.16438. Shape suffixes: R languages switched off, K languages measured.
"""

import contextlib
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from statistics import fmean

import torch
from torch import Tensor, nn
from transformers import PreTrainedModel

from datamodules.chunking import pad_batch
from datamodules.flores import FloresBlock
from lightning_app.languages import Language
from lightning_app.model.ffn import find_gated_ffns
from lightning_app.model.loss import IGNORED, OutputHead, token_loss_sum
from lightning_app.neurons.neuron_set import NeuronSet
from lightning_app.neurons.selection import random_per_layer
from lightning_app.progress import TokenProgress

_BLOCKS_AT_ONCE = 8


@contextlib.contextmanager
def switched_off(model: PreTrainedModel, neurons: NeuronSet) -> Iterator[None]:
    """Makes neurons put out nothing while the block lasts; the weights stay as they are."""
    ffns = find_gated_ffns(model)
    handles = []
    for layer, index in neurons.by_layer.items():
        off = index.to(ffns[layer].down.weight.device)

        def silence(module: nn.Module, args: tuple[Tensor, ...], off: Tensor = off) -> tuple[Tensor, ...]:
            return args[0].index_fill(-1, off, 0.0), *args[1:]

        handles.append(ffns[layer].down.register_forward_pre_hook(silence))
    try:
        yield
    finally:
        for handle in handles:
            handle.remove()


@torch.no_grad()
def loss_of(model: PreTrainedModel, blocks: Sequence[FloresBlock]) -> float:
    """Returns the mean loss over the tokens of a text, in nats."""
    head, nats, tokens = OutputHead.of(model), 0.0, 0
    for first in range(0, len(blocks), _BLOCKS_AT_ONCE):
        batch = pad_batch([block.input_ids for block in blocks[first : first + _BLOCKS_AT_ONCE]], padding=0)
        ids_BT, labels_BT = (batch[key].to(model.device) for key in ("input_ids", "labels"))
        hidden = model.base_model(input_ids=ids_BT[:, :-1], use_cache=False).last_hidden_state
        nats += float(token_loss_sum(hidden, head, labels_BT[:, 1:]))
        tokens += int((labels_BT[:, 1:] != IGNORED).sum())
    return nats / tokens


@dataclass(frozen=True)
class Selectivity:
    """What switching off a language's neurons costs each language.

    Attributes:
        switched: Languages whose neurons are switched off, R of them.
        neurons: How many those are.
        measured: Languages whose loss is read, K of them.
        before: Loss of each with all neurons, in nats per token.
        rises: Rise of each loss without the neurons of each, (R, K).
        random_rises: The same without as many random neurons in each layer, mean over the draws.
        draws: Of random neurons.
    """

    switched: tuple[Language, ...]
    neurons: tuple[int, ...]
    measured: tuple[Language, ...]
    before: tuple[float, ...]
    rises: tuple[tuple[float, ...], ...]
    random_rises: tuple[tuple[float, ...], ...]
    draws: int

    def own(self, row: int) -> float | None:
        """Rise of a language's loss without its own neurons; None where its loss is not read."""
        return self._at(self.rises, row)

    def own_random(self, row: int) -> float | None:
        """The same without random neurons."""
        return self._at(self.random_rises, row)

    def others(self, row: int) -> float | None:
        """Mean rise of all other languages without the neurons of one; None where there are none."""
        every = [rise for each, rise in zip(self.measured, self.rises[row], strict=True) if each != self.switched[row]]
        return fmean(every) if every else None

    def _at(self, rises: Sequence[Sequence[float]], row: int) -> float | None:
        language = self.switched[row]
        return rises[row][self.measured.index(language)] if language in self.measured else None

    @property
    def most_selective(self) -> int:
        """Languages whose own loss rises more than any other's, and more than without random neurons."""
        count = 0
        for row in range(len(self.switched)):
            own, control = self.own(row), self.own_random(row)
            count += own is not None and control is not None and own == max(self.rises[row]) and own > control
        return count


def measure_selectivity(
    model: PreTrainedModel,
    sets: Mapping[Language, NeuronSet],
    texts: Mapping[Language, Sequence[FloresBlock]],
    draws: int = 3,
    seed: int = 0,
) -> Selectivity:
    """Switches off the neurons of each language in turn, and as many random ones in each layer.

    Args:
        model: A base in evaluation mode.
        sets: Neurons of each language.
        texts: What each language's loss is read on.
        draws: Random sets for each language, whose rises are averaged.
        seed: Of the first draw.
    """
    ffns = find_gated_ffns(model)
    layers, width = len(ffns), ffns[0].neurons
    tokens = sum(len(block.input_ids) for blocks in texts.values() for block in blocks)
    rises, controls = [], []
    with TokenProgress("switching neurons off", tokens * (1 + len(sets) * (1 + draws)), is_brief=True) as progress:

        def losses_without(neurons: NeuronSet) -> list[float]:
            with switched_off(model, neurons):
                losses = [loss_of(model, blocks) for blocks in texts.values()]
            progress.advance(tokens)
            return losses

        before = losses_without(NeuronSet({}))
        for neurons in sets.values():
            rises.append(_differences(before, losses_without(neurons)))
            counts = neurons.per_layer(layers)
            drawn = [losses_without(random_per_layer(counts, width, seed + n)) for n in range(draws)]
            controls.append(_differences(before, list(map(fmean, zip(*drawn, strict=True))) or before))
    sizes = tuple(map(len, sets.values()))
    return Selectivity(tuple(sets), sizes, tuple(texts), tuple(before), tuple(rises), tuple(controls), draws)


def _differences(before: Sequence[float], after: Sequence[float]) -> tuple[float, ...]:
    return tuple(new - old for old, new in zip(before, after, strict=True))
