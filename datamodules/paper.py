"""Text as the paper's training script makes it, token for token: its chunks of documents and its validation batches.

The script cuts a document's tokens, decodes every piece and tokenises it again, which puts the tokenizer's own special
tokens around it and may move a token at either end.
"""

import copy

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from transformers import PreTrainedTokenizerBase

from datamodules.joining import join_sentences
from datamodules.token_cache import Lengths, TokenCache

_FEWEST_CHARACTERS = 50
_MOST_TOKENS = 4 * _FEWEST_CHARACTERS  # of fewer characters than that: a byte each and a dummy prefix
_HEAD_TOKENS = 200

_FEWEST_SENTENCE_CHARACTERS = 11
_MOST_SENTENCES = 1000


class PaperChunks:
    """Documents cut into chunks, those of fewer than half of ``block_size`` tokens dropped, each tokenised on its own.

    Documents of fewer than 50 characters are left out, too. The budget is reached, not kept to: the chunk that crosses
    it is taken. Sequences have at most ``block_size`` tokens, special ones included. Order is that of the text.

    Args:
        cache: Where the documents are.
        block_size: Longest chunk.
        budget: Take chunks until they have so many tokens, not counting special ones.
        tokenizer: What made the cache.
    """

    def __init__(self, cache: TokenCache, block_size: int, budget: int, tokenizer: PreTrainedTokenizerBase) -> None:
        # A copy: truncation stays set in a tokenizer, and would change the digest that caches are found by.
        self._tokenizer = copy.deepcopy(tokenizer)
        self._tokens = cache.open_tokens()
        self.block_size = block_size
        ends = cache.read_ends()
        lengths = np.diff(ends, prepend=0)
        kept = ~self._is_brief(ends - lengths, lengths)
        starts, sizes = _cut((ends - lengths)[kept], lengths[kept], block_size)
        self.available = int(sizes.sum())
        taken = int(np.searchsorted(sizes.cumsum(), budget)) + 1 if budget > 0 else 0
        self._starts, self._sizes, self._ends = starts[:taken], sizes[:taken], ends
        self.tokens = int(self._sizes.sum())

    def __len__(self) -> int:
        return len(self._starts)

    def __getitem__(self, index: int) -> Tensor:
        """Returns chunk ``index`` with the tokenizer's special tokens, int64 of at most ``block_size`` tokens."""
        if not 0 <= index < len(self):
            raise IndexError(index)
        start = int(self._starts[index])
        piece = self._tokens[start : start + int(self._sizes[index])].tolist()
        text = self._tokenizer.decode(piece, skip_special_tokens=True)
        ids = self._tokenizer(text, truncation=True, max_length=self.block_size, verbose=False)["input_ids"]
        return torch.tensor(ids, dtype=torch.int64)

    def documents(self, index: int) -> range:
        """Returns the document that a chunk is of."""
        document = int(np.searchsorted(self._ends, self._starts[index], side="right"))
        return range(document, document + 1)

    def _is_brief(self, starts: Lengths, lengths: Lengths) -> NDArray[np.bool_]:
        """Tells which documents long enough in tokens have fewer than 50 characters between blanks, bool (documents,).

        Such a document has at most 200 tokens, or begins or ends with blank ones: few have to be decoded. What a
        tokenizer without bytes to fall back on made ``unk`` of is lost: it counts as that token's name is long.
        """
        is_brief = np.zeros(len(lengths), dtype=bool)
        long = np.flatnonzero(lengths >= max(1, self.block_size // 2))
        outer = np.concatenate((self._tokens[starts[long]], self._tokens[(starts + lengths - 1)[long]]))
        tokens, which = np.unique(outer, return_inverse=True)
        # A token of part of a character decodes to U+FFFD: the character may be a blank.
        is_blank = np.array([not self._text([token]).replace("\ufffd", "").strip() for token in tokens], dtype=bool)
        has_blank_end = is_blank[which].reshape(2, -1).any(axis=0) if len(long) else np.zeros(0, dtype=bool)
        for document in long[has_blank_end | (lengths[long] <= _MOST_TOKENS)]:
            ids = self._tokens[starts[document] : starts[document] + lengths[document]]
            # The head is mostly enough to tell. Cut in the middle of a character it ends in U+FFFD, one or many.
            if len(self._text(ids[:_HEAD_TOKENS]).replace("\ufffd", "").strip()) < _FEWEST_CHARACTERS:
                is_brief[document] = len(self._text(ids).strip()) < _FEWEST_CHARACTERS
        return is_brief

    def _text(self, ids: NDArray[np.uint32] | list[int]) -> str:
        plain = [int(token) for token in ids]
        return str(self._tokenizer.decode(plain, clean_up_tokenization_spaces=False))


def _cut(starts: Lengths, lengths: Lengths, size: int) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """Returns starts and sizes of the pieces of ``size`` tokens (the last one shorter) that are long enough."""
    pieces = -(-lengths // size)
    nth = np.arange(pieces.sum()) - np.repeat(pieces.cumsum() - pieces, pieces)
    piece_starts = np.repeat(starts, pieces) + nth * size
    piece_sizes = np.minimum(np.repeat(lengths, pieces) - nth * size, size)
    kept = piece_sizes >= size // 2
    return piece_starts[kept], piece_sizes[kept]


def usable_pieces(lengths: Lengths, size: int) -> int:
    """Returns the tokens in pieces that are long enough, of documents with these lengths."""
    return int(_cut(np.zeros_like(lengths), lengths, size)[1].sum())


def paper_batches(
    sentences: list[str], tokenizer: PreTrainedTokenizerBase, block_size: int, batch_size: int
) -> list[dict[str, Tensor]]:
    """Returns the paper's validation batches, in order: ``input_ids`` and ``attention_mask``, both (B, ``block_size``).

    Sentences are joined while the text has at most ``block_size`` tokens without special ones; the text is then
    tokenised with them, truncated, and padded with the tokenizer's padding or EOS where it has none. As in the script,
    sentences of up to ten characters are left out, and no more than the first thousand are used.
    """
    own = copy.deepcopy(tokenizer)
    if own.pad_token is None:
        own.pad_token = own.eos_token
    used = [text for text in sentences if len(text.strip()) >= _FEWEST_SENTENCE_CHARACTERS][:_MOST_SENTENCES]
    texts = [" ".join(run) for run, _ in join_sentences(used, tokenizer, lambda _: block_size)]
    batches = []
    for start in range(0, len(texts), batch_size):
        encoded = own(
            texts[start : start + batch_size], truncation=True, padding="max_length", max_length=block_size,
            return_tensors="pt", verbose=False,
        )  # fmt: skip
        batches.append({key: encoded[key] for key in ("input_ids", "attention_mask")})
    return batches
