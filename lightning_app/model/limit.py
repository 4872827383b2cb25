"""The limit of frozen training: the least arithmetic a step can do, and how fast a device can do it."""

import re
import time
from collections.abc import Iterable
from functools import cache

import torch
from torch import nn
from transformers import PreTrainedModel

from lightning_app.model.quantized import numbers_in

# Dense bf16 peaks with fp32 accumulation, from the vendors' data sheets; figures "with sparsity" are twice these.
_DENSE_TFLOPS = {
    "B200": 2250, "GH200": 989, "H200": 989, "H100 PCIe": 756, "H100 NVL": 835, "H100": 989, "MI300X": 1307,
    "A100": 312, "A40": 150, "A10G": 70, "A10": 125, "L40S": 362, "L40": 181, "L4": 121, "RTX A6000": 155,
    "RTX 6000 Ada": 364, "RTX 3090": 71, "RTX 4090": 165, "RTX 5090": 210,
}  # fmt: skip


# Bytes per second that their memory gives, in GB; of those that come in several sizes, the largest.
_MEMORY_GB = {
    "B200": 8000, "GH200": 4900, "H200": 4800, "H100 PCIe": 2000, "H100 NVL": 3900, "H100": 3350, "MI300X": 5300,
    "A100": 2039, "A40": 696, "A10G": 600, "A10": 600, "L40S": 864, "L40": 864, "L4": 300, "RTX A6000": 768,
    "RTX 6000 Ada": 960, "RTX 3090": 936, "RTX 4090": 1008, "RTX 5090": 1792,
}  # fmt: skip


def forward_flop(model: PreTrainedModel, block_size: int, layers: Iterable[int] | None = None) -> float:
    """Returns the floating-point operations of a forward per token: matrix products and causal attention.

    Args:
        model: The model; its weights may be on the meta device.
        block_size: T, tokens per sequence.
        layers: Count only these decoder layers and leave the output head out; all layers and the head where None.
    """
    config = model.config.get_text_config()
    counted = set(range(config.num_hidden_layers) if layers is None else layers)
    linears = [(name, module) for name, module in model.named_modules() if isinstance(module, nn.Linear)]
    weights = sum(
        numbers_in(linear.weight)
        for name, linear in linears
        if (layer := re.search(r"\.(\d+)\.", name)) is not None and int(layer[1]) in counted
    )
    if layers is None:
        weights += model.get_output_embeddings().weight.numel()
    head_size = getattr(config, "head_dim", None) or config.hidden_size // config.num_attention_heads
    attention = 2 * block_size * config.num_attention_heads * head_size  # two products over half of the positions
    return 2 * weights + attention * len(counted)


def frozen_step_flop(model: PreTrainedModel, first_layer: int, block_size: int) -> float:
    """Returns the least floating-point operations of a training step per token when the weights are frozen.

    The forward, and gradients with respect to inputs down to the first trained layer: 4 instead of 6 per weight. The
    few weight gradients count as nothing. In the backward attention makes 5 products where the forward makes 2.

    Args:
        model: The model; its weights may be on the meta device.
        first_layer: The lowest layer with trained neurons; nothing below it, nor its own attention, needs a gradient.
        block_size: T, tokens per sequence.
    """
    every = forward_flop(model, block_size)
    above = range(first_layer + 1, model.config.get_text_config().num_hidden_layers)
    with_attention, without = (forward_flop(model, size, above) for size in (block_size, 0))
    head = 2 * model.get_output_embeddings().weight.numel()
    return every + head + without + 2.5 * (with_attention - without)


def known_peak(name: str) -> float | None:
    """Returns the dense bf16 peak of a device in FLOP/s by its name, or None where the table lacks it.

    >>> known_peak("NVIDIA H100 80GB HBM3"), known_peak("NVIDIA A100-SXM4-80GB"), known_peak("Xeon")
    (989000000000000.0, 312000000000000.0, None)
    """
    return next((tflops * 1e12 for device, tflops in _DENSE_TFLOPS.items() if device in name), None)


def known_bandwidth(name: str) -> float | None:
    """Returns the bytes per second of a device's memory by its name, or None where the table lacks it.

    >>> known_bandwidth("NVIDIA H100 80GB HBM3"), known_bandwidth("Xeon")
    (3350000000000.0, None)
    """
    return next((gb * 1e9 for device, gb in _MEMORY_GB.items() if device in name), None)


def device_bandwidth(device: torch.device) -> float:
    """Returns the bytes per second that a device reads from its memory: by its data sheet, or measured."""
    known = known_bandwidth(torch.cuda.get_device_name(device)) if device.type == "cuda" else None
    return known or _measured_bandwidth(device)


def device_rate(device: torch.device, dtype: torch.dtype) -> tuple[float, str]:
    """Returns a device's rate in FLOP/s and where the figure comes from: its dense bf16 peak, or a measurement."""
    if device.type == "cuda":
        name = torch.cuda.get_device_name(device)
        peak = known_peak(name) if dtype == torch.bfloat16 else None
        if peak is not None:
            return peak, f"dense bf16 peak of {name}"
    return _measured_rate(device, dtype), f"measured rate of {str(dtype).removeprefix('torch.')} matrix products"


@cache
def _measured_rate(device: torch.device, dtype: torch.dtype, seconds: float = 0.3) -> float:
    """Returns the rate of a large square matrix product, the best of several, once a process; takes half a second."""
    size = 1024 if device.type == "cpu" else 8192
    a, b = (torch.randn(size, size, device=device, dtype=dtype) for _ in range(2))
    best = 0.0
    until = time.perf_counter() + seconds
    while best == 0.0 or time.perf_counter() < until:
        torch.mm(a, b)[0, 0].item()
        started = time.perf_counter()
        torch.mm(a, b)[0, 0].item()  # waits for the device
        best = max(best, 2 * size**3 / (time.perf_counter() - started))
    return best


@cache
def _measured_bandwidth(device: torch.device, seconds: float = 0.2) -> float:
    """Returns how fast a large array is read, the best of several, once a process."""
    array = torch.ones(1 << (25 if device.type == "cpu" else 28), device=device)
    best, until = 0.0, time.perf_counter() + seconds
    while best == 0.0 or time.perf_counter() < until:
        started = time.perf_counter()
        array.sum().item()
        best = max(best, array.nbytes / (time.perf_counter() - started))
    return best
