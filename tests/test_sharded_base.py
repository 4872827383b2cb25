"""A base loaded part by part: weights, tables and identity of the whole one, and never all of it at once."""

import json

import pytest
import torch
from safetensors.torch import load_file, save_file
from transformers import AutoModelForCausalLM

from lightning_app.model.base import read_architecture
from tests.conftest import tiny_model
from tests.sharded_runs import start_together

ARCHITECTURES = ["llama", "cohere", "gemma2", "qwen3", "phi3"]
LOAD = """
import json, sys, threading
import torch
import torch.distributed
from torch.distributed.device_mesh import init_device_mesh
from lightning_app.errors import UserError
from lightning_app.model.base import load_base
from lightning_app.model.ffn import PROJECTIONS, find_gated_ffns
from lightning_app.model.loss import OutputHead, token_loss_sum
from lightning_app.model.shards import is_sharded, local
from lightning_app.model.sharding import load_sharded

torch.set_num_threads(1)
torch.distributed.init_process_group("gloo")
rank, processes = torch.distributed.get_rank(), torch.distributed.get_world_size()
mesh = init_device_mesh("cpu", (processes,))

def agree(value):
    values = [value]
    torch.distributed.broadcast_object_list(values, src=0)
    return values[0]

def memory():
    line = next(line for line in open("/proc/self/status") if line.startswith("RssAnon"))
    return int(line.split()[1]) * 1024

def compare(folder, dtype):
    base = load_sharded(folder, None, dtype, mesh, torch.device("cpu"), agree)
    plain = load_base(folder, None, dtype)
    assert is_sharded(base.model) and base.identity == plain.identity, (base.identity, plain.identity)
    whole = dict(plain.model.named_parameters())
    held = sum(local(weight).nbytes for weight in base.model.parameters())
    for name, weight in base.model.named_parameters():
        assert torch.equal(weight.full_tensor(), whole[name]), name
    tables = dict(plain.model.named_buffers())
    assert tables.keys() == dict(base.model.named_buffers()).keys()
    for name, table in base.model.named_buffers():
        assert table.dtype == tables[name].dtype and torch.equal(table, tables[name]), name
    neurons = torch.tensor([0, 5, 17, 40, 47])
    for ffn, other in zip(find_gated_ffns(base.model), find_gated_ffns(plain.model)):
        for projection in PROJECTIONS:
            rows = other.read(projection, neurons)
            assert torch.equal(ffn.read(projection, neurons), rows)
            for each in (ffn, other):
                each.write(projection, neurons, rows + ffn.layer + 1)
    for name, weight in base.model.named_parameters():
        assert torch.equal(weight.full_tensor(), whole[name]), name
    ids = torch.arange(12).reshape(2, 6)
    with torch.no_grad():
        hidden, other = (each.model.base_model(input_ids=ids).last_hidden_state for each in (base, plain))
        losses = [token_loss_sum(h, OutputHead.of(each.model), ids) for h, each in ((hidden, base), (other, plain))]
        assert torch.equal(hidden, other) and torch.equal(*losses)
        assert torch.equal(base.model(input_ids=ids).logits, plain.model(input_ids=ids).logits)
    return held, sum(weight.nbytes for weight in whole.values())

def load(folder, dtype):
    before, peak, is_over = memory(), 0, threading.Event()

    def watch():
        nonlocal peak
        while not is_over.wait(0.002):
            peak = max(peak, memory())

    watcher = threading.Thread(target=watch)
    watcher.start()
    base = load_sharded(folder, None, dtype, mesh, torch.device("cpu"), agree)
    is_over.set()
    watcher.join()
    held = sum(local(weight).nbytes for weight in base.model.parameters())
    return held, max(peak, memory()) - before

work = {"compare": compare, "load": load}[sys.argv[1]]
for folder in sys.argv[3:]:
    for dtype in sys.argv[2].split(","):
        try:
            print(json.dumps(work(folder, getattr(torch, dtype))), flush=True)
        except UserError as error:
            print(f"refused: {error}", flush=True)
torch.distributed.destroy_process_group()
"""


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
    said, codes = start_together(3, LOAD, "compare", "float32,bfloat16", *folders, file.parent)
    assert codes == [0, 0, 0], "\n".join(said)
    for of_each in (sizes := list(numbers(said))):
        (whole,) = {whole for _, whole in of_each}
        assert sum(held for held, _ in of_each) == whole
        assert max(held for held, _ in of_each) < 0.4 * whole
    assert len(sizes) == 2 * len(ARCHITECTURES)
    assert all("lack 1 of its weights (model.layers.1.mlp.up_proj.weight)" in each for each in said)


@pytest.mark.slow
@pytest.mark.parametrize("processes", [2, 4])
def test_no_process_ever_holds_the_whole_base(tmp_path, processes):
    """Neither its weights nor, on the way to them, as much memory of its own: of a base of 240 MB."""
    shape = {"hidden_size": 1024, "intermediate_size": 4096, "num_hidden_layers": 3, "vocab_size": 4000}
    config = read_architecture({"model_type": "llama", **shape})
    model = AutoModelForCausalLM.from_config(config)
    model.save_pretrained(tmp_path / "base")
    size = sum(weight.nbytes for weight in model.parameters())
    imported = saved(tmp_path / "tiny", "llama")  # libraries take memory, too
    said, codes = start_together(processes, LOAD, "load", "float32", imported, tmp_path / "base")
    assert codes == [0] * processes, "\n".join(said)
    _, of_base = numbers(said)
    largest = max(weight.nbytes for weight in model.parameters())
    for rank, (held, peak) in enumerate(of_base):
        assert held == pytest.approx(size / processes, rel=0.01)
        # The first process looks at every number: at one matrix, of which the fingerprint makes wider copies.
        assert held <= peak < min(size, held + (1 if rank else 6) * largest), of_base
