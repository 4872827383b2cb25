"""The verb export on a real run: verified, whole or not there, and said in a line."""

import os
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch
from peft import PeftModel
from transformers import AutoModelForCausalLM

from lightning_app.adapted import load_adapted
from lightning_app.cli import main
from lightning_app.export.neuroglot_delta import Delta
from lightning_app.neurons.neuron_set import NeuronSet
from lightning_app.neurons.selection import random_neurons
from tests.deltas import delta_of, saved
from tests.faults import fault, refused
from tests.test_answers import letters
from tests.test_switching import checkpoint_of

ROOT = Path(__file__).resolve().parent.parent
IDS = torch.arange(3, 43).reshape(2, 20)


@pytest.fixture(autouse=True)
def keep_argv(monkeypatch):
    monkeypatch.setattr(sys, "argv", ["main.py"])


@pytest.fixture
def run(workplace):
    return workplace.folder / "runs/adapted"


@torch.no_grad()
def logits(model):
    return model(input_ids=IDS).logits


def export(run, capsys, *keys):
    code = main(["export", f"--source={run}", *keys])
    return code, capsys.readouterr()


def test_a_run_ends_with_its_delta_which_gives_the_best_checkpoints_model(workplace, run):
    model = AutoModelForCausalLM.from_pretrained(workplace.folder / "runs/base/model")
    delta = Delta(run / "delta.safetensors").apply(model)
    assert torch.equal(logits(model), logits(load_adapted(run).model))
    assert delta.about["language"] == ["qah-Deva"]
    assert delta.about["figures"]["after"]["qah-Deva"][0] < delta.about["figures"]["before"]["qah-Deva"][0]


@pytest.mark.parametrize("source", ["", "delta.safetensors"])
@pytest.mark.parametrize("form", ["hf", "lora", "delta"])
def test_every_form_is_written_verified_and_says_its_size(workplace, run, tmp_path, capsys, form, source):
    out = tmp_path / ("out.safetensors" if form == "delta" else "out")
    code, said = export(run / source, capsys, f"--to={form}", f"--out={out}")
    assert code == 0, said.err
    assert "100.00 % of the greedy choices agree over" in said.out
    base = AutoModelForCausalLM.from_pretrained(workplace.folder / "runs/base/model")
    if form == "hf":
        model = AutoModelForCausalLM.from_pretrained(out)
    elif form == "lora":
        model = PeftModel.from_pretrained(base, out)
    else:
        Delta(out).apply(base)
        model = base
    torch.testing.assert_close(logits(model), logits(load_adapted(run).model), atol=1e-5, rtol=0)
    assert not list(tmp_path.glob(".*"))


def test_a_scale_of_half_is_half_of_the_change_in_every_form(run, tmp_path, capsys):
    expected = logits(load_adapted(run, scale=0.5).model)
    for source in (run, run / "delta.safetensors"):
        out = tmp_path / f"{source.stem}"
        assert export(source, capsys, "--to=hf", "--scale=0.5", f"--out={out}")[0] == 0
        torch.testing.assert_close(logits(AutoModelForCausalLM.from_pretrained(out)), expected, atol=1e-5, rtol=0)


def test_bad_input_is_one_line_and_leaves_nothing(workplace, run, tmp_path, capsys):
    (tmp_path / "there").mkdir()
    other = tmp_path / "other"
    shutil.copytree(workplace.folder / "runs/base/model", other)
    model = AutoModelForCausalLM.from_pretrained(other)
    torch.nn.init.normal_(model.model.layers[0].mlp.gate_proj.weight)
    model.save_pretrained(other)
    for keys, line in (
        ((f"--out={tmp_path / 'there'}",), "exists; choose another --out"),
        ((f"--out={tmp_path / 'new'}", "--scale=-1"), "--scale is -1"),
        ((f"--out={tmp_path / 'new'}", f"--model.base={other}"), "give"),
        ((f"--out={tmp_path / 'new'}", "--to=gif"), "--to"),
    ):
        code, said = export(run, capsys, *keys)
        assert code == 2, said
        assert line in said.err
        assert said.err.count("\n") == 1
    code, said = export(tmp_path / "nowhere", capsys)
    assert code == 2
    assert "there is nothing at --source" in said.err
    assert sorted(path.name for path in tmp_path.iterdir()) == ["other", "there"]


@pytest.mark.slow
def test_a_kill_in_an_export_leaves_nothing_or_the_whole(run, tmp_path):
    for number, form in enumerate(("hf", "lora")):
        out = tmp_path / str(number)
        command = [sys.executable, str(ROOT / "main.py"), "export", f"--source={run}", f"--to={form}", f"--out={out}"]
        process = subprocess.Popen(command, cwd=ROOT, env={**os.environ, "HF_HUB_OFFLINE": "1"})
        while not list(tmp_path.glob(f".{number}.*")) and process.poll() is None:
            time.sleep(0.02)
        process.send_signal(signal.SIGKILL)
        process.wait()
        assert not out.exists() or list(out.glob("*.safetensors"))
        assert subprocess.run(command, cwd=ROOT, check=False).returncode in (0, 2 if out.exists() else 0)


@pytest.mark.parametrize("scale", [1.0, 0.5])
@pytest.mark.parametrize("method", ["lora", "dora", "ia3"])
def test_an_adapters_full_weights_are_a_plain_model(tmp_path, capsys, method, scale):
    path = checkpoint_of(tmp_path, method)
    prompts = tmp_path / "prompts.txt"
    prompts.write_text("To be\nor not to be\n" * 9)
    keys = ("--to=hf", f"--out={tmp_path / 'out'}", f"--scale={scale}", f"--data.prompts={prompts}")
    code, said = export(path, capsys, *keys)
    assert code == 0, said.err
    model, base = (AutoModelForCausalLM.from_pretrained(tmp_path / name) for name in ("out", "base"))
    assert model.state_dict().keys() == base.state_dict().keys()
    torch.testing.assert_close(logits(model), logits(load_adapted(path, scale=scale).model), atol=1e-4, rtol=0)
    assert not torch.equal(logits(model), logits(base))


@fault("exports onto another base: a delta, a checkpoint, several of them")
@pytest.mark.parametrize("form", ["hf", "lora", "delta"])
def test_every_form_refuses_another_base(tmp_path, capsys, form):
    for number, code in enumerate(("cym-Latn", "mlt-Latn")):
        neurons = NeuronSet.from_pairs(random_neurons(20, 3, 48, seed=0).pairs[number::2])
        delta_of(saved(tmp_path / f"base{number}"), neurons, seed=number, language=code)[0].save(
            tmp_path / f"{number}.safetensors"
        )
    checkpoint = checkpoint_of(tmp_path, "subnetwork")
    saved(tmp_path / "other", seed=5)
    letters(begins=True).save_pretrained(tmp_path / "other")
    prompts = tmp_path / "prompts.txt"
    prompts.write_text("To be\nor not to be\n")
    deltas = [str(tmp_path / f"{number}.safetensors") for number in range(2)]
    keys = [f"--to={form}", f"--out={tmp_path / 'out'}", f"--data.prompts={prompts}", "--policy=ordered"]
    keys.append(f"--model.base={tmp_path / 'other'}")
    for source in (deltas[0], str(checkpoint), f"[{','.join(deltas)}]", f"[{checkpoint},{deltas[1]}]"):
        refused(capsys, ["export", f"--source={source}", *keys], "is not that of|another model")
        assert not (tmp_path / "out").exists()


@fault("a target that cannot be written, an empty name of a repository")
def test_what_could_not_be_kept_is_refused_before_the_work(run, tmp_path, capsys):
    (tmp_path / "file").write_text("")
    for keys, line in (
        ((f"--out={tmp_path / 'file/out'}",), "cannot be written: Not a directory .*; choose another --out"),
        (("--out=/proc/nothing/out",), "cannot be written: .*; choose another --out"),
        ((f"--out={tmp_path / 'out'}", "--push-to="), "--push_to is without a value"),
    ):
        refused(capsys, ["export", f"--source={run}", *keys], line)
    delta = str(run / "delta.safetensors")
    refused(capsys, ["apply", delta, "--out=/proc/nothing/out"], "cannot be written: .*; choose another --out")
    assert [path.name for path in tmp_path.iterdir()] == ["file"]
