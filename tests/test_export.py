"""What comes out of a run: read by plain safetensors, transformers and PEFT, against the model in memory."""

import contextlib
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from peft import PeftModel
from transformers import AutoModelForCausalLM

from lightning_app.errors import UserError
from lightning_app.export.delta import LanguageDelta, Matrix
from lightning_app.export.lora import exact_change, lora_ranks, lora_tensors, write_lora
from lightning_app.export.neuroglot_delta import Delta
from lightning_app.languages import PAPER_LANGUAGES
from lightning_app.model.base_files import BaseFiles
from lightning_app.neurons.neuron_set import NeuronSet
from lightning_app.neurons.selection import random_neurons
from lightning_app.neurons.subnetworks import read_subnetworks
from tests.conftest import tiny_model
from tests.deltas import delta_of, logits, saved, tensors

LOADER = Path(__file__).resolve().parent.parent / "lightning_app/export/neuroglot_delta.py"
SHAPES = ("llama", "llama-bias", "mistral", "cohere", "gemma", "qwen2", "phi3")


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("architecture", SHAPES)
def test_full_weights_are_the_models_bit_for_bit_and_the_rest_the_bases_bytes(tmp_path, architecture, dtype):
    files, neurons = saved(tmp_path / "base", architecture, dtype), random_neurons(20, 3, 48, seed=0)
    delta, adapted = delta_of(files, neurons)
    files.copy(tmp_path / "out", delta.patches(files))
    exported = AutoModelForCausalLM.from_pretrained(tmp_path / "out", dtype="auto")
    assert exported.dtype == dtype
    assert torch.equal(logits(exported), logits(adapted))
    before, after = tensors(tmp_path / "base"), tensors(tmp_path / "out")
    trained = {files.key(matrix.weight) for matrix in delta.matrices}
    assert before.keys() == after.keys()
    assert all(torch.equal(before[name], after[name]) for name in before.keys() - trained)
    assert not any(torch.equal(before[name], after[name]) for name in trained)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("architecture", SHAPES)
def test_a_delta_goes_on_and_off_bit_for_bit(tmp_path, architecture, dtype):
    files, neurons = saved(tmp_path / "base", architecture, dtype), random_neurons(20, 3, 48, seed=0)
    delta, adapted = delta_of(files, neurons)
    delta.save(tmp_path / "delta.safetensors")
    model = AutoModelForCausalLM.from_pretrained(files.folder, dtype="auto")
    before = {name: weight.clone() for name, weight in model.named_parameters()}
    on = Delta(tmp_path / "delta.safetensors").apply(model)
    assert torch.equal(logits(model), logits(adapted))
    on.remove()
    assert all(torch.equal(weight, before[name]) for name, weight in model.named_parameters())
    on.apply(model)
    assert torch.equal(logits(model), logits(adapted))


def test_deltas_without_a_shared_neuron_go_on_in_any_order_and_off_in_any(tmp_path):
    files = saved(tmp_path / "base")
    both = random_neurons(20, 3, 48, seed=0).pairs
    for name, pairs, seed in (("a", both[::2], 1), ("b", both[1::2], 2)):
        delta_of(files, NeuronSet.from_pairs(pairs), seed=seed)[0].save(tmp_path / f"{name}.safetensors")
    first, second = (AutoModelForCausalLM.from_pretrained(files.folder) for _ in range(2))
    a, b = (Delta(tmp_path / f"{name}.safetensors").apply(first) for name in "ab")
    Delta(tmp_path / "b.safetensors").apply(second)
    Delta(tmp_path / "a.safetensors").apply(second)
    assert torch.equal(logits(first), logits(second))
    a.remove()
    b.remove()
    assert torch.equal(logits(first), logits(tiny_model("llama")))


def test_a_delta_refuses_another_base_and_a_neuron_that_another_delta_has(tmp_path):
    files, neurons = saved(tmp_path / "base"), random_neurons(20, 3, 48, seed=0)
    delta_of(files, neurons)[0].save(tmp_path / "a.safetensors")
    delta_of(files, neurons, seed=2)[0].save(tmp_path / "b.safetensors")
    other = tiny_model("llama", seed=5)
    before = {name: weight.clone() for name, weight in other.named_parameters()}
    with pytest.raises(ValueError, match="for which the delta was made"):
        Delta(tmp_path / "a.safetensors").apply(other)
    assert all(torch.equal(weight, before[name]) for name, weight in other.named_parameters())
    model = tiny_model("llama")
    Delta(tmp_path / "a.safetensors").apply(model)
    with pytest.raises(ValueError, match="another delta is on the same neurons"):
        Delta(tmp_path / "b.safetensors").apply(model)
    tiny_model("llama", seed=5).save_pretrained(tmp_path / "other")
    with pytest.raises(UserError, match=r"is not that of .*; give its own base"):
        LanguageDelta.load(tmp_path / "a.safetensors").patches(BaseFiles(tmp_path / "other"))


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("architecture", SHAPES)
@pytest.mark.parametrize("target", ["peft", "vllm", "llamacpp"])
def test_a_lora_merges_into_the_adapted_weights(tmp_path, architecture, dtype, target):
    files, neurons = saved(tmp_path / "base", architecture, dtype), random_neurons(20, 3, 48, seed=0)
    delta, adapted = delta_of(files, neurons, size=1e-5 if dtype == torch.float32 else 1e-2)
    ranks = lora_ranks(delta, target)
    write_lora(tmp_path / "lora", lora_tensors(delta.patches(files), files, ranks), ranks, str(files.folder))
    base = AutoModelForCausalLM.from_pretrained(files.folder, dtype="auto")
    merged = PeftModel.from_pretrained(base, tmp_path / "lora").merge_and_unload()
    expected = dict(adapted.named_parameters())
    for name, weight in merged.named_parameters():
        assert torch.equal(weight, expected[name]), name
    if target != "peft":
        assert len(set(ranks.values())) == 1


def test_the_change_of_a_lora_adds_up_wherever_fp32_has_such_a_number():
    old = torch.randn(1000, generator=torch.Generator().manual_seed(0)) * 0.02
    new = old * (1 + 0.4 * torch.rand(1000, generator=torch.Generator().manual_seed(1)))
    assert torch.equal(old + exact_change(old, new), new)
    assert torch.equal(old.bfloat16() + exact_change(old.bfloat16(), new.bfloat16()), new.bfloat16().float())


@pytest.mark.parametrize(("masks", "fitting"), [("llama-3.1-5", "ka mk sk sl"), ("mistral-nemo-5", "mt ka mk sk sl")])
def test_vllm_takes_exactly_those_of_the_released_sets_that_its_ranks_allow(shared, masks, fitting):
    found = read_subnetworks(shared / f"masks/{masks}.pt", ",".join(PAPER_LANGUAGES))
    taken = []
    for short, neurons in zip(PAPER_LANGUAGES, found.neurons.values(), strict=True):
        delta = LanguageDelta(neurons, {}, matrices_like_llama(neurons), found.model, {})
        with contextlib.suppress(UserError):
            lora_ranks(delta, "vllm")
            taken.append(short)
    assert set(taken) == set(fitting.split())


def matrices_like_llama(neurons):
    names = {"gate": "gate_proj", "up": "up_proj", "down": "down_proj"}
    return [
        Matrix(f"model.layers.{layer}.mlp.{name}.weight", [1, 1], layer, 0, 0, f"{layer}.{projection}", "")
        for layer in neurons.layers
        for projection, name in names.items()
    ]


def test_a_damaged_delta_is_named(tmp_path):
    files, neurons = saved(tmp_path / "base"), random_neurons(20, 3, 48, seed=0)
    delta, _ = delta_of(files, neurons)
    bad = {name: each[:-1] for name, each in delta.vectors.items()}
    replace(delta, vectors=bad).save(tmp_path / "short.safetensors")
    with pytest.raises(UserError, match="is not a readable delta"):
        LanguageDelta.load(tmp_path / "short.safetensors")
    delta.save(tmp_path / "cut.safetensors")
    (tmp_path / "cut.safetensors").write_bytes((tmp_path / "cut.safetensors").read_bytes()[:-100])
    with pytest.raises(UserError, match="damaged or cut short"):
        LanguageDelta.load(tmp_path / "cut.safetensors")


def test_the_loader_is_one_short_file_that_needs_torch_and_safetensors_alone(tmp_path):
    assert len(LOADER.read_text(encoding="utf-8").splitlines()) <= 100
    (tmp_path / "neuroglot_delta.py").write_bytes(LOADER.read_bytes())
    others = "{'transformers', 'peft', 'lightning', 'lightning_app'}"
    code = f"import sys, neuroglot_delta; print(*{{m.split('.')[0] for m in sys.modules}} & {others})"
    ran = subprocess.run([sys.executable, "-c", code], cwd=tmp_path, capture_output=True, text=True, check=True)
    assert ran.stdout.strip() == ""
