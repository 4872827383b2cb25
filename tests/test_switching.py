"""Base and adapted model in one loaded model, bit for bit what each is by itself."""

import time

import pytest
import torch
from transformers import AutoModelForCausalLM

from lightning_app.adapted import Adaptation, load_adapted
from lightning_app.export.source import Source
from lightning_app.export.switching import BaseAndAdapted
from lightning_app.model.base import identity_of
from lightning_app.neurons.selection import random_neurons
from tests.conftest import tiny_model
from tests.deltas import delta_of, logits, saved
from tests.test_answers import letters
from tests.test_methods import put_to_work, train
from tests.test_stacking import two_deltas

CPU = torch.device("cpu")


def checkpoint_of(folder, name):
    """A checkpoint of a method, made by a few steps without a Trainer."""
    keys = {"rank": 2} if name in ("lora", "dora") else {}
    files = saved(folder / "base")
    letters(begins=True).save_pretrained(files.folder)
    method, model, attached, neurons = put_to_work(name, keys)
    identity = identity_of(tiny_model("llama"), str(files.folder))
    train(model, attached)
    content = {"state_dict": {key: each.clone() for key, each in attached.weights().items()}}
    own = attached.identity()
    Adaptation(identity, None, "float32", None, str(files.folder), "cym-Latn", method, own, neurons).write(content)
    torch.save(content, folder / "best.ckpt")
    return folder / "best.ckpt"


@pytest.mark.parametrize("scale", [1.0, 0.5])
@pytest.mark.parametrize("method", ["subnetwork", "random", "ffn", "lora", "ia3", "dora"])
def test_one_loaded_model_is_the_base_and_the_adapted_one_bit_for_bit(tmp_path, method, scale):
    path = checkpoint_of(tmp_path, method)
    two = BaseAndAdapted.load(Source.find([path], None, None, scale), CPU)
    base, adapted = load_adapted(tmp_path / "base").model, load_adapted(path, scale=scale).model
    assert not torch.equal(logits(base), logits(adapted))
    for is_adapted in (False, True, True, False, True):
        two.switch(is_adapted)
        assert torch.equal(logits(two.model), logits(adapted if is_adapted else base))


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("architecture", ["llama", "phi3"])
def test_stacked_deltas_and_their_base_are_one_loaded_model(tmp_path, architecture, dtype):
    files, deltas = two_deltas(tmp_path, architecture, dtype)
    letters(begins=True).save_pretrained(files.folder)
    paths = [tmp_path / f"{number}.safetensors" for number in range(2)]
    for path, delta in zip(paths, deltas, strict=True):
        delta.save(path)
    source = Source.find(paths, None, None, policy="average")
    two = BaseAndAdapted.load(source, CPU)
    base = AutoModelForCausalLM.from_pretrained(files.folder, dtype="auto")
    for is_adapted, expected in ((False, base), (True, source.adapted()), (False, base)):
        two.switch(is_adapted)
        assert torch.equal(logits(two.model), logits(expected))
        assert two.model.dtype == dtype


@pytest.mark.slow  # a time, of a machine with nothing else to do
def test_switching_takes_milliseconds(tmp_path):
    files, neurons = saved(tmp_path / "base"), random_neurons(20, 3, 48, seed=0)
    letters(begins=True).save_pretrained(files.folder)
    delta_of(files, neurons)[0].save(tmp_path / "delta.safetensors")
    two, took = BaseAndAdapted.load(Source.find([tmp_path / "delta.safetensors"], None, None), CPU), []
    for number in range(20):
        begin = time.perf_counter()
        two.switch(bool(number % 2))
        took.append(time.perf_counter() - begin)
    assert sorted(took)[10] < 0.02
