"""Atlases, subnetworks, neuron sets, released masks and checkpoints: what cannot be is refused in one line."""

import json
import pickle
from types import SimpleNamespace

import pytest
import torch
from hypothesis import example, given
from hypothesis import strategies as st
from safetensors.torch import save_file

from lightning_app.files import load_checkpoint, load_tensors
from lightning_app.identity import ModelIdentity
from lightning_app.languages import find_language
from lightning_app.neurons.atlas import Atlas
from lightning_app.neurons.neuron_set import NeuronSet
from lightning_app.neurons.selection import random_neurons
from lightning_app.neurons.subnetworks import Subnetworks, read_released_masks, read_subnetworks
from tests.any_input import VALUES, property_based, reads_or_one_line
from tests.faults import fault, refusal

LATIN = find_language("qaa-Latn")
MODEL = ModelIdentity("m", "", "0123456789abcdef", 3, 10, 16, 10_000)


def atlas():
    made = Atlas(MODEL, "t", 128)
    made.add(find_language("cy"), torch.full((3, 10), 5), 10, {"data_set": "d"})
    made.add(find_language("mt"), torch.ones(3, 10, dtype=torch.int64), 7, {"data_set": "d"})
    return made


def subnetworks():
    sets = {"cym-Latn": random_neurons(9, 3, 10, 0), "mlt-Latn": NeuronSet({})}
    return Subnetworks(MODEL, list(sets), sets, 0.05, 0.95, 0.5, "abc")


def save_all(folder):
    atlas().save(folder / "atlas")
    subnetworks().save(folder / "subnetwork")
    random_neurons(9, 3, 10, 0).save(folder / "set", MODEL)


READERS = {"atlas": Atlas.load, "subnetwork": Subnetworks.load, "set": NeuronSet.load}
KINDS = {"atlas": "activation atlas", "subnetwork": "subnetwork", "set": "neuron set"}


def edited(path, kind, tensors=None, **metadata):
    """Writes a file again, some tensors or metadata changed; None takes away."""
    found, held = load_tensors(path, KINDS[kind])
    found = {name: tensor for name, tensor in {**found, **(tensors or {})}.items() if tensor is not None}
    held = {name: value for name, value in {**held, **metadata}.items() if value != "gone"}
    header = {"neuroglot": KINDS[kind], "metadata": json.dumps(held)}
    save_file({name: tensor.contiguous() for name, tensor in found.items()}, path, metadata=header)


PAIRS = torch.tensor([[0, 1], [2, 3]])
SHAPE = MODEL.as_dict()
WRONG = [
    ("atlas", {"tensors": {"counts.cym-Latn": torch.zeros(3, 10)}}, "float32 of \\(3, 10\\), expected int64"),
    ("atlas", {"tensors": {"counts.cym-Latn": torch.zeros(3, 9, dtype=torch.int64)}}, "int64 of \\(3, 9\\), expected"),
    ("atlas", {"tensors": {"counts.cym-Latn": torch.full((3, 10), 11)}}, "count of 11, expected 0 to the 10 tokens"),
    ("atlas", {"tensors": {"counts.cym-Latn": torch.full((3, 10), -1)}}, "a count of -1"),
    ("atlas", {"tensors": {"else": PAIRS}}, "it holds 'else', expected counts.LANGUAGE"),
    ("atlas", {"tensors": {"counts.cym-Latn": None}}, "tokens has not one int for each of mlt-Latn"),
    ("atlas", {"tokens": {"cym-Latn": 10, "mlt-Latn": 0}}, "tokens of mlt-Latn is 0"),
    ("atlas", {"tokens": {"cym-Latn": 10, "mlt-Latn": 7.5}}, "tokens has not one int"),
    ("atlas", {"sources": {}}, "sources has not one dict for each of cym-Latn mlt-Latn"),
    ("atlas", {"stability": {"ekk-Latn": {}}}, "stability has not one dict for some"),
    ("atlas", {"block_size": 0}, "block_size is 0, expected a whole number above zero"),
    ("atlas", {"block_size": "gone"}, "its metadata lacks block_size"),
    ("atlas", {"tokenizer": 5}, "tokenizer is 5, expected text"),
    ("atlas", {"colour": 1}, "has 'colour', which this version does not know"),
    ("atlas", {"version": "99.0"}, "made by Neuroglot '99.0', later than 0.1.0 here; update the program"),
    ("atlas", {"version": "gone"}, "its metadata lacks version"),
    ("atlas", {"model": {**SHAPE, "layers": 4}}, "expected int64 of \\(4, 10\\)"),
    ("atlas", {"model": {**SHAPE, "layers": "3"}}, "model is .* expected texts name"),
    ("atlas", {"model": {"name": "m"}}, "model is .* expected texts name"),
    ("subnetwork", {"tensors": {"neurons.cym-Latn": PAIRS.int()}}, "int32 of \\(2, 2\\), expected int64 of"),
    ("subnetwork", {"tensors": {"neurons.cym-Latn": PAIRS[:, :1]}}, "int64 of \\(2, 1\\), expected int64"),
    ("subnetwork", {"tensors": {"neurons.cym-Latn": PAIRS.flip(0)}}, "is not sorted with each neuron once"),
    ("subnetwork", {"tensors": {"neurons.cym-Latn": PAIRS[[0, 0]]}}, "is not sorted with each neuron once"),
    ("subnetwork", {"tensors": {"neurons.cym-Latn": torch.tensor([[3, 0]])}}, "names layer 3, m has 3"),
    ("subnetwork", {"tensors": {"neurons.cym-Latn": torch.tensor([[0, 10]])}}, "names neuron 10, m has 10"),
    ("subnetwork", {"tensors": {"neurons.cym-Latn": torch.tensor([[0, -1]])}}, "names neuron -1"),
    ("subnetwork", {"pool": ["cym-Latn", "cym-Latn"]}, "pool is .* expected languages, each once"),
    ("subnetwork", {"pool": ["cym-Latn"]}, "its pool is .*, but it holds neurons of cym-Latn mlt-Latn"),
    ("subnetwork", {"rate": 0}, "rate is 0, expected a share"),
    ("subnetwork", {"rate": "much"}, "rate is 'much', expected a share"),
    ("subnetwork", {"quantile": 1}, "quantile is 1, expected a share"),
    ("subnetwork", {"tau": 1.5}, "tau is 1.5, expected a share"),
    ("subnetwork", {"tau": float("nan")}, "tau is nan, expected a share"),
    ("subnetwork", {"atlas": None}, "atlas is None, expected text"),
    ("set", {"tensors": {"neurons": torch.tensor([[0, 10]])}}, "names neuron 10, m has 10"),
    ("set", {"tensors": {"more": PAIRS}}, "it holds 2 tensors, expected one named neurons"),
    ("set", {"version": "0.10"}, "later than"),
]


def what(changes):
    """What is wrong with a file, in words."""
    tensors = changes.get("tensors", {}).items()
    words = [f"{name} {'missing' if tensor is None else tuple(tensor.shape)}" for name, tensor in tensors]
    words += [
        f"{name} {'missing' if value == 'gone' else value}" for name, value in changes.items() if name != "tensors"
    ]
    return " ".join(words)[:60]


@pytest.mark.parametrize(("kind", "changes", "message"), WRONG, ids=[f"{kind}, {what(own)}" for kind, own, _ in WRONG])
@fault("a file that says what cannot be: {id}")
def test_a_file_that_says_what_cannot_be_is_refused_in_one_line(kind, changes, message, tmp_path):
    save_all(tmp_path)
    READERS[kind](tmp_path / kind)
    edited(tmp_path / kind, kind, **changes)
    with refusal(message) as error:
        READERS[kind](tmp_path / kind)
    assert str(tmp_path / kind) in str(error.value)


def test_what_a_subnetwork_of_released_masks_does_not_know_may_be_missing(tmp_path):
    torch.save([[[5, 70_000], []], [[], [3]]], tmp_path / "masks.pt")
    read_subnetworks(tmp_path / "masks.pt", "mt,af").save(tmp_path / "own")
    assert Subnetworks.load(tmp_path / "own").of(find_language("mt")).pairs.tolist() == [[0, 5], [0, 70_000]]


def every_reader(folder, content):
    (folder / "file").write_bytes(content)
    for read in (*READERS.values(), lambda path: load_tensors(path, "subnetwork"), load_checkpoint):
        reads_or_one_line(read, folder / "file")
    reads_or_one_line(lambda path: load_checkpoint(path, is_mapped=True), folder / "file")
    reads_or_one_line(lambda path: read_released_masks(path, [LATIN]), folder / "file")


@property_based
@given(st.binary(max_size=300))
@example(b"")
@example(b"\x08\0\0\0\0\0\0\0{}      ")
@example(pickle.dumps({"a": 1}))
@example(pickle.dumps(SimpleNamespace()))
def test_any_bytes_are_read_or_refused_in_one_line(tmp_path, content):
    every_reader(tmp_path, content)


@property_based
@given(
    st.sampled_from(sorted(READERS)), st.lists(st.tuples(st.floats(0, 1), st.integers(0, 7)), min_size=1, max_size=3)
)
def test_flipped_bits_are_read_or_refused_in_one_line(tmp_path, kind, flips):
    save_all(tmp_path)
    content = bytearray((tmp_path / kind).read_bytes())
    for share, bit in flips:
        content[min(int(share * len(content)), len(content) - 1)] ^= 1 << bit
    every_reader(tmp_path, bytes(content))


@property_based
@given(st.sampled_from(sorted(READERS)), st.data())
def test_edited_headers_are_read_or_refused_in_one_line(tmp_path, kind, data):
    save_all(tmp_path)
    content = (tmp_path / kind).read_bytes()
    size = int.from_bytes(content[:8], "little")
    header = json.loads(content[8 : 8 + size])
    metadata = json.loads(header["__metadata__"]["metadata"])
    where = data.draw(st.sampled_from([metadata, metadata["model"], header, header["__metadata__"]]))
    name = data.draw(st.sampled_from(sorted(where)) | st.text(max_size=5))
    where[name] = data.draw(VALUES)
    if where in (metadata, metadata["model"]):
        header["__metadata__"]["metadata"] = json.dumps(metadata)
    text = json.dumps(header).encode()
    every_reader(tmp_path, len(text).to_bytes(8, "little") + text + content[8 + size :])


@pytest.mark.parametrize(
    ("masks", "languages", "message"),
    [
        ([[[1]], [[2]]], "mt,mt", r"--languages names Maltese \(mt\) twice; name each language once"),
        ([[[1]], [[2]]], "mt,Maltese", r"--languages names Maltese \(mt\) twice"),
        ([[[1, -3]], [[2]]], "mt,af", "names neuron -3"),
        ([[[1, 10**7]], [[2]]], "mt,af", "names neuron 10000000, no FFN has it"),
        ([[[1], [2]], [[2]]], "mt,af", r"has 2 layers for Maltese \(mt\) but 1 for Afrikaans \(af\)"),
        ([[[1.5]], [[2]]], "mt,af", "a layer is float32 of \\(1,\\), expected whole numbers"),
        ([[[[1]]], [[2]]], "mt,af", "a layer is int64 of \\(1, 1\\), expected whole numbers"),
        ({"a": 1}, "mt", "is not a list of languages"),
        (5, "mt", "is not a list of languages"),
    ],
)
@fault("released masks that cannot be, {masks} for {languages}")
def test_released_masks_that_cannot_be(masks, languages, message, tmp_path):
    torch.save(masks, tmp_path / "masks.pt")
    with refusal(message):
        read_subnetworks(tmp_path / "masks.pt", languages)


# Checkpoints


@fault("a checkpoint that is none: noise, a pickle, an object, a list, of a later version")
def test_checkpoints_that_are_none_are_one_line(tmp_path):
    path = tmp_path / "x.ckpt"
    for content, message in (
        (b"nonsense", "is damaged"),
        (pickle.dumps({"a": 1}), "is damaged"),
        (pickle.dumps(SimpleNamespace(a=1)), "is damaged|holds a Python object"),
    ):
        path.write_bytes(content)
        with refusal(message):
            load_checkpoint(path)
    for is_zip in (True, False):
        torch.save({"args": SimpleNamespace(a=1)}, path, _use_new_zipfile_serialization=is_zip)
        with refusal(r"holds a Python object \(types.SimpleNamespace\), which could run"):
            load_checkpoint(path)
    torch.save([1], path)
    with refusal("is no checkpoint: it holds a list"):
        load_checkpoint(path)
    torch.save({"neuroglot": {"version": "99.0"}}, path)
    with refusal(r"made by Neuroglot '99.0', later than"):
        load_checkpoint(path)
