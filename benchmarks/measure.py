"""Honest timing on a noisy machine: variants take turns, and what counts is their ratio within a round."""

import gc
import platform
import statistics
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass
from importlib import metadata
from pathlib import Path

import torch

from lightning_app.files import JSON


@dataclass(frozen=True)
class Result:
    """One figure: the median over rounds, and its quartiles as ``low`` and ``high``."""

    benchmark: str
    variant: str
    metric: str
    unit: str
    median: float
    low: float
    high: float


def summarise(benchmark: str, variant: str, metric: str, unit: str, values: list[float]) -> Result:
    """Returns median and quartiles of one or more values."""
    low, median, high = statistics.quantiles(values, n=4) if len(values) > 1 else values * 3
    return Result(benchmark, variant, metric, unit, median, low, high)


def interleave(
    benchmark: str,
    variants: dict[str, Callable[[], object]],
    reference: str,
    rounds: int,
    device: torch.device,
    rates: dict[str, tuple[str, float]] | None = None,
) -> list[Result]:
    """Times the variants in turn and returns seconds and the ratio to ``reference`` of the same round.

    Args:
        benchmark: Name for the results.
        variants: What to time, by name; each is called once before the first round.
        reference: The variant that the ratios are to.
        rounds: How often everything is timed.
        device: Synchronised around every call.
        rates: Further metrics: name, unit, and the amount that is divided by the seconds.
    """
    for call in variants.values():
        call()
    seconds: dict[str, list[float]] = {name: [] for name in variants}
    for turn in range(rounds):
        names = list(variants)
        for name in names[turn % len(names) :] + names[: turn % len(names)]:
            wait_for(device)
            start = time.perf_counter()
            variants[name]()
            wait_for(device)
            seconds[name].append(time.perf_counter() - start)
    results = []
    for name, values in seconds.items():
        ratios = [value / base for value, base in zip(values, seconds[reference], strict=True)]
        results.append(summarise(benchmark, name, "time", "s", values))
        results.append(summarise(benchmark, name, f"ratio_to_{reference}", "x", ratios))
        for metric, (unit, amount) in (rates or {}).items():
            results.append(summarise(benchmark, name, metric, unit, [amount / value for value in values]))
    return results


def wait_for(device: torch.device) -> None:
    """Waits until a device has done what it was given."""
    if device.type == "cuda":
        torch.cuda.synchronize()


def saved_bytes(call: Callable[[], object], model: torch.nn.Module) -> int:
    """Returns the bytes of distinct storages that a forward keeps for its backward, without the model's weights."""
    weights = {weight.untyped_storage().data_ptr() for weight in (*model.parameters(), *model.buffers())}
    kept: dict[int, int] = {}

    def pack(tensor: torch.Tensor) -> torch.Tensor:
        if tensor.is_sparse:
            return tensor  # indices and values of SHiRA: small beside its clones
        storage = tensor.untyped_storage()
        if storage.data_ptr() not in weights:
            kept[storage.data_ptr()] = storage.nbytes()
        return tensor

    call()  # what compiles does so now: under these hooks Dynamo cannot
    with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
        keep = call()
    del keep
    return sum(kept.values())


def peak_bytes(call: Callable[[], object], device: torch.device) -> int:
    """Returns the most that was allocated at a time during ``call``, beyond what was there before."""
    gc.collect()
    if device.type == "cuda":
        torch.cuda.reset_peak_memory_stats()
        before = torch.cuda.memory_allocated()
        call()
        return torch.cuda.max_memory_allocated() - before
    with torch.profiler.profile(activities=[torch.profiler.ProfilerActivity.CPU], profile_memory=True) as profile:
        call()
    events = [event for event in profile.profiler.kineto_results.events() if event.name() == "[memory]"]
    now = peak = 0
    for event in sorted(events, key=lambda event: event.start_ns()):
        now += event.nbytes()
        peak = max(peak, now)
    return peak


def machine(device: torch.device) -> JSON:
    """Returns what the figures were measured on."""
    name = torch.cuda.get_device_name() if device.type == "cuda" else _processor()
    versions = {package: metadata.version(package) for package in ("torch", "transformers", "peft", "tokenizers")}
    return {"device": name, "threads": torch.get_num_threads(), "python": platform.python_version(), **versions}


def _processor() -> str:
    """Returns the name of the CPU where Linux tells it, else of its kind."""
    info = Path("/proc/cpuinfo")
    lines = info.read_text(encoding="utf-8").split("\n") if info.exists() else []
    names = [line.partition(":")[2].strip() for line in lines if line.startswith("model name")]
    return names[0] if names else platform.processor() or platform.machine()


def table(results: list[Result]) -> str:
    """Returns the figures as text, ratios and sizes before seconds."""
    width = max((len(r.benchmark) for r in results), default=0) + 2
    lines = [f"{'benchmark':<{width}}{'variant':<22}{'metric':<24}{'median':>12}{'low':>12}{'high':>12}  unit"]
    for r in sorted(results, key=lambda r: (r.benchmark, r.metric, r.median)):
        figures = "".join(f"{value:>12.4g}" for value in (r.median, r.low, r.high))
        lines.append(f"{r.benchmark:<{width}}{r.variant:<22}{r.metric:<24}{figures}  {r.unit}")
    return "\n".join(lines)


def as_rows(results: list[Result]) -> list[JSON]:
    """Returns the figures as plain data."""
    return [asdict(result) for result in results]
