"""The in-context probe at every validation: what a model learns from its context alone, which loss does not show."""

from typing import ClassVar

from callbacks.figures import Figures
from lightning_app.errors import UserError
from lightning_app.evaluation.loading import TaskData
from lightning_app.evaluation.validation_items import Questions, identity_of, read_questions
from lightning_app.languages import Language, find_language
from lightning_app.model.likelihood import log_likelihoods
from lightning_app.training.module import SparseSubnetModule
from lightning_app.training.trainer import NeuroglotTrainer

_PREFIX = "val/in_context/"
_ENGLISH = find_language("en")


class InContextProbe(Figures):
    """Asks for the end of copied patterns and of lists of translated words, by likelihood (arXiv 2506.00288).

    Each process answers its share of the questions. A target language whose words cannot be paired with English ones on
    FLORES dev has no word list, which is told once.
    """

    title: ClassVar[str] = "in context"

    def __init__(self) -> None:
        super().__init__()
        self._asks: list[Questions] = []

    def setup(self, trainer: NeuroglotTrainer, pl_module: SparseSubnetModule, stage: str) -> None:
        """Reads and draws the questions, which are the same in every run."""
        if stage not in ("fit", "validate"):
            return
        data = trainer.datamodule
        place = TaskData(None, data.flores, data.corpus.cache_dir)
        self._asks = [read_questions("copied_pattern", None, place)]
        languages: list[Language] = [target.language for target in data.targets if target.language != _ENGLISH]
        for language in languages:
            try:
                self._asks.append(read_questions("word_list", language, place))
            except UserError as error:
                pl_module.print(f"in context: no word list of {language.short}: {error}")
        self.asked = identity_of(self._asks)

    def measure(self, trainer: NeuroglotTrainer, module: SparseSubnetModule) -> dict[str, float]:
        """Returns the share of right answers of each kind of question."""
        data, figures = trainer.datamodule, {}
        at_once = data.validation_batch_size * data.block_size
        for asks in self._asks:
            mine = range(trainer.global_rank, len(asks.choices), trainer.world_size)
            pairs = [pair for number in mine for pair in asks.choices[number]]
            values = iter(log_likelihoods(module.base.model, data.tokenizer, pairs, at_once))
            right = 0
            for number in mine:
                of_choices = [next(values) for _ in asks.choices[number]]
                right += of_choices.index(max(of_choices)) == asks.answers[number]
            figures[f"{_PREFIX}{asks.name}"] = self.share(trainer, right, len(mine))
        return figures

    def describe(self, figures: dict[str, float]) -> str:
        """Returns the share of right answers in per cent, with that of guessing."""
        chance = {f"{_PREFIX}{asks.name}": asks.chance for asks in self._asks}
        parts = []
        for name, value in figures.items():
            if name not in chance:
                continue
            change = self.change(name, value)
            notes = [f"{100 * change:+.1f}"] if change is not None else []
            notes += [f"chance {100 * chance[name]:.0f} %"]
            kind = name.removeprefix(_PREFIX).replace("_", " ")
            parts.append(f"{kind} {100 * value:.1f} % ({', '.join(notes)})")
        return ", ".join(parts)
