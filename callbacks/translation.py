"""Greedy translation at every validation: BLEU and chrF++ of each target language into English and from it."""

from typing import ClassVar

from callbacks.figures import Figures
from lightning_app.errors import UserError
from lightning_app.evaluation.gathered_answers import GatheredAnswers
from lightning_app.evaluation.loading import TaskData
from lightning_app.evaluation.translation import corpus_value
from lightning_app.evaluation.validation_items import Translations, identity_of, read_translations
from lightning_app.languages import find_language
from lightning_app.model.generation import answer_prompts, count_cut
from lightning_app.training.module import SparseSubnetModule
from lightning_app.training.trainer import NeuroglotTrainer

_BLEU, _CHRF, _EMPTY = "val/bleu/", "val/chrf++/", "val/empty_answers/"
_ENGLISH = find_language("en")


class Translation(Figures):
    """Translates the first sentences of FLORES dev as the paper's evaluation does: its prompt, stops and decoding.

    Each process translates its share, ``data.validation_batch_size`` sentences at a time; the answers are gathered, and
    the figures are sacrebleu's, as those of ``evaluate``. (Those of torchmetrics leave the references of empty answers
    out of chrF, so that a model that says nothing to half of the sentences loses nothing by it.)

    Args:
        sentences: How many, in each direction.

    Raises:
        UserError: The number is not above zero, or FLORES lacks a target language or English.
    """

    title: ClassVar[str] = "translation"

    def __init__(self, sentences: int) -> None:
        super().__init__()
        if sentences < 1:
            raise UserError(f"--trainer.translate is {sentences}; expected a number of sentences, or 0 for none")
        self.sentences = sentences
        self._directions: list[Translations] = []

    def setup(self, trainer: NeuroglotTrainer, pl_module: SparseSubnetModule, stage: str) -> None:
        """Reads the sentences, so that what is missing is told before anything expensive."""
        if stage not in ("fit", "validate"):
            return
        data = trainer.datamodule
        place = TaskData(None, data.flores, data.corpus.cache_dir)
        languages = [target.language for target in data.targets if target.language != _ENGLISH]
        if not languages:
            raise UserError("--trainer.translate needs a language beside English; give --language, or leave it out")
        self._directions = []
        for language in languages:
            try:
                self._directions += read_translations(language, _ENGLISH, self.sentences, place)
            except UserError as error:
                raise UserError(f"--trainer.translate cannot read FLORES dev beside English: {error}") from error
        self.asked = identity_of(self._directions)

    def measure(self, trainer: NeuroglotTrainer, module: SparseSubnetModule) -> dict[str, float]:
        """Returns BLEU and chrF++ of every direction, 0 to 100, and the share of answers without a word."""
        figures, mine = {}, slice(trainer.global_rank, None, trainer.world_size)
        model, data = module.base.model, trainer.datamodule
        if trainer.sanity_checking:
            self._tell_cut(module)
        for each in self._directions:
            said = answer_prompts(model, data.tokenizer, each.prompts[mine], each.decoding, data.validation_batch_size)
            answers = GatheredAnswers().to(trainer.strategy.root_device)
            answers.update([text.strip() for text in said], each.references[mine])
            every, references = answers.compute()
            figures[f"{_BLEU}{each.name}"] = corpus_value("bleu", every, references)
            figures[f"{_CHRF}{each.name}"] = corpus_value("chrf++", every, references)
            figures[f"{_EMPTY}{each.name}"] = sum(not text for text in every) / len(every)
        return figures

    def _tell_cut(self, module: SparseSubnetModule) -> None:
        model, tokenizer = module.base.model, module.data.tokenizer
        cut = sum(count_cut(model, tokenizer, each.prompts, each.decoding) for each in self._directions)
        if cut:
            every = sum(len(each.prompts) for each in self._directions)
            module.print(f"translation: {cut} of {every} prompts leave no room for an answer in the base's context of "
                         f"{module.base.context} tokens, and lose their beginning")  # fmt: skip

    def describe(self, figures: dict[str, float]) -> str:
        """Returns BLEU and chrF++ of every direction, and the share of answers that end before they begin."""
        parts = []
        for metric, prefix in (("BLEU", _BLEU), ("chrF++", _CHRF)):
            of_metric = {name: value for name, value in figures.items() if name.startswith(prefix)}
            shown = [f"{self._direction(name, prefix)} {value:.2f}{self._signed(name, value)}"
                     for name, value in of_metric.items()]  # fmt: skip
            parts += [f"{metric} {', '.join(shown)}"] if shown else []
        empty = [f"{100 * share:.0f} % {self._direction(name, _EMPTY)}"
                 for name, share in figures.items() if name.startswith(_EMPTY) and share]  # fmt: skip
        return "; ".join([*parts, *([f"empty answers {', '.join(empty)}"] if empty else [])])

    def _direction(self, name: str, prefix: str) -> str:
        return name.removeprefix(prefix).replace("_", " ")

    def _signed(self, name: str, value: float) -> str:
        change = self.change(name, value)
        return f" ({change:+.2f})" if change is not None else ""
