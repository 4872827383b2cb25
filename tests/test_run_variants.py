"""Runs with other settings through the command line, against those that they should end like."""

import json
import re
from functools import partial

import pytest
import torch
from transformers import AutoModelForCausalLM

from lightning_app.cli import main
from lightning_app.neurons.atlas import Atlas
from lightning_app.neurons.subnetworks import Subnetworks
from lightning_app.training.compilation import compile_layers
from tests.whole_runs import TARGET, assert_same_end, before_of, best, load, start


def test_a_compiled_run_ends_as_an_eager_one(workplace, monkeypatch, capsys):
    """With the layers traced and differentiated as ever, but run without a C++ compiler."""
    torch._dynamo.reset()
    keys = {"data__token_budget": 2560, "data__num_workers": 0}
    assert main(workplace.adapt("eager", **keys)) == 0
    monkeypatch.setattr("lightning_app.training.module.compile_layers", partial(compile_layers, backend="aot_eager"))
    monkeypatch.setattr("callbacks.soundness.require_compiler", lambda device: None)
    assert main(workplace.adapt("compiled", **keys, model__compile="true")) == 0
    eager, compiled = (
        load(workplace.folder / name / "adapted/checkpoints/last.ckpt") for name in ("eager", "compiled")
    )
    assert_same_end(eager, compiled, tolerance=1e-6)
    assert torch._dynamo.utils.counters["stats"]["unique_graphs"] > 0
    torch._dynamo.reset()


@pytest.mark.parametrize("chunking", ["packed", "documents"])
def test_masked_and_packed_runs_end_alike(workplace, chunking):
    keys = {"trainer__accumulate_grad_batches": 2, "data__token_budget": 6144, "data__chunking": chunking}
    assert main(workplace.adapt(f"rows-{chunking}", **keys)) == 0
    assert main(workplace.adapt(f"masked-{chunking}", model__engine="masked", **keys)) == 0
    ends = (workplace.folder / f"{name}-{chunking}/adapted/checkpoints/last.ckpt" for name in ("rows", "masked"))
    one, other = map(load, ends)
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


def test_own_text_files_are_trained_on(workplace, tmp_path):
    import pyarrow.parquet as pq

    documents = pq.read_table(workplace.hub / "cis-lmu/GlotCC-V1/v1.0/qah-Deva/qah-Deva_0.parquet")[
        "content"
    ].to_pylist()
    (tmp_path / "own.txt").write_text("\n\n".join(documents[:60]), encoding="utf-8")
    # An atlas of its own: in the shared one the language would be counted on this text from now on.
    own = [f"--data.files.qah-Deva={tmp_path}/*.txt", f"--profiling.atlas={tmp_path}/own.safetensors"]
    assert main([*workplace.adapt("own-text"), *own]) == 0
    record = json.loads((workplace.folder / "own-text/adapted/run.json").read_text())
    assert record["text"]["qah-Deva"]["data_set"].startswith("files in")


def test_full_training_of_an_existing_base(workplace):
    arguments = [*workplace.adapt("full", data__token_budget=1024), "--model.method=full"]
    assert main(arguments) == 0
    model = AutoModelForCausalLM.from_pretrained(workplace.folder / "full/adapted/model")
    base = AutoModelForCausalLM.from_pretrained(workplace.folder / "runs/base/model")
    changed = [n for n, w in model.named_parameters() if not torch.equal(w, base.get_parameter(n))]
    assert len(changed) == len(list(base.named_parameters()))
