"""Counts the activations of a pool of languages into an atlas, on any number of processes."""

from collections.abc import Collection
from dataclasses import dataclass, field, replace
from pathlib import Path

from filelock import FileLock

from datamodules.chunking import Blocks
from datamodules.corpus import Corpus
from datamodules.sources import Identity, NoTextError
from lightning_app.errors import UserError
from lightning_app.files import JSON
from lightning_app.identity import ModelIdentity
from lightning_app.languages import Language, find_language
from lightning_app.model.base import Base
from lightning_app.model.ffn import find_gated_ffns
from lightning_app.neurons.atlas import Atlas
from lightning_app.neurons.selection import select_subnetworks, suggest_rates
from lightning_app.neurons.subnetworks import Subnetworks
from lightning_app.profiling.counting import GateCounter, LanguageCount
from lightning_app.profiling.processes import Processes
from lightning_app.profiling.settings import ProfilingSettings
from lightning_app.profiling.unfinished import UnfinishedCounts
from lightning_app.progress import short

_TINY = 20
_LOOKS = 20  # times that the stability of a language's set is looked at, at most


@dataclass
class Profiler:
    """Counts a base's activations on a corpus, and keeps them in an atlas. Every process makes one.

    Attributes:
        settings: Which languages, and how much text of each.
        base: On the processes' device, in evaluation mode.
        corpus: Where the text comes from.
        processes: Who counts; the first writes the atlas.
    """

    settings: ProfilingSettings
    base: Base
    corpus: Corpus
    processes: Processes
    _outdated: set[str] = field(default_factory=set, init=False)

    @property
    def block_size(self) -> int:
        """Tokens per block."""
        return self.settings.block_size_on(self.base)

    def count(self, pool: list[Language], optional: Collection[Language] = ()) -> tuple[Atlas, Path]:
        """Returns an atlas that holds every language of ``pool``, and its file. Collective.

        Languages that the atlas holds are not counted again, unless their text is another one now.

        Args:
            pool: Which languages.
            optional: Those of them that are left out, with a line, where there is not enough text of them.

        Raises:
            UserError: The atlas belongs to another model, or a language has no text.
        """
        block_size, say = self.block_size, self.processes.say
        if block_size < self.settings.block_size:
            say(f"profiling in blocks of {block_size} tokens, the model's context, not {self.settings.block_size}")
        path = self.settings.atlas_path(self.corpus.atlases) or self._default_path()
        if path.exists():
            atlas = Atlas.load(path)
            atlas.model.require_same(self.base.identity, "atlas", path)
            atlas.require_settings(self.corpus.tokenizer_digest, block_size, path)
        else:
            atlas = Atlas(self.base.identity, self.corpus.tokenizer_digest, block_size)
        for language in (outdated := _outdated(atlas, pool, self.corpus, self.settings)):
            say(f"the text of {language} is not what atlas {path} counted: counting it again")
            atlas.remove(language)
        self._outdated = {language.glotcc for language in outdated}
        missing = [language for language in pool if language not in atlas]
        self.corpus.require_text([language for language in missing if language not in optional])
        say(f"atlas {path}: {len(pool) - len(missing)} of {len(pool)} languages counted before")
        if self.settings.stop_when_stable is not None:
            self._count_until_stable(missing, pool, atlas, path)
        else:
            # The text of those that must be there first: too little of it is told before the first is counted.
            for language in missing:
                if language not in optional:
                    self._text(language)
            for language in missing:
                self._count_whole(language, language in optional, atlas, path)
        self.processes.wait()
        return atlas, path

    def select(self, atlas: Atlas, pool: list[Language], targets: list[Language]) -> Subnetworks:
        """Returns the neurons of the pool, of which each target has some.

        Raises:
            UserError: One has none.
        """
        settings = self.settings
        subnetworks = settings.select(atlas, pool)
        by_rate = select_subnetworks(atlas, pool, settings.sizes.paper) if settings.sizes.own() else None
        for target in targets:
            neurons = len(subnetworks.of(target))
            if by_rate is not None:
                self.processes.say(
                    f"{target} gets {neurons:,} neurons; one rate of {settings.rate:g} for all would give "
                    f"{len(by_rate.of(target)):,}"
                )
            if neurons >= _TINY:
                continue
            others = suggest_rates(atlas, pool, target, settings.quantile)
            if neurons == 0:
                raise UserError(
                    f"{target} gets no neurons of {atlas.model} at --profiling.rate {settings.rate:g}; it would get "
                    f"{others}. The base may hardly know the language: raise the rate, or lower --profiling.quantile "
                    f"({settings.quantile:g}) where no rate gives any"
                )
            self.processes.say(
                f"warning: {target} gets only {neurons} neurons at --profiling.rate {settings.rate:g}; other rates "
                f"would give {others}"
            )
        return subnetworks

    def _count_whole(self, language: Language, is_optional: bool, atlas: Atlas, path: Path) -> None:
        try:
            count = self._begin(language)
        except NoTextError as error:
            if not is_optional:
                raise
            self.processes.say(f"left out: {error}")
            return
        self._advance(count, len(count.blocks))
        self._finish(count, atlas, path)

    def _text(self, language: Language) -> tuple[Blocks, Identity]:
        return self.corpus.profiling_blocks(language, self.settings.tokens_per_language, self.block_size)

    def _begin(self, language: Language) -> LanguageCount:
        blocks, source = self._text(language)
        counter = GateCounter(find_gated_ffns(self.base.model), self.processes.device)
        return LanguageCount(language, blocks, source, counter)

    def _advance(self, count: LanguageCount, until: int) -> None:
        count.advance(self.base.model, self.processes, until, self.settings.batch_size)

    def _finish(self, count: LanguageCount, atlas: Atlas, path: Path) -> None:
        """Adds a language to the atlas and saves it."""
        counts_HLN, tokens_H = count.halves(self.processes)
        if not counts_HLN.any():
            raise UserError(
                f"no gate of {self.base.identity.name} opened for any of {count.tokens} tokens of {count.language}: it "
                "computes nothing that can be counted; download it again, or try another --trainer.precision"
            )
        atlas.add(count.language, counts_HLN.sum(0), int(tokens_H.sum()), count.source)
        if count.curve:
            curve = [[tokens, round(overlap, 4)] for tokens, overlap in count.curve]
            until = {"rate": self.settings.rate, "quantile": self.settings.quantile, **self.settings.sizes.own()}
            atlas.stability[count.language.glotcc] = {**until, "curve": curve}
        if self.processes.is_first:
            _save_beside_others(atlas, path, self._outdated)
        overlap = f", halves overlap by {count.curve[-1][1]:.3f}" if count.curve else ""
        speed = short(count.tokens_per_second)
        self.processes.say(f"profiling {count.language}: {short(count.tokens)} tokens, {speed} tok/s{overlap}")

    def _count_until_stable(self, missing: list[Language], pool: list[Language], atlas: Atlas, path: Path) -> None:
        """Counts languages side by side, because the set of each depends on all, and stops each at its own time."""
        enough = self.settings.stop_when_stable or 1.0
        kept = UnfinishedCounts(path.with_suffix(".unfinished"), self._looks_depend_on(pool), self.processes)
        counts = [self._begin(language) for language in kept.languages(missing)] if missing else []
        looks = kept.restore(counts) if counts else 0
        if looks:
            self.processes.say(f"going on with {kept.path}: looked {looks} of {_LOOKS} times")
        while True:
            for count in counts:
                if count.is_ended and count.language not in atlas:
                    self._finish(count, atlas, path)
            running = [count for count in counts if not count.is_ended]
            if not running:
                break
            looks += 1
            for count in running:
                self._advance(count, -(-len(count.blocks) * looks // _LOOKS))
            overlaps = self._overlaps(counts, pool, atlas)
            for count in running:
                if overlaps:
                    count.curve.append((count.tokens, overlaps[count.language.glotcc]))
                count.is_ended = bool(overlaps and count.curve[-1][1] >= enough) or count.is_exhausted
            kept.keep(counts, looks)
        kept.remove()

    def _looks_depend_on(self, pool: list[Language]) -> JSON:
        settings = self.settings
        numbers = [settings.tokens_per_language, self.block_size, settings.batch_size, self.processes.count]
        shares = [settings.stop_when_stable, settings.rate, settings.quantile, *settings.sizes.own().items()]
        base = [self.base.identity.fingerprint, self.corpus.tokenizer_digest]
        return {"of": [*base, *numbers, *shares], "pool": [language.glotcc for language in pool]}

    def _overlaps(self, counts: list[LanguageCount], pool: list[Language], atlas: Atlas) -> dict[str, float]:
        """Returns per GlotCC code how far the sets selected from the two halves overlap; nothing while one is empty.

        A language that was counted by an earlier run has no halves: all of its text counts in both.
        """
        halves = {count.language.glotcc: count.halves(self.processes) for count in counts}
        if any((tokens_H == 0).any() for _, tokens_H in halves.values()):
            return {}
        atlases = [replace(atlas, counts=dict(atlas.counts), tokens=dict(atlas.tokens)) for _ in range(2)]
        for half, of_half in enumerate(atlases):
            for code, (counts_HLN, tokens_H) in halves.items():
                of_half.counts[code], of_half.tokens[code] = counts_HLN[half], int(tokens_H[half])
        first, second = (self.settings.select(of_half, pool) for of_half in atlases)
        return self.processes.agree({code: first.neurons[code].overlap(second.neurons[code]) for code in halves})

    def _default_path(self) -> Path:
        identity = self.base.identity
        counted = _counted_id(self.settings, self.corpus, self.block_size, self.base.quantization)
        return self.corpus.atlases / f"{identity.short_name}-{identity.fingerprint[:8]}-{counted}.safetensors"


def _counted_id(settings: ProfilingSettings, corpus: Corpus, block_size: int, quantization: str | None) -> str:
    """Returns a digest over what counts depend on beside the model."""
    until: list[object] = [quantization] if quantization else []
    if settings.stop_when_stable:
        until += [settings.stop_when_stable, settings.rate, settings.quantile, *settings.sizes.own().items()]
    return corpus.text_id(settings.tokens_per_language, block_size, *until)[:8]


def find_atlas(
    settings: ProfilingSettings, corpus: Corpus, identity: ModelIdentity, block_size: int,
    quantization: str | None = None,
) -> Atlas | None:  # fmt: skip
    """Returns the atlas that a `Profiler` would find, by the base's name where its weights were never seen."""
    counted = _counted_id(settings, corpus, block_size, quantization)
    pattern = f"{identity.short_name}-{'?' * 8}-{counted}.safetensors"
    found = sorted(corpus.atlases.glob(pattern), key=lambda path: path.stat().st_mtime)
    path = settings.atlas_path(corpus.atlases) or (found[-1] if found else None)
    if path is None or not path.exists():
        return None
    atlas = Atlas.load(path)
    codes = [find_language(code) for code in atlas.counts]
    for language in _outdated(atlas, codes, corpus, settings):
        atlas.remove(language)
    return atlas


def _outdated(atlas: Atlas, pool: list[Language], corpus: Corpus, settings: ProfilingSettings) -> list[Language]:
    """Returns the languages whose counts are of other text than the corpus has.

    An atlas that is named may hold counts from elsewhere: there only a language's own text speaks against them.

    Raises:
        UserError: A file of own text is not there.
    """
    outdated = []
    for language in pool:
        is_own = language.glotcc in corpus.files
        if language not in atlas or (settings.atlas is not None and not is_own):
            continue
        try:
            is_same = corpus.is_text_of(language, atlas.sources[language.glotcc])
        except UserError:
            if is_own:
                raise
            continue  # no text to count again: the counts are what there is
        if not is_same:
            outdated.append(language)
    return outdated


def _save_beside_others(atlas: Atlas, path: Path, outdated: set[str]) -> None:
    """Saves the atlas, keeping languages that another run has added meanwhile, but no ``outdated`` counts."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with FileLock(path.with_suffix(".lock")):
        if path.exists():
            there = Atlas.load(path)
            there.model.require_same(atlas.model, "atlas", path)
            for code in set(there.counts) - set(atlas.counts) - outdated:
                atlas.counts[code], atlas.tokens[code] = there.counts[code], there.tokens[code]
                atlas.sources[code] = there.sources[code]
                atlas.stability |= {code: there.stability[code]} if code in there.stability else {}
        atlas.save(path)
