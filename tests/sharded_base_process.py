"""One of the processes that load a base together; what each does with its part is the first argument."""

import json
import sys
import threading
from pathlib import Path

import torch
import torch.distributed
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.tensor import DTensor

from lightning_app.errors import UserError
from lightning_app.methods.subnetwork import SubnetworkTraining
from lightning_app.model.base import load_base
from lightning_app.model.ffn import PROJECTIONS, find_gated_ffns
from lightning_app.model.layers import decoder_layers
from lightning_app.model.loss import OutputHead, token_loss_sum
from lightning_app.model.sharding import load_sharded
from lightning_app.model.shards import is_sharded, local
from lightning_app.neurons.neuron_set import NeuronSet

CPU = torch.device("cpu")


def agree(value):
    values = [value]
    torch.distributed.broadcast_object_list(values, src=0)
    return values[0]


def load_part(folder, dtype):
    mesh = init_device_mesh("cpu", (torch.distributed.get_world_size(),))
    return load_sharded(folder, None, dtype, mesh, CPU, agree)


def memory():
    lines = Path("/proc/self/status").read_text().splitlines()
    return 1024 * next(int(line.split()[1]) for line in lines if line.startswith("RssAnon"))


def compare(folder, dtype):
    base = load_part(folder, dtype)
    plain = load_base(folder, None, dtype)
    assert is_sharded(base.model)
    assert base.identity == plain.identity
    whole = dict(plain.model.named_parameters())
    held = sum(local(weight).nbytes for weight in base.model.parameters())
    for name, weight in base.model.named_parameters():
        assert torch.equal(weight.full_tensor(), whole[name]), name
    tables = dict(plain.model.named_buffers())
    assert tables.keys() == dict(base.model.named_buffers()).keys()
    for name, table in base.model.named_buffers():
        assert table.dtype == tables[name].dtype, name
        assert torch.equal(table, tables[name]), name
    neurons = torch.tensor([0, 5, 17, 40, 47])
    for ffn, other in zip(find_gated_ffns(base.model), find_gated_ffns(plain.model), strict=True):
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
        assert torch.equal(hidden, other)
        assert torch.equal(*losses)
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
    base = load_part(folder, dtype)
    is_over.set()
    watcher.join()
    held = sum(local(weight).nbytes for weight in base.model.parameters())
    return held, max(peak, memory()) - before


def train(folder, dtype):
    """Steps packed neurons: no layer stays whole once it has computed, and what is written is what it would be."""
    base, plain = load_part(folder, dtype), load_base(folder, None, dtype)
    seen, grads = [], []

    def look(*_):
        named = base.model.named_parameters()
        seen.append([name for name, weight in named if "layers." in name and not isinstance(weight, DTensor)])

    for layer in decoder_layers(base.model):
        layer.register_forward_hook(look)  # after that of FSDP2
    for model in (base.model, plain.model):
        attached = SubnetworkTraining().attach(model, NeuronSet({layer: torch.tensor([1, 17, 40]) for layer in (1, 2)}))
        model.train()
        for _ in range(2):
            ids = torch.arange(12).reshape(2, 6) + torch.distributed.get_rank() * (model is base.model)
            hidden = model.base_model(input_ids=ids).last_hidden_state
            token_loss_sum(hidden, OutputHead.of(model), ids).backward()
            for rows in attached.parameters():
                rows.data -= 0.01
            attached.after_step()
        grads.append([rows.grad.clone() for rows in attached.parameters()])
    assert seen
    assert not any(seen), seen
    assert all(isinstance(weight, DTensor) for weight in base.model.parameters())
    parts, whole = base.model.state_dict(), plain.model.state_dict()
    assert all(torch.equal(parts[name].full_tensor(), whole[name]) for name in whole)
    for one, other in zip(*grads, strict=True) if torch.distributed.get_rank() == 0 else ():  # on the same text
        torch.testing.assert_close(one, other, rtol=1e-4, atol=1e-6)
    return len(seen), len(grads[0])  # figures for each base, as of the others


def main(work, dtypes, *folders):
    torch.set_num_threads(1)
    torch.distributed.init_process_group("gloo")
    for folder in folders:
        for dtype in dtypes.split(","):
            try:
                print(json.dumps(WORK[work](folder, getattr(torch, dtype))), flush=True)
            except UserError as error:
                print(f"refused: {error}", flush=True)
    torch.distributed.destroy_process_group()


def load_whole(folder, dtype):
    before = memory()
    base = load_base(folder, None, dtype)
    return sum(weight.nbytes for weight in base.model.parameters()), memory() - before


WORK = {"compare": compare, "load": load, "train": train, "load_whole": load_whole}

if __name__ == "__main__":
    main(*sys.argv[1:])
