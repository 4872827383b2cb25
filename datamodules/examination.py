"""A text looked at before anything is trained on it: how a tokenizer cuts its language, and what its documents are."""

from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from transformers import PreTrainedTokenizerBase

from datamodules.filters import Repeated
from datamodules.held_out import UNSPACED_SCRIPTS, HeldOutText, Run
from datamodules.sources import TextSource
from datamodules.text_files import Row
from lightning_app.files import JSON
from lightning_app.languages import Language

_BROKEN = "\N{REPLACEMENT CHARACTER}"
_LISTED = 100
_BEGINS = 80
_QUANTILES = (0.1, 0.5, 0.9)


@dataclass(frozen=True)
class Fertility:
    """How a tokenizer cuts a language, by sentences that another language has too.

    Attributes:
        tokens_per_word: Of words between spaces; None in scripts that have none.
        bytes_per_token: UTF-8 bytes.
        fallback: Share of the tokens that are parts of characters.
        times_other: Tokens, over those of the other language for the same sentences.
    """

    tokens_per_word: float | None
    bytes_per_token: float
    fallback: float
    times_other: float | None = None


def fertility_of(
    tokenizer: PreTrainedTokenizerBase, language: Language, sentences: Sequence[str], other: Sequence[str] = ()
) -> Fertility:
    """Returns how a tokenizer cuts sentences.

    Args:
        tokenizer: Special tokens are left out.
        language: Of the sentences.
        sentences: At least one, not all empty.
        other: The same sentences in another language.
    """
    ids = _token_ids(tokenizer, sentences)
    parts = {each for each in set(ids) if _BROKEN in str(tokenizer.decode([each]))}
    words = sum(len(sentence.split()) for sentence in sentences)
    of_other = len(_token_ids(tokenizer, other)) if other else 0
    return Fertility(
        tokens_per_word=len(ids) / words if language.script not in UNSPACED_SCRIPTS else None,
        bytes_per_token=sum(len(sentence.encode()) for sentence in sentences) / len(ids),
        fallback=sum(each in parts for each in ids) / len(ids),
        times_other=len(ids) / of_other if of_other else None,
    )


def _token_ids(tokenizer: PreTrainedTokenizerBase, sentences: Sequence[str]) -> list[int]:
    encoded = tokenizer(list(sentences), add_special_tokens=False, verbose=False)["input_ids"]
    return [each for ids in encoded for each in ids]


@dataclass(frozen=True)
class TextReport:
    """What the documents of a text are.

    Attributes:
        documents: How many were looked at.
        is_whole: Whether that is all there are.
        text_bytes: Of UTF-8.
        lengths: Bytes of a document at 10, 50 and 90 % of them.
        warnings: Documents by GlotCC's quality warning.
        certainty: GlotCC's certainty of the language at 10, 50 and 90 % of the documents that have one; else empty.
        held_out: By split of FLORES, the share of its runs of 13 words (shorter sentences as a whole) that are in the
            text.
        holding: Numbers of the documents that hold such a run, the first hundred with their beginnings.
        documents_holding: How many those are.
        exact_duplicates: Documents that repeat an earlier one but for space and case.
        near_duplicates: Those and near ones; None where they were not looked for.
    """

    documents: int
    is_whole: bool
    text_bytes: int
    lengths: list[int]
    warnings: dict[str, int]
    certainty: list[float]
    held_out: dict[str, float]
    holding: list[JSON]
    documents_holding: int
    exact_duplicates: int
    near_duplicates: int | None


def examine(
    source: TextSource, held_out: Mapping[str, HeldOutText], most: int | None = None, has_near: bool = False
) -> TextReport:
    """Returns what the first documents of a text are.

    Args:
        source: Of one language.
        held_out: What is looked for, by split.
        most: Documents to look at; all where not given.
        has_near: Whether to look for near duplicates, which takes a few milliseconds a document.

    Raises:
        UserError: The text cannot be read, or near duplicates are wanted and datasketch is not installed.
    """
    examination = _Examination(held_out, has_near)
    batches = source.rows(None, ("quality-warnings", "identification-prob"))
    for rows, _ in batches:
        room = len(rows) if most is None else most - len(examination.lengths)
        examination.add(rows[:room])
        if room < len(rows):
            examination.is_whole = False
            break
    getattr(batches, "close", lambda: None)()
    return examination.report()


class _Examination:
    def __init__(self, held_out: Mapping[str, HeldOutText], has_near: bool) -> None:
        self.held_out, self.is_whole = held_out, True
        self.lengths: list[int] = []
        self._certainties: list[float] = []
        self._warnings: Counter[str] = Counter()
        self._found: dict[str, set[Run]] = {split: set() for split in held_out}
        self._holding: list[JSON] = []
        self._exact, self._near = Repeated("exact"), Repeated("near") if has_near else None
        self._repeated = self._near_repeated = 0

    def add(self, rows: Sequence[Row]) -> None:
        texts = [str(row["content"]) for row in rows]
        for place, by_split in enumerate(_found_in(texts, self.held_out)):
            for split, runs in by_split.items():
                self._found[split] |= runs
            if by_split:
                number = len(self.lengths) + place
                self._holding.append({"document": number, "splits": sorted(by_split), "begins": texts[place][:_BEGINS]})
        self.lengths += [len(text.encode()) for text in texts]
        for row in rows:
            if isinstance(kinds := row.get("quality-warnings"), list):
                self._warnings.update(map(str, kinds))
            if isinstance(certainty := row.get("identification-prob"), float):
                self._certainties.append(certainty)
        self._repeated += sum(self._exact.drops(rows))
        self._near_repeated += sum(self._near.drops(rows)) if self._near is not None else 0

    def report(self) -> TextReport:
        return TextReport(
            documents=len(self.lengths),
            is_whole=self.is_whole,
            text_bytes=sum(self.lengths),
            lengths=[round(each) for each in _quantiles(self.lengths)],
            warnings=dict(self._warnings.most_common()),
            certainty=_quantiles(self._certainties),
            held_out={s: len(self._found[s]) / text.grams if text else 0.0 for s, text in self.held_out.items()},
            holding=self._holding[:_LISTED],
            documents_holding=len(self._holding),
            exact_duplicates=self._repeated,
            near_duplicates=self._near_repeated if self._near is not None else None,
        )


def _found_in(texts: Sequence[str], held_out: Mapping[str, HeldOutText]) -> list[dict[str, set[Run]]]:
    found: list[dict[str, set[Run]]] = [{} for _ in texts]
    for split, text in held_out.items():
        for place, runs in enumerate(text.found(texts)):
            if runs:
                found[place][split] = runs
    return found


def _quantiles(values: Iterable[float]) -> list[float]:
    every = list(values)
    return [float(each) for each in np.quantile(every, _QUANTILES)] if every else []
