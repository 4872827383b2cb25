"""What is measured: training steps, the loss, profiling, the token cache, the plan, and how things scale."""

import tempfile
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any, Literal

import torch
from torch.autograd import DeviceType
from torch.nn.functional import cross_entropy
from torch.profiler import profile
from torch.utils.data import DataLoader

from benchmarks.measure import Result, interleave, peak_bytes, saved_bytes, summarise, wait_for
from benchmarks.subjects import Subject, build_model, held_bytes, model_without_weights, released_shape, subjects
from datamodules.chunking import cut_blocks, usable_tokens
from datamodules.invented import write_hub
from datamodules.sources import open_source
from datamodules.token_cache import fill
from datamodules.tokenizers import train_tokenizer
from lightning_app.languages import find_language
from lightning_app.methods.registry import build_method
from lightning_app.model.ffn import find_gated_ffns
from lightning_app.model.limit import device_rate, forward_flop, frozen_step_flop
from lightning_app.model.loss import OutputHead, token_loss_sum
from lightning_app.planning.memory import Batches, simulate
from lightning_app.profiling.counting import GateCounter

_MIB = 2**20
_OPERATIONS = 25


@dataclass(frozen=True)
class Setting:
    """A model and a batch.

    Attributes:
        shape: Name of the model's shape.
        batch: Sequences.
        tokens: Tokens per sequence.
        share: Of all neurons that are trained.
    """

    shape: str
    batch: int
    tokens: int
    share: float = 0.015

    @classmethod
    def parse(cls, text: str) -> "Setting":
        """Reads ``95m:2x512``, or ``95m:2x512@0.0131`` with the share of the neurons."""
        shape, _, rest = text.partition(":")
        size, _, share = rest.partition("@")
        batch, tokens = map(int, size.split("x"))
        return cls(shape, batch, tokens, float(share)) if share else cls(shape, batch, tokens)

    def __str__(self) -> str:
        return f"{self.shape}:{self.batch}x{self.tokens}"


def _ids(vocabulary: int, batch: int, tokens: int, device: torch.device) -> torch.Tensor:
    return torch.randint(0, vocabulary, (batch, tokens), generator=torch.Generator().manual_seed(1)).to(device)


def _ways(setting: Setting, device: torch.device, dtype: torch.dtype, names: list[str]) -> dict[str, Subject]:
    base = build_model(setting.shape, device, dtype)
    config = base.config
    neurons = released_shape(config.num_hidden_layers, config.intermediate_size, setting.share)
    ids = _ids(config.vocab_size, setting.batch, setting.tokens, device)
    ways = {}
    for name in names:
        try:
            ways |= subjects(base, neurons, ids, [name])
            ways[name].step()
        except torch.OutOfMemoryError:
            ways.pop(name, None)
            print(f"{setting}: {name} does not fit this device and is left out")
    return ways


def train_step(
    setting: Setting, device: torch.device, dtype: torch.dtype, names: list[str], rounds: int, name: str = "train_step"
) -> list[Result]:
    """A whole step of every named way to train, beside the bound of frozen training; what each keeps and takes."""
    ways = _ways(setting, device, dtype, names)
    results = _sizes(name, ways, device)
    tokens = setting.batch * setting.tokens
    flop = frozen_step_flop(ways["frozen"].model, 0, setting.tokens)
    rate, _ = device_rate(device, dtype)
    rates = {"tokens_per_second": ("tokens/s", tokens), "share_of_limit": ("x", tokens * flop / rate)}
    return results + interleave(name, {n: way.step for n, way in ways.items()}, "frozen", rounds, device, rates)


def operations(setting: Setting, device: torch.device, dtype: torch.dtype, steps: int = 3) -> list[Result]:
    """Where the time of a step goes: the kernels of a GPU, or the operations of a CPU, that take the most, by name.

    ``busy`` is their sum; what a step takes beyond that, a GPU waits for the program.
    """
    results, title, on_gpu = [], f"operations {setting}", device.type == "cuda"
    kind = "self_device_time_total" if on_gpu else "self_cpu_time_total"
    for name, way in _ways(setting, device, dtype, ["frozen", "packed", "documents"]).items():
        with profile() as found:
            for _ in range(steps):
                way.step()
            wait_for(device)
        # On a GPU the program's operations have the time of their kernels, too.
        events = [e for e in found.key_averages() if (e.device_type == DeviceType.CUDA) == on_gpu]
        seconds = {e.key[:100]: getattr(e, kind) / 1e6 / steps for e in events if not e.is_user_annotation}
        most = sorted(seconds, key=seconds.__getitem__, reverse=True)[:_OPERATIONS]
        results.append(summarise(title, name, "busy", "s", [sum(seconds.values())]))
        results += [summarise(title, name, each, "s", [seconds[each]]) for each in most]
    return results


def _sizes(name: str, ways: dict[str, Subject], device: torch.device) -> list[Result]:
    results = []
    kept = {way: saved_bytes(subject.loss, subject.model) for way, subject in ways.items()}
    for way, subject in ways.items():
        peak = (held_bytes(subject) + peak_bytes(subject.step, device)) / _MIB
        results.append(summarise(name, way, "saved_for_backward", "MiB", [kept[way] / _MIB]))
        results.append(summarise(name, way, "saved_ratio_to_frozen", "x", [kept[way] / kept["frozen"]]))
        results.append(summarise(name, way, "peak_memory", "MiB", [peak]))
    return results


def plan(setting: Setting, device: torch.device, dtype: torch.dtype) -> list[Result]:
    """The memory that `plan` expects of a training step, and what the step takes."""
    (way,) = _ways(setting, device, dtype, ["packed"]).values()
    measured = held_bytes(way) + peak_bytes(way.step, device)
    model = model_without_weights(setting.shape, dtype)
    neurons = released_shape(model.config.num_hidden_layers, model.config.intermediate_size, setting.share)
    size = (setting.batch, setting.tokens)
    planned = simulate(model, build_method("subnetwork", {}), neurons, Batches(size, size, None)).training
    return [
        summarise(f"plan {setting}", "planned", "peak_memory", "MiB", [planned / _MIB]),
        summarise(f"plan {setting}", "measured", "peak_memory", "MiB", [measured / _MIB]),
        summarise(f"plan {setting}", "planned", "ratio_to_measured", "x", [planned / measured]),
    ]


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

    variants: dict[str, Callable[[], object]] = {"plain": plain, "chunked": chunked}
    peaks = {name: peak_bytes(call, device) for name, call in variants.items()}
    results = [summarise("loss", name, "peak_memory", "MiB", [peak / _MIB]) for name, peak in peaks.items()]
    results.append(summarise("loss", "chunked", "peak_ratio_to_plain", "x", [peaks["chunked"] / peaks["plain"]]))
    return results + interleave("loss", variants, "plain", rounds, device)


def profiling(shape: str, device: torch.device, dtype: torch.dtype, tokens: int, rounds: int) -> list[Result]:
    """The decoder's forward without head, bare and with gates counted."""
    model = build_model(shape, device, dtype).eval()
    ids = _ids(model.config.vocab_size, 1, tokens, device)
    counter = GateCounter(find_gated_ffns(model), device)

    @torch.no_grad()
    def bare() -> None:
        model.base_model(input_ids=ids, use_cache=False)

    def counted() -> None:
        with counter:
            bare()

    name = f"profiling {shape}:1x{tokens}"
    flop = forward_flop(model, tokens, range(model.config.num_hidden_layers))
    rate, _ = device_rate(device, dtype)
    rates = {"tokens_per_second": ("tokens/s", float(tokens)), "share_of_limit": ("x", tokens * flop / rate)}
    return interleave(name, {"bare": bare, "counted": counted}, "bare", rounds, device, rates)


def token_cache(rounds: int) -> list[Result]:
    """Filling a token cache, beside its tokenizer alone on the same text, and reading training batches from it."""
    with tempfile.TemporaryDirectory() as folder:
        root = Path(folder)
        write_hub(root, megabytes={"qaa-Latn": 4.0}, dev=1, devtest=1)
        language = find_language("qaa-Latn")
        source = open_source(str(root), language, "main")
        tokenizer = train_tokenizer([(source, 1.0)], 4096, root)
        documents = [document for batch, _ in source.batches(None) for document in batch]
        text_mb = sum(len(document.encode()) for document in documents) / 1e6
        turn = iter(range(10**6))

        def encode() -> None:
            for first in range(0, len(documents), 256):
                tokenizer(documents[first : first + 256], add_special_tokens=False, verbose=False)

        def filling() -> object:
            usable = partial(usable_tokens, "packed", 512)
            return fill(root / f"cache{next(turn)}", source, tokenizer, 10**9, usable, "filling", is_shown=False)

        variants = {"tokenizer_alone": encode, "fill": filling}
        rates = {"text_per_second": ("MB/s", text_mb)}
        results = interleave("token_cache", variants, "tokenizer_alone", rounds, torch.device("cpu"), rates)
        cache = filling()

        def reading(chunking: Literal["packed", "documents", "plain"]) -> Callable[[], None]:
            blocks = cut_blocks(chunking, cache, 512, 10**9, separator=0)
            loader: DataLoader[Any] = DataLoader(blocks, batch_size=2, shuffle=True, collate_fn=list)  # type: ignore[arg-type]
            return lambda: [None for _ in loader].clear()

        readers = {chunking: reading(chunking) for chunking in ("packed", "plain")}
        rates = {"tokens_per_second": ("tokens/s", float(cache.tokens))}
        return results + interleave("token_cache_read", readers, "packed", rounds, torch.device("cpu"), rates)


def scaling(base: Setting, shapes: list[str], device: torch.device, dtype: torch.dtype, rounds: int) -> list[Result]:
    """Step time and peak memory over sequence length, batch, share of the neurons and size of the model."""
    names = ["frozen", "packed", "masked", "lora"]
    axes: dict[str, list[tuple[float, Setting]]] = {
        "tokens per sequence": [(t, Setting(base.shape, 1, t)) for t in (128, 256, 512, 1024, 2048)],
        "sequences": [(b, Setting(base.shape, b, base.tokens)) for b in (1, 2, 4, 8)],
        "share of neurons": [(s, Setting(base.shape, 1, base.tokens, s)) for s in (0.002, 0.01, 0.05, 0.25)],
        "parameters": [
            (sum(w.numel() for w in model_without_weights(shape, dtype).parameters()), Setting(shape, 1, base.tokens))
            for shape in shapes
        ],
    }
    results = []
    for axis, points in axes.items():
        for value, setting in points:
            results += train_step(setting, device, dtype, names, rounds, f"scaling {axis} {value:g}")
    return results
