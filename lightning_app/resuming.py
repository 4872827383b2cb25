"""What a run goes on from: its newest checkpoint that can be read, with the settings that this was made with."""

import contextlib
import os
from collections.abc import Iterable
from dataclasses import replace
from pathlib import Path

import yaml

from lightning_app.errors import UserError
from lightning_app.files import JSON, UNREADABLE, load_checkpoint, require_folder
from lightning_app.run import Run, RunFolder, deciding_settings

_FOLDER_FROM_LAUNCHER = "NEUROGLOT_RUN_FOLDER"
_RECORD = "RunRecord"  # the callback that writes the settings into a checkpoint
_NAMES = {"seed": "seed_everything", "subnetwork": "model.subnetwork"}
_GROUPS = ("trainer", "model", "data", "profiling")
# Which step is the best can hang on the one, rounding on the others; the neurons of a file are compared by themselves.
_MAY_CHANGE = (
    "trainer.validate_every", "model.activation_checkpointing", "model.compile", "model.subnetwork",
    "profiling.batch_size",
)  # fmt: skip
_LENGTH = "trainer.max_steps"
_UNREADABLE = (*UNREADABLE, yaml.YAMLError, UserError)
"""What a configuration or a record raises that is none: of a run that nobody has asked for."""


def choose_run(
    root: Path, name: str, configuration: str, resume: str, is_named: bool, settings: JSON | None = None
) -> Run:
    """Returns the folder of a run and what it goes on from.

    Args:
        root: Folder of all runs.
        name: Folder name, from the configuration or the user.
        configuration: Digest of the configuration.
        resume: ``auto`` goes on where there is a checkpoint, ``never`` starts anew in a new folder, a path goes on
            from that checkpoint.
        is_named: Whether the user gave the name; otherwise the digest is part of it.
        settings: The keys that decide the result.

    Raises:
        UserError: What there is was made with other settings that decide the result, or none of it can be read.
    """
    if Path(name).name != name or not name.isprintable() or name in ("", ".", ".."):
        raise UserError(f"--name is '{name}'; expected the name of a folder in {root}, without / in it; see --run_dir")
    require_folder(root, "--run_dir")
    path = root / (name if is_named else f"{name}-{configuration[:6]}")
    if resume == "never":
        path = _fresh(path)
        if "SLURM_STEP_ID" in os.environ and int(os.environ.get("SLURM_RESTART_COUNT", "0")):
            resume = "auto"  # the scheduler started this job again: its own run goes on
    folder, now = RunFolder(path), _by_key(settings or {})
    if resume == "never":
        return Run(folder, configuration, settings=now)
    if resume != "auto" and not Path(resume).is_file():
        raise UserError(f"--resume is {resume}; expected never, auto, or the path of a checkpoint")
    if resume == "auto" and not (folder.checkpoints.is_dir() and folder.checkpoints_by_age()):
        folder.record()  # which says so where it is damaged
        return Run(folder, configuration, notes=() if is_named else _beside(root, name, now), settings=now)
    return _go_on(Run(folder, configuration, settings=now), None if resume == "auto" else Path(resume))


def _go_on(run: Run, given: Path | None) -> Run:
    """Returns a run with what it goes on from: a checkpoint that is given, or the newest of its folder."""
    folder, record, now = run.folder, run.folder.record(), run.settings
    is_as_before = record.get("configuration", run.configuration) == run.configuration
    if given is None and is_as_before and _is_complete(folder, record):
        return replace(run, checkpoint=folder.last_checkpoint, is_complete=True)
    checkpoint, notes = _newest_readable(folder) if given is None else (given, [])
    if given is not None or not is_as_before:
        before = _by_key(_settings_of(checkpoint))
        if not before and given is None:
            raise _other_configuration(folder, f"see {folder.config}")
        _require_same(before, now, given or folder)
        is_longer = before.get(_LENGTH) != now.get(_LENGTH)
        if given is None and not is_longer and _is_complete(folder, record):
            return replace(run, checkpoint=checkpoint, is_complete=True)
    return replace(run, checkpoint=checkpoint, notes=tuple(notes))


def _beside(root: Path, name: str, now: JSON) -> tuple[str, ...]:
    """Returns a line on the newest run of a name that has not ended, in another folder because of other settings."""
    found: list[tuple[float, RunFolder, list[str]]] = []
    for path in root.glob(f"{name}-??????"):
        folder = RunFolder(path)
        with contextlib.suppress(*_UNREADABLE):
            if folder.last_checkpoint.is_file() and folder.record()["status"] != "complete":
                before = _by_key(deciding_settings(yaml.safe_load(folder.config.read_text(encoding="utf-8"))))
                found.append((path.stat().st_mtime, folder, _changes(before, now, set())))
    if not found:
        return ()
    _, other, changes = max(found, key=lambda each: each[0])
    line = f"{other} is another run, which is not complete: {', '.join(changes)}"
    return (f"{line}; --name {other.path.name} with the settings that decide its result goes on with that one",)


def changed_settings(config: JSON, folder: RunFolder, deciding: Iterable[str]) -> str:
    """Returns a line on the settings that a run goes on with and did not begin with; empty where there are none.

    Args:
        config: Of the command.
        folder: Of what is gone on from.
        deciding: Keys that decide the result, of which those that may change are named, too.
    """
    try:
        earlier = yaml.safe_load(folder.config.read_text(encoding="utf-8"))
        before, now = _flat(earlier), _flat(config)
    except _UNREADABLE:
        return ""  # the checkpoint says what matters
    fixed = set(_by_key(dict.fromkeys(deciding))) - {*_MAY_CHANGE, _LENGTH}
    changes = [
        f"--{key} {_shown(now.get(key))} (was {_shown(before.get(key))})"
        for key in sorted({*before, *now} - fixed)
        if (before.get(key) or None) != (now.get(key) or None)
    ]
    return f"other settings than before, which it may go on with: {', '.join(changes)}" if changes else ""


def _is_complete(folder: RunFolder, record: JSON) -> bool:
    """Tells whether a run has nothing left to do: what it ended with is all there."""
    files = [folder.path / name for name in record.get("files", [])]
    return record.get("status") == "complete" and all(file.exists() for file in files)


def _newest_readable(folder: RunFolder) -> tuple[Path, list[str]]:
    """Returns the last checkpoint, or the best one where a disk or a copy damaged the last, and lines that say so.

    There are no more than these two: one that is written is whole or not there, so that a spare one would only stand
    by for a failing disk, and takes three times the trained weights.

    Raises:
        UserError: None can be read; nothing is deleted.
    """
    damages = []
    for path in folder.checkpoints_by_age():
        try:
            step = load_checkpoint(path, is_mapped=True)["global_step"]
        except (UserError, KeyError) as error:
            damages.append(str(error).partition("; ")[0] if isinstance(error, UserError) else f"{path} lacks its step")
            continue
        return path, [f"{damage}; going on from the one before, {path.name}, at step {step}" for damage in damages]
    raise UserError(
        f"no checkpoint of {folder} can be read: {', '.join(damages)}; nothing was deleted: put a copy back, or "
        "--resume never starts anew beside it"
    )


def _settings_of(checkpoint: Path) -> JSON:
    callbacks = load_checkpoint(checkpoint, is_mapped=True).get("callbacks", {})
    return callbacks.get(_RECORD, {}).get("settings", {}) if isinstance(callbacks, dict) else {}


def _require_same(before: JSON, now: JSON, what: RunFolder | Path) -> None:
    """Raises `UserError` where settings that decide the result are others than those of a checkpoint."""
    if not before or not now:
        return  # of an earlier version, which did not write them
    has_schedule = "constant" not in (before.get("model.schedule"), now.get("model.schedule"))
    if changes := _changes(before, now, {*_MAY_CHANGE, *(() if has_schedule else (_LENGTH,))}):
        raise _other_configuration(what, ", ".join(changes))


def _changes(before: JSON, now: JSON, but_for: set[str]) -> list[str]:
    return [
        f"--{key} was {_shown(before.get(key))} and is {_shown(now.get(key))}"
        for key in sorted({*before, *now} - but_for)
        if before.get(key) != now.get(key)
    ]


def _other_configuration(what: RunFolder | Path, differs: str) -> UserError:
    holds = "holds a run" if isinstance(what, RunFolder) else "is a checkpoint of a run"
    return UserError(
        f"{what} {holds} with another configuration: {differs}; give that back, choose another --name, or --resume "
        "never to start anew beside it"
    )


def _by_key(settings: JSON) -> JSON:
    """Returns settings by their keys on the command line; lists and tuples alike."""
    named = {_NAMES.get(key, key): value for key, value in settings.items() if value is not None}
    return {key: list(value) if isinstance(value, tuple) else value for key, value in named.items()}


def _flat(config: JSON) -> JSON:
    grouped = {f"{group}.{key}": value for group in _GROUPS for key, value in (config.get(group) or {}).items()}
    return grouped | {key: value for key, value in config.items() if key not in (*_GROUPS, "run_dir", "name")}


def _shown(value: object) -> str:
    text = "not set" if value is None else str(value)
    return text if len(text) <= 60 else f"{text[:57]}..."


def _fresh(folder: Path) -> Path:
    """Returns the folder, or the first numbered one beside it that does not exist; the same on all processes."""
    if _FOLDER_FROM_LAUNCHER in os.environ:
        return Path(os.environ[_FOLDER_FROM_LAUNCHER])
    if (step := os.environ.get("SLURM_STEP_ID")) is not None:  # by srun; no look at the disk, where tasks may differ
        return folder.with_name(f"{folder.name}-job{os.environ['SLURM_JOB_ID']}" + (f".{step}" if step != "0" else ""))
    number, fresh = 2, folder
    while fresh.exists():
        fresh, number = folder.with_name(f"{folder.name}-{number}"), number + 1
    os.environ[_FOLDER_FROM_LAUNCHER] = str(fresh)  # processes that Lightning launches later inherit it
    return fresh
