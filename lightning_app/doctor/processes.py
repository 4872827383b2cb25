"""Whether the processes of a run would find each other: SLURM, torchrun, or who starts them by hand."""

import os
import socket

from lightning_app.doctor.finding import Findings, ok, warning, wrong
from lightning_app.doctor.folders import file_system
from lightning_app.doctor.setup import Setup

_OF_ONE_MACHINE = ("ext2", "ext3", "ext4", "xfs", "btrfs", "zfs", "tmpfs", "overlay", "f2fs", "apfs", "ramfs")


def check_launch(setup: Setup) -> Findings:
    """The devices are there, and who starts the processes starts as many as the keys say."""
    if setup.launch_refusal:
        yield wrong("trainer", setup.launch_refusal)
    if setup.launch is None:
        return
    nodes, devices = _number(setup.settings.trainer.num_nodes), setup.devices
    launcher, started = _started()
    asked = nodes * devices
    if started is not None and started != asked:
        said = f"{launcher} starts {started} processes, but devices x num_nodes is {devices} x {nodes}"
        yield wrong("processes", said, _keys_for(started))
    else:
        by = f", started by {launcher}" if started is not None else ""
        yield ok("processes", f"{asked} on {nodes} node{'s' * (nodes > 1)}{by}")


def _started() -> tuple[str, int | None]:
    """Returns who starts the processes of this run, and how many; None where Lightning does it itself."""
    slurm = os.environ.get("SLURM_NTASKS")
    if slurm is not None and os.environ.get("SLURM_JOB_NAME") not in ("bash", "interactive"):
        return "srun", _number(slurm)
    if "TORCHELASTIC_RUN_ID" in os.environ:
        return "torchrun", _number(os.environ.get("WORLD_SIZE"))
    return "Lightning", None


def _keys_for(started: int) -> str:
    nodes = _number(os.environ.get("SLURM_NNODES") or os.environ.get("GROUP_WORLD_SIZE"))
    return f"--trainer.num_nodes {nodes} --trainer.devices {started // nodes}"


def _number(text: object) -> int:
    return int(str(text)) if str(text).isdigit() and int(str(text)) else 1


def check_address(setup: Setup) -> Findings:
    """The address at which processes of several nodes meet is one."""
    address = os.environ.get("MASTER_ADDR")
    if not address:
        return
    try:
        socket.getaddrinfo(address, None)
    except OSError as error:
        said = f"MASTER_ADDR is {address}, which is no host that is known here ({error.strerror})"
        yield wrong("address", said, "set it to the name of the first node")
    else:
        yield ok("address", f"the processes meet at {address}")


def check_shared_folders(setup: Setup) -> Findings:
    """All nodes see the same run and cache folder, as far as one of them can tell."""
    if _number(setup.settings.trainer.num_nodes) == 1:
        return
    for key, path in (("--run_dir", setup.settings.run_dir), ("--data.cache_dir", setup.settings.data.cache_dir)):
        kind = file_system(path)
        if kind in _OF_ONE_MACHINE:
            said = f"{path} is on {kind}, which is a disk of one machine; several nodes need a folder that they share"
            yield warning("shared folders", said, f"set {key} to one")
        else:
            yield ok("shared folders", f"{path} is on {kind or 'a file system of unknown kind'}")
