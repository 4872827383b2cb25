"""The command line: Lightning's, with two more verbs, configurations found by name and errors of one line."""

import logging
import os
import signal
import sys
import warnings
from pathlib import Path
from typing import Any, cast

import yaml
from jsonargparse import ActionYesNo
from lightning.pytorch.cli import LightningArgumentParser, LightningCLI
from lightning.pytorch.loggers import TensorBoardLogger
from lightning.pytorch.utilities.exceptions import MisconfigurationException

from callbacks.checkpoints import BestCheckpoint, LastCheckpoint
from callbacks.console import Console
from callbacks.new_base import SaveNewBase
from callbacks.predictions import WritePredictions
from callbacks.profiling import LAPEProfiling
from callbacks.run_record import JSONLLogger, RunRecord
from callbacks.throughput import Throughput
from datamodules.glotcc import GlotCCDataModule
from lightning_app.arguments import CONFIGS, MEASURING, Parser, add_newest_run, resolve_configs, say
from lightning_app.errors import UserError
from lightning_app.files import is_disk_full
from lightning_app.module import SparseSubnetModule
from lightning_app.preflight import require_trainable
from lightning_app.run import (
    SUBNETWORK,
    Run,
    best_checkpoint,
    choose_run,
    configuration_digest,
    read_record,
    run_name,
)
from lightning_app.trainer import NeuroglotTrainer

_CONFIG_KEYS = ("seed_everything", "language", "name", "run_dir", "trainer", "model", "data", "profiling")


class NeuroglotCLI(LightningCLI):
    """Wires configuration, run folder, module, data and callbacks together; decides nothing else."""

    run_of_fit: Run

    @staticmethod
    def subcommands() -> dict[str, set[str]]:
        """Returns the verbs and the arguments of their Trainer methods that are not keys."""
        own = {"model", "dataloaders", "datamodule", "verbose", "return_predictions"}
        return {
            "fit": {"model", "train_dataloaders", "val_dataloaders", "datamodule", "ckpt_path", "weights_only"},
            "validate": own,
            "test": own,
            "predict": own,
            "profile": {*own, "ckpt_path", "weights_only"},
            "plan": {*own, "ckpt_path", "weights_only", "profiling", "json_"},
            "subnetwork": {*own, "ckpt_path", "weights_only", "profiling", "json_"},
        }

    def add_arguments_to_parser(self, parser: LightningArgumentParser) -> None:
        """Adds the keys that belong to no class."""
        parser.add_argument("--language", type=str | None, default=None, help="Target language: cy, Welsh, cym-Latn.")
        parser.add_argument("--run_dir", type=str, default="runs", help="Folder of all runs.")
        parser.add_argument("--name", type=str | None, default=None, help="Name of the run folder.")
        parser.add_lightning_class_args(LAPEProfiling, "profiling")
        parser.link_arguments("language", "model.language")
        parser.link_arguments("language", "data.language")
        parser.link_arguments("seed_everything", "data.seed")

    def _prepare_subcommand_parser(self, klass: type, subcommand: str, **kwargs: Any) -> LightningArgumentParser:
        parser = super()._prepare_subcommand_parser(klass, subcommand, **kwargs)
        if subcommand == "fit":
            parser.add_argument(
                "--resume", type=str, default="auto",
                help="auto goes on from the run's last checkpoint, never starts anew, or the path of a checkpoint.",
            )  # fmt: skip
        if subcommand in ("plan", "subnetwork"):
            parser.add_argument("--json", action=ActionYesNo, default=False, help="Print JSON.")
        return parser

    def _parse_ckpt_path(self) -> None:
        """Does nothing: hyper-parameters in a checkpoint would silently beat the configuration."""

    @property
    def _settings(self) -> Any:
        return self.config[self.subcommand]

    def before_instantiate_classes(self) -> None:
        """Finds the run folder, and what to go on from or to measure."""
        settings = self._settings
        if self.subcommand == "subnetwork":
            return
        if not settings.model.base and not settings.model.architecture:
            raise UserError("no base model: give --model.base (a hub name or a folder), or --model.architecture")
        self._plain = self._plain_settings()
        if self.subcommand == "fit":
            self._choose_run(settings)
        elif self.subcommand in MEASURING:
            self._find_subnetwork(settings)

    def after_instantiate_classes(self) -> None:
        """Refuses a base that cannot be trained before anything expensive starts."""
        if self.subcommand in ("fit", "profile", "plan") and self.model.method == "subnetwork":
            atlas = self._profiling.atlas_path
            require_trainable(self.model.base_name, self.model.revision, self.model.subnetwork_path, atlas)

    def _plain_settings(self) -> dict[str, Any]:
        """Returns the resolved configuration without the keys of a single verb, as plain data."""
        parser = self._parser(self.subcommand)
        plain = yaml.safe_load(parser.dump(self._settings, skip_none=False))
        return {key: plain[key] for key in _CONFIG_KEYS if key in plain}

    def _choose_run(self, settings: Any) -> None:
        digest = configuration_digest(self._plain)
        name = settings.name or run_name(self._plain)
        run = choose_run(Path(settings.run_dir), name, digest, settings.resume, is_named=settings.name is not None)
        saved = run.folder / SUBNETWORK
        if run.checkpoint is not None and not settings.model.subnetwork:
            beside = run.checkpoint.parent.parent / SUBNETWORK
            settings.model.subnetwork = next((str(path) for path in (beside, saved) if path.is_file()), None)
        if run.checkpoint is not None:
            self._stay_at_revision(settings, run)
        self.run_of_fit = run

    def _stay_at_revision(self, settings: Any, run: Run) -> None:
        """Reads the text that the run began with, where the data set has moved on since."""
        for key in (read_record(run.folder) or {}).get("text", {}).values():
            if key["data set"] == settings.data.source:
                settings.data.revision = key["revision"]

    def _find_subnetwork(self, settings: Any) -> None:
        """Takes the subnetwork file of the run that a checkpoint belongs to, where no key names one."""
        if settings.get("ckpt_path") and not settings.model.subnetwork:
            beside = Path(settings.ckpt_path).parent.parent / SUBNETWORK
            if beside.is_file():
                settings.model.subnetwork = str(beside)
        if not settings.get("ckpt_path"):
            settings.model.subnetwork = None  # the base as it is

    def instantiate_trainer(self, **kwargs: Any) -> NeuroglotTrainer:
        """Adds the callbacks and loggers that every run has."""
        given = self.config_init[self.subcommand]["trainer"]
        settings = self.config_init[self.subcommand]
        callbacks: list[Any] = [Console()]
        loggers: list[Any] = []
        root = Path(settings["run_dir"])
        if self.subcommand == "fit":
            folder = self.run_of_fit.folder
            config_yaml = yaml.safe_dump(self._plain, sort_keys=False, allow_unicode=True)
            # In this order: a run is marked complete only when all of its files are there.
            throughput = Throughput()
            callbacks += [throughput, SaveNewBase(folder), RunRecord(self.run_of_fit, config_yaml, throughput)]
            callbacks += [BestCheckpoint(folder / "checkpoints"), LastCheckpoint(folder / "checkpoints")]
            if given["logger"] is not False:
                loggers = [JSONLLogger(folder), TensorBoardLogger(folder, name="tensorboard", version="")]
            root = folder
        if self.subcommand == "predict":
            name = Path(settings["ckpt_path"]).parent.parent if settings.get("ckpt_path") else root
            callbacks.append(WritePredictions(name / "predictions.jsonl"))
        more = given["logger"] if isinstance(given["logger"], list) else [given["logger"]]
        loggers += [logger for logger in more if not isinstance(logger, bool) and logger is not None]
        given["callbacks"] = [*(given["callbacks"] or []), *callbacks]
        try:
            return super().instantiate_trainer(logger=loggers, default_root_dir=str(root))  # type: ignore[return-value]
        except (MisconfigurationException, TypeError, ValueError) as error:
            raise UserError(f"Lightning refuses the --trainer keys: {' '.join(str(error).split())[:300]}") from error

    def _prepare_subcommand_kwargs(self, subcommand: str) -> dict[str, Any]:
        kwargs = super()._prepare_subcommand_kwargs(subcommand)
        if subcommand == "fit":
            kwargs["ckpt_path"] = str(self.run_of_fit.checkpoint) if self.run_of_fit.checkpoint else None
        if subcommand in ("plan", "subnetwork"):
            kwargs["json_"] = self._settings.json
            kwargs["profiling"] = self._profiling
        return kwargs

    @property
    def _profiling(self) -> LAPEProfiling:
        return next(c for c in cast(Any, self.trainer).callbacks if isinstance(c, LAPEProfiling))

    def after_validate(self) -> None:
        """Says where the measured run's files are."""
        if self._settings.get("ckpt_path"):
            say(f"files of the run: {Path(self._settings.ckpt_path).parent.parent}/")

    def fit(self, **kwargs: Any) -> None:
        """Trains, unless the run is complete already."""
        run = self.run_of_fit
        if run.is_complete:
            best = best_checkpoint(run.folder)
            say(f"{run.folder} is complete (best checkpoint {best}); --resume never trains it anew")
            return
        say(f"run folder {run.folder}" + (f", going on from {run.checkpoint}" if run.checkpoint else ""))
        self.trainer.fit(**kwargs)


def _quiet_libraries() -> None:
    """Leaves the terminal to what concerns the user; what these say is either said better here or not true here."""
    for name in ("lightning.pytorch", "lightning.fabric", "lightning.pytorch.utilities.rank_zero", "httpx", "datasets"):
        logging.getLogger(name).setLevel(logging.ERROR)
    for pattern in (
        ".*does not have many workers.*", ".*is smaller than the logging interval.*", ".*exists and is not empty.*",
        ".*isinstance.treespec, LeafSpec.*", ".*Checkpoint directory.*", ".*`srun` command is available.*",
        ".*predict_dataloader.* returned 0 length.*", ".*Total length of.*",
        ".*callbacks used to create the checkpoint.*", ".*recommended to use `self.log.*sync_dist.*",
        ".*your dataloader is not resumable.*",
    ):  # fmt: skip
        warnings.filterwarnings("ignore", pattern)
    os.environ.setdefault("HF_HUB_DISABLE_PROGRESS_BARS", "1")
    os.environ.setdefault("TRANSFORMERS_NO_ADVISORY_WARNINGS", "1")
    os.environ.setdefault("TOKENIZERS_PARALLELISM", "true")
    from transformers.utils import logging as transformers_logging

    transformers_logging.set_verbosity_error()
    transformers_logging.disable_progress_bar()


def main(arguments: list[str] | None = None) -> int:
    """Runs the command line and returns the exit code: 0, or 2 for input that cannot be used."""
    arguments = sys.argv[1:] if arguments is None else arguments
    _quiet_libraries()
    default = {"default_config_files": [str(CONFIGS / "default.yaml")]}
    described = {
        "description": "Neuroglot: teach a language model a language by training only the neurons that speak it."
    }
    verbs: dict[str, Any] = {verb: dict(default) for verb in NeuroglotCLI.subcommands() if verb != "subnetwork"}
    try:
        sys.argv[1:] = add_newest_run(resolve_configs(arguments))
        NeuroglotCLI(
            SparseSubnetModule, GlotCCDataModule, trainer_class=NeuroglotTrainer, parser_class=Parser,
            parser_kwargs={**described, **verbs}, save_config_callback=None, seed_everything_default=0,
            auto_configure_optimizers=False, load_from_checkpoint_support=False,
        )  # fmt: skip
    except UserError as error:
        return _fail(str(error))
    except OSError as error:
        if not is_disk_full(error):
            raise
        return _fail(f"the disk is full: {error}; free some space and run the same command again")
    return 0


def _fail(line: str) -> int:
    rank = os.environ.get("SLURM_PROCID", os.environ.get("RANK", os.environ.get("LOCAL_RANK", "")))
    if "SLURM_STEP_ID" in os.environ:
        signal.signal(signal.SIGTERM, signal.SIG_IGN)  # srun ends all tasks when one fails; 2, not 143, is the reason
    print(f"neuroglot{f' [{rank}]' if rank not in ('', '0') else ''}: error: {line}", file=sys.stderr, flush=True)
    return 2
