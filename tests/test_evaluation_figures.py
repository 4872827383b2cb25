"""What becomes of the harness's results: figures and their noise, files, memory of batches, what a model cannot run."""

import json
import math
import shutil
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from sacrebleu.metrics import BLEU
from transformers import AutoModelForCausalLM

from benchmarks.measure import peak_bytes
from lightning_app.adapted import load_adapted
from lightning_app.errors import UserError
from lightning_app.evaluation import batches, harness, translation
from lightning_app.evaluation.batches import fitting, free_bytes, sequence_bytes
from lightning_app.evaluation.differences import differences
from lightning_app.evaluation.figures import read_figures
from lightning_app.evaluation.harness import ModelInMemory, UnfitError, run_task
from lightning_app.evaluation.loading import TaskData, load_tasks
from lightning_app.evaluation.scores import Metric, Scores
from lightning_app.languages import find_language
from lightning_app.model.architecture import read_architecture

REFERENCES = [f"the {word} cat sat on the mat today" for word in ("old", "new", "red", "big", "wet", "dry")] * 4


def found(items, value, higher=True):
    """As the harness gives a task's results."""
    samples = [{"doc_id": number, "filter": "none", "m": item} for number, item in enumerate(items)]
    return {"results": {"t": {"alias": "t", "m,none": value, "m_stderr,none": "N/A"}},
            "higher_is_better": {"t": {"m": higher}}, "samples": {"t": samples[::-1]}}  # fmt: skip


def metric_of(items, value, **options):
    samples, metrics = read_figures(found(items, value, **options), "t")
    assert [sample["doc_id"] for sample in samples] == list(range(len(items)))
    return metrics["m"]


def test_figures_keep_their_items_where_they_are_a_mean_of_them():
    plain = metric_of([0.0, 1.0, 1.0, 0.5], 0.625)
    assert plain.items == [0.0, 1.0, 1.0, 0.5]
    assert plain.stderr == pytest.approx(np.std([0, 1, 1, 0.5], ddof=1) / 2)
    ratio = metric_of([(10.0, 4), (2.0, 1)], 12 / 5, higher=False)
    assert (ratio.items, ratio.weights, ratio.higher_is_better) == ([2.5, 2.0], [4.0, 1.0], False)
    for items, value in (
        ([(-10.0, 4), (-2.0, 1)], math.exp(12 / 5)),  # perplexity
        ([(0, 1), (1, 0)], 0.3),  # a correlation of labels
        ([0.2, 0.9], 0.9),  # the largest
        ([("a", "b")], 17.0),
        ([None, None], 0.5),
    ):
        assert metric_of(items, value).items is None
        assert metric_of(items, value).value == value


def test_the_error_of_a_ratio_is_that_of_resampling():
    drawn = np.random.default_rng(0)
    below = drawn.integers(20, 200, 400).astype(float)
    above = below * drawn.normal(2.0, 0.3, 400)
    metric = metric_of(list(zip(above.tolist(), below.tolist(), strict=True)), above.sum() / below.sum())
    picks = drawn.integers(0, 400, (4000, 400))
    assert metric.stderr == pytest.approx(np.std(above[picks].sum(1) / below[picks].sum(1)), rel=0.05)


def scores(items, weights=None, name="acc", higher=True, answers=()):
    mean = float(np.average(items, weights=weights))
    metric = Metric(mean, 0.1, higher, list(items), None if weights is None else list(weights))
    return Scores("m", "asked", name, {name: metric}, list(answers), ["x"] * len(items))


def test_a_change_is_beyond_noise_where_its_resampled_interval_leaves_nought_out():
    drawn = np.random.default_rng(1)
    before = drawn.integers(0, 2, 300).astype(float)
    slight, clear = before.copy(), np.minimum(1.0, before + (drawn.random(300) < 0.2))
    slight[:6] = 1 - slight[:6]
    one = differences(scores(before), scores(slight))["acc"]
    assert (one.verdict, one.is_tested) == ("", True)
    other = differences(scores(before), scores(clear))["acc"]
    assert other.verdict == "better"
    change = clear - before  # the interval of a mean, by the normal distribution
    half = 1.96 * change.std(ddof=1) / math.sqrt(300)
    assert (other.low, other.high) == pytest.approx((change.mean() - half, change.mean() + half), abs=half / 10)
    assert differences(scores(before, higher=False), scores(clear, higher=False))["acc"].verdict == "worse"
    same = differences(scores(before), scores(before))["acc"]
    assert (same.low, same.high, same.verdict) == (0.0, 0.0, "")


def test_an_interval_of_a_ratio_is_of_the_resampled_ratio():
    drawn = np.random.default_rng(2)
    weights, before = drawn.integers(10, 300, 200).astype(float), drawn.normal(2, 0.4, 200)
    after = before - drawn.normal(0.05, 0.1, 200)
    change = differences(scores(before, weights), scores(after, weights))["acc"]
    assert change.change == pytest.approx(np.average(after - before, weights=weights))
    picks = np.random.default_rng(9).integers(0, 200, (10_000, 200))
    naive = ((after - before) * weights)[picks].sum(1) / weights[picks].sum(1)
    assert (change.low, change.high) == pytest.approx(tuple(np.quantile(naive, [0.025, 0.975])), abs=2e-3)


def test_few_items_are_not_tested_and_other_items_are_not_compared():
    few = differences(scores([0.0] * 4), scores([1.0] * 4))["acc"]
    assert (few.is_tested, few.verdict) == (False, "")
    with pytest.raises(UserError, match="measured on other items or settings"):
        differences(scores([0.0] * 20), replace(scores([1.0] * 20), asked="other"))


def translated(answers):
    metrics = {name: Metric(translation.corpus_value(name, answers, REFERENCES)) for name in ("bleu", "chrf++")}
    sentence = Metric(0.0, items=[0.0] * len(answers))
    return translation.sign_translation(
        Scores("m", "asked", "sentence_bleu", {"sentence_bleu": sentence, **metrics}, answers, REFERENCES)
    )


def test_corpora_are_compared_by_sacrebleus_paired_test():
    bad = [text.replace("cat", "dog").replace("mat", "rug") for text in REFERENCES]
    good = [text if number % 3 else bad[number] for number, text in enumerate(REFERENCES)]
    changed = differences(translated(bad), translated(good))
    assert {name: changed[name].verdict for name in ("bleu", "chrf++")} == {"bleu": "better", "chrf++": "better"}
    assert differences(translated(good), translated(good))["bleu"].p == 1.0
    none = ["zzz"] * len(REFERENCES)
    other = ["yyy"] * len(REFERENCES)
    assert differences(translated(none), translated(other))["bleu"].verdict == ""


def test_spbleu_is_sacrebleus_where_its_model_is_and_told_where_it_is_not(tmp_path, monkeypatch):
    spm = pytest.importorskip("sentencepiece", reason="spBLEU needs sentencepiece")
    path = tmp_path / "models/flores200sacrebleuspm"
    monkeypatch.setattr(translation, "SACREBLEU_DIR", str(tmp_path))
    monkeypatch.setattr("sacrebleu.tokenizers.tokenizer_spm.SACREBLEU_DIR", str(tmp_path))
    translation.why_no_spbleu.cache_clear()
    try:
        without = translated(REFERENCES[::-1])
        assert "spbleu" not in without.metrics
        assert "HF_HUB_OFFLINE is set" in without.left_out["spbleu"]
        assert not list(tmp_path.glob("models/*"))
        spm.SentencePieceTrainer.train(
            sentence_iterator=iter(REFERENCES), model_prefix=str(tmp_path / "m"), vocab_size=24, minloglevel=2
        )
        path.parent.mkdir(exist_ok=True)
        path.write_bytes((tmp_path / "m.model").read_bytes()[:50])
        translation.why_no_spbleu.cache_clear()
        assert "is no tokenizer model" in translation.why_no_spbleu()
        shutil.copy(tmp_path / "m.model", path)
        translation.why_no_spbleu.cache_clear()
        later = translation.sign_translation(without)  # from the answers that were kept
        expected = BLEU(tokenize="flores200").corpus_score(REFERENCES[::-1], [REFERENCES])
        assert later.metrics["spbleu"].value == expected.score
        assert "tok:flores200" in later.metrics["spbleu"].signature
        assert later.left_out == {}
    finally:
        translation.why_no_spbleu.cache_clear()


def test_scores_come_back_from_their_file_and_a_damaged_one_is_one_line(tmp_path):
    path = tmp_path / "task.json"
    kept = replace(scores([0.5, 1.0]), cut_short=1, requests=8, left_out={"spbleu": "why"}, made_by={"lm_eval": "0"})
    kept.metrics["perplexity"] = Metric(math.nan, higher_is_better=False)
    kept.save(path)
    again = Scores.load(path)
    assert math.isnan(again.metrics.pop("perplexity").value)
    assert again == replace(kept, metrics={"acc": kept.metrics["acc"]})
    for content in ("", "[]", '{"metrics": {"acc": 1}}', path.read_text()[:-40], json.dumps({"metrics": {}})):
        path.write_text(content)
        with pytest.raises(UserError, match=r"does not hold the scores of a task .*; delete it and run again"):
            Scores.load(path)


def new_model(dtype=torch.float32, vocabulary=128_256, **keys):
    shape = {"model_type": "llama", "hidden_size": 64, "intermediate_size": 160, "num_hidden_layers": 4,
             "num_attention_heads": 4, "num_key_value_heads": 2, "vocab_size": vocabulary, "pad_token_id": 0,
             "max_position_embeddings": 2048, "bos_token_id": 1, "eos_token_id": 2}  # fmt: skip
    config = read_architecture({**shape, **keys})
    return AutoModelForCausalLM.from_config(config, dtype=dtype).eval().requires_grad_(False)


@pytest.mark.parametrize("keys", [
    {}, {"dtype": torch.bfloat16}, {"vocabulary": 512, "hidden_size": 256, "num_hidden_layers": 12},
    {"vocabulary": 8192, "attn_implementation": "eager", "model_type": "gemma2", "head_dim": 16},
])  # fmt: skip
def test_a_batch_takes_no_more_memory_than_was_counted_and_not_much_less(keys):
    model, sequences, tokens = new_model(**keys), 4, 96
    ids = torch.ones(sequences, tokens, dtype=torch.int64)

    @torch.no_grad()
    def likelihoods():
        log_probs = None
        for _ in range(2):  # the harness holds what the batch before came to
            log_probs = model(input_ids=ids).logits.log_softmax(-1)
        return log_probs

    @torch.no_grad()
    def answers():
        mask = (torch.arange(tokens) > 40) | (torch.arange(sequences) > 0).unsqueeze(1)
        return model.generate(input_ids=ids, attention_mask=mask.long(), max_new_tokens=16, do_sample=False,
                              repetition_penalty=1.1, eos_token_id=None, use_cache=True)  # fmt: skip

    device = torch.device("cpu")
    counted = sequences * sequence_bytes(model, tokens, is_generated=False)
    assert 1 <= counted / peak_bytes(likelihoods, device) * 1.02 <= 2.5
    counted = sequences * sequence_bytes(model, tokens + 16, is_generated=True) + batches._packed_weights(model)
    assert 1 <= counted / peak_bytes(answers, device) <= 2.5


def test_batches_fill_the_memory_that_is_free_and_no_more(monkeypatch):
    model = new_model()
    for free in (4e8, 2e9, 2e10):
        count = fitting(model, 200, False, free)
        assert count * sequence_bytes(model, 200, False) <= free < 2 * count * sequence_bytes(model, 200, False)
    assert fitting(model, 200, False, 1.0) == 1
    assert fitting(model, 200, True, 2e9) == 256
    assert 0 < free_bytes(torch.device("cpu")) < 2**44


def test_memory_is_what_a_container_leaves(tmp_path, monkeypatch):
    (tmp_path / "memory.max").write_text("8589934592\n")
    (tmp_path / "memory.current").write_text("6442450944\n")
    (tmp_path / "memory.stat").write_text("anon 1\ninactive_file 1073741824\nactive_file 7\n")
    real = Path
    monkeypatch.setattr(batches, "Path", lambda path: tmp_path if path == "/sys/fs/cgroup" else real("/none"))
    assert batches._left_in_groups() == [3 * 2**30]
    (tmp_path / "memory.max").write_text("max\n")
    assert batches._left_in_groups() == []


def test_what_a_model_cannot_read_is_told(workplace, tmp_path, hub):
    """The tests' base reads 128 tokens at once: too few for an answer of 128, and for a long prompt."""
    model = ModelInMemory(load_adapted(workplace.folder / "runs/base/model"), "base")
    data = TaskData(None, str(hub), tmp_path)
    (task,) = load_tasks("neuroglot_bits_per_byte", find_language("qah-Deva"), data)
    assert run_task(model, task, "asked", None, 3).cut_short == 0
    model._max_length = 12
    with pytest.raises(UnfitError, match=r"an answer has \d+ tokens, and the model reads 12 at once"):
        run_task(model, task, "asked", None, 3)
    (task,) = load_tasks("neuroglot_copied_pattern", None, data)
    short = run_task(model, task, "asked", None, 3)
    assert short.cut_short == short.requests > 0
    model._max_length = 128
    flores = tmp_path / "flores/devtest"
    shutil.copytree(hub / "openlanguagedata/flores_plus/devtest", flores)
    shutil.copy(flores / "qac_Latn.parquet", flores / "eng_Latn.parquet")
    (task,) = load_tasks(
        "neuroglot_paper_flores_to_en", find_language("qah-Deva"), replace(data, flores=str(flores.parent))
    )
    with pytest.raises(UnfitError, match="an answer has up to 128 tokens, and the model reads 128 at once"):
        run_task(model, task, "asked", None, 3)


def test_a_device_without_memory_gets_smaller_batches_then_gives_up(workplace, tmp_path, hub, monkeypatch):
    model = ModelInMemory(load_adapted(workplace.folder / "runs/base/model"), "base")
    (task,) = load_tasks("neuroglot_copied_pattern", None, TaskData(None, str(hub), tmp_path))
    expected, sizes, plain = run_task(model, task, "asked", None, 3), [], harness.HFLM._model_call

    def small_device(self, inps, **options):
        sizes.append(len(inps))
        if len(inps) > 4:
            raise torch.OutOfMemoryError
        return plain(self, inps, **options)

    monkeypatch.setattr(harness.HFLM, "_model_call", small_device)
    monkeypatch.setattr(harness, "free_bytes", lambda device: 200 * sequence_bytes(model.model, 20, False))
    again = run_task(model, task, "asked", None, 3)
    assert max(sizes) > 4 >= min(sizes)
    assert replace(again, seconds=0) == replace(expected, seconds=0)
    monkeypatch.setattr(harness.HFLM, "_model_call", lambda self, inps, **options: small_device(self, [0] * 9))
    with pytest.raises(UnfitError, match="has no memory left"):
        run_task(model, task, "asked", None, 3)
