"""Processes that this program launches: they end with it."""

import ctypes
import os
import signal
import sys

_LAUNCHER = "NEUROGLOT_LAUNCHER"
_PARENT_DEATH_SIGNAL = 1  # PR_SET_PDEATHSIG of Linux


def launches_processes() -> None:
    """Notes that this process is about to launch others, for them to end with it."""
    os.environ[_LAUNCHER] = str(os.getpid())


def end_with_launcher() -> None:
    """Lets the system end this process with the one that launched it, where that was this program."""
    launcher = os.environ.get(_LAUNCHER)
    if launcher is not None and os.environ.get("LOCAL_RANK", "0") != "0":
        end_with_parent()
        if os.getppid() != int(launcher):
            os._exit(1)  # it has ended meanwhile


def end_with_parent() -> None:
    """Lets the system end this process when the one that launched it ends."""
    if sys.platform == "linux":
        ctypes.CDLL(None).prctl(_PARENT_DEATH_SIGNAL, signal.SIGKILL)


def rank_by_launcher() -> int:
    """Returns the rank that a launcher gave this process; 0 where there is none."""
    named = (os.environ.get(name, "") for name in ("SLURM_PROCID", "RANK", "LOCAL_RANK"))
    return next((int(rank) for rank in named if rank.isdigit()), 0)
