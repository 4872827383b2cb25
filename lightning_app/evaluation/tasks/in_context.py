"""What a model learns from its context alone, which loss does not show (arXiv 2506.00288): patterns and word lists."""

import random
import re
from collections import Counter
from collections.abc import Sequence

from datamodules.flores import Split
from lightning_app.errors import UserError
from lightning_app.evaluation.tasks.data import Items, as_items, beside_english
from lightning_app.languages import find_language

_WORDS = (
    "apple", "river", "stone", "table", "window", "garden", "paper", "silver", "mountain", "candle",
    "bridge", "winter", "yellow", "market", "summer", "forest", "letter", "button", "orange", "pencil",
    "doctor", "island", "kitchen", "blanket", "hammer", "ticket", "rabbit", "castle", "pocket", "ladder",
)  # fmt: skip
_ITEMS, _SEED = 200, 77
_LENGTH, _CHOICES, _SHOWN = 5, 4, 4
_FEWEST_SEEN, _FEWEST_PAIRS = 8, 30


def copied_patterns(**_: object) -> Items:
    """Returns patterns of five words, each twice whole and once without its end, and the ``words`` to choose from."""
    drawn, items = random.Random(_SEED), []
    for _number in range(_ITEMS):
        words = drawn.sample(_WORDS, _LENGTH)
        shown = drawn.randrange(1, _LENGTH)
        items.append({"pattern": " ".join([*words, *words, *words[:shown]]), "words": words, "answer": shown})
    return as_items(items)


def word_lists(language: str, flores: str, cache_dir: str, flores_split: Split = "devtest", **_: object) -> Items:
    """Returns English words with four shown translations of others before them, and four translations to choose from.

    Raises:
        UserError: Too few words could be paired, in a language that does not part its words by spaces, say.
    """
    spoken = find_language(language)
    if spoken == find_language("en"):
        raise UserError("a word list needs another language than English")
    theirs, english = zip(*beside_english(spoken, flores, cache_dir, flores_split), strict=True)
    pairs = paired_words(english, theirs)
    if len(pairs) < _FEWEST_PAIRS:
        raise UserError(
            f"only {len(pairs)} words of {spoken} could be paired with English ones, and a list needs {_FEWEST_PAIRS}"
        )
    drawn, items = random.Random(_SEED), []
    for word, translation in pairs:
        others = [pair for pair in pairs if word not in pair and translation not in pair]
        shown = drawn.sample(others, _SHOWN)
        rest = [pair for pair in others if pair not in shown]
        choices = [translation, *(wrong for _, wrong in drawn.sample(rest, _CHOICES - 1))]
        drawn.shuffle(choices)
        examples = "".join(f"{left} = {right}\n" for left, right in shown)
        answer = choices.index(translation)
        items.append({"examples": examples, "word": word, "translations": choices, "answer": answer})
    return as_items(items)


def paired_words(english: Sequence[str], theirs: Sequence[str]) -> list[tuple[str, str]]:
    """Returns words that stand in the same parallel sentences, surest first: each the other's highest Dice coefficient.

    >>> paired_words(["the cat", "a cat", "one dog"] * 9, ["qa li", "qa ma", "ro ta"] * 9)[:2]
    [('cat', 'qa'), ('dog', 'ro')]
    """
    left, right = ([set(re.findall(r"[^\W\d_]{2,}", text.lower())) for text in texts] for texts in (english, theirs))
    seen_left, seen_right = (Counter(word for words in each for word in words) for each in (left, right))
    together: Counter[tuple[str, str]] = Counter()
    for ours, others in zip(left, right, strict=True):
        some = [word for word in others if seen_right[word] >= _FEWEST_SEEN]
        together.update((word, other) for word in ours if seen_left[word] >= _FEWEST_SEEN for other in some)
    dice = {pair: 2 * count / (seen_left[pair[0]] + seen_right[pair[1]]) for pair, count in together.items()}
    order = sorted(dice, key=lambda pair: (-dice[pair], pair))
    best_left, best_right = ({pair[side]: pair for pair in reversed(order)} for side in (0, 1))
    mutual = [pair for pair in order if best_left[pair[0]] == best_right[pair[1]] == pair and pair[0] != pair[1]]
    return mutual[:_ITEMS]
