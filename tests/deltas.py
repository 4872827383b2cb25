"""Deltas of tiny bases, and what the models with them in memory are."""

import torch
from safetensors import safe_open
from transformers import AutoModelForCausalLM

from lightning_app.export.delta import LanguageDelta, Matrix
from lightning_app.export.neuroglot_delta import row_digest
from lightning_app.methods.method import Delta as Change
from lightning_app.model.base import identity_of
from lightning_app.model.base_files import BaseFiles
from lightning_app.model.ffn import find_gated_ffns
from tests.conftest import tiny_model

IDS = torch.arange(3, 43).reshape(2, 20)


def saved(folder, architecture="llama", dtype=torch.float32, shard="100KB", seed=0):
    """A base in a folder, in shards."""
    tiny_model(architecture, dtype, seed).save_pretrained(folder, max_shard_size=shard)
    return BaseFiles(folder)


def changed(model, neurons, size=1e-3, seed=1):
    """Vectors near those of the model, fp32, and the model with them in memory."""
    generator, vectors = torch.Generator().manual_seed(seed), {}
    for ffn in find_gated_ffns(model):
        for projection in ("gate", "up", "down"):
            if ffn.layer in neurons.by_layer:
                old = ffn.read(projection, neurons.by_layer[ffn.layer]).float()
                vectors[f"{ffn.layer}.{projection}"] = old + size * torch.randn(old.shape, generator=generator)
    Change(neurons, vectors).write(model)
    return vectors


def delta_of(files, neurons, size=1e-3, seed=1, language="cym-Latn"):
    """The delta of such vectors, and the adapted model."""
    model = AutoModelForCausalLM.from_pretrained(files.folder, dtype="auto")
    names = {id(weight): name for name, weight in model.named_parameters()}
    matrices = [
        Matrix(
            names[id(ffn.linear(p).weight)], list(ffn.linear(p).weight.shape), ffn.layer, int(p == "down"),
            int(ffn.rows_of(p, torch.tensor(0))), f"{ffn.layer}.{p}",
            row_digest(ffn.read(p, neurons.by_layer[ffn.layer])),
        )
        for ffn in find_gated_ffns(model) if ffn.layer in neurons.by_layer for p in ("gate", "up", "down")
    ]  # fmt: skip
    identity = identity_of(model, str(files.folder))
    vectors = {name: each.to(model.dtype) for name, each in changed(model, neurons, size, seed).items()}
    return LanguageDelta(neurons, vectors, matrices, identity, {"language": [language]}), model


@torch.no_grad()
def logits(model):
    return model(input_ids=IDS).logits


def tensors(folder):
    found = {}
    for shard in BaseFiles(folder).shards:
        with safe_open(shard, framework="pt") as file:
            found |= {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118 - no mapping
    return found
