"""Which keys make a run fit a card: what they give fits, and the cheapest come first."""

from dataclasses import replace

import pytest
import torch

from lightning_app.methods.registry import build_method
from lightning_app.model.base import base_without_weights
from lightning_app.neurons.selection import random_neurons
from lightning_app.planning.fitting import Setting, _cheaper, advise, read_card
from lightning_app.planning.memory import Batches
from tests.faults import refusal

GPU = torch.device("cuda")
SHAPE = {
    "model_type": "llama", "hidden_size": 256, "intermediate_size": 1024, "num_hidden_layers": 6, "vocab_size": 500,
    "num_attention_heads": 4, "num_key_value_heads": 2, "pad_token_id": 0, "max_position_embeddings": 4096,
}  # fmt: skip
NEURONS = random_neurons(60, 6, 1024, seed=0)


def model():
    return base_without_weights(None, None, torch.bfloat16, SHAPE).model


def setting(method="subnetwork", **changes):
    own = build_method(method, {})
    neurons = NEURONS if own.needs_neurons else None
    return Setting(own, neurons, Batches((4, 1024), (8, 512), (1, 4096)), False, None, **changes)


FOUND = []


@pytest.fixture
def worked_out_once(monkeypatch):
    """Every setting is asked for its memory again and again."""
    found, memory = FOUND, Setting.memory

    def once(self, model):
        key = replace(self, neurons=None)
        if not any(key == each for each, _ in found):
            found.append((key, memory(self, model)))
        return next(result for each, result in found if key == each)

    monkeypatch.setattr(Setting, "memory", once)


@pytest.mark.usefixtures("worked_out_once")
@pytest.mark.parametrize("method", ["subnetwork", "lora", "full"])
def test_the_first_keys_that_fit_are_given_and_their_order_is_that_of_their_price(method):
    own = setting(method)
    tried = [(" ".join(keys), one.memory(model()).training) for keys, one in _cheaper(own)]
    assert tried[0][0] == ""
    given = []
    for size in sorted({size for _, size in tried}, reverse=True):
        room = max(size, own.memory(model()).validation) * 1.001
        said = advise(own, model, room, GPU)
        keys = said.partition(" makes it fit")[0]
        named = [index for index, (name, _) in enumerate(tried) if name and keys.startswith(name)]
        given.append(max(named, key=lambda index: len(tried[index][0])))
        assert tried[given[-1]][1] <= room
        assert all(size > room for name, size in tried[1 : given[-1]] if name)
    assert given == sorted(given)
    assert ("nf4" in " ".join(name for name, _ in tried)) == (method != "full")


@pytest.mark.usefixtures("worked_out_once")
def test_nothing_fits_a_card_that_is_too_small():
    said = advise(setting(), model, 1000.0, GPU)
    assert said.startswith("no key makes it fit: at the least it takes 0.0")


def test_a_base_over_several_processes_takes_its_share_and_two_layers():
    whole, parts = (setting(shards=shards).memory(model()) for shards in (1, 4))
    assert parts.weights == pytest.approx(whole.weights / 4, rel=0.01)
    assert parts.neurons == whole.neurons  # whole on every process
    weights = [sum(w.nbytes for w in layer.parameters()) for layer in model().model.layers]
    beside = whole.weights - sum(weights) + 2 * max(weights)
    assert parts.training == pytest.approx(whole.training - whole.weights * 3 / 4 + beside, rel=0.01)
    dense = [setting("full", shards=shards).memory(model()).neurons for shards in (1, 4)]
    assert dense[1] == pytest.approx(dense[0] / 4, rel=0.01)


def test_a_card_is_read_as_people_call_it():
    assert [read_card(text) for text in ("12gb", "24 GB", "7.5", "80G")] == [12, 24, 7.5, 80]
    for text in ("", "0", "large", "-3"):
        with refusal("--for is"):
            read_card(text)
