"""What a run trains on: blocks of every language, and how many of each."""

from bisect import bisect_right
from collections.abc import Sequence
from dataclasses import dataclass, field
from itertools import accumulate

from datamodules.chunking import Blocks, TrainingChunking
from datamodules.corpus import Corpus
from datamodules.shares import Share
from datamodules.token_cache import TokenCache
from lightning_app.errors import UserError
from lightning_app.files import JSON
from lightning_app.languages import Language, find_language
from lightning_app.progress import short


@dataclass
class TrainingText:
    """Blocks by language, targets first and replay after them, and how many sequences to draw from each.

    Attributes:
        corpus: Where the text is.
        chunking: How it is cut.
        block_size: Tokens per sequence.
        blocks: Of each language.
        wanted: Sequences to draw from each; more than there are where it is passed several times.
        caches: Token caches by GlotCC code.
        notes: Lines for people: which language has less text than was asked for, and what follows.
    """

    corpus: Corpus
    chunking: TrainingChunking
    block_size: int
    blocks: list[Blocks] = field(default_factory=list)
    wanted: list[int] = field(default_factory=list)
    caches: dict[str, TokenCache] = field(default_factory=dict)
    notes: list[str] = field(default_factory=list)

    def read(self, targets: list[Share], replay: list[Share], budget: int, epochs: int) -> None:
        """Fills the caches and takes the blocks of all languages; shares are of the whole text.

        Replay is as often passed as its share takes, and shrinks with the targets' text where that falls short, so
        that its share of the whole stays what was asked.

        Raises:
            UserError: A language gives no sequence.
        """
        budgets = [int(budget * share.share) for share in targets]
        filled = sum(
            self._add_target(share.language, tokens, epochs) for share, tokens in zip(targets, budgets, strict=True)
        )
        for share in replay:
            asked = int(budget * share.share)
            self._add_replay(share.language, asked * filled // sum(budgets), asked)

    def _add_target(self, language: Language, budget: int, epochs: int) -> int:
        """Adds a language's blocks; returns how much of the budget they fill."""
        blocks = self._take(language, budget)
        full = _sequences(blocks, budget)
        sequences = min(full, len(blocks) * epochs)
        tokens = sequences * blocks.tokens // len(blocks)
        if blocks.available < budget:
            self.notes.append(
                f"{language} has {short(blocks.available)} tokens of text, less than the budget of "
                f"{short(budget)}: training on {short(tokens)} tokens{_passes(sequences, blocks)}"
            )
        self.wanted.append(sequences)
        return budget if sequences == full else tokens

    def _add_replay(self, language: Language, budget: int, asked: int) -> None:
        blocks = self._take(language, budget)
        sequences = _sequences(blocks, budget)
        if budget < asked:
            self.notes.append(
                f"replay of {language} shrinks from {short(asked)} to {short(budget)} tokens: its share stays as asked"
            )
        if sequences > len(blocks):
            self.notes.append(
                f"{language} has {short(blocks.available)} tokens of text for a replay of {short(budget)}: "
                f"it is passed over {sequences / len(blocks):.1f} times"
            )
        self.wanted.append(sequences)

    def _take(self, language: Language, budget: int) -> Blocks:
        blocks, cache = self.corpus.training_blocks(language, max(1, budget), self.chunking, self.block_size)
        if len(blocks) == 0:
            raise UserError(
                f"{language} gives no sequence of {self.block_size} tokens: {blocks.available} tokens of "
                f"text, budget {budget}; raise --data.token_budget or lower --data.block_size"
            )
        if gone := cache.left_out:
            every = cache.documents + sum(gone.values())
            reasons = ", ".join(f"{count} {reason}" for reason, count in gone.items())
            self.notes.append(f"{language}: {sum(gone.values())} of {every} documents are left out ({reasons})")
        self.caches[language.glotcc] = cache
        self.blocks.append(blocks)
        return blocks

    def trace(self, places: Sequence[int]) -> list[JSON]:
        """Returns the language, the block and the documents of sequences, by their places in the joined blocks."""
        languages = [find_language(code) for code in self.caches]
        ends = list(accumulate(len(blocks) for blocks in self.blocks))
        found = [(bisect_right(ends, place), place) for place in places]
        traced: list[JSON] = []
        held: dict[int, set[int]] = {}
        for which, place in found:
            block = place - (ends[which] - len(self.blocks[which]))
            documents = self.blocks[which].documents(block)
            held.setdefault(which, set()).update(documents)
            traced.append({"language": languages[which].glotcc, "block": block, "documents": list(documents)})
        known = {
            which: self.corpus.trace(languages[which], self.caches[languages[which].glotcc], numbers)
            for which, numbers in held.items()
        }
        for (which, _), sequence in zip(found, traced, strict=True):
            sequence["documents"] = [known[which][number] for number in sequence["documents"]]
        return traced

    @property
    def sequences(self) -> int:
        """Sequences of the whole run."""
        return sum(self.wanted)

    @property
    def tokens(self) -> float:
        """Tokens of the whole run, padding left out."""
        pairs = zip(self.blocks, self.wanted, strict=True)
        return sum(sequences * blocks.tokens / len(blocks) for blocks, sequences in pairs)

    def identity(self) -> list[object]:
        """Returns what decides which tokens a position in the order means, but for the seed, as plain data."""
        start = [] if self.corpus.start_token is None else [self.corpus.start_token]
        return [[cache.id for cache in self.caches.values()], self.wanted, self.chunking, self.block_size, *start]


def _passes(sequences: int, blocks: Blocks) -> str:
    """Returns how often each of the blocks is read, where that is more than once."""
    return f", which passes over the text {sequences / len(blocks):.1f} times" if sequences > len(blocks) else ""


def _sequences(blocks: Blocks, budget: int) -> int:
    """Returns the sequences that fill a budget, on as many passes as that takes."""
    return len(blocks) if blocks.tokens >= budget else budget * len(blocks) // blocks.tokens
