"""A file or folder that is there whole or not at all: written beside its target, synced and renamed."""

import contextlib
import os
import shutil
import tempfile
from collections.abc import Iterator
from pathlib import Path

from lightning_app.errors import UserError
from lightning_app.files import disk_full, is_disk_full, is_running, sync
from lightning_app.progress import short


def require_new(out: Path, key: str = "--out") -> None:
    """Raises `UserError` where something is at ``out``, which ``key`` names, or nothing can be written there."""
    if os.path.lexists(out):
        raise UserError(f"{out} exists; choose another {key}, or remove it")
    there = next(place for place in out.absolute().parents if os.path.lexists(place))
    try:  # permissions do not tell: of root, or where a file system is for reading only
        Path(tempfile.mkdtemp(prefix=".neuroglot-", dir=there)).rmdir()
    except OSError as error:
        raise UserError(f"{out} cannot be written: {error.strerror} ({there}); choose another {key}") from error


@contextlib.contextmanager
def new_whole(out: Path, predicted_bytes: int = 0, key: str = "--out") -> Iterator[Path]:
    """Yields a path beside ``out`` to write a file or folder at, which becomes ``out`` if the block succeeds.

    Raises:
        UserError: ``out`` exists, cannot be written, or the disk is too small; nothing is left then.
    """
    require_new(out, key)
    temporary = out.with_name(f".{out.name}.{os.getpid()}.partial{out.suffix}")
    try:
        out.parent.mkdir(parents=True, exist_ok=True)
        _sweep_leftovers(out)
        _require_room(out, predicted_bytes, key)
        yield temporary
        for path in [*temporary.rglob("*"), temporary]:
            sync(path)
        temporary.rename(out)
        sync(out.parent)
    except OSError as error:
        if is_disk_full(error):
            raise disk_full(out) from error
        if isinstance(error, (PermissionError, NotADirectoryError, FileExistsError)):
            raise UserError(f"{out} cannot be written: {error.strerror}; choose another {key}") from error
        raise
    finally:
        _remove(temporary)


def _sweep_leftovers(out: Path) -> None:
    """Removes what a killed process left of ``out``, and of what it wrote there by `replacing`."""
    own = f".{out.name}."
    for leftover in [*out.parent.glob(f"{own}*.partial{out.suffix}"), *out.parent.glob(f".{own}*.partial")]:
        number = leftover.name.lstrip(".").removeprefix(own.lstrip(".")).split(".")[0]
        if number.isdigit() and not is_running(int(number)):
            _remove(leftover)


def _require_room(out: Path, predicted_bytes: int, key: str) -> None:
    free = shutil.disk_usage(out.parent).free
    if predicted_bytes > free:
        raise UserError(
            f"{out} takes {short(predicted_bytes)}B and {short(free)}B are free there; free some space, or choose "
            f"another {key}"
        )


def _remove(path: Path) -> None:
    if path.is_dir() and not path.is_symlink():
        shutil.rmtree(path)
    elif os.path.lexists(path):
        path.unlink()
