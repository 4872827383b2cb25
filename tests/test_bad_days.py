"""Kills, signals, divergence, a folder that is taken, other numbers of processes: nothing lost, nothing wrong said."""

import json
import os
import re
import shutil
import signal
import subprocess
import sys
import time
from types import SimpleNamespace

import pytest
import torch
from safetensors.torch import load_file, save_file

from lightning_app.cli import main
from lightning_app.files import load_checkpoint
from lightning_app.run import RunFolder
from tests.conftest import ROOT
from tests.faults import fault, note, refused
from tests.test_every_method import same, state


def start(arguments):
    command = [sys.executable, str(ROOT / "main.py"), *arguments, "--samples=0"]  # as in this process
    env = {**os.environ, "OMP_NUM_THREADS": "1"}
    return subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, env=env)


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
@fault("signal {number} in training")
def test_a_signal_in_training_saves_says_so_and_gives_its_exit_code(workplace, number):
    keys = {"data__token_budget": 49152, "trainer__validate_every": 1000, "trainer__log_every_n_steps": 1}
    command = workplace.adapt(f"signals/{number.name}", **keys)
    folder = RunFolder(workplace.folder / f"signals/{number.name}/adapted")
    process = start(command)
    lines = []
    for line in process.stdout:
        lines.append(line)
        if "tokens in all" in line:
            break
    while not (folder.metrics.is_file() and folder.metrics.read_text().count("train/loss") > 3):
        time.sleep(0.02)
    process.send_signal(number)
    output = "".join([*lines, *process.stdout])
    assert process.wait() == 128 + number
    step = int(re.search(rf"ended by {number.name} at step (\d+) of 192; saved", output)[1])
    note(output.strip().split("\n")[-1])
    assert "Traceback" not in output
    assert load_checkpoint(folder.last_checkpoint)["global_step"] == step
    assert main(command) == 0
    whole = workplace.adapt(f"signals/{number.name}", **keys, name="whole")
    assert main(whole) == 0
    assert same(state(RunFolder(workplace.folder / f"signals/{number.name}/whole")), state(folder))


@fault("the same command twice at once")
def test_the_same_command_twice_at_once_is_told_who_has_the_run(workplace, capsys):
    command = workplace.adapt("twice", data__token_budget=40960)
    process = start(command)
    for line in process.stdout:
        if "tokens in all" in line:
            break
    refused(capsys, command, rf"adapted is being trained already, by process {process.pid} on .* since 20\d\d-")
    process.kill()
    process.wait()
    assert main(command) == 0  # the system let go of it


@pytest.mark.parametrize("name", ["../../x", "/tmp/x", "..", "a/b"])
@fault("--name={name}")
def test_names_do_not_leave_the_folder_of_runs(workplace, capsys, name):
    refused(capsys, workplace.adapt("names", name=name), r"--name is '.*'; expected the name of a folder in")
    assert not (workplace.folder / "names").exists()


@fault("a run that diverges")
def test_a_diverged_run_ends_with_an_error_and_its_last_good_checkpoint(workplace, capsys):
    keys = {"trainer__validate_every": 4, "data__token_budget": 12288}
    assert main(workplace.adapt("diverged", **keys, trainer__max_steps=8)) == 0
    folder = RunFolder(workplace.folder / "diverged/adapted")
    before = folder.last_checkpoint.read_bytes(), folder.best_checkpoint()
    # What a diverged optimiser makes: weights that are no numbers.
    content = load_checkpoint(folder.last_checkpoint)
    bad = workplace.folder / "diverged/bad.ckpt"
    content["state_dict"] = {name: torch.full_like(w, torch.nan) for name, w in content["state_dict"].items()}
    torch.save(content, bad)
    capsys.readouterr()
    refused(capsys, [*workplace.adapt("diverged", **keys, name="again"), f"--resume={bad}"],
            r"the run diverged at step \d+ .*the validation loss is nan.*lower --model.lr than 0.003")  # fmt: skip
    again = RunFolder(workplace.folder / "diverged/again")
    assert again.best_checkpoint() is None
    assert not again.last_checkpoint.exists()
    assert again.record()["status"] == "training"
    assert (folder.last_checkpoint.read_bytes(), folder.best_checkpoint()) == before


@fault("a run that was limited by --trainer.max_time")
def test_a_run_that_was_limited_says_that_it_is_not_complete(workplace, capsys):
    assert main([*workplace.adapt("limited"), "--trainer.max_time=00:00:00:00"]) == 0
    said = capsys.readouterr().out
    stopped = re.search(r"stopped at step \d+ of 48: .* is not complete; the same command goes on.*", said)
    assert stopped
    note(stopped[0])


@fault("a run that goes on with another number of processes")
def test_a_run_goes_on_with_other_numbers_of_processes_and_reads_all_of_its_text(workplace, capsys):
    """One, then two, then one: the steps are those made, and what is left by today's step."""
    keys = {"data__token_budget": 12288, "trainer__validate_every": 8}
    sequences, one = 12288 // 64, 4
    first, second, third = (RunFolder(workplace.folder / f"elastic/{name}") for name in ("adapted", "two", "back"))
    assert main(workplace.adapt("elastic", **keys, trainer__max_steps=16)) == 0
    two = ["--trainer.devices=2", "--trainer.strategy=ddp", f"--resume={first.last_checkpoint}"]
    process = start([*workplace.adapt("elastic", **keys, name="two", trainer__max_steps=24), *two])
    output = process.communicate()[0]
    assert process.returncode == 0, output
    assert "24 steps of" in output
    note(next(line for line in output.split("\n") if "steps of" in line))
    assert load_checkpoint(second.last_checkpoint)["GlotCCDataModule"]["sequences_consumed"] == (16 + 8 * 2) * one
    assert main([*workplace.adapt("elastic", **keys, name="back"), f"--resume={second.last_checkpoint}"]) == 0
    end = load_checkpoint(third.last_checkpoint)
    assert end["GlotCCDataModule"]["sequences_consumed"] == sequences
    assert end["global_step"] == 24 + (sequences - 16 * one - 8 * 2 * one) // one
    assert third.record()["status"] == "complete"


def test_changes_on_devtest_are_changes_on_devtest(workplace, capsys):
    """The base is measured on the same text, not taken from dev."""
    run = RunFolder(workplace.folder / "runs/adapted")
    capsys.readouterr()
    assert main(["test", "--config", str(run.config), "--ckpt_path", str(run.best_checkpoint())]) == 0
    before, after = capsys.readouterr().out.split("after training")
    rows = [{r[0]: r for r in (line.split() for line in part.split("\n")) if r and r[0].startswith("qa")}
            for part in (before, after)]  # fmt: skip
    for code, row in rows[1].items():
        assert float(row[2]) == pytest.approx(float(row[1]) - float(rows[0][code][1]), abs=1.1e-4)
    assert main(["test", "--config", str(run.config), f"--model.base={workplace.folder / 'runs/base/model'}"]) == 0
    alone = capsys.readouterr().out
    assert rows[0]["qah-Deva"][1] in alone


@pytest.mark.parametrize(
    ("case", "pattern"),
    [
        ("lack a tensor", r"lack 1 of its weights \(model.layers.1.mlp.up_proj.weight\)"),
        ("have fewer layers than its configuration", r"lack \d+ of its weights \(model.layers.3.*and \d+ more\)"),
        ("hold NaN", "NaN or infinite weights in model.norm.weight"),
        ("hold a Python object", r"hold a Python object \(types.SimpleNamespace\), which could run code"),
    ],
)
@fault("a base whose files {case}")
def test_a_base_whose_files_lack_weights_or_hold_nan_is_refused(case, pattern, workplace, capsys, tmp_path):
    folder = tmp_path / "base"
    shutil.copytree(workplace.folder / "runs/base/model", folder)
    weights = load_file(folder / "model.safetensors")
    if case == "lack a tensor":
        del weights["model.layers.1.mlp.up_proj.weight"]
    if case == "hold a Python object":
        torch.save({**weights, "x": SimpleNamespace()}, folder / "pytorch_model.bin")
        (folder / "model.safetensors").unlink()
        weights = {}
    if case == "hold NaN":
        weights["model.norm.weight"][3] = torch.nan
    if weights:
        save_file(weights, folder / "model.safetensors", metadata={"format": "pt"})
    if case.startswith("have fewer"):
        config = json.loads((folder / "config.json").read_text())
        (folder / "config.json").write_text(json.dumps({**config, "num_hidden_layers": 4}))
    refused(capsys, workplace.adapt("bases", model__base=folder), pattern)
    assert not (workplace.folder / "bases/adapted").exists()


@fault("a base with code of its own, and y on stdin")
def test_code_of_a_base_is_never_run(workplace, capsys, tmp_path, monkeypatch):
    """transformers would ask on stdin, and take the y of a pipe for an answer."""
    folder = tmp_path / "custom"
    shutil.copytree(workplace.folder / "runs/base/model", folder)
    config = json.loads((folder / "config.json").read_text())
    config |= {"model_type": "own", "architectures": ["Own"],
               "auto_map": {"AutoConfig": "own.OwnConfig", "AutoModelForCausalLM": "own.Own"}}  # fmt: skip
    (folder / "config.json").write_text(json.dumps(config))
    (folder / "own.py").write_text(f"open({str(tmp_path / 'ran')!r}, 'w').close()\n")
    process = subprocess.run([sys.executable, str(ROOT / "main.py"), *workplace.adapt("own", model__base=folder)],
                             input="y\ny\ny\n", capture_output=True, text=True)  # fmt: skip
    assert process.returncode == 2
    assert "Traceback" not in process.stderr
    note(process.stderr.strip().split("\n")[-1])
    assert not (tmp_path / "ran").exists()


@pytest.mark.parametrize(
    ("key", "value", "pattern"),
    [
        ("model.lr", -1, r"lr is -1; expected a number above 0"), ("model.lr", "nan", "lr is nan"),
        ("model.weight_decay", -0.1, "weight_decay is -0.1"), ("model.betas", "[0.9, 1.0]", "betas are 0.9 and 1"),
        ("model.warmup_steps", -5, "warmup_steps is -5"), ("model.first_layer", -1, "first_layer is -1"),
        ("data.block_size", 4096, r"block_size is 4096, but the context of .* is 128 tokens"),
        ("model.ema", 1.5, "ema is 1.5"), ("trainer.stop_after_nonfinite", 0, "stop_after_nonfinite is 0"),
        ("trainer.max_steps", 0, "max_steps is 0"), ("trainer.log_every_n_steps", 0, "log_every_n_steps is 0"),
        ("trainer.log_every_n_steps", -3, "log_every_n_steps is -3; expected a number above zero"),
        ("trainer.limit_val_batches", 0, "limit_val_batches is 0, which measures nothing"),
        ("trainer.limit_val_batches", 1e-4, "limit_val_batches is 0.0001, less than one of the 2 batches"),
        ("trainer.num_nodes", 2, r"num_nodes is 2, but nothing starts .* no MASTER_ADDR or NODE_RANK; use srun"),
        ("seed_everything", -1, "seed_everything is -1; expected a whole number from 0 to 4294967295"),
        ("seed_everything", 2**32, "seed_everything is 4294967296; expected"),
        ("data.num_workers", -1, "num_workers is -1; expected 0, which is enough"),
        ("data.num_workers", 10**6, "num_workers is 1000000; expected 0"),
        ("data.block_size", 1, "block_size is 1; expected 2 or more"),
        ("data.train_tokenizer", 10, "train_tokenizer is 10; expected 257"),
        ("profiling.languages", "[]", "profiling.languages is empty"),
        ("profiling.languages", "[qah-Deva]", "the pool is qah-Deva: .* name more in --profiling.languages"),
        ("profiling.rates", "{cy: 0.1}", r"profiling.rates names Welsh \(cy\), which is not in the pool"),
        ("model.projections", "[gate,gate]", "projections is gate, gate; name each projection once"),
    ],
)  # fmt: skip
@fault("--{key}={value}")
def test_what_no_run_can_use_is_refused_before_anything_is_loaded(key, value, pattern, workplace, capsys):
    refused(capsys, [*workplace.adapt("numbers"), f"--{key}={value}"], pattern)
    assert not (workplace.folder / "numbers").exists()
    assert not list(workplace.folder.glob(".numbers*"))


@fault("--model.first_layer for a method that trains no neurons")
def test_a_key_of_neurons_for_a_method_without_is_refused(workplace, capsys):
    refused(capsys, workplace.adapt("numbers", model__method="full", model__first_layer=1), "full trains no neurons")
    assert not (workplace.folder / "numbers").exists()
