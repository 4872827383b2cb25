"""The folders that a run writes to: whether it may, and whether processes can keep each other out of a file."""

import fcntl
import os
import tempfile
from pathlib import Path

import psutil
from filelock import FileLock, SoftFileLock
from huggingface_hub import constants

from lightning_app.doctor.finding import Finding, Findings, ok, warning, wrong
from lightning_app.doctor.setup import Setup


def check_folders(setup: Setup) -> Findings:
    """Runs, caches and what the hub gives can be written where they are to be; creates no folder."""
    yield _look_at("run folder", "--run_dir", setup.settings.run_dir)
    yield _look_at("token cache", "--data.cache_dir", setup.settings.data.cache_dir)
    if setup.asks_hub:
        yield _look_at("hub cache", "HF_HOME", constants.HF_HUB_CACHE)
    else:
        yield ok("hub cache", f"{constants.HF_HUB_CACHE}: nothing here needs it")


def _look_at(about: str, key: str, name: str) -> Finding:
    path = Path(name).absolute()
    try:
        # Of a folder that does not exist yet, the one that it would be made in.
        there = next(folder for folder in (path, *path.parents) if os.path.lexists(folder))
        if not there.is_dir():
            return wrong(about, f"{there} is no folder", f"set {key} to a folder")
        with tempfile.TemporaryDirectory(dir=there, prefix=".neuroglot-") as own:
            return _look_at_locks(about, key, path, Path(own) / "lock")
    except OSError as error:
        said = f"{path} cannot be written to ({error.strerror})"
        if path.is_dir() and about != "run folder":
            return warning(about, f"{said}: what is cached serves, nothing is added", f"set {key} to another folder")
        return wrong(about, said, f"set {key} to another folder")


def _look_at_locks(about: str, key: str, path: Path, file: Path) -> Finding:
    """Looks whether a file that is locked is kept from others; a second opening of it is another one to the system."""
    kind = file_system(path)
    where = f"{path}{f' ({kind})' if kind else ''}"
    lock, mend = FileLock(file), f"set {key} to a folder on another disk"
    try:
        with lock, file.open("rb") as other:
            if isinstance(lock, SoftFileLock):
                said = f"{where} has no locks of the system; a run that is killed leaves its lock behind"
                return warning(about, said, mend)
            fcntl.flock(other, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return ok(about, f"{where}: can be written to, and locks hold")
    except (OSError, NotImplementedError) as error:
        said = f"{where} has no file locks ({error}), so two processes could fill one cache"
        return wrong(about, said, mend)
    return wrong(about, f"{where} does not keep to file locks, so two processes could fill one cache", mend)


def file_system(name: str | Path) -> str:
    """Returns the kind of file system that a folder is on, ``ext4`` or ``nfs4``; nothing where that is not known."""
    path = Path(name).absolute()
    mounts = {Path(part.mountpoint): part.fstype for part in psutil.disk_partitions(all=True)}
    return next((mounts[folder] for folder in (path, *path.parents) if folder in mounts), "")
