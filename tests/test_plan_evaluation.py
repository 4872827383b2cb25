"""What `plan --evaluate` says beforehand, against what an evaluation runs through a model."""

import json
from pathlib import Path

import datasets
import pytest
import torch
from huggingface_hub import constants

from lightning_app.adapted import load_adapted
from lightning_app.cli import main
from lightning_app.errors import UserError
from lightning_app.evaluation.harness import ModelInMemory
from lightning_app.evaluation.loading import TaskData, load_tasks
from lightning_app.evaluation.requests import requests_of
from lightning_app.evaluation.suites import SUITES, choose_tasks
from lightning_app.hub import client, offline
from lightning_app.languages import find_language
from lightning_app.model.base import Base, base_without_weights, load_tokenizer
from lightning_app.model.limit import forward_flop
from lightning_app.planning import task_load
from lightning_app.planning.evaluation import EvaluationPlanner, Place
from lightning_app.planning.task_load import Load, find_load
from tests.evaluation_hub import write_tasks

MACEDONIAN = find_language("mk")
SIZES = Path(task_load.__file__).with_name("task_sizes.tsv")
LLAMA_8B = {
    "model_type": "llama", "hidden_size": 4096, "intermediate_size": 14336, "num_hidden_layers": 32,
    "num_attention_heads": 32, "num_key_value_heads": 8, "vocab_size": 128256, "max_position_embeddings": 131072,
}  # fmt: skip


@pytest.fixture(scope="module")
def tasks_hub(tmp_path_factory):
    folder = tmp_path_factory.mktemp("tasks")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(datasets.config, "HF_DATASETS_CACHE", folder / "arrow")
        yield write_tasks(folder / "hub")


def tasks_of(language):
    return [task for task in choose_tasks(list(SUITES), [language]) if not task.why_not]


@pytest.mark.parametrize("name", ["sib200_cloze_mk", "mmlu", "bits_per_byte_mk", "hellaswag", "copied_pattern"])
def test_what_is_planned_runs_through_the_model(workplace, tasks_hub, name):
    """Sequences, and tokens with the padding of batches: exactly where all items are looked at."""
    adapted = load_adapted(workplace.folder / "runs/base/model")
    data = TaskData(tasks_hub, str(tasks_hub), tasks_hub)
    (task,) = choose_tasks([name], [MACEDONIAN])
    load = find_load(task, adapted.tokenizer, data, 128)
    (loaded,) = load_tasks(task.harness, task.language, data)
    rows = tokens = 0

    def count(module, args, kwargs):
        nonlocal rows, tokens
        ids = args[0] if args else kwargs["input_ids"]
        rows, tokens = rows + ids.shape[0], tokens + ids.numel()

    adapted.model.register_forward_pre_hook(count, with_kwargs=True)
    requests = requests_of(loaded)
    ModelInMemory(adapted, "").loglikelihood(requests)
    assert load.is_from_data
    assert load.items == len(loaded.eval_docs)
    looked_at = len(range(0, load.items, -(-load.items // 200)))
    assert load.sequences == pytest.approx(rows, rel=0.02 if looked_at < load.items else 0)
    planner = EvaluationPlanner(Base(adapted.model, adapted.base), adapted.tokenizer, data, torch.device("cpu"))
    padded = sum(count * longest for count, longest in planner.batches(load, planner.places[0]))
    assert load.tokens <= padded
    assert padded == pytest.approx(tokens, rel=0.05)


def test_every_task_of_the_suites_has_a_known_size_and_nothing_is_fetched_for_it(workplace, tmp_path, monkeypatch):
    monkeypatch.setattr(client.http.HTTPTransport, "handle_request", lambda *_: pytest.fail("the hub was asked"))
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)
    monkeypatch.setattr(datasets.config, "HF_HUB_OFFLINE", False)
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path / "arrow")
    tokenizer = load_tokenizer(str(workplace.folder / "runs/base/model"))
    data = TaskData(tmp_path, "openlanguagedata/flores_plus", tmp_path)
    for language in map(find_language, ("mk", "mt", "cy")):
        for task in tasks_of(language):
            load = find_load(task, tokenizer, data, None)
            assert load.is_from_data == (task.name == "copied_pattern"), task.name
            assert load.items > 0
            assert (load.answer_tokens > 0) == task.name.startswith("paper_")
    assert constants.HF_HUB_OFFLINE is False
    with pytest.raises(UserError), offline():
        load_tasks("wikitext", None, data)


@pytest.mark.slow
def test_known_sizes_are_those_of_the_real_data(shared, tmp_path, monkeypatch):
    """Where the shared folder has it, in a language with another script; hellaswag is there in part."""
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path / "arrow")
    hub = shared / "data/hub"
    data, bare = TaskData(hub, str(hub), tmp_path), TaskData(tmp_path, "openlanguagedata/flores_plus", tmp_path)
    monkeypatch.setattr(task_load, "_tokens_per_character", lambda *_: 1.0)
    tokenizer = CharacterTokens()
    for name in ("bits_per_byte_mk", "minimal_pairs_ne", "sib200_cloze_mk", "winogrande", "arc_easy", "mmlu"):
        (task,) = choose_tasks([name], [MACEDONIAN])
        found, known = find_load(task, tokenizer, data, None), find_load(task, tokenizer, bare, None)
        assert (found.is_from_data, known.is_from_data) == (True, False)
        assert known.items == pytest.approx(found.items, rel=0.05), name
        assert known.tokens == pytest.approx(found.tokens, rel=0.2), name


class CharacterTokens:
    """A token per character."""

    def __call__(self, texts, **_):
        one = isinstance(texts, str)
        return {"input_ids": list(texts) if one else [list(text) for text in texts]}


def test_a_load_is_timed_by_arithmetic_or_by_what_generating_reads():
    base = base_without_weights(None, None, torch.bfloat16, LLAMA_8B)
    planner = EvaluationPlanner(base, None, None, torch.device("cpu"))
    weights = 2 * base.identity.parameters
    place = Place("a card", rate=1e15, bandwidth=3e12, free=64e9)
    forward = 30 * 400 * forward_flop(base.model, 400)  # all in one batch, padded to the longest
    logits = 30 * 400 * 128256 * 2 * 3  # bytes: written, read, written as log-softmax
    expected = forward / 1e15 + logits / 3e12
    assert planner._seconds(Load(30, [100, 200, 400], 0.1, 0, True), place) == pytest.approx(expected)
    one = Load(1, [100], 1.0, 128, True)
    alone = 100 * forward_flop(base.model, 100) / 1e15
    cached = 2 * 32 * 8 * 128 * 2 * 164  # keys and values in 32 layers of 8 heads at the middle of the answer
    assert planner._seconds(one, place) == pytest.approx(alone + 128 * (weights + cached) / 3e12)
    fast = Place("a card with endless bandwidth", rate=1e15, bandwidth=1e30, free=64e9)
    step = forward_flop(base.model, 2 * 164)  # a token attends to all before it, twice the mean of a forward
    assert planner._seconds(one, fast) == pytest.approx(alone + 128 * step / 1e15)


def test_an_evaluation_of_8b_is_planned_from_known_sizes(tmp_path, monkeypatch):
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path / "arrow")
    base = base_without_weights(None, None, torch.bfloat16, LLAMA_8B)
    data = TaskData(tmp_path, "openlanguagedata/flores_plus", tmp_path)
    plan = EvaluationPlanner(base, CharacterTokens(), data, torch.device("cpu")).plan(["base", "paper"], [MACEDONIAN])
    assert plan.weights_gib == pytest.approx(14.96, abs=0.01)
    card = plan.limit_s["NVIDIA H100"]
    tokens = sum(task.tokens for task in plan.tasks)
    assert 2 * 7.5e9 * tokens / 989e12 < card < 3600
    assert plan.limit_s["NVIDIA H100"] < plan.limit_s["NVIDIA A100"] < plan.limit_s["NVIDIA RTX 4090"]


def plan(workplace, capsys, *more):
    arguments = [a for a in workplace.adapt(run_dir="planned") if not a.startswith(("--name", "fit"))]
    code = main(["plan", *arguments, *more])
    return code, capsys.readouterr()


def test_plan_says_it_in_text_and_json(workplace, tasks_hub, capsys):
    more = ["--language=mk", f"--data.files.mk={tasks_hub}/mk.txt", f"--data.flores={tasks_hub}", "--data.watch=[]"]
    (tasks_hub / "mk.txt").write_text("Еден два три.\n\n" * 500, encoding="utf-8")
    code, printed = plan(workplace, capsys, *more, "--evaluate=base,skills", f"--data_dir={tasks_hub}", "--json")
    assert code == 0, printed.err
    found = json.loads(printed.out.split("\n")[-2])["evaluation"]
    tasks = {task["task"]: task for task in found["tasks"]}
    assert tasks["belebele_cloze_mk"]["items"] == 8
    assert all(task["is_from_data"] for task in found["tasks"] if not task["why_not"])
    machine = next(iter(found["limit_s"]))
    assert found["limit_s"][machine] == pytest.approx(sum(t["limit_s"].get(machine, 0) for t in found["tasks"]))
    code, printed = plan(workplace, capsys, *more, "--evaluate=base")
    assert code == 0
    assert "belebele_cloze_mk" in printed.out
    assert "base and adapted on NVIDIA H100: " in printed.out
    assert "* by the known size of data that is not here" in printed.out


@pytest.mark.parametrize(
    ("more", "line"),
    [
        (["--evaluate=bsae"], "--evaluate has 'bsae', which is neither a suite"),
        (["--evaluate=base", "--data_dir=nowhere"], "--data_dir nowhere is no folder"),
        (["--evaluate="], "--evaluate is without a value"),
    ],
)
def test_what_cannot_be_planned_is_one_line(workplace, capsys, more, line):
    code, printed = plan(workplace, capsys, *more)
    assert code == 2
    assert line in printed.err
    assert printed.err.count("\n") == 1
