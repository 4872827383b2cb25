"""Experiment trackers that people have, beside TensorBoard: Weights & Biases, MLflow and trackio."""

import importlib.util
import json
import os
import uuid
from collections.abc import Mapping, Sequence
from typing import Any, Literal, get_args

from lightning.pytorch import Callback, LightningModule, Trainer
from lightning.pytorch.loggers import MLFlowLogger, WandbLogger
from lightning.pytorch.loggers.logger import Logger, rank_zero_experiment
from lightning.pytorch.utilities.rank_zero import rank_zero_only

from lightning_app.errors import UserError
from lightning_app.files import JSON, one_line, write_json
from lightning_app.run import RunFolder

Tracker = Literal["wandb", "mlflow", "trackio"]

_PROJECT = "neuroglot"


def read_trackers(names: str | None) -> list[Tracker]:
    """Returns the trackers of ``--track``, comma between.

    Raises:
        UserError: One is unknown, or not installed.
    """
    words = [word.strip() for word in (names or "").split(",") if word.strip()]
    for word in words:
        if word not in get_args(Tracker):
            raise UserError(f"--track names {word}; expected {', '.join(get_args(Tracker))}, or several, comma between")
        if importlib.util.find_spec(word) is None:
            raise UserError(f"--track names {word}, which is not installed: pip install {word}")
    return [name for name in get_args(Tracker) if name in words]


class Trackers(Callback):
    """Sends a run's metrics and settings to trackers; a run that goes on goes on in them, too.

    Where they are, their own variables say (WANDB_MODE, WANDB_PROJECT, MLFLOW_TRACKING_URI, ...).

    Args:
        names: Of the trackers.
        folder: Of the run.
        goes_on: Whether the run has begun before.
        settings: Of the run.

    Attributes:
        loggers: One for each, for the Trainer.

    Raises:
        UserError: A tracker cannot be used as it is installed.
    """

    def __init__(self, names: Sequence[Tracker], folder: RunFolder, goes_on: bool, settings: JSON) -> None:
        self._file, self._settings = folder.path / "trackers.json", settings
        known = self._known() if goes_on else {}
        self._ids = {name: known.get(name) or uuid.uuid4().hex[:8] for name in names}
        self._new = [name for name in self._ids if name not in known]
        self.loggers = [self._logger(name, folder, name in known) for name in self._ids]

    def _known(self) -> dict[Tracker, str]:
        try:
            found = json.loads(self._file.read_text(encoding="utf-8"))
        except (OSError, ValueError):
            return {}  # then the run is another one there
        return {name: str(own) for name, own in found.items()} if isinstance(found, dict) else {}

    def _logger(self, name: Tracker, folder: RunFolder, is_known: bool) -> Logger:
        title, own = folder.path.name, self._ids[name]
        try:
            importlib.import_module(name)
            if name == "wandb":
                project = os.environ.get("WANDB_PROJECT", _PROJECT)
                return WandbLogger(title, str(folder.path), version=own, project=project, resume="allow")
            if name == "mlflow":
                place = os.environ.get("MLFLOW_TRACKING_URI", f"sqlite:///{folder.path.parent.absolute()}/mlflow.db")
                return MLFlowLogger(_PROJECT, title, place, run_id=own if is_known else None)
            return TrackioLogger(title, own)
        except ImportError as error:
            raise UserError(f"--track names {name}, which cannot be imported: {one_line(error)}") from error

    def on_fit_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Writes down which runs of the trackers these are, and sends the settings."""
        if not trainer.is_global_zero or not self._ids:
            return
        for name, logger in zip(self._ids, self.loggers, strict=True):
            if name in self._new or name != "mlflow":  # which refuses other settings than a run began with
                logger.log_hyperparams(self._settings)
            if isinstance(logger, MLFlowLogger):
                self._ids[name] = str(logger.run_id)
        write_json(self._file, {str(name): own for name, own in self._ids.items()})


class TrackioLogger(Logger):
    """Sends metrics to trackio.

    Args:
        title: Of the run.
        own: Identity of the run, in its name.
    """

    def __init__(self, title: str, own: str) -> None:
        super().__init__()
        self._title, self._own = title, own
        self._run: Any = None

    @property
    def name(self) -> str:
        return self._title

    @property
    def version(self) -> str:
        return self._own

    @property
    @rank_zero_experiment
    def experiment(self) -> Any:
        """Trackio's run."""
        if self._run is None:
            trackio: Any = importlib.import_module("trackio")
            project = os.environ.get("TRACKIO_PROJECT", _PROJECT)
            self._run = trackio.init(project, name=f"{self._title}-{self._own}", resume="allow", embed=False)
        return self._run

    @rank_zero_only
    def log_metrics(self, metrics: Mapping[str, float], step: int | None = None) -> None:
        self.experiment.log(dict(metrics), step=step)

    @rank_zero_only
    def log_hyperparams(self, params: JSON, *args: object, **kwargs: object) -> None:
        self.experiment.config.update(params)

    @rank_zero_only
    def finalize(self, status: str) -> None:
        """Sends what is left."""
        if self._run is not None:
            self._run.finish()
            self._run = None
