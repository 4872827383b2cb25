"""What a model is asked at a validation beside its losses: our tasks on FLORES dev, never on devtest."""

from dataclasses import dataclass, replace

from lm_eval.api.task import ConfigurableTask

from lightning_app.evaluation.loading import TaskData, load_tasks
from lightning_app.evaluation.requests import requests_of
from lightning_app.files import digest
from lightning_app.languages import Language
from lightning_app.model.generation import Decoding


@dataclass(frozen=True)
class Translations:
    """Sentences to translate in one direction, as the paper's evaluation asks for it.

    Attributes:
        name: ``cy_to_en``, by short codes.
        prompts: What the model is asked.
        references: What a translator wrote.
        decoding: How it answers.
    """

    name: str
    prompts: list[str]
    references: list[str]
    decoding: Decoding


@dataclass(frozen=True)
class Questions:
    """Contexts with choices to go on with.

    Attributes:
        name: ``copied_pattern``, or ``word_list_cy``.
        choices: Of each question, a context and a continuation per choice.
        answers: The number of the right choice.
    """

    name: str
    choices: list[list[tuple[str, str]]]
    answers: list[int]

    @property
    def chance(self) -> float:
        """The accuracy of guessing."""
        return sum(1 / len(choices) for choices in self.choices) / len(self.choices)


def read_translations(language: Language, english: Language, sentences: int, data: TaskData) -> list[Translations]:
    """Returns the first sentences of FLORES dev that devtest lacks: from a language into English, and back.

    Raises:
        UserError: FLORES lacks one of the two, or has no sentence of them.
    """
    found = []
    for direction, name in (("to", f"{language.short}_to_{english.short}"),
                            ("from", f"{english.short}_to_{language.short}")):  # fmt: skip
        task = _on_dev(f"neuroglot_paper_flores_{direction}_en", language, data)
        requests = requests_of(task, sentences)
        how = requests[0].args[1]
        decoding = Decoding(tuple(how["until"]), how["max_gen_toks"], how["repetition_penalty"])
        references = [str(task.doc_to_target(request.doc)) for request in requests]
        found.append(Translations(name, [request.args[0] for request in requests], references, decoding))
    return found


def read_questions(task: str, language: Language | None, data: TaskData) -> Questions:
    """Returns the questions of one of our tasks of choices: ``copied_pattern``, or ``word_list`` of a language.

    Raises:
        UserError: There are none for the language.
    """
    loaded = _on_dev(f"neuroglot_{task}", language, data)
    choices: dict[int, list[tuple[str, str]]] = {}
    answers: dict[int, int] = {}
    for request in requests_of(loaded):
        number = int(request.doc_id or 0)
        choices.setdefault(number, []).append(request.args)
        answers[number] = int(loaded.doc_to_target(request.doc))
    name = f"{task}_{language.short}" if language is not None else task
    return Questions(name, list(choices.values()), list(answers.values()))


def identity_of(items: list[Translations] | list[Questions]) -> str:
    """Returns a digest of what is asked and expected: equal where two validations ask the same."""
    return digest(
        [
            [each.name, each.prompts, each.references] if isinstance(each, Translations)
            else [each.name, each.choices, each.answers]
            for each in items
        ]
    )  # fmt: skip


def _on_dev(name: str, language: Language | None, data: TaskData) -> ConfigurableTask:
    (task,) = load_tasks(name, language, replace(data, flores_split="dev"))
    return task
