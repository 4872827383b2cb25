"""LAPE profiling before the optimiser exists: counts activations into an atlas and selects the target's neurons."""

from collections.abc import Callable
from pathlib import Path
from typing import Any, cast

import torch
from filelock import FileLock
from lightning.pytorch import Callback
from torch import Tensor, nn

from datamodules.chunking import Blocks
from datamodules.glotcc import GlotCCDataModule
from lightning_app.atlas import Atlas
from lightning_app.errors import UserError
from lightning_app.ffn import GatedFFN
from lightning_app.files import digest
from lightning_app.languages import PAPER_LANGUAGES, Language, find_language
from lightning_app.module import SparseSubnetModule
from lightning_app.progress import TokenProgress, short
from lightning_app.subnetwork import Subnetwork, select_subnetwork, suggest_rates
from lightning_app.trainer import NeuroglotTrainer

_TINY = 20


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
        atlas: str | None = None,
    ) -> None:
        self.languages = list(languages or PAPER_LANGUAGES)
        self.tokens_per_language, self.block_size, self.batch_size = tokens_per_language, block_size, batch_size
        self.rate, self.quantile = rate, quantile
        self.atlas_path = Path(atlas) if atlas else None
        if min(tokens_per_language, block_size, batch_size) < 1:
            raise UserError("--profiling.tokens_per_language, block_size and batch_size must be above zero")
        if not 0 < rate <= 1 or not 0 < quantile < 1:
            raise UserError(
                f"--profiling.rate is {rate} and quantile {quantile}; expected 0 < rate <= 1, 0 < quantile < 1"
            )

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
        base = cast(nn.Module, module.base).to(trainer.strategy.root_device).eval()
        block_size = self._block_size(cast(Any, base).config.get_text_config(), trainer.is_global_zero)
        path = self.atlas_path or self._default_path(data, module, block_size)
        if path.exists():
            atlas = Atlas.load(path)
            atlas.model.require_same(module.identity, "atlas", path)
            atlas.require_settings(data.tokenizer_digest, block_size, path)
        else:
            atlas = Atlas(module.identity, data.tokenizer_digest, block_size)
        ffns = module.ffns
        missing = [language for language in pool if language not in atlas]
        data.require_text(missing)
        if trainer.is_global_zero:
            print(f"atlas {path}: {len(pool) - len(missing)} of {len(pool)} languages counted before", flush=True)
        for language in missing:
            blocks, source = data.profiling_blocks(language, self.tokens_per_language, block_size)
            counter = GateCounter(ffns, trainer.strategy.root_device)
            self._run(trainer, module, blocks, counter, f"profiling {language}")
            counts_LN = trainer.strategy.reduce(counter.counts_LN, reduce_op="sum")
            atlas.add(language, counts_LN, blocks.tokens, source)
            if trainer.is_global_zero:
                _save_beside_others(atlas, path)
        trainer.strategy.barrier("profiled")
        return atlas, path

    @torch.no_grad()
    def _run(
        self, trainer: NeuroglotTrainer, module: SparseSubnetModule, blocks: Blocks, counter: "GateCounter", title: str
    ) -> None:
        """Runs this process's share of the blocks through the decoder."""
        mine = range(trainer.global_rank, len(blocks), trainer.world_size)
        device = trainer.strategy.root_device
        with counter, TokenProgress(title, blocks.tokens, is_shown=trainer.is_global_zero) as progress:
            for first in range(0, len(mine), self.batch_size):
                batch_BT = torch.stack([blocks[i] for i in mine[first : first + self.batch_size]])
                with trainer.precision_plugin.forward_context():
                    module.hidden_states(batch_BT.to(device, non_blocking=True))
                progress.advance(batch_BT.numel() * trainer.world_size)
            if trainer.is_global_zero:
                progress.write(f"{title}: {short(blocks.tokens)} tokens, {short(progress.tokens_per_second)} tok/s")

    def _block_size(self, config: object, is_shown: bool) -> int:
        longest = getattr(config, "max_position_embeddings", None) or self.block_size
        if longest < self.block_size and is_shown:
            print(
                f"profiling in blocks of {longest} tokens, the model's context, instead of {self.block_size}",
                flush=True,
            )
        return min(longest, self.block_size)

    def _default_path(self, data: GlotCCDataModule, module: SparseSubnetModule, block_size: int) -> Path:
        settings = digest(
            data.source, data.revision, data.files, data.tokenizer_digest, self.tokens_per_language, block_size
        )
        name = module.identity.short_name
        return data.cache_dir / "atlases" / f"{name}-{module.identity.fingerprint[:8]}-{settings[:8]}.safetensors"


class GateCounter:
    """Hooks on the gates that count, per neuron, the tokens with a positive gate; act(x) > 0 exactly where x > 0."""

    def __init__(self, ffns: list[GatedFFN], device: torch.device) -> None:
        self.counts_LN = torch.zeros(len(ffns), ffns[0].neurons, dtype=torch.int64, device=device)
        self._ffns = ffns
        self._handles: list[torch.utils.hooks.RemovableHandle] = []

    def __enter__(self) -> "GateCounter":
        self._handles = [ffn.gate.register_forward_hook(self._hook(ffn)) for ffn in self._ffns]
        return self

    def __exit__(self, *_: object) -> None:
        for handle in self._handles:
            handle.remove()

    def _hook(self, ffn: GatedFFN) -> Callable[[nn.Module, tuple[Tensor, ...], Tensor], None]:
        counts_N = self.counts_LN[ffn.layer]

        def count(module: torch.nn.Module, args: tuple[Tensor, ...], output: Tensor) -> None:
            # Summing in int32 takes half the time of the default int64.
            counts_N.add_((ffn.gate_of(output) > 0).flatten(0, -2).sum(0, dtype=torch.int32))

        return count


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
        atlas.save(path)
