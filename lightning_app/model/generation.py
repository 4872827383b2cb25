"""Generating text."""

from collections.abc import Callable
from typing import cast

import torch
from torch import Tensor
from transformers import PreTrainedModel, PreTrainedTokenizerBase


@torch.no_grad()
def continue_text(model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, prompt: str, max_new_tokens: int) -> str:
    """Returns the greedy continuation of a prompt, special tokens left out."""
    ids = tokenizer(prompt, return_tensors="pt", return_token_type_ids=False).to(model.device)
    padding = tokenizer.pad_token_id or tokenizer.eos_token_id
    generate = cast(Callable[..., Tensor], model.generate)
    out = generate(**ids, max_new_tokens=max_new_tokens, do_sample=False, pad_token_id=padding)
    return str(tokenizer.decode(out[0, ids["input_ids"].shape[1] :], skip_special_tokens=True))
