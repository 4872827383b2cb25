"""Processes of Lightning's strategies: somebody starts them all, and they end together; see `lightning_app.peers`."""

import os
from typing import Any

from lightning.fabric.plugins.environments import SLURMEnvironment
from lightning.fabric.strategies.launchers import subprocess_script as of_fabric
from lightning.pytorch.strategies.launchers import subprocess_script as of_trainer

from lightning_app.errors import UserError
from lightning_app.peers import join, launches_processes, watch_children

_BY_HAND = ("MASTER_ADDR", "NODE_RANK")
_LAUNCHERS = ("SLURM_STEP_ID", "TORCHELASTIC_RUN_ID", "LSB_JOBID", "OMPI_COMM_WORLD_SIZE")


def require_started(num_nodes: object, devices: object) -> None:
    """Raises `UserError` where this process would wait for others that nobody starts, or start more than it can.

    Several tasks of a SLURM allocation are started by srun; other nodes by a launcher, or by hand.
    """
    most = max(64, 4 * (os.cpu_count() or 1))
    if str(devices).isdigit() and int(str(devices)) > most:
        raise UserError(f"--trainer.devices is {devices}, processes on each node; expected {most} at most, or auto")
    tasks = os.environ.get("SLURM_NTASKS", "1")
    if SLURMEnvironment.detect() and tasks != "1" and "SLURM_STEP_ID" not in os.environ:
        raise UserError(
            f"this SLURM allocation has {tasks} tasks but the program was not started by srun, so the others would "
            "never join; put srun in front of the command"
        )
    if not isinstance(num_nodes, int) or num_nodes <= 1:
        return
    missing = [name for name in _BY_HAND if name not in os.environ]
    if missing and not any(name in os.environ for name in _LAUNCHERS):
        raise UserError(
            f"--trainer.num_nodes is {num_nodes}, but nothing starts the program on the other nodes: no SLURM, no "
            f"torchrun, and no {' or '.join(missing)}; use srun (see slurm/train.sbatch) or torchrun, or set "
            f"{' and '.join(_BY_HAND)} on each"
        )


def end_together(strategy: Any) -> None:
    """Lets the processes of a strategy, the Trainer's or Fabric's, end with the first that does.

    Lightning's own observer ends the first process by SIGKILL, five seconds late and without a word.
    """
    launcher = strategy.launcher
    if isinstance(launcher, (of_fabric._SubprocessScriptLauncher, of_trainer._SubprocessScriptLauncher)):
        of_fabric._launch_process_observer = of_trainer._launch_process_observer = watch_children
        if not launcher.cluster_environment.creates_processes_externally:
            launches_processes()
    setup = strategy.setup_environment

    def setup_environment() -> None:
        setup()
        if (count := getattr(strategy, "world_size", 1)) > 1:
            join(strategy.global_rank, count, strategy.broadcast)

    strategy.setup_environment = setup_environment
