"""Text that a method looks at before it trains, from the run's own corpus."""

from collections.abc import Iterator

from torch import Tensor

from datamodules.corpus import Corpus
from lightning_app.languages import Language, find_language
from lightning_app.methods.method import Calibration
from lightning_app.model.base import Base
from lightning_app.progress import TokenProgress
from lightning_app.training.trainer import NeuroglotTrainer


def make_calibration(base: Base, corpus: Corpus, targets: list[Language], trainer: NeuroglotTrainer) -> Calibration:
    """Returns the corpus as calibration text, in sequences of at most the base's context.

    Args:
        base: What the text will run through.
        corpus: Fills its cache as far as it is asked.
        targets: The languages that are adapted to; each gives an equal part of the target text.
        trainer: On whose device, and in whose precision.
    """

    def blocks(code: str | None, sequences: int, tokens: int) -> Iterator[Tensor]:
        languages = [find_language(code)] if code is not None else targets
        each, tokens = -(-sequences // len(languages)), min(tokens, base.context or tokens)
        for language in languages:
            text = corpus.sample(language, each, tokens)
            title = f"looking at text of {language}"
            with TokenProgress(title, each * tokens, is_shown=trainer.is_global_zero, is_brief=True) as progress:
                for block in text:
                    yield block
                    progress.advance(len(block))

    return Calibration(blocks, trainer.strategy.root_device, trainer.precision_plugin.forward_context)
