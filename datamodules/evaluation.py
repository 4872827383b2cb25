"""What a run is measured on: FLORES blocks of every validation language, and the paper's batches of the targets."""

from dataclasses import dataclass, field
from pathlib import Path

from torch import Tensor
from transformers import PreTrainedTokenizerBase

from datamodules.flores import FloresBlock, Overlap, Split, is_at_hand, join_blocks, read_flores
from datamodules.paper import paper_batches
from lightning_app.errors import UserError
from lightning_app.files import digest
from lightning_app.languages import Language


@dataclass
class EvaluationText:
    """FLORES sentences as sequences of tokens.

    Attributes:
        flores: Where the sentences are.
        overlap: Whether dev keeps the sentences that devtest holds, too.
        cache_dir: Where a tarball is kept.
        blocks: By GlotCC code, once read.
        paper: The paper's batches by GlotCC code, once read.
    """

    flores: str
    overlap: Overlap
    cache_dir: Path
    blocks: dict[str, list[FloresBlock]] = field(default_factory=dict)
    paper: dict[str, list[dict[str, Tensor]]] = field(default_factory=dict)

    def to_download(self, languages: list[Language]) -> list[Language]:
        """Returns the languages whose sentences are not on this machine yet."""
        return [language for language in languages if not is_at_hand(self.flores, language, self.cache_dir)]

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

    def identity(self, languages: list[Language]) -> dict[str, str]:
        """Returns a digest of the blocks by short code: equal where two runs are measured on the same text."""
        digests = {}
        for language in languages:
            blocks = self.blocks[language.glotcc]
            sizes = [[len(block.input_ids), block.text_bytes] for block in blocks]
            digests[language.short] = digest(*(block.input_ids for block in blocks), sizes)
        return digests
