"""What is measured: the training step, the loss, profiling."""

from collections.abc import Callable
from typing import Any

import torch
from torch.nn.functional import cross_entropy

from benchmarks.measure import Result, interleave, saved_bytes, summarise
from benchmarks.subjects import Subject, build_model, released_shape, subjects
from callbacks.counting import GateCounter
from lightning_app.ffn import find_gated_ffns
from lightning_app.loss import OutputHead, token_loss_sum


def train_step(
    shape: str, device: torch.device, dtype: torch.dtype, batch: int, tokens: int, names: list[str], rounds: int
) -> list[Result]:
    """A whole step of every way to train, beside the bound of frozen training, and what each keeps for the backward."""
    base = build_model(shape, device, dtype)
    config = base.config
    neurons = released_shape(config.num_hidden_layers, config.intermediate_size, 0.015)
    ids = torch.randint(0, config.vocab_size, (batch, tokens), generator=torch.Generator().manual_seed(1)).to(device)
    ways = subjects(base, neurons, ids, names)
    results = _sizes(ways)
    return results + interleave("train_step", {n: way.step for n, way in ways.items()}, "frozen", rounds, device)


def _sizes(ways: dict[str, Subject]) -> list[Result]:
    kept = {name: saved_bytes(way.loss, way.model) for name, way in ways.items()}
    results = []
    for name, size in kept.items():
        results.append(summarise("train_step", name, "saved_for_backward", "MiB", [size / 2**20]))
        results.append(summarise("train_step", name, "saved_ratio_to_frozen", "x", [size / kept["frozen"]]))
    return results


def loss(device: torch.device, dtype: torch.dtype, rounds: int) -> list[Result]:
    """Forward and backward of the loss at a vocabulary of 128k: chunked, and torch's own on all logits at once."""
    torch.manual_seed(0)
    linear = torch.nn.Linear(512, 128_256, bias=False, device=device, dtype=dtype).requires_grad_(False)
    hidden = torch.randn(4096, 512, device=device, dtype=dtype, requires_grad=True)
    labels = torch.randint(0, 128_256, (4096,), device=device)
    head = OutputHead(linear)

    def plain() -> None:
        cross_entropy(head.logits(hidden), labels).backward()

    def chunked() -> None:
        (token_loss_sum(hidden, head, labels) / len(labels)).backward()

    variants: dict[str, Callable[[], Any]] = {"plain": plain, "chunked": chunked}
    peaks = {name: _peak_mib(call, device) for name, call in variants.items()}
    results = [summarise("loss", name, "peak", "MiB", [peak]) for name, peak in peaks.items()]
    results.append(summarise("loss", "chunked", "peak_ratio_to_plain", "x", [peaks["chunked"] / peaks["plain"]]))
    return results + interleave("loss", variants, "plain", rounds, device)


def profiling(shape: str, device: torch.device, dtype: torch.dtype, tokens: int, rounds: int) -> list[Result]:
    """The decoder's forward without head, bare and with gates counted."""
    model = build_model(shape, device, dtype).eval()
    ids = torch.randint(0, model.config.vocab_size, (1, tokens), generator=torch.Generator().manual_seed(1)).to(device)
    counter = GateCounter(find_gated_ffns(model), device)

    @torch.no_grad()
    def bare() -> None:
        model.base_model(input_ids=ids, use_cache=False)

    def counted() -> None:
        with counter:
            bare()

    return interleave("profiling", {"bare": bare, "counted": counted}, "bare", rounds, device)


def _peak_mib(call: Callable[[], Any], device: torch.device) -> float:
    """Returns the most memory that was allocated at a time during ``call``, in MiB."""
    if device.type == "cuda":
        torch.cuda.reset_peak_memory_stats()
        before = torch.cuda.memory_allocated()
        call()
        return (torch.cuda.max_memory_allocated() - before) / 2**20
    with torch.profiler.profile(activities=[torch.profiler.ProfilerActivity.CPU], profile_memory=True) as profile:
        call()
    events = [event for event in profile.profiler.kineto_results.events() if event.name() == "[memory]"]
    now = peak = 0
    for event in sorted(events, key=lambda event: event.start_ns()):
        now += event.nbytes()
        peak = max(peak, now)
    return peak / 2**20
