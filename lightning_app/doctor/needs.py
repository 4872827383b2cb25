"""Whether the run that is planned fits: on the disks, on the device, in the memory of the host."""

import shutil
from pathlib import Path

import psutil

from lightning_app.doctor.finding import Findings, ok, warning, wrong
from lightning_app.doctor.machine import cgroup_limit
from lightning_app.doctor.setup import Setup
from lightning_app.progress import short

_GIB = 2**30


def check_disk(setup: Setup) -> Findings:
    """The disks have room for the base, the tokens and the checkpoints."""
    if setup.plan is None:
        if setup.plan_refusal:
            yield wrong("plan", setup.plan_refusal)  # said already, where it is the base's or the text's
        path = Path(setup.settings.data.cache_dir).absolute()
        there = next(folder for folder in (path, *path.parents) if folder.is_dir())
        free = short(shutil.disk_usage(there).free)
        yield ok("disk", f"{free}B free; what a run would take is not known, because no plan could be made")
        return
    disk = setup.plan.disk
    load = disk.base_download_bytes
    base = "a base of unknown size" if load is None else f"{short(load)}B of base"
    tokens, checkpoints = short(disk.token_cache_bytes), short(disk.checkpoints_bytes)
    needs = f"{tokens}B of tokens, {checkpoints}B of checkpoints and {base} to write"
    if disk.too_small:
        said = f"the disk of {', '.join(disk.too_small)} is too small, with {short(disk.free_bytes)}B free: {needs}"
        yield wrong("disk", said, "set --data.cache_dir, --run_dir or HF_HOME to a larger one")
    else:
        yield ok("disk", f"{needs}; {short(disk.free_bytes)}B free")


def check_memory(setup: Setup) -> Findings:
    """The device has room for a training step, and the host for the weights on their way to it."""
    if setup.plan is None:
        return
    memory = setup.plan.memory
    said = f"{memory.peak_gib:.1f} GiB for a process; {memory.device} has {memory.device_gib:.1f} GiB"
    if memory.advice:
        yield wrong("memory", said, memory.advice)
    else:
        yield ok("memory", said)
    yield from _host_memory(memory.sizes.weights * setup.devices)


def _host_memory(weights: int) -> Findings:
    free = min(psutil.virtual_memory().available, cgroup_limit() or psutil.virtual_memory().available)
    if weights > free:
        said = f"loading takes {weights / _GIB:.1f} GiB of the host's memory, of which {free / _GIB:.1f} GiB are free"
        yield warning("host memory", said, "free some, or load on fewer devices of a node")
