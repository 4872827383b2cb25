"""Translation and the in-context probe at validations: what is asked, what is counted; training goes on as ever."""

import json
import math
import re
import subprocess
import sys

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch
from sacrebleu.metrics import BLEU, CHRF

from datamodules.flores import read_parallel
from datamodules.invented import parallel_sentences
from lightning_app.adapted import load_adapted
from lightning_app.cli import main
from lightning_app.errors import UserError
from lightning_app.evaluation.gathered_answers import GatheredAnswers
from lightning_app.evaluation.loading import TaskData
from lightning_app.evaluation.validation_items import read_questions, read_translations
from lightning_app.languages import find_language
from lightning_app.model.generation import answer_prompts
from lightning_app.run import RunFolder
from tests.conftest import ROOT
from tests.test_answers import one_by_one

TARGET, ENGLISH = find_language("qah-Deva"), find_language("en")
SENTENCES = 5


def write_flores(folder, dev, devtest):
    """A FLORES of invented sentences, in which one of the languages stands for English."""
    for split, sentences in (("dev", dev), ("devtest", devtest)):
        (folder / split).mkdir(parents=True)
        for code, texts in sentences.items():
            name = {"qab-Latn": "eng_Latn"}.get(code, code.replace("-", "_"))
            pq.write_table(pa.table({"text": texts}), folder / split / f"{name}.parquet")
    return folder


@pytest.fixture(scope="module")
def flores(workplace, tmp_path_factory):
    """The workplace's own sentences."""
    root = workplace.hub / "openlanguagedata/flores_plus"
    read = {
        split: {code: pq.read_table(root / split / f"{code.replace('-', '_')}.parquet")["text"].to_pylist()
                for code in ("qaa-Latn", "qab-Latn", "qah-Deva")}
        for split in ("dev", "devtest")
    }  # fmt: skip
    return write_flores(tmp_path_factory.mktemp("flores"), **read)


def data_of(flores):
    return TaskData(None, str(flores), flores)


ASKED = [f"--trainer.translate={SENTENCES}", "--trainer.probe=true"]


@pytest.fixture(scope="module")
def told(workplace, flores):
    """The workplace's adapted run once more, translating and probing, and what it printed."""
    import contextlib
    import io

    out = io.StringIO()
    with contextlib.redirect_stdout(out):
        assert main([*workplace.adapt("told"), f"--data.flores={flores}", *ASKED]) == 0
    return workplace.folder / "told/adapted", out.getvalue()


def metrics_of(folder):
    return [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]


def figures_of(folder):
    return json.loads((folder / "run.json").read_text())["result"]["figures"]


def test_what_is_asked_is_the_papers_prompt_of_dev_sentences_that_devtest_lacks(tmp_path):
    sentences = parallel_sentences(12)
    dev = {code: texts[:8] for code, texts in sentences.items()}
    devtest = {code: texts[8:] for code, texts in sentences.items()}
    dev["qab-Latn"][1] = devtest["qab-Latn"][2]
    dev["qah-Deva"][3] = devtest["qah-Deva"][0]
    into, back = read_translations(TARGET, ENGLISH, 4, data_of(write_flores(tmp_path, dev, devtest)))
    kept = (0, 2, 4, 5)
    theirs, english = ([dev[code][number] for number in kept] for code in ("qah-Deva", "qab-Latn"))
    assert into.prompts == [f"Translate this sentence into English: {text} Translation:" for text in theirs]
    assert back.prompts == [f"Translate this sentence into qah-Deva: {text} Translation:" for text in english]
    assert (into.references, back.references) == (english, theirs)
    assert (into.name, back.name) == ("qah-Deva_to_en", "en_to_qah-Deva")
    assert (into.decoding.max_new_tokens, into.decoding.repetition_penalty) == (128, 1.1)
    assert {"\n", "Question:", "Translation:", "Assistant:"} <= set(into.decoding.stops)


def test_flores_that_is_not_parallel_is_one_line(tmp_path):
    sentences = parallel_sentences(12)
    flores = write_flores(tmp_path, {**sentences, "qab-Latn": sentences["qab-Latn"][1:]}, sentences)
    with pytest.raises(UserError, match="dev has 12 of qah-Deva, 11 of English"):
        read_parallel(str(flores), (TARGET, ENGLISH), "dev", tmp_path)


def test_word_lists_at_a_validation_are_of_dev(tmp_path):
    sentences, spoken = parallel_sentences(700), find_language("qac-Latn")
    dev, devtest = ({code: texts[part] for code, texts in sentences.items()} for part in (slice(400), slice(400, None)))
    data = data_of(write_flores(tmp_path, dev, devtest))
    asks = read_questions("word_list", spoken, data)
    heard = set(" ".join(dev[spoken.glotcc]).lower().split())
    assert len(asks.choices) >= 30
    assert asks.chance == 0.25
    assert all(choice.strip() in "".join(heard) for each in asks.choices for _, choice in each)
    assert asks == read_questions("word_list", spoken, data)
    other = read_questions("word_list", spoken, data_of(write_flores(tmp_path / "other", devtest, dev)))
    assert asks != other


def test_gathered_answers_are_those_that_were_given():
    """Empty ones and other scripts too; an answer of none of the processes is no answer."""
    answers = GatheredAnswers()
    answers.update(["", "ქართული", "a\nb"], ["x", "", "नेपाली"])
    answers.update([], [])
    answers.update(["last"], ["c"])
    assert answers.compute() == (["", "ქართული", "a\nb", "last"], ["x", "", "नेपाली", "c"])


def test_figures_are_sacrebleus_of_what_the_checkpoint_says_sentence_by_sentence(told, flores):
    """Without batches, stops, cache or torchmetrics."""
    folder, _ = told
    adapted = load_adapted(folder)
    found = figures_of(folder)["best"]
    for each in read_translations(TARGET, ENGLISH, SENTENCES, data_of(flores)):
        room, new = each.decoding.within(128)
        decoding = type(each.decoding)(each.decoding.stops, new, 1.1)
        ids = [adapted.tokenizer(prompt)["input_ids"][-room:] for prompt in each.prompts]
        said = [text.strip() for text in one_by_one(adapted.model, adapted.tokenizer, ids, decoding)]
        assert any(said)
        bleu = BLEU().corpus_score(said, [each.references]).score
        chrf = CHRF(word_order=2).corpus_score(said, [each.references]).score
        assert found[f"val/bleu/{each.name}"] == pytest.approx(bleu, abs=1e-3)
        assert found[f"val/chrf++/{each.name}"] == pytest.approx(chrf, abs=1e-3)
        assert found[f"val/empty_answers/{each.name}"] == sum(not text for text in said) / SENTENCES


def test_training_is_bit_identical_with_translation_and_probe(told, workplace):
    folder, plain = told[0], workplace.folder / "runs/adapted"
    one, other = (torch.load(each / "checkpoints/last.ckpt", weights_only=True) for each in (plain, folder))
    for name, weights in one["state_dict"].items():
        assert torch.equal(weights, other["state_dict"][name])
    for key, state in one["optimizer_states"][0]["state"].items():
        for name, value in state.items():
            assert torch.equal(value, other["optimizer_states"][0]["state"][key][name])
    own = ("time", "speed/", "val/bleu", "val/chrf", "val/empty", "val/in_context")
    rows = [metrics_of(each) for each in (plain, folder)]
    kept = [[{k: v for k, v in row.items() if not k.startswith(own)} for row in run] for run in rows]
    assert kept[0] == kept[1]
    assert {path.name for path in (plain / "checkpoints").iterdir()} == {
        path.name for path in (folder / "checkpoints").iterdir()
    }


def test_figures_are_logged_printed_and_kept(told):
    folder, out = told
    rows = metrics_of(folder)
    name = "val/chrf++/qah-Deva_to_en"
    values = {row["step"]: row[name] for row in rows if name in row}
    figures = figures_of(folder)
    assert sorted(values) == [0, 20, 40, 48]
    assert values[0] == figures["before"][name]
    assert values[48] == figures["last"][name]
    assert re.search(r"^before training: translation: BLEU qah-Deva to en [\d.]+, en to qah-Deva", out, re.MULTILINE)
    change = f"{values[48] - values[0]:+.2f}"
    (line,) = [line for line in out.split("\n") if line.startswith("step 48: translation")]
    assert f"chrF++ qah-Deva to en {values[48]:.2f} ({change})" in line
    assert re.search(r"^step 48: in context: copied pattern [\d.]+ % \([+-][\d.]+, chance 20 %\)$", out, re.MULTILINE)
    assert "in context: no word list of qah-Deva: only " in out
    assert f"{change})" in (folder / "summary.md").read_text()


def test_validate_tells_the_same_figures(told, flores, capsys):
    folder, _ = told
    best = RunFolder(folder).best_checkpoint()
    assert main(["validate", "--config", str(folder / "config.yaml"), f"--ckpt_path={best}"]) == 0
    printed, figures = capsys.readouterr().out, figures_of(folder)
    name = "val/chrf++/en_to_qah-Deva"
    change = figures["best"][name] - figures["before"][name]
    assert f"en to qah-Deva {figures['best'][name]:.2f} ({change:+.2f})" in printed


@pytest.mark.slow
def test_two_processes_translate_and_answer_as_one(told, workplace, flores):
    """An odd number of sentences, so that the shares differ."""
    arguments = workplace.adapt("shared", data__token_budget=1024, trainer__devices=2, trainer__strategy="ddp")
    command = [sys.executable, str(ROOT / "main.py"), *arguments, f"--data.flores={flores}", *ASKED]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    assert figures_of(workplace.folder / "shared/adapted")["before"] == figures_of(told[0])["before"]
    assert done.stdout.count("before training: translation") == 1


@pytest.mark.parametrize(
    ("keys", "precision"),
    [({"model__method": "lora", "model__rank": 4, "model__ema": 0.9}, "32-true"), ({}, "bf16-mixed")],
)
def test_the_average_and_other_methods_and_precisions_are_translated_with(workplace, flores, keys, precision):
    """As what the checkpoint makes says it: the average of the weights, in the precision of the run."""
    name = f"way-{precision}"
    arguments = [*workplace.adapt(name, data__token_budget=2560, **keys), f"--data.flores={flores}", ASKED[0]]
    assert main([*arguments, f"--trainer.precision={precision}"]) == 0
    adapted, found = load_adapted(workplace.folder / name / "adapted"), figures_of(workplace.folder / name / "adapted")
    for each in read_translations(TARGET, ENGLISH, SENTENCES, data_of(flores)):
        with torch.autocast("cpu", torch.bfloat16, enabled=precision == "bf16-mixed"):
            said = answer_prompts(adapted.model, adapted.tokenizer, each.prompts, each.decoding, 8)
        chrf = CHRF(word_order=2).corpus_score([text.strip() for text in said], [each.references]).score
        assert found["best"][f"val/chrf++/{each.name}"] == pytest.approx(chrf, abs=1e-3)
    assert all(math.isfinite(value) for value in found["last"].values())


@pytest.mark.parametrize(
    ("key", "line"),
    [
        ("--trainer.translate=-1", "--trainer.translate is -1; expected a number of sentences, or 0 for none"),
        ("--trainer.translate=4", "cannot read FLORES dev beside English: "),
    ],
)
def test_bad_keys_are_one_line_before_anything_is_counted(workplace, capsys, monkeypatch, key, line):
    """The workplace's own FLORES has no English."""
    monkeypatch.setattr("callbacks.profiling.Profiler", lambda *_: pytest.fail("the base was profiled"))
    assert main([*workplace.adapt("refused"), key]) == 2
    error = capsys.readouterr().err
    assert line in error
    assert error.count("\n") == 1
    assert not (workplace.folder / "refused/adapted").exists()
