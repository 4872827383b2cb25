"""Answers of all processes in one place, for figures that are of a whole corpus."""

from collections.abc import Sequence

import torch
from torch import Tensor
from torchmetrics import Metric
from torchmetrics.utilities import dim_zero_cat


class GatheredAnswers(Metric):
    """Answers beside what was expected; torchmetrics gathers their bytes where there are several processes."""

    full_state_update = False

    text: list[Tensor]
    lengths: list[Tensor]

    def __init__(self) -> None:
        super().__init__()
        self.add_state("text", [], dist_reduce_fx="cat")
        self.add_state("lengths", [], dist_reduce_fx="cat")

    def update(self, said: Sequence[str], expected: Sequence[str]) -> None:
        """Adds answers, or none: a process may have less to answer than others."""
        parts = [text.encode() for pair in zip(said, expected, strict=True) for text in pair]
        joined = torch.frombuffer(bytearray(b"".join(parts) or b" "), dtype=torch.uint8)
        self.text.append(joined[: sum(map(len, parts))].to(self.device))
        self.lengths.append(torch.tensor([len(part) for part in parts], dtype=torch.int64, device=self.device))

    def compute(self) -> tuple[list[str], list[str]]:
        """Returns the answers and what was expected, those of the first process first."""
        joined, texts, begin = bytes(dim_zero_cat(self.text).cpu().numpy()), list[str](), 0
        for length in dim_zero_cat(self.lengths).tolist():
            texts.append(joined[begin : begin + length].decode())
            begin += length
        return texts[::2], texts[1::2]
