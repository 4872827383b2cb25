"""Several languages on one base: what each has alone is set, what they share follows the policy, each comes off."""

import itertools
import json
from dataclasses import replace

import pytest
import torch
from transformers import AutoModelForCausalLM

from lightning_app.export.applied import RECORD, Applied
from lightning_app.export.neuroglot_delta import Delta, row_digest
from lightning_app.export.stack import Stack
from lightning_app.model.base_files import BaseFiles
from lightning_app.neurons.neuron_set import NeuronSet
from lightning_app.neurons.selection import random_neurons
from tests.deltas import delta_of, logits, saved
from tests.faults import fault, refusal

CODES = ("cym-Latn", "mlt-Latn", "gla-Latn")


def two_deltas(tmp_path, architecture="llama", dtype=torch.float32, shared=6, count=2):
    """A base, and deltas on 12 neurons each, of which each two in a row share some."""
    files = saved(tmp_path / "base", architecture, dtype)
    every = random_neurons(14 * count, 3, 48, seed=0).pairs
    every = every[torch.randperm(len(every), generator=torch.Generator().manual_seed(0))]
    sets = [NeuronSet.from_pairs(every[place * (12 - shared) :][:12]) for place in range(count)]
    return files, [
        delta_of(files, own, 1e-2, seed, code)[0] for own, seed, code in zip(sets, range(1, 9), CODES, strict=False)
    ]


def contents(folder):
    return {path.name: path.read_bytes() for path in folder.iterdir() if path.is_file()}


def vectors_of(model, delta):
    """The vectors that a model has where a delta changes some, by weight and place."""
    named, found = dict(model.named_parameters()), {}
    for matrix in delta.matrices:
        index = delta.neurons.by_layer[matrix.layer] + matrix.offset
        rows = named[matrix.weight].index_select(matrix.dim, index)
        for place, row in zip(index.tolist(), rows.t() if matrix.dim else rows, strict=True):
            found[matrix.weight, place] = row
    return found


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("architecture", ["llama", "cohere", "gemma", "qwen2", "phi3"])
def test_deltas_that_share_nothing_are_the_same_in_any_order_and_what_the_loader_does(tmp_path, architecture, dtype):
    files, deltas = two_deltas(tmp_path, architecture, dtype, shared=0)
    Applied(files).write(Stack(tuple(deltas)), tmp_path / "one")
    Applied(files).write(Stack((deltas[1], deltas[0])), tmp_path / "other")
    assert contents(tmp_path / "one") == contents(tmp_path / "other") != contents(files.folder)
    model = AutoModelForCausalLM.from_pretrained(files.folder, dtype="auto")
    for number, delta in enumerate(deltas):
        delta.save(tmp_path / f"{number}.safetensors")
        Delta(tmp_path / f"{number}.safetensors").apply(model)
    stacked = AutoModelForCausalLM.from_pretrained(tmp_path / "one", dtype="auto")
    assert stacked.dtype == dtype
    assert torch.equal(logits(stacked), logits(model))


@pytest.mark.parametrize("architecture", ["llama", "phi3"])
@pytest.mark.parametrize("policy", ["average", "ordered", "weighted"])
def test_a_shared_neuron_is_what_the_policy_says_and_all_others_are_exactly_those_of_their_delta(
    tmp_path, architecture, policy
):
    files, deltas = two_deltas(tmp_path, architecture, count=3)
    weights = {"weighted": (3.0, 1.0, 2.0)}.get(policy, ())
    Applied(files).write(Stack(tuple(deltas), policy, weights), tmp_path / "out")
    base, stacked = (AutoModelForCausalLM.from_pretrained(folder) for folder in (files.folder, tmp_path / "out"))
    own = [vectors_of(_with(files, delta), delta) for delta in deltas]
    for number, delta in enumerate(deltas):
        before, after = vectors_of(base, delta), vectors_of(stacked, delta)
        for place, found in after.items():
            takers = [
                (each[place], weight) for each, weight in zip(own, weights or (1, 1, 1), strict=True) if place in each
            ]
            if len(takers) == 1:
                assert torch.equal(found, own[number][place])
            elif policy == "ordered":
                assert torch.equal(found, takers[-1][0])
            else:
                change = sum(weight * (each.double() - before[place].double()) for each, weight in takers)
                expected = before[place].double() + change / sum(weight for _, weight in takers)
                torch.testing.assert_close(found.double(), expected, atol=1e-7, rtol=0)
                assert not torch.equal(found, takers[-1][0])


def _with(files, delta):
    model = AutoModelForCausalLM.from_pretrained(files.folder)
    named = dict(model.named_parameters())
    with torch.no_grad():
        for name, patch in delta.patches(files).items():
            named[name].index_copy_(patch.dim, patch.index, patch.vectors.t() if patch.dim else patch.vectors)
    return model


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("policy", ["average", "ordered", "weighted"])
def test_taking_one_off_gives_the_others_alone_and_taking_all_off_the_bases_files(tmp_path, policy, dtype):
    files, deltas = two_deltas(tmp_path, dtype=dtype, count=3)
    weights = (3.0, 1.0, 2.0) if policy == "weighted" else ()
    Applied(files).write(Stack(tuple(deltas), policy, weights), tmp_path / "all")
    there = Applied.find(str(tmp_path / "all"), None)
    for gone in range(3):
        stays = [place for place in range(3) if place != gone]
        alone = Stack(
            tuple(deltas[place] for place in stays), policy, tuple(weights[place] for place in stays if weights)
        )
        Applied(files).write(alone, tmp_path / f"without-{gone}")
        there.write(
            there.without(lambda each, gone=gone: each.identity == deltas[gone].identity), tmp_path / f"off-{gone}"
        )
        assert contents(tmp_path / f"off-{gone}") == contents(tmp_path / f"without-{gone}")
    there.write(Stack(()), tmp_path / "bare")
    assert contents(tmp_path / "bare") == contents(files.folder)
    assert not (tmp_path / "bare" / RECORD).exists()


def test_a_delta_put_onto_a_folder_that_has_one_is_as_if_both_were_put_onto_the_base(tmp_path):
    files, deltas = two_deltas(tmp_path)
    Applied(files).write(Stack((deltas[0],)), tmp_path / "one")
    there = Applied.find(str(tmp_path / "one"), None)
    with refusal("share 6 neurons"):
        there.write(there.with_deltas([deltas[1]], None, ()), tmp_path / "refused")
    there.write(there.with_deltas([deltas[1]], "average", ()), tmp_path / "both")
    Applied(files).write(Stack(tuple(deltas), "average"), tmp_path / "at-once")
    assert contents(tmp_path / "both") == contents(tmp_path / "at-once")
    assert not (tmp_path / "refused").exists()


def test_what_is_shared_is_counted_for_every_pair(tmp_path):
    _, deltas = two_deltas(tmp_path, count=3)
    sets = [{tuple(pair) for pair in each.neurons.pairs.tolist()} for each in deltas]
    found = {(each.first, each.second): (each.shared, each.shares) for each in Stack(tuple(deltas)).overlaps()}
    for (a, first), (b, second) in itertools.combinations(zip(CODES, sets, strict=True), 2):
        shared = len(first & second)
        assert found[a, b] == (shared, (shared / len(first), shared / len(second)))
    assert [shared for shared, _ in found.values()] == [6, 0, 6]


def test_a_merged_delta_does_what_the_stack_does(tmp_path):
    files, deltas = two_deltas(tmp_path)
    stack = Stack(tuple(deltas), "average")
    stack.merged(files).save(tmp_path / "merged.safetensors")
    model = AutoModelForCausalLM.from_pretrained(files.folder)
    Delta(tmp_path / "merged.safetensors").apply(model)
    Applied(files).write(stack, tmp_path / "out")
    assert torch.equal(logits(model), logits(AutoModelForCausalLM.from_pretrained(tmp_path / "out")))


def test_languages_change_places_in_one_model_without_a_digest(tmp_path, monkeypatch):
    files, deltas = two_deltas(tmp_path)
    model, digests = AutoModelForCausalLM.from_pretrained(files.folder), []
    expected = {"base": logits(model)}
    for delta, name in zip(deltas, "ab", strict=True):
        delta.save(tmp_path / name)
        expected[name] = logits(_with(files, delta))
    counted = "lightning_app.export.neuroglot_delta.row_digest"
    monkeypatch.setattr(counted, lambda vectors: digests.append(1) or row_digest(vectors))
    on = {name: Delta(tmp_path / name) for name in "ab"}
    for number, name in enumerate("abba"):
        on[name].apply(model)
        assert torch.equal(logits(model), expected[name])
        on[name].remove()
        assert torch.equal(logits(model), expected["base"])
        assert len(digests) == sum(len(each.matrices) for each in deltas[: 1 + (number > 0)])
    other = AutoModelForCausalLM.from_pretrained(files.folder)
    torch.nn.init.zeros_(other.model.layers[0].mlp.up_proj.weight)
    with pytest.raises(ValueError, match="is not that of"):
        on["a"].apply(other)


@fault("a stack whose weights do not fit, a delta twice, a base that was changed since, a damaged record")
def test_a_stack_that_cannot_be_is_refused(tmp_path):
    files, deltas = two_deltas(tmp_path)
    for policy, weights, line in (
        ("weighted", (1.0,), "--weights has 1 numbers for 2 deltas"),
        ("weighted", (1.0, -1.0), "expected numbers above 0"),
        ("average", (1.0, 1.0), "--weights is for --policy weighted"),
    ):
        with refusal(line):
            Stack(tuple(deltas), policy, weights)
    with refusal("is there twice"):
        Stack((deltas[0], replace(deltas[0])))
    Applied(files).write(Stack((deltas[0],)), tmp_path / "on")
    with refusal("is not that of|has a delta on the same neurons already"):
        Applied(BaseFiles(tmp_path / "on")).write(Stack((deltas[1],)), tmp_path / "out")
    record = tmp_path / "on" / RECORD / "stack.json"
    before = record.read_text()
    record.write_text(json.dumps({**json.loads(before), "policy": "guess"}))
    with refusal("stack.json is damaged"):
        Applied.find(str(tmp_path / "on"), None)
    record.write_text(before)
    model = AutoModelForCausalLM.from_pretrained(tmp_path / "on")
    torch.nn.init.normal_(model.model.layers[1].mlp.up_proj.weight)
    model.save_pretrained(tmp_path / "on", max_shard_size="100KB")
    there = Applied.find(str(tmp_path / "on"), None)
    with refusal("was changed since"):
        there.write(Stack(()), tmp_path / "out")
    assert not (tmp_path / "out").exists()
    assert not list(tmp_path.glob(".*"))
