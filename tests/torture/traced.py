"""A run of the program in a forked child, killed at a moment: at a change of its folder, or after so many seconds.

Libraries are imported once, by the parent; a child begins where a fresh process has finished importing. Nothing in the
program knows of this: the child's own `os` functions are wrapped before it begins.
"""

import importlib
import json
import os
import signal
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

# Where a run is, by what it is in.
PHASES = {
    "tokenizer": [("datamodules.corpus", "train_tokenizer")],
    "caching": [("datamodules.token_cache", "_Filler.run")],
    "profiling": [("lightning_app.profiling.profiler", "Profiler.count")],
    "training": [("lightning.pytorch.loops.training_epoch_loop", "_TrainingEpochLoop.run")],
    "validating": [("lightning.pytorch.loops.evaluation_loop", "_EvaluationLoop.run")],
    "saving": [("lightning_app.training.trainer", "AtomicCheckpointIO.save_checkpoint")],
    "result": [("callbacks.result", "SaveResult.on_fit_end")],
    "record": [("callbacks.run_record", f"RunRecord.on_{hook}") for hook in ("fit_start", "train_end", "fit_end")],
    "a run of a comparison": [("lightning_app.cli.compare", "_fit")],
    "comparing": [("lightning_app.cli.compare", "_report")],
    "exporting": [("lightning_app.cli.export", "write")],
    "verifying": [("lightning_app.export.exporting", "verify")],
    "applying": [("lightning_app.export.applied", "Applied.write")],
}  # fmt: skip
STARTING = "starting"  # reading the configuration, loading base and tokenizer, and between the others
# What changes the folder; a file that is written through is complete, and not yet in its place.
WRITTEN = "fsync"
CHANGES = ("replace", "rename", "link", "symlink", "unlink", "remove", "rmdir", "mkdir", "truncate", WRITTEN)
_TO = ("replace", "rename", "link", "symlink")  # their second path is the one that changes
_MAY_FIND_NOTHING_TO_DO = ("mkdir", "unlink", "remove")


@dataclass(frozen=True)
class Moment:
    """When a child is killed: before or after its ``change``-th change, from 0 on, or ``seconds`` after its start."""

    change: int | None = None
    is_after: bool = False
    seconds: float | None = None


@dataclass
class Attempt:
    """What came of a child.

    Attributes:
        code: Its exit code, -9 where it was killed.
        seconds: Its life.
        phases: When it entered which phase.
        changes: Names of changes with their files, in order.
        output: What it said.
    """

    code: int
    seconds: float
    output: str
    phases: list[tuple[float, str]] = field(default_factory=list)
    changes: list[tuple[str, str]] = field(default_factory=list)

    @property
    def phase(self) -> str:
        """Where it was at its end."""
        return self.phases[-1][1] if self.phases else STARTING


def attempt(arguments: list[str], folder: Path, log: Path, moment: Moment | None = None) -> Attempt:
    """Runs the program in ``folder`` until it ends, or until ``moment``.

    Args:
        arguments: Of the command line.
        folder: Working directory; changes in it are counted.
        log: Where the child writes what it says and, under other names, what it does and which modules it imported.
        moment: When it is killed; None lets it end.
    """
    started, trace = time.monotonic(), log.with_suffix(".trace")
    for path in (log, trace):
        path.touch()  # a child may be killed before it opens them
    sys.stdout.flush()
    child = os.fork()
    if child == 0:
        _run(arguments, folder, log, trace, moment or Moment(), started)
    status = _wait(child, None if moment is None or moment.seconds is None else started + moment.seconds)
    found = Attempt(os.waitstatus_to_exitcode(status), time.monotonic() - started, log.read_text(errors="replace"))
    for line in trace.read_text().split("\n")[:-1]:
        kind, *what = json.loads(line)
        (found.phases if kind == "phase" else found.changes).append(tuple(what))
    return found


def _wait(child: int, until: float | None) -> int:
    """Returns the status of a child, which is killed at ``until``."""
    while until is not None and time.monotonic() < until:
        done, status = os.waitpid(child, os.WNOHANG)
        if done:
            return status
        time.sleep(min(0.005, max(0.0, until - time.monotonic())))
    if until is not None:
        os.kill(child, signal.SIGKILL)
    return os.waitpid(child, 0)[1]


def _run(arguments: list[str], folder: Path, log: Path, trace: Path, moment: Moment, started: float) -> None:
    """Is the child; never returns."""
    code = 70
    try:
        os.chdir(folder)
        output = os.open(log, os.O_WRONLY | os.O_CREAT | os.O_TRUNC)
        os.dup2(output, 1)
        os.dup2(output, 2)
        _Tracer(folder, trace, moment, started).install()
        sys.argv[:] = ["main.py"]
        from lightning_app.cli import main

        code = main(arguments)
    except SystemExit as stop:
        code = stop.code if isinstance(stop.code, int) else 1
    finally:
        sys.stdout.flush()
        sys.stderr.flush()
        log.with_suffix(".modules").write_text("\n".join(sys.modules))
        os._exit(code)


class _Tracer:
    """Writes down phases and changes as they come, and kills this process at its moment."""

    def __init__(self, folder: Path, trace: Path, moment: Moment, started: float) -> None:
        self._folder, self._moment, self._started = f"{folder.resolve()}/", moment, started
        self._file = os.open(trace, os.O_WRONLY | os.O_CREAT | os.O_TRUNC)
        self._seen, self._phases = 0, [STARTING]

    def install(self) -> None:
        """Wraps the phases and what changes a folder."""
        self._enter([STARTING])
        for phase, places in PHASES.items():
            for module, name in places:
                *owners, last = name.split(".")
                owner: Any = importlib.import_module(module)
                for each in owners:
                    owner = getattr(owner, each)
                setattr(owner, last, self._phased(phase, getattr(owner, last)))
        for name in CHANGES:
            setattr(os, name, self._counted(name, getattr(os, name)))

    def _write(self, *what: object) -> None:
        os.write(self._file, f"{json.dumps(what)}\n".encode())

    def _phased(self, phase: str, function: Callable[..., Any]) -> Callable[..., Any]:
        def run(*args: Any, **keys: Any) -> Any:
            self._enter([*self._phases, phase])
            try:
                return function(*args, **keys)
            finally:
                self._enter(self._phases[:-1])

        return run

    def _enter(self, phases: list[str]) -> None:
        self._phases = phases
        self._write("phase", time.monotonic() - self._started, phases[-1])

    def _counted(self, name: str, function: Callable[..., Any]) -> Callable[..., Any]:
        def change(*args: Any, **keys: Any) -> Any:
            path = self._inside(args[1] if name in _TO else args[0], keys.get("dir_fd"))
            if path is None or self._does_nothing(name, path):
                return function(*args, **keys)
            number, self._seen = self._seen, self._seen + 1
            self._write("change", name, path)
            self._die(number, is_after=False)
            result = function(*args, **keys)
            self._die(number, is_after=True)
            return result

        return change

    def _inside(self, path: Any, folder_descriptor: int | None) -> str | None:
        """Returns where in the folder a change is made; None outside it and for locks, which hold nothing."""
        if isinstance(path, int):
            path = os.readlink(f"/proc/self/fd/{path}")
        if folder_descriptor is not None:
            path = os.path.join(os.readlink(f"/proc/self/fd/{folder_descriptor}"), path)
        whole = f"{os.path.abspath(os.fspath(path))}"
        is_counted = whole.startswith(self._folder) and not whole.endswith(".lock")
        return whole.removeprefix(self._folder) if is_counted else None

    def _does_nothing(self, name: str, path: str) -> bool:
        """Tells whether a change leaves the folder as it is."""
        if name == WRITTEN:
            return os.path.isdir(path)
        return name in _MAY_FIND_NOTHING_TO_DO and (name == "mkdir") == os.path.lexists(path)

    def _die(self, number: int, is_after: bool) -> None:
        if self._moment.change == number and self._moment.is_after == is_after:
            os.kill(os.getpid(), signal.SIGKILL)
