"""A run as ``doctor`` looks at it: what the keys describe, or why they cannot be used."""

from pathlib import Path

from jsonargparse import Namespace
from lightning.fabric import Fabric

from lightning_app.cli.doctor import DOCTOR
from lightning_app.cli.lightning_cli import NeuroglotCLI
from lightning_app.doctor.setup import Setup
from lightning_app.errors import UserError
from lightning_app.model.base import base_dtype
from lightning_app.planning.checks import Checked
from lightning_app.planning.planner import Launch
from lightning_app.training.sharded_strategy import SHARDED


class _SetupCLI(NeuroglotCLI):
    """Notes why its keys cannot be used instead of ending there."""

    refusal = ""

    def instantiate_classes(self) -> None:
        """Instantiates what the keys describe, if they describe anything."""
        try:
            super().instantiate_classes()
        except UserError as error:
            self.refusal = str(error)


def read_setup(arguments: list[str], shows_all: bool) -> Setup:
    """Returns what the arguments describe.

    Raises:
        UserError: There is no such key, or no such configuration.
    """
    cli = _SetupCLI(DOCTOR, arguments, shows_all)
    if cli.refusal:
        return Setup(cli.config, None, cli.refusal)
    trainer = cli.config.trainer
    run = Checked(cli.model, cli.datamodule, cli.profiling, dict(trainer))
    try:
        fabric = cli.make_fabric(computes=False)
    except UserError as error:
        return Setup(cli.config, run, launch_refusal=str(error))
    launch = launch_of(cli.config, fabric)
    devices = len(getattr(fabric.strategy, "parallel_devices", None) or [fabric.device])
    return Setup(cli.config, run, launch=launch, devices=devices)


def launch_of(settings: Namespace, fabric: Fabric, room: tuple[float, str] | None = None) -> Launch:
    """Returns how a run would be launched; ``room`` is what a plan is for in place of the device that is here."""
    trainer = settings.trainer
    return Launch(
        base_dtype(trainer.precision), fabric.device, fabric.world_size, trainer.accumulate_grad_batches,
        trainer.validate_every, trainer.max_steps, Path(settings.run_dir),
        fabric.world_size if trainer.strategy == SHARDED else 1, room,
    )  # fmt: skip
