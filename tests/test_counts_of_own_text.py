"""The user's own text of one language: counted by itself, and counted again only where it changed."""

import sys

import pytest
import torch

from lightning_app.cli import main
from lightning_app.files import load_tensors
from lightning_app.identity import ModelIdentity
from lightning_app.languages import find_language
from lightning_app.neurons.atlas import Atlas
from lightning_app.profiling.profiler import find_atlas
from lightning_app.profiling.settings import ProfilingSettings
from tests.caches import LATIN, own_corpus, train_on

MODEL = ModelIdentity("m", "", "0123456789abcdef", 3, 10, 16, 10_000)


@pytest.fixture(scope="module")
def tokenizer(hub, tmp_path_factory):
    return train_on(hub, tmp_path_factory.mktemp("tokenizer"))


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
            assert (counts - load_tensors(workplace.atlas, "activation atlas")[0][f"counts.{code}"]).abs().max() == 0
        assert set(workplace.atlas.parent.glob("*.safetensors")) == files
    finally:
        workplace.atlas.write_bytes(before)


def test_a_plan_finds_the_counts_of_the_text_that_is_there(hub, tokenizer, tmp_path):
    (tmp_path / "own.txt").write_text("one\n\ntwo\n")
    corpus = own_corpus(hub, tmp_path, tokenizer, **{LATIN.glotcc: str(tmp_path / "own.txt")})
    named = ProfilingSettings(tokens_per_language=5, atlas=str(tmp_path / "atlas"), rate=0.1, quantile=0.9)
    made = Atlas(MODEL, "t", 128)
    for code in ("cy", "mt"):
        made.add(find_language(code), torch.full((3, 10), 5), 10, {"data_set": "d"})
    made.add(LATIN, torch.ones(3, 10), 10, {"data_set": "elsewhere"})
    made.save(tmp_path / "atlas")
    assert set(find_atlas(named, corpus, MODEL, 128).counts) == {"cym-Latn", "mlt-Latn"}
