"""Processes of Lightning's strategies that end together; see `lightning_app.peers`."""

from typing import Any

from lightning.fabric.strategies.launchers import subprocess_script as of_fabric
from lightning.pytorch.strategies.launchers import subprocess_script as of_trainer

from lightning_app.peers import join, launches_processes, watch_children


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
