"""LAPE profiling before the optimiser exists: counts activations into an atlas and selects the target's neurons."""

from dataclasses import replace
from pathlib import Path
from typing import cast

from filelock import FileLock
from lightning.pytorch import Callback
from torch import nn
from transformers import PreTrainedModel

from callbacks.counting import GateCounter, LanguageCount
from datamodules.glotcc import GlotCCDataModule
from lightning_app import lape
from lightning_app.atlas import Atlas
from lightning_app.errors import UserError
from lightning_app.files import digest
from lightning_app.identity import ModelIdentity
from lightning_app.languages import PAPER_LANGUAGES, Language, find_language
from lightning_app.module import SparseSubnetModule
from lightning_app.progress import short
from lightning_app.subnetwork import Subnetwork, select_subnetwork, suggest_rates
from lightning_app.trainer import NeuroglotTrainer

_TINY = 20
_LOOKS = 20  # times that the stability of a language's set is looked at, at most


class LAPEProfiling(Callback):
    """Finds the neurons that speak the target language, unless ``model.subnetwork`` already names them.

    For every language of the pool, monolingual text runs through the decoder without output head, and per neuron the
    tokens with a positive gate are counted. Counts go into an atlas: languages that it holds are not counted again.

    Args:
        languages: The pool that neurons are compared over; the target is added where it is missing. The pool changes
            every set.
        tokens_per_language: Tokens to count, at most.
        block_size: Tokens per block; at most the model's context length.
        batch_size: Blocks per forward pass and device.
        rate: Share of all neurons to take, over the whole pool.
        quantile: Where the activation threshold lies among all activation probabilities.
        stop_when_stable: Stop counting a language once the sets selected from two halves of its text overlap (Jaccard)
            by this much, 0.99 say. The curve of overlap against tokens is kept in the atlas.
        atlas: Atlas file to read and extend; one is kept under ``data.cache_dir`` where not given.

    Raises:
        UserError: The language gets no neurons, or the atlas belongs to another model.
    """

    def __init__(
        self,
        languages: list[str] | None = None,
        tokens_per_language: int = 13_000_000,
        block_size: int = 4096,
        batch_size: int = 1,
        rate: float = 0.05,
        quantile: float = 0.95,
        stop_when_stable: float | None = None,
        atlas: str | None = None,
    ) -> None:
        self.languages = list(languages or PAPER_LANGUAGES)
        self.tokens_per_language, self.block_size, self.batch_size = tokens_per_language, block_size, batch_size
        self.rate, self.quantile, self.stop_when_stable = rate, quantile, stop_when_stable
        self.atlas_path = Path(atlas) if atlas else None
        if min(tokens_per_language, block_size, batch_size) < 1:
            raise UserError("--profiling.tokens_per_language, block_size and batch_size must be above zero")
        if not 0 < rate <= 1 or not 0 < quantile < 1:
            raise UserError(
                f"--profiling.rate is {rate} and quantile {quantile}; expected 0 < rate <= 1, 0 < quantile < 1"
            )
        if stop_when_stable is not None and not 0 < stop_when_stable <= 1:
            raise UserError(f"--profiling.stop_when_stable is {stop_when_stable}; expected an overlap above 0, up to 1")

    def setup(self, trainer: NeuroglotTrainer, pl_module: SparseSubnetModule, stage: str) -> None:
        """Profiles and selects; in Lightning's order of hooks the optimiser does not exist yet."""
        is_profiling = getattr(trainer, "is_profiling", False)
        wants = stage == "fit" and pl_module.needs_subnetwork and pl_module.subnetwork_path is None
        if not (is_profiling or wants):
            return
        pool = self.pool(pl_module.language)
        atlas, path = self.count(trainer, pl_module, pool)
        if is_profiling:
            if trainer.is_global_zero:
                held = ", ".join(f"{code} {short(tokens)}" for code, tokens in atlas.tokens.items())
                print(f"atlas {path}: tokens {held}", flush=True)
                print(
                    f"select with: python main.py subnetwork --atlas {path} --profiling.rate {self.rate:g}", flush=True
                )
        else:
            pl_module.use(self._select(trainer, atlas, path, pool, pl_module.target), path)

    def pool(self, target: Language | None) -> list[Language]:
        """Returns the languages to compare, the target among them."""
        pool = [find_language(code) for code in self.languages]
        return pool if target is None or target in pool else [*pool, target]

    def _select(
        self, trainer: NeuroglotTrainer, atlas: Atlas, path: Path, pool: list[Language], target: Language
    ) -> Subnetwork:
        subnetwork = select_subnetwork(atlas, pool, self.rate, self.quantile)
        neurons = len(subnetwork.of(target))
        others = suggest_rates(atlas, pool, target, self.quantile)
        if neurons == 0:
            raise UserError(
                f"{target} gets no neurons of {atlas.model} at --profiling.rate {self.rate:g}; it would get {others}. "
                "The base may hardly know the language: raise the rate, or lower --profiling.quantile "
                f"({self.quantile:g}) where no rate gives any"
            )
        if neurons < _TINY and trainer.is_global_zero:
            print(
                f"warning: {target} gets only {neurons} neurons at --profiling.rate {self.rate:g}; other rates would "
                f"give {others}",
                flush=True,
            )
        return subnetwork

    def count(self, trainer: NeuroglotTrainer, module: SparseSubnetModule, pool: list[Language]) -> tuple[Atlas, Path]:
        """Returns an atlas that holds every language of ``pool``, and its file. Collective; rank 0 writes."""
        data = trainer.datamodule
        cast(nn.Module, module.base).to(trainer.strategy.root_device).eval()
        block_size = self.block_size_on(module.base)
        if block_size < self.block_size and trainer.is_global_zero:
            print(f"profiling in blocks of {block_size} tokens, the model's context, not {self.block_size}", flush=True)
        path = self.atlas_path or self._default_path(data, module, block_size)
        if path.exists():
            atlas = Atlas.load(path)
            atlas.model.require_same(module.identity, "atlas", path)
            atlas.require_settings(data.tokenizer_digest, block_size, path)
        else:
            atlas = Atlas(module.identity, data.tokenizer_digest, block_size)
        missing = [language for language in pool if language not in atlas]
        data.require_text(missing)
        if trainer.is_global_zero:
            print(f"atlas {path}: {len(pool) - len(missing)} of {len(pool)} languages counted before", flush=True)
        counts = (self._begin(trainer, module, language, block_size) for language in missing)
        if self.stop_when_stable is not None:
            self._count_until_stable(trainer, module, list(counts), pool, atlas, path)
        else:
            for count in counts:
                count.advance(trainer, module, len(count.blocks), self.batch_size)
                self._finish(trainer, count, atlas, path)
        trainer.strategy.barrier("profiled")
        return atlas, path

    def _begin(
        self, trainer: NeuroglotTrainer, module: SparseSubnetModule, language: Language, block_size: int
    ) -> LanguageCount:
        blocks, source = trainer.datamodule.profiling_blocks(language, self.tokens_per_language, block_size)
        return LanguageCount(language, blocks, source, GateCounter(module.ffns, trainer.strategy.root_device))

    def _finish(self, trainer: NeuroglotTrainer, count: LanguageCount, atlas: Atlas, path: Path) -> None:
        """Adds a language to the atlas and saves it."""
        counts_HLN, tokens_H = count.halves(trainer)
        atlas.add(count.language, counts_HLN.sum(0), int(tokens_H.sum()), count.source)
        if count.curve:
            curve = [[tokens, round(overlap, 4)] for tokens, overlap in count.curve]
            atlas.stability[count.language.glotcc] = {"rate": self.rate, "quantile": self.quantile, "curve": curve}
        if trainer.is_global_zero:
            _save_beside_others(atlas, path)
            overlap = f", halves overlap by {count.curve[-1][1]:.3f}" if count.curve else ""
            speed = short(count.tokens_per_second)
            print(f"profiling {count.language}: {short(count.tokens)} tokens, {speed} tok/s{overlap}", flush=True)

    def _count_until_stable(
        self,
        trainer: NeuroglotTrainer,
        module: SparseSubnetModule,
        counts: list[LanguageCount],
        pool: list[Language],
        atlas: Atlas,
        path: Path,
    ) -> None:
        """Counts languages side by side, because the set of each depends on all, and stops each at its own time."""
        running = counts
        for look in range(1, _LOOKS + 1):
            for count in running:
                count.advance(trainer, module, -(-len(count.blocks) * look // _LOOKS), self.batch_size)
            overlaps = self._overlaps(trainer, counts, pool, atlas)
            for count in running:
                if overlaps:
                    count.curve.append((count.tokens, overlaps[count.language.glotcc]))
                is_stable = overlaps and count.curve[-1][1] >= cast(float, self.stop_when_stable)
                if is_stable or count.is_exhausted:
                    self._finish(trainer, count, atlas, path)
            running = [count for count in running if count.language not in atlas]

    def _overlaps(
        self, trainer: NeuroglotTrainer, counts: list[LanguageCount], pool: list[Language], atlas: Atlas
    ) -> dict[str, float]:
        """Returns per GlotCC code how far the sets selected from the two halves overlap; nothing while one is empty.

        A language that was counted by an earlier run has no halves: all of its text counts in both.
        """
        halves = {count.language.glotcc: count.halves(trainer) for count in counts}
        if any((tokens_H == 0).any() for _, tokens_H in halves.values()):
            return {}
        atlases = [replace(atlas, counts=dict(atlas.counts), tokens=dict(atlas.tokens)) for _ in range(2)]
        for half, of_half in enumerate(atlases):
            for code, (counts_HLN, tokens_H) in halves.items():
                of_half.counts[code], of_half.tokens[code] = counts_HLN[half], int(tokens_H[half])
        first, second = (select_subnetwork(of_half, pool, self.rate, self.quantile) for of_half in atlases)
        overlaps = {code: lape.overlap(first.neurons[code], second.neurons[code]) for code in halves}
        return trainer.strategy.broadcast(overlaps)

    def block_size_on(self, model: PreTrainedModel) -> int:
        """Returns tokens per block: as asked for, or the model's context where that is shorter."""
        longest = getattr(model.config.get_text_config(), "max_position_embeddings", None)
        return min(longest or self.block_size, self.block_size)

    def _default_path(self, data: GlotCCDataModule, module: SparseSubnetModule, block_size: int) -> Path:
        name = f"{module.identity.short_name}-{module.identity.fingerprint[:8]}-{self._settings(data, block_size)}"
        return data.cache_dir / "atlases" / f"{name}.safetensors"

    def _settings(self, data: GlotCCDataModule, block_size: int) -> str:
        """Returns a digest over what the counts depend on beside the model."""
        until = [self.stop_when_stable, self.rate, self.quantile] if self.stop_when_stable is not None else []
        text = (data.source, data.revision, data.files, data.tokenizer_digest)
        return digest(*text, self.tokens_per_language, block_size, *until)[:8]

    def existing_atlas(self, data: GlotCCDataModule, identity: ModelIdentity, block_size: int) -> Atlas | None:
        """Returns the atlas that a run would find, by the base's name where its weights were never seen."""
        pattern = f"{identity.short_name}-{'?' * 8}-{self._settings(data, block_size)}.safetensors"
        found = sorted((data.cache_dir / "atlases").glob(pattern), key=lambda path: path.stat().st_mtime)
        path = self.atlas_path or (found[-1] if found else None)
        return Atlas.load(path) if path is not None and path.exists() else None


def _save_beside_others(atlas: Atlas, path: Path) -> None:
    """Saves the atlas, keeping languages that another run has added to the file meanwhile."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with FileLock(path.with_suffix(".lock")):
        if path.exists():
            there = Atlas.load(path)
            there.model.require_same(atlas.model, "atlas", path)
            for code in set(there.counts) - set(atlas.counts):
                atlas.counts[code], atlas.tokens[code] = there.counts[code], there.tokens[code]
                atlas.sources[code] = there.sources[code]
                atlas.stability |= {code: there.stability[code]} if code in there.stability else {}
        atlas.save(path)
