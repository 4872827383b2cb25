"""A base loaded part by part: weights, tables and identity of the whole one, and never all of it at once."""

import json

import pytest
import torch
from safetensors.torch import load_file, save_file
from transformers import AutoModelForCausalLM

from lightning_app.model.architecture import read_architecture
from tests.conftest import tiny_model
from tests.sharded_runs import start_together

PROCESS = ["-m", "tests.sharded_base_process"]
ARCHITECTURES = ["llama", "cohere", "gemma2", "qwen3", "phi3"]


def saved(folder, architecture, dtype=torch.float32):
    tiny_model(architecture, dtype).save_pretrained(folder)
    return folder


def numbers(said):
    """What each process printed, per base."""
    return zip(
        *([json.loads(line) for line in each.splitlines() if line.startswith("[")] for each in said), strict=True
    )


def test_parts_make_up_the_base(tmp_path):
    """On three processes, which the rows of no matrix can be divided by: the vocabulary of 97, 32 and 48."""
    folders = [saved(tmp_path / name, name) for name in ARCHITECTURES]
    (file,) = saved(tmp_path / "lacking", "llama").glob("*.safetensors")
    weights = load_file(file)
    del weights["model.layers.1.mlp.up_proj.weight"]
    save_file(weights, file, {"format": "pt"})
    said, codes = start_together(3, PROCESS, "compare", "float32,bfloat16", *folders, file.parent)
    assert codes == [0, 0, 0], "\n".join(said)
    for of_each in (sizes := list(numbers(said))):
        (whole,) = {whole for _, whole in of_each}
        assert sum(held for held, _ in of_each) == whole
        assert max(held for held, _ in of_each) < 0.4 * whole
    assert len(sizes) == 2 * len(ARCHITECTURES)
    assert all("lack 1 of its weights (model.layers.1.mlp.up_proj.weight)" in each for each in said)


@pytest.mark.slow
def test_packed_rows_of_every_architecture_train_on_parts_as_on_the_whole(tmp_path):
    """No layer stays whole on a process once it has computed; gradients and written rows are those of the whole."""
    folders = [saved(tmp_path / name, name) for name in ARCHITECTURES]
    said, codes = start_together(2, PROCESS, "train", "float32", *folders)
    assert codes == [0, 0], "\n".join(said)
    assert len(list(numbers(said))) == len(ARCHITECTURES)


@pytest.mark.slow
@pytest.mark.parametrize("processes", [2, 4])
def test_no_process_ever_holds_the_whole_base(tmp_path, processes):
    """Neither its weights nor, on the way to them, as much memory of its own: of a base of 218 MB."""
    shape = {"hidden_size": 512, "intermediate_size": 2048, "num_hidden_layers": 12, "vocab_size": 4000}
    config = read_architecture({"model_type": "llama", **shape})
    model = AutoModelForCausalLM.from_config(config)
    model.save_pretrained(tmp_path / "base")
    size = sum(weight.nbytes for weight in model.parameters())
    imported = saved(tmp_path / "tiny", "llama")  # libraries take memory, too
    said, codes = start_together(processes, PROCESS, "load", "float32", imported, tmp_path / "base")
    assert codes == [0] * processes, "\n".join(said)
    _, of_base = numbers(said)
    largest = max(weight.nbytes for weight in model.parameters())
    for rank, (held, peak) in enumerate(of_base):
        assert held == pytest.approx(size / processes, rel=0.01)
        # The first process looks at every number: at one matrix, of which the fingerprint makes wider copies.
        assert held <= peak < min(size, held + (1 if rank else 12) * largest), of_base


@pytest.mark.slow
def test_processes_with_the_whole_base_each_share_the_memory_of_its_files(tmp_path):
    """Under DDP a node holds a base once: what is in the files' own dtype is mapped, not copied."""
    config = read_architecture(
        {"model_type": "llama", "hidden_size": 512, "intermediate_size": 2048, "vocab_size": 4000}
    )
    AutoModelForCausalLM.from_config(config, dtype=torch.bfloat16).save_pretrained(tmp_path / "base")
    imported = saved(tmp_path / "tiny", "llama", torch.bfloat16)
    said, codes = start_together(2, PROCESS, "load_whole", "bfloat16", imported, tmp_path / "base")
    assert codes == [0, 0], "\n".join(said)
    for held, own in list(numbers(said))[1]:
        assert own < 0.2 * held
