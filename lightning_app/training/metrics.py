"""Validation losses, summed exactly over processes."""

import math
from typing import cast

import torch
from torch import Tensor, nn
from torchmetrics import MeanMetric, Metric


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


class ValidationLosses(nn.Module):
    """The losses of a validation, one for every loader.

    Args:
        languages: Number of validation languages, whose loaders come first.
        paper: Number of languages whose loss is taken as the paper's script takes it, too.
    """

    def __init__(self, languages: int, paper: int) -> None:
        super().__init__()
        self.of_languages = nn.ModuleList(LanguageLoss() for _ in range(languages))
        self.of_paper = nn.ModuleList(MeanMetric() for _ in range(paper))

    def add(self, loader: int, nats: Tensor, tokens: Tensor, text_bytes: Tensor) -> None:
        """Adds a batch of a language."""
        cast(LanguageLoss, self.of_languages[loader]).update(nats, tokens, text_bytes)

    def add_paper(self, loader: int, loss: Tensor) -> None:
        """Adds the mean loss of a batch, which counts as much as any other batch."""
        cast(MeanMetric, self.of_paper[loader - len(self.of_languages)]).update(loss)

    def of(self, codes: list[str]) -> Losses:
        """Returns the losses by the languages' short codes. Collective the first time."""
        pairs = zip(codes, self.of_languages, strict=True)
        return {code: cast(LanguageLoss, metric).compute().tolist() for code, metric in pairs}

    def figures(self, losses: Losses, shares: dict[str, float], paper: list[str]) -> dict[str, float]:
        """Returns what is logged of a validation: losses, bits per byte, and the mean loss by ``shares``.

        Args:
            losses: Of every validation language.
            shares: Of the languages that are adapted to; where there are none, all languages count alike.
            paper: Short codes of the languages with the paper's loss.
        """
        shares = shares or dict.fromkeys(losses, 1.0)
        figures = {"val/loss": sum(losses[code][0] * share for code, share in shares.items()) / sum(shares.values())}
        for code, (loss, bits) in losses.items():
            figures |= {f"val/loss/{code}": loss, f"val/bits_per_byte/{code}": bits}
        for code, metric in zip(paper, self.of_paper, strict=True):
            figures[f"val/paper_loss/{code}"] = float(cast(MeanMetric, metric).compute())
        return figures

    def reset(self) -> None:
        """Forgets every loss."""
        for metric in (*self.of_languages, *self.of_paper):
            cast(Metric, metric).reset()
