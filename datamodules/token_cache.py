"""The token cache: a language's documents, tokenised once, memory-mapped ever after.

A folder per data set, configuration, revision and tokenizer holds

    tokens.bin     token ids of all documents back to back, uint32, no special tokens
    ends.bin       where each document ends, int64
    manifest.json  what the tokens are, how many are valid, where the source goes on, and checksums

Documents are kept apart, so one cache serves every chunking and block size, and a larger budget later goes on where
the fill stopped. Bytes beyond what the manifest counts are not valid: a fill that was killed cuts them off and goes on.
A cache that is found damaged is filled again from the start of its text.
"""

import contextlib
import errno
import os
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import BinaryIO

import numpy as np
from filelock import FileLock
from numpy.typing import NDArray
from transformers import PreTrainedTokenizerBase

from datamodules.cache_files import (
    END,
    ENDS,
    MANIFEST,
    TOKEN,
    TOKENS,
    DamagedCacheError,
    Lengths,
    SpelledTokensError,
    TokenCache,
    cut_to_manifest,
    new_manifest,
    read_manifest,
    verify,
    write_manifest,
)
from datamodules.encoding import encode_documents, is_spelled, special_tokens
from datamodules.sources import Identity, NoTextError, TextSource
from lightning_app.errors import UserError
from lightning_app.files import JSON, digest, disk_full, is_disk_full
from lightning_app.hub import UnreachableError
from lightning_app.progress import TokenProgress, held
from lightning_app.run import is_first_process

_COMMIT_EVERY_S = 5.0
REAL = {"special_tokens": "real"}
"""In the key of a cache where special tokens that a document spells are real ones."""
_UNWRITABLE = (errno.EACCES, errno.EPERM, errno.EROFS)


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
    is_text: bool = True,
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
        is_text: Whether special tokens that a document spells stay text; a cache where they do not is another one.

    Raises `UserError` for no text at all, no network and nothing cached, a full disk, a read-only cache that is too
    small, or bad text.
    """
    made = {"tokenizer": tokenizer_id(tokenizer), **({} if is_text else REAL)}
    try:
        key = {**source.identity(), **made}
    except UnreachableError as error:
        return _cached_despite(error, root, {**source.identity_without_revision(), **made}, tokenizer, budget, usable)
    folder = _folder(root, key)
    with _locked(folder) as is_writable:
        cache = _open_or_repair(folder, key, tokenizer, TokenProgress(title, 0, 0, is_shown), is_writable)
        if not _is_enough(cache, budget, usable):
            if not is_writable:
                raise _read_only(cache, budget, usable)
            with _kept_whole(folder), TokenProgress(title, budget, usable(cache.read_lengths()), is_shown) as progress:
                cache = _Filler(cache, tokenizer, usable, progress).run(source, budget)
    if cache.tokens == 0:
        raise NoTextError(f"{key['data_set']} has no text for {key['configuration']}: every document is empty")
    return cache


def find(root: Path, source: TextSource, tokenizer: PreTrainedTokenizerBase) -> TokenCache | None:
    """Returns the cache of a source as it is, without filling it or reading it through; None where there is none."""
    tokenizer_digest = tokenizer_id(tokenizer)
    try:
        key = {**source.identity(), "tokenizer": tokenizer_digest}
    except UnreachableError:
        wanted = {**source.identity_without_revision(), "tokenizer": tokenizer_digest}
        return next(_of_any_revision(root, wanted), None)
    try:
        manifest = read_manifest(_folder(root, key), key)
    except DamagedCacheError:
        return None  # a run fills it again
    return TokenCache(_folder(root, key), manifest) if manifest is not None else None


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
        done = self.usable(self.cache.read_lengths())
        last_commit = time.monotonic()
        folder, checksums = self.cache.folder, self.cache.checksums
        names = list(special_tokens(self.tokenizer).values())
        cut_to_manifest(folder, manifest)
        with (folder / TOKENS).open("ab") as tokens_file, (folder / ENDS).open("ab") as ends_file:
            batches = source.batches(manifest["position"])
            exhausted = True
            for documents, position in batches:
                encoded = self._encode(documents)
                lengths = np.array([len(ids) for ids in encoded], dtype=np.int64)
                if encoded:
                    ends = (manifest["tokens"] + lengths.cumsum()).astype(END).tobytes()
                    for name, file, content in (
                        (TOKENS, tokens_file, np.concatenate(encoded).tobytes()),
                        (ENDS, ends_file, ends),
                    ):
                        file.write(content)
                        checksums.update(name, content)
                manifest["tokens"] += int(lengths.sum())
                manifest["documents"] += len(encoded)
                manifest["position"] = position
                manifest["spells_special"] = manifest.get("spells_special", False) or is_spelled(names, documents)
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
        is_text = not REAL.items() <= self.cache.manifest["key"].items()
        encoded = encode_documents(self.tokenizer, documents, is_text)
        return [np.array(ids, dtype=TOKEN) for ids in encoded if ids]

    def _commit(self, manifest: JSON, *files: BinaryIO) -> TokenCache:
        for file in files:
            file.flush()
            os.fsync(file.fileno())
        checksums = self.cache.checksums
        return TokenCache(self.cache.folder, write_manifest(self.cache.folder, manifest, checksums), checksums)


@contextlib.contextmanager
def _kept_whole(folder: Path) -> Iterator[None]:
    """Says in one line that the disk is full, or that the files may not be written, and leaves them whole."""
    try:
        yield
    except OSError as error:
        if is_disk_full(error):
            cut_to_manifest(folder, read_manifest(folder, {}) or new_manifest({}))
            raise disk_full(folder) from error
        if error.errno in _UNWRITABLE and str(error.filename).startswith(str(folder)):
            raise UserError(
                f"token cache {folder} cannot be written ({error.strerror}); make it writable or name another "
                "--data.cache_dir"
            ) from error
        raise


@contextlib.contextmanager
def _locked(folder: Path) -> Iterator[bool]:
    """Makes and locks a cache; yields whether that could be done: a read-only one has no room for a lock."""
    lock = FileLock(folder / ".lock")
    with contextlib.ExitStack() as holding:
        try:
            folder.mkdir(parents=True, exist_ok=True)
            holding.enter_context(held(lock, f"fills token cache {folder}", is_first_process()))
        except OSError as error:
            if is_disk_full(error):
                raise disk_full(folder) from error
            if error.errno not in _UNWRITABLE:
                raise
        yield lock.is_locked


def _open(folder: Path, key: Identity, tokenizer: PreTrainedTokenizerBase) -> TokenCache:
    """Returns a cache that was found whole, empty where there is none; raises `DamagedCacheError`."""
    manifest = read_manifest(folder, key)
    if manifest is None:
        return TokenCache(folder, new_manifest(key))
    return TokenCache(folder, manifest, verify(folder, manifest, tokenizer))


def _open_or_repair(
    folder: Path, key: Identity, tokenizer: PreTrainedTokenizerBase, progress: TokenProgress, is_writable: bool
) -> TokenCache:
    """Returns a whole cache; an empty one in place of one that is damaged."""
    try:
        return _open(folder, key, tokenizer)
    except DamagedCacheError as damage:
        line = f"token cache {folder} is damaged: {damage}"
        if not is_writable:
            raise UserError(f"{line}; it is read-only: delete it or name another --data.cache_dir") from damage
        progress.write(f"{line}; fetching its text again from the start")
        # Unlinked, not cut: another run may have the old files in its memory.
        for name in (MANIFEST, TOKENS, ENDS):
            (folder / name).unlink(missing_ok=True)
        # Other tokens than a run of the earlier version counted positions in must not go by the same name.
        is_other = isinstance(damage, SpelledTokensError)
        return TokenCache(folder, new_manifest({**key, "special_tokens": "text"} if is_other else key))


def _read_only(cache: TokenCache, budget: int, usable: Callable[[Lengths], int]) -> UserError:
    return UserError(
        f"token cache {cache.folder} is read-only and holds {usable(cache.read_lengths())} usable tokens, "
        f"{budget} are wanted; make it writable or name another --data.cache_dir"
    )


def _is_enough(cache: TokenCache, budget: int, usable: Callable[[Lengths], int]) -> bool:
    return cache.is_exhausted or usable(cache.read_lengths()) >= budget


def _cached_despite(
    error: UnreachableError,
    root: Path,
    wanted: Identity,
    tokenizer: PreTrainedTokenizerBase,
    budget: int,
    usable: Callable[[Lengths], int],
) -> TokenCache:
    """Returns a cache of any revision that needs nothing from the network, or raises ``error``."""
    damaged = ""
    for cache in _of_any_revision(root, wanted):
        try:
            if _is_enough(cache, budget, usable):
                return _open(cache.folder, {}, tokenizer)
        except DamagedCacheError as damage:
            damaged = f", and {cache.folder} is damaged: {damage}"
    raise UserError(f"{error}; no token cache in {root} is large enough to go on without it{damaged}") from error


def _of_any_revision(root: Path, wanted: Identity) -> Iterator[TokenCache]:
    """Yields the caches of a data set's language, the newest first; those of others, whole or not, are passed over."""
    for path in sorted(root.glob(f"*/{MANIFEST}"), key=lambda p: p.stat().st_mtime, reverse=True):
        with contextlib.suppress(DamagedCacheError):
            manifest = read_manifest(path.parent, wanted)
            if manifest is not None and _is_alike(manifest["key"], wanted):
                yield TokenCache(path.parent, manifest)


def _is_alike(key: Identity, wanted: Identity) -> bool:
    """Tells whether a cache leaves out the same documents, and takes spelled special tokens for the same."""
    is_real = (REAL.items() <= key.items(), REAL.items() <= wanted.items())
    return key.get("filters") == wanted.get("filters") and is_real[0] == is_real[1]
