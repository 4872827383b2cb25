"""LightningCLI for the verbs that a Trainer runs: parses, instantiates, and gives the Trainer its callbacks."""

from lightning.pytorch import Callback
from lightning.pytorch.cli import LightningCLI
from lightning.pytorch.loggers import Logger
from lightning.pytorch.utilities.exceptions import MisconfigurationException

from datamodules.glotcc import GlotCCDataModule
from lightning_app.cli.parser import Parser
from lightning_app.errors import UserError
from lightning_app.profiling.settings import ProfilingSettings
from lightning_app.training.module import SparseSubnetModule
from lightning_app.training.trainer import NeuroglotTrainer


class NeuroglotCLI(LightningCLI):
    """Instantiates module, data and Trainer from the arguments of a verb; runs nothing.

    Args:
        parser: The verb's own, with all of its keys.
        arguments: What follows the verb.
    """

    model: SparseSubnetModule
    datamodule: GlotCCDataModule
    trainer: NeuroglotTrainer

    def __init__(self, parser: Parser, arguments: list[str]) -> None:
        self._verb_parser, self._arguments = parser, arguments
        super().__init__(
            SparseSubnetModule, GlotCCDataModule, trainer_class=NeuroglotTrainer, save_config_callback=None,
            auto_configure_optimizers=False, load_from_checkpoint_support=False, run=False,
        )  # fmt: skip

    def init_parser(self, **kwargs: object) -> Parser:
        """Returns the verb's parser."""
        return self._verb_parser

    def add_default_arguments_to_parser(self, parser: object) -> None:
        """The parser has them."""

    def add_core_arguments_to_parser(self, parser: object) -> None:
        """The parser has them."""

    def parse_arguments(self, parser: Parser, args: object) -> None:
        """Parses what follows the verb."""
        self.config = parser.parse_args(self._arguments)

    @property
    def profiling(self) -> ProfilingSettings:
        """The keys under ``profiling``."""
        return self.config_init.profiling

    def give_trainer(self, root: str, callbacks: list[Callback], loggers: list[Logger]) -> NeuroglotTrainer:
        """Returns the Trainer of the ``trainer`` keys, with ours before those that the keys name.

        Raises:
            UserError: Lightning refuses the keys.
        """
        given = self.config_init["trainer"]
        more = given["logger"] if isinstance(given["logger"], list) else [given["logger"]]
        loggers += [logger for logger in more if not isinstance(logger, bool) and logger is not None]
        given["callbacks"] = [*(given["callbacks"] or []), *callbacks]
        try:
            return NeuroglotTrainer(**{**given, "logger": loggers, "default_root_dir": root})
        except (MisconfigurationException, TypeError, ValueError) as error:
            raise UserError(f"Lightning refuses the --trainer keys: {' '.join(str(error).split())[:300]}") from error
