"""Text that a model is measured on, looked for in what it is trained on."""

import unicodedata
from collections.abc import Collection, Iterable, Sequence
from functools import cached_property
from itertools import chain

import numpy as np
from numpy.typing import NDArray

from lightning_app.files import digest

WORDS = 13
"""Words in a row that two texts share by more than chance (arXiv 2005.14165, appendix C)."""

_SHORTEST = 8  # words of a sentence that is looked for as a whole
_CHARACTERS_A_WORD = 2
UNSPACED_SCRIPTS = frozenset({"Hani", "Hans", "Hant", "Jpan", "Khmr", "Laoo", "Mymr", "Thai", "Tibt"})
_TABLE_BITS = 18
_REST = np.uint64(64 - _TABLE_BITS)
_FACTOR = np.uint64(0x9E3779B97F4A7C15)  # odd, so that no power of it is 0 modulo 2 ** 64


Run = tuple[int, int]
"""A run of words, as their number and a hash."""

_BETWEEN = "\0"  # no word


class _OnlyWords(dict[int, str | int]):
    """Table for `str.translate`: punctuation, symbols and control characters become spaces."""

    def __missing__(self, code: int) -> str | int:
        found: str | int = " " if unicodedata.category(chr(code))[0] in "PSCZ" else code
        self[code] = found
        return found


_ONLY_WORDS = _OnlyWords()


class HeldOutText:
    """Sentences, found in documents by any 13 words in a row; shorter ones as a whole, from 8 words on.

    Case, punctuation and compatibility forms (NFKC) make no difference. In scripts without spaces, two characters are
    a word.

    Args:
        sentences: To look for.
        script: ISO 15924 code of the script that they are in.
    """

    def __init__(self, sentences: Iterable[str], script: str) -> None:
        self._is_spaced = script not in UNSPACED_SCRIPTS
        self._word = 1 if self._is_spaced else _CHARACTERS_A_WORD
        self._words = [words for words in map(self.words, sentences) if len(words) >= _SHORTEST * self._word]
        self._known: dict[int, set[int]] = {}
        for words in self._words:
            length = min(len(words), WORDS * self._word)
            self._known.setdefault(length, set()).update(_hashes(words, [length])[length].tolist())
        self._may_be = {length: np.zeros(1 << _TABLE_BITS, dtype=bool) for length in self._known}
        for length, known in self._known.items():
            self._may_be[length][np.array(list(known), dtype=np.uint64) >> _REST] = True

    def __bool__(self) -> bool:
        return bool(self._words)

    @cached_property
    def identity(self) -> str:
        """Digest over what is looked for."""
        return digest(WORDS, _SHORTEST, self._words)

    @property
    def grams(self) -> int:
        """How many different runs of words there are to find."""
        return sum(map(len, self._known.values()))

    def words(self, text: str) -> list[str]:
        """Returns what is compared of a text: its words, or its characters where words are not told apart."""
        words = unicodedata.normalize("NFKC", text).casefold().translate(_ONLY_WORDS).split()
        return words if self._is_spaced else list("".join(words))

    def found(self, documents: Sequence[str]) -> list[set[Run]]:
        """Returns, for each document, the runs of words that it shares with the sentences."""
        hits: list[set[Run]] = [set() for _ in documents]
        each = [self.words(document) for document in documents]
        ends = np.cumsum([len(words) + 1 for words in each])
        joined = list(chain.from_iterable((*words, _BETWEEN) for words in each))
        for length, hashes in _hashes(joined, self._known).items():
            for place in np.flatnonzero(self._may_be[length][hashes >> _REST]).tolist():
                if (value := int(hashes[place])) in self._known[length]:
                    hits[int(np.searchsorted(ends, place, side="right"))].add((length, value))
        return hits


def _hashes(words: list[str], lengths: Collection[int]) -> dict[int, NDArray[np.uint64]]:
    """Returns, for each of these lengths, a hash of every run of so many words; equal in one process only."""
    each = np.fromiter(map(hash, words), dtype=np.int64, count=len(words)).view(np.uint64)
    total, found = np.zeros(len(words), dtype=np.uint64), {}
    for place in range(min(len(words), max(lengths, default=0))):
        total = total[: len(words) - place] * _FACTOR + each[place:]
        if place + 1 in lengths:
            found[place + 1] = total
    return found
