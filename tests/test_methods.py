"""What every method promises, whichever it is."""

import pytest
import torch

from lightning_app.errors import UserError
from lightning_app.methods.registry import METHODS, build_method
from lightning_app.model.base import base_without_weights
from lightning_app.model.ffn import find_gated_ffns
from lightning_app.model.loss import OutputHead, token_loss_sum
from lightning_app.neurons.neuron_set import NeuronSet
from tests.conftest import ARCHITECTURES, tiny_model

NEURONS = NeuronSet({1: torch.tensor([0, 5, 47]), 2: torch.tensor([3])})
WAYS = [("subnetwork", {}), ("subnetwork", {"engine": "masked"}), ("ffn", {}), ("full", {})]
ADAMW = {"lr": 1e-2, "weight_decay": 0.1, "betas": (0.9, 0.999)}


def put_to_work(name, keys, architecture="llama"):
    method, model = build_method(name, keys), tiny_model(architecture)
    return method, model, method.attach(model, NEURONS if method.needs_neurons else None)


def train(model, attached, steps=2):
    optimizer, generator = attached.optimizer(**ADAMW), torch.Generator().manual_seed(0)
    for _ in range(steps):
        ids = torch.randint(3, 97, (2, 9), generator=generator)
        hidden = model.base_model(input_ids=ids, use_cache=False).last_hidden_state
        token_loss_sum(hidden[:, :-1], OutputHead.of(model), ids[:, 1:]).backward()
        attached.require_frozen_gradients_zero()
        optimizer.step()
        optimizer.zero_grad()
        attached.after_step()
    return optimizer


def test_every_method_is_tried_here():
    assert {name for name, _ in WAYS} == set(METHODS)


@pytest.mark.parametrize("architecture", ["llama", "phi3", "gemma2"])
@pytest.mark.parametrize(("name", "keys"), WAYS)
def test_saved_weights_rebuild_the_trained_model_attached_or_plain(name, keys, architecture):
    method, model, attached = put_to_work(name, keys, architecture)
    before = {name: weight.clone() for name, weight in model.named_parameters()}
    train(model, attached)
    trained = {name: weight.detach().clone() for name, weight in model.named_parameters()}
    assert any(not torch.equal(trained[name], before[name]) for name in before)
    saved = {name: weight.clone() for name, weight in attached.weights().items()}
    _, other, again = put_to_work(name, keys, architecture)
    assert again.identity() == attached.identity()
    again.load_weights(saved)
    plain = tiny_model(architecture)
    method.restore(plain, attached.neurons, saved)
    for name, weight in trained.items():
        assert torch.equal(other.get_parameter(name), weight), name
        assert torch.equal(plain.get_parameter(name), weight), name


@pytest.mark.parametrize(("name", "keys"), WAYS)
def test_what_is_trained_is_counted_and_described(name, keys):
    _, model, attached = put_to_work(name, keys)
    ffns = find_gated_ffns(model)
    every = sum(weight.numel() for weight in model.parameters())
    of_ffns = sum(w.numel() for ffn in ffns for w in (ffn.gate.weight, ffn.up.weight, ffn.down.weight))
    expected = {"subnetwork": 3 * 32 * len(NEURONS), "ffn": of_ffns, "full": every}
    assert attached.trained_parameters == expected[name]
    assert attached.lowest_layer == (1 if name == "subnetwork" else 0)
    assert attached.describe()
    delta = attached.delta()
    assert (delta is not None) == (name == "subnetwork")
    if delta is not None:
        assert delta.neurons.identity == NEURONS.identity


@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_ffn_training_moves_every_matrix_of_the_ffns_and_nothing_else(architecture):
    _, model, attached = put_to_work("ffn", {}, architecture)
    before = {name: weight.clone() for name, weight in model.named_parameters()}
    train(model, attached)
    inside = {id(p) for ffn in find_gated_ffns(model) for x in (ffn.gate, ffn.up, ffn.down) for p in x.parameters()}
    for name, weight in model.named_parameters():
        assert torch.equal(before[name], weight) == (id(weight) not in inside), name


@pytest.mark.parametrize(("name", "keys"), WAYS)
def test_a_method_attaches_to_a_base_without_weights(name, keys):
    """What the plan counts on: the same numbers are trained, whether weights are there or not."""
    settings = {**ARCHITECTURES["llama"], "hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 3,
                "num_attention_heads": 4, "num_key_value_heads": 2, "vocab_size": 97}  # fmt: skip
    method, _, attached = put_to_work(name, keys)
    meta = method.attach(base_without_weights(None, None, torch.float32, settings).model, attached.neurons)
    assert meta.trained_parameters == attached.trained_parameters


def test_unknown_methods_and_keys_are_refused_by_name():
    with pytest.raises(UserError, match=r"model.method is subnet; expected one of .*; did you mean 'subnetwork'"):
        build_method("subnet", {})
    with pytest.raises(UserError, match=r"no method has a key engin; did you mean 'engine'"):
        build_method("full", {"engin": "packed"})
    with pytest.raises(UserError, match="projections is empty"):
        build_method("subnetwork", {"projections": ()})
