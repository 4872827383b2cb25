"""The files of a token cache: what its manifest must say, and whether the tokens are still those that were written.

A checksum per file over its valid bytes, and one over the manifest itself, find what a disk or a copy changed. They
grow with the files, so that filling never reads back what it wrote.
"""

import hashlib
import json
import os
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Self

import numpy as np
from numpy.typing import NDArray
from transformers import PreTrainedTokenizerBase

from datamodules.encoding import special_ids
from lightning_app import __version__
from lightning_app.files import JSON, digest, is_later_version, write_json

TOKENS, ENDS, MANIFEST = "tokens.bin", "ends.bin", "manifest.json"
TOKEN = np.dtype(np.uint32)
END = np.dtype(np.int64)

Lengths = NDArray[np.int64]

_PIECE_BYTES = 1 << 23
_FIELDS: Mapping[str, type] = {"key": dict, "version": str, "tokens": int, "documents": int, "exhausted": bool}


class DamagedCacheError(Exception):
    """A cache that cannot be used as it is; the message says why, as a part of a sentence."""


class SpelledTokensError(DamagedCacheError):
    """A cache of an earlier version, which took special tokens spelled in the text for real ones."""


class Checksums:
    """Running SHA-256 of what was written to each file."""

    def __init__(self) -> None:
        self._of = {name: hashlib.sha256() for name in (TOKENS, ENDS)}

    def update(self, name: str, content: bytes | memoryview) -> None:
        """Takes in what follows in a file."""
        self._of[name].update(content)

    def copy(self) -> Self:
        """Returns checksums that grow on their own."""
        other = type(self)()
        other._of = {name: sha.copy() for name, sha in self._of.items()}
        return other

    def as_dict(self) -> dict[str, str]:
        """Returns the checksum of each file, in hexadecimal digits."""
        return {name: sha.hexdigest() for name, sha in self._of.items()}


@dataclass
class TokenCache:
    """A filled (or partly filled) cache folder, open for reading."""

    folder: Path
    manifest: JSON
    checksums: Checksums = field(default_factory=Checksums, repr=False, compare=False)

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
    def spells_special(self) -> bool:
        """Whether a document spells a special token; never in a cache of before this was noted, which was looked at."""
        return bool(self.manifest.get("spells_special", False))

    @property
    def left_out(self) -> dict[str, int]:
        """How many documents of the source were left out, by reason."""
        return dict((self.manifest["position"] or {}).get("dropped", {}))

    @property
    def id(self) -> str:
        """Digest over what the tokens are; two caches with the same id hold the same tokens in the same order."""
        return digest(self.manifest["key"])

    def read_ends(self) -> Lengths:
        """Returns where each document ends in the token stream, int64 (documents,)."""
        return np.fromfile(self.folder / ENDS, dtype=END, count=self.documents)

    def open_tokens(self) -> NDArray[np.uint32]:
        """Returns the memory-mapped tokens, uint32 (tokens,)."""
        if self.tokens == 0:
            return np.empty(0, dtype=TOKEN)
        return np.memmap(self.folder / TOKENS, dtype=TOKEN, mode="r", shape=(self.tokens,))

    def read_lengths(self) -> Lengths:
        """Returns the tokens of each document, int64 (documents,)."""
        return np.diff(self.read_ends(), prepend=0) if self.documents else np.empty(0, dtype=END)


_Stamp = list[tuple[int, int, int]]
_verified: dict[Path, tuple[_Stamp, JSON, Checksums]] = {}
"""What this process has found whole, or has written: a cache is read through once, not whenever it is opened."""


def valid_bytes(manifest: JSON) -> dict[str, int]:
    """Returns how much of each file counts."""
    return {TOKENS: manifest["tokens"] * TOKEN.itemsize, ENDS: manifest["documents"] * END.itemsize}


def cut_to_manifest(folder: Path, manifest: JSON) -> None:
    """Cuts off what was written after the last commit."""
    for name, size in valid_bytes(manifest).items():
        if (folder / name).exists():
            os.truncate(folder / name, size)


def new_manifest(key: Mapping[str, str]) -> JSON:
    """Returns the manifest of a cache that holds nothing yet."""
    empty = {"tokens": 0, "documents": 0, "exhausted": False, "position": None}
    return {"key": dict(key), "version": __version__, **empty}


def write_manifest(folder: Path, manifest: JSON, checksums: Checksums) -> JSON:
    """Writes what is valid from now on, atomically; the files themselves are synced before. Returns what it wrote."""
    bare = {name: value for name, value in manifest.items() if name != "checksums"} | {"version": __version__}
    plain = json.loads(json.dumps(bare))  # as it will be read back
    written = {**plain, "checksums": {**checksums.as_dict(), MANIFEST: digest(plain)}}
    write_json(folder / MANIFEST, written)
    _verified[folder] = _stamp(folder), written, checksums.copy()
    return written


def read_manifest(folder: Path, key: Mapping[str, str]) -> JSON | None:
    """Returns the manifest of a cache, None where there is none, after a look at it and at the sizes of the files.

    Args:
        folder: Of the cache.
        key: What the manifest must say of its text and tokenizer, or a part of that.

    Raises:
        DamagedCacheError: It is no manifest of this program, one of a later version or of other text, or a file is
            shorter than it says.
    """
    try:
        manifest = json.loads((folder / MANIFEST).read_bytes())
    except FileNotFoundError:
        return None
    except OSError as error:
        raise DamagedCacheError(f"its manifest cannot be read ({error.strerror})") from error
    except (ValueError, RecursionError) as error:
        raise DamagedCacheError("its manifest is no JSON") from error
    _require_form(manifest)
    if not key.items() <= manifest["key"].items():
        raise DamagedCacheError("its manifest is of other text or of another tokenizer")
    for name, size in valid_bytes(manifest).items():
        path = folder / name
        found = path.stat().st_size if path.is_file() else None
        if size and (found is None or found < size):
            has = "is missing" if found is None else f"is cut short: {found} bytes"
            raise DamagedCacheError(f"{name} {has}, the manifest counts {size}")
    return manifest


def _require_form(manifest: object) -> None:
    if not isinstance(manifest, dict):
        raise DamagedCacheError("its manifest is no JSON object")
    for name, kind in _FIELDS.items():
        if type(manifest.get(name)) is not kind:
            raise DamagedCacheError(f"its manifest has no {kind.__name__} '{name}'")
    if is_later_version(manifest["version"]):
        raise DamagedCacheError(
            f"its manifest was made by Neuroglot {manifest['version'][:20]!r}, later than {__version__}"
        )
    tokens, documents, position = manifest["tokens"], manifest["documents"], manifest.get("position")
    if not 0 <= documents <= tokens or (tokens > 0) != (documents > 0):
        raise DamagedCacheError(f"its manifest counts {tokens} tokens in {documents} documents")
    if not isinstance(position, dict) and (position is not None or (tokens and not manifest["exhausted"])):
        raise DamagedCacheError("its manifest does not say where its text goes on")
    sums = manifest.get("checksums")
    if sums is not None:
        bare = {name: value for name, value in manifest.items() if name != "checksums"}
        if not isinstance(sums, dict) or sums.get(MANIFEST) != digest(bare):
            raise DamagedCacheError("its manifest is not the one that was written: the checksum differs")


def verify(folder: Path, manifest: JSON, tokenizer: PreTrainedTokenizerBase) -> Checksums:
    """Returns checksums that go on from the valid bytes, reading them once for every process and state of the files.

    A manifest without checksums, as earlier versions wrote, is taken at its word where the files are sound.

    Raises:
        DamagedCacheError: The files are not those that were written, or no tokens of this tokenizer.
    """
    stamp = _stamp(folder)
    known = _verified.get(folder)
    if known is not None and known[:2] == (stamp, manifest):
        return known[2].copy()
    checksums, expected = Checksums(), manifest.get("checksums")
    ends = list(_pieces(folder, manifest, ENDS, checksums))
    highest, is_spelled = -1, False
    special = [] if expected or "special_tokens" in manifest["key"] else special_ids(tokenizer)
    for piece in _pieces(folder, manifest, TOKENS, checksums):
        highest = max(highest, int(piece.max()))
        is_spelled = is_spelled or (bool(special) and bool(np.isin(piece, special).any()))
    for name, found in checksums.as_dict().items():
        if expected is not None and expected.get(name) != found:
            raise DamagedCacheError(f"{name} is not what was written: the checksum differs")
    _require_ascending(ends, manifest["tokens"])
    vocabulary = max(tokenizer.get_vocab().values(), default=-1) + 1
    if highest >= vocabulary:
        raise DamagedCacheError(f"{TOKENS} holds token {highest}, the tokenizer has {vocabulary}")
    if is_spelled:
        raise SpelledTokensError("an earlier version took special tokens spelled in its text for real ones")
    _verified[folder] = stamp, manifest, checksums.copy()
    return checksums


def _pieces(folder: Path, manifest: JSON, name: str, checksums: Checksums) -> Iterator[NDArray[Any]]:
    """Yields the valid part of a file in pieces, and takes them into its checksum."""
    left, numbers = valid_bytes(manifest)[name], TOKEN if name == TOKENS else END
    if not left:
        return
    with (folder / name).open("rb") as file:
        while left:
            piece = file.read(min(left, _PIECE_BYTES))
            if not piece or len(piece) % numbers.itemsize:
                raise DamagedCacheError(f"{name} is cut short by {left} bytes")
            checksums.update(name, piece)
            left -= len(piece)
            yield np.frombuffer(piece, numbers)


def _require_ascending(pieces: list[NDArray[np.int64]], tokens: int) -> None:
    ends = np.concatenate(pieces) if pieces else np.zeros(0, dtype=END)
    if (np.diff(ends, prepend=0) <= 0).any():
        raise DamagedCacheError(f"{ENDS} does not ascend")
    if len(ends) and ends[-1] != tokens:
        raise DamagedCacheError(f"{ENDS} ends at token {ends[-1]}, the manifest counts {tokens}")


def _stamp(folder: Path) -> _Stamp:
    """Returns what changes where somebody else writes to the cache."""
    stats = [(folder / name).stat() for name in (TOKENS, ENDS, MANIFEST) if (folder / name).exists()]
    return [(stat.st_ino, stat.st_size, stat.st_mtime_ns) for stat in stats]
