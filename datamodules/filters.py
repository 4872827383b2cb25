"""Documents that are left out of a text before it is tokenised, and why.

What is left out decides which tokens a cache holds, so it is a part of the cache's identity; how many documents went,
and the first of them, are kept with the position of the source.
"""

import hashlib
import importlib
import re
import unicodedata
from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, Literal

from datamodules.held_out import HeldOutText
from datamodules.sources import DocumentBatches, Identity, Position, RowBatches, TextSource
from datamodules.text_files import Row
from lightning_app.errors import UserError
from lightning_app.files import digest

Duplicates = Literal["keep", "exact", "near"]

_LISTED = 100
_BEGINS = 80
_SHINGLE_WORDS = 5
_SPACE = re.compile(r"\s+")


@dataclass(frozen=True)
class TextFilters:
    """Which documents are left out of the training text.

    Args:
        flores: ``drop`` those that share 13 words in a row with FLORES dev or devtest of their language, or ``keep``.
        warnings: GlotCC's quality warnings whose documents are left out.
        confidence: The least certainty, from 0 to 1, that GlotCC has of a document's language; a document without one
            stays.
        duplicates: ``keep`` them, or leave out documents that repeat an earlier one: ``exact``, but for space, or
            ``near`` (a MinHash of words in fives, 0.8 alike).
    """

    flores: Literal["drop", "keep"] = "drop"
    warnings: tuple[str, ...] = ()
    confidence: float | None = None
    duplicates: Duplicates = "keep"

    def __post_init__(self) -> None:
        if self.confidence is not None and not 0 <= self.confidence <= 1:
            raise UserError(f"--data.filters.confidence is {self.confidence}; expected a number from 0 to 1")

    def on(self, source: TextSource, held_out: Callable[[], HeldOutText]) -> TextSource:
        """Returns a source without what is left out; the same where nothing is.

        Args:
            source: Of one language.
            held_out: Reads what the language is measured on; called only where that is to be left out.
        """
        filters: list[DocumentFilter] = []
        if self.warnings:
            filters.append(_Warnings(self.warnings))
        if self.confidence is not None:
            filters.append(_Confidence(self.confidence))
        if self.flores == "drop" and (text := held_out()):
            filters.append(_HeldOut(text))
        if self.duplicates != "keep":
            filters.append(Repeated(self.duplicates))
        return FilteredSource(source, filters) if filters else source


class DocumentFilter(ABC):
    """Tells which documents of a text to leave out, one after the other.

    Attributes:
        reason: What is wrong with them, in a few words.
        columns: What it looks at beside the text.
        remembers: Whether what it says of a document depends on those before.
    """

    reason: str
    columns: tuple[str, ...] = ()
    remembers: bool = False

    @property
    @abstractmethod
    def identity(self) -> list[object]:
        """What decides which documents go, as plain data."""

    @abstractmethod
    def drops(self, rows: Sequence[Row]) -> list[bool]:
        """Tells which of the next documents are left out."""


class _Warnings(DocumentFilter):
    reason, columns = "quality warning", ("quality-warnings",)

    def __init__(self, kinds: Sequence[str]) -> None:
        self._kinds = frozenset(kinds)

    @property
    def identity(self) -> list[object]:
        return ["warnings", sorted(self._kinds)]

    def drops(self, rows: Sequence[Row]) -> list[bool]:
        every = (row.get("quality-warnings") for row in rows)
        return [isinstance(found, list) and not self._kinds.isdisjoint(found) for found in every]


class _Confidence(DocumentFilter):
    reason, columns = "language uncertain", ("identification-prob",)

    def __init__(self, least: float) -> None:
        self._least = least

    @property
    def identity(self) -> list[object]:
        return ["confidence", self._least]

    def drops(self, rows: Sequence[Row]) -> list[bool]:
        every = (row.get("identification-prob") for row in rows)
        return [isinstance(found, float) and found < self._least for found in every]


class _HeldOut(DocumentFilter):
    reason = "holds FLORES"

    def __init__(self, text: HeldOutText) -> None:
        self._text = text

    @property
    def identity(self) -> list[object]:
        return ["flores", self._text.identity]

    def drops(self, rows: Sequence[Row]) -> list[bool]:
        return [bool(found) for found in self._text.found([str(row["content"]) for row in rows])]


class Repeated(DocumentFilter):
    """Documents that an earlier one holds already: the same but for space, or near to it by datasketch's MinHash.

    Args:
        kind: ``exact`` or ``near``.

    Raises:
        UserError: datasketch is not installed.
    """

    remembers = True

    def __init__(self, kind: Duplicates) -> None:
        self.kind, self.reason = kind, "duplicate" if kind == "exact" else "near duplicate"
        self._seen: set[bytes] = set()
        self._near = _NearDuplicates() if kind == "near" else None

    @property
    def identity(self) -> list[object]:
        return ["duplicates", self.kind, *(self._near.settings if self._near is not None else ())]

    def drops(self, rows: Sequence[Row]) -> list[bool]:
        return [self._repeats(str(row["content"])) for row in rows]

    def _repeats(self, document: str) -> bool:
        text = _SPACE.sub(" ", unicodedata.normalize("NFKC", document)).strip().casefold()
        exact = hashlib.sha256(text.encode()).digest()
        if exact in self._seen:
            return True
        self._seen.add(exact)
        return self._near is not None and self._near.repeats(text)


class _NearDuplicates:
    """Locality-sensitive hashing over documents' sets of words in fives.

    ``settings`` are the threshold, the permutations and the seed, and what they are of.
    """

    settings = (0.8, 128, 1, _SHINGLE_WORDS)

    def __init__(self) -> None:
        try:
            self._library: Any = importlib.import_module("datasketch")
        except ImportError as error:
            raise UserError(
                "near duplicates are found by datasketch, which is not installed: pip install datasketch"
            ) from error
        threshold, permutations, *_ = self.settings
        self._index = self._library.MinHashLSH(threshold=threshold, num_perm=permutations)
        self._sketches: list[Any] = []

    def repeats(self, text: str) -> bool:
        words = text.split(" ")
        if len(words) <= _SHINGLE_WORDS:  # or written without spaces
            words = list(text)
        shingles = {" ".join(words[at : at + _SHINGLE_WORDS]) for at in range(max(1, len(words) - _SHINGLE_WORDS + 1))}
        threshold, permutations, seed, _ = self.settings
        sketch = self._library.MinHash(num_perm=permutations, seed=seed)
        sketch.update_batch([shingle.encode() for shingle in sorted(shingles)])
        if any(sketch.jaccard(self._sketches[like]) >= threshold for like in self._index.query(sketch)):
            return True
        self._index.insert(len(self._sketches), sketch)
        self._sketches.append(sketch)
        return False


@dataclass
class FilteredSource:
    """A text without the documents that filters leave out; the first filter that drops one is the reason.

    A position holds the source's own (``at``), the documents read until there (``read``), how many went (``dropped``,
    by reason), and the first hundred of them (``listed``).
    """

    source: TextSource
    filters: Sequence[DocumentFilter]

    def identity(self) -> Identity:
        return {**self.source.identity(), "filters": self._digest}

    def identity_without_revision(self) -> Identity:
        return {**self.source.identity_without_revision(), "filters": self._digest}

    @property
    def _digest(self) -> str:
        return digest(*(each.identity for each in self.filters))

    def sizes(self) -> tuple[int, int]:
        """Returns the sizes of the whole text, what is left out counted."""
        return self.source.sizes()

    def rows(self, position: Position, columns: Sequence[str]) -> RowBatches:
        state = position or {"at": None, "read": 0, "dropped": {}, "listed": []}
        # What was seen before is in no position: such filters go through the text again from its start.
        known = state["read"] if any(each.remembers for each in self.filters) else 0
        wanted = list(dict.fromkeys([*columns, *(name for each in self.filters for name in each.columns)]))
        read = state["read"] - known
        for rows, at in self.source.rows(None if known else state["at"], wanted):
            new = max(0, read + len(rows) - state["read"])  # the rest was read before
            reasons = self._reasons(rows)
            read += len(rows)
            if new == 0:
                continue
            dropped, listed = dict(state["dropped"]), list(state["listed"])
            pairs = list(zip(rows, reasons, range(read - len(rows), read), strict=True))[len(rows) - new :]
            for row, reason, number in pairs:
                if reason is not None:
                    dropped[reason] = dropped.get(reason, 0) + 1
                    listed.append({"reason": reason, "document": number, "begins": str(row["content"])[:_BEGINS]})
            state = {"at": at, "read": read, "dropped": dropped, "listed": listed[:_LISTED]}
            yield [row for row, reason, _ in pairs if reason is None], state

    def _reasons(self, rows: Sequence[Row]) -> list[str | None]:
        """Returns why each document is left out, or None; a filter sees what those before it let through."""
        reasons: list[str | None] = [None] * len(rows)
        for each in self.filters:
            left = [place for place, reason in enumerate(reasons) if reason is None]
            for place, is_dropped in zip(left, each.drops([rows[place] for place in left]), strict=True):
                reasons[place] = each.reason if is_dropped else None
        return reasons

    def batches(self, position: Position) -> DocumentBatches:
        for rows, after in self.rows(position, ()):
            yield [str(row["content"]) for row in rows], after
