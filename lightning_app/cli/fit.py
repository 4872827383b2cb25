"""``fit``: profile where needed, train, validate; goes on where the same command stopped."""

import signal
from contextlib import nullcontext
from pathlib import Path

import yaml
from lightning.pytorch import Callback
from lightning.pytorch.loggers import TensorBoardLogger

from callbacks.averaging import WeightAverage
from callbacks.checkpoints import BestCheckpoint, LastCheckpoint
from callbacks.console import Console
from callbacks.divergence import StopDiverged
from callbacks.interruption import Interruption, end_at_once
from callbacks.profiling import LAPEProfiling
from callbacks.report import Report, Samples, write_report
from callbacks.result import SaveResult
from callbacks.retention import Retention
from callbacks.run_record import JSONLLogger, RunRecord
from callbacks.soundness import Soundness
from callbacks.throughput import Throughput
from callbacks.trackers import Trackers, read_trackers
from lightning_app.cli.lightning_cli import NeuroglotCLI, resolved
from lightning_app.cli.verb import Verb, say
from lightning_app.errors import TRY_AGAIN, Interrupted, UserError
from lightning_app.files import load_checkpoint
from lightning_app.planning.checks import require_checks
from lightning_app.resuming import changed_settings, choose_run
from lightning_app.run import (
    RunFolder,
    configuration_digest,
    deciding_settings,
    is_first_process,
    occupied,
    run_name,
)
from lightning_app.training.trainer import NeuroglotTrainer

FIT = Verb(
    "fit",
    "Profile where needed, train the neurons that speak a language, and validate; the same command goes on where it "
    "stopped.",
    (
        "language", "model.base", "model.method", "model.lr", "profiling.rate", "data.token_budget", "data.files",
        "data.watch", "trainer.devices", "resume",
    ),
    {
        "resume": (
            str, "auto", "auto goes on from the last checkpoint, never starts anew, or the path of a checkpoint.",
        ),
        "samples": (int, 3, "Sentences of FLORES that the model continues before and after training, for the report."),
        "report": (bool, True, "Write report.html once the run is done."),
        "track": (str | None, None, "Trackers beside TensorBoard: wandb, mlflow or trackio, or several, wandb,mlflow."),
    },
)  # fmt: skip


class _FitCLI(NeuroglotCLI):
    """Finds the run before anything is instantiated, because a resumed one takes settings over from its folder."""

    def before_instantiate_classes(self) -> None:
        settings = self.config
        plain = self.plain = resolved(self)
        self.config_yaml = yaml.safe_dump(plain, sort_keys=False, allow_unicode=True)
        digest, name = configuration_digest(plain), settings.name or run_name(plain)
        root, deciding = Path(settings.run_dir), deciding_settings(plain)
        try:
            self.run = choose_run(root, name, digest, settings.resume, bool(settings.name), deciding)
        except UserError:
            self.parser.instantiate_classes(self.config)  # which refuses keys that are wrong by themselves: said first
            raise
        self.notes = list(self.run.notes)
        if self.run.checkpoint is not None:
            self.notes.append(changed_settings(plain, RunFolder.of(self.run.checkpoint), self.run.settings))
            settings.model.subnetwork = settings.model.subnetwork or self.run.subnetworks
            settings.data.revision = self.run.folder.text_revision(settings.data.source) or settings.data.revision


def fit(arguments: list[str], shows_all: bool) -> None:
    """Trains, unless the run is complete already."""
    cli = _FitCLI(FIT, arguments, shows_all)
    signal.signal(signal.SIGUSR1, end_at_once)  # by default it would end the run as if that had failed
    run, folder, tracked = cli.run, cli.run.folder, read_trackers(cli.config.track)
    require_checks(cli.model, cli.datamodule, cli.profiling, dict(cli.config_init.trainer))
    if run.is_complete:
        say(f"{folder} is complete (best checkpoint {folder.best_checkpoint()}); --resume never trains it anew")
        if cli.config.report and not folder.report.is_file() and is_first_process():
            write_report(folder)  # it was killed when all but that was done
        return
    say(f"run folder {folder}" + (f", going on from {run.checkpoint}" if run.checkpoint else ""))
    for note in filter(None, cli.notes):
        say(note)
    # TensorBoard would show the steps after the checkpoint twice, those that are made again: all where there is none.
    again = load_checkpoint(run.checkpoint, is_mapped=True)["global_step"] + 1 if run.checkpoint else 0
    tensorboard = TensorBoardLogger(folder.path, name="tensorboard", version="", purge_step=again)
    trackers = Trackers(tracked, folder, run.checkpoint is not None, cli.plain)
    loggers = [JSONLLogger(folder.metrics), tensorboard, *trackers.loggers]
    is_logged = cli.config_init.trainer.logger is not False
    trainer = cli.make_trainer(str(folder), [*_callbacks(cli), trackers], loggers if is_logged else [])
    cli.model.checkpoint = run.checkpoint
    with occupied(folder) if is_first_process() else nullcontext():
        _train(trainer, cli, str(run.checkpoint) if run.checkpoint else None)


def _callbacks(cli: _FitCLI) -> list[Callback]:
    run, folder, keys, data = cli.run, cli.run.folder, cli.config_init.trainer, cli.datamodule
    retention, throughput, last, figures = Retention(), Throughput(), LastCheckpoint(folder), cli.make_figures()
    targets = [target.language for target in data.targets]
    watched = [language.short for language in data.validation_languages if language not in targets]
    best = BestCheckpoint(folder, retention, keys.max_retention_loss, watched, figures)
    # In this order: first what refuses; and a run is marked complete only when all of its files are there.
    return [
        Soundness(),
        retention,
        Console(retention),
        *figures,
        LAPEProfiling(cli.profiling),
        WeightAverage(cli.model.ema),
        throughput,
        StopDiverged(folder, keys.stop_after_nonfinite),
        SaveResult(folder),
        Samples(folder, cli.config.samples),
        RunRecord(run, cli.config_yaml, throughput, retention, best),
        best,
        last,
        Interruption(last),
        *([Report(folder)] if cli.config.report else []),
    ]


def _train(trainer: NeuroglotTrainer, cli: NeuroglotCLI, checkpoint: str | None) -> None:
    """Trains; a signal that ended it decides the exit code: 130 for Ctrl-C, 143 for SIGTERM, 75 for SIGUSR1."""
    try:
        trainer.fit(cli.model, datamodule=cli.datamodule, ckpt_path=checkpoint)
    except Interrupted as stop:
        if stop.code == TRY_AGAIN:  # as in `Interruption`, while this process ends; Python has no handlers then
            signal.signal(signal.SIGTERM, signal.SIG_IGN)
        say(str(stop))
        raise SystemExit(stop.code) from stop
    except SystemExit as stop:
        if trainer.interrupted:  # Lightning's answer to Ctrl-C is the exit code 1
            say("interrupted; nothing is lost, the same command goes on")
            raise SystemExit(128 + signal.SIGINT) from stop
        raise
