"""Whether an export does what the adapted model does: the same likeliest next words on real text."""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from lightning_app.errors import UserError

PROMPTS = 200
_LEAST_AGREEMENT = 0.99
_TOKENS = 64


@dataclass(frozen=True)
class Sayings:
    """What a model says on prompts.

    Attributes:
        choices: The likeliest next token at every position of every prompt, int64 (positions,).
        logits: At the last position of each prompt, fp32 (prompts, V).
    """

    choices: Tensor
    logits: Tensor

    @classmethod
    @torch.no_grad()
    def of(cls, model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, prompts: Sequence[str]) -> "Sayings":
        """Asks a model; one prompt at a time, so that no padding and no batch has a part in what it says."""
        choices, logits = [], []
        for prompt in prompts:
            ids = tokenizer(prompt, return_tensors="pt", truncation=True, max_length=_TOKENS).input_ids
            found = model(input_ids=ids.to(model.device)).logits[0]
            choices.append(found.argmax(-1).cpu())
            logits.append(found[-1].float().cpu())
        return cls(torch.cat(choices), torch.stack(logits))


@dataclass(frozen=True)
class Verification:
    """How an export compares with the adapted model.

    Attributes:
        prompts: Over how many.
        agreement: Share of positions at which both have the same likeliest next token.
        largest_difference: Of a logit after the prompts.
    """

    prompts: int
    agreement: float
    largest_difference: float

    @classmethod
    def of(cls, exported: Sayings, adapted: Sayings) -> "Verification":
        """Compares what two models said on the same prompts."""
        agreement = float((exported.choices == adapted.choices).float().mean())
        return cls(len(adapted.logits), agreement, float((exported.logits - adapted.logits).abs().max()))

    def __str__(self) -> str:
        return (
            f"{100 * self.agreement:.2f} % of the greedy choices agree over {self.prompts} prompts, largest "
            f"difference of a logit {self.largest_difference:.3g}"
        )

    def require(self, what: str) -> None:
        """Raises `UserError` where fewer than 99 % of the choices agree."""
        if self.agreement < _LEAST_AGREEMENT:
            raise UserError(f"the {what} does not do what the adapted model does: {self}; it was not kept")
