"""What a run is said to take beforehand, against what it takes."""

import json
import subprocess
import sys
import time
from dataclasses import asdict

import pyarrow.parquet as pq
import pytest
import torch
from transformers import AutoModelForCausalLM, AutoTokenizer

from benchmarks.measure import peak_bytes
from lightning_app.cli import main
from lightning_app.methods.registry import build_method
from lightning_app.model.attention import attend_without_masks
from lightning_app.model.base import base_without_weights, recompute_activations
from lightning_app.model.limit import forward_flop, frozen_step_flop
from lightning_app.model.loss import OutputHead, token_loss_sum
from lightning_app.neurons.neuron_set import NeuronSet
from lightning_app.planning.memory import Batches, simulate
from tests.conftest import ARCHITECTURES, ROOT, tiny_model
from tests.faults import fault, refused

CPU = torch.device("cpu")
NEURONS = NeuronSet({1: torch.arange(20), 3: torch.arange(7)})
WIDE = {
    "hidden_size": 128, "intermediate_size": 320, "num_hidden_layers": 4, "num_attention_heads": 4,
    "num_key_value_heads": 2, "vocab_size": 1000, "max_position_embeddings": 512, "eos_token_id": 2, "pad_token_id": 0,
}  # fmt: skip


@pytest.fixture(autouse=True)
def keep_argv(monkeypatch):
    monkeypatch.setattr(sys, "argv", ["main.py"])


def wide(architecture, **changes):
    keys = {key: 32 if key == "head_dim" else value for key, value in ARCHITECTURES[architecture].items()}
    return {**WIDE, **keys, **changes}


@pytest.mark.parametrize(
    ("architecture", "engine", "checkpointing", "dtype"),
    [
        ("llama", "packed", False, torch.float32), ("llama", "packed", True, torch.float32),
        ("llama", "masked", False, torch.float32), ("llama", "packed", False, torch.bfloat16),
        ("cohere", "packed", False, torch.float32), ("gemma2", "packed", False, torch.float32),
        ("phi3", "packed", False, torch.float32),
    ],
)  # fmt: skip
def test_simulated_memory_is_what_the_allocator_hands_out(architecture, engine, checkpointing, dtype):
    batch, tokens = 2, 192
    settings, method = wide(architecture), build_method("subnetwork", {"engine": engine})
    simulated = simulate(
        base_without_weights(None, None, dtype, settings).model, method, NEURONS,
        Batches((batch, tokens), (4, tokens), (1, 512)), checkpointing,
    )  # fmt: skip
    with torch.device("cpu"):
        config = base_without_weights(None, None, dtype, settings).model.config
        model = AutoModelForCausalLM.from_config(config, dtype=dtype).requires_grad_(False)
    attend_without_masks(model)
    head = OutputHead.of(model)
    ids = torch.randint(3, 1000, (4, tokens))

    @torch.no_grad()
    def validate():
        hidden = model.base_model(input_ids=ids, use_cache=False).last_hidden_state
        token_loss_sum(hidden[:, :-1], head, ids[:, 1:])

    weights = sum(weight.nbytes for weight in model.parameters())
    assert simulated.weights == pytest.approx(weights, rel=0.01)
    validation_peak = peak_bytes(validate, CPU)
    optimizer = method.attach(model, NEURONS).optimizer(lr=1e-4, weight_decay=0.0, betas=(0.9, 0.999))
    if checkpointing:
        recompute_activations(model)
    model.train()

    def step():
        hidden = model.base_model(input_ids=ids[:batch], use_cache=False).last_hidden_state
        token_loss_sum(hidden[:, :-1], head, ids[:batch, 1:]).backward()
        optimizer.step()
        optimizer.zero_grad()

    step()
    trained = sum(p.nbytes for group in optimizer.param_groups for p in group["params"])
    states = sum(t.nbytes for state in optimizer.state.values() for t in state.values() if t.dim())
    beside = trained if engine == "packed" else 0  # the masked engine trains the base's own matrices
    assert simulated.neurons == pytest.approx(beside + states + trained, rel=0.01)
    assert simulated.validation - weights - beside - states == pytest.approx(validation_peak, rel=0.1)
    assert simulated.training - weights - beside - states == pytest.approx(peak_bytes(step, CPU), rel=0.1)


def test_limit_counts_every_product_of_a_step():
    """Against torch's own counter of operations, on a model whose attention is one of ordinary products."""
    from torch.utils.flop_counter import FlopCounterMode

    model = tiny_model("llama")
    model.set_attn_implementation("eager")
    ids = torch.randint(3, 97, (2, 40), generator=torch.Generator().manual_seed(0))
    with FlopCounterMode(display=False) as counter:
        model(input_ids=ids, use_cache=False)
    attention = 2 * 40 * 32 * 3  # half of the scores are masked, which eager attention computes all the same
    assert forward_flop(model, 40) * ids.numel() == counter.get_total_flops() - attention * ids.numel()
    embedded = model.get_input_embeddings()(ids).requires_grad_()
    with FlopCounterMode(display=False) as counter:
        model(inputs_embeds=embedded, use_cache=False).logits.sum().backward()
    # Below the first trained layer's FFN nothing needs a gradient; eager attention makes 4 products in its backward.
    lower = forward_flop(model, 0, [0]) * ids.numel()
    expected = frozen_step_flop(model, 0, 0) * ids.numel() + lower + 6 * attention * ids.numel()
    assert counter.get_total_flops() == expected


def plan(workplace, capsys, *more):
    arguments = [a for a in workplace.adapt(run_dir="planned") if not a.startswith(("--name", "fit"))]
    assert main(["plan", *arguments, "--json", *more]) == 0
    return json.loads(capsys.readouterr().out.split("\n")[-2])


def test_plan_knows_the_neurons_and_the_text_of_a_run_that_was_made(workplace, capsys):
    found = plan(workplace, capsys)
    record = json.loads((workplace.folder / "runs/adapted/run.json").read_text())
    checkpoint = torch.load(workplace.folder / "runs/adapted/checkpoints/last.ckpt", weights_only=True)
    assert found["model"]["parameters"] == record["base"]["parameters"]
    assert found["trained_parameters"] == sum(weight.numel() for weight in checkpoint["state_dict"].values())
    assert found["neurons_from"] == "selected from the atlas"
    assert found["text"][0]["cached"] >= found["text"][0]["wanted"] == 12288
    assert found["profiling_text"] == []
    assert found["fertility"]["tokens_per_word"] > 1
    assert not (workplace.folder / "planned").exists()


def test_plan_measures_uncached_text_and_assumes_neurons(workplace, capsys, tmp_path):
    found = plan(workplace, capsys, f"--data.cache_dir={tmp_path / 'none'}", "--data.token_budget=100000000")
    assert "assumed" in found["neurons_from"]
    assert found["text"][0]["cached"] == 0
    assert not found["text"][0]["is_exact"]
    tokenizer = AutoTokenizer.from_pretrained(workplace.folder / "runs/base/model")
    shard = workplace.hub / "cis-lmu/GlotCC-V1/v1.0/qah-Deva/qah-Deva_0.parquet"
    ids = tokenizer(pq.read_table(shard)["content"].to_pylist(), add_special_tokens=False)["input_ids"]
    assert found["text"][0]["available"] == pytest.approx(sum(map(len, ids)), rel=0.05)
    assert len(found["profiling_text"]) == 8
    assert not (tmp_path / "none").exists()


def test_plan_names_the_key_that_makes_a_run_fit(workplace, capsys, monkeypatch):
    monkeypatch.setattr("lightning_app.planning.planner.peak_gib", lambda device: 0.0)
    monkeypatch.setattr("lightning_app.planning.planner.room_gib", lambda device: (0.02, "a small card"))
    found = plan(workplace, capsys, "--data.batch_size=64")["memory"]
    assert found["peak_gib"] > 0.02
    assert "--data.batch_size 1" in found["advice"]
    monkeypatch.setattr("lightning_app.planning.planner.room_gib", lambda device: (1e-5, "a tiny card"))
    assert "no key makes it fit" in plan(workplace, capsys)["memory"]["advice"]


def test_large_batches_are_planned_in_proportion_to_smaller_ones(monkeypatch):
    """What is followed op by op and what is taken in proportion agree, for as far as both can go."""
    method, batches = build_method("subnetwork", {}), Batches((96, 64), (128, 64), (192, 64), True)

    def simulated(followed):
        monkeypatch.setattr("lightning_app.planning.memory._FOLLOWED_TOKENS", followed)
        model = base_without_weights(None, None, torch.float32, wide("llama")).model
        return simulate(model, method, NEURONS, batches)

    assert asdict(simulated(2048)) == pytest.approx(asdict(simulated(2**20)), rel=0.01)


@fault("plan for a batch that no machine holds, of more text than there is")
def test_a_batch_that_cannot_be_is_refused_or_planned_at_once(workplace, capsys):
    line = "the text gives 192 sequences of 64 tokens and one step takes 1000000; .*lower --data.batch_size"
    refused(capsys, ["plan", *workplace.adapt()[1:], "--data.batch_size=1000000"], line)
    started = time.process_time()
    found = plan(workplace, capsys, "--data.validation_batch_size=1000000000")["memory"]
    assert time.process_time() - started < 20
    assert "--data.validation_batch_size 1 makes it fit" in found["advice"]


def test_planned_process_memory_is_within_a_quarter_of_the_measured_peak(workplace, capsys):
    """A base whose activations outweigh the program itself: 16 x 128 tokens at a vocabulary of 512, 24 layers."""
    arguments = ["--data.batch_size=64", "--data.block_size=128", "--data.token_budget=16384", "--name=measured"]
    planned = plan(workplace, capsys, *arguments[:-1])["memory"]["peak_gib"]
    code = (
        "import resource, sys; from lightning_app.cli import main; code = main(sys.argv[1:]); "
        "print('PEAK', resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20); sys.exit(code)"
    )
    command = [sys.executable, "-c", code, *workplace.adapt(run_dir="planned"), *arguments]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=True)
    measured = float(done.stdout.split("PEAK ")[1])
    assert planned == pytest.approx(measured, rel=0.25)


def test_plan_without_a_language_is_one_line(workplace, capsys):
    arguments = [a for a in workplace.adapt(run_dir="planned") if not a.startswith(("--name", "fit", "--language"))]
    assert main(["plan", *arguments]) == 2
    assert "no language to plan for" in capsys.readouterr().err
