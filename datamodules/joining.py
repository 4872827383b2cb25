"""Sentences joined with spaces to texts of bounded length in tokens."""

from collections.abc import Callable, Iterator

import numpy as np
from transformers import PreTrainedTokenizerBase


def join_sentences(
    sentences: list[str], tokenizer: PreTrainedTokenizerBase, room: Callable[[int], int]
) -> Iterator[tuple[list[str], list[int]]]:
    """Yields the longest runs of sentences that fit, in order, with the token ids of each run's joined text.

    The text is tokenised as a whole, without special tokens: sentence by sentence would give other ids where the
    tokenizer puts a dummy prefix before every text. A run has one sentence at least, whether it fits or not.

    Args:
        sentences: In their order.
        tokenizer: What counts.
        room: Most tokens of a run, by the number of tokens that its first sentence has alone.
    """

    def ids_of(first: int, last: int) -> list[int]:
        text = " ".join(sentences[first:last])
        return tokenizer(text, add_special_tokens=False, verbose=False)["input_ids"]

    # Where a run ends is guessed from the sentences' own lengths, so that few texts are tokenised to find it.
    ends = np.cumsum([len(ids_of(index, index + 1)) for index in range(len(sentences))])
    first = 0
    while first < len(sentences):
        before = int(ends[first - 1]) if first else 0
        most = room(int(ends[first]) - before)
        last = max(first + 1, int(np.searchsorted(ends, before + most, side="right")))
        ids = ids_of(first, last)
        while len(ids) > most and last > first + 1:
            last -= 1
            ids = ids_of(first, last)
        while last < len(sentences) and len(longer := ids_of(first, last + 1)) <= most:
            last, ids = last + 1, longer
        yield sentences[first:last], ids
        first = last
