"""Whole runs through the command line, on a base that the program trained itself."""

import json
import os
import re
import signal

import pytest
import torch
from transformers import AutoModelForCausalLM, AutoTokenizer

from datamodules.flores import join_blocks, read_flores
from lightning_app.cli import main
from lightning_app.neurons.subnetworks import Subnetworks
from tests.faults import fault, note
from tests.whole_runs import TARGET, assert_same_end, before_of, best, load, start


def test_a_run_folder_holds_exactly_these_files(workplace):
    folder = workplace.folder / "runs/adapted"
    found = {str(path.relative_to(folder)) for path in folder.rglob("*") if path.is_file()}
    found = {re.sub(r"events\.out.*", "events", name) for name in found}
    assert found == {
        "config.yaml", "run.json", "metrics.jsonl", "subnetwork.safetensors", "delta.safetensors", "summary.md",
        f"checkpoints/{best(folder).name}", "checkpoints/last.ckpt", "tensorboard/events", "tensorboard/hparams.yaml",
    }  # fmt: skip
    assert json.loads((folder / "run.json").read_text())["status"] == "complete"


def test_the_new_base_is_an_ordinary_transformers_folder(workplace):
    folder = workplace.folder / "runs/base/model"
    model, tokenizer = AutoModelForCausalLM.from_pretrained(folder), AutoTokenizer.from_pretrained(folder)
    assert model.config.vocab_size == len(tokenizer) == 512
    text = "".join(read_flores(str(workplace.hub), TARGET, "dev", workplace.folder)[:3])
    assert tokenizer.decode(tokenizer(text)["input_ids"]) == text


def test_training_lowers_the_target_loss(workplace):
    checkpoint = load(best(workplace.folder / "runs/adapted"))
    before = before_of(checkpoint)
    after = float(re.search(r"loss([\d.]+)\.ckpt", best(workplace.folder / "runs/adapted").name)[1])
    assert after < before - 0.01


def test_checkpoints_hold_neuron_weights_only(workplace):
    folder = workplace.folder / "runs/adapted"
    subnetwork = Subnetworks.load(folder / "subnetwork.safetensors")
    weights = load(best(folder))["state_dict"]
    neurons = subnetwork.of(TARGET).by_layer
    assert {name: tuple(w.shape) for name, w in weights.items()} == {
        f"{layer}.{projection}": (len(indices), 48)
        for layer, indices in neurons.items()
        for projection in ("gate", "up", "down")
    }


def oracle_loss(workplace, model, tokenizer, language):
    """Nats per token by transformers' own logits, block by block."""
    sentences = read_flores(str(workplace.hub), language, "dev", workplace.folder)
    nats = tokens = 0.0
    for block in join_blocks(sentences, tokenizer, 64):
        ids = block.input_ids.unsqueeze(0)
        with torch.no_grad():
            logits = model(input_ids=ids).logits[0, :-1].double()
        nats += torch.nn.functional.cross_entropy(logits, ids[0, 1:], reduction="sum").item()
        tokens += ids.shape[1] - 1
    return nats / tokens


def test_validate_without_arguments_reports_the_best_checkpoints_number(workplace, capsys):
    """And plain transformers, with the neuron weights written into the base by hand, reports it too."""
    assert main(["validate", "--run_dir", str(workplace.folder / "runs")]) == 0
    output = capsys.readouterr().out
    folder = workplace.folder / "runs/adapted"
    named = re.search(r"loss([\d.]+)\.ckpt", best(folder).name)[1]
    assert "newest run" in output
    assert re.search(rf"^qah-Deva +{named} ", output, re.MULTILINE)
    assert main(["validate", "--run_dir", str(workplace.folder / "runs"), "--config", "hardware/cpu.yaml"]) == 0
    assert re.search(rf"^qah-Deva +{named} ", capsys.readouterr().out, re.MULTILINE)
    model = AutoModelForCausalLM.from_pretrained(workplace.folder / "runs/base/model")
    tokenizer = AutoTokenizer.from_pretrained(workplace.folder / "runs/base/model")
    base_loss = oracle_loss(workplace, model, tokenizer, TARGET)
    subnetwork = Subnetworks.load(folder / "subnetwork.safetensors")
    with torch.no_grad():
        for name, vectors in load(best(folder))["state_dict"].items():
            layer, projection = name.split(".")
            index = subnetwork.of(TARGET).by_layer[int(layer)]
            weight = getattr(model.model.layers[int(layer)].mlp, f"{projection}_proj").weight
            if projection == "down":
                weight[:, index] = vectors.T
            else:
                weight[index] = vectors
    assert oracle_loss(workplace, model, tokenizer, TARGET) == pytest.approx(float(named), abs=1e-4)
    before = before_of(load(best(folder)))
    assert base_loss == pytest.approx(before, abs=1e-5)


def test_validate_with_a_configuration_measures_the_unadapted_base(workplace, capsys):
    config = workplace.folder / "runs/adapted/config.yaml"
    assert main(["validate", "--config", str(config)]) == 0
    before = before_of(load(best(workplace.folder / "runs/adapted")))
    assert re.search(rf"^qah-Deva +{before:.4f} ", capsys.readouterr().out, re.MULTILINE)


def test_test_and_predict_read_the_newest_run(workplace, capsys):
    assert main(["test", "--run_dir", str(workplace.folder / "runs")]) == 0
    assert "<- target" in capsys.readouterr().out
    prompts = workplace.folder / "prompts.txt"
    prompts.write_text("जिपो\nसिवा\n", encoding="utf-8")
    assert main(["predict", "--run_dir", str(workplace.folder / "runs"), f"--data.prompts={prompts}"]) == 0
    rows = (workplace.folder / "runs/adapted/predictions.jsonl").read_text().strip().split("\n")
    assert [json.loads(row)["prompt"] for row in rows] == ["जिपो", "सिवा"]


def test_the_same_command_again_does_nothing(workplace, capsys):
    newest = best(workplace.folder / "runs/adapted").stat().st_mtime_ns
    assert main(workplace.adapt()) == 0
    assert "is complete" in capsys.readouterr().out
    assert best(workplace.folder / "runs/adapted").stat().st_mtime_ns == newest


def test_resume_never_starts_beside_and_loses_nothing(workplace, capsys):
    assert main([*workplace.adapt(data__token_budget=1024), "--name=again"]) == 0
    assert main([*workplace.adapt(data__token_budget=1024), "--name=again", "--resume=never"]) == 0
    assert (workplace.folder / "runs/again-2/summary.md").exists()
    first, second = (load(workplace.folder / f"runs/{name}/checkpoints/last.ckpt") for name in ("again", "again-2"))
    os.environ.pop("NEUROGLOT_RUN_FOLDER", None)
    for name, weights in first["state_dict"].items():
        assert torch.equal(weights, second["state_dict"][name])


@pytest.mark.parametrize("accumulate", [2])  # of one batch they are in test_torture.py
@fault("a run that is killed, in steps of {accumulate} batches", lost="steps after the last save, which are made again")
def test_a_killed_run_ends_with_the_weights_of_an_uninterrupted_one(workplace, accumulate):
    keys = {"trainer__accumulate_grad_batches": accumulate, "trainer__validate_every": 6}
    whole, killed = f"whole{accumulate}", f"killed{accumulate}"
    assert main(workplace.adapt(whole, **keys)) == 0
    process = start(workplace.adapt(killed, **keys))
    for line in process.stdout:
        if line.startswith("step 12"):
            break
    process.send_signal(signal.SIGKILL)
    process.wait()
    folder = workplace.folder / killed / "adapted"
    assert not (folder / "summary.md").exists()
    resumed = start(workplace.adapt(killed, **keys))
    output = resumed.communicate()[0]
    assert resumed.returncode == 0, output
    assert "going on from step" in output
    note(next(line for line in output.split("\n") if "going on from step" in line))
    one, other = (load(workplace.folder / name / "adapted/checkpoints/last.ckpt") for name in (whole, killed))
    assert one["global_step"] == other["global_step"]
    assert_same_end(one, other)
    metrics = [(workplace.folder / name / "adapted/metrics.jsonl").read_text() for name in (whole, killed)]
    rows = [[json.loads(line) for line in text.strip().split("\n")] for text in metrics]
    measured = ("time", "speed/")
    rows = [[{k: v for k, v in row.items() if not k.startswith(measured)} for row in run] for run in rows]
    assert rows[0] == rows[1]


def test_going_on_from_a_given_checkpoint_in_another_folder(workplace):
    """The last steps again, from the checkpoint before them: the same end."""
    assert main(workplace.adapt("early", trainer__max_steps=20)) == 0
    early = workplace.folder / "early/adapted/checkpoints/last.ckpt"
    assert main([*workplace.adapt("late"), f"--resume={early}"]) == 0
    one, other = (load(workplace.folder / name / "adapted/checkpoints/last.ckpt") for name in ("runs", "late"))
    assert_same_end(one, other)
