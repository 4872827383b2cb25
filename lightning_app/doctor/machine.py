"""The machine: what it computes with, its cores and memory, and whether it can compile."""

import os
import shutil
import subprocess
from pathlib import Path

import psutil
import torch

from lightning_app.doctor.finding import Findings, ok, warning, wrong
from lightning_app.doctor.setup import Setup
from lightning_app.training.compilation import require_compiler

_GIB = 2**30
_FULL = 0.9
_CGROUP_LIMITS = ("/sys/fs/cgroup/memory.max", "/sys/fs/cgroup/memory/memory.limit_in_bytes")
_LIST_GPUS = ["nvidia-smi", "--query-gpu=name,driver_version", "--format=csv,noheader"]
_TIMEOUT_S = 10


def check_device(setup: Setup) -> Findings:
    """There is a GPU that torch can use, with bf16, and nobody else has it."""
    if not torch.cuda.is_available():
        yield from _without_gpu(setup)
        return
    build = f"CUDA {torch.version.cuda}" if torch.version.cuda else f"ROCm {torch.version.hip}"
    for index in range(torch.cuda.device_count()):
        with torch.cuda.device(index):
            name, has_bf16 = torch.cuda.get_device_name(), torch.cuda.is_bf16_supported(including_emulation=False)
            free, total = torch.cuda.mem_get_info()
        said = f"GPU {index} {name}, {free / _GIB:.1f} of {total / _GIB:.1f} GiB free, torch for {build}"
        if not has_bf16 and setup.settings.trainer.precision == "bf16-mixed":
            yield wrong("device", f"{said}, no bf16", "train with --trainer.precision 32-true")
        elif free < _FULL * total:
            yield warning("device", f"{said}: something else uses it", "nvidia-smi shows what")
        else:
            yield ok("device", f"{said}{', bf16' * has_bf16}")


def _without_gpu(setup: Setup) -> Findings:
    gpus = _list_gpus()
    if gpus:
        yield warning("device", f"{gpus} is here, but torch cannot use it: {_why_not()}", _how_to_use())
    elif (named := setup.settings.trainer.accelerator) == "cpu":
        yield ok("device", "the CPU, as --trainer.accelerator says")
    elif named != "auto":
        yield wrong("device", f"there is no GPU, but --trainer.accelerator is {named}", "set it to auto")
    else:
        yield warning("device", "there is no GPU: a run would train on the CPU", "an 8B model takes a GPU of 24 GB")


def _list_gpus() -> str:
    """Returns the GPUs that NVIDIA's driver knows, with its version; nothing where there is no driver."""
    try:
        done = subprocess.run(_LIST_GPUS, capture_output=True, text=True, timeout=_TIMEOUT_S, check=False)
    except (OSError, subprocess.TimeoutExpired):
        return ""
    if done.returncode != 0:
        return ""
    rows = [row.rpartition(", ") for row in done.stdout.strip().split("\n") if row.strip()]
    return f"{', '.join(name for name, _, _ in rows)} (driver {rows[0][2]})" if rows else ""


def _why_not() -> str:
    try:
        torch.cuda.init()
    except (RuntimeError, AssertionError) as error:
        return " ".join(str(error).split())[:160]
    return f"CUDA_VISIBLE_DEVICES is '{os.environ.get('CUDA_VISIBLE_DEVICES', '')}'"


def _how_to_use() -> str:
    if "CUDA_VISIBLE_DEVICES" in os.environ:
        return "unset CUDA_VISIBLE_DEVICES"
    if torch.version.cuda is None:
        return f"torch {torch.__version__} is a build without CUDA: install one with it, see pytorch.org"
    return f"torch is built for CUDA {torch.version.cuda}: update the driver, or install a build for an older CUDA"


def check_cores(setup: Setup) -> Findings:
    """Says how many cores this process may use, and how many of them torch does."""
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    threads, named = torch.get_num_threads(), os.environ.get("OMP_NUM_THREADS")
    if threads > cores:
        said = f"{cores} CPU cores for this process, but torch starts {threads} threads"
        yield warning("cores", said, f"export OMP_NUM_THREADS={cores}")
    else:
        why = f", as OMP_NUM_THREADS={named} says" if named else ""
        yield ok("cores", f"{cores} CPU cores; torch computes with {threads} threads{why}")


def check_host_memory(setup: Setup) -> Findings:
    """Says how much memory the host has for this process."""
    memory, limit = psutil.virtual_memory(), cgroup_limit()
    said = f"{memory.available / _GIB:.1f} of {memory.total / _GIB:.1f} GiB free"
    yield ok("host memory", said + (f"; this process may have {limit / _GIB:.1f} GiB" if limit else ""))


def cgroup_limit() -> int | None:
    """Returns the bytes that a container or a scheduler leaves this process; None where nothing is set below all."""
    for path in map(Path, _CGROUP_LIMITS):
        try:
            limit = int(path.read_text())
        except (OSError, ValueError):
            continue  # there is none, or it is "max"
        return limit if limit < psutil.virtual_memory().total else None
    return None


def check_compiler(setup: Setup) -> Findings:
    """The layers can be compiled, where that is asked for."""
    compiler = shutil.which(os.environ.get("CXX", "g++")) or shutil.which("clang++")
    if not setup.settings.model.compile:
        yield ok("compiler", f"not needed: --model.compile is off ({compiler or 'there is no C++ compiler'})")
        return
    require_compiler(torch.device("cuda" if torch.cuda.is_available() else "cpu"))
    yield ok("compiler", f"torch.compile works ({compiler})")
