"""Sets of neurons against plain Python sets, and ways to choose them."""

import pytest
import torch

from lightning_app.errors import UserError
from lightning_app.identity import ModelIdentity
from lightning_app.neurons.neuron_set import NeuronSet
from lightning_app.neurons.selection import all_neurons, random_neurons, random_per_layer
from lightning_app.neurons.subnetworks import Subnetworks

MODEL = ModelIdentity("m", "", "0123456789abcdef", 5, 40, 16, 10_000)


def some(seed, count=60):
    return random_neurons(count, 5, 40, seed)


def as_set(neurons):
    return {(layer, index) for layer, index in neurons.pairs.tolist()}


@pytest.mark.parametrize("seed", range(5))
def test_set_operations_are_those_of_plain_sets(seed):
    one, two, three = (some(seed + 10 * i, 20 + 30 * i) for i in range(3))
    a, b, c = map(as_set, (one, two, three))
    assert as_set(one.union(two, three)) == a | b | c
    assert as_set(two.minus(three)) == b - c
    assert as_set(one.from_layer(3)) == {pair for pair in a if pair[0] >= 3}
    assert two.overlap(three) == pytest.approx(len(b & c) / len(b | c))
    assert len(one) == len(a) == sum(one.per_layer(5))
    assert one.pairs.tolist() == sorted(map(list, a))
    assert set(one.layers) == {layer for layer, _ in a}
    assert one.parameters(16) == 3 * 16 * len(a)


def test_the_same_neurons_have_the_same_identity_however_they_were_given():
    neurons = NeuronSet({3: torch.tensor([7, 1, 7]), 0: torch.tensor([2]), 4: torch.tensor([], dtype=torch.int64)})
    same = NeuronSet.from_pairs(torch.tensor([[3, 7], [0, 2], [3, 1]]))
    assert neurons.identity == same.identity
    assert neurons.layers == same.layers == (0, 3)
    assert neurons.identity != neurons.minus(NeuronSet({0: torch.tensor([2])})).identity
    assert NeuronSet({}).overlap(NeuronSet({})) == 0.0
    assert NeuronSet({}).pairs.shape == (0, 2)


def test_a_saved_set_reads_back_with_its_model_and_another_file_is_refused(tmp_path):
    some(0).save(tmp_path / "set.safetensors", MODEL)
    found, model = NeuronSet.load(tmp_path / "set.safetensors")
    assert (found.identity, model) == (some(0).identity, MODEL)
    Subnetworks(MODEL, ["cym-Latn"], {"cym-Latn": some(0)}, None, None, None, "").save(tmp_path / "pool.safetensors")
    with pytest.raises(UserError, match="is subnetwork, expected neuron set"):
        NeuronSet.load(tmp_path / "pool.safetensors")


def test_random_sets_have_the_size_and_the_depth_asked_for():
    assert len(some(1)) == 60
    assert some(1).identity == some(1).identity != some(2).identity
    like = random_per_layer(some(3).per_layer(5), 40, seed=0)
    assert like.per_layer(5) == some(3).per_layer(5)
    assert like.overlap(some(3)) < 0.5
    assert len(all_neurons(5, 40)) == 200
    assert all_neurons(5, 40).minus(some(3)).overlap(some(3)) == 0.0


def test_neurons_outside_of_the_model_are_refused():
    some(0).require_within(MODEL, "here")
    for outside in ({5: torch.tensor([0])}, {0: torch.tensor([40])}):
        with pytest.raises(UserError, match=r"names neurons that m .* does not have"):
            NeuronSet(outside).require_within(MODEL, "here")
