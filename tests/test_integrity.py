"""Damage, wherever it strikes: it is named in one line, and no wrong token, count or neuron gets through."""

import json
import os
import pickle
import subprocess
import sys
import time
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st
from safetensors.torch import save_file
from tokenizers import AddedToken, Tokenizer, decoders, models, pre_tokenizers, processors, trainers
from transformers import PreTrainedTokenizerFast

from datamodules import cache_files, token_cache
from datamodules.cache_files import DamagedCacheError, read_manifest
from datamodules.corpus import Corpus
from datamodules.sources import open_source
from datamodules.tokenizers import train_tokenizer
from lightning_app.cli import main
from lightning_app.errors import UserError
from lightning_app.files import load_checkpoint, load_tensors
from lightning_app.hub import UnreachableError
from lightning_app.identity import ModelIdentity
from lightning_app.languages import find_language
from lightning_app.neurons.atlas import Atlas
from lightning_app.neurons.neuron_set import NeuronSet
from lightning_app.neurons.selection import random_neurons
from lightning_app.neurons.subnetworks import Subnetworks, read_released_masks, read_subnetworks
from lightning_app.profiling.profiler import find_atlas

LATIN = find_language("qaa-Latn")
MODEL = ModelIdentity("m", "", "0123456789abcdef", 3, 10, 16, 10_000)
property_based = settings(
    max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture], derandomize=True
)


@pytest.fixture(scope="module")
def tokenizer(hub, tmp_path_factory):
    sources = [(open_source(str(hub), LATIN, "main"), 1.0)]
    return train_tokenizer(sources, 400, tmp_path_factory.mktemp("tokenizer"))


def fill(hub, tokenizer, root, budget=20_000, language=LATIN, source=None):
    """Fills as a process does that has not seen the cache."""
    cache_files._verified.clear()
    source = source or open_source(str(hub), language, "main")
    return token_cache.fill(root, source, tokenizer, budget, lambda n: int(n.sum()), "filling")


def content_of(cache):
    return cache.open_tokens().tolist(), cache.read_ends().tolist()


def one_line(error):
    assert "\n" not in str(error.value)
    assert len(str(error.value)) < 900
    return str(error.value)


def reads_or_one_line(read, *arguments):
    said = "nothing"
    try:
        read(*arguments)
    except (UserError, DamagedCacheError) as error:
        said = str(error)
    assert said.isprintable(), ascii(said)


# Token caches


def flip(path, at=0.5):
    content = bytearray(path.read_bytes())
    content[int(len(content) * at)] ^= 0x10
    path.write_bytes(content)


def edit(path, **changes):
    manifest = json.loads(path.read_text())
    manifest.pop("checksums")
    manifest.pop("spells_special", None)
    path.write_text(json.dumps({**manifest, **changes}))


def without_checksums(folder):
    edit(folder / "manifest.json")


def move_position(path):
    path.write_text(path.read_text().replace('"offset": ', '"offset": 1'))


def set_number(path, at, number, kind):
    numbers = np.fromfile(path, dtype=kind)
    numbers[at] = number
    numbers.tofile(path)
    without_checksums(path.parent)


DAMAGE = {
    "flipped token": (lambda f: flip(f / "tokens.bin"), "tokens.bin is not what was written: the checksum differs"),
    "flipped end": (lambda f: flip(f / "ends.bin"), "ends.bin is not what was written"),
    "cut tokens": (lambda f: os.truncate(f / "tokens.bin", 100), "tokens.bin is cut short: 100 bytes, the manifest"),
    "no tokens": (lambda f: (f / "tokens.bin").unlink(), "tokens.bin is missing"),
    "no ends": (lambda f: (f / "ends.bin").unlink(), "ends.bin is missing"),
    "ends that fall": (lambda f: set_number(f / "ends.bin", 1, 1, np.int64), "ends.bin does not ascend"),
    "ends beyond": (lambda f: set_number(f / "ends.bin", -1, 10**9, np.int64), "ends.bin ends at token 1000000000"),
    "foreign ids": (lambda f: set_number(f / "tokens.bin", 5, 10**6, np.uint32), "holds token 1000000, the tokenizer"),
    "no JSON": (lambda f: (f / "manifest.json").write_bytes(b"\xff{"), "its manifest is no JSON"),
    "deep JSON": (lambda f: (f / "manifest.json").write_bytes(b"[" * 10**5), "its manifest is no JSON"),
    "a list": (lambda f: (f / "manifest.json").write_text("[]"), "its manifest is no JSON object"),
    "of another program": (lambda f: (f / "manifest.json").write_text('{"a": 1}'), "its manifest has no dict 'key'"),
    "a later version": (lambda f: edit(f / "manifest.json", version="99.1"), "made by Neuroglot '99.1', later than"),
    "of other text": (lambda f: edit(f / "manifest.json", key={}), "of other text or of another tokenizer"),
    "counts": (lambda f: edit(f / "manifest.json", documents=0), "tokens in 0 documents"),
    "no position": (lambda f: edit(f / "manifest.json", position=None), "where its text goes on"),
    "another position": (lambda f: move_position(f / "manifest.json"), "its manifest is not the one that was written"),
}  # fmt: skip


@pytest.mark.parametrize("kind", DAMAGE)
def test_a_damaged_cache_is_named_and_filled_again(kind, hub, tokenizer, tmp_path, capsys):
    whole = content_of(fill(hub, tokenizer, tmp_path))
    (folder,) = tmp_path.iterdir()
    assert capsys.readouterr().out == ""
    damage, reason = DAMAGE[kind]
    damage(folder)
    again = fill(hub, tokenizer, tmp_path)
    (line,) = capsys.readouterr().out.strip().split("\n")
    assert line.startswith(f"token cache {folder} is damaged: ")
    assert reason in line
    assert line.endswith("; fetching its text again from the start")
    assert content_of(again) == whole
    fill(hub, tokenizer, tmp_path)
    assert capsys.readouterr().out == ""


@pytest.mark.parametrize("kind", ["flipped token", "cut tokens", "no JSON"])
def test_damage_while_a_process_lives_is_seen_when_the_cache_is_opened_again(kind, hub, tokenizer, tmp_path, capsys):
    cache = fill(hub, tokenizer, tmp_path)
    time.sleep(0.01)
    DAMAGE[kind][0](cache.folder)
    source = open_source(str(hub), LATIN, "main")
    token_cache.fill(tmp_path, source, tokenizer, 20_000, lambda n: int(n.sum()), "filling")
    assert "is damaged" in capsys.readouterr().out


def test_a_cache_is_read_through_once_by_a_process(hub, tokenizer, tmp_path, monkeypatch):
    fill(hub, tokenizer, tmp_path)
    read = []
    pieces = cache_files._pieces
    monkeypatch.setattr(cache_files, "_pieces", lambda *args: read.append(args[2]) or pieces(*args))
    source = open_source(str(hub), LATIN, "main")
    for budget in (10_000, 20_000, 40_000, 40_000):
        token_cache.fill(tmp_path, source, tokenizer, budget, lambda n: int(n.sum()), "filling")
    assert read == []
    fill(hub, tokenizer, tmp_path)
    assert sorted(read) == ["ends.bin", "tokens.bin"]


def test_a_repair_leaves_the_tokens_that_another_run_reads(hub, tokenizer, tmp_path):
    cache = fill(hub, tokenizer, tmp_path)
    tokens = cache.open_tokens()
    before = tokens.copy()
    flip(cache.folder / "ends.bin")
    fill(hub, tokenizer, tmp_path, budget=100)
    assert np.array_equal(tokens, before)


def test_caches_grown_in_steps_and_at_once_have_the_same_bytes_and_checksums(hub, tokenizer, tmp_path):
    for budget in (1_000, 20_000, 10**9):
        grown = fill(hub, tokenizer, tmp_path / "grown", budget)
    at_once = fill(hub, tokenizer, tmp_path / "at once", 10**9)
    for name in ("tokens.bin", "ends.bin", "manifest.json"):
        assert (grown.folder / name).read_bytes() == (at_once.folder / name).read_bytes()


def test_a_manifest_without_checksums_is_taken_and_gets_them_at_the_next_commit(hub, tokenizer, tmp_path, capsys):
    cache = fill(hub, tokenizer, tmp_path, 1_000)
    without_checksums(cache.folder)
    assert content_of(fill(hub, tokenizer, tmp_path, 1_000)) == content_of(cache)
    grown = fill(hub, tokenizer, tmp_path, 10**9)
    assert capsys.readouterr().out == ""
    assert set(grown.manifest["checksums"]) == {"tokens.bin", "ends.bin", "manifest.json"}
    assert content_of(grown) == content_of(fill(hub, tokenizer, tmp_path / "other", 10**9))
    flip(grown.folder / "tokens.bin", at=0.01)
    fill(hub, tokenizer, tmp_path, 1_000)
    assert "is damaged" in capsys.readouterr().out


def unreachable(hub):
    source = open_source(str(hub), LATIN, "main")

    def refuse():
        raise UnreachableError("cannot reach the text")

    return SimpleNamespace(identity=refuse, identity_without_revision=source.identity_without_revision)


def test_a_damaged_manifest_of_another_cache_ends_no_run(hub, tokenizer, tmp_path, capsys):
    cache = fill(hub, tokenizer, tmp_path)
    for number, content in enumerate((b"", b"\xff", b"[]", b"{}", b'{"key": 3}', b"[" * 10**5, b'{"key": {"a": [1]}}')):
        (tmp_path / f"other{number}").mkdir()
        (tmp_path / f"other{number}" / "manifest.json").write_bytes(content)
    assert content_of(fill(hub, tokenizer, tmp_path, source=unreachable(hub))) == content_of(cache)
    assert token_cache.find(tmp_path, unreachable(hub), tokenizer).tokens == cache.tokens
    fill(hub, tokenizer, tmp_path, language=find_language("qab-Latn"))
    flip(cache.folder / "tokens.bin")
    with pytest.raises(UserError, match=r"cannot reach the text; no token cache.* is damaged: tokens.bin") as error:
        fill(hub, tokenizer, tmp_path, source=unreachable(hub))
    one_line(error)
    (cache.folder / "manifest.json").write_bytes(b"{")
    assert token_cache.find(tmp_path, open_source(str(hub), LATIN, "main"), tokenizer) is None


@pytest.mark.skipif(os.geteuid() != 0, reason="mounting a read-only disk needs root")
def test_a_read_only_cache_serves_what_it_holds(hub, tokenizer, tmp_path):
    disk = tmp_path / "disk"
    disk.mkdir()
    if subprocess.run(["mount", "-t", "tmpfs", "-o", "size=8m", "tmpfs", str(disk)], capture_output=True).returncode:
        pytest.skip("cannot mount a disk here")
    try:
        cache = fill(hub, tokenizer, disk)
        (cache.folder / ".lock").unlink(missing_ok=True)
        subprocess.run(["mount", "-o", "remount,ro", str(disk)], check=True)
        assert content_of(fill(hub, tokenizer, disk)) == content_of(cache)
        with pytest.raises(UserError, match=r"is read-only and holds .* 1000000000 are wanted; make it writable"):
            fill(hub, tokenizer, disk, budget=10**9)
        with pytest.raises(UserError, match="is read-only and holds 0 usable tokens"):
            fill(hub, tokenizer, disk, language=find_language("qab-Latn"))
        subprocess.run(["mount", "-o", "remount,rw", str(disk)], check=True)
        flip(cache.folder / "tokens.bin")
        subprocess.run(["mount", "-o", "remount,ro", str(disk)], check=True)
        with pytest.raises(UserError, match="the checksum differs; it is read-only: delete it"):
            fill(hub, tokenizer, disk)
    finally:
        subprocess.run(["umount", "-l", str(disk)], check=True)


def test_a_hundred_million_tokens_are_checked_in_seconds(tokenizer, tmp_path):
    tokens = np.tile(np.arange(400, dtype=np.uint32), 250_000)
    checksums = cache_files.Checksums()
    ends = np.arange(1000, len(tokens) + 1, 1000)
    for name, numbers in (("tokens.bin", tokens), ("ends.bin", ends)):
        numbers.tofile(tmp_path / name)
        checksums.update(name, numbers.tobytes())
    counts = {"tokens": len(tokens), "documents": len(ends), "exhausted": True}
    manifest = cache_files.write_manifest(tmp_path, {**cache_files.new_manifest({}), **counts}, checksums)
    cache_files._verified.clear()
    started = time.monotonic()
    cache_files.verify(tmp_path, manifest, tokenizer)
    assert time.monotonic() - started < 10  # about half a second where nothing else runs


@property_based
@given(st.binary(max_size=400))
@example(b'{"key": {}, "version": "\\ud800", "tokens": 0, "documents": 0, "exhausted": false}')
def test_any_bytes_are_a_manifest_or_damage(tmp_path, content):
    (tmp_path / "manifest.json").write_bytes(content)
    reads_or_one_line(read_manifest, tmp_path, {})


VALUES = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=5),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=3), inner, max_size=3),
    max_leaves=5,
)


@property_based
@given(st.sampled_from(["key", "version", "tokens", "documents", "exhausted", "position", "checksums"]), VALUES)
def test_any_value_in_a_manifest_is_sound_or_damage(tmp_path_factory, name, value):
    folder = tmp_path_factory.getbasetemp() / "manifest"
    folder.mkdir(exist_ok=True)
    manifest = {**cache_files.new_manifest({"a": "b"}), name: value}
    (folder / "manifest.json").write_text(json.dumps(manifest))
    reads_or_one_line(read_manifest, folder, {"a": "b"})


# Special tokens that are spelled in a text


def llama_like():
    """Byte-level with special tokens that were added to the vocabulary, and BOS at the head of a text."""
    backend = Tokenizer(models.BPE())
    backend.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    trainer = trainers.BpeTrainer(vocab_size=300, initial_alphabet=alphabet, show_progress=False)
    backend.train_from_iterator(["some words to learn"] * 9, trainer=trainer)
    backend.decoder = decoders.ByteLevel()
    names = ["<s>", "</s>", "<|eot_id|>"]
    backend.add_special_tokens([AddedToken(name, special=True) for name in names])
    backend.post_processor = processors.TemplateProcessing("<s> $A", None, [("<s>", backend.token_to_id("<s>"))])
    return PreTrainedTokenizerFast(tokenizer_object=backend, bos_token="<s>", eos_token="</s>")


def of_documents(documents, folder):
    (folder / "own.jsonl").write_text("".join(json.dumps({"text": text}) + "\n" for text in documents))
    return open_source("unused/unused", LATIN, "main", [str(folder / "own.jsonl")])


SPELLED = ["a <s> begins", "and </s> ends", "<|endoftext|><|eot_id|>", "plain words"]


@pytest.mark.parametrize("kind", ["own", "llama"])
def test_special_tokens_spelled_in_a_text_stay_text(kind, tokenizer, tmp_path):
    tokenizer = tokenizer if kind == "own" else llama_like()
    cache = fill(None, tokenizer, tmp_path / "cache", source=of_documents(SPELLED, tmp_path))
    special = [number for number, token in tokenizer.added_tokens_decoder.items() if token.special]
    assert special
    assert not np.isin(cache.open_tokens(), special).any()
    parts = np.split(cache.open_tokens(), cache.read_ends()[:-1])
    assert [tokenizer.decode(part.tolist(), clean_up_tokenization_spaces=False) for part in parts] == SPELLED


def as_an_earlier_version(tokenizer, documents, folder, root):
    """Makes the cache that a version made which took spelled tokens for real ones, without checksums."""
    encode, token_cache.encode_documents = token_cache.encode_documents, lambda tokenizer, documents, is_text: (
        tokenizer(documents, add_special_tokens=False)["input_ids"]
    )  # fmt: skip
    try:
        cache = fill(None, tokenizer, root, source=of_documents(documents, folder))
    finally:
        token_cache.encode_documents = encode
    without_checksums(cache.folder)
    return cache


def test_only_an_earlier_cache_that_took_them_for_real_is_filled_again_and_has_another_id(tmp_path, capsys):
    tokenizer = llama_like()
    plain = as_an_earlier_version(tokenizer, SPELLED[3:], tmp_path, tmp_path / "plain")
    again = fill(None, tokenizer, tmp_path / "plain", source=of_documents(SPELLED[3:], tmp_path))
    assert (content_of(again), again.id) == (content_of(plain), plain.id)
    assert capsys.readouterr().out == ""
    earlier = as_an_earlier_version(tokenizer, SPELLED, tmp_path, tmp_path / "spelled")
    again = fill(None, tokenizer, tmp_path / "spelled", source=of_documents(SPELLED, tmp_path))
    assert "took special tokens spelled in its text for real ones" in capsys.readouterr().out
    assert again.folder == earlier.folder
    assert again.id != earlier.id
    fresh = fill(None, tokenizer, tmp_path / "fresh", source=of_documents(SPELLED, tmp_path))
    assert content_of(again) == content_of(fresh) != content_of(earlier)
    assert fill(None, tokenizer, tmp_path / "spelled", source=of_documents(SPELLED, tmp_path)).id == again.id


@pytest.mark.parametrize("is_spelled", [False, True])
def test_the_papers_text_has_a_cache_of_its_own_only_where_it_is_another(is_spelled, tmp_path):
    documents = [
        f"{text} words to fill it {number} " * 9 for number, text in enumerate(SPELLED if is_spelled else "abcd")
    ]
    corpus = own_corpus("unused/unused", tmp_path, llama_like(), **{LATIN.glotcc: str(tmp_path / "own.jsonl")})
    of_documents(documents, tmp_path)
    paper, packed = (corpus.fill(LATIN, 10**9, chunking, 16) for chunking in ("paper", "packed"))
    assert (paper.id != packed.id) == is_spelled
    special = list(corpus.tokenizer.added_tokens_decoder)
    assert np.isin(paper.open_tokens(), special).any() == is_spelled
    assert not np.isin(packed.open_tokens(), special).any()


# Atlases, subnetworks and sets of neurons


def atlas():
    made = Atlas(MODEL, "t", 128)
    made.add(find_language("cy"), torch.full((3, 10), 5), 10, {"data_set": "d"})
    made.add(find_language("mt"), torch.zeros(3, 10, dtype=torch.int64), 7, {"data_set": "d"})
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


@pytest.mark.parametrize(("kind", "changes", "message"), WRONG)
def test_a_file_that_says_what_cannot_be_is_refused_in_one_line(kind, changes, message, tmp_path):
    save_all(tmp_path)
    READERS[kind](tmp_path / kind)
    edited(tmp_path / kind, kind, **changes)
    with pytest.raises(UserError, match=message) as error:
        READERS[kind](tmp_path / kind)
    assert str(tmp_path / kind) in one_line(error)


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
def test_released_masks_that_cannot_be(masks, languages, message, tmp_path):
    torch.save(masks, tmp_path / "masks.pt")
    with pytest.raises(UserError, match=message) as error:
        read_subnetworks(tmp_path / "masks.pt", languages)
    one_line(error)


# Checkpoints


def test_checkpoints_that_are_none_are_one_line(tmp_path):
    path = tmp_path / "x.ckpt"
    for content, message in (
        (b"nonsense", "is damaged"),
        (pickle.dumps({"a": 1}), "is damaged"),
        (pickle.dumps(SimpleNamespace(a=1)), "is damaged|holds a Python object"),
    ):
        path.write_bytes(content)
        with pytest.raises(UserError, match=message) as error:
            load_checkpoint(path)
        one_line(error)
    for is_zip in (True, False):
        torch.save({"args": SimpleNamespace(a=1)}, path, _use_new_zipfile_serialization=is_zip)
        with pytest.raises(
            UserError, match=r"holds a Python object \(types.SimpleNamespace\), which could run"
        ) as error:
            load_checkpoint(path)
        one_line(error)
    torch.save([1], path)
    with pytest.raises(UserError, match="is no checkpoint: it holds a list"):
        load_checkpoint(path)
    torch.save({"neuroglot": {"version": "99.0"}}, path)
    with pytest.raises(UserError, match=r"made by Neuroglot '99.0', later than"):
        load_checkpoint(path)


# Own text of one language


def own_corpus(hub, tmp_path, tokenizer, **files):
    corpus = Corpus(str(hub), "main", tmp_path / "cache", None, files=files)
    corpus.tokenizer = tokenizer
    return corpus


def test_own_text_of_one_language_is_not_the_text_of_another(hub, tokenizer, tmp_path):
    (tmp_path / "own.txt").write_text("one\n\ntwo\n")
    plain = own_corpus(hub, tmp_path, tokenizer)
    own = own_corpus(hub, tmp_path, tokenizer, **{LATIN.glotcc: str(tmp_path / "own.txt")})
    assert plain.text_id(5) == own.text_id(5)
    other = find_language("qab-Latn")
    sources = {language: plain._source(language).identity() for language in (LATIN, other)}
    assert plain.is_text_of(LATIN, sources[LATIN])
    assert own.is_text_of(other, sources[other])
    assert not own.is_text_of(LATIN, sources[LATIN])
    before = own._source(LATIN).identity()
    assert own.is_text_of(LATIN, before)
    (tmp_path / "own.txt").write_text("one\n\nthree\n")
    assert not own.is_text_of(LATIN, before)


def test_only_the_language_whose_own_text_changed_is_counted_again(workplace, capsys, monkeypatch):
    monkeypatch.setattr(sys, "argv", ["main.py"])
    atlas_file = workplace.folder / "own-text.safetensors"
    own = workplace.folder / "own-text.txt"
    words = (workplace.folder / "runs/base/config.yaml").read_text()
    keys = [f"--profiling.atlas={atlas_file}", f"--data.files.qab-Latn={own}"]
    keys = ["profile", *workplace.adapt()[1:], *keys, '--profiling.languages=["qaa-Latn","qab-Latn"]']
    counted = []
    for text in (words, words, words.replace("a", "e")):
        own.write_text("\n\n".join([text] * 3))
        assert main(keys) == 0
        counted.append((capsys.readouterr().out, Atlas.load(atlas_file)))
    (_, first), (again, same), (changed, last) = counted
    assert "3 of 3 languages counted before" in again
    assert "the text of qab-Latn is not what atlas" in changed
    assert "2 of 3 languages counted before" in changed
    assert torch.equal(first.counts["qaa-Latn"], last.counts["qaa-Latn"])
    assert torch.equal(first.counts["qab-Latn"], same.counts["qab-Latn"])
    assert not torch.equal(first.counts["qab-Latn"], last.counts["qab-Latn"])
    assert last.tokens["qab-Latn"] < 2 * first.tokens["qab-Latn"]
    assert last.sources["qab-Latn"] != first.sources["qab-Latn"]


def test_the_default_atlas_is_the_same_file_with_and_without_own_text(workplace, capsys, monkeypatch):
    monkeypatch.setattr(sys, "argv", ["main.py"])
    own = workplace.folder / "default-own.txt"
    own.write_text("\n\n".join([(workplace.folder / "runs/base/config.yaml").read_text()] * 3))
    before, files = workplace.atlas.read_bytes(), set(workplace.atlas.parent.glob("*.safetensors"))
    try:
        assert main(["profile", *workplace.adapt()[1:], f"--data.files.qab-Latn={own}"]) == 0
        assert "7 of 8 languages counted before" in capsys.readouterr().out
        assert main(["profile", *workplace.adapt()[1:]]) == 0
        assert "7 of 8 languages counted before" in capsys.readouterr().out
        for code, counts in Atlas.load(workplace.atlas).counts.items():
            assert (counts - load_tensors(workplace.atlas, KINDS["atlas"])[0][f"counts.{code}"]).abs().max() == 0
        assert set(workplace.atlas.parent.glob("*.safetensors")) == files
    finally:
        workplace.atlas.write_bytes(before)


def test_a_plan_finds_the_counts_of_the_text_that_is_there(hub, tokenizer, tmp_path):
    (tmp_path / "own.txt").write_text("one\n\ntwo\n")
    corpus = own_corpus(hub, tmp_path, tokenizer, **{LATIN.glotcc: str(tmp_path / "own.txt")})
    named = SimpleNamespace(
        tokens_per_language=5, stop_when_stable=None, atlas_path=tmp_path / "atlas", rate=0.1, quantile=0.9
    )
    made = atlas()
    made.add(LATIN, torch.ones(3, 10), 10, {"data_set": "elsewhere"})
    made.save(tmp_path / "atlas")
    assert set(find_atlas(named, corpus, MODEL, 128).counts) == {"cym-Latn", "mlt-Latn"}
