"""How near the sentences of two languages lie in a model, before and after training.

Shape suffixes: B sentences, T tokens, L layers, D hidden size.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from statistics import fmean

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.nn.utils.rnn import pad_sequence
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from lightning_app.languages import Language
from lightning_app.model.layers import decoder_layers

_TOKENS_AT_ONCE = 4096


@dataclass(frozen=True)
class Alignment:
    """Cosine similarity of a language's sentences with their translations (arXiv 2510.13580, cross-lingual alignment).

    Attributes:
        language: That was adapted to.
        others: Those it is compared with, O of them.
        sentences: How many, parallel in all of them.
        before: In the base after each decoder layer, (O, L), mean over the sentences.
        after: In the adapted model.
    """

    language: Language
    others: tuple[Language, ...]
    sentences: int
    before: tuple[tuple[float, ...], ...]
    after: tuple[tuple[float, ...], ...]

    @property
    def means(self) -> list[tuple[float, float]]:
        """Mean over the layers before and after, of each other language: the paper's figure."""
        return [(fmean(old), fmean(new)) for old, new in zip(self.before, self.after, strict=True)]


@torch.no_grad()
def mean_states(
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    sentences: Sequence[str],
    with_specials: bool = False,
    tokens_at_once: int = _TOKENS_AT_ONCE,
) -> Tensor:
    """Returns the mean over its tokens of every sentence's hidden states after each decoder layer, fp32 (B, L, D).

    The states are those of the residual stream, before the final norm. The model sees a sentence as the tokenizer makes
    it; of the mean its special tokens are left out, because the states of BOS are hundreds of times as long as others
    in many models and the same in every language.

    Args:
        model: In evaluation mode.
        tokenizer: Its own.
        sentences: One or more.
        with_specials: Whether they count into the mean for all that.
        tokens_at_once: B times T of a batch, at most; a longer sentence makes a batch of its own.
    """
    encoded = [tokenizer(each, return_special_tokens_mask=True, verbose=False) for each in sentences]
    rows = [torch.tensor(each["input_ids"]) for each in encoded]
    counted = [torch.ones(len(row)) if with_specials else 1.0 - torch.tensor(each["special_tokens_mask"])
               for row, each in zip(rows, encoded, strict=True)]  # fmt: skip
    layers = decoder_layers(model)
    found = torch.zeros(len(rows), len(layers), model.config.get_text_config().hidden_size)
    for batch in _batches([len(row) for row in rows], tokens_at_once):
        # Padded on the right, which a causal model does not see.
        ids_BT = pad_sequence([rows[number] for number in batch], batch_first=True).to(model.device)
        weight_BT = pad_sequence([counted[number] for number in batch], batch_first=True).to(model.device)
        weight_BT = weight_BT / weight_BT.sum(1, keepdim=True).clamp(min=1)
        for layer, state_BD in enumerate(_pooled_states(model, layers, ids_BT, weight_BT)):
            found[batch, layer] = state_BD.cpu()
    return found


def _pooled_states(
    model: PreTrainedModel, layers: Sequence[nn.Module], ids_BT: Tensor, weight_BT: Tensor
) -> list[Tensor]:
    pooled: list[Tensor] = []

    def keep(module: nn.Module, args: object, output: Tensor | tuple[Tensor, ...]) -> None:
        state_BTD = output if isinstance(output, Tensor) else output[0]
        pooled.append(torch.einsum("btd,bt->bd", state_BTD.float(), weight_BT))

    handles = [layer.register_forward_hook(keep) for layer in layers]
    try:
        model.base_model(input_ids=ids_BT, use_cache=False)
    finally:
        for handle in handles:
            handle.remove()
    return pooled


def _batches(lengths: Sequence[int], tokens_at_once: int) -> Iterator[list[int]]:
    """Yields numbers of sequences that fit together, the longest first."""
    batch: list[int] = []
    longest = 0
    for number in sorted(range(len(lengths)), key=lambda number: -lengths[number]):
        if batch and longest * (len(batch) + 1) > tokens_at_once:
            yield batch
            batch = []
        longest = longest if batch else lengths[number]
        batch.append(number)
    if batch:
        yield batch


def similarities(
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    rows: Sequence[Sequence[str]],
    with_specials: bool = False,
) -> tuple[tuple[float, ...], ...]:
    """Returns the mean cosine similarity of the first column's sentences with each other column's, (O, L).

    Args:
        model: In evaluation mode.
        tokenizer: Its own.
        rows: Parallel sentences, the language's own first.
        with_specials: As in `mean_states`.
    """
    own, *others = zip(*rows, strict=True)
    own_BLD = mean_states(model, tokenizer, own, with_specials)
    found = []
    for column in others:
        other_BLD = mean_states(model, tokenizer, column, with_specials)
        found.append(tuple(F.cosine_similarity(own_BLD, other_BLD, dim=-1).double().mean(0).tolist()))
    return tuple(found)
