"""The run folder: one folder per configuration, so that the same command goes on where it stopped.

config.yaml              the resolved configuration, usable as --config
run.json                 versions, identities and state
metrics.jsonl            one line per logged step; tensorboard/ has the same
subnetwork.safetensors   the neurons that are trained
checkpoints/             best-step...-loss....ckpt and last.ckpt
summary.md               what changed
model/                   the new base, under method full
"""

import json
import os
import re
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from lightning_app.errors import UserError
from lightning_app.files import digest
from lightning_app.identity import short_name

CONFIG, RECORD, SUBNETWORK = "config.yaml", "run.json", "subnetwork.safetensors"

_PLACE_KEYS = {"data": ("cache_dir", "num_workers", "prompts", "validation_batch_size"), "model": ("subnetwork",)}
_TRAINER_KEYS = (
    "precision", "accumulate_grad_batches", "gradient_clip_val", "gradient_clip_algorithm", "max_steps",
    "validate_every", "limit_train_batches", "limit_val_batches", "fast_dev_run",
)  # fmt: skip
_FOLDER_FROM_LAUNCHER = "NEUROGLOT_RUN_FOLDER"


@dataclass(frozen=True)
class Run:
    """Where a run lives and where it goes on from.

    Attributes:
        folder: The run folder; it may not exist yet.
        configuration: Digest of everything that decides the result.
        checkpoint: What to go on from, or None.
        is_complete: Whether there is nothing left to do.
    """

    folder: Path
    configuration: str
    checkpoint: Path | None = None
    is_complete: bool = False


def configuration_digest(config: dict[str, Any]) -> str:
    """Returns a digest over the keys that decide a run's result: not where files are kept or how many devices.

    Keys that are off (false, null, 0, empty) are left out, so that a key which a later version adds, off, finds the
    runs of an earlier one.
    """
    parts: dict[str, Any] = {"seed": config.get("seed_everything"), "language": config.get("language")}
    for group in ("model", "data", "profiling"):
        places = _PLACE_KEYS.get(group, ())
        parts[group] = {key: value for key, value in config[group].items() if value and key not in places}
    if config["model"].get("subnetwork"):
        parts["subnetwork"] = str(config["model"]["subnetwork"])
    parts["trainer"] = {key: config["trainer"].get(key) for key in _TRAINER_KEYS if config["trainer"].get(key)}
    return digest(parts)


def choose_run(root: Path, name: str, configuration: str, resume: str, is_named: bool) -> Run:
    """Returns the folder of a run and what it goes on from.

    Args:
        root: Folder of all runs.
        name: Folder name, from the configuration or the user.
        configuration: Digest of the configuration.
        resume: ``auto`` goes on where there is a checkpoint, ``never`` starts anew in a new folder, a path goes on
            from that checkpoint.
        is_named: Whether the user gave the name; otherwise the digest is part of it.

    Raises:
        UserError: The named folder holds a run with another configuration, or the checkpoint is missing.
    """
    folder = root / (name if is_named else f"{name}-{configuration[:6]}")
    if resume == "never":
        folder = _fresh(folder)
        if "SLURM_STEP_ID" in os.environ and int(os.environ.get("SLURM_RESTART_COUNT", "0")):
            resume = "auto"  # the scheduler started this job again: its own run goes on
    last = folder / "checkpoints" / "last.ckpt"
    if resume == "never":
        return Run(folder, configuration)
    if last.is_file() and (record := read_record(folder)) and record["configuration"] != configuration:
        raise UserError(
            f"{folder} holds a run with another configuration ({folder / CONFIG}); choose another --name, "
            "or --resume never to start anew beside it"
        )
    elif resume == "auto":
        complete = last.is_file() and (read_record(folder) or {}).get("status") == "complete"
        return Run(folder, configuration, last if last.is_file() else None, complete)
    elif not Path(resume).is_file():
        raise UserError(f"--resume is {resume}; expected never, auto, or the path of a checkpoint")
    return Run(folder, configuration, Path(resume))


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


def read_record(folder: Path) -> dict[str, Any] | None:
    """Returns what run.json says, or None where there is none.

    Raises:
        UserError: It is damaged.
    """
    path = folder / RECORD
    if not path.is_file():
        return None
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except (json.JSONDecodeError, UnicodeDecodeError) as error:
        raise UserError(f"{path} is damaged ({error}); delete it, or choose another --name") from error


def best_checkpoint(folder: Path) -> Path | None:
    """Returns the best checkpoint of a run: the one whose name has the lowest loss, the newest of equals."""
    found = []
    for path in (folder / "checkpoints").glob("best-*.ckpt"):
        if match := re.search(r"step(\d+)-loss([\d.]+)\.ckpt$", path.name):
            found.append((float(match[2]), -int(match[1]), path))
    return min(found)[2] if found else None


def newest_run(root: Path) -> Path:
    """Returns the newest folder under ``root`` with a best checkpoint.

    Raises:
        UserError: There is none.
    """
    folders = [path.parent for path in root.glob(f"*/{CONFIG}") if best_checkpoint(path.parent)]
    if not folders:
        raise UserError(
            f"there is no run with a checkpoint under {root}/; train one with: python main.py fit --config cy.yaml, "
            "or measure a base with: python main.py validate --config cy.yaml"
        )
    return max(folders, key=lambda folder: (folder / RECORD).stat().st_mtime)


def run_name(config: dict[str, Any]) -> str:
    """Returns the readable part of a run folder's name: language and base."""
    model, architecture = config["model"], config["model"].get("architecture") or {}
    base = short_name(model["base"]) if model.get("base") else f"new-{architecture.get('model_type', 'model')}"
    what = config.get("language") or ("base" if architecture else "full")
    return re.sub(r"[^\w.-]+", "_", f"{what}-{base}")
