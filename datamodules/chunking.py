"""Blocks of tokens, cut from the documents of a token cache.

Three chunkings share a cache: ``packed`` for training, ``paper`` as the paper trains, and ``plain`` for profiling.
"""

from typing import Literal, Protocol

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from datamodules.token_cache import Lengths, TokenCache
from lightning_app.model.loss import IGNORED

TrainingChunking = Literal["packed", "paper"]
Chunking = TrainingChunking | Literal["plain"]

_PAPER_SHORTEST = 256


class Blocks(Protocol):
    """Sequences of token ids by position."""

    tokens: int

    def __len__(self) -> int: ...

    def __getitem__(self, index: int) -> Tensor: ...


class PackedBlocks:
    """Full blocks of documents back to back, with ``separator`` after each document unless it is None.

    Nothing is dropped but what does not fill the last block, and there is no padding.

    Args:
        cache: Where the documents are.
        block_size: Tokens per block.
        budget: Use at most this many tokens.
        separator: The EOS token in training; None in profiling, as in the paper.
    """

    def __init__(self, cache: TokenCache, block_size: int, budget: int, separator: int | None) -> None:
        self._tokens = cache.open_tokens()
        self._separator = separator
        self.block_size = block_size
        # Ends of the documents in the stream that includes the separators.
        self._ends = cache.read_ends() + (np.arange(1, cache.documents + 1) if separator is not None else 0)
        available = int(self._ends[-1]) if cache.documents else 0
        self.available = available
        self._blocks = min(budget, available) // block_size
        self.tokens = self._blocks * block_size

    def __len__(self) -> int:
        return self._blocks

    def __getitem__(self, index: int) -> Tensor:
        """Returns block ``index``, int64 (block_size,)."""
        if not 0 <= index < self._blocks:
            raise IndexError(index)
        start, stop = index * self.block_size, (index + 1) * self.block_size
        if self._separator is None:
            return torch.from_numpy(self._tokens[start:stop].astype(np.int64))
        block = np.full(self.block_size, self._separator, dtype=np.int64)
        document = int(np.searchsorted(self._ends, start, side="right"))
        while start < stop:
            # Up to the separator that ends this document; in the cache the stream lies `document` positions earlier.
            text_end = min(int(self._ends[document]) - 1, stop)
            offset = start - index * self.block_size
            if text_end > start:
                block[offset : offset + text_end - start] = self._tokens[start - document : text_end - document]
            start = int(self._ends[document])
            document += 1
        return torch.from_numpy(block)


class PaperChunks:
    """Documents cut into chunks of ``block_size``; chunks and documents under 256 tokens are dropped.

    Args:
        cache: Where the documents are.
        block_size: Longest chunk.
        budget: Use at most this many tokens.
    """

    def __init__(self, cache: TokenCache, block_size: int, budget: int) -> None:
        self._tokens = cache.open_tokens()
        ends = cache.read_ends()
        lengths = np.diff(ends, prepend=0)
        starts, sizes = _cut(ends - lengths, lengths, block_size)
        self.available = int(sizes.sum())
        kept = int(np.searchsorted(sizes.cumsum(), budget, side="right"))
        self._starts, self._sizes = starts[:kept], sizes[:kept]
        self.block_size = block_size
        self.tokens = int(self._sizes.sum())

    def __len__(self) -> int:
        return len(self._starts)

    def __getitem__(self, index: int) -> Tensor:
        """Returns chunk ``index``, int64 of 256 to ``block_size`` tokens."""
        if not 0 <= index < len(self):
            raise IndexError(index)
        start = int(self._starts[index])
        return torch.from_numpy(self._tokens[start : start + int(self._sizes[index])].astype(np.int64))


def _cut(starts: Lengths, lengths: Lengths, size: int) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """Returns starts and sizes of the pieces of ``size`` tokens (the last one shorter) that are long enough."""
    pieces = -(-lengths // size)
    nth = np.arange(pieces.sum()) - np.repeat(pieces.cumsum() - pieces, pieces)
    piece_starts = np.repeat(starts, pieces) + nth * size
    piece_sizes = np.minimum(np.repeat(lengths, pieces) - nth * size, size)
    kept = piece_sizes >= min(_PAPER_SHORTEST, size)
    return piece_starts[kept], piece_sizes[kept]


def usable_tokens(chunking: Chunking, block_size: int, lengths: Lengths) -> int:
    """Returns how many tokens a chunking can use of documents with these lengths."""
    if chunking == "paper":
        return int(_cut(np.zeros_like(lengths), lengths, block_size)[1].sum())
    return int(lengths.sum()) + (len(lengths) if chunking == "packed" else 0)


def cut_blocks(
    chunking: Chunking, cache: TokenCache, block_size: int, budget: int, separator: int
) -> PackedBlocks | PaperChunks:
    """Returns the blocks that a chunking makes of a cache."""
    if chunking == "paper":
        return PaperChunks(cache, block_size, budget)
    return PackedBlocks(cache, block_size, budget, separator if chunking == "packed" else None)


def pad_batch(sequences: list[Tensor], padding: int) -> dict[str, Tensor]:
    """Returns ``input_ids`` (B, T) padded on the right, and ``labels`` with -100 where there is padding."""
    ids = torch.nn.utils.rnn.pad_sequence(sequences, batch_first=True, padding_value=padding)
    labels = torch.nn.utils.rnn.pad_sequence(sequences, batch_first=True, padding_value=IGNORED)
    return {"input_ids": ids, "labels": labels}
