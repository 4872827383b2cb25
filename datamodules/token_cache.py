"""The token cache: a language's documents, tokenised once, memory-mapped ever after.

A folder per data set, configuration, revision and tokenizer holds

    tokens.bin     token ids of all documents back to back, uint32, no special tokens
    ends.bin       where each document ends, int64
    manifest.json  what the tokens are, how many are valid, and where the source goes on

Documents are kept apart, so one cache serves every chunking and block size, and a larger budget later goes on where
the fill stopped. Bytes beyond what the manifest counts are not valid: a fill that was killed cuts them off and goes on.
"""

import json
import os
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO

import numpy as np
from filelock import FileLock
from numpy.typing import NDArray
from transformers import PreTrainedTokenizerBase

from datamodules.sources import Identity, TextSource
from lightning_app import __version__
from lightning_app.errors import UserError
from lightning_app.files import JSON, digest, disk_full, is_disk_full, write_json
from lightning_app.hub import UnreachableError
from lightning_app.progress import TokenProgress

_COMMIT_EVERY_S = 5.0
_TOKEN = np.dtype(np.uint32)
_END = np.dtype(np.int64)

Lengths = NDArray[np.int64]


@dataclass
class TokenCache:
    """A filled (or partly filled) cache folder, open for reading."""

    folder: Path
    manifest: JSON

    @property
    def tokens(self) -> int:
        return self.manifest["tokens"]

    @property
    def documents(self) -> int:
        return self.manifest["documents"]

    @property
    def is_exhausted(self) -> bool:
        """Whether the source has no more text than this."""
        return self.manifest["exhausted"]

    @property
    def id(self) -> str:
        """Digest over what the tokens are; two caches with the same id hold the same tokens in the same order."""
        return digest(self.manifest["key"])

    def read_ends(self) -> Lengths:
        """Returns where each document ends in the token stream, int64 (documents,)."""
        return np.fromfile(self.folder / "ends.bin", dtype=_END, count=self.documents)

    def open_tokens(self) -> NDArray[np.uint32]:
        """Returns the memory-mapped tokens, uint32 (tokens,)."""
        if self.tokens == 0:
            return np.empty(0, dtype=_TOKEN)
        return np.memmap(self.folder / "tokens.bin", dtype=_TOKEN, mode="r", shape=(self.tokens,))


def tokenizer_id(tokenizer: PreTrainedTokenizerBase) -> str:
    """Digest over everything that decides which ids a text gets."""
    backend = getattr(tokenizer, "backend_tokenizer", None)
    return digest(backend.to_str() if backend is not None else [type(tokenizer).__name__, tokenizer.get_vocab()])


def fill(
    root: Path,
    source: TextSource,
    tokenizer: PreTrainedTokenizerBase,
    budget: int,
    usable: Callable[[Lengths], int],
    title: str,
    is_shown: bool = True,
) -> TokenCache:
    """Returns a cache with at least ``budget`` usable tokens, or with all the text there is.

    Any number of processes may call this at once on a shared folder: one fills, the others wait and find it filled. It
    may be killed at any moment.

    Args:
        root: Folder of all caches.
        source: Where the documents come from.
        tokenizer: What makes tokens of them.
        budget: Usable tokens wanted.
        usable: Tokens that a chunking can use of documents with the given lengths.
        title: Shown with the progress.
        is_shown: Whether this process shows it.

    Raises `UserError` for no text at all, no network and nothing cached, a full disk, or bad text.
    """
    try:
        key = {**source.identity(), "tokenizer": tokenizer_id(tokenizer)}
    except UnreachableError as error:
        return _cached_despite(error, root, source, tokenizer_id(tokenizer), budget, usable)
    folder = _folder(root, key)
    try:
        folder.mkdir(parents=True, exist_ok=True)
        with FileLock(folder / ".lock"):
            cache = _open(folder, key)
            if not cache.is_exhausted and usable(_lengths(cache)) < budget:
                with TokenProgress(title, budget, usable(_lengths(cache)), is_shown) as progress:
                    cache = _Filler(cache, tokenizer, usable, progress).run(source, budget)
    except OSError as error:
        if is_disk_full(error):
            _cut_to_manifest(_open(folder, key))
            raise disk_full(folder) from error
        raise
    if cache.tokens == 0:
        raise UserError(f"{key['data_set']} has no text for {key['configuration']}: every document is empty")
    return cache


def find(root: Path, source: TextSource, tokenizer: PreTrainedTokenizerBase) -> TokenCache | None:
    """Returns the cache of a source as it is, without filling it; None where there is none."""
    tokenizer_digest = tokenizer_id(tokenizer)
    try:
        folder = _folder(root, {**source.identity(), "tokenizer": tokenizer_digest})
    except UnreachableError:
        return next(_of_any_revision(root, source, tokenizer_digest), None)
    return _open(folder, {}) if (folder / "manifest.json").exists() else None


def _folder(root: Path, key: Identity) -> Path:
    return root / f"{key['configuration']}-{digest(key)}"


class _Filler:
    """Appends documents, and every few seconds commits them with the source's position."""

    def __init__(
        self,
        cache: TokenCache,
        tokenizer: PreTrainedTokenizerBase,
        usable: Callable[[Lengths], int],
        progress: TokenProgress,
    ) -> None:
        self.cache, self.tokenizer, self.usable, self.progress = cache, tokenizer, usable, progress

    def run(self, source: TextSource, budget: int) -> TokenCache:
        manifest = dict(self.cache.manifest)
        done = self.usable(_lengths(self.cache))
        last_commit = time.monotonic()
        _cut_to_manifest(self.cache)
        with (
            (self.cache.folder / "tokens.bin").open("ab") as tokens_file,
            (self.cache.folder / "ends.bin").open("ab") as ends_file,
        ):
            batches = source.batches(manifest["position"])
            exhausted = True
            for documents, position in batches:
                encoded = self._encode(documents)
                lengths = np.array([len(ids) for ids in encoded], dtype=np.int64)
                if encoded:
                    tokens_file.write(np.concatenate(encoded).tobytes())
                    ends_file.write((manifest["tokens"] + lengths.cumsum()).tobytes())
                manifest["tokens"] += int(lengths.sum())
                manifest["documents"] += len(encoded)
                manifest["position"] = position
                gained = self.usable(lengths)
                done += gained
                self.progress.advance(gained)
                if done >= budget:
                    exhausted = False
                    break
                if time.monotonic() - last_commit > _COMMIT_EVERY_S:
                    self._commit(manifest, tokens_file, ends_file)
                    last_commit = time.monotonic()
            getattr(batches, "close", lambda: None)()
            manifest["exhausted"] = exhausted
            return self._commit(manifest, tokens_file, ends_file)

    def _encode(self, documents: list[str]) -> list[NDArray[np.uint32]]:
        if not documents:
            return []
        ids = self.tokenizer(documents, add_special_tokens=False, return_attention_mask=False, verbose=False)
        return [np.array(document, dtype=_TOKEN) for document in ids["input_ids"] if document]

    def _commit(self, manifest: JSON, *files: BinaryIO) -> TokenCache:
        for file in files:
            file.flush()
            os.fsync(file.fileno())
        write_json(self.cache.folder / "manifest.json", manifest)
        return TokenCache(self.cache.folder, manifest)


def _cut_to_manifest(cache: TokenCache) -> None:
    """Cuts off what was written after the last commit."""
    for name, valid_bytes in (
        ("tokens.bin", cache.tokens * _TOKEN.itemsize),
        ("ends.bin", cache.documents * _END.itemsize),
    ):
        if (cache.folder / name).exists():
            os.truncate(cache.folder / name, valid_bytes)


def _open(folder: Path, key: Identity) -> TokenCache:
    path = folder / "manifest.json"
    if path.exists():
        return TokenCache(folder, json.loads(path.read_text(encoding="utf-8")))
    manifest = {"key": key, "version": __version__, "tokens": 0, "documents": 0, "exhausted": False, "position": None}
    return TokenCache(folder, manifest)


def _lengths(cache: TokenCache) -> Lengths:
    return np.diff(cache.read_ends(), prepend=0) if cache.documents else np.empty(0, dtype=np.int64)


def _cached_despite(
    error: UnreachableError,
    root: Path,
    source: TextSource,
    tokenizer_digest: str,
    budget: int,
    usable: Callable[[Lengths], int],
) -> TokenCache:
    """Returns a cache of any revision that needs nothing from the network, or raises ``error``."""
    for cache in _of_any_revision(root, source, tokenizer_digest):
        if cache.is_exhausted or usable(_lengths(cache)) >= budget:
            return cache
    raise UserError(f"{error}; no token cache in {root} is large enough to go on without it") from error


def _of_any_revision(root: Path, source: TextSource, tokenizer_digest: str) -> Iterator[TokenCache]:
    """Yields the caches of a data set's language, the newest first."""
    wanted = {**source.identity_without_revision(), "tokenizer": tokenizer_digest}
    for path in sorted(root.glob("*/manifest.json"), key=lambda p: p.stat().st_mtime, reverse=True):
        cache = TokenCache(path.parent, json.loads(path.read_text(encoding="utf-8")))
        if wanted.items() <= cache.manifest["key"].items():
            yield cache
