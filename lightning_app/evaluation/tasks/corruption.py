"""Minimal pairs without a grammar: sentences beside a corruption of theirs, as in ScaLA (arXiv 2304.00906)."""

import random

from lightning_app.errors import UserError
from lightning_app.evaluation.tasks.data import Items, as_items, flores_sentences
from lightning_app.files import JSON
from lightning_app.languages import find_language

_FEWEST_WORDS = 5
_SEED = 4242


def minimal_pairs(language: str, flores: str, cache_dir: str, **_: object) -> Items:
    """Returns sentences of FLORES devtest, ``good``, each with a corruption of it, ``bad``, and its ``kind``.

    Raises:
        UserError: The language does not part its words by spaces.
    """
    spoken = find_language(language)
    sentences = flores_sentences(spoken, flores, cache_dir)
    long = [sentence for sentence in sentences if len(sentence.split()) >= _FEWEST_WORDS]
    if len(long) < len(sentences) / 2:
        raise UserError(f"{spoken} does not part its words by spaces, which minimal pairs by corruption need")
    return as_items([_pair(sentence, number) for number, sentence in enumerate(long)])


def _pair(sentence: str, number: int) -> JSON:
    kind = "exchanged" if number % 2 == 0 else "deleted"
    return {
        "good": " ".join(sentence.split()),
        "bad": corrupt(sentence, kind, random.Random(_SEED + number)),
        "kind": kind,
    }


def corrupt(sentence: str, kind: str, drawn: random.Random) -> str:
    """Returns a sentence with two neighbouring words ``exchanged`` or one ``deleted``; first and last word stay.

    >>> corrupt("the cat sat on the old mat", "deleted", random.Random(1))
    'the cat on the old mat'
    >>> sorted(corrupt("a b c d e", "exchanged", random.Random(1)).split()) == ["a", "b", "c", "d", "e"]
    True
    """
    words = sentence.split()
    if kind == "deleted":
        del words[drawn.randrange(1, len(words) - 1)]
        return " ".join(words)
    places = [place for place in range(1, len(words) - 2) if words[place] != words[place + 1]]
    place = drawn.choice(places or [0])
    words[place], words[place + 1] = words[place + 1], words[place]
    return " ".join(words)
