"""Which of two answers native speakers prefer: pairs without names, their judgements, and what these come to."""

import math
import random
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from itertools import combinations
from typing import Literal

from lightning_app.files import digest

Judgement = Literal["adapted", "base", "tie"]
Side = Literal["A", "B"]


@dataclass(frozen=True)
class Answers:
    """What two models answer to a prompt."""

    prompt: str
    base: str
    adapted: str


@dataclass(frozen=True)
class Pair:
    """Two answers as a judge sees them.

    Attributes:
        name: Of the pair: of which sheet, and its number on it.
        prompt: What was answered.
        a: The one answer.
        b: The other.
        adapted: Which of them is the adapted model's; not for the judge's eyes.
    """

    name: str
    prompt: str
    a: str
    b: str
    adapted: Side


def judged(adapted: Side, better: Side | None) -> Judgement:
    """Returns whose answer is better.

    >>> judged("A", "A"), judged("B", "A"), judged("B", None)
    ('adapted', 'base', 'tie')
    """
    if better is None:
        return "tie"
    return "adapted" if better == adapted else "base"


def blind_pairs(answers: Sequence[Answers], seed: int) -> list[Pair]:
    """Returns the answers in random order, the adapted model's on either side equally often.

    Where both models say the same there is nothing to judge; such answers are left out.
    """
    differing = [each for each in answers if each.base != each.adapted]
    sheet = digest(seed, [[each.prompt, each.base, each.adapted] for each in differing])[:6]
    chance = random.Random(seed)
    sides: list[Side] = ["A" if number % 2 else "B" for number in range(len(differing))]
    chance.shuffle(differing)
    chance.shuffle(sides)
    return [
        Pair(
            f"{sheet}-{number}",
            each.prompt,
            each.adapted if side == "A" else each.base,
            each.base if side == "A" else each.adapted,
            side,
        )
        for number, (each, side) in enumerate(zip(differing, sides, strict=True), start=1)
    ]


@dataclass(frozen=True)
class Tally:
    """How often the adapted model's answer was the better one.

    Attributes:
        wins: So often.
        ties: Neither was.
        losses: The base's was.
    """

    wins: int
    ties: int
    losses: int

    @classmethod
    def of(cls, judgements: Sequence[Judgement]) -> "Tally":
        """Counts."""
        found = Counter(judgements)
        return cls(found["adapted"], found["tie"], found["base"])

    @property
    def decided(self) -> int:
        """Judgements that are no ties."""
        return self.wins + self.losses

    @property
    def interval(self) -> tuple[float, float]:
        """Exact 95 % interval (Clopper and Pearson 1934) of the share of wins among the decided."""
        return exact_interval(self.wins, self.decided)

    @property
    def p(self) -> float:
        """Of the exact two-sided sign test: the chance of a count as uneven, were either answer as good.

        >>> Tally(9, 4, 1).p, Tally(3, 0, 3).p, Tally(0, 5, 0).p
        (0.021484375, 1.0, 1.0)
        """
        fewer = min(self.wins, self.losses)
        tail = sum(math.comb(self.decided, count) for count in range(fewer + 1))
        return min(1.0, 2 * tail / 2**self.decided)


def exact_interval(wins: int, decided: int, level: float = 0.95) -> tuple[float, float]:
    """Returns the Clopper-Pearson interval of a share.

    >>> [round(end, 4) for end in exact_interval(9, 10)]
    [0.555, 0.9975]
    >>> exact_interval(0, 0)
    (0.0, 1.0)
    """
    tail = (1 - level) / 2
    low = _share_where(lambda share: 1 - _at_most(wins - 1, decided, share) < tail) if wins else 0.0
    high = _share_where(lambda share: _at_most(wins, decided, share) > tail) if wins < decided else 1.0
    return low, high


def _share_where(is_below: Callable[[float], bool]) -> float:
    """Returns where ``is_below`` ceases to hold, between 0 and 1."""
    low, high = 0.0, 1.0
    for _ in range(60):
        middle = (low + high) / 2
        low, high = (middle, high) if is_below(middle) else (low, middle)
    return (low + high) / 2


def _at_most(count: int, trials: int, share: float) -> float:
    """Returns the binomial probability of at most ``count`` successes, for a share between 0 and 1."""
    yes, no = math.log(share), math.log1p(-share)
    whole = math.lgamma(trials + 1)
    return math.fsum(
        math.exp(whole - math.lgamma(k + 1) - math.lgamma(trials - k + 1) + k * yes + (trials - k) * no)
        for k in range(count + 1)
    )


def by_majority(judges: Sequence[Mapping[str, Judgement]]) -> dict[str, Judgement]:
    """Returns what most judges of each pair say; a tie where as many prefer the one as the other.

    Pairs, not judgements, are independent of one another: only their tally has an honest interval.

    >>> by_majority([{"1": "adapted", "2": "base"}, {"1": "tie", "2": "adapted"}])
    {'1': 'adapted', '2': 'tie'}
    """
    names = dict.fromkeys(name for judge in judges for name in judge)
    tallies = {name: Tally.of([judge[name] for judge in judges if name in judge]) for name in names}
    return {
        name: "adapted" if each.wins > each.losses else "base" if each.losses > each.wins else "tie"
        for name, each in tallies.items()
    }


@dataclass(frozen=True)
class Agreement:
    """How far judges agree.

    Attributes:
        pairs: Pairs that at least two judged.
        share: Of two judges' judgements of a pair, how many are equal; NaN where no two judged one.
        alpha: Krippendorff's, nominal: 1 is full agreement, 0 what chance gives; NaN where all say the same one thing.
    """

    pairs: int
    share: float
    alpha: float

    @classmethod
    def of(cls, judges: Sequence[Mapping[str, str]]) -> "Agreement":
        """Compares judges, each by what they say of each pair that they judged (Krippendorff 2011, nominal data)."""
        names = dict.fromkeys(name for judge in judges for name in judge)
        every = [[judge[name] for judge in judges if name in judge] for name in names]
        every = [said for said in every if len(said) > 1]
        twos = [first == second for said in every for first, second in combinations(said, 2)]
        counts = Counter(word for said in every for word in said)
        total = counts.total()
        observed = sum(
            2 * sum(first != second for first, second in combinations(said, 2)) / (len(said) - 1) for said in every
        )
        expected = total**2 - sum(count**2 for count in counts.values())
        alpha = 1 - (total - 1) * observed / expected if expected else math.nan
        return cls(len(every), sum(twos) / len(twos) if twos else math.nan, alpha)
