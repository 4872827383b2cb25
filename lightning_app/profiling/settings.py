"""Which languages are compared, on how much text, and how neurons are chosen from the counts."""

import re
import shutil
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from datamodules.shares import named_once
from lightning_app.errors import UserError
from lightning_app.files import replacing
from lightning_app.hub import fetch_published, is_published
from lightning_app.languages import PAPER_LANGUAGES, Language, find_language
from lightning_app.model.base import Base
from lightning_app.neurons.atlas import Atlas
from lightning_app.neurons.selection import select_subnetworks
from lightning_app.neurons.sizes import Sizes, Threshold
from lightning_app.neurons.subnetworks import Subnetworks


@dataclass(frozen=True)
class ProfilingSettings:
    """The keys under ``profiling``.

    Args:
        languages: The pool that neurons are compared over; the target is added where it is missing. The pool changes
            every set.
        tokens_per_language: Tokens to count, at most.
        block_size: Tokens per block; at most the model's context length.
        batch_size: Blocks per forward pass and device.
        rate: Share of all neurons to take, over the whole pool.
        quantile: Where the activation threshold lies among all activation probabilities.
        rates: Rate of a language, where it is another than the pool's.
        parameters: Numbers to train, as 50M: each language's best neurons up to that, in place of a rate.
        threshold: Over the probabilities of the pool, or of each language alone.
        most_per_layer: Neurons of a language in one layer, at most, as a consumer's rank may limit it.
        fewest_per_layer: Neurons of a language in every layer, at least.
        stop_when_stable: Stop counting a language once the sets selected from two halves of its text overlap (Jaccard)
            by this much, 0.99 say. The curve of overlap against tokens is kept in the atlas.
        atlas: Atlas file to read and extend, or hub:OWNER/NAME, of which a copy is extended; one is kept under
            ``data.cache_dir`` where not given.

    Raises:
        UserError: A number is out of its range.
    """

    languages: Sequence[str] = PAPER_LANGUAGES
    tokens_per_language: int = 13_000_000
    block_size: int = 4096
    batch_size: int = 1
    rate: float = 0.05
    quantile: float = 0.95
    rates: dict[str, float] | None = None
    parameters: int | str | None = None
    threshold: Threshold = "pool"
    most_per_layer: int | None = None
    fewest_per_layer: int = 0
    stop_when_stable: float | None = None
    atlas: str | None = None

    def __post_init__(self) -> None:
        if min(self.tokens_per_language, self.block_size, self.batch_size) < 1:
            raise UserError("--profiling.tokens_per_language, block_size and batch_size must be above zero")
        _ = self.sizes  # refuses what is out of range
        if not named_once("--profiling.languages", self.languages):
            raise UserError("--profiling.languages is empty; expected the languages to compare the target with")
        if self.stop_when_stable is not None and not 0 < self.stop_when_stable <= 1:
            raise UserError(
                f"--profiling.stop_when_stable is {self.stop_when_stable}; expected an overlap above 0, up to 1"
            )

    def atlas_path(self, atlases: Path) -> Path | None:
        """Returns the atlas file that is named; of a published one a copy in ``atlases``, where it may be extended."""
        if not self.atlas or not is_published(self.atlas):
            return Path(self.atlas) if self.atlas else None
        found = fetch_published(self.atlas, "atlas.safetensors", "--profiling.atlas")
        name = re.sub(r"\W+", "-", self.atlas.removeprefix("hub:").partition("@")[0])
        copy = atlases / f"{name}-{found.parent.name[:8]}.safetensors"
        if not copy.is_file():
            with replacing(copy) as temporary:
                shutil.copyfile(found, temporary)
        return copy

    def pool(self, targets: Sequence[Language]) -> list[Language]:
        """Returns the languages to compare, the targets among them."""
        return list(dict.fromkeys([*(find_language(code) for code in self.languages), *targets]))

    def block_size_on(self, base: Base) -> int:
        """Returns tokens per block: as asked for, or the model's context where that is shorter."""
        return min(base.context or self.block_size, self.block_size)

    @property
    def sizes(self) -> Sizes:
        """How many neurons each language gets."""
        return Sizes(
            self.rate, self.quantile, self.rates or {}, self.parameters, self.threshold, self.most_per_layer,
            self.fewest_per_layer,
        )  # fmt: skip

    def require_pool(self, pool: list[Language]) -> None:
        """Raises `UserError` where a pool cannot be selected from: it compares nothing, or lacks one with a rate."""
        if len(pool) < 2:
            raise UserError(
                f"the pool is {', '.join(map(str, pool)) or 'empty'}: how special a neuron is to a language shows only "
                "beside others; name more in --profiling.languages"
            )
        self.sizes.require_pool(pool)

    def select(self, atlas: Atlas, pool: list[Language]) -> Subnetworks:
        """Returns the neurons of every language of ``pool``."""
        return select_subnetworks(atlas, pool, self.sizes)
