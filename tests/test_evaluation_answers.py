"""Answers are read as the paper reads them: by hand, and out of a model that is made to say what a test plants."""

import pytest
import torch
from transformers import LlamaForCausalLM
from transformers.modeling_outputs import CausalLMOutputWithPast

from lightning_app.adapted import AdaptedModel, load_adapted
from lightning_app.evaluation.harness import ModelInMemory, run_task
from lightning_app.evaluation.loading import TaskData, load_tasks
from lightning_app.evaluation.requests import requests_of
from lightning_app.languages import find_language
from tests.evaluation_hub import ROWS, with_longer_context, write_tasks

CHOICES = ("belebele", "sib200", "mmlu", "hellaswag", "piqa", "winogrande", "arc_easy", "arc_challenge")
TRANSLATIONS = ("flores_to_en", "flores_from_en", "opus_to_en", "opus_from_en")
# What is said after the prompt, and the option that is read from what stands before the first stop.
FOUR = [
    (" B", 1), (" B) Kim", 1), ("C.", 2), (" d", 3), (" The answer is A.", 0), ("I think (C) or D)", 2),
    (" A good question", 0), (" Because", None), (" E) none of them", None), (" It is B. Or C)", 2),
]  # fmt: skip
SEVEN = [
    (" G", 6), (" F) Entertainment", 5), ("E.", 4), (" g", 6), (" Topic: G)", 6), (" Health", None),
    (" A text about sports", 0), (" H) History", None), ("(D)", 3), (" C Politics", 2),
]  # fmt: skip
TWO = [
    (" A", 0), (" B) kim", 1), ("b.", 1), (" C", None), (" C) or B)", 1), (" the first", None), (" option A.", 0),
    (" A: B", None), (" B\nA)", 1), ("\nB", None),
]  # fmt: skip
OPTIONS = {"sib200": SEVEN, "piqa": TWO, "winogrande": TWO}


@pytest.fixture(scope="module")
def tasks_hub(tmp_path_factory):
    return write_tasks(tmp_path_factory.mktemp("tasks"))


def load(name, root):
    (task,) = load_tasks(f"neuroglot_{name}", find_language("mk"), TaskData(root, str(root), root))
    return task


class Parrot(LlamaForCausalLM):
    """Goes on with a prompt as it was planted, one token after the other, whatever its weights are."""

    def plant(self, texts, tokenizer):
        """Makes it say texts, by prompt; in likelihoods, texts that were planted are sure and all others even."""
        self.next = {}
        for prompt, text in texts.items():
            begin = tokenizer(prompt).input_ids
            ids = begin + tokenizer(prompt + text).input_ids[len(begin) :] + [tokenizer.eos_token_id]
            self.next |= {tuple(ids[:place]): ids[place] for place in range(len(begin), len(ids))}

    def generate(self, input_ids, attention_mask=None, **options):
        self.rows = [row[mask.bool()].tolist() for row, mask in zip(input_ids, attention_mask, strict=True)]
        return super().generate(input_ids=input_ids, attention_mask=attention_mask, **options)

    def forward(self, input_ids, past_key_values=None, **options):
        logits = torch.zeros(*input_ids.shape, self.config.vocab_size)
        is_generating = past_key_values is not None
        if is_generating and input_ids.shape[1] == 1:
            self.rows = [[*row, new] for row, new in zip(self.rows, input_ids[:, 0].tolist(), strict=True)]
        for number, row in enumerate(self.rows if is_generating else input_ids.tolist()):
            for place in [-1] if is_generating else range(len(row)):
                seen = tuple(row if place == -1 else row[: place + 1])
                logits[number, place, self.next.get(seen, self.config.eos_token_id)] = 9.0 if seen in self.next else 0.0
        if is_generating:  # what generate asks a cache for
            heads = torch.zeros(len(input_ids), 1, input_ids.shape[1], 1)
            past_key_values.update(heads, heads, 0)
        return CausalLMOutputWithPast(logits=logits, past_key_values=past_key_values)


@pytest.fixture(scope="module")
def parrot(workplace, tmp_path_factory):
    base = load_adapted(with_longer_context(workplace, tmp_path_factory.mktemp("longer"), tokens=4096))
    model = Parrot(base.model.config).eval()
    return ModelInMemory(AdaptedModel(model, base.base, None, base.tokenizer_name), "parrot")


def say(parrot, task, texts):
    """Measures a model that says the texts, one for each item of a task."""
    requests = requests_of(task, len(texts))
    parrot.model.plant({r.args[0]: text for r, text in zip(requests, texts, strict=True)}, parrot.tokenizer)
    return run_task(parrot, task, "asked", None, len(texts))


@pytest.mark.parametrize("name", CHOICES)
def test_ten_answers_are_read_as_by_hand(tasks_hub, name):
    task = load(f"paper_{name}", tasks_hub)
    stops = requests_of(task, 1)[0].args[1]["until"]
    doc = dict(task.eval_docs[1])
    for said, option in OPTIONS.get(name, FOUR):
        kept = min((said.split(stop)[0] for stop in stops), key=len)
        figures = [task.process_results({**doc, "answer": right}, [kept]) for right in range(7)]
        assert [f["acc"] for f in figures] == [float(right == option) for right in range(7)], said
        assert figures[0]["is_read"] == float(option is not None)


@pytest.mark.parametrize("name", CHOICES)
def test_a_model_that_says_the_right_letter_scores_one(parrot, tasks_hub, name):
    task = load(f"paper_{name}", tasks_hub)
    right = ["ABCDEFG"[doc["answer"]] for doc in task.eval_docs]
    scores = say(parrot, task, [f" {letter}) so" for letter in right])
    assert (scores.metrics["acc"].value, scores.metrics["is_read"].value) == (1.0, 1.0)
    assert (scores.items, scores.expected) == (ROWS, right)
    wrong = ["BA"[letter == "B"] for letter in right]
    assert say(parrot, task, [f" {letter}." for letter in wrong]).metrics["acc"].value == 0.0


@pytest.mark.parametrize("heading", ["Question:", "\n", " Answer:", "A:", "Options:", "The passage", "Human:"])
def test_a_heading_cuts_what_comes_after_it(parrot, tasks_hub, heading):
    task = load("paper_mmlu", tasks_hub)
    right = ["ABCD"[doc["answer"]] for doc in task.eval_docs]
    first = say(parrot, task, [f"{heading} {letter})" for letter in right])
    assert (first.metrics["acc"].value, first.metrics["is_read"].value) == (0.0, 0.0)
    assert [answer.strip() for answer in first.answers] == [""] * ROWS
    after = say(parrot, task, [f" {letter}) yes{heading} {'AB'[letter == 'A']})" for letter in right])
    assert after.metrics["acc"].value == 1.0
    assert [answer.strip() for answer in after.answers] == [f"{letter}) yes" for letter in right]


@pytest.mark.parametrize("name", TRANSLATIONS)
def test_a_model_that_translates_rightly_scores_a_hundred(parrot, tasks_hub, name):
    task = load(f"paper_{name}", tasks_hub)
    targets = [doc["target"] for doc in task.eval_docs][:ROWS]
    for said in (" {}", " {}\nand more", " {} Translation: other", "{}</s>", " {} The translation is good"):
        scores = say(parrot, task, [said.format(target) for target in targets])
        assert scores.answers == targets
        for metric in ("sentence_bleu", "bleu", "chrf++"):
            assert scores.metrics[metric].value == pytest.approx(100)
    for said in ("\n{}", "Translate: {}", " Text: {}", "Q: {}"):
        scores = say(parrot, task, [said.format(target) for target in targets])
        assert scores.answers == [""] * ROWS
        assert scores.metrics["bleu"].value == 0.0


@pytest.mark.parametrize("name", ["sib200_cloze", "belebele_cloze", "mmlu", "copied_pattern", "word_list"])
def test_a_model_that_is_sure_of_the_right_choice_scores_one(parrot, tasks_hub, name):
    task = load(name, tasks_hub)
    right = {}
    for request in requests_of(task, 20):
        if request.idx == task.doc_to_target(request.doc):
            right[request.args[0]] = request.args[1]
    parrot.model.plant(right, parrot.tokenizer)
    scores = run_task(parrot, task, "asked", None, 20)
    assert scores.metrics["acc"].value == 1.0
    assert scores.answers == scores.expected
