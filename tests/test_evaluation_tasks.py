"""Tasks and their data: the paper's prompts to the letter, data sets as the hub has them, and broken ones."""

import json
import shutil

import pytest

from lightning_app.errors import UserError
from lightning_app.evaluation.loading import TaskData, load_tasks, task_digest
from lightning_app.evaluation.requests import requests_of
from lightning_app.evaluation.suites import SUITES, choose_tasks
from lightning_app.languages import PAPER_LANGUAGES, find_language
from tests.conftest import ROOT
from tests.evaluation_hub import ROWS, write, write_tasks

MACEDONIAN = find_language("mk")
# arXiv 2510.13580, as the published script writes them.
PROMPTS = {
    "flores_to_en": "Translate this sentence into English: {source} Translation:",
    "flores_from_en": "Translate this sentence into Macedonian: {source} Translation:",
    "opus_to_en": "Translate this sentence into English: {source} Translation:",
    "opus_from_en": "Translate this sentence into Macedonian: {source} Translation:",
    "belebele": "Read the following passage and pick the right answer.\n\nPassage: {passage}\n\n"
    "Question: {question}\n\n"
    "A) {options[0]}\nB) {options[1]}\nC) {options[2]}\nD) {options[3]}\n\nAnswer:",
    "sib200": "Classify the following text into one of these topics:\nA) Science/Technology\nB) Travel  \nC) Politics\n"
    "D) Sports\nE) Health\nF) Entertainment\nG) Geography\n\nText: {text}\n\nAnswer:",
    "mmlu": "Answer the following multiple choice question:\n\n{question}\n\n"
    "A) {options[0]}\nB) {options[1]}\nC) {options[2]}\nD) {options[3]}\n\nAnswer:",
    "hellaswag": "Complete the following scenario by choosing the most likely continuation:\n\n{question}\n\n"
    "A) {options[0]}\nB) {options[1]}\nC) {options[2]}\nD) {options[3]}\n\nAnswer:",
    "piqa": "Choose the most appropriate solution for the following goal:\n\nGoal: {question}\n\n"
    "A) {options[0]}\nB) {options[1]}\n\nAnswer:",
    "winogrande": "Complete the sentence by choosing the correct option:\n\n{question}\n\n"
    "A) {options[0]}\nB) {options[1]}\n\nAnswer:",
    "arc_easy": "Answer the following question:\n\n{question}\n\n"
    "A) {options[0]}\nB) {options[1]}\nC) {options[2]}\nD) {options[3]}\n\nAnswer:",
    "arc_challenge": "Answer the following question:\n\n{question}\n\n"
    "A) {options[0]}\nB) {options[1]}\nC) {options[2]}\nD) {options[3]}\n\nAnswer:",
}
STOPS = {
    "\n", "Question:", "Q:", "Answer:", "A:", "Translation:", "The translation", "Translate:", "Summary:",
    "The summary", "Summarize:", "Passage:", "The passage", "Text:", "Options:", "The options", "The choices",
    "Choices:", "Context:", "The context", "The problem", "Problem:", "</s>", "<|endoftext|>", "Human:", "Assistant:",
}  # fmt: skip


@pytest.fixture(scope="module")
def tasks_hub(tmp_path_factory):
    return write_tasks(tmp_path_factory.mktemp("tasks"))


def load(name, root, language=MACEDONIAN):
    (task,) = load_tasks(name, language, TaskData(root, str(root), root))
    return task


def written(root, name):
    """The rows of a data set as they were written, by hand from the files."""
    import pyarrow.parquet as pq

    return pq.read_table(next((root / name).glob("**/*.parquet"))).to_pylist()


@pytest.mark.parametrize("name", PROMPTS)
def test_the_papers_prompts_and_decoding_to_the_letter(tasks_hub, name):
    task = load(f"neuroglot_paper_{name}", tasks_hub)
    first, *_ = requests_of(task, 1)
    prompt, decoding = first.args
    assert prompt == PROMPTS[name].format(**first.doc)
    assert set(decoding["until"]) == STOPS
    assert {key: decoding[key] for key in ("do_sample", "repetition_penalty", "max_gen_toks")} == {
        "do_sample": False, "repetition_penalty": 1.1, "max_gen_toks": 128,
    }  # fmt: skip


def test_the_fields_of_a_prompt_are_the_columns_of_the_data_set(tasks_hub):
    row = written(tasks_hub, "facebook/belebele")[2]
    doc = load("neuroglot_paper_belebele", tasks_hub).eval_docs[2]
    assert (doc["passage"], doc["question"]) == (row["flores_passage"], row["question"])
    assert doc["options"] == [row[f"mc_answer{number}"] for number in range(1, 5)]
    assert doc["answer"] == int(row["correct_answer_num"]) - 1
    row = written(tasks_hub, "Helsinki-NLP/opus-100")[3]["translation"]
    doc = load("neuroglot_paper_opus_from_en", tasks_hub).eval_docs[3]
    assert (doc["source"], doc["target"]) == (row["en"], row["mk"])
    row = written(tasks_hub, "allenai/ai2_arc")[1]
    doc = load("neuroglot_paper_arc_easy", tasks_hub).eval_docs[1]
    assert doc["options"][doc["answer"]] == row["choices"]["text"][int(row["answerKey"]) - 1]
    assert doc["letters"] == 4  # of the first question, as the paper's script reads all
    row = written(tasks_hub, "Rowan/hellaswag")[1]
    doc = load("neuroglot_paper_hellaswag", tasks_hub).eval_docs[1]
    assert (doc["question"], doc["answer"]) == (row["ctx"], int(row["label"]))


def test_a_pair_of_opus_is_named_in_the_order_of_the_alphabet(tmp_path):
    write(tmp_path / "Helsinki-NLP/opus-100", "af-en", "test", [{"translation": {"af": "een", "en": "one"}}])
    doc = load("neuroglot_paper_opus_to_en", tmp_path, find_language("af")).eval_docs[0]
    assert (doc["source"], doc["target"], doc["into"]) == ("een", "one", "English")


def test_the_languages_are_called_what_the_paper_calls_them():
    names = "Maltese Afrikaans Icelandic Welsh Macedonian Latvian Lithuanian Slovenian Slovak Estonian Georgian Nepali"
    assert [find_language(code).name for code in PAPER_LANGUAGES] == names.split()


def test_the_harness_finds_its_own_tasks_in_the_folder(tasks_hub):
    rows = written(tasks_hub, "jumelet/multiblimp")
    pairs = [request.args for request in requests_of(load("multiblimp_mkd", tasks_hub))]
    assert pairs == [("", row[side]) for row in rows for side in ("sen", "wrong_sen")]
    rows = written(tasks_hub, "mrlbenchmarks/global-piqa-nonparallel")
    pairs = [request.args for request in requests_of(load("global_piqa_nonparallel_cloze_mkd_cyrl", tasks_hub))]
    assert pairs == [(row["prompt"], f" {row[side]}") for row in rows for side in ("solution0", "solution1")]


def test_the_suites_of_the_papers_languages_have_what_method_and_data_sets_say():
    found = {code: {task.name: task for task in choose_tasks(list(SUITES), [find_language(code)])}
             for code in PAPER_LANGUAGES}  # fmt: skip
    grammar = {code: "multiblimp" if f"multiblimp_{code}" in tasks else "pairs" for code, tasks in found.items()}
    assert {code for code, kind in grammar.items() if kind == "pairs"} == {"mt", "af", "ne"}
    assert found["lv"]["multiblimp_lv"].harness == "multiblimp_lav"
    assert found["et"]["multiblimp_et"].harness == "multiblimp_est"
    piqa = {code for code, tasks in found.items() if not tasks[f"global_piqa_cloze_{code}"].why_not}
    assert piqa == {"et", "is", "ka", "lt", "mk", "ne", "sk", "sl"}
    assert {code for code, tasks in found.items() if tasks[f"belebele_cloze_{code}"].why_not} == {"cy"}
    assert found["cy"]["belebele_cloze_cy"].why_not == "Belebele has no Welsh (cy)"
    assert not [name for tasks in found.values() for name, task in tasks.items() if "opus" in name and task.why_not]


def test_tasks_by_name_with_a_language_of_their_own_and_another_metric():
    cy = find_language("cy")
    assert [task.name for task in choose_tasks(["sib200_cloze", "mmlu"], [cy])] == ["sib200_cloze_cy", "mmlu"]
    (other,) = choose_tasks(["sib200_cloze_mt:acc"], [cy])
    assert (other.language, other.main) == (find_language("mt"), "acc")
    assert choose_tasks(["mmlu", "paper_piqa"], [])[0].harness == "neuroglot_mmlu"
    assert [task.harness for task in choose_tasks(["multiblimp"], [cy])] == ["multiblimp_cym"]
    assert [task.harness for task in choose_tasks(["multiblimp"], [])] == ["multiblimp"]  # the harness's tag, all of it
    assert [task.name for task in choose_tasks(["base", "bits_per_byte"], [cy])].count("bits_per_byte_cy") == 1
    several = choose_tasks(["skills"], [cy, find_language("mt")])
    assert [task.name for task in several].count("mmlu") == 1
    assert {"word_list_cy", "word_list_mt"} <= {task.name for task in several}
    outside = choose_tasks(["base"], [find_language("gla-Latn")])
    assert {task.name for task in outside} >= {"bits_per_byte_gd", "multiblimp_gd"}
    strange = {task.name: task for task in choose_tasks(["paper"], [find_language("xxx-Latn")])}
    assert strange["paper_opus_to_en_xxx-Latn"].why_not == "OPUS-100 has no xxx-Latn"


def test_an_evaluation_of_english_translates_nothing():
    assert not [task.name for task in choose_tasks(["paper"], [find_language("en")]) if "flores" in task.name]


@pytest.mark.parametrize(("name", "languages", "reason"), [
    ("papre", ["cy"], r"neither a suite \(paper, base, skills\).*did you mean 'paper'"),
    ("sib200_close", ["cy"], r"did you mean '\w*sib200_cloze"),
    ("base", [], r"suite base needs a language: give --language"),
    ("word_list", [], r"task word_list needs a language"),
])  # fmt: skip
def test_unknown_names_and_missing_languages_are_one_line(name, languages, reason):
    with pytest.raises(UserError, match=reason):
        choose_tasks([name], [find_language(code) for code in languages])


def test_no_task_at_all_is_refused():
    with pytest.raises(UserError, match="--tasks names no task"):
        choose_tasks([], [MACEDONIAN])


def change(root, name, keep):
    """Rewrites every parquet file of a data set with other rows."""
    import pyarrow as pa
    import pyarrow.parquet as pq

    for path in (root / name).glob("**/*.parquet"):
        rows = keep(pq.read_table(path))
        pq.write_table(rows if isinstance(rows, pa.Table) else pa.Table.from_pylist(rows), path)


@pytest.mark.parametrize(("name", "data_set", "keep", "reason"), [
    ("neuroglot_paper_belebele", "facebook/belebele", lambda t: t.drop_columns(["mc_answer3"]),
     r"facebook/belebele has no column mc_answer3; it has link, "),
    ("neuroglot_paper_belebele", "facebook/belebele", lambda t: t.slice(0, 0), "belebele has no items"),
    ("multiblimp_mkd", "jumelet/multiblimp", lambda t: t.drop_columns(["wrong_sen"]),
     r"multiblimp does not have what the task asks for \(.*\); the task expects the columns sen, wrong_sen"),
    ("multiblimp_mkd", "jumelet/multiblimp", lambda t: t.slice(0, 0), "jumelet/multiblimp has no items"),
])  # fmt: skip
def test_a_missing_column_and_an_empty_data_set_are_one_line(tasks_hub, tmp_path, name, data_set, keep, reason):
    shutil.copytree(tasks_hub / data_set, tmp_path / data_set)
    change(tmp_path, data_set, keep)
    with pytest.raises(UserError, match=reason) as error:
        load(name, tmp_path)
    assert "\n" not in str(error.value)


@pytest.mark.slow
def test_what_would_run_code_is_refused(tmp_path):
    with pytest.raises(UserError, match="task humaneval runs code that the model writes"):
        load("humaneval", tmp_path)
    script = tmp_path / "jumelet/multiblimp/multiblimp.py"
    script.parent.mkdir(parents=True)
    script.write_text(f"open({str(tmp_path / 'ran')!r}, 'w')")
    with pytest.raises(UserError, match=r"jumelet/multiblimp (is a script, which is not run here|is not to be had)"):
        load("multiblimp_mkd", tmp_path)
    with pytest.raises(UserError, match="metric bleu is code from the hub, which is not run here"):
        load("meqsum", tmp_path)
    assert not (tmp_path / "ran").exists()


def test_data_that_is_nowhere_and_a_language_that_flores_lacks_are_one_line(tasks_hub, tmp_path):
    with pytest.raises(UserError, match=r"cannot reach facebook/belebele, because HF_HUB_OFFLINE is set; .*--data_dir"):
        load("neuroglot_belebele_cloze", tmp_path)
    with pytest.raises(UserError, match=r"has no Welsh \(cy\): no cym_Latn"):
        load("neuroglot_bits_per_byte", tasks_hub, find_language("cy"))


@pytest.mark.slow
def test_a_digest_is_of_what_is_asked_and_the_same_in_every_process(tasks_hub, tmp_path):
    import os
    import subprocess
    import sys

    names = ("neuroglot_paper_sib200", "hellaswag", "winogrande")
    ours = [task_digest(load(name, tasks_hub), 5) for name in names]
    code = (
        "import sys; from pathlib import Path; from lightning_app.languages import find_language\n"
        "from lightning_app.evaluation.loading import TaskData, load_tasks, task_digest\n"
        "root = Path(sys.argv[1]); data = TaskData(root, str(root), root)\n"
        "for name in sys.argv[2:]: print(task_digest(load_tasks(name, find_language('mk'), data)[0], 5))"
    )
    theirs = subprocess.run([sys.executable, "-c", code, str(tasks_hub), *names], capture_output=True, text=True,
                            cwd=ROOT, env={**os.environ, "PYTHONHASHSEED": "7"}).stdout.split()  # fmt: skip
    assert theirs == ours
    assert task_digest(load("hellaswag", tasks_hub), 4) != ours[1]
    assert task_digest(load("neuroglot_sib200_cloze", tasks_hub), 5) != ours[0]


def test_minimal_pairs_differ_by_one_corruption(tasks_hub):
    task = load("neuroglot_minimal_pairs", tasks_hub)
    kinds = {"exchanged": 0, "deleted": 0}
    for doc in task.eval_docs:
        good, bad = doc["good"].split(), doc["bad"].split()
        kinds[doc["kind"]] += 1
        if doc["kind"] == "deleted":
            assert any(good[:n] + good[n + 1 :] == bad for n in range(1, len(good) - 1))
        else:
            moved = [n for n, (one, other) in enumerate(zip(good, bad, strict=True)) if one != other]
            assert len(moved) == 2
            assert moved[1] == moved[0] + 1
    assert min(kinds.values()) > ROWS
    assert json.dumps(list(task.eval_docs)) == json.dumps(list(load("neuroglot_minimal_pairs", tasks_hub).eval_docs))
