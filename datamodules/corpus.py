"""The corpus of a run: which text, whose tokenizer, and the cache that holds the tokens."""

from collections.abc import Callable, Collection, Iterator
from dataclasses import dataclass, field
from functools import cached_property, partial
from pathlib import Path
from typing import cast

from torch import Tensor
from transformers import PreTrainedTokenizerBase

from datamodules.chunking import Blocks, Chunking, TrainingChunking, cut_blocks, usable_tokens
from datamodules.filters import TextFilters
from datamodules.held_out import HeldOutText
from datamodules.paper import PaperChunks
from datamodules.provenance import trace_documents
from datamodules.shares import Share
from datamodules.sources import HubSource, Identity, NoTextError, TextSource, open_source
from datamodules.supply import Supply, measure_supply
from datamodules.token_cache import TokenCache, fill, tokenizer_id
from datamodules.tokenizers import start_token, train_tokenizer
from lightning_app.errors import UserError
from lightning_app.files import JSON, digest
from lightning_app.languages import Language
from lightning_app.model.base import load_tokenizer


@dataclass
class Corpus:
    """Text in any number of languages, tokenised once into caches that training, profiling and later runs share.

    Attributes:
        source: Data set on the hub with one configuration per GlotCC code, or a folder in its layout.
        revision: Branch, tag or commit of the data set.
        cache_dir: Where token caches, tokenizers and atlases are kept.
        tokenizer_name: Hub name or folder.
        tokenizer_revision: Branch, tag or commit of the tokenizer.
        files: Own text instead of the data set's, by GlotCC code.
        new_vocabulary: Entries of a tokenizer to train on ``shares``, instead of loading one.
        shares: Languages of the training text.
        filters: What is left out of the training text; profiling counts on all of it.
        held_out: Returns what a language is measured on.
    """

    source: str
    revision: str
    cache_dir: Path
    tokenizer_name: str | None
    tokenizer_revision: str | None = None
    files: dict[str, str | list[str]] = field(default_factory=dict)
    new_vocabulary: int | None = None
    shares: list[Share] = field(default_factory=list)
    filters: TextFilters = field(default_factory=lambda: TextFilters(flores="keep"))
    held_out: Callable[[Language], HeldOutText] = lambda language: HeldOutText((), language.script)

    @cached_property
    def tokenizer(self) -> PreTrainedTokenizerBase:
        """The tokenizer, loaded or trained on first use.

        Raises:
            UserError: It cannot be loaded, or none is named.
        """
        if self.new_vocabulary is not None:
            sources = [(self._source(share.language), share.share) for share in self.shares]
            return train_tokenizer(sources, self.new_vocabulary, self.cache_dir)
        if self.tokenizer_name is None:
            raise UserError("no tokenizer: name a --model.base, a --data.tokenizer or --data.train_tokenizer")
        return load_tokenizer(self.tokenizer_name, self.tokenizer_revision)

    @property
    def tokenizer_digest(self) -> str:
        """Digest over everything that decides which ids a text gets."""
        return tokenizer_id(self.tokenizer)

    @cached_property
    def start_token(self) -> int | None:
        """The BOS token, where the tokenizer itself puts it at the head of a text."""
        return start_token(self.tokenizer)

    @property
    def atlases(self) -> Path:
        """Folder of the atlases counted on this corpus, among others."""
        return self.cache_dir / "atlases"

    def text_id(self, *settings: object) -> str:
        """Digest over which data set this is, whose tokens, and further ``settings``; `is_text_of` knows own text."""
        # The empty table keeps the names that files had while own text was a part of them.
        return digest(self.source, self.revision, {}, self.tokenizer_digest, *settings)

    def is_text_of(self, language: Language, source: Identity) -> bool:
        """Tells whether ``source``, as `profiling_blocks` returns it, is a language's text here, asking no network.

        Raises:
            UserError: A file of the language's own text is not there.
        """
        text = self._source(language)
        here = text.identity_without_revision() if isinstance(text, HubSource) else text.identity()
        return here.items() <= source.items()

    def fill(self, language: Language, budget: int, chunking: Chunking, block_size: int) -> TokenCache:
        """Returns a token cache with ``budget`` tokens of a language, or all there is; safe on all processes."""
        specials = 1 + (self.start_token is not None)
        usable = partial(usable_tokens, chunking, block_size, specials=specials)
        title = f"tokenising {language}"
        source = self._training_source(language) if chunking != "plain" else self._source(language)
        filled = partial(fill, self.cache_dir / "tokens", source, self.tokenizer, budget, usable, title)
        cache = filled()
        # The paper's script takes special tokens spelled in a document for real ones.
        return filled(is_text=False) if chunking == "paper" and cache.spells_special else cache

    def supply(self, language: Language, wanted: int, is_trained: bool = False) -> Supply:
        """Returns how much text of a language there is and how much is cached, without filling the cache."""
        try:
            source = self._training_source(language) if is_trained else self._source(language)
        except UserError:  # what it is measured on is out of reach, which fit will say
            source = self._source(language)
        return measure_supply(self.cache_dir / "tokens", source, language, self.tokenizer, wanted)

    def sizes(self, language: Language) -> tuple[int, int]:
        """Returns about how many bytes of text a language has, and how many are read over the network for them.

        Raises:
            UserError: There is no text of it, or it cannot be reached.
        """
        return self._source(language).sizes()

    def require_text(self, languages: list[Language]) -> None:
        """Raises `UserError` where there can be no text of a language, before any of it is read."""
        for language in languages:
            self._source(language)

    def training_blocks(
        self, language: Language, budget: int, chunking: TrainingChunking, block_size: int
    ) -> tuple[Blocks, TokenCache]:
        """Returns blocks with ``budget`` tokens of a language, or with all there is, and their cache; see `fill`."""
        wanted = budget
        while True:
            cache = self.fill(language, wanted, chunking, block_size)
            blocks = self._cut(chunking, cache, budget, block_size)
            if blocks.available >= budget or cache.is_exhausted:
                return blocks, cache
            wanted += budget - blocks.available  # documents of too few characters do not count

    def profiling_blocks(self, language: Language, tokens: int, block_size: int) -> tuple[Blocks, Identity]:
        """Returns full blocks without special tokens, as LAPE counts on, and where they come from.

        Raises:
            NoTextError: The language has less than one block of text.
        """
        cache = self.fill(language, tokens, "plain", block_size)
        blocks = self._cut("plain", cache, tokens, block_size)
        if len(blocks) == 0:
            raise NoTextError(
                f"{language} has {cache.tokens} tokens of text, less than one profiling block of {block_size}; "
                "lower --profiling.block_size"
            )
        return blocks, cache.manifest["key"]

    def sample(self, language: Language, sequences: int, tokens: int, special: bool = True) -> Iterator[Tensor]:
        """Returns up to ``sequences`` blocks of ``tokens`` ids, int64 (``tokens``,): the first of a language's text.

        They are packed as in training, or without ``special`` tokens as in profiling; the cache is filled as needed.

        Raises:
            NoTextError: The language has less than one block of text.
        """
        chunking: Chunking = "packed" if special else "plain"
        budget = sequences * tokens
        blocks = self._cut(chunking, self.fill(language, budget, chunking, tokens), budget, tokens)
        if len(blocks) == 0:
            raise UserError(
                f"{language} has {blocks.available} tokens of text, less than one sequence of {tokens}; "
                "ask for shorter sequences or give more text"
            )
        return (blocks[index] for index in range(len(blocks)))

    def trace(self, language: Language, cache: TokenCache, numbers: Collection[int]) -> dict[int, JSON]:
        """Returns what is known of documents by their number in the cache; see `trace_documents`."""
        return trace_documents(self._source(language), cache, self.tokenizer, numbers)

    def _cut(self, chunking: Chunking, cache: TokenCache, budget: int, block_size: int) -> Blocks:
        if chunking == "paper":
            return PaperChunks(cache, block_size, budget, self.tokenizer)
        end = cast(int, self.tokenizer.eos_token_id)
        return cut_blocks(chunking, cache, block_size, budget, end, self.start_token)

    def text(self, language: Language) -> TextSource:
        """Returns all text of a language, nothing left out; raises `UserError` where there can be none."""
        return self._source(language)

    def _training_source(self, language: Language) -> TextSource:
        source = self._source(language)
        if language not in [share.language for share in self.shares]:
            return source
        return self.filters.on(source, lambda: self.held_out(language))

    def _source(self, language: Language) -> TextSource:
        own = self.files.get(language.glotcc)
        return open_source(self.source, language, self.revision, [own] if isinstance(own, str) else own)
