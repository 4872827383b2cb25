"""Who is measured: an adapted model beside its base, or any model alone."""

import hashlib
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import torch

from lightning_app.adapted import Adaptation, AdaptedModel, as_trained, load_adapted
from lightning_app.errors import UserError
from lightning_app.files import JSON, load_checkpoint
from lightning_app.identity import ModelIdentity
from lightning_app.languages import Language, find_language
from lightning_app.model.base import on_device
from lightning_app.run import RunFolder

BASE, ADAPTED = "base", "adapted"


@dataclass(frozen=True)
class Contestant:
    """A model that is measured.

    Attributes:
        name: ``base`` or ``adapted``.
        open: Loads it onto its device.
        folder: Where its scores are kept: a file a task.
        identity: Of its weights; scores of other weights in the folder are measured again.
    """

    name: str
    open: Callable[[], AdaptedModel]
    folder: Path
    identity: str


@dataclass(frozen=True)
class Contest:
    """What is measured together.

    Attributes:
        contestants: The base first.
        languages: That the model was adapted to; none of a model alone.
        file: Where evaluation.json belongs.
        about: What evaluation.json says of the models.
    """

    contestants: list[Contestant]
    languages: list[Language]
    file: Path
    about: JSON


def find_contest(source: Path, cache_dir: Path, device: torch.device, limit: int | None = None) -> Contest:
    """Returns who is measured for a run folder (its best checkpoint), a checkpoint, or a model by hub name or folder.

    Scores of an adapted model are kept in its run's folder, those of a base in the cache, where every run on it finds
    them; those of a trial with a limit in files of their own.

    Raises:
        UserError: There is nothing there, or the run has no checkpoint yet.
    """
    run, trial = RunFolder(source), f"-first{limit}" if limit else ""
    is_run = run.record_file.is_file()
    if not is_run and source.suffix != ".ckpt":
        return _alone(source, cache_dir, device, trial)
    checkpoint = run.best_checkpoint() if is_run else source
    if checkpoint is None:
        raise UserError(f"{source} has no best checkpoint yet; the same fit command goes on with the run")
    if not checkpoint.is_file():
        raise UserError(f"there is no checkpoint at {checkpoint}; check --source")
    adaptation = Adaptation.read(load_checkpoint(checkpoint, is_mapped=True))
    folder = RunFolder.of(checkpoint)
    if not folder.record_file.is_file():  # the checkpoint alone, wherever it lies
        folder = RunFolder(checkpoint.with_suffix(""))
    with checkpoint.open("rb") as file:
        identity = hashlib.file_digest(file, "sha256").hexdigest()[:16]
    is_adapted = adaptation.architecture is None  # a base from scratch has none below it
    name = ADAPTED if is_adapted else BASE
    scores = folder.scores.with_name(f"{folder.scores.name}{trial}")

    def load(scale: float) -> AdaptedModel:
        return _on(device, load_adapted(checkpoint, scale=scale, load=as_trained(device)))

    contestants = [Contestant(name, lambda: load(1.0), scores, identity)]
    if is_adapted:
        # In the method's dtype and by its way of writing: what differs is the change, and nothing else.
        dtype = adaptation.method.weight_dtype(getattr(torch, adaptation.dtype))
        base = Contestant(
            BASE,
            lambda: load(0.0),
            _of_base(cache_dir, adaptation.base) / scores.name,
            f"{adaptation.base.fingerprint}-{dtype}{_beside(adaptation)}",
        )
        contestants.insert(0, base)
    languages = [find_language(code) for code in (adaptation.language or "").split(",") if code]
    about: JSON = {"base": adaptation.base.name, "checkpoint": checkpoint.name, "method": adaptation.method.name}
    return Contest(contestants, languages, scores.with_suffix(".json"), about | {"models": _identities(contestants)})


def _alone(source: Path, cache_dir: Path, device: torch.device, trial: str) -> Contest:
    if source.is_dir() and not (source / "config.json").is_file():
        raise UserError(f"{source} is neither a run (it has no run.json) nor a model (no config.json); check --source")
    if not source.exists() and (source.is_absolute() or len(source.parts) > 2 or str(source).startswith(".")):
        raise UserError(f"there is no run, checkpoint or model at {source}; check --source")
    model = load_adapted(source)
    folder = _of_base(cache_dir, model.base) / f"evaluation{trial}"
    contestant = Contestant(BASE, lambda: _on(device, model), folder, f"{model.base.fingerprint}-{model.model.dtype}")
    about = {"base": model.base.name, "models": _identities([contestant])}
    return Contest([contestant], [], folder.with_suffix(".json"), about)


def _beside(adaptation: Adaptation) -> str:
    """Returns what tells a quantised base from others: its neurons that are trained are as they were."""
    if adaptation.quantization is None:
        return ""
    return f"-{adaptation.quantization}-{adaptation.neurons.identity if adaptation.neurons is not None else ''}"


def _identities(contestants: Sequence[Contestant]) -> dict[str, str]:
    return {each.name: each.identity for each in contestants}


def _of_base(cache_dir: Path, base: ModelIdentity) -> Path:
    return cache_dir / "evaluations" / f"{base.short_name}-{base.fingerprint[:8]}"


def _on(device: torch.device, adapted: AdaptedModel) -> AdaptedModel:
    on_device(adapted.model, device)
    return adapted
