"""``validate``, ``test`` and ``predict``: an adapted model, or a base as it is."""

from pathlib import Path

from callbacks.console import Console
from callbacks.predictions import WritePredictions
from callbacks.retention import Retention
from lightning_app.adapted import Adaptation
from lightning_app.cli.configs import say
from lightning_app.cli.lightning_cli import NeuroglotCLI
from lightning_app.cli.parser import Verb, make_parser
from lightning_app.errors import UserError
from lightning_app.files import load_checkpoint
from lightning_app.neurons.subnetworks import Subnetworks
from lightning_app.run import RunFolder
from lightning_app.training.module import SparseSubnetModule
from lightning_app.training.trainer import NeuroglotTrainer

_KEYS = ("ckpt_path", "run_dir", "language", "model.base", "data.watch", "data.flores", "data.validation_batch_size")
VALIDATE = Verb(
    "validate",
    "Measure loss and bits per byte on FLORES dev: of a checkpoint, of the base that --config or --model.base names, "
    "or of the newest run where nothing is named.",
    _KEYS,
)
TEST = Verb("test", VALIDATE.does.replace("FLORES dev", "FLORES devtest"), _KEYS)
PREDICT = Verb(
    "predict",
    "Continue prompts in the language and write them to predictions.jsonl in the run folder; the model is found as "
    "validate finds it.",
    ("ckpt_path", "run_dir", "data.prompts", "language", "model.base"),
)
_NAMING = ("--config", "-c", "--model", "--language", "--ckpt_path", "--help", "-h", "--print_config")


class MeasureCLI(NeuroglotCLI):
    """Gives the Trainer what shows or keeps a measurement."""

    @property
    def checkpoint(self) -> Path | None:
        """The adapted model to measure; None to measure the base."""
        return Path(self.config.ckpt_path) if self.config.ckpt_path else None

    def instantiate_trainer(self, **kwargs: object) -> NeuroglotTrainer:
        """Adds what prints losses, and what writes predictions."""
        retention = Retention.of(self.checkpoint)
        folder = RunFolder.of(self.checkpoint) if self.checkpoint else RunFolder(Path(self.config.run_dir))
        callbacks = [retention, Console(retention), WritePredictions(folder.predictions)]
        return self.give_trainer(self.config.run_dir, callbacks, [])


def measure(verb: Verb, arguments: list[str], shows_all: bool) -> None:
    """Runs a measuring verb of the Trainer."""
    parser = make_parser(verb, shows_all)
    parser.add_argument("--ckpt_path", type=str | None, default=None, help="Checkpoint of the adapted model.")
    cli = MeasureCLI(parser, arguments)
    cli.model.checkpoint = cli.checkpoint
    if cli.checkpoint is not None and cli.model.subnetwork_path is not None:
        _require_same_neurons(cli.checkpoint, cli.model, cli.model.subnetwork_path)
    if verb is PREDICT:
        cli.trainer.predict(cli.model, datamodule=cli.datamodule)
        return
    run = cli.trainer.validate if verb is VALIDATE else cli.trainer.test
    run(cli.model, datamodule=cli.datamodule, verbose=False)
    if verb is VALIDATE and cli.checkpoint is not None:
        say(f"files of the run: {RunFolder.of(cli.checkpoint)}/")


def _require_same_neurons(checkpoint: Path, module: SparseSubnetModule, path: Path) -> None:
    """Raises `UserError` where a subnetwork file that is named beside a checkpoint is not the one it was made with."""
    neurons = Subnetworks.load(path).to_train(module.target, module.first_layer, path)
    found = Adaptation.read(load_checkpoint(checkpoint, is_mapped=True)).neurons
    if found is None or found.identity != neurons.identity:
        raise UserError(
            f"checkpoint {checkpoint} belongs to another subnetwork than {path}; leave --model.subnetwork out, the "
            "checkpoint knows its neurons"
        )


def add_newest_run(arguments: list[str]) -> list[str]:
    """Returns the arguments of a measuring verb with the newest run filled in where they name no model at all."""
    if any(
        argument in (*_NAMING, "--help_all") or argument.split("=")[0].split(".")[0] in _NAMING
        for argument in arguments
    ):
        return arguments
    root = Path("runs")
    for index, argument in enumerate(arguments):
        if argument.startswith("--run_dir"):
            root = Path(argument.partition("=")[2] or arguments[index + 1])
    folder = RunFolder.newest(root)
    checkpoint = folder.best_checkpoint()
    say(f"newest run {folder}, checkpoint {checkpoint.name if checkpoint else ''}")
    return ["--config", str(folder.config), "--ckpt_path", str(checkpoint), *arguments]
