"""``validate``, ``test`` and ``predict``: an adapted model, or a base as it is."""

import copy
from itertools import pairwise
from pathlib import Path

from callbacks.console import Console
from callbacks.predictions import WritePredictions
from callbacks.retention import Retention
from lightning_app.adapted import Adaptation
from lightning_app.cli.configurations import CONFIGS
from lightning_app.cli.lightning_cli import NeuroglotCLI
from lightning_app.cli.verb import Verb, say
from lightning_app.errors import UserError
from lightning_app.files import load_checkpoint
from lightning_app.neurons.subnetworks import Subnetworks
from lightning_app.planning.checks import Checked, check_base_can_be_sharded, check_base_is_named
from lightning_app.run import RunFolder
from lightning_app.training.module import SparseSubnetModule
from lightning_app.training.sharded_strategy import SHARDED

_OPTIONS: dict[str, tuple[object, object, str]] = {"ckpt_path": (str | None, None, "Checkpoint of the adapted model.")}
_KEYS = ("ckpt_path", "run_dir", "language", "model.base", "data.watch", "data.flores", "data.validation_batch_size")
VALIDATE = Verb(
    "validate",
    "Measure loss and bits per byte on FLORES dev: of a checkpoint, of the base that --config or --model.base names, "
    "or of the newest run where nothing is named.",
    _KEYS,
    _OPTIONS,
)
TEST = Verb("test", VALIDATE.does.replace("FLORES dev", "FLORES devtest"), _KEYS, _OPTIONS)
PREDICT = Verb(
    "predict",
    "Continue prompts in the language and write them to predictions.jsonl in the run folder; the model is found as "
    "validate finds it.",
    ("ckpt_path", "run_dir", "data.prompts", "language", "model.base"),
    _OPTIONS,
)
_ONE_DEVICE = ("--trainer.devices=1", "--trainer.num_nodes=1", "--trainer.strategy=auto")
_NAMING = ("--config", "-c", "--model", "--language", "--ckpt_path", "--help", "-h", "--print_config")


def validate(arguments: list[str], shows_all: bool) -> None:
    """Measures on FLORES dev."""
    _measure(VALIDATE, arguments, shows_all)


def test(arguments: list[str], shows_all: bool) -> None:
    """Measures on FLORES devtest."""
    _measure(TEST, arguments, shows_all)


def predict(arguments: list[str], shows_all: bool) -> None:
    """Continues prompts."""
    _measure(PREDICT, arguments, shows_all)


def _measure(verb: Verb, arguments: list[str], shows_all: bool) -> None:
    """Runs a measuring verb of the Trainer on a checkpoint, or on the base where none is given."""
    cli = NeuroglotCLI(verb, _add_newest_run(arguments), shows_all)
    checkpoint = Path(cli.config.ckpt_path) if cli.config.ckpt_path else None
    _require_can_be_sharded(verb, cli, checkpoint)
    folder = RunFolder.of(checkpoint) if checkpoint is not None else RunFolder(Path(cli.config.run_dir))
    # What a checkpoint knows of the base is of dev, where its run validated.
    retention = Retention() if verb is TEST else Retention.of(checkpoint)
    figures = cli.make_figures() if verb is VALIDATE else []  # of dev alone
    for each in figures:
        each.remember(checkpoint)
    callbacks = [retention, Console(retention), *figures, WritePredictions(folder.predictions)]
    trainer = cli.make_trainer(cli.config.run_dir, callbacks, [])
    cli.model.checkpoint = checkpoint
    if checkpoint is None:
        check_base_is_named(Checked(cli.model, cli.datamodule, cli.profiling))
    if checkpoint is not None and cli.model.subnetwork_path is not None:
        _require_same_neurons(checkpoint, cli.model, cli.model.subnetwork_path)
    if verb is PREDICT:
        trainer.predict(cli.model, datamodule=cli.datamodule)
    elif verb is TEST:
        if checkpoint is not None and _has_base(checkpoint):
            say("the base, before training:")
            base = copy.deepcopy(cli.model)
            base.scale = 0.0
            trainer.test(base, datamodule=cli.datamodule, verbose=False)
            say(f"after training, and the change on the same text ({checkpoint}):")
        trainer.test(cli.model, datamodule=cli.datamodule, verbose=False)
    else:
        trainer.validate(cli.model, datamodule=cli.datamodule, verbose=False)
        if checkpoint is not None:
            say(f"files of the run: {folder}/")


def _require_can_be_sharded(verb: Verb, cli: NeuroglotCLI, checkpoint: Path | None) -> None:
    """Raises `UserError` where the base is to be sharded, and cannot be."""
    trainer = dict(cli.config.trainer)
    if trainer["strategy"] != SHARDED:
        return
    if verb is PREDICT:  # continues prompts of other lengths on every process
        cli.require_whole_base()
    check_base_can_be_sharded(Checked(cli.model, cli.datamodule, cli.profiling, trainer))
    if checkpoint is not None:
        made = Adaptation.read(load_checkpoint(checkpoint, is_mapped=True))
        kind = "from scratch" if made.architecture is not None else f"in {made.quantization}" * bool(made.quantization)
        if kind:
            raise UserError(
                f"--trainer.strategy {SHARDED} reads a base's parts from its files, but {checkpoint} is of a base "
                f"{kind}; give --trainer.strategy ddp"
            )


def _has_base(checkpoint: Path) -> bool:
    return Adaptation.read(load_checkpoint(checkpoint, is_mapped=True)).architecture is None


def _require_same_neurons(checkpoint: Path, module: SparseSubnetModule, path: Path) -> None:
    """Raises `UserError` where a subnetwork file that is named beside a checkpoint is not the one it was made with."""
    neurons = Subnetworks.load(path).to_train(module.targets, module.first_layer, path)
    found = Adaptation.read(load_checkpoint(checkpoint, is_mapped=True)).neurons
    if found is None or found.identity != neurons.identity:
        raise UserError(
            f"checkpoint {checkpoint} belongs to another subnetwork than {path}; leave --model.subnetwork out, the "
            "checkpoint knows its neurons"
        )


def _add_newest_run(arguments: list[str]) -> list[str]:
    """Returns the arguments with the newest run filled in where they name no model at all."""
    if any(_names_model(*pair) for pair in pairwise([*arguments, ""])):
        return arguments
    folder = RunFolder.newest(Path(_value("--run_dir", arguments) or "runs"))
    checkpoint = folder.best_checkpoint()
    say(f"newest run {folder}, checkpoint {checkpoint.name if checkpoint else ''}")
    return ["--config", str(folder.config), "--ckpt_path", str(checkpoint), *arguments]


def _names_model(argument: str, following: str) -> bool:
    """Tells whether an argument names a model; a configuration of hardware/ says on what it runs, and not which."""
    key, is_joined, value = argument.partition("=")
    if key == "--config" and Path(value if is_joined else following).resolve().parent == CONFIGS / "hardware":
        return False
    return key.split(".")[0] in _NAMING


def of_run(arguments: list[str], key: str = "--source") -> list[str]:
    """Returns the arguments behind the configuration of the run that ``key`` names, or of the newest one.

    One process on one device does what these verbs do, however many trained the run.
    """
    if not {"--help", "-h"}.isdisjoint(arguments):
        return arguments
    source = (_value(key, arguments) or "").strip("[]").split(",")[0].strip("'\" ")  # the first of several
    path = Path(source) if source else RunFolder.newest(Path(_value("--run_dir", arguments) or "runs")).path
    if not source:
        arguments = [key, str(path), *arguments]
    folder = RunFolder(path if path.is_dir() else path.parent)
    if path.suffix == ".ckpt":
        folder = RunFolder.of(path)
    if not path.exists() or not folder.config.is_file():
        return arguments  # a model of the hub, say
    return ["--config", str(folder.config), *_ONE_DEVICE, *arguments]


def data_folder(data_dir: str | None) -> Path | None:
    """Returns the folder that ``--data_dir`` names, if it does; raises `UserError` where it is none."""
    folder = Path(data_dir).expanduser().resolve() if data_dir else None
    if folder is not None and not folder.is_dir():
        raise UserError(f"--data_dir {data_dir} is no folder; expected one with data sets as OWNER/NAME in it")
    return folder


def _value(key: str, arguments: list[str]) -> str | None:
    """Returns what a key is given on the command line, before it is parsed."""
    for index, argument in enumerate(arguments):
        name, is_joined, value = argument.partition("=")
        if name == key:
            return value if is_joined else next(iter(arguments[index + 1 :]), None)
    return None
