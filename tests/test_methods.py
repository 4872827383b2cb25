"""What every method promises, whichever it is."""

import copy
from contextlib import nullcontext

import pytest
import torch

from lightning_app.methods.adamw import FusedAdamW
from lightning_app.methods.method import Calibration
from lightning_app.methods.registry import METHODS, build_method
from lightning_app.model.base import base_without_weights
from lightning_app.model.ffn import find_gated_ffns
from lightning_app.model.loss import OutputHead, token_loss_sum
from lightning_app.neurons.neuron_set import NeuronSet
from tests.conftest import ARCHITECTURES, tiny_model
from tests.faults import fault, refusal

NEURONS = NeuronSet({1: torch.tensor([0, 5, 47]), 2: torch.tensor([3])})
OF_NEURONS = ("subnetwork", "random", "random_per_layer", "gradient")
OF_PEFT = ("lora", "lora_all", "dora", "shira")
WAYS = [
    *((name, {}) for name in METHODS if name not in OF_PEFT),
    ("subnetwork", {"engine": "masked"}),
    *((name, {"rank": 2}) for name in OF_PEFT),
]
ADAMW = {"lr": 1e-2, "weight_decay": 0.1, "betas": (0.9, 0.999)}


def text(code, sequences, tokens):
    """Calibration text: a few sequences, other ones for the source language than for the target."""
    generator = torch.Generator().manual_seed(0 if code is None else 1)
    return [torch.randint(3, 97, (min(tokens, 24),), generator=generator) for _ in range(min(sequences, 5))]


CALIBRATION = Calibration(text, torch.device("cpu"), nullcontext)


def put_to_work(name, keys, architecture="llama"):
    method, model = build_method(name, keys), tiny_model(architecture)
    neurons = method.choose(NEURONS, model, 0, CALIBRATION) if method.needs_neurons else None
    attached = method.attach(model, neurons)
    attached.calibrate(CALIBRATION)
    return method, model, attached, neurons


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
    method, model, attached, neurons = put_to_work(name, keys, architecture)
    before = {name: weight.clone() for name, weight in model.named_parameters()}
    train(model, attached)
    trained = {name: weight.detach().clone() for name, weight in model.named_parameters()}
    assert any(not torch.equal(trained[name], before[name]) for name in before)
    saved = {name: weight.clone() for name, weight in attached.weights().items()}
    _, other, again, _ = put_to_work(name, keys, architecture)
    assert again.identity() == attached.identity()
    again.load_weights(saved)
    plain = tiny_model(architecture)
    method.restore(plain, neurons, saved)
    assert not any(weight.requires_grad for weight in plain.parameters())
    for name, weight in trained.items():
        assert torch.equal(other.get_parameter(name), weight), name
        assert torch.equal(plain.get_parameter(name), weight), name


@pytest.mark.parametrize(("name", "keys"), WAYS)
def test_frozen_weights_stay_bit_identical(name, keys):
    """For adapters that is all of the base; for ssu the shielded columns of the matrices that train, too."""
    _, model, attached, _ = put_to_work(name, keys)
    before = {name: weight.clone() for name, weight in model.named_parameters()}
    own = {id(parameter) for parameter in attached.trained()}
    train(model, attached, steps=3)
    changed = [name for name, weight in model.named_parameters() if not torch.equal(before[name], weight)]
    if name in OF_NEURONS:
        matrices = {f"model.layers.{layer}.mlp.{p}_proj.weight" for layer in attached.neurons.layers
                    for p in ("gate", "up", "down")}  # fmt: skip
        assert set(changed) == matrices
    else:
        assert {id(model.get_parameter(name)) for name in changed} <= own
        assert len(changed) == len(own)
    for name, frozen in attached.weights().items():
        if name.startswith("frozen_columns."):
            weight = f"{name.removeprefix('frozen_columns.')}.weight"
            assert torch.equal(model.get_parameter(weight)[:, frozen], before[weight][:, frozen])
            assert not (model.get_parameter(weight)[:, ~frozen] == before[weight][:, ~frozen]).all(0).any()


@pytest.mark.parametrize(("name", "keys"), WAYS)
def test_a_scaled_change_goes_from_the_base_to_the_trained_model_and_on(name, keys):
    method, model, attached, neurons = put_to_work(name, keys)
    train(model, attached)
    saved = {name: weight.clone() for name, weight in attached.weights().items()}
    ids = torch.arange(3, 40).unsqueeze(0)
    base, trained = tiny_model("llama")(ids).logits, model(ids).logits
    logits, weights = {}, {}
    for scale in (0.0, 0.5, 1.0, 1.25):
        scaled = tiny_model("llama")
        method.restore(scaled, neurons, saved, scale)
        logits[scale], weights[scale] = scaled(ids).logits, dict(scaled.named_parameters())
    assert torch.equal(logits[0.0], base)
    assert torch.equal(logits[1.0], trained)
    for name, weight in tiny_model("llama").named_parameters():
        half, more = weights[0.5][name] - weight, weights[1.25][name] - weight
        torch.testing.assert_close(more, 2.5 * half, atol=1e-6, rtol=1e-4)


@pytest.mark.parametrize("name", OF_NEURONS)
def test_methods_that_choose_neurons_train_as_many_of_them(name):
    _, _, attached, neurons = put_to_work(name, {})
    assert attached.neurons.identity == neurons.identity
    assert len(neurons) == len(NEURONS)
    assert (neurons.identity == NEURONS.identity) == (name == "subnetwork")
    if name == "random_per_layer":
        assert neurons.per_layer(3) == NEURONS.per_layer(3)
    others = {method_seed: build_method(name, {"seed": method_seed}) for method_seed in (0, 1)}
    drawn = {seed: each.choose(NEURONS, tiny_model("llama"), 1, CALIBRATION) for seed, each in others.items()}
    assert all(min(each.layers) >= 1 for each in drawn.values())
    assert (drawn[0].identity != drawn[1].identity) == name.startswith("random")


@pytest.mark.parametrize(("name", "keys"), WAYS)
def test_what_is_trained_is_counted_and_described(name, keys):
    _, model, attached, neurons = put_to_work(name, keys)
    before = [weight.detach().clone() for weight in attached.trained()]
    train(model, attached, steps=3)
    moved = sum(int((old != new).sum()) for old, new in zip(before, attached.trained(), strict=True))
    # The embeddings of words that no text has do not move, nor what the first steps of a LoRA leave at zero.
    assert 0.75 * attached.trained_parameters < moved <= attached.trained_parameters
    assert attached.lowest_layer == {"last_layers": 1}.get(name, min(neurons.layers) if attached.neurons else 0)
    assert attached.describe()
    delta = attached.delta()
    assert (delta is not None) == (name in OF_NEURONS)
    if delta is not None:
        assert delta.neurons.identity == neurons.identity


@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_ffn_training_moves_every_matrix_of_the_ffns_and_nothing_else(architecture):
    _, model, attached, _ = put_to_work("ffn", {}, architecture)
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
    method, _, attached, neurons = put_to_work(name, keys)
    meta = method.attach(base_without_weights(None, None, torch.float32, settings).model, neurons)
    assert meta.trained_parameters == attached.trained_parameters


@fault("methods and keys of methods that there are not, or that another method has")
def test_unknown_methods_and_keys_are_refused_by_name():
    with refusal(r"model.method is subnet; expected one of .*; did you mean 'subnetwork'"):
        build_method("subnet", {})
    with refusal(r"no method has a key engin; did you mean 'engine'"):
        build_method("full", {"engin": "packed"})
    with refusal("projections is empty"):
        build_method("subnetwork", {"projections": ()})
    with refusal(r"model.rank is 8, but --model.method ia3 has no such key; it is one of lora"):
        build_method("ia3", {"rank": 8, "projections": ["gate", "up", "down"]})


@pytest.mark.parametrize("is_fused", [True, False])
def test_steps_are_those_of_plain_adamw_whatever_the_layouts_of_weights_and_states(is_fused):
    """Fused kernels read memory in its own order: states from a file must lie as their weight does."""
    generator = torch.Generator().manual_seed(0)
    grads = torch.randn(6, 3, 4, dtype=torch.float64, generator=generator)
    ends = {}
    for kind in ("plain", "fused"):
        weight = torch.nn.Parameter(torch.arange(12.0, dtype=torch.float64).reshape(4, 3).t())  # column-major
        plain = torch.optim.AdamW([weight], lr=1e-2, weight_decay=0.1, fused=False)
        optimizer = plain if kind == "plain" else FusedAdamW([weight], 1e-2, 0.1, (0.9, 0.999))
        for step, grad in enumerate(grads):
            weight.grad = torch.empty_like(weight).copy_(grad)
            optimizer.step()
            if step == 2:
                saved = optimizer.state_dict()
                for states in saved["state"].values():
                    states.update({key: states[key].clone(memory_format=torch.contiguous_format) for key in states})
                saved["param_groups"][0]["fused"] = is_fused if kind == "fused" else False  # by whichever it was saved
                optimizer.load_state_dict(copy.deepcopy(saved))
        ends[kind] = weight.detach()
    assert optimizer.param_groups[0]["fused"]
    torch.testing.assert_close(ends["fused"], ends["plain"], rtol=0, atol=1e-14)
