"""The run folder: one folder per configuration, so that the same command goes on where it stopped."""

import contextlib
import fcntl
import json
import os
import platform
import re
import shutil
import time
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path

from filelock import FileLock, Timeout

from lightning_app.errors import UserError
from lightning_app.files import JSON, UNREADABLE, digest, is_running, one_line
from lightning_app.identity import short_name
from lightning_app.peers import with_cleanup

_PLACE_KEYS = {"data": ("cache_dir", "num_workers", "prompts", "validation_batch_size"), "model": ("subnetwork",)}
_TRAINER_KEYS = (
    "precision", "accumulate_grad_batches", "gradient_clip_val", "gradient_clip_algorithm", "max_steps",
    "validate_every", "limit_train_batches", "limit_val_batches", "fast_dev_run",
)  # fmt: skip


class RunFolder:
    """Every path in the folder of a run, and what they say of it. The folder may not exist yet."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.config = path / "config.yaml"  # the resolved configuration, usable as --config
        self.record_file = path / "run.json"  # versions, identities and state
        self.metrics = path / "metrics.jsonl"  # one line per logged step; tensorboard/ has the same
        self.subnetworks = path / "subnetwork.safetensors"  # the pool that the trained neurons were selected from
        self.checkpoints = path / "checkpoints"  # best-step...-loss....ckpt (or least-rise-...) and last.ckpt
        self.last_checkpoint = self.checkpoints / "last.ckpt"  # what a killed run goes on from
        self.summary = path / "summary.md"  # what changed
        self.diverged = path / "diverged.json"  # what was being read where a run diverged
        self.scaled = path / "scaled.json"  # losses of the best checkpoint with its change at other scales
        self.delta = path / "delta.safetensors"  # what training changed, as its users load it
        self.evaluation = path / "evaluation.json"  # what the adapted model can do, beside its base
        self.scores = path / "evaluation"  # item by item, a file a task
        self.samples = path / "samples.jsonl"  # how base and adapted model continue sentences
        self.analysis = path / "analysis"  # what analyze has made
        self.report = path / "report.html"  # the run on a page
        self.log = path / "log.txt"  # what a run that a comparison started has said
        self.given_config = path / "configuration.yaml"  # what a comparison gave it to run
        self.predictions = path / "predictions.jsonl"  # what predict continued

    def __str__(self) -> str:
        return str(self.path)

    def result(self, kind: str) -> Path:
        """Returns where a result of its own form is: ``model``, a transformers folder, or ``adapter``, PEFT's."""
        return self.path / kind

    @classmethod
    def of(cls, checkpoint: Path) -> "RunFolder":
        """Returns the folder of the run that a checkpoint belongs to."""
        return cls(checkpoint.parent.parent)

    @classmethod
    def newest(cls, root: Path) -> "RunFolder":
        """Returns the newest folder under ``root`` with a best checkpoint.

        Raises:
            UserError: There is none.
        """
        folders = [folder for path in root.glob("*/config.yaml") if (folder := cls(path.parent)).best_checkpoint()]
        if not folders:
            raise UserError(
                f"there is no run with a checkpoint under {root}/; train one with: python main.py fit --config "
                "cy.yaml, or measure a base with: python main.py validate --config cy.yaml"
            )
        return max(folders, key=lambda folder: folder.record_file.stat().st_mtime)

    def has_begun(self) -> bool:
        """Tells whether the folder is one of a run, however little of it was written."""
        marks = (self.config, self.record_file, self.metrics, self.given_config, self.checkpoints)
        return any(mark.exists() for mark in (*marks, self.path / "tensorboard"))

    def best_checkpoint(self) -> Path | None:
        """Returns the best checkpoint: the newest, because one is only written where it is better than all before.

        Where no validation stayed within ``--trainer.max_retention_loss``, it is the one with the smallest worst rise.
        """
        found = [(path.name.startswith("best-"), path.stat().st_mtime_ns, path) for path in self.best_checkpoints()]
        return max(found)[2] if found else None

    def best_checkpoints(self) -> list[Path]:
        """Returns it, and beside it what a kill left of those before."""
        return [*self.checkpoints.glob("best-*.ckpt"), *self.checkpoints.glob("least-rise-*.ckpt")]

    def checkpoints_by_age(self) -> list[Path]:
        """Returns the checkpoints that a run can go on from: the last one, then the best, if it has them."""
        best = self.best_checkpoint()
        return [path for path in (self.last_checkpoint, best) if path is not None and path.is_file()]

    def record(self) -> JSON:
        """Returns what run.json says; nothing where there is none.

        Raises:
            UserError: It is damaged.
        """
        return _read_json(self.record_file) if self.record_file.is_file() else {}

    def read_metrics(self) -> list[JSON]:
        """Returns the rows of metrics.jsonl; a line that a killed run left unfinished is skipped."""
        rows = []
        lines = self.metrics.read_text(encoding="utf-8", errors="replace").split("\n") if self.metrics.is_file() else []
        for line in lines:
            with contextlib.suppress(ValueError):
                row = json.loads(line)
                if isinstance(row, dict) and isinstance(row.get("step"), int):
                    rows.append(row)
        return rows

    def read_scaled(self) -> JSON:
        """Returns what scaled.json says; raises `UserError` where it is damaged."""
        return _read_json(self.scaled)

    def read_evaluation(self) -> JSON:
        """Returns what evaluation.json says; nothing where there is none; raises `UserError` where it is damaged."""
        return _read_json(self.evaluation) if self.evaluation.is_file() else {}

    def text_revision(self, data_set: str) -> str | None:
        """Returns the commit of a data set that the run read, which a resumed run stays at; None where it is new.

        Raises:
            UserError: The record is damaged.
        """
        try:
            texts = self.record().get("text", {}).values()
            return next((str(text["revision"]) for text in texts if text["data_set"] == data_set), None)
        except (AttributeError, KeyError, TypeError) as error:
            raise UserError(f"{self.record_file} does not say what text was read; remove it to begin anew") from error


@dataclass(frozen=True)
class Run:
    """Where a run lives and where it goes on from.

    Attributes:
        folder: Its folder.
        configuration: Digest of everything that decides the result.
        checkpoint: What to go on from, or None.
        is_complete: Whether there is nothing left to do.
        notes: Lines for people on how it goes on.
        settings: The keys that decide the result, as ``model.lr``; a checkpoint says with which it was made.
    """

    folder: RunFolder
    configuration: str
    checkpoint: Path | None = None
    is_complete: bool = False
    notes: tuple[str, ...] = ()
    settings: JSON = field(default_factory=dict)

    @property
    def subnetworks(self) -> str | None:
        """The pool's neurons that a resumed run takes over: those beside its checkpoint, or of its own folder."""
        places = [RunFolder.of(self.checkpoint).subnetworks, self.folder.subnetworks] if self.checkpoint else []
        return next((str(path) for path in places if path.is_file()), None)


def is_first_process() -> bool:
    """Tells, before there is a Trainer to ask, whether this is the first of the processes of a run."""
    return all(os.environ.get(name, "0") == "0" for name in ("LOCAL_RANK", "SLURM_PROCID", "RANK"))


@contextlib.contextmanager
def occupied(folder: RunFolder) -> Iterator[None]:
    """Keeps a run to this process while the block lasts; the system lets go of it when the process dies.

    A start that fails before its configuration was written leaves nothing behind.

    Raises:
        UserError: Another process has it; it is named with its host and since when.
    """
    held = _note(folder)
    new_roots = [root for root in (held.parent, *held.parent.parents) if not root.exists()]
    held.parent.mkdir(parents=True, exist_ok=True)
    lock = FileLock(held.with_suffix(".lock"))
    try:
        lock.acquire(timeout=0)
    except Timeout as error:
        by = held.read_text(encoding="utf-8") if held.is_file() else "another process"
        raise UserError(f"{folder} is being trained already, by {by}; wait for it, or choose another --name") from error
    is_new = not folder.path.exists()

    def let_go() -> None:
        if is_new and not folder.config.is_file():
            shutil.rmtree(folder.path, ignore_errors=True)
            Path(lock.lock_file).unlink(missing_ok=True)  # while it is held: who waits for it looks for a new one
        held.unlink(missing_ok=True)
        lock.release()
        with contextlib.suppress(OSError):  # something is in it
            for root in new_roots:
                root.rmdir()

    with with_cleanup(let_go):
        since = time.strftime("%Y-%m-%d %H:%M:%S")
        held.write_text(f"process {os.getpid()} on {platform.node()} since {since}", encoding="utf-8")
        yield


def _note(folder: RunFolder) -> Path:
    """Returns the file that says who trains a run: beside its folder, which is the run's alone and may not exist."""
    return folder.path.with_name(f".{folder.path.name}.running")


def occupant(folder: RunFolder) -> str | None:
    """Returns which process trains a run now, on which host and since when; None where none does."""
    note = _note(folder)
    try:
        said = " ".join(note.read_text(encoding="utf-8", errors="replace").split())
        lock = note.with_suffix(".lock").open("rb")  # for reading only: the folder may be somebody else's
    except OSError:
        return None
    with lock:
        known = re.match(r"process (\d+) on (.+) since ", said)
        if known and known[2] == platform.node() and not is_running(int(known[1])):
            return None  # it was killed
        try:
            # Held for a moment, and only where a process of that number lives or its host is another one.
            fcntl.flock(lock, fcntl.LOCK_SH | fcntl.LOCK_NB)
        except OSError:
            return said  # held, or on a file system without locks, where the note is all there is
    return None


def occupied_folders(root: Path) -> list[Path]:
    """Returns the folders under ``root`` of runs that were begun and have written nothing yet, or were killed then."""
    notes = [note.name.removeprefix(".").removesuffix(".running") for note in root.glob(".*.running")]
    return [root / name for name in notes if not (root / name).exists()]


def configuration_digest(config: JSON) -> str:
    """Returns a digest over the keys that decide a run's result: not where files are kept or how many devices.

    Keys that are off (false, null, 0, empty) are left out, so that a key which a later version adds, off, finds the
    runs of an earlier one.
    """
    return digest(_deciding(config))


def deciding_settings(config: JSON) -> JSON:
    """Returns the keys that the digest is over, as ``model.lr``."""
    flat: JSON = {}
    for key, value in _deciding(config).items():
        flat |= {f"{key}.{name}": part for name, part in value.items()} if isinstance(value, dict) else {key: value}
    return flat


def _deciding(config: JSON) -> JSON:
    parts: JSON = {"seed": config.get("seed_everything"), "language": config.get("language")}
    for group in ("model", "data", "profiling"):
        places = _PLACE_KEYS.get(group, ())
        parts[group] = {key: value for key, value in config[group].items() if value and key not in places}
    if config["model"].get("subnetwork"):
        parts["subnetwork"] = str(config["model"]["subnetwork"])
    trainer = config["trainer"]
    parts["trainer"] = {key: trainer.get(key) for key in _TRAINER_KEYS if trainer.get(key)}
    if (limit := trainer.get("max_retention_loss")) is not None:  # 0 is a limit, too
        parts["trainer"]["max_retention_loss"] = limit
    return parts


def _read_json(path: Path) -> JSON:
    try:
        content = json.loads(path.read_bytes())
        if not isinstance(content, dict):
            raise ValueError("it holds no JSON object")
    except UNREADABLE as error:
        raise UserError(f"{path} is damaged ({one_line(error)}); delete it, or choose another --name") from error
    return content


def run_name(config: JSON) -> str:
    """Returns the readable part of a run folder's name: language and base."""
    model, architecture = config["model"], config["model"].get("architecture") or {}
    base = short_name(model["base"]) if model.get("base") else f"new-{architecture.get('model_type', 'model')}"
    what = config.get("language") or ("base" if architecture else model["method"])
    return re.sub(r"[^\w.-]+", "_", f"{what}-{base}")
