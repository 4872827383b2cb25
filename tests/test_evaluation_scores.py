"""Scores against others' computations: sacrebleu's command line, naive likelihoods, the harness on a saved model."""

import json
import logging
import math
import re
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from lm_eval import simple_evaluate
from lm_eval.models.huggingface import HFLM
from lm_eval.tasks import TaskManager

from lightning_app.adapted import load_adapted
from lightning_app.evaluation.harness import ModelInMemory, run_task
from lightning_app.evaluation.loading import TASKS, TaskData, load_tasks
from lightning_app.evaluation.requests import requests_of
from lightning_app.languages import find_language
from tests.evaluation_hub import with_longer_context, write_tasks

LIMIT = 12
NAMES = ("bits_per_byte", "sib200_cloze", "copied_pattern", "word_list", "paper_flores_from_en", "paper_sib200")


@pytest.fixture(scope="module")
def tasks_hub(tmp_path_factory):
    return write_tasks(tmp_path_factory.mktemp("tasks"))


@pytest.fixture(scope="module")
def adapted(workplace, tmp_path_factory):
    return load_adapted(with_longer_context(workplace, tmp_path_factory.mktemp("longer")), dtype=torch.float32)


@pytest.fixture(scope="module")
def model(adapted):
    return ModelInMemory(adapted, "adapted")


def load(name, root):
    (task,) = load_tasks(f"neuroglot_{name}", find_language("mk"), TaskData(root, str(root), root))
    return task


@pytest.fixture(scope="module")
def measured(model, tasks_hub):
    return {name: run_task(model, load(name, tasks_hub), "asked", None, LIMIT) for name in NAMES}


def log_likelihood(adapted, context, continuation):
    """By plain transformers, one sequence at a time: the sum over the tokens of the continuation."""
    tokenizer = adapted.tokenizer
    begin = tokenizer(context).input_ids if context else [tokenizer.bos_token_id or tokenizer.eos_token_id]
    ids = tokenizer(context + continuation).input_ids if context else begin + tokenizer(continuation).input_ids
    with torch.no_grad():
        log_probs = adapted.model(torch.tensor([ids])).logits[0].double().log_softmax(-1)
    return sum(log_probs[place - 1, ids[place]].item() for place in range(len(begin), len(ids)))


def test_likelihoods_agree_with_a_naive_loop_over_plain_transformers(adapted, model, measured, tasks_hub):
    task = load("bits_per_byte", tasks_hub)
    texts = [doc["text"] for doc in task.eval_docs][:LIMIT]
    bits = [-log_likelihood(adapted, "", text) / math.log(2) for text in texts]
    sizes = [len(text.encode()) for text in texts]
    found = measured["bits_per_byte"].metrics["bits_per_byte"]
    assert found.value == pytest.approx(sum(bits) / sum(sizes), rel=1e-5)
    assert found.items == pytest.approx([b / size for b, size in zip(bits, sizes, strict=True)], rel=1e-5)
    for name in ("sib200_cloze", "word_list", "copied_pattern"):
        task, scores = load(name, tasks_hub), measured[name]
        for number in range(LIMIT if name == "word_list" else 4):
            doc = task.eval_docs[number]
            context, choices = task.doc_to_text(doc), task.doc_to_choice(doc)
            delimiter = task.config.target_delimiter
            likely = [log_likelihood(adapted, context, delimiter + choice) for choice in choices]
            best = int(np.argmax(likely))
            by_length = int(np.argmax([one / len(choice) for one, choice in zip(likely, choices, strict=True)]))
            assert scores.metrics["acc"].items[number] == float(best == doc["answer"])
            assert scores.metrics["acc_norm"].items[number] == float(by_length == doc["answer"])
            assert scores.answers[number] == str(best)


def test_generated_answers_agree_with_plain_transformers_whatever_the_batch(adapted, measured, model, tasks_hub):
    """The repetition penalty reaches padding too: a shorter prompt of a batch must not be answered otherwise."""
    requests = requests_of(load("paper_flores_from_en", tasks_hub), LIMIT)
    assert len({len(adapted.tokenizer(request.args[0]).input_ids) for request in requests}) > 3
    for number, request in enumerate(requests):
        prompt, how = request.args
        ids = adapted.tokenizer(prompt, return_tensors="pt").input_ids
        out = adapted.model.generate(
            ids, attention_mask=torch.ones_like(ids), do_sample=False, repetition_penalty=1.1, max_new_tokens=128,
            pad_token_id=adapted.tokenizer.eos_token_id,
        )  # fmt: skip
        text = adapted.tokenizer.decode(out[0, ids.shape[1] :], skip_special_tokens=True)
        cut = min([text.find(stop) for stop in how["until"] if stop in text], default=len(text))
        assert measured["paper_flores_from_en"].answers[number] == text[:cut].strip()
    model._share, before = 1e-9, model._share
    try:
        assert model.sequences_that_fit(100, is_generated=True) == 1
        one_by_one = run_task(model, load("paper_flores_from_en", tasks_hub), "asked", None, LIMIT)
    finally:
        model._share = before
    assert one_by_one.answers == measured["paper_flores_from_en"].answers


def test_the_harness_says_the_same_of_the_same_weights_in_a_folder(adapted, measured, tasks_hub, tmp_path):
    logging.getLogger("lm_eval").setLevel(logging.ERROR)
    adapted.model.save_pretrained(tmp_path / "saved")
    adapted.tokenizer.save_pretrained(tmp_path / "saved")
    data = {"language": "mkd-Cyrl", "flores": str(tasks_hub), "cache_dir": str(tmp_path)}
    manager = TaskManager(include_path=str(TASKS), include_defaults=False, metadata=data)
    saved = HFLM(pretrained=str(tmp_path / "saved"), dtype="float32", device="cpu", batch_size=1)
    names = [f"neuroglot_{name}" for name in NAMES]
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(tasks_hub)
        found = simple_evaluate(saved, tasks=names, limit=LIMIT, task_manager=manager)["results"]
    for name, task in zip(NAMES, names, strict=True):
        for metric, ours in measured[name].metrics.items():
            assert ours.value == pytest.approx(found[task][f"{metric},none"], rel=1e-5), (name, metric)
            theirs = found[task].get(f"{metric}_stderr,none")
            if ours.items is not None and ours.weights is None and isinstance(theirs, float):
                assert ours.stderr == pytest.approx(theirs, rel=1e-6)


def test_translations_score_what_sacrebleus_command_line_says(measured, tmp_path):
    scores = measured["paper_flores_from_en"]
    (tmp_path / "reference").write_text("\n".join(scores.expected) + "\n")
    (tmp_path / "answers").write_text("\n".join(scores.answers) + "\n")

    def command_line(*options):
        program = Path(sys.executable).with_name("sacrebleu")
        command = [program, tmp_path / "reference", "-i", tmp_path / "answers", "-w", "6", *options]
        return subprocess.run(command, capture_output=True, text=True, check=True).stdout

    for name, options in {"bleu": ("-m", "bleu"), "chrf++": ("-m", "chrf", "--chrf-word-order", "2")}.items():
        corpus = json.loads(command_line(*options))
        assert scores.metrics[name].value == pytest.approx(corpus["score"], abs=1e-6)
        assert scores.metrics[name].signature == corpus["signature"]
    sentences = [re.match(r"BLEU\|(\S+) = (\S+) ", line) for line in command_line("-sl", "-m", "bleu").split("\n")[:-1]]
    ours = scores.metrics["sentence_bleu"]
    assert ours.items == pytest.approx([float(found[2]) for found in sentences], abs=1e-6)
    assert ours.value == pytest.approx(np.mean([float(found[2]) for found in sentences]), abs=1e-6)
    assert {found[1] for found in sentences} == {ours.signature}
