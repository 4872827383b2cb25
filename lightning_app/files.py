"""Files that are either whole or not there: written beside their target, synced and renamed."""

import contextlib
import errno
import hashlib
import json
import os
import shutil
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor

from lightning_app.errors import UserError

JSON = dict[str, Any]
"""A JSON object: plain data whose values only its reader knows."""

_TEMPORARY = ".partial"


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


def sync_folder(folder: Path) -> None:
    """Makes renames inside ``folder`` durable."""
    descriptor = os.open(folder, os.O_RDONLY)
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
    temporary = path.with_name(f".{path.name}.{os.getpid()}{_TEMPORARY}")
    try:
        yield temporary
        with temporary.open("rb") as written:
            os.fsync(written.fileno())
        temporary.chmod(ordinary_mode())
        temporary.replace(path)
        sync_folder(path.parent)
    except (OSError, SafetensorError, RuntimeError) as error:
        if is_disk_full(error):
            raise disk_full(path) from error
        raise
    finally:
        temporary.unlink(missing_ok=True)


def sweep_temporary_files(folder: Path) -> None:
    """Removes what a killed process left half-written in ``folder``."""
    for leftover in folder.glob(f".*{_TEMPORARY}"):
        leftover.unlink(missing_ok=True)


def write_text(path: Path, text: str) -> None:
    """Writes ``text`` to ``path`` atomically."""
    with replacing(path) as temporary:
        temporary.write_text(text, encoding="utf-8")


def write_json(path: Path, content: Mapping[str, object]) -> None:
    """Writes ``content`` to ``path`` as JSON, atomically."""
    write_text(path, json.dumps(content, indent=2, ensure_ascii=False) + "\n")


def save_tensors(path: Path, tensors: Mapping[str, Tensor], metadata: Mapping[str, object], kind: str) -> None:
    """Writes a safetensors file whose header says what it is (``kind``) and carries ``metadata`` as JSON."""
    header = {"neuroglot": kind, "metadata": json.dumps(dict(metadata), sort_keys=True)}
    with replacing(path) as temporary:
        save_file({name: tensor.contiguous() for name, tensor in tensors.items()}, temporary, metadata=header)


def load_tensors(path: Path, kind: str) -> tuple[dict[str, Tensor], JSON]:
    """Returns the tensors and the metadata of a file written by `save_tensors`.

    Raises:
        UserError: The file is missing, truncated, or of another kind.
    """
    if not path.is_file():
        raise UserError(f"there is no {kind} at {path}; check the path")
    try:
        with safe_open(path, framework="pt") as file:
            header = file.metadata() or {}
            if header.get("neuroglot") != kind:
                found = header.get("neuroglot", "a safetensors file of another program")
                raise UserError(f"{path} is {found}, expected {kind}")
            names = list(file.keys())
            return {name: file.get_tensor(name) for name in names}, json.loads(header["metadata"])
    except SafetensorError as error:
        raise UserError(
            f"{path} is not a readable {kind}: {error}; the file is damaged or cut short, make it again"
        ) from error


def save_checkpoint(path: Path, checkpoint: JSON) -> None:
    """Writes a checkpoint, atomically: a killed save leaves the previous file whole."""
    with replacing(path) as temporary, temporary.open("wb") as file:
        torch.save(checkpoint, file)


def load_checkpoint(path: Path, is_mapped: bool = False) -> JSON:
    """Returns a checkpoint, its tensors on the CPU; ``is_mapped`` reads those only when they are looked at.

    Raises:
        UserError: The file is missing or damaged.
    """
    if not path.is_file():
        raise UserError(f"there is no checkpoint at {path}; check --ckpt_path or --resume")
    try:
        return torch.load(path, map_location="cpu", weights_only=True, mmap=is_mapped)
    except (RuntimeError, EOFError, OSError, ValueError) as error:
        reason = str(error).split("\n")[0][:120]
        raise UserError(f"checkpoint {path} is damaged ({reason}); give another one, or --resume never") from error


def digest(*parts: object) -> str:
    """Returns a 16-digit SHA-256 over ``parts`` (tensors by their bytes, the rest as JSON)."""
    sha = hashlib.sha256()
    for part in parts:
        if isinstance(part, Tensor):
            sha.update(part.detach().to("cpu").contiguous().flatten().view(torch.uint8).numpy().tobytes())
        else:
            sha.update(json.dumps(part, sort_keys=True).encode())
    return sha.hexdigest()[:16]
