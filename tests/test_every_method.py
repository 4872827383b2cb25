"""Every method through the whole program: killed and gone on with, measured, planned, averaged, with replay."""

import json
import os
import re
import subprocess
import sys

import pytest
import torch
from transformers import AutoModelForCausalLM, AutoTokenizer

from datamodules.flores import read_flores
from lightning_app.adapted import load_adapted
from lightning_app.cli import main
from lightning_app.files import load_checkpoint
from lightning_app.languages import find_language
from lightning_app.methods.registry import METHODS, method_keys
from lightning_app.run import RunFolder
from tests.conftest import ROOT

STEPS = 48
ALIKE = ("random", "random_per_layer", "last_layers", "hft", "lora_all", "lora_matched", "shira")  # as others are


@pytest.fixture(autouse=True)
def keep_argv(monkeypatch):
    monkeypatch.setattr(sys, "argv", ["main.py"])


def keys_of(name):
    """The method's own keys at a size that fits the tests' base."""
    small = {"rank": 4, "dropout": 0.1, "source_language": "qaa-Latn", "calibration_sequences": 8,
             "calibration_tokens": 64, "last_layers": 1}  # fmt: skip
    return {"model__method": name} | {f"model__{k}": v for k, v in small.items() if k in method_keys(name)}


def fit(workplace, run_dir, **changes):
    assert main(workplace.adapt(run_dir, **changes)) == 0
    return RunFolder(workplace.folder / run_dir / changes.get("name", "adapted"))


def same(one, other):
    """Whether two checkpoints hold the same weights, optimiser, callbacks and position, bit for bit."""
    if isinstance(one, torch.Tensor):
        return torch.equal(one, other)
    if isinstance(one, dict):
        return one.keys() == other.keys() and all(same(value, other[key]) for key, value in one.items())
    if isinstance(one, list | tuple):
        return len(one) == len(other) and all(map(same, one, other))
    return one == other


def state(folder):
    checkpoint = load_checkpoint(folder.last_checkpoint)
    callbacks = {k: v for k, v in checkpoint["callbacks"].items() if "ModelCheckpoint" not in k and "Best" not in k}
    parts = {key: checkpoint[key] for key in ("state_dict", "optimizer_states", "lr_schedulers", "GlotCCDataModule")}
    return {**parts, "callbacks": callbacks}


@pytest.mark.parametrize(
    "name",
    [name if name not in ALIKE else pytest.param(name, marks=pytest.mark.slow) for name in METHODS],
)
def test_a_run_that_was_cut_short_goes_on_and_ends_bit_equal(workplace, name, capsys):
    """With an average of the weights and replay of another language beside it."""
    keys = {**keys_of(name), "model__ema": 0.9, "data__replay": '{"qab-Latn": 0.25}', "data__token_budget": 8192,
            "trainer__validate_every": 8, "model__lr": 1e-3}  # fmt: skip
    whole = fit(workplace, f"every/{name}", **keys)
    cut = fit(workplace, f"every/{name}", **keys, name="cut", trainer__max_steps=16)
    again = fit(workplace, f"every/{name}", **keys, name="again", resume=cut.last_checkpoint)
    assert same(state(whole), state(again))
    assert whole.best_checkpoint().name == again.best_checkpoint().name
    assert same(load_checkpoint(whole.best_checkpoint())["state_dict"],
                load_checkpoint(again.best_checkpoint())["state_dict"])  # fmt: skip
    assert json.loads(whole.record_file.read_text())["result"]["best"] == again.record()["result"]["best"]
    capsys.readouterr()
    assert main(["validate", "--config", str(whole.config), "--ckpt_path", str(whole.best_checkpoint())]) == 0
    assert whole.best_checkpoint().stem.rsplit("loss")[1] in capsys.readouterr().out
    kind = METHODS[name].result
    assert kind is None or whole.result(kind).is_dir()


@pytest.mark.parametrize("name", METHODS)
def test_a_method_is_planned_with_the_parameters_that_it_trains(workplace, name, capsys):
    keys = workplace.adapt(**keys_of(name))[1:]
    assert main(["plan", *(key for key in keys if not key.startswith(("--name", "--resume"))), "--json"]) == 0
    plan = json.loads(capsys.readouterr().out.strip().split("\n")[-1])
    run = fit(workplace, "sizes", **keys_of(name), name=name, trainer__max_steps=1)
    assert plan["trained_parameters"] == run.record()["result"]["trained_parameters"]
    assert plan["memory"]["peak_gib"] > 0


def test_the_average_is_what_is_validated_and_kept(workplace):
    """Against an average made by hand from a run's weights after every step."""
    keys = {"data__token_budget": 4096, "trainer__validate_every": 1, "model__lr": 1e-2}
    plain = [fit(workplace, "ema", **keys, name=f"step{n}", trainer__max_steps=n) for n in range(1, 5)]
    averaged = fit(workplace, "ema", **keys, name="averaged", trainer__max_steps=4, model__ema=0.9)
    base = load_adapted(workplace.folder / "runs/base/model").model
    stepped = [load_checkpoint(run.last_checkpoint)["state_dict"] for run in plain]
    pairs = load_checkpoint(averaged.last_checkpoint)["neuroglot"]["neurons"]
    for key, found in load_checkpoint(averaged.last_checkpoint)["state_dict"].items():
        layer, projection = key.split(".")
        index = pairs[pairs[:, 0] == int(layer), 1]
        weight = getattr(base.model.layers[int(layer)].mlp, f"{projection}_proj").weight
        expected = (weight[:, index].T if projection == "down" else weight[index]).clone()
        for step, weights in enumerate(stepped, start=1):
            keep = min(0.9, (1 + step) / (10 + step))
            expected = keep * expected + (1 - keep) * weights[key]
        torch.testing.assert_close(found, expected, atol=1e-6, rtol=1e-5)


def test_two_languages_are_taught_at_once(workplace, capsys):
    run = fit(workplace, "taught", language="qah-Deva:3,qag-Geor:1", data__token_budget=8192)
    both = load_checkpoint(run.last_checkpoint)["neuroglot"]
    assert both["language"] == "qah-Deva,qag-Geor"
    alone = {}
    for language in ("qah-Deva", "qag-Geor"):
        one = fit(workplace, "taught", language=language, name=language, trainer__max_steps=1, data__token_budget=8192)
        alone[language] = {tuple(p) for p in load_checkpoint(one.last_checkpoint)["neuroglot"]["neurons"].tolist()}
    assert {tuple(pair) for pair in both["neurons"].tolist()} == set.union(*alone.values())
    record = run.record()
    assert record["targets"] == {"qah-Deva": 0.75, "qag-Geor": 0.25}
    assert set(record["text"]) == {"qah-Deva", "qag-Geor"}
    best = record["result"]["best"]["losses"]
    mean = 0.75 * best["qah-Deva"][0] + 0.25 * best["qag-Geor"][0]
    assert f"loss{mean:.4f}" in run.best_checkpoint().name
    assert "for qah-Deva, qag-Geor" in capsys.readouterr().out


def test_the_papers_loss_is_that_of_its_script(workplace, capsys):
    """Sentences joined to texts of at most a block, padded to it, padding counted, mean over batches of two."""
    folder = workplace.folder / "runs/base/model"
    keys = [
        key for key in workplace.adapt(data__batch_size=2)[1:] if not key.startswith(("--name", "--data.batch_size"))
    ]
    assert main(["validate", *keys, "--data.batch_size=2", "--data.paper_loss=true", "--data.flores_overlap=keep"]) == 0
    printed = float(re.search(r"as the paper's script takes it: qah-Deva ([\d.]+)", capsys.readouterr().out)[1])
    model, tokenizer = AutoModelForCausalLM.from_pretrained(folder), AutoTokenizer.from_pretrained(folder)
    texts, text = [], ""
    for sentence in read_flores(str(workplace.hub), find_language("qah-Deva"), "dev", workplace.folder, "keep"):
        longer = f"{text} {sentence}" if text else sentence
        if len(tokenizer.encode(longer, add_special_tokens=False)) <= 64:
            text = longer
            continue
        texts += [text] if text else []
        text = sentence
    texts.append(text)
    losses = []
    for first in range(0, len(texts), 2):
        batch = tokenizer(texts[first : first + 2], truncation=True, padding="max_length", max_length=64,
                          return_tensors="pt")  # fmt: skip
        with torch.no_grad():
            out = model(input_ids=batch.input_ids, attention_mask=batch.attention_mask, labels=batch.input_ids)
        losses.append(out.loss.item())
    assert printed == pytest.approx(sum(losses) / len(losses), abs=1e-4)


@pytest.mark.slow
@pytest.mark.parametrize("name", METHODS)
def test_a_killed_run_ends_bit_equal(workplace, name):
    """SIGKILL somewhere after the first checkpoint, in a process of its own."""
    keys = {**keys_of(name), "data__token_budget": 16384, "trainer__validate_every": 8, "model__lr": 1e-3}
    whole = fit(workplace, f"killed/{name}", **keys)
    command = workplace.adapt(f"killed/{name}", **keys, name="killed")
    killed = RunFolder(workplace.folder / f"killed/{name}/killed")
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    plain = ("--samples=0", "--report=false")  # as runs in this process are
    command_line = [sys.executable, str(ROOT / "main.py"), *command, *plain]
    process = subprocess.Popen(command_line, stdout=subprocess.PIPE, text=True, env=environment)
    for line in process.stdout:
        if line.startswith("step 16"):
            process.kill()
            break
    process.wait()
    assert not killed.summary.exists()
    assert main(command) == 0
    assert same(state(whole), state(killed))
    assert whole.best_checkpoint().name == killed.best_checkpoint().name
