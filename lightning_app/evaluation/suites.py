"""Which tasks a suite has for a language, and which it lacks."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace

from lightning_app.errors import UserError, did_you_mean
from lightning_app.evaluation.loading import OWN, harness_names, has_suites_task, is_in_harness
from lightning_app.languages import Language, find_language

_ENGLISH = find_language("en")
_DATA_SETS = {"flores_200": "FLORES", "opus_100": "OPUS-100", "belebele": "Belebele"}
_FLORES_TEXTS = (
    "SIB-200's texts and Belebele's passages are sentences of FLORES: these tasks are not independent of validation on "
    "FLORES, or of each other."
)


@dataclass(frozen=True)
class Task:
    """A task to run.

    Attributes:
        name: What tables and files call it.
        harness: Its name in the harness, or of one of our files.
        language: Whose items; None where the task itself says it.
        main: The metric that a table shows; the task's first where None.
        why_not: Why it is left out, where it is.
        note: What a reader of its figures must know.
    """

    name: str
    harness: str
    language: Language | None = None
    main: str | None = None
    why_not: str = ""
    note: str = ""


def _own(name: str, language: Language, main: str | None = None, needs: str = "flores_200") -> Task:
    """Returns a task of ours in a language, left out where its data set lacks it."""
    is_flores = any(part in name for part in ("sib200", "belebele"))
    task = Task(f"{name}_{language.short}", OWN + name, language, main, note=_FLORES_TEXTS if is_flores else "")
    if getattr(language, needs) is None:
        return replace(task, why_not=f"{_DATA_SETS[needs]} has no {language}")
    return task


def _paper(language: Language) -> list[Task]:
    """The paper's evaluation (arXiv 2510.13580, section 4): prompts, stops, decoding and answer reading."""
    translations = [
        _own("paper_flores_to_en", language, "sentence_bleu"),
        _own("paper_flores_from_en", language, "sentence_bleu"),
        _own("paper_opus_to_en", language, "sentence_bleu", "opus_100"),
        _own("paper_opus_from_en", language, "sentence_bleu", "opus_100"),
    ]
    of_language = [_own("paper_belebele", language, "acc", "belebele"), _own("paper_sib200", language, "acc")]
    general = ("mmlu", "hellaswag", "piqa", "winogrande", "arc_easy", "arc_challenge")
    in_english = [Task(f"paper_{name}", f"{OWN}paper_{name}", _ENGLISH, "acc") for name in general]
    return [*(translations if language != _ENGLISH else []), *of_language, *in_english]


def _base(language: Language) -> list[Task]:
    """What a base model is judged by: likelihood, no instructions."""
    blimp = _of_harness("multiblimp", f"multiblimp_{language.multiblimp}", language, "acc")
    piqa = f"global_piqa_nonparallel_cloze_{language.global_piqa}"
    return [
        _own("bits_per_byte", language, "bits_per_byte"),
        _own("minimal_pairs", language, "acc_norm") if blimp.why_not else blimp,
        _own("sib200_cloze", language, "acc_norm"),
        _own("belebele_cloze", language, "acc_norm", "belebele"),
        _of_harness("global_piqa_cloze", piqa, language, "acc_norm"),
    ]


def _skills(language: Language) -> list[Task]:
    """What adaptation may cost: English skills, and learning from the context (arXiv 2506.00288)."""
    general = {
        "hellaswag": "acc_norm", "piqa": "acc_norm", "winogrande": "acc", "arc_easy": "acc_norm",
        "arc_challenge": "acc_norm",
    }  # fmt: skip
    return [
        Task("mmlu", OWN + "mmlu", _ENGLISH, "acc"),
        *(Task(name, name, _ENGLISH, main) for name, main in general.items()),
        Task("copied_pattern", OWN + "copied_pattern", _ENGLISH, "acc"),
        _own("word_list", language, "acc"),
    ]


SUITES: dict[str, Callable[[Language], list[Task]]] = {"paper": _paper, "base": _base, "skills": _skills}


def choose_tasks(names: Sequence[str], languages: Sequence[Language]) -> list[Task]:
    """Returns the tasks of suites, and tasks by their own names, each once.

    Args:
        names: ``paper``, ``base``, ``skills``; names of tasks, groups or tags of the harness; names of ours, with a
            language (``sib200_cloze_cy``) or for every one of ``languages`` (``sib200_cloze``). A task may have the
            metric to show after a colon, ``hellaswag:acc``.
        languages: That the model was adapted to, or that were asked for.

    Raises:
        UserError: There is no such suite or task, none is named, or one needs a language and none is known.
    """
    if not names:
        raise UserError(f"--tasks names no task; expected suites ({', '.join(SUITES)}) or tasks, comma between")
    tasks: dict[str, Task] = {}
    for name in names:
        word, colon, metric = (part.strip() for part in name.partition(":"))
        for task in _named(word, languages):
            tasks.setdefault(task.name, replace(task, main=metric) if colon else task)
    return list(tasks.values())


def _named(name: str, languages: Sequence[Language]) -> list[Task]:
    if name in SUITES:
        _require_languages(f"suite {name}", languages)
        return [task for each in languages for task in SUITES[name](each)]
    ours = _ours(languages)
    if name in ours:
        return [ours[name]]
    if of_languages := [task for task in ours.values() if _is_called(name, task)]:
        return of_languages
    if (with_language := _ours(_ending(name)).get(name)) is not None:
        return [with_language]
    if name in {task.harness.removeprefix(OWN) for task in _ours([_ENGLISH]).values()}:
        _require_languages(f"task {name}", languages)
    if is_in_harness(name):
        return [Task(name, name)]
    hint = did_you_mean(name, [*SUITES, *ours]) or did_you_mean(name, harness_names())
    raise UserError(
        f"--tasks has '{name}', which is neither a suite ({', '.join(SUITES)}) nor a task of the harness{hint}"
    )


def _is_called(name: str, task: Task) -> bool:
    """Tells whether a name without a language means a task; ``multiblimp`` is a tag of the harness, too, for all."""
    ending = f"_{task.language.short}" if task.language is not None else ""
    return task.harness == OWN + name or task.name == name + ending


def _ours(languages: Sequence[Language]) -> dict[str, Task]:
    """Returns the tasks of all suites: of some languages, or those that are in English anyway where none is given."""
    every = [task for suite in SUITES.values() for each in languages or [_ENGLISH] for task in suite(each)]
    return {task.name: task for task in every if languages or not task.name.endswith(f"_{_ENGLISH.short}")}


def _ending(name: str) -> list[Language]:
    """Returns the language that a task's name ends in, if it does."""
    try:
        return [find_language(name.rpartition("_")[2])]
    except UserError:
        return []


def _require_languages(what: str, languages: Sequence[Language]) -> None:
    if not languages:
        raise UserError(f"{what} needs a language: give --language (cy, say)")


def _of_harness(name: str, harness: str, language: Language, main: str) -> Task:
    """Returns a task of the harness in a language, left out where there is none."""
    task = Task(f"{name}_{language.short}", harness, language, main)
    return task if has_suites_task(harness) else replace(task, why_not=f"the harness has no task {harness}")
