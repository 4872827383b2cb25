"""The LightningDataModule: GlotCC (or other text) for training, FLORES for validation."""

import os
from collections.abc import Sequence
from pathlib import Path
from typing import cast

import torch
from lightning.pytorch import LightningDataModule, Trainer
from torch import Tensor
from torch.utils.data import ConcatDataset, DataLoader, Dataset
from transformers import PreTrainedTokenizerBase

from datamodules.chunking import TrainingChunking, batch_documents, pad_batch
from datamodules.corpus import Corpus
from datamodules.evaluation import EvaluationLoader, EvaluationText
from datamodules.filters import TextFilters
from datamodules.flores import FLORES_PLUS, FloresBlock, Overlap, Split, require_room
from datamodules.order import ResumableBatches, RunLength, training_order
from datamodules.prompts import read_prompts
from datamodules.shares import Share, beside_replay, named_once, own_text, read_replay, read_targets
from datamodules.token_cache import TokenCache
from datamodules.tokenizers import require_vocabulary
from datamodules.training_text import TrainingText
from lightning_app.errors import UserError
from lightning_app.files import JSON
from lightning_app.languages import Language
from lightning_app.run import is_first_process

_FILTERS = TextFilters()

Batch = dict[str, Tensor]


class GlotCCDataModule(LightningDataModule):
    """Streams a language's documents into a token cache and serves blocks of it; FLORES dev validates.

    Training, profiling and every later run read the cache: the same tokens in the same order, whatever the number of
    workers or processes. Its state is the number of sequences that all processes consumed.

    Args:
        language: Target language: a code such as ``cy``, a name, or a GlotCC code. Several may be given, with shares
            of the text: ``cy,mt`` or ``cy:3,mt:1``.
        mixture: Languages and their shares, to train a base model from scratch; replaces ``language``.
        source: GlotCC repository on the hub, or a folder in its layout.
        revision: Branch, tag or commit of the repository.
        files: Own text instead, per language: .txt, .jsonl or .parquet files, folders or patterns.
        flores: ``openlanguagedata/flores_plus`` (gated), ``tarball`` (FLORES-200, public), a .tar.gz, or a folder.
        flores_overlap: ``drop`` from dev the sentences that devtest holds too, or ``keep`` them, as the paper does.
        watch: Languages whose loss is watched beside the target's, to measure forgetting.
        paper_loss: Report the paper's validation loss, too: the whole dev set of the targets, in batches of
            ``batch_size``, padding counted.
        replay: Other languages mixed into the targets' text, with their shares of the whole, {en: 0.2}; text that is
            too short for its share is passed several times.
        token_budget: Tokens to train on, at most; 0.1 to 100 million is usual.
        epochs: Passes over the text where it is shorter than the budget.
        block_size: Tokens per training sequence and at most per validation block.
        chunking: ``documents`` (back to back with EOS between, no padding, and no token sees another document than its
            own), ``packed`` (the same, but a token sees all that stands before it in its block) or ``paper`` (documents
            cut into chunks, those under half a block dropped, token for token; padding is not counted in the loss).
        filters: Which documents are left out of the training text.
        batch_size: Sequences per device and forward pass.
        validation_batch_size: FLORES blocks per device and forward pass.
        tokenizer: Name or folder; the base model's where not given.
        train_tokenizer: Vocabulary size of a tokenizer to train on the mixture, for a base model from scratch.
        prompts: Text file with one prompt a line for ``predict``; else beginnings of FLORES devtest sentences.
        cache_dir: Where token caches, tokenizers and atlases are kept.
        num_workers: Loader processes; reading the cache needs none.
        seed: Of the order of training.
        base: The base model, whose tokenizer is used where no other is named.
        base_revision: Branch, tag or commit of the base.
    """

    allow_zero_length_dataloader_with_multiple_devices = True
    _batches: ResumableBatches | None = None

    def __init__(
        self,
        language: str | None = None,
        mixture: dict[str, float] | None = None,
        source: str = "cis-lmu/GlotCC-V1",
        revision: str = "main",
        files: dict[str, str | list[str]] | None = None,
        flores: str = FLORES_PLUS,
        flores_overlap: Overlap = "drop",
        watch: Sequence[str] = ("en", "es", "ru", "zh"),
        paper_loss: bool = False,
        replay: dict[str, float] | None = None,
        token_budget: int = 100_000_000,
        epochs: int = 1,
        block_size: int = 512,
        chunking: TrainingChunking = "documents",
        filters: TextFilters = _FILTERS,
        batch_size: int = 2,
        validation_batch_size: int = 8,
        tokenizer: str | None = None,
        train_tokenizer: int | None = None,
        prompts: str | None = None,
        cache_dir: str = "cache",
        num_workers: int = 0,
        seed: int = 0,
        base: str | None = None,
        base_revision: str | None = None,
    ) -> None:
        super().__init__()
        self.targets = read_targets(language, mixture)
        self.replay = read_replay(replay, self.targets, is_mixture=bool(mixture))
        self.watched = named_once("--data.watch", watch)
        self.token_budget, self.epochs, self.block_size = token_budget, epochs, block_size
        self.chunking, self.batch_size, self.validation_batch_size = chunking, batch_size, validation_batch_size
        self.flores, self.has_paper_loss, self.prompts_file = flores, paper_loss, prompts
        self.num_workers, self.seed, own = num_workers, seed, own_text(files or {})
        _require_counts(self)
        self.evaluation_text = EvaluationText(flores, flores_overlap, Path(cache_dir), self.validation_languages)
        require_vocabulary(train_tokenizer)
        self.corpus = Corpus(
            source, revision, Path(cache_dir), tokenizer or base, base_revision, own, train_tokenizer, self.shares,
            filters, self.evaluation_text.held_out,
        )  # fmt: skip
        self._consumed = self._batches_done = self._steps_done = 0
        self._text = TrainingText(self.corpus, chunking, block_size)

    @property
    def shares(self) -> list[Share]:
        """All languages of the training text, replay too, with their shares of it."""
        return [*beside_replay(self.targets, self.replay), *self.replay]

    @property
    def target(self) -> Language | None:
        """The first language to adapt to."""
        return self.targets[0].language if self.targets else None

    @property
    def paper_languages(self) -> list[Language]:
        """Languages of the evaluation loaders that follow those of `validation_languages`: the paper's loss."""
        return [target.language for target in self.targets] if self.has_paper_loss else []

    @property
    def caches(self) -> dict[str, TokenCache]:
        """Token caches of the training text by GlotCC code."""
        return self._text.caches

    @property
    def evaluation(self) -> dict[str, list[FloresBlock]]:
        """The blocks that `setup` read, by GlotCC code."""
        return self.evaluation_text.blocks

    @property
    def validation_languages(self) -> list[Language]:
        """Targets (or mixture) first, then the watched ones, each once; replay only where it is watched."""
        return list(dict.fromkeys([*(target.language for target in self.targets), *self.watched]))

    @property
    def tokenizer(self) -> PreTrainedTokenizerBase:
        """The corpus's tokenizer, loaded or trained on first use."""
        return self.corpus.tokenizer

    @property
    def flores_to_download(self) -> list[Language]:
        """Validation languages whose sentences are not on this machine yet."""
        return self.evaluation_text.to_download(self.validation_languages)

    @property
    def _running(self) -> Trainer:
        """The Trainer that this module serves; raises `RuntimeError` where there is none yet."""
        if self.trainer is None:
            raise RuntimeError("loaders and positions belong to a Trainer: give this data module to one")
        return self.trainer

    @property
    def length(self) -> RunLength:
        """How long the run is on the Trainer's processes.

        Raises:
            UserError: The text is less than one step.
        """
        trainer, wanted = self._running, self._text.sequences
        length = RunLength(
            wanted, self._text.tokens / max(wanted, 1), self.batch_size, trainer.world_size,
            trainer.accumulate_grad_batches, trainer.max_steps, self._steps_done, self._consumed,
        )  # fmt: skip
        length.require_step(self.block_size)
        return length

    def setup(self, stage: str) -> None:
        """Fills the caches that ``stage`` reads. File locks make this safe on every process at once."""
        if stage in ("fit", "validate", "test"):
            self._setup_evaluation("devtest" if stage == "test" else "dev")  # first: it is quick, and gated
        if stage == "fit":
            self._setup_training()

    def _setup_training(self) -> None:
        if not self.shares:
            raise UserError("no language to train on: give --language (cy, say) or --config cy.yaml")
        self._text = TrainingText(self.corpus, self.chunking, self.block_size)
        self._text.read(beside_replay(self.targets, self.replay), self.replay, self.token_budget, self.epochs)
        for note in self._text.notes if is_first_process() else ():
            print(note, flush=True)

    def _setup_evaluation(self, split: Split) -> None:
        if not self.validation_languages:
            raise UserError("no language to validate on: give --language (cy, say), --config cy.yaml or --data.watch")
        text, tokenizer, size = self.evaluation_text, self.tokenizer, self.block_size
        text.read_blocks(self.validation_languages, split, tokenizer, size)
        text.read_paper(self.paper_languages, split, tokenizer, size, self.batch_size)

    def validation_id(self) -> dict[str, str]:
        """Returns a digest of the evaluation blocks by language: equal where two runs are measured on the same text."""
        return self.evaluation_text.identity(self.validation_languages)

    def train_dataloader(self) -> DataLoader[Tensor]:
        """Returns the loader of this process, from the first sequence that was not consumed yet."""
        trainer, length, text = self._running, self.length, self._text
        order = training_order([len(blocks) for blocks in text.blocks], text.wanted, self.seed)
        order = order[: length.sequences_read]
        batches = ResumableBatches(
            order, self.batch_size, trainer.global_rank, trainer.world_size, self._consumed, self._batches_done
        )
        dataset: ConcatDataset[Tensor] = ConcatDataset(cast(list[Dataset[Tensor]], text.blocks))
        self._batches = batches
        return DataLoader(
            dataset,
            batch_sampler=batches,
            collate_fn=self._collate,
            num_workers=self.num_workers,
            pin_memory=torch.cuda.is_available(),
        )

    def trace(self, batches: Sequence[int]) -> list[JSON]:
        """Returns the sequences of this process in batches, as the loop counts them: position, language, documents."""
        order = self._batches
        if order is None:
            return []
        positions = [position for batch in batches if batch >= 0 for position in order.positions(batch)]
        traced = self._text.trace(order.order[positions].tolist())
        return [{"position": position, **each} for position, each in zip(positions, traced, strict=True)]

    @property
    def _padding(self) -> int:
        return cast(int, self.tokenizer.eos_token_id)  # the base was refused where there is none

    def _collate(self, sequences: list[Tensor]) -> Batch:
        return batch_documents(sequences) if self.chunking == "documents" else pad_batch(sequences, self._padding)

    def state_dict(self) -> JSON:
        """Returns the position: sequences consumed by all processes, and batches as the loop counts them."""
        batches = self._running.fit_loop.batch_idx + 1
        new = (batches - self._batches_done) * self.batch_size * self._running.world_size
        position = {"sequences_consumed": self._consumed + new, "batches": batches, "steps": self._running.global_step}
        return {**position, "cache": self._cache_id()}

    def load_state_dict(self, state_dict: JSON) -> None:
        """Takes over a position.

        Raises:
            UserError: It counts sequences of other text.
        """
        if not self._text.blocks:
            return  # validation and test read no training text
        if state_dict["cache"] != self._cache_id():
            raise UserError(
                "the checkpoint counts its position in other text than this run reads (another data set, revision, "
                "tokenizer, chunking, budget, replay, seed or block size); use the same settings, or --resume never"
            )
        self._consumed, self._batches_done = state_dict["sequences_consumed"], state_dict["batches"]
        self._steps_done = state_dict["steps"]

    def _cache_id(self) -> list[object]:
        return [*self._text.identity(), self.seed]

    def val_dataloader(self) -> list[EvaluationLoader]:
        """Returns one loader per validation language, then one per language of the paper's loss."""
        rank, processes = self._running.global_rank, self._running.world_size
        text = self.evaluation_text
        ours = text.loaders(self.validation_languages, rank, processes, self.validation_batch_size, self._padding)
        return [*ours, *text.paper_loaders(self.paper_languages, rank, processes)]

    test_dataloader = val_dataloader  # over devtest

    def predict_dataloader(self) -> DataLoader[str]:
        """Returns the prompts of ``predict``, one at a time."""
        prompts = read_prompts(self.prompts_file, self.target, self.flores, self.corpus.cache_dir)
        mine = prompts[self._running.global_rank :: self._running.world_size]
        return DataLoader(cast(Dataset[str], mine), batch_size=1)


def _require_counts(data: GlotCCDataModule) -> None:
    for name in ("token_budget", "epochs", "block_size", "batch_size", "validation_batch_size"):
        if (value := getattr(data, name)) < 1:
            raise UserError(f"--data.{name} is {value}; expected a whole number above zero")
    require_room(data.block_size)
    most = max(64, 4 * (os.cpu_count() or 1))
    if not 0 <= data.num_workers <= most:
        raise UserError(f"--data.num_workers is {data.num_workers}; expected 0, which is enough, to {most}")
