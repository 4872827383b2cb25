"""How much text there is of a language, and how much of it is in the token cache, without filling it."""

from dataclasses import dataclass, replace
from pathlib import Path

from transformers import PreTrainedTokenizerBase

from datamodules.sources import TextSource
from datamodules.token_cache import find
from lightning_app.hub import UnreachableError
from lightning_app.languages import Language


@dataclass(frozen=True)
class Supply:
    """Text of one language.

    Attributes:
        language: Which.
        wanted: Tokens wanted of it.
        cached: Tokens in the cache.
        available: Tokens there are; None where the source is out of reach.
        is_exact: Whether ``available`` is counted. Otherwise it comes from the size of the text and a sample of it.
        download_bytes: What the missing tokens take over the network, about.
    """

    language: Language
    wanted: int
    cached: int
    available: int | None
    is_exact: bool
    download_bytes: int

    @property
    def missing(self) -> int:
        """Tokens that still have to be made."""
        most = self.wanted if self.available is None else min(self.wanted, self.available)
        return max(0, most - self.cached)


def measure_supply(
    root: Path, source: TextSource, language: Language, tokenizer: PreTrainedTokenizerBase, wanted: int
) -> Supply:
    """Returns the supply of a language: of its cache where that is enough, else by a look at the source.

    Raises:
        UserError: The source has no such language, or its files cannot be read.
    """
    cache = find(root, source, tokenizer)
    cached = cache.tokens if cache is not None else 0
    if cache is not None and (cache.is_exhausted or cached >= wanted):
        return Supply(language, wanted, cached, cached if cache.is_exhausted else None, cache.is_exhausted, 0)
    try:
        text_bytes, network_bytes = source.sizes()
        batches = source.batches(None)
        documents, _ = next(batches, ([], None))
        getattr(batches, "close", lambda: None)()
    except UnreachableError:
        return Supply(language, wanted, cached, None, False, 0)
    ids = tokenizer(documents, add_special_tokens=False, verbose=False)["input_ids"] if documents else []
    sampled_bytes = sum(len(document.encode()) for document in documents)
    available = round(text_bytes * sum(map(len, ids)) / sampled_bytes) if sampled_bytes else 0
    supply = Supply(language, wanted, cached, available, False, 0)
    share = supply.missing / available if available else 0.0
    return replace(supply, download_bytes=round(network_bytes * share))
