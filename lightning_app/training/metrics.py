"""Validation losses, summed exactly over processes."""

import math
from collections.abc import Sequence

import torch
from torch import Tensor, nn
from torchmetrics import MeanMetric, Metric


class LanguageLoss(Metric):
    """Mean over tokens in nats, with bits per byte beside it because those compare across tokenizers.

    Nats are kept for every block, so that two measurements of one text can be compared block by block.

    Args:
        blocks: Blocks of the text, of all processes.
    """

    full_state_update = False

    nats: Tensor  # of every block, (B,)
    tokens: Tensor
    text_bytes: Tensor

    def __init__(self, blocks: int) -> None:
        super().__init__()
        self.add_state("nats", torch.zeros(blocks, dtype=torch.float64), dist_reduce_fx="sum")
        self.add_state("tokens", torch.zeros(blocks, dtype=torch.int64), dist_reduce_fx="sum")
        self.add_state("text_bytes", torch.zeros((), dtype=torch.int64), dist_reduce_fx="sum")

    def update(self, blocks: Tensor, nats_B: Tensor, tokens_B: Tensor, text_bytes: Tensor) -> None:
        """Adds a batch: numbers of its blocks, their summed nats and tokens predicted, UTF-8 bytes of their text."""
        self.nats[blocks] += nats_B.double()
        self.tokens[blocks] += tokens_B
        self.text_bytes += text_bytes

    def compute(self) -> tuple[Tensor, Tensor, Tensor]:
        """Returns nats per token and bits per byte, float64 (2,); and nats and tokens of every block, (B,)."""
        nats = self.nats.sum()
        figures = torch.stack([nats / self.tokens.sum(), nats / self.text_bytes / math.log(2)])
        return figures, self.nats.clone(), self.tokens.clone()


def change_error(before_B: Tensor, after_B: Tensor, tokens_B: Tensor) -> float | None:
    """Returns the standard error of the change of a loss, in nats per token, paired over the blocks of a text.

    Blocks differ in difficulty far more than training changes them: what counts is how much the change differs from
    block to block (the error of a ratio of means). None where there is one block, which says nothing of others.

    Args:
        before_B: Nats of every block.
        after_B: The same later.
        tokens_B: Tokens of every block.

    >>> change_error(torch.tensor([10.0, 40.0]), torch.tensor([11.0, 42.0]), torch.tensor([1, 2]))
    0.0
    >>> change_error(torch.tensor([10.0, 20.0]), torch.tensor([12.0, 20.0]), torch.tensor([1, 1]))
    1.0
    """
    blocks, tokens = len(tokens_B), tokens_B.sum()
    if blocks < 2:
        return None
    change_B = after_B.double() - before_B.double()
    residual_B = change_B - change_B.sum() / tokens * tokens_B
    return float((residual_B.square().sum() * blocks / (blocks - 1)).sqrt() / tokens)


NOISE = 2.0
"""Standard errors that a change must exceed to count."""


def is_beyond_noise(rise: float, error: float | None) -> bool:
    """Tells whether a loss rose by more than what differs from block to block explains."""
    return error is not None and rise > NOISE * error


Losses = dict[str, list[float]]
"""Nats per token and bits per byte of each language, by its short code."""

Errors = dict[str, float | None]
"""Standard error of the change of each language's loss, see `change_error`; None where it is not known."""


class ValidationLosses(nn.Module):
    """The losses of a validation, one for every loader.

    Args:
        blocks: Of every validation language, whose loaders come first.
        paper: Number of languages whose loss is taken as the paper's script takes it, too.
    """

    def __init__(self, blocks: Sequence[int], paper: int) -> None:
        super().__init__()
        self.of_languages = [LanguageLoss(each) for each in blocks]
        self.of_paper = [MeanMetric() for _ in range(paper)]
        self.metrics = nn.ModuleList([*self.of_languages, *self.of_paper])

    def add(self, loader: int, blocks: Tensor, nats_B: Tensor, tokens_B: Tensor, text_bytes: Tensor) -> None:
        """Adds a batch of a language."""
        self.of_languages[loader].update(blocks, nats_B, tokens_B, text_bytes)

    def add_paper(self, loader: int, loss: Tensor) -> None:
        """Adds the mean loss of a batch, which counts as much as any other batch."""
        self.of_paper[loader - len(self.of_languages)].update(loss)

    def of(self, codes: list[str]) -> Losses:
        """Returns the losses by the languages' short codes. Collective the first time."""
        pairs = zip(codes, self.of_languages, strict=True)
        return {code: metric.compute()[0].tolist() for code, metric in pairs}

    def of_blocks(self, codes: list[str]) -> dict[str, tuple[Tensor, Tensor]]:
        """Returns nats and tokens of every block by the languages' short codes, on the CPU. Collective as `of`."""
        pairs = zip(codes, self.of_languages, strict=True)
        found = {code: metric.compute() for code, metric in pairs}
        return {code: (nats_B.cpu(), tokens_B.cpu()) for code, (_, nats_B, tokens_B) in found.items()}

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
            figures[f"val/paper_loss/{code}"] = float(metric.compute())
        return figures

    def reset(self) -> None:
        """Forgets every loss."""
        for metric in (*self.of_languages, *self.of_paper):
            metric.reset()
