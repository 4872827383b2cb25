"""What a run is measured on: FLORES blocks of every validation language, and the paper's batches of the targets."""

from collections.abc import Sequence
from dataclasses import dataclass, field
from itertools import chain
from pathlib import Path
from typing import cast

import torch
from torch import Tensor
from torch.utils.data import DataLoader, Dataset
from transformers import PreTrainedTokenizerBase

from datamodules.chunking import pad_batch
from datamodules.flores import FloresBlock, Overlap, Split, is_at_hand, join_blocks, read_flores
from datamodules.held_out import HeldOutText
from datamodules.paper import paper_batches
from lightning_app.errors import UserError
from lightning_app.files import digest
from lightning_app.languages import Language
from lightning_app.model.loss import IGNORED

EvaluationLoader = DataLoader[object]
_NumberedBlock = tuple[int, FloresBlock]
_NO_BLOCK = -1  # the number of one that only keeps a process busy


@dataclass
class EvaluationText:
    """FLORES sentences as sequences of tokens.

    Attributes:
        flores: Where the sentences are.
        overlap: Whether dev keeps the sentences that devtest holds, too.
        cache_dir: Where a tarball is kept.
        languages: All that are measured.
        blocks: By GlotCC code, once read.
        paper: The paper's batches by GlotCC code, once read.
    """

    flores: str
    overlap: Overlap
    cache_dir: Path
    languages: Sequence[Language] = ()
    blocks: dict[str, list[FloresBlock]] = field(default_factory=dict)
    paper: dict[str, list[dict[str, Tensor]]] = field(default_factory=dict)

    def to_download(self, languages: list[Language]) -> list[Language]:
        """Returns the languages whose sentences are not on this machine yet."""
        return [language for language in languages if not is_at_hand(self.flores, language, self.cache_dir)]

    def held_out(self, language: Language) -> HeldOutText:
        """Returns all sentences of a language, dev and devtest; none of one that is not measured."""
        texts = self.sentences(language).values() if language in self.languages else ()
        return HeldOutText(chain.from_iterable(texts), language.script)

    def sentences(self, language: Language) -> dict[Split, list[str]]:
        """Returns all sentences of a language by split."""
        splits: tuple[Split, ...] = ("dev", "devtest")
        return {split: read_flores(self.flores, language, split, self.cache_dir, "keep") for split in splits}

    def read_blocks(
        self, languages: list[Language], split: Split, tokenizer: PreTrainedTokenizerBase, block_size: int
    ) -> None:
        """Reads and joins the sentences of languages."""
        for language in languages:
            sentences = read_flores(self.flores, language, split, self.cache_dir, self.overlap)
            self.blocks[language.glotcc] = join_blocks(sentences, tokenizer, block_size)
            if not any(block.text_bytes for block in self.blocks[language.glotcc]):
                raise UserError(
                    f"FLORES ({self.flores}) has no text in {split} of {language}; give another --data.flores, or take "
                    "the language off --data.watch"
                )

    def read_paper(
        self,
        languages: list[Language],
        split: Split,
        tokenizer: PreTrainedTokenizerBase,
        block_size: int,
        batch_size: int,
    ) -> None:
        """Reads the paper's batches of languages; of the whole split, whatever ``overlap`` is."""
        for language in languages:
            sentences = read_flores(self.flores, language, split, self.cache_dir, "keep")
            self.paper[language.glotcc] = paper_batches(sentences, tokenizer, block_size, batch_size)

    @property
    def tokens(self) -> int:
        """Tokens of all blocks."""
        return sum(len(block.input_ids) for blocks in self.blocks.values() for block in blocks)

    def loaders(
        self, languages: list[Language], rank: int, processes: int, batch_size: int, padding: int
    ) -> list[EvaluationLoader]:
        """Returns a loader per language, of this process's part of the blocks: without padding the set to equal parts.

        A batch has ``input_ids`` and ``labels``, (B, T), the numbers of its ``blocks``, (B,), and ``text_bytes``. All
        processes have as many batches: one that has a block less may end with a batch of which nothing counts.
        """

        def collate(numbered: list[_NumberedBlock]) -> dict[str, Tensor]:
            batch = pad_batch([block.input_ids for _, block in numbered], padding)
            batch["labels"][[n == _NO_BLOCK for n, _ in numbered]] = IGNORED
            text_bytes = sum(block.text_bytes for _, block in numbered)
            return {**batch, "blocks": torch.tensor([n for n, _ in numbered]), "text_bytes": torch.tensor(text_bytes)}

        parts = []
        for language in languages:
            numbered = list(enumerate(self.blocks[language.glotcc]))
            part, most = numbered[rank::processes], -(-len(numbered) // processes)
            if -(-len(part) // batch_size) < -(-most // batch_size):
                part = [*part, (_NO_BLOCK, FloresBlock(numbered[0][1].input_ids[:2], 0))]
            parts.append(part)
        return [
            DataLoader(cast(Dataset[_NumberedBlock], part), batch_size=batch_size, collate_fn=collate) for part in parts
        ]

    def paper_loaders(self, languages: list[Language], rank: int, processes: int) -> list[EvaluationLoader]:
        """Returns a loader per language, of this process's part of the paper's batches, whole ones.

        All processes have as many batches: one that has one less ends with one in which nothing is attended to.
        """
        parts = []
        for language in languages:
            every = self.paper[language.glotcc]
            nothing = {name: torch.zeros_like(each[:1, :2]) for name, each in every[0].items()}
            part = every[rank::processes]
            parts.append(part if len(part) == -(-len(every) // processes) else [*part, nothing])
        return [DataLoader(cast(Dataset[object], part), batch_size=None) for part in parts]

    def identity(self, languages: list[Language]) -> dict[str, str]:
        """Returns a digest of the blocks by short code: equal where two runs are measured on the same text."""
        digests = {}
        for language in languages:
            blocks = self.blocks[language.glotcc]
            sizes = [[len(block.input_ids), block.text_bytes] for block in blocks]
            digests[language.short] = digest(*(block.input_ids for block in blocks), sizes)
        return digests
