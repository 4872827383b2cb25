"""``fit``: profile where needed, train, validate; goes on where the same command stopped."""

from pathlib import Path

import yaml
from lightning.pytorch.loggers import Logger, TensorBoardLogger

from callbacks.checkpoints import BestCheckpoint, LastCheckpoint
from callbacks.console import Console
from callbacks.new_base import SaveNewBase
from callbacks.profiling import LAPEProfiling
from callbacks.retention import Retention
from callbacks.run_record import JSONLLogger, RunRecord
from callbacks.throughput import Throughput
from lightning_app.cli.configs import say
from lightning_app.cli.lightning_cli import NeuroglotCLI
from lightning_app.cli.parser import Verb, make_parser
from lightning_app.files import JSON
from lightning_app.planning.checks import require_checks
from lightning_app.run import Run, choose_run, configuration_digest, run_name
from lightning_app.training.trainer import NeuroglotTrainer

FIT = Verb(
    "fit",
    "Profile where needed, train the neurons that speak a language, and validate; the same command goes on where it "
    "stopped.",
    (
        "language", "model.base", "model.method", "model.lr", "profiling.rate", "data.token_budget", "data.files",
        "data.watch", "trainer.devices", "resume",
    ),
)  # fmt: skip
_CONFIG_KEYS = ("seed_everything", "language", "name", "run_dir", "trainer", "model", "data", "profiling")


class FitCLI(NeuroglotCLI):
    """Finds the run folder before anything is instantiated, because a resumed run takes settings over from it."""

    run: Run
    resolved: JSON

    def before_instantiate_classes(self) -> None:
        """Finds the run folder, and what to go on from."""
        settings = self.config
        plain = yaml.safe_load(self.parser.dump(settings, skip_none=False))
        self.resolved = {key: plain[key] for key in _CONFIG_KEYS if key in plain}
        digest, name = configuration_digest(self.resolved), settings.name or run_name(self.resolved)
        self.run = choose_run(Path(settings.run_dir), name, digest, settings.resume, is_named=bool(settings.name))
        if self.run.checkpoint is not None:
            taken_over = self.run.subnetworks
            settings.model.subnetwork = settings.model.subnetwork or (str(taken_over) if taken_over else None)
            settings.data.revision = self.run.folder.text_revision(settings.data.source) or settings.data.revision

    def instantiate_trainer(self, **kwargs: object) -> NeuroglotTrainer:
        """Adds the callbacks and loggers that every run has."""
        folder = self.run.folder
        config_yaml = yaml.safe_dump(self.resolved, sort_keys=False, allow_unicode=True)
        retention, throughput = Retention(), Throughput()
        callbacks = [
            LAPEProfiling(self.profiling),
            retention,
            Console(retention),
            # In this order: a run is marked complete only when all of its files are there.
            throughput,
            SaveNewBase(folder),
            RunRecord(self.run, config_yaml, throughput, retention),
            BestCheckpoint(folder),
            LastCheckpoint(folder),
        ]
        loggers: list[Logger] = []
        if self.config_init["trainer"]["logger"] is not False:
            loggers = [JSONLLogger(folder.metrics), TensorBoardLogger(folder.path, name="tensorboard", version="")]
        return self.give_trainer(str(folder), callbacks, loggers)


def fit(arguments: list[str], shows_all: bool) -> None:
    """Trains, unless the run is complete already."""
    parser = make_parser(FIT, shows_all)
    parser.add_argument(
        "--resume", type=str, default="auto",
        help="auto goes on from the run's last checkpoint, never starts anew, or the path of a checkpoint.",
    )  # fmt: skip
    cli = FitCLI(parser, arguments)
    require_checks(cli.model, cli.profiling)
    run = cli.run
    if run.is_complete:
        best = run.folder.best_checkpoint()
        say(f"{run.folder} is complete (best checkpoint {best}); --resume never trains it anew")
        return
    say(f"run folder {run.folder}" + (f", going on from {run.checkpoint}" if run.checkpoint else ""))
    cli.model.checkpoint = run.checkpoint
    cli.trainer.fit(cli.model, datamodule=cli.datamodule, ckpt_path=str(run.checkpoint) if run.checkpoint else None)
