"""Items of our task files: what the harness calls with a task's metadata, the language above all."""

import tempfile
from pathlib import Path

from datasets import Dataset, load_dataset

from datamodules.flores import Split, read_flores, read_parallel
from lightning_app.errors import UserError
from lightning_app.files import JSON
from lightning_app.hub import hub_errors
from lightning_app.languages import Language, find_language

TOPICS = ("science/technology", "travel", "politics", "sports", "health", "entertainment", "geography")
"""Of SIB-200, in the paper's order."""

DATA_ADVICE = "run the same command again with a network, or give --data_dir FOLDER with data sets in the hub's layout"
DATA_ALTERNATIVES = "--data_dir FOLDER"

_FLORES = "openlanguagedata/flores_plus"
_CACHE = "cache"
_ENGLISH = find_language("en")

Items = dict[str, Dataset]


def flores_devtest(language: str, flores: str = _FLORES, cache_dir: str = _CACHE, **_: object) -> Items:
    """Returns the sentences of FLORES devtest in a language: ``text``."""
    return as_items([{"text": sentence} for sentence in flores_sentences(find_language(language), flores, cache_dir)])


def flores_pairs(
    language: str,
    into_english: bool,
    flores: str = _FLORES,
    cache_dir: str = _CACHE,
    flores_split: Split = "devtest",
    **_: object,
) -> Items:
    """Returns FLORES beside its English: ``source``, ``target`` and the name of the language to go ``into``."""
    spoken = find_language(language)
    return _translations(beside_english(spoken, flores, cache_dir, flores_split), spoken, into_english)


def opus_pairs(language: str, into_english: bool, **_: object) -> Items:
    """Returns the test sentences of OPUS-100 beside their English, as `flores_pairs` does."""
    spoken = find_language(language)
    pair = spoken.code("opus_100")
    code = next(each for each in pair.split("-") if each != "en")
    rows = _rows("Helsinki-NLP/opus-100", pair, "test", ("translation",))
    return _translations([(row["translation"][code], row["translation"]["en"]) for row in rows], spoken, into_english)


def sib200(language: str, **_: object) -> Items:
    """Returns the test texts of SIB-200: ``text``, ``options`` and the number of the right one, ``answer``."""
    rows = _rows("Davlan/sib200", find_language(language).code("flores_200"), "test", ("text", "category"))
    if unknown := next((row["category"] for row in rows if row["category"] not in TOPICS), None):
        raise UserError(f"Davlan/sib200 has a text on {unknown}; expected one of {', '.join(TOPICS)}")
    return as_items(
        [{"text": row["text"], "options": list(TOPICS), "answer": TOPICS.index(row["category"])} for row in rows]
    )


def belebele(language: str, **_: object) -> Items:
    """Returns Belebele: ``passage``, ``question``, ``options`` and ``answer``."""
    answers = tuple(f"mc_answer{number}" for number in range(1, 5))
    columns = ("flores_passage", "question", "correct_answer_num", *answers)
    rows = _rows("facebook/belebele", find_language(language).code("belebele"), "test", columns)
    return as_items(
        [
            {
                "passage": row["flores_passage"],
                "question": row["question"],
                "options": [row[answer] for answer in answers],
                "answer": int(row["correct_answer_num"]) - 1,
            }
            for row in rows
        ]
    )


def mmlu(split: str, **_: object) -> Items:
    """Returns MMLU's questions on all subjects: ``question``, ``subject`` in words, ``options`` and ``answer``."""
    rows = _rows("cais/mmlu", "all", split, ("question", "subject", "choices", "answer"))
    return as_items(
        [
            _question(row["question"], row["choices"], row["answer"], subject=row["subject"].replace("_", " "))
            for row in rows
        ]
    )


def hellaswag(**_: object) -> Items:
    """Returns HellaSwag: the scenario as ``question``, its ``options`` and ``answer``."""
    rows = _rows("Rowan/hellaswag", None, "validation", ("ctx", "endings", "label"))
    return as_items([_question(row["ctx"], row["endings"], int(row["label"])) for row in rows])


def piqa(**_: object) -> Items:
    """Returns PIQA: the goal as ``question``, its ``options`` and ``answer``."""
    rows = _rows("baber/piqa", None, "validation", ("goal", "sol1", "sol2", "label"))
    return as_items([_question(row["goal"], [row["sol1"], row["sol2"]], int(row["label"])) for row in rows])


def winogrande(**_: object) -> Items:
    """Returns WinoGrande: the sentence with its gap as ``question``, ``options`` and ``answer``."""
    rows = _rows("allenai/winogrande", "winogrande_xl", "validation", ("sentence", "option1", "option2", "answer"))
    return as_items(
        [_question(row["sentence"], [row["option1"], row["option2"]], int(row["answer"]) - 1) for row in rows]
    )


def arc(config: str, **_: object) -> Items:
    """Returns ARC-Easy or ARC-Challenge: ``question``, three to five ``options``, ``answer``, and how many ``letters``.

    The paper's script reads as many letters in every answer as the first question has options.
    """
    rows = _rows("allenai/ai2_arc", config, "validation", ("question", "choices", "answerKey"))
    letters = len(rows[0]["choices"]["text"]) if rows else 0
    return as_items(
        [
            _question(row["question"], row["choices"]["text"], row["choices"]["label"].index(row["answerKey"]))
            | {"letters": letters}
            for row in rows
        ]
    )


def _question(question: str, options: list[str], answer: int, **more: str) -> JSON:
    return {"question": question, "options": list(options), "answer": answer, **more}


def _translations(pairs: list[tuple[str, str]], spoken: Language, into_english: bool) -> Items:
    into = _ENGLISH if into_english else spoken
    ordered = pairs if into_english else [(english, theirs) for theirs, english in pairs]
    return as_items([{"source": source, "target": target, "into": into.name} for source, target in ordered])


def flores_sentences(language: Language, source: str, cache_dir: str) -> list[str]:
    """Returns a language's sentences of FLORES devtest."""
    return read_flores(source, language, "devtest", Path(cache_dir))


def beside_english(language: Language, source: str, cache_dir: str, split: Split) -> list[tuple[str, str]]:
    """Returns a language's sentences of FLORES beside their English."""
    rows = read_parallel(source, (language, _ENGLISH), split, Path(cache_dir))
    return [(theirs, english) for theirs, english in rows]


def _rows(repository: str, config: str | None, split: str, columns: tuple[str, ...]) -> list[JSON]:
    """Returns the rows of a data set: of a folder OWNER/NAME in the working directory if there is one, else the hub's.

    Raises:
        UserError: It lacks the configuration, the split or a column, or has no rows.
    """
    # Of a folder, the cache of `datasets` would give the rows of another folder, or of earlier files.
    with tempfile.TemporaryDirectory(prefix="neuroglot-") as fresh:
        try:
            with hub_errors(repository, DATA_ADVICE, DATA_ALTERNATIVES):
                loaded = load_dataset(repository, config, cache_dir=fresh if Path(repository).is_dir() else None)
        except ValueError as error:
            if "BuilderConfig" not in str(error):
                raise
            raise UserError(f"{repository} has no {config}") from error
        if split not in loaded:
            raise UserError(f"{repository} has no split {split}; it has {', '.join(loaded)}")
        found = loaded[split].column_names
        if missing := [column for column in columns if column not in found]:
            raise UserError(f"{repository} has no column {', '.join(missing)}; it has {', '.join(found)}")
        if not len(loaded[split]):
            raise UserError(f"{repository} has no items in its split {split}; look at its files")
        return list(loaded[split].select_columns(list(columns)))


def as_items(rows: list[JSON]) -> Items:
    """Returns rows as the harness takes them."""
    return {"test": Dataset.from_list(rows)}
