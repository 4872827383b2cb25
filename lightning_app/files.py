"""Files that are either whole or not there: written beside their target, synced and renamed.

torch is imported where tensors are read or written, so that who reads plain data does not wait for it.
"""

import contextlib
import errno
import hashlib
import json
import os
import pickle
import platform
import re
import shutil
import struct
import sys
import zipfile
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from safetensors import SafetensorError, safe_open

from lightning_app import __version__
from lightning_app.errors import UserError

if TYPE_CHECKING:
    from torch import Tensor

JSON = dict[str, Any]
"""A JSON object: plain data whose values only its reader knows."""

_TEMPORARY = ".partial"
_HOST = hashlib.sha256(platform.node().encode()).hexdigest()[:8]  # in names, because a folder may be shared

UNREADABLE = (
    SafetensorError, pickle.UnpicklingError, struct.error, EOFError, OSError, RuntimeError, ValueError, TypeError,
    LookupError, AttributeError, ArithmeticError, AssertionError, ImportError, MemoryError, zipfile.BadZipFile,
)  # fmt: skip
"""What readers of safetensors, pickles and JSON raise on bytes that are none."""


def disk_full(path: Path) -> UserError:
    """Returns the error for a full disk at ``path``; what was there before is untouched."""
    folder = next(p for p in [path, *path.parents] if p.is_dir())
    free_mib = shutil.disk_usage(folder).free / 2**20
    return UserError(
        f"the disk is full: could not write {path} ({free_mib:.0f} MiB free); nothing was damaged, "
        "free some space or choose another folder (--run_dir, --data.cache_dir) and run the same command again"
    )


def is_disk_full(error: BaseException) -> bool:
    """Tells whether ``error`` is a full disk or quota, also when another library wrapped it."""
    if isinstance(error, OSError) and error.errno in (errno.ENOSPC, errno.EDQUOT):
        return True
    if "os error 28" in str(error) or "No space left on device" in str(error):
        return True
    inner = error.__cause__ or error.__context__
    return inner is not None and is_disk_full(inner)


def ordinary_mode() -> int:
    """Returns the mode that new files have here; safetensors would make them unreadable for a user's group."""
    umask = os.umask(0)
    os.umask(umask)
    return 0o666 & ~umask


def sync(path: Path) -> None:
    """Makes what a file holds, or the renames inside a folder, durable."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


@contextlib.contextmanager
def replacing(path: Path) -> Iterator[Path]:
    """Yields a temporary path beside ``path`` which replaces it if the block succeeds.

    Raises:
        UserError: The disk is full. ``path`` is as it was and the temporary file is gone.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    stem = f".{path.name}.{_HOST}."
    _sweep_leftovers(path.parent, stem)
    temporary = path.with_name(f"{stem}{os.getpid()}{_TEMPORARY}")
    try:
        yield temporary
        sync(temporary)
        temporary.chmod(ordinary_mode())
        temporary.replace(path)
        sync(path.parent)
    except (OSError, SafetensorError, RuntimeError) as error:
        if is_disk_full(error):
            raise disk_full(path) from error
        raise
    finally:
        temporary.unlink(missing_ok=True)


def _sweep_leftovers(folder: Path, stem: str) -> None:
    """Removes temporary files that begin with ``stem``, whose host is this one, of processes that were killed."""
    for leftover in os.scandir(folder):
        number = leftover.name.removeprefix(stem).removesuffix(_TEMPORARY)
        if leftover.name == f"{stem}{number}{_TEMPORARY}" and number.isdigit() and not is_running(int(number)):
            with contextlib.suppress(FileNotFoundError):
                os.unlink(leftover.path)


def is_running(process: int) -> bool:
    """Tells whether a process of this host lives."""
    try:
        os.kill(process, 0)
    except PermissionError:
        return True  # another user's
    except (OSError, OverflowError):
        return False
    return True


def require_folder(path: Path, key: str) -> None:
    """Raises `UserError` where ``path``, which a key names, is no folder and none can be made there."""
    there = next((place for place in (path, *path.absolute().parents) if os.path.lexists(place)), path)
    if os.path.lexists(there) and not there.is_dir():
        raise UserError(f"{key} is {path}, but {there} is no folder; name another one")


def sweep_temporary_files(folder: Path) -> None:
    """Removes what a killed process left half-written in ``folder``."""
    for leftover in folder.glob(f".*{_TEMPORARY}"):
        leftover.unlink(missing_ok=True)


def size_on_disk(path: Path) -> int:
    """Returns the bytes of a file, or of all files in a folder."""
    return sum(each.stat().st_size for each in (path.rglob("*") if path.is_dir() else [path]) if each.is_file())


def write_text(path: Path, text: str) -> None:
    """Writes ``text`` to ``path`` atomically."""
    with replacing(path) as temporary:
        temporary.write_text(text, encoding="utf-8")


def write_json(path: Path, content: Mapping[str, object]) -> None:
    """Writes ``content`` to ``path`` as JSON, atomically."""
    write_text(path, json.dumps(content, indent=2, ensure_ascii=False) + "\n")


def is_later_version(version: str) -> bool:
    """Tells whether a file of this program was made by a later version than the one that runs.

    >>> is_later_version("0.0.9"), is_later_version(__version__), is_later_version("999.0"), is_later_version("?")
    (False, False, True, False)
    """
    numbers = [[int(digits) for digits in re.findall(r"[0-9]{1,9}", each)] for each in (version, __version__)]
    return numbers[0] > numbers[1]


def require_no_later_version(path: Path, version: object) -> None:
    """Raises `UserError` where the file at ``path`` says that a later version of this program made it."""
    if isinstance(version, str) and is_later_version(version):
        raise UserError(
            f"{path} was made by Neuroglot {version[:20]!a}, later than {__version__} here; update the program, "
            "or make the file again with this version"
        )


def one_line(error: BaseException) -> str:
    """Returns what an error of another library says, on one line that every terminal can print."""
    text = " ".join(str(error).split())[:160] or type(error).__name__
    return text if text.isprintable() else ascii(text)


def save_tensors(path: Path, tensors: "Mapping[str, Tensor]", metadata: Mapping[str, object], kind: str) -> None:
    """Writes a safetensors file whose header says what it is (``kind``) and carries ``metadata`` as JSON."""
    from safetensors.torch import save

    header = {"neuroglot": kind, "metadata": json.dumps(dict(metadata), sort_keys=True)}
    with replacing(path) as temporary:
        # Written here: `save_file` goes by a temporary file of its own, which a kill would leave for ever.
        temporary.write_bytes(save({name: tensor.contiguous() for name, tensor in tensors.items()}, header))


def load_tensors(path: Path, kind: str) -> "tuple[dict[str, Tensor], JSON]":
    """Returns the tensors and the metadata of a file written by `save_tensors`.

    Raises:
        UserError: The file is missing, damaged, of another kind, or of a later version.
    """
    if not path.is_file():
        raise UserError(f"there is no {kind} at {path}; check the path")
    try:
        with safe_open(path, framework="pt") as file:
            header = file.metadata() or {}
            if header.get("neuroglot") != kind:
                found = header.get("neuroglot", "a safetensors file of another program")
                raise UserError(f"{path} is {found if found.isprintable() else ascii(found)}, expected {kind}")
            metadata = json.loads(header["metadata"])
            if not isinstance(metadata, dict):
                raise ValueError("its metadata is no JSON object")
            require_no_later_version(path, metadata.get("version"))
            return {name: file.get_tensor(name) for name in file.keys()}, metadata  # noqa: SIM118 - no mapping
    except UNREADABLE as error:
        raise UserError(
            f"{path} is not a readable {kind}: {one_line(error)}; the file is damaged or cut short, make it again"
        ) from error


def file_kind(path: Path) -> str | None:
    """Returns what a file of `save_tensors` holds; None where it is another, or cannot be read."""
    try:
        with safe_open(path, framework="pt") as file:
            return (file.metadata() or {}).get("neuroglot")
    except UNREADABLE:
        return None


def save_lists(path: Path, lists: "list[list[Tensor]]") -> None:
    """Writes lists of tensors as torch saves them, atomically: the form that other programs expect of masks."""
    import torch

    with replacing(path) as temporary:
        torch.save(lists, temporary)


def save_checkpoint(path: Path, checkpoint: JSON) -> None:
    """Writes a checkpoint, atomically: a killed save leaves the previous file whole."""
    import torch

    with replacing(path) as temporary, temporary.open("wb") as file:
        torch.save(checkpoint, file)


def load_checkpoint(path: Path, is_mapped: bool = False) -> JSON:
    """Returns a checkpoint, its tensors on the CPU; ``is_mapped`` reads those only when they are looked at.

    Raises:
        UserError: The file is missing, damaged, of a later version, or holds more than tensors and plain data.
    """
    if not path.is_file():
        raise UserError(f"there is no checkpoint at {path}; check --ckpt_path or --resume")
    import torch

    try:
        checkpoint = torch.load(path, map_location="cpu", weights_only=True, mmap=is_mapped)
        _require_as_written(path)
    except UNREADABLE as error:
        if refused := refused_object(error):
            raise UserError(
                f"checkpoint {path} holds a Python object ({refused}), which could run code and is not loaded; "
                "give a checkpoint of tensors and plain data, or --resume never"
            ) from error
        reason = one_line(error)[:120]
        raise UserError(f"checkpoint {path} is damaged ({reason}); give another one, or --resume never") from error
    if not isinstance(checkpoint, dict):
        raise UserError(f"{path} is no checkpoint: it holds a {type(checkpoint).__name__}; give another one")
    made = checkpoint.get("neuroglot")
    require_no_later_version(path, made.get("version") if isinstance(made, dict) else None)
    return checkpoint


_as_written: set[tuple[Path, int, int, int]] = set()
"""Checkpoints that this process has found whole: each is read through once, not whenever it is opened."""


def _require_as_written(path: Path) -> None:
    """Raises `ValueError` where a byte of a checkpoint changed; torch writes checksums, but does not look at them."""
    found = path.stat()
    state = path.absolute(), found.st_ino, found.st_size, found.st_mtime_ns
    if state in _as_written or not zipfile.is_zipfile(path):
        return  # of the older form there are no checksums
    with zipfile.ZipFile(path) as archive:
        if damaged := archive.testzip():
            raise ValueError(f"{damaged.rpartition('/')[2]} in it is not what was written: the checksum differs")
    _as_written.add(state)


def refused_object(error: BaseException) -> str | None:
    """Returns the name of what torch refused to unpickle because it could run code; None for any other error."""
    found = re.search(r"GLOBAL ([\w.]+)|[Uu]nsupported (?:class|global) ([\w.]+)", str(error))
    return found and (found[1] or found[2])


def digest(*parts: object) -> str:
    """Returns a 16-digit SHA-256 over ``parts`` (tensors by their bytes, the rest as JSON)."""
    sha, torch = hashlib.sha256(), sys.modules.get("torch")  # without it nothing is a tensor
    for part in parts:
        if torch is not None and isinstance(part, torch.Tensor):
            sha.update(part.detach().to("cpu").contiguous().flatten().view(torch.uint8).numpy().tobytes())
        else:
            sha.update(json.dumps(part, sort_keys=True).encode())
    return sha.hexdigest()[:16]
