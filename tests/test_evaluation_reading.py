"""Ten items of every task, read by hand from the files of the data sets: what is asked, its choices, the right one."""

import csv
import re

import pyarrow.parquet as pq
import pytest

from lightning_app.evaluation.loading import TaskData, load_tasks
from lightning_app.evaluation.requests import requests_of
from lightning_app.evaluation.suites import SUITES, choose_tasks
from lightning_app.languages import find_language
from tests.evaluation_hub import write_tasks

ITEMS = 10
MACEDONIAN = find_language("mk")
TOPICS = ["science/technology", "travel", "politics", "sports", "health", "entertainment", "geography"]
LETTERS = "ABCDEFG"


@pytest.fixture(scope="module")
def tasks_hub(tmp_path_factory):
    return write_tasks(tmp_path_factory.mktemp("tasks"))


def rows(root, name, split, config=""):
    (path,) = [
        path
        for path in (root / name).glob("**/*.parquet")
        if path.name.startswith(f"{split}-") and config in str(path.relative_to(root))
    ]
    return pq.read_table(path).to_pylist()[:ITEMS]


def flores(root, code="mkd_Cyrl"):
    path = root / f"openlanguagedata/flores_plus/devtest/{code}.parquet"
    return pq.read_table(path)["text"].to_pylist()[:ITEMS]


def sib200(root):
    with (root / "Davlan/sib200/data/mkd_Cyrl/test.tsv").open(encoding="utf-8", newline="") as file:
        return [(row["text"], row["category"]) for row in csv.DictReader(file, delimiter="\t")][:ITEMS]


def lettered(head, body, options):
    listed = "".join(f"{letter}) {option}\n" for letter, option in zip(LETTERS, options, strict=False))
    return f"{head}\n\n{body}\n\n{listed}\nAnswer:"


def translations(sources, targets, into):
    prompts = [f"Translate this sentence into {into}: {source} Translation:" for source in sources]
    return [(prompt, None, target) for prompt, target in zip(prompts, targets, strict=True)]


def opus(root, side):
    return [row["translation"][side] for row in rows(root, "Helsinki-NLP/opus-100", "test", "en-mk")]


def belebele(root):
    for row in rows(root, "facebook/belebele", "test", "mkd_Cyrl"):
        yield row, [row[f"mc_answer{number}"] for number in (1, 2, 3, 4)], int(row["correct_answer_num"]) - 1


def paper_belebele(root):
    head = "Read the following passage and pick the right answer."
    for row, options, answer in belebele(root):
        body = f"Passage: {row['flores_passage']}\n\nQuestion: {row['question']}"
        yield lettered(head, body, options), None, LETTERS[answer]


def paper_sib200(root):
    head = (
        "Classify the following text into one of these topics:\nA) Science/Technology\nB) Travel  \nC) Politics\n"
        "D) Sports\nE) Health\nF) Entertainment\nG) Geography\n\n"
    )
    return [(f"{head}Text: {text}\n\nAnswer:", None, LETTERS[TOPICS.index(topic)]) for text, topic in sib200(root)]


def paper_choice(name, head, read, split="validation", config="", before=""):
    def items(root):
        for row in rows(root, name, split, config):
            question, options, answer = read(row)
            yield lettered(head, f"{before}{question}", options), None, LETTERS[answer]

    return items


def of_arc(row):
    choices = row["choices"]
    return row["question"], choices["text"], choices["label"].index(row["answerKey"])


def of_piqa(row):
    return row["goal"], [row["sol1"], row["sol2"]], row["label"]


def of_winogrande(row):
    return row["sentence"], [row["option1"], row["option2"]], int(row["answer"]) - 1


def mmlu(root):
    for row in rows(root, "cais/mmlu", "test"):
        listed = "".join(f"\n{letter}. {choice}" for letter, choice in zip("ABCD", row["choices"], strict=True))
        head = f"The following are multiple choice questions (with answers) about {row['subject'].replace('_', ' ')}."
        yield (
            f"{head}\n\n{row['question'].strip()}{listed}\nAnswer:",
            [f" {letter}" for letter in "ABCD"],
            row["answer"],
        )


def hellaswag(root):
    def clean(text):
        return re.sub(r"\[.*?\]", "", text.strip().replace(" [title]", ". ")).replace("  ", " ")

    for row in rows(root, "Rowan/hellaswag", "validation"):
        begin = f"{row['activity_label']}: {row['ctx_a']} {row['ctx_b'].capitalize()}"
        yield clean(begin), [f" {clean(ending)}" for ending in row["endings"]], int(row["label"])


def winogrande(root):
    """The same end after either option: the beginnings are what is chosen from."""
    for row in rows(root, "allenai/winogrande", "validation", "winogrande_xl"):
        begin, end = row["sentence"].split("_", 1)
        yield [begin + row["option1"], begin + row["option2"]], f" {end.strip()}", int(row["answer"]) - 1


def arc(config):
    def items(root):
        for row in rows(root, "allenai/ai2_arc", "test", config):
            question, options, answer = of_arc(row)
            yield f"Question: {question}\nAnswer:", [f" {option}" for option in options], answer

    return items


def global_piqa(root):
    for row in rows(root, "mrlbenchmarks/global-piqa-nonparallel", "test", "mkd_cyrl"):
        yield row["prompt"], [f" {row['solution0']}", f" {row['solution1']}"], row["label"]


READINGS = {
    "paper_flores_to_en": lambda root: translations(flores(root), flores(root, "eng_Latn"), "English"),
    "paper_flores_from_en": lambda root: translations(flores(root, "eng_Latn"), flores(root), "Macedonian"),
    "paper_opus_to_en": lambda root: translations(opus(root, "mk"), opus(root, "en"), "English"),
    "paper_opus_from_en": lambda root: translations(opus(root, "en"), opus(root, "mk"), "Macedonian"),
    "paper_belebele": paper_belebele,
    "paper_sib200": paper_sib200,
    "paper_mmlu": paper_choice(
        "cais/mmlu", "Answer the following multiple choice question:",
        lambda row: (row["question"], row["choices"], row["answer"]),
    ),
    "paper_hellaswag": paper_choice(
        "Rowan/hellaswag", "Complete the following scenario by choosing the most likely continuation:",
        lambda row: (row["ctx"], row["endings"], int(row["label"])),
    ),
    "paper_piqa": paper_choice(
        "baber/piqa", "Choose the most appropriate solution for the following goal:", of_piqa, before="Goal: "
    ),
    "paper_winogrande": paper_choice(
        "allenai/winogrande", "Complete the sentence by choosing the correct option:", of_winogrande,
        config="winogrande_xl",
    ),
    "paper_arc_easy": paper_choice("allenai/ai2_arc", "Answer the following question:", of_arc, config="ARC-Easy"),
    "paper_arc_challenge": paper_choice(
        "allenai/ai2_arc", "Answer the following question:", of_arc, config="ARC-Challenge"
    ),
    "bits_per_byte": lambda root: [("", [text], None) for text in flores(root)],
    "multiblimp": lambda root: [
        ("", [row["sen"], row["wrong_sen"]], 0) for row in rows(root, "jumelet/multiblimp", "train", "mkd")
    ],
    "sib200_cloze": lambda root: [
        (f"{text}\nThe topic of this text is", [f" {each}" for each in TOPICS], TOPICS.index(topic))
        for text, topic in sib200(root)
    ],
    "belebele_cloze": lambda root: [
        (f"{row['flores_passage']}\n{row['question']}\n", options, answer) for row, options, answer in belebele(root)
    ],
    "global_piqa_cloze": global_piqa,
    "mmlu": mmlu,
    "hellaswag": hellaswag,
    "piqa": lambda root: [
        (f"Question: {row['goal']}\nAnswer:", [f" {row['sol1']}", f" {row['sol2']}"], row["label"])
        for row in rows(root, "baber/piqa", "validation")
    ],
    "winogrande": winogrande,
    "arc_easy": arc("ARC-Easy"),
    "arc_challenge": arc("ARC-Challenge"),
}  # fmt: skip
DRAWN = {"copied_pattern", "word_list"}  # from no data set, or by chance: their tests say what holds for every item


def asked(name, root, cache):
    """What the task itself asks of a model, item by item, in the form of the readings."""
    (chosen,) = choose_tasks([name], [MACEDONIAN])
    (task,) = load_tasks(chosen.harness, MACEDONIAN, TaskData(root, str(root), cache))
    items = {}
    for request in requests_of(task, ITEMS):
        items.setdefault(request.doc_id, []).append(request)
    for requests in items.values():
        target = task.doc_to_target(requests[0].doc)
        contexts, said = zip(*(request.args for request in requests), strict=True)
        if requests[0].request_type == "generate_until":
            yield contexts[0], None, target
        elif task.OUTPUT_TYPE == "loglikelihood":
            yield contexts[0], list(said), None
        elif name == "winogrande":
            yield list(contexts), said[0], task.doc_to_text(requests[0].doc)
        else:
            assert len(set(contexts)) == 1
            yield contexts[0], list(said), target


def test_every_task_of_the_suites_is_read_here():
    names = {task.name.removesuffix("_mk") for task in choose_tasks(list(SUITES), [MACEDONIAN])}
    assert names - DRAWN == READINGS.keys()


@pytest.mark.parametrize("name", READINGS)
def test_a_task_asks_what_its_data_set_holds(name, tasks_hub, tmp_path):
    expected = list(READINGS[name](tasks_hub))
    assert len(expected) >= 8
    assert list(asked(name, tasks_hub, tmp_path)) == expected


@pytest.mark.slow
def test_the_real_data_sets_are_read_so_too(shared, tmp_path):
    """Those that the shared folder has."""
    hub, read = shared / "data/hub", []
    for name, reading in READINGS.items():
        try:
            expected = list(reading(hub))
        except (FileNotFoundError, ValueError):
            continue
        assert list(asked(name, hub, tmp_path)) == expected, name
        assert len(expected) == ITEMS
        read.append(name)
    assert len(read) >= 15
