"""Token caches: damage is named in one line and repaired, and no wrong token gets through."""

import json
import os
import subprocess
import time
from types import SimpleNamespace

import numpy as np
import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from datamodules import cache_files, token_cache
from datamodules.cache_files import read_manifest
from datamodules.sources import open_source
from lightning_app.hub import UnreachableError
from lightning_app.languages import find_language
from tests.any_input import VALUES, property_based, reads_or_one_line
from tests.caches import LATIN, content_of, edit, fill, flip, move_position, set_number, train_on, without_checksums
from tests.faults import fault, note, refusal, small_disk


@pytest.fixture(scope="module")
def tokenizer(hub, tmp_path_factory):
    return train_on(hub, tmp_path_factory.mktemp("tokenizer"))


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
@fault("a token cache that is damaged: {kind}", lost="nothing: its text is fetched again")
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
    note(line)
    assert content_of(again) == whole
    fill(hub, tokenizer, tmp_path)
    assert capsys.readouterr().out == ""


@pytest.mark.parametrize("kind", ["flipped token", "cut tokens", "no JSON"])
@fault("a token cache that is damaged while the program runs: {kind}", lost="nothing: its text is fetched again")
def test_damage_while_a_process_lives_is_seen_when_the_cache_is_opened_again(kind, hub, tokenizer, tmp_path, capsys):
    cache = fill(hub, tokenizer, tmp_path)
    time.sleep(0.01)
    DAMAGE[kind][0](cache.folder)
    source = open_source(str(hub), LATIN, "main")
    token_cache.fill(tmp_path, source, tokenizer, 20_000, lambda n: int(n.sum()), "filling")
    said = capsys.readouterr().out.strip()
    assert "is damaged" in said
    note(said)


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


@fault("no network, and a token cache that is damaged")
def test_a_damaged_manifest_of_another_cache_ends_no_run(hub, tokenizer, tmp_path, capsys):
    cache = fill(hub, tokenizer, tmp_path)
    for number, content in enumerate((b"", b"\xff", b"[]", b"{}", b'{"key": 3}', b"[" * 10**5, b'{"key": {"a": [1]}}')):
        (tmp_path / f"other{number}").mkdir()
        (tmp_path / f"other{number}" / "manifest.json").write_bytes(content)
    assert content_of(fill(hub, tokenizer, tmp_path, source=unreachable(hub))) == content_of(cache)
    assert token_cache.find(tmp_path, unreachable(hub), tokenizer).tokens == cache.tokens
    fill(hub, tokenizer, tmp_path, language=find_language("qab-Latn"))
    flip(cache.folder / "tokens.bin")
    with refusal(r"cannot reach the text; no token cache.* is damaged: tokens.bin"):
        fill(hub, tokenizer, tmp_path, source=unreachable(hub))
    (cache.folder / "manifest.json").write_bytes(b"{")
    assert token_cache.find(tmp_path, open_source(str(hub), LATIN, "main"), tokenizer) is None


@fault("a read-only token cache that is too small, missing or damaged")
def test_a_read_only_cache_serves_what_it_holds(hub, tokenizer, tmp_path):
    with small_disk(tmp_path / "disk", "8m") as disk:
        cache = fill(hub, tokenizer, disk)
        (cache.folder / ".lock").unlink(missing_ok=True)
        subprocess.run(["mount", "-o", "remount,ro", str(disk)], check=True)
        assert content_of(fill(hub, tokenizer, disk)) == content_of(cache)
        with refusal(r"is read-only and holds .* 1000000000 are wanted; make it writable"):
            fill(hub, tokenizer, disk, budget=10**9)
        with refusal("is read-only and holds 0 usable tokens"):
            fill(hub, tokenizer, disk, language=find_language("qab-Latn"))
        subprocess.run(["mount", "-o", "remount,rw", str(disk)], check=True)
        flip(cache.folder / "tokens.bin")
        subprocess.run(["mount", "-o", "remount,ro", str(disk)], check=True)
        with refusal("the checksum differs; it is read-only: delete it"):
            fill(hub, tokenizer, disk)


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


@property_based
@given(st.sampled_from(["key", "version", "tokens", "documents", "exhausted", "position", "checksums"]), VALUES)
def test_any_value_in_a_manifest_is_sound_or_damage(tmp_path_factory, name, value):
    folder = tmp_path_factory.getbasetemp() / "manifest"
    folder.mkdir(exist_ok=True)
    manifest = {**cache_files.new_manifest({"a": "b"}), name: value}
    (folder / "manifest.json").write_text(json.dumps(manifest))
    reads_or_one_line(read_manifest, folder, {"a": "b"})
