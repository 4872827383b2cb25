"""Generating text greedily, and where an answer ends."""

from collections.abc import Callable, Sequence
from typing import cast

import torch
from torch import Tensor
from transformers import PreTrainedModel, PreTrainedTokenizerBase, StoppingCriteria


@torch.no_grad()
def continue_text(model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, prompt: str, max_new_tokens: int) -> str:
    """Returns the greedy continuation of a prompt, special tokens left out."""
    ids = tokenizer(prompt, return_tensors="pt", return_token_type_ids=False).to(model.device)
    padding = tokenizer.pad_token_id or tokenizer.eos_token_id
    generate = cast(Callable[..., Tensor], model.generate)
    out = generate(**ids, max_new_tokens=max_new_tokens, do_sample=False, pad_token_id=padding)
    return str(tokenizer.decode(out[0, ids["input_ids"].shape[1] :], skip_special_tokens=True))


class StopsAt(StoppingCriteria):
    """Ends each row whose answer has a stop; looks at its newest tokens only, each of which is a character at least."""

    def __init__(self, tokenizer: PreTrainedTokenizerBase, stops: Sequence[str], prompt_tokens: int) -> None:
        self._tokenizer, self._stops, self._begin = tokenizer, stops, prompt_tokens
        self._window = 1 + max(map(len, stops), default=0)

    def __call__(self, input_ids: Tensor, scores: object, **kwargs: object) -> Tensor:
        newest = input_ids[:, max(self._begin, input_ids.shape[1] - self._window) :]
        texts = self._tokenizer.batch_decode(newest, skip_special_tokens=True)
        found = [any(stop in text for stop in self._stops) for text in texts]
        return torch.tensor(found, device=input_ids.device)
