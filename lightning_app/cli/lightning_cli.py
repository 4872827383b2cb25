"""LightningCLI for one verb: parses its arguments and instantiates what the keys describe."""

from typing import Any, cast

import yaml
from jsonargparse import ActionYesNo
from lightning.fabric import Fabric
from lightning.pytorch import Callback
from lightning.pytorch.cli import ArgsType, LightningArgumentParser, LightningCLI
from lightning.pytorch.loggers import Logger
from lightning.pytorch.utilities.exceptions import MisconfigurationException

from callbacks.figures import Figures
from datamodules.glotcc import GlotCCDataModule
from lightning_app.cli.command_line import quiet_libraries
from lightning_app.cli.configurations import CONFIGS
from lightning_app.cli.parser import Parser
from lightning_app.cli.verb import Verb
from lightning_app.errors import UserError
from lightning_app.files import JSON
from lightning_app.methods.registry import METHODS, find_method
from lightning_app.model.base import base_dtype
from lightning_app.profiling.settings import ProfilingSettings
from lightning_app.training.launching import end_together, require_precision
from lightning_app.training.module import SparseSubnetModule
from lightning_app.training.sharded_strategy import SHARDED
from lightning_app.training.trainer import NeuroglotTrainer, require_trainer_keys

_LINKS = (
    ("language", "model.language"), ("language", "data.language"), ("seed_everything", "data.seed"),
    ("seed_everything", "model.seed"),
    ("model.base", "data.base"), ("model.revision", "data.base_revision"),
)  # fmt: skip
_CONFIG_KEYS = ("seed_everything", "language", "name", "run_dir", "trainer", "model", "data", "profiling")
_LARGEST_SEED = 2**32 - 1
_REFUSALS = (MisconfigurationException, RuntimeError, TypeError, ValueError)  # RuntimeError: no such device


class NeuroglotCLI(LightningCLI):
    """Has every key for every verb, so that one YAML serves all; a verb makes the Trainer or the Fabric it needs.

    Args:
        verb: Whose options and help these are.
        arguments: What follows the verb.
        shows_all: Whether the help shows every key.
    """

    model: SparseSubnetModule
    datamodule: GlotCCDataModule

    def __init__(self, verb: Verb, arguments: list[str], shows_all: bool) -> None:
        self.verb, self._shows_all = verb, shows_all
        defaults = [str(CONFIGS / "default.yaml")] if verb.has_defaults else []
        super().__init__(
            SparseSubnetModule, GlotCCDataModule, trainer_class=NeuroglotTrainer, parser_class=Parser,
            parser_kwargs={"prog": f"python main.py {verb.name}", "default_config_files": defaults},
            save_config_callback=None, seed_everything_default=0, auto_configure_optimizers=False,
            load_from_checkpoint_support=False, args=arguments, run=False,
        )  # fmt: skip

    def add_arguments_to_parser(self, parser: LightningArgumentParser) -> None:
        """Adds the methods' keys, those that belong to no class, and the verb's options."""
        cast(Parser, parser).verb = None if self._shows_all else self.verb
        parser.add_argument("--language", type=str | None, default=None, help="Target language: cy, Welsh, cym-Latn.")
        parser.add_argument("--run_dir", type=str, default="runs", help="Folder of all runs.")
        parser.add_argument("--name", type=str | None, default=None, help="Name of the run folder.")
        parser.add_class_arguments(ProfilingSettings, "profiling")
        added: set[str | int] = set()
        for method in METHODS.values():
            keys = parser.add_class_arguments(method, "model", as_group=False, instantiate=False, skip=added)
            added |= {key.removeprefix("model.") for key in keys}
        for key, (kind, default, about) in self.verb.options.items():
            how: dict[str, Any] = {"action": ActionYesNo} if kind is bool else {"type": kind}
            parser.add_argument(f"--{key}", default=default, help=about, **how)
        if not self.verb.has_defaults:
            parser.set_defaults({"model.base": None})
        for key, linked in _LINKS:
            parser.link_arguments(key, linked)

    def parse_arguments(self, parser: LightningArgumentParser, args: ArgsType) -> None:
        """Parses; Lightning's own would warn that these are not sys.argv."""
        self.config = parser.parse_args(cast(list[str], args))
        require_seed("--seed_everything", self.config.seed_everything)

    def instantiate_trainer(self, **kwargs: object) -> None:
        """Makes none yet: see `make_trainer` and `make_fabric`."""

    @property
    def profiling(self) -> ProfilingSettings:
        """The keys under ``profiling``."""
        return self.config_init.profiling

    def make_figures(self) -> list[Figures]:
        """Returns what the ``trainer`` keys ask to be taken at a validation beside the losses."""
        keys, figures = self.config_init.trainer, list[Figures]()
        if keys.translate:  # the tasks of the harness take a second to import
            from callbacks.translation import Translation

            figures.append(Translation(keys.translate))
        if keys.probe:
            from callbacks.in_context import InContextProbe

            figures.append(InContextProbe())
        if figures:
            quiet_libraries()
        return figures

    def make_trainer(self, root: str, callbacks: list[Callback], loggers: list[Logger]) -> NeuroglotTrainer:
        """Returns the Trainer of the ``trainer`` keys, with callbacks and loggers beside those that the keys name.

        Raises:
            UserError: Lightning refuses the keys.
        """
        given = dict(self.config_init.trainer)
        more = given["logger"] if isinstance(given["logger"], list) else [given["logger"]]
        loggers = [*loggers, *(logger for logger in more if isinstance(logger, Logger))]
        callbacks = [*(given["callbacks"] or []), *callbacks]
        try:
            trainer = NeuroglotTrainer(**{**given, "callbacks": callbacks, "logger": loggers, "default_root_dir": root})
        except _REFUSALS as error:
            raise _refused(error) from error
        require_precision(trainer.precision, trainer.strategy.root_device)
        return trainer

    def require_whole_base(self) -> None:
        """Raises `UserError` where the base is to be sharded, by a verb that has the whole of it on every process."""
        if self.config_init.trainer.strategy == SHARDED:
            raise UserError(
                f"--trainer.strategy {SHARDED} is for fit, profile, validate and test; {self.verb.name} has the whole "
                "base on every process: give --trainer.strategy auto or ddp"
            )

    def make_fabric(self, computes: bool = True) -> Fabric:
        """Returns processes without a Trainer, from the same ``trainer`` keys; none is started yet.

        Args:
            computes: Whether the processes will compute; else they are only counted.

        Raises:
            UserError: Lightning refuses the keys, or the device lacks the precision.
        """
        trainer = self.config_init.trainer
        strategy = "ddp" if trainer.strategy == SHARDED else trainer.strategy  # as many processes
        base_dtype(trainer.precision)
        require_trainer_keys(dict(trainer))
        try:
            keys = ("accelerator", "devices", "num_nodes", "precision")
            fabric = Fabric(**{key: trainer[key] for key in keys}, strategy=strategy)
        except _REFUSALS as error:
            raise _refused(error) from error
        if computes:
            require_precision(trainer.precision, fabric.device)
        end_together(fabric.strategy)
        return fabric


class ParsedCLI(NeuroglotCLI):
    """Has the keys as they were given, and nothing of what they describe."""

    def instantiate_classes(self) -> None:
        """Instantiates nothing: not even what keys that do not go together describe."""
        self.config_init = self.config


def require_seed(key: str, seed: float) -> int:
    """Returns a seed; raises `UserError` where it is none that torch and numpy both take."""
    if seed != int(seed) or not 0 <= seed <= _LARGEST_SEED:
        raise UserError(f"{key} is {seed:.10g}; expected a whole number from 0 to {_LARGEST_SEED}")
    return int(seed)


def resolved(cli: NeuroglotCLI) -> JSON:
    """Returns the keys that every verb has, as plain data; usable as ``--config``."""
    settings = cli.config
    if settings.model.lr is None:
        settings.model.lr = find_method(settings.model.method).lr
    every = yaml.safe_load(cli.parser.dump(settings, skip_none=False))
    return {key: every[key] for key in _CONFIG_KEYS if key in every}


def _refused(error: Exception) -> UserError:
    return UserError(f"Lightning refuses the --trainer keys: {' '.join(str(error).split())[:300]}")
