"""Processes of Lightning's strategies: somebody starts them all, and they end together; see `lightning_app.peers`."""

import contextlib
import os
import time
import uuid
from pathlib import Path
from typing import Any

import torch
from lightning.fabric.plugins.environments import SLURMEnvironment
from lightning.fabric.strategies.launchers import subprocess_script as of_fabric
from lightning.pytorch.strategies.launchers import subprocess_script as of_trainer

from lightning_app.errors import UserError
from lightning_app.peers import join, launches_processes, watch_children

_BY_HAND = ("MASTER_ADDR", "NODE_RANK")
_SEEN_WITHIN = 15.0  # seconds: network file systems show a new file late
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
    _require_tasks(num_nodes, devices)
    if not isinstance(num_nodes, int) or num_nodes <= 1:
        return
    missing = [name for name in _BY_HAND if name not in os.environ]
    if missing and not any(name in os.environ for name in _LAUNCHERS):
        raise UserError(
            f"--trainer.num_nodes is {num_nodes}, but nothing starts the program on the other nodes: no SLURM, no "
            f"torchrun, and no {' or '.join(missing)}; use srun (see slurm/train.sbatch) or torchrun, or set "
            f"{' and '.join(_BY_HAND)} on each"
        )


def require_precision(precision: object, device: torch.device) -> None:
    """Raises `UserError` where a GPU has no bf16: torch would emulate it, many times slower, and say nothing."""
    if str(precision) != "bf16-mixed" or device.type != "cuda":
        return
    with torch.cuda.device(device):
        if not torch.cuda.is_bf16_supported(including_emulation=False):
            raise UserError(
                f"{torch.cuda.get_device_name()} has no bf16, which --trainer.precision bf16-mixed computes in; give "
                "--trainer.precision 32-true, or take a GPU of the Ampere generation (2020) or later"
            )


def _require_tasks(num_nodes: object, devices: object) -> None:
    """Raises `UserError` where srun started other processes than the keys say: some would wait for what never comes."""
    tasks = os.environ.get("SLURM_NTASKS", "")
    is_known = isinstance(num_nodes, int) and str(devices).isdigit() and tasks.isdigit()
    if not is_known or not SLURMEnvironment.detect() or "SLURM_STEP_ID" not in os.environ:
        return
    asked = int(str(num_nodes)) * int(str(devices))
    if int(tasks) != asked:
        raise UserError(
            f"srun started {tasks} tasks, but --trainer.num_nodes {num_nodes} x --trainer.devices {devices} are "
            f"{asked} processes; ask SLURM for as many (--nodes, --ntasks-per-node), or set the keys to what there is"
        )


def end_together(strategy: Any, folder: Path | None = None) -> None:
    """Lets the processes of a strategy, the Trainer's or Fabric's, end with the first that does.

    Lightning's own observer ends the first process by SIGKILL, five seconds late and without a word.

    Args:
        strategy: Not set up yet.
        folder: What the processes of all nodes have to see, if anything.
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
            if folder is not None and getattr(strategy, "num_nodes", 1) > 1:
                _require_shared(strategy, folder)

    strategy.setup_environment = setup_environment


def _require_shared(strategy: Any, folder: Path) -> None:
    """Raises `UserError` on every process where one does not see what the first has put into a folder. Collective."""
    mark = folder / f".seen-by-all-{strategy.broadcast(uuid.uuid4().hex)}"
    if strategy.is_global_zero:
        folder.mkdir(parents=True, exist_ok=True)
        mark.touch()
    strategy.barrier()
    until = time.monotonic() + _SEEN_WITHIN
    while not (is_seen := mark.exists()) and time.monotonic() < until:
        with contextlib.suppress(OSError):
            os.scandir(folder).close()  # lets a network file system look again
        time.sleep(0.5)
    blind = strategy.reduce(torch.tensor(float(not is_seen), device=strategy.root_device), reduce_op="sum")
    if strategy.is_global_zero:
        mark.unlink(missing_ok=True)
    if blind > 0:
        raise UserError(
            f"{int(blind)} of {strategy.world_size} processes do not see {folder}, which the first one made; give a "
            "--run_dir that all nodes share"
        )
