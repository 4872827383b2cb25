"""The LightningDataModule: GlotCC (or other text) for training, FLORES for validation."""

from collections.abc import Callable
from pathlib import Path
from typing import Any, cast

import torch
from lightning.pytorch import LightningDataModule
from lightning.pytorch.utilities.rank_zero import rank_zero_only
from torch import Tensor
from torch.utils.data import ConcatDataset, DataLoader, Dataset
from transformers import PreTrainedTokenizerBase

from datamodules.chunking import Blocks, Chunking, cut_blocks, pad_batch, usable_tokens
from datamodules.flores import FLORES_PLUS, FloresBlock, Split, is_at_hand, join_blocks, read_flores
from datamodules.mixture import read_shares
from datamodules.order import ResumableBatches, training_order
from datamodules.prompts import read_prompts
from datamodules.sources import open_source
from datamodules.supply import Supply, measure_supply
from datamodules.token_cache import TokenCache, fill, tokenizer_id
from datamodules.tokenizers import load_tokenizer, train_tokenizer
from lightning_app.errors import UserError
from lightning_app.languages import Language, find_language
from lightning_app.progress import short

Batch = dict[str, Tensor]


class GlotCCDataModule(LightningDataModule):
    """Streams a language's documents into a token cache and serves blocks of it; FLORES dev validates.

    Training, profiling and every later run read the cache: the same tokens in the same order, whatever the number of
    workers or processes. Its state is the number of sequences that all processes consumed.

    Args:
        language: Target language: a code such as ``cy``, a name, or a GlotCC code.
        mixture: Languages and their shares, to train a base model from scratch; replaces ``language``.
        source: GlotCC repository on the hub, or a folder in its layout.
        revision: Branch, tag or commit of the repository.
        files: Own text instead, per language: .txt, .jsonl or .parquet files, folders or patterns.
        flores: ``openlanguagedata/flores_plus`` (gated), ``tarball`` (FLORES-200, public), a .tar.gz, or a folder.
        watch: Languages whose loss is watched beside the target's, to measure forgetting.
        token_budget: Tokens to train on, at most; 0.1 to 100 million is usual.
        epochs: Passes over the text where it is shorter than the budget.
        block_size: Tokens per training sequence and at most per validation block.
        chunking: ``packed`` (documents back to back with EOS between, no padding) or ``paper`` (documents cut into
            chunks, chunks under 256 tokens dropped, padded; padding is not counted in the loss).
        batch_size: Sequences per device and forward pass.
        validation_batch_size: FLORES blocks per device and forward pass.
        tokenizer: Name or folder; the base model's where not given.
        train_tokenizer: Vocabulary size of a tokenizer to train on the mixture, for a base model from scratch.
        prompts: Text file with one prompt a line for ``predict``; else beginnings of FLORES devtest sentences.
        cache_dir: Where token caches, tokenizers and atlases are kept.
        num_workers: Loader processes; reading the cache needs none.
        seed: Of the order of training.
    """

    allow_zero_length_dataloader_with_multiple_devices = True

    def __init__(
        self,
        language: str | None = None,
        mixture: dict[str, float] | None = None,
        source: str = "cis-lmu/GlotCC-V1",
        revision: str = "main",
        files: dict[str, str | list[str]] | None = None,
        flores: str = FLORES_PLUS,
        watch: list[str] | None = None,
        token_budget: int = 100_000_000,
        epochs: int = 1,
        block_size: int = 512,
        chunking: Chunking = "packed",
        batch_size: int = 2,
        validation_batch_size: int = 8,
        tokenizer: str | None = None,
        train_tokenizer: int | None = None,
        prompts: str | None = None,
        cache_dir: str = "cache",
        num_workers: int = 0,
        seed: int = 0,
    ) -> None:
        super().__init__()
        self.target = find_language(language) if language else None
        self.shares = read_shares(self.target, mixture)
        self.watched = [find_language(code) for code in watch or []]
        self.source, self.revision, self.flores = source, revision, flores
        self.files = {find_language(code).glotcc: files_of for code, files_of in (files or {}).items()}
        for name, value in (
            ("token_budget", token_budget), ("epochs", epochs), ("block_size", block_size), ("batch_size", batch_size),
            ("validation_batch_size", validation_batch_size),
        ):  # fmt: skip
            if value < 1:
                raise UserError(f"--data.{name} is {value}; expected a whole number above zero")
        self.token_budget, self.epochs, self.block_size = token_budget, epochs, block_size
        self.chunking, self.batch_size, self.validation_batch_size = chunking, batch_size, validation_batch_size
        self.tokenizer_name, self.tokenizer_vocabulary = tokenizer, train_tokenizer
        self.prompts_file, self.cache_dir = prompts, Path(cache_dir)
        self.num_workers, self.seed = num_workers, seed
        self._tokenizer: PreTrainedTokenizerBase | None = None
        self._blocks: list[Blocks] = []
        self._wanted: list[int] = []
        self._consumed = self._batches_done = 0
        self.caches: dict[str, TokenCache] = {}
        self.evaluation: dict[str, list[FloresBlock]] = {}

    @property
    def validation_languages(self) -> list[Language]:
        """Target (or mixture) first, then the watched ones, each once."""
        return list(dict.fromkeys([*(share.language for share in self.shares), *self.watched]))

    @property
    def tokenizer(self) -> PreTrainedTokenizerBase:
        """The tokenizer, loaded or trained on first use.

        Raises:
            UserError: It cannot be loaded, or none is named.
        """
        if self._tokenizer is None:
            if self.tokenizer_vocabulary is not None:
                sources = [(self._source(share.language), share.share) for share in self.shares]
                self._tokenizer = train_tokenizer(sources, self.tokenizer_vocabulary, self.cache_dir)
            else:
                self.use_tokenizer_of(self.trainer.lightning_module if self.trainer is not None else None)
        return cast(PreTrainedTokenizerBase, self._tokenizer)

    def use_tokenizer_of(self, module: Any) -> None:
        """Loads the tokenizer of a module's base, unless another one is named."""
        name = self.tokenizer_name or getattr(module, "base_name", None)
        if name is None:
            raise UserError("no tokenizer: name a --model.base, a --data.tokenizer or --data.train_tokenizer")
        self._tokenizer = load_tokenizer(name, getattr(module, "revision", None))

    @property
    def tokenizer_digest(self) -> str:
        return tokenizer_id(self.tokenizer)

    @property
    def _loop(self) -> Any:
        return self.trainer

    def _source(self, language: Language) -> Any:
        own = self.files.get(language.glotcc)
        return open_source(self.source, language, self.revision, [own] if isinstance(own, str) else own)

    def fill_cache(self, language: Language, budget: int, chunking: Any, block_size: int) -> TokenCache:
        """Returns a token cache with ``budget`` tokens of a language, or all there is; safe on all processes."""

        def usable(lengths: Any) -> int:
            return usable_tokens(chunking, block_size, lengths)

        title = f"tokenising {language}"
        return fill(self.cache_dir / "tokens", self._source(language), self.tokenizer, budget, usable, title)

    def supply(self, language: Language, wanted: int) -> Supply:
        """Returns how much text of a language there is and how much is cached, without filling the cache."""
        return measure_supply(self.cache_dir / "tokens", self._source(language), language, self.tokenizer, wanted)

    @property
    def flores_to_download(self) -> list[Language]:
        """Validation languages whose sentences are not on this machine yet."""
        return [lang for lang in self.validation_languages if not is_at_hand(self.flores, lang, self.cache_dir)]

    def require_text(self, languages: list[Language]) -> None:
        """Raises `UserError` where there can be no text of a language, before any of it is read."""
        for language in languages:
            self._source(language)

    def profiling_blocks(self, language: Language, tokens: int, block_size: int) -> tuple[Blocks, dict[str, Any]]:
        """Returns full blocks without special tokens, as LAPE counts on, and where they come from.

        Raises:
            UserError: The language has less than one block of text.
        """
        cache = self.fill_cache(language, tokens, "plain", block_size)
        blocks = cut_blocks("plain", cache, block_size, tokens, separator=-1)
        if len(blocks) == 0:
            raise UserError(
                f"{language} has {cache.tokens} tokens of text, less than one profiling block of {block_size}; "
                "lower --profiling.block_size"
            )
        return blocks, cache.manifest["key"]

    def setup(self, stage: str) -> None:
        """Fills the caches that ``stage`` reads. File locks make this safe on every process at once."""
        if stage in ("fit", "validate"):
            self._setup_evaluation("dev")  # first: it is quick, and gated
        if stage == "test":
            self._setup_evaluation("devtest")
        if stage == "fit":
            self._setup_training()

    def _setup_training(self) -> None:
        if not self.shares:
            raise UserError("no language to train on: give --language (cy, say) or --config cy.yaml")
        self._blocks, self._wanted = [], []
        for share in self.shares:
            budget = int(self.token_budget * share.share)
            cache = self.fill_cache(share.language, budget, self.chunking, self.block_size)
            eos = cast(int, self.tokenizer.eos_token_id)
            blocks = cut_blocks(self.chunking, cache, self.block_size, budget, eos)
            if len(blocks) == 0:
                raise UserError(
                    f"{share.language} gives no sequence of {self.block_size} tokens: {blocks.available} tokens of "
                    f"text, budget {budget}; raise --data.token_budget or lower --data.block_size"
                )
            sequences = min(budget * len(blocks) // blocks.tokens, len(blocks) * self.epochs)
            if blocks.available < budget:
                _say(
                    f"{share.language} has {short(blocks.available)} tokens of text, less than the budget of "
                    f"{short(budget)}: training on {short(sequences * blocks.tokens // len(blocks))} tokens"
                )
            self.caches[share.language.glotcc] = cache
            self._blocks.append(blocks)
            self._wanted.append(sequences)

    def _setup_evaluation(self, split: Split) -> None:
        if not self.validation_languages:
            raise UserError("no language to validate on: give --language (cy, say), --config cy.yaml or --data.watch")
        for language in self.validation_languages:
            sentences = read_flores(self.flores, language, split, self.cache_dir)
            self.evaluation[language.glotcc] = join_blocks(sentences, self.tokenizer, self.block_size)

    def steps(self, world_size: int, accumulate: int) -> int:
        """Returns the optimiser steps of the whole run.

        Raises:
            UserError: The text is less than one step.
        """
        per_step = self.batch_size * world_size * accumulate
        steps = sum(self._wanted) // per_step
        if steps == 0:
            raise UserError(
                f"the text gives {sum(self._wanted)} sequences of {self.block_size} tokens and one step takes "
                f"{per_step}; raise --data.token_budget, or lower --data.batch_size or "
                "--trainer.accumulate_grad_batches"
            )
        return steps

    @property
    def tokens_per_sequence(self) -> float:
        """Mean number of tokens in a training sequence, padding left out."""
        pairs = list(zip(self._blocks, self._wanted, strict=True))
        return sum(wanted * blocks.tokens / len(blocks) for blocks, wanted in pairs) / sum(self._wanted)

    def train_dataloader(self) -> DataLoader[Batch]:
        """Returns the loader of this process, from the first sequence that was not consumed yet."""
        trainer = self._loop
        accumulate = trainer.accumulate_grad_batches
        order = training_order([len(blocks) for blocks in self._blocks], self._wanted, self.seed)
        order = order[: self.steps(trainer.world_size, accumulate) * self.batch_size * trainer.world_size * accumulate]
        batches = ResumableBatches(
            order, self.batch_size, trainer.global_rank, trainer.world_size, self._consumed, self._batches_done
        )
        dataset: Dataset[Any] = ConcatDataset(cast(list[Dataset[Any]], self._blocks))
        return DataLoader(
            dataset,
            batch_sampler=batches,
            collate_fn=self._collate,
            num_workers=self.num_workers,
            pin_memory=torch.cuda.is_available(),
        )

    def _collate(self, sequences: list[Tensor]) -> Batch:
        return pad_batch(sequences, cast(int, self.tokenizer.eos_token_id))

    def state_dict(self) -> dict[str, Any]:
        """Returns the position: sequences consumed by all processes, and batches as the loop counts them."""
        batches = self._loop.fit_loop.batch_idx + 1
        new = (batches - self._batches_done) * self.batch_size * self._loop.world_size
        return {"sequences_consumed": self._consumed + new, "batches": batches, "cache": self._cache_id()}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Takes over a position.

        Raises:
            UserError: It counts sequences of other text.
        """
        if not self._blocks:
            return  # validation and test read no training text
        if state_dict["cache"] != self._cache_id():
            raise UserError(
                "the checkpoint counts its position in other text than this run reads (another data set, revision, "
                "tokenizer, chunking, budget, seed or block size); use the same settings, or --resume never"
            )
        self._consumed, self._batches_done = state_dict["sequences_consumed"], state_dict["batches"]

    def _cache_id(self) -> list[Any]:
        caches = [self.caches[share.language.glotcc].id for share in self.shares]
        return [caches, self._wanted, self.chunking, self.block_size, self.seed]

    def val_dataloader(self) -> list[DataLoader[Batch]]:
        """Returns one loader per validation language, sharded over processes without padding the set."""
        return [self._evaluation_loader(language) for language in self.validation_languages]

    test_dataloader = val_dataloader  # over devtest

    def _evaluation_loader(self, language: Language) -> DataLoader[Batch]:
        mine = self.evaluation[language.glotcc][self._loop.global_rank :: self._loop.world_size]
        collate: Callable[[list[FloresBlock]], Batch] = self._collate_evaluation
        return DataLoader(cast(Dataset[Any], mine), batch_size=self.validation_batch_size, collate_fn=collate)

    def _collate_evaluation(self, blocks: list[FloresBlock]) -> Batch:
        batch = self._collate([block.input_ids for block in blocks])
        return {**batch, "text_bytes": torch.tensor(sum(block.text_bytes for block in blocks))}

    def predict_dataloader(self) -> DataLoader[str] | list[Any]:
        """Returns the prompts of ``predict``, one at a time; nothing while profiling."""
        if getattr(self.trainer, "is_profiling", False):
            return []
        prompts = read_prompts(self.prompts_file, self.target, self.flores, self.cache_dir)[
            self._loop.global_rank :: self._loop.world_size
        ]
        return DataLoader(cast(Dataset[str], prompts), batch_size=1)


@rank_zero_only
def _say(text: str) -> None:
    print(text, flush=True)
