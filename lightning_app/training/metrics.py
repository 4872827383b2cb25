"""Validation loss of one language, summed exactly over processes."""

import math

import torch
from torch import Tensor
from torchmetrics import Metric


class LanguageLoss(Metric):
    """Mean over tokens in nats, with bits per byte beside it because those compare across tokenizers."""

    full_state_update = False

    nats: Tensor
    tokens: Tensor
    text_bytes: Tensor

    def __init__(self) -> None:
        super().__init__()
        self.add_state("nats", torch.zeros((), dtype=torch.float64), dist_reduce_fx="sum")
        self.add_state("tokens", torch.zeros((), dtype=torch.int64), dist_reduce_fx="sum")
        self.add_state("text_bytes", torch.zeros((), dtype=torch.int64), dist_reduce_fx="sum")

    def update(self, nats: Tensor, tokens: Tensor, text_bytes: Tensor) -> None:
        """Adds a batch: summed nats, tokens predicted and UTF-8 bytes of their text."""
        self.nats += nats.double()
        self.tokens += tokens
        self.text_bytes += text_bytes

    def compute(self) -> Tensor:
        """Returns (nats per token, bits per byte), float64 (2,)."""
        return torch.stack([self.nats / self.tokens, self.nats / self.text_bytes / math.log(2)])


Losses = dict[str, list[float]]
"""Nats per token and bits per byte of each language, by its short code."""


def validation_figures(losses: Losses, shares: dict[str, float]) -> dict[str, float]:
    """Returns what is logged of a validation: losses, bits per byte, and the mean loss by ``shares``.

    Args:
        losses: Of every validation language.
        shares: Shares of the languages that are trained on; where there are none, all languages count alike.
    """
    shares = shares or dict.fromkeys(losses, 1.0)
    figures = {"val/loss": sum(losses[code][0] * share for code, share in shares.items()) / sum(shares.values())}
    for code, (loss, bits) in losses.items():
        figures |= {f"val/loss/{code}": loss, f"val/bits_per_byte/{code}": bits}
    return figures
