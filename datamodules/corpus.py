"""The corpus of a run: which text, whose tokenizer, and the cache that holds the tokens."""

from dataclasses import dataclass, field
from functools import cached_property, partial
from pathlib import Path

from transformers import PreTrainedTokenizerBase

from datamodules.chunking import Blocks, Chunking, cut_blocks, usable_tokens
from datamodules.sources import Identity, TextSource, open_source
from datamodules.supply import Supply, measure_supply
from datamodules.token_cache import TokenCache, fill, tokenizer_id
from datamodules.tokenizers import train_tokenizer
from lightning_app.errors import UserError
from lightning_app.files import digest
from lightning_app.languages import Language, find_language
from lightning_app.model.base import load_tokenizer


@dataclass(frozen=True)
class Share:
    """A language's part of the training text."""

    language: Language
    share: float


def read_shares(target: Language | None, mixture: dict[str, float] | None) -> list[Share]:
    """Returns the target alone, or the languages of a mixture with shares that sum to one.

    Raises:
        UserError: A share is not above zero, or both are given.
    """
    if not mixture:
        return [Share(target, 1.0)] if target is not None else []
    total = sum(mixture.values())
    if target is not None or total <= 0 or min(mixture.values()) <= 0:
        raise UserError(
            "--data.mixture needs shares above zero and no --language beside it; found "
            f"{mixture} and language {target or 'none'}"
        )
    return [Share(find_language(code), share / total) for code, share in mixture.items()]


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
    """

    source: str
    revision: str
    cache_dir: Path
    tokenizer_name: str | None
    tokenizer_revision: str | None = None
    files: dict[str, str | list[str]] = field(default_factory=dict)
    new_vocabulary: int | None = None
    shares: list[Share] = field(default_factory=list)

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

    @property
    def atlases(self) -> Path:
        """Folder of the atlases counted on this corpus, among others."""
        return self.cache_dir / "atlases"

    def text_id(self, *settings: object) -> str:
        """Digest over which text this is, whose tokens, and further ``settings``."""
        return digest(self.source, self.revision, self.files, self.tokenizer_digest, *settings)

    def fill(self, language: Language, budget: int, chunking: Chunking, block_size: int) -> TokenCache:
        """Returns a token cache with ``budget`` tokens of a language, or all there is; safe on all processes."""
        usable = partial(usable_tokens, chunking, block_size)
        title = f"tokenising {language}"
        return fill(self.cache_dir / "tokens", self._source(language), self.tokenizer, budget, usable, title)

    def supply(self, language: Language, wanted: int) -> Supply:
        """Returns how much text of a language there is and how much is cached, without filling the cache."""
        return measure_supply(self.cache_dir / "tokens", self._source(language), language, self.tokenizer, wanted)

    def require_text(self, languages: list[Language]) -> None:
        """Raises `UserError` where there can be no text of a language, before any of it is read."""
        for language in languages:
            self._source(language)

    def profiling_blocks(self, language: Language, tokens: int, block_size: int) -> tuple[Blocks, Identity]:
        """Returns full blocks without special tokens, as LAPE counts on, and where they come from.

        Raises:
            UserError: The language has less than one block of text.
        """
        cache = self.fill(language, tokens, "plain", block_size)
        blocks = cut_blocks("plain", cache, block_size, tokens, separator=-1)
        if len(blocks) == 0:
            raise UserError(
                f"{language} has {cache.tokens} tokens of text, less than one profiling block of {block_size}; "
                "lower --profiling.block_size"
            )
        return blocks, cache.manifest["key"]

    def _source(self, language: Language) -> TextSource:
        own = self.files.get(language.glotcc)
        return open_source(self.source, language, self.revision, [own] if isinstance(own, str) else own)
