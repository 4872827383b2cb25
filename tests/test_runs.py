"""Whole runs through the command line, on a base that the program trained itself."""

import json
import os
import re
import signal
import subprocess
import sys
from functools import partial

import pytest
import torch
from transformers import AutoModelForCausalLM, AutoTokenizer

from datamodules.flores import join_blocks, read_flores
from lightning_app.cli import main
from lightning_app.languages import find_language
from lightning_app.neurons.atlas import Atlas
from lightning_app.neurons.subnetworks import Subnetworks
from lightning_app.training.compilation import compile_layers
from tests.conftest import ROOT

TARGET = find_language("qah-Deva")


def start(arguments, **environment):
    env = {**os.environ, "OMP_NUM_THREADS": "1", **environment}
    command = [sys.executable, str(ROOT / "main.py"), *arguments]
    return subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, env=env)


def best(folder):
    (path,) = (folder / "checkpoints").glob("best-*.ckpt")
    return path


def load(path):
    return torch.load(path, weights_only=True)


def before_of(checkpoint):
    """The target's loss before training."""
    return checkpoint["callbacks"]["Retention"]["before"]["qah-Deva"][0]


@pytest.fixture(autouse=True)
def keep_argv(monkeypatch):
    monkeypatch.setattr(sys, "argv", ["main.py"])


def test_a_run_folder_holds_exactly_these_files(workplace):
    folder = workplace.folder / "runs/adapted"
    found = {str(path.relative_to(folder)) for path in folder.rglob("*") if path.is_file()}
    found = {re.sub(r"events\.out.*", "events", name) for name in found}
    assert found == {
        "config.yaml", "run.json", "metrics.jsonl", "subnetwork.safetensors", "summary.md",
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


def assert_same_end(one, other, tolerance=0.0):
    for name, weights in one["state_dict"].items():
        torch.testing.assert_close(other["state_dict"][name], weights, rtol=0, atol=tolerance)


@pytest.mark.parametrize("accumulate", [1, 2])
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
    one, other = (load(workplace.folder / name / "adapted/checkpoints/last.ckpt") for name in (whole, killed))
    assert one["global_step"] == other["global_step"]
    assert_same_end(one, other)
    metrics = [(workplace.folder / name / "adapted/metrics.jsonl").read_text() for name in (whole, killed)]
    rows = [[json.loads(line) for line in text.strip().split("\n")] for text in metrics]
    measured = ("time", "speed/")
    rows = [[{k: v for k, v in row.items() if not k.startswith(measured)} for row in run] for run in rows]
    assert rows[0] == rows[1]


def test_a_compiled_run_ends_as_an_eager_one(workplace, monkeypatch, capsys):
    """With the layers traced and differentiated as ever, but run without a C++ compiler."""
    torch._dynamo.reset()
    keys = {"data__token_budget": 2560, "data__num_workers": 0}
    assert main(workplace.adapt("eager", **keys)) == 0
    monkeypatch.setattr("lightning_app.training.module.compile_layers", partial(compile_layers, backend="aot_eager"))
    monkeypatch.setattr("lightning_app.training.module.require_compiler", lambda device: None)
    assert main(workplace.adapt("compiled", **keys, model__compile="true")) == 0
    eager, compiled = (
        load(workplace.folder / name / "adapted/checkpoints/last.ckpt") for name in ("eager", "compiled")
    )
    assert_same_end(eager, compiled, tolerance=1e-6)
    assert torch._dynamo.utils.counters["stats"]["unique_graphs"] > 0
    torch._dynamo.reset()


def test_masked_and_packed_runs_end_alike(workplace):
    keys = {"trainer__accumulate_grad_batches": 2, "data__token_budget": 6144}
    assert main(workplace.adapt("packed", **keys)) == 0
    assert main(workplace.adapt("masked", model__engine="masked", **keys)) == 0
    one, other = (load(workplace.folder / name / "adapted/checkpoints/last.ckpt") for name in ("packed", "masked"))
    assert_same_end(one, other, 1e-6)


def test_activation_checkpointing_ends_with_the_same_weights(workplace):
    assert main(workplace.adapt("checkpointed", model__activation_checkpointing=True)) == 0
    one, other = (load(workplace.folder / name / "adapted/checkpoints/last.ckpt") for name in ("runs", "checkpointed"))
    assert_same_end(one, other, 1e-5)


def test_logged_training_loss_does_not_depend_on_accumulation(workplace):
    """The first step sees the same 8 sequences in one batch and in two: the mean loss must be the same."""
    for name, size, accumulate in (("one", 8, 1), ("two", 4, 2)):
        keys = {"trainer__accumulate_grad_batches": accumulate, "data__token_budget": 512}
        batch = [f"--data.batch_size={size}", "--trainer.log_every_n_steps=1"]
        assert main([*workplace.adapt(f"logged-{name}", **keys), *batch]) == 0
    losses = []
    for name in ("one", "two"):
        rows = (workplace.folder / f"logged-{name}/adapted/metrics.jsonl").read_text().strip().split("\n")
        losses += [row["train/loss"] for row in map(json.loads, rows) if "train/loss" in row]
    assert len(losses) == 2
    assert losses[0] == pytest.approx(losses[1], rel=1e-5)


def test_first_layer_trains_the_upper_neurons_only(workplace, capsys):
    assert main(workplace.adapt("upper", model__first_layer=1, data__token_budget=2048)) == 0
    subnetwork = Subnetworks.load(workplace.folder / "upper/adapted/subnetwork.safetensors").of(TARGET)
    upper = subnetwork.from_layer(1)
    assert 0 < len(upper) < len(subnetwork)
    weights = load(best(workplace.folder / "upper/adapted"))["state_dict"]
    assert sum(w.shape[0] for name, w in weights.items() if name.endswith("gate")) == len(upper)
    assert min(int(name.split(".")[0]) for name in weights) >= 1
    assert f"{100 * len(upper) / len(subnetwork):.0f} % of them" in capsys.readouterr().out


def test_two_processes_end_like_one_with_twice_the_batch(workplace):
    """Profiling, training and validation on two processes: the same counts, weights and losses."""
    path = workplace.atlas
    atlas = workplace.folder / "two.safetensors"
    two = ["--trainer.devices=2", "--trainer.strategy=ddp", "--data.batch_size=2", f"--profiling.atlas={atlas}"]
    process = start([*workplace.adapt("two"), *two])
    output = process.communicate()[0]
    assert process.returncode == 0, output
    for code, counts in Atlas.load(path).counts.items():
        assert (Atlas.load(atlas).counts[code] - counts).abs().max() <= 1
    one, other = (load(workplace.folder / name / "adapted/checkpoints/last.ckpt") for name in ("runs", "two"))
    assert_same_end(one, other, 1e-5)
    assert best(workplace.folder / "two/adapted").name == best(workplace.folder / "runs/adapted").name


def test_bf16_mixed_runs_on_a_cpu_with_fp32_neuron_weights(workplace):
    assert main([*workplace.adapt("bf16"), "--trainer.precision=bf16-mixed"]) == 0
    checkpoint = load(best(workplace.folder / "bf16/adapted"))
    assert {weights.dtype for weights in checkpoint["state_dict"].values()} == {torch.float32}
    states = checkpoint["optimizer_states"][0]["state"].values()
    assert {state["exp_avg"].dtype for state in states} == {torch.float32}
    after = float(re.search(r"loss([\d.]+)\.ckpt", best(workplace.folder / "bf16/adapted").name)[1])
    assert after < before_of(checkpoint)


def test_paper_chunking_trains(workplace):
    keys = {"data__chunking": "paper", "data__block_size": 128, "data__token_budget": 9000}
    arguments = [a for a in workplace.adapt("paper", **keys) if a != "--data.block_size=64"]
    assert main(arguments) == 0


def test_going_on_from_a_given_checkpoint_in_another_folder(workplace):
    """The last steps again, from the checkpoint before them: the same end."""
    assert main(workplace.adapt("early", trainer__max_steps=20)) == 0
    early = workplace.folder / "early/adapted/checkpoints/last.ckpt"
    assert main([*workplace.adapt("late"), f"--resume={early}"]) == 0
    one, other = (load(workplace.folder / name / "adapted/checkpoints/last.ckpt") for name in ("runs", "late"))
    assert_same_end(one, other)


def test_own_text_files_are_trained_on(workplace, tmp_path):
    import pyarrow.parquet as pq

    documents = pq.read_table(workplace.hub / "cis-lmu/GlotCC-V1/v1.0/qah-Deva/qah-Deva_0.parquet")[
        "content"
    ].to_pylist()
    (tmp_path / "own.txt").write_text("\n\n".join(documents[:60]), encoding="utf-8")
    # An atlas of its own: in the shared one the language would be counted on this text from now on.
    own = [f"--data.files.qah-Deva={tmp_path}/*.txt", f"--profiling.atlas={tmp_path}/own.safetensors"]
    assert main([*workplace.adapt("own"), *own]) == 0
    record = json.loads((workplace.folder / "own/adapted/run.json").read_text())
    assert record["text"]["qah-Deva"]["data_set"].startswith("files in")


def test_full_training_of_an_existing_base(workplace):
    arguments = [*workplace.adapt("full", data__token_budget=1024), "--model.method=full"]
    assert main(arguments) == 0
    model = AutoModelForCausalLM.from_pretrained(workplace.folder / "full/adapted/model")
    base = AutoModelForCausalLM.from_pretrained(workplace.folder / "runs/base/model")
    changed = [n for n, w in model.named_parameters() if not torch.equal(w, base.get_parameter(n))]
    assert len(changed) == len(list(base.named_parameters()))
