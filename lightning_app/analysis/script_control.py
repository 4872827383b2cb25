"""How much of a language's set follows its script: the same text is counted as it is and romanised.

Sets of neurons that follow the script more than the language are what arXiv 2604.05090 reports.
"""

import dataclasses
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor
from transformers import PreTrainedModel

from lightning_app.errors import UserError
from lightning_app.languages import Language
from lightning_app.model.ffn import find_gated_ffns
from lightning_app.neurons.atlas import Atlas
from lightning_app.neurons.neuron_set import NeuronSet
from lightning_app.neurons.selection import select_subnetworks
from lightning_app.neurons.sizes import Sizes
from lightning_app.profiling.counting import GateCounter

_BLOCKS_AT_ONCE = 8


def load_romaniser() -> Callable[[str], str]:
    """Returns a function that writes any script in Latin letters without accents, that of the package anyascii.

    Raises:
        UserError: The package is not installed.
    """
    try:
        from anyascii import anyascii
    except ImportError as error:
        raise UserError("the script control needs the package anyascii: pip install anyascii") from error
    return anyascii


@dataclass(frozen=True)
class ScriptControl:
    """A language's set from its text as it is, and from the same text romanised; the pool's others are the same.

    Attributes:
        language: Whose.
        tokens: Of the text as it is.
        tokens_romanised: Of the romanised text.
        neurons: Of the set from the text as it is.
        neurons_romanised: Of the set from the romanised text.
        shared: Neurons that both have.
        overlap: Jaccard of the two.
        overlap_of_halves: Jaccard of the sets that two halves of the text as it is give: what another text of the same
            kind would share.
        follows_script: Share of the set that the romanised text does not give.
        per_layer: Neurons in each layer of the set, (L,).
        per_layer_romanised: Of the romanised set.
        per_layer_shared: Of both.
    """

    language: Language
    tokens: int
    tokens_romanised: int
    neurons: int
    neurons_romanised: int
    shared: int
    overlap: float
    overlap_of_halves: float
    follows_script: float
    per_layer: tuple[int, ...]
    per_layer_romanised: tuple[int, ...]
    per_layer_shared: tuple[int, ...]


@torch.no_grad()
def count_halves(model: PreTrainedModel, ids: Sequence[int], block_size: int) -> tuple[Tensor, Tensor]:
    """Returns open gates, int64 (2, L, N), and tokens, (2,), of two halves of a text, blocks in turn.

    Args:
        model: In evaluation mode.
        ids: The text's tokens without special ones; what does not fill the last block is left out.
        block_size: Tokens per block.

    Raises:
        UserError: There are fewer than two blocks.
    """
    blocks = torch.tensor(ids[: len(ids) // block_size * block_size]).view(-1, block_size)
    if len(blocks) < 2:
        raise UserError(
            f"the text has {len(ids)} tokens, less than two blocks of {block_size}; give more of it by --tokens"
        )
    counter, tokens_H = GateCounter(find_gated_ffns(model), model.device), torch.zeros(2, dtype=torch.int64)
    with counter:
        for half in range(2):
            counter.half = half
            mine = blocks[half::2]
            tokens_H[half] = mine.numel()
            for first in range(0, len(mine), _BLOCKS_AT_ONCE):
                model.base_model(input_ids=mine[first : first + _BLOCKS_AT_ONCE].to(model.device), use_cache=False)
    return counter.counts_HLN.cpu(), tokens_H


def control_script(
    model: PreTrainedModel, ids: Sequence[int], ids_romanised: Sequence[int], language: Language, atlas: Atlas,
    pool: list[Language], sizes: Sizes,
) -> ScriptControl:  # fmt: skip
    """Selects a language's neurons twice, by its text as it is and by the same text romanised.

    Args:
        model: The atlas's, in evaluation mode.
        ids: Tokens of the text as it is.
        ids_romanised: Tokens of the same text romanised.
        language: Whose text it is.
        atlas: Counts of the other languages.
        pool: The languages to select among, this one with them.
        sizes: How many neurons each gets.

    Raises:
        UserError: There is too little text, or the language gets no neurons.
    """

    def select(counts_LN: Tensor, tokens: int) -> NeuronSet:
        counts, of_tokens = dict(atlas.counts), dict(atlas.tokens)
        counts[language.glotcc], of_tokens[language.glotcc] = counts_LN, tokens
        return select_subnetworks(dataclasses.replace(atlas, counts=counts, tokens=of_tokens), pool, sizes).of(language)

    counts_HLN, tokens_H = count_halves(model, ids, atlas.block_size)
    romanised_HLN, tokens_romanised_H = count_halves(model, ids_romanised, atlas.block_size)
    own = select(counts_HLN.sum(0), int(tokens_H.sum()))
    romanised = select(romanised_HLN.sum(0), int(tokens_romanised_H.sum()))
    halves = [select(counts_HLN[half], int(tokens_H[half])) for half in range(2)]
    if not len(own):
        raise UserError(f"{language} gets no neurons of {atlas.model.name} by this text; raise --profiling.rate")
    shared = own.minus(own.minus(romanised))
    return ScriptControl(
        language, int(tokens_H.sum()), int(tokens_romanised_H.sum()), len(own), len(romanised), len(shared),
        own.overlap(romanised), halves[0].overlap(halves[1]), 1 - len(shared) / len(own),
        *(tuple(each.per_layer(atlas.model.layers)) for each in (own, romanised, shared)),
    )  # fmt: skip
