"""Blocks of tokens, cut from the documents of a token cache.

Four chunkings share a cache: ``documents`` and ``packed`` for training, ``paper`` as the paper trains, and ``plain``
for profiling.
"""

from typing import Literal, Protocol

import numpy as np
import torch
from torch import Tensor

from datamodules.paper import usable_pieces
from datamodules.token_cache import Lengths, TokenCache
from lightning_app.model.loss import IGNORED

TrainingChunking = Literal["documents", "packed", "paper"]
Chunking = TrainingChunking | Literal["plain"]


class Blocks(Protocol):
    """Sequences of token ids by position.

    Attributes:
        tokens: Tokens of all sequences together, as the budget counts them.
        available: Tokens that the cache would give without a budget.
    """

    tokens: int
    available: int

    def __len__(self) -> int: ...

    def __getitem__(self, index: int) -> Tensor:
        """Returns the ids of a sequence, int64 (T,), or for documents apart those and their positions, (2, T)."""

    def documents(self, index: int) -> range:
        """Returns which documents of the cache a sequence holds tokens of."""


class PackedBlocks:
    """Full blocks of documents back to back, each between ``start`` and ``separator`` where they are given.

    Nothing is dropped but what does not fill the last block, and there is no padding.

    Args:
        cache: Where the documents are.
        block_size: Tokens per block.
        budget: Use at most this many tokens.
        separator: The EOS token in training; None in profiling, as in the paper.
        start: The BOS token in training, where the tokenizer itself begins a text with it.
    """

    def __init__(
        self, cache: TokenCache, block_size: int, budget: int, separator: int | None, start: int | None = None
    ) -> None:
        self._tokens = cache.open_tokens()
        self._start, self._separator = start, separator
        self._specials = (start is not None) + (separator is not None)
        self.block_size = block_size
        # Ends of the documents in the stream that includes the special tokens.
        self._ends = cache.read_ends() + self._specials * np.arange(1, cache.documents + 1)
        self.available = int(self._ends[-1]) if cache.documents else 0
        self._blocks = min(budget, self.available) // block_size
        self.tokens = self._blocks * block_size

    def __len__(self) -> int:
        return self._blocks

    def __getitem__(self, index: int) -> Tensor:
        """Returns block ``index``, int64 (block_size,)."""
        if not 0 <= index < self._blocks:
            raise IndexError(index)
        first, stop = index * self.block_size, (index + 1) * self.block_size
        if not self._specials:
            return torch.from_numpy(self._tokens[first:stop].astype(np.int64))
        held = self.documents(index)
        low, high = held[0], held[-1]
        ends = self._ends[low : high + 1] - first
        starts = np.concatenate(([self._ends[low - 1] - first if low else -first], ends[:-1]))
        block, is_text = np.empty(self.block_size, dtype=np.int64), np.ones(self.block_size, dtype=bool)
        skipped = int(low) * self._specials
        if self._start is not None:
            skipped += int(starts[0] < 0)
            heads = starts[starts >= 0]
            block[heads], is_text[heads] = self._start, False
        if self._separator is not None:
            tails = ends[ends <= self.block_size] - 1
            block[tails], is_text[tails] = self._separator, False
        # Between the special tokens, the text lies in the cache without a gap.
        text = first - skipped
        block[is_text] = self._tokens[text : text + int(is_text.sum())]
        return torch.from_numpy(block)

    def documents(self, index: int) -> range:
        """Returns the documents that a block holds tokens of; none is empty in the stream."""
        first, stop = index * self.block_size, (index + 1) * self.block_size
        low, high = np.searchsorted(self._ends, (first, stop - 1), side="right")
        return range(int(low), int(high) + 1)


class DocumentBlocks(PackedBlocks):
    """The same blocks for attention that ends where a document begins.

    Positions begin at 0 with every document, by which transformers tells documents apart, and with the block: what is
    left there of a document that the block before has begun is a text of its own.
    """

    def __getitem__(self, index: int) -> Tensor:
        """Returns the ids of block ``index`` and their positions in their documents, int64 (2, block_size)."""
        ids, held = super().__getitem__(index), self.documents(index)
        heads = np.concatenate(([0], self._ends[held[0] : held[-1]] - index * self.block_size, [self.block_size]))
        positions = np.arange(self.block_size) - np.repeat(heads[:-1], np.diff(heads))
        return torch.stack((ids, torch.from_numpy(positions)))


def usable_tokens(chunking: Chunking, block_size: int, lengths: Lengths, specials: int = 1) -> int:
    """Returns how many tokens a chunking can use of documents with these lengths, ``specials`` around each if packed.

    For ``paper`` at most so many: whether a document has too few characters is not known from its length.
    """
    if chunking == "paper":
        return usable_pieces(lengths, block_size)
    return int(lengths.sum()) + (len(lengths) * specials if chunking != "plain" else 0)


def cut_blocks(
    chunking: Literal["documents", "packed", "plain"],
    cache: TokenCache,
    block_size: int,
    budget: int,
    separator: int,
    start: int | None = None,
) -> PackedBlocks:
    """Returns the full blocks of a cache: ``plain`` without special tokens around every document, the others with."""
    if chunking == "plain":
        return PackedBlocks(cache, block_size, budget, None)
    kind = DocumentBlocks if chunking == "documents" else PackedBlocks
    return kind(cache, block_size, budget, separator, start)


def pad_batch(sequences: list[Tensor], padding: int) -> dict[str, Tensor]:
    """Returns ``input_ids`` (B, T) padded on the right, and ``labels`` with -100 where there is padding."""
    ids = torch.nn.utils.rnn.pad_sequence(sequences, batch_first=True, padding_value=padding)
    labels = torch.nn.utils.rnn.pad_sequence(sequences, batch_first=True, padding_value=IGNORED)
    return {"input_ids": ids, "labels": labels}


def batch_documents(blocks: list[Tensor]) -> dict[str, Tensor]:
    """Returns ``input_ids``, ``position_ids`` and ``labels`` of `DocumentBlocks`, (B, T) each, and ``bounds``.

    Bounds are where documents begin in the batch row after row, and where it ends, int32 (documents + 1,). The label
    of a document's first token is -100: nothing of the document is there to predict it from.
    """
    ids_BT, positions_BT = torch.stack(blocks).unbind(1)
    labels_BT = ids_BT.masked_fill(positions_BT == 0, IGNORED)
    bounds = torch.cat(((positions_BT.flatten() == 0).nonzero().flatten(), torch.tensor([ids_BT.numel()])))
    documents = {"position_ids": positions_BT, "bounds": bounds.to(torch.int32)}
    return {"input_ids": ids_BT, "labels": labels_BT, **documents}
