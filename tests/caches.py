"""Token caches of invented text for tests, and damage to them."""

import json

import numpy as np

from datamodules import cache_files, token_cache
from datamodules.corpus import Corpus
from datamodules.sources import open_source
from datamodules.tokenizers import train_tokenizer
from lightning_app.languages import find_language

LATIN = find_language("qaa-Latn")


def train_on(hub, folder):
    """A tokenizer of 400 entries."""
    return train_tokenizer([(open_source(str(hub), LATIN, "main"), 1.0)], 400, folder)


def fill(hub, tokenizer, root, budget=20_000, language=LATIN, source=None):
    """Fills as a process does that has not seen the cache."""
    cache_files._verified.clear()
    source = source or open_source(str(hub), language, "main")
    return token_cache.fill(root, source, tokenizer, budget, lambda n: int(n.sum()), "filling")


def content_of(cache):
    return cache.open_tokens().tolist(), cache.read_ends().tolist()


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


def own_corpus(hub, tmp_path, tokenizer, **files):
    corpus = Corpus(str(hub), "main", tmp_path / "cache", None, files=files)
    corpus.tokenizer = tokenizer
    return corpus
