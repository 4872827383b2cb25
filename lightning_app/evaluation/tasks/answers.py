"""How our task files read what a model said, and what they make of it."""

import math
import re
from collections.abc import Sequence

from sacrebleu import sentence_bleu

from lightning_app.evaluation.translation import corpus_value, why_no_spbleu
from lightning_app.files import JSON

_LETTERS = "ABCDEFG"


def letter(doc: JSON, results: list[str]) -> dict[str, float]:
    """Returns whether the letter in an answer is the right one, and whether there is one."""
    read = read_letter(results[0], doc.get("letters", len(doc["options"])))
    return {"acc": float(read == doc["answer"]), "is_read": float(read is not None)}


def read_letter(answer: str, options: int) -> int | None:
    """Returns the number of the option that an answer names, as the paper's script reads it; None where it names none.

    A letter at the beginning, before a bracket, a full stop, a space or the end; else the first letter anywhere that
    stands before a bracket; else before a full stop.

    >>> [read_letter(answer, 4) for answer in (" B) Travel", "c", "I choose D.", "E) none", "An apple", "the a. of b)")]
    [1, 2, 3, None, None, 1]
    """
    letters = f"([{_LETTERS[:options]}])"
    text = answer.strip().upper()
    for pattern in (
        rf"^{letters}\)",
        rf"^{letters}\.",
        rf"^{letters}\s",
        rf"^{letters}$",
        rf"\b{letters}\)",
        rf"\b{letters}\.",
    ):
        if found := re.search(pattern, text):
            return _LETTERS.index(found[1])
    return None


def translation(doc: JSON, results: list[str]) -> JSON:
    """Returns the BLEU of a sentence, and what the figures of the corpus are made of."""
    said, reference = results[0].strip(), doc["target"]
    pair = (reference, said)
    return {"sentence_bleu": sentence_bleu(said, [reference]).score, "bleu": pair, "chrf++": pair, "spbleu": pair}


def corpus_bleu(pairs: Sequence[tuple[str, str]]) -> float:
    """Returns sacrebleu's BLEU of a corpus."""
    return _of_corpus("bleu", pairs)


def corpus_chrf(pairs: Sequence[tuple[str, str]]) -> float:
    """Returns sacrebleu's chrF++ of a corpus."""
    return _of_corpus("chrf++", pairs)


def corpus_spbleu(pairs: Sequence[tuple[str, str]]) -> float:
    """Returns sacrebleu's BLEU over the pieces of FLORES-200; NaN where its tokenizer cannot be had."""
    return math.nan if why_no_spbleu() else _of_corpus("spbleu", pairs)


def _of_corpus(name: str, pairs: Sequence[tuple[str, str]]) -> float:
    references, said = zip(*pairs, strict=True)
    return corpus_value(name, list(said), list(references))


def bits_per_byte(doc: JSON, results: list[tuple[float, bool]]) -> dict[str, tuple[float, int]]:
    """Returns the bits that a text costs, and its UTF-8 bytes."""
    ((log_likelihood, _),) = results
    return {"bits_per_byte": (-log_likelihood / math.log(2), len(doc["text"].encode()))}


def ratio_of_sums(pairs: Sequence[tuple[float, float]]) -> float:
    """Returns the sum of the first over the sum of the second."""
    return sum(first for first, _ in pairs) / sum(second for _, second in pairs)
