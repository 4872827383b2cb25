"""Drawing an answer token by token, and its text as it grows."""

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from lightning_app.errors import UserError
from lightning_app.files import digest
from lightning_app.model.generation import end_tokens

_UNFINISHED = "\N{REPLACEMENT CHARACTER}"  # what a tokenizer gives for the first bytes of a character


@dataclass(frozen=True)
class Sampling:
    """How tokens are drawn.

    Attributes:
        max_new_tokens: Where an answer ends at the latest.
        temperature: 0 takes the likeliest token; the higher, the more others are drawn.
        top_p: Only of the fewest likeliest tokens that have this probability together.
        seed: The same seed gives the same answers.

    Raises:
        UserError: A number is out of its range.
    """

    max_new_tokens: int = 128
    temperature: float = 0.0
    top_p: float = 1.0
    seed: int = 0

    def __post_init__(self) -> None:
        if self.max_new_tokens < 1:
            raise UserError(f"--max_new_tokens is {self.max_new_tokens}; expected a whole number above zero")
        if not 0 <= self.temperature < math.inf:
            raise UserError(f"--temperature is {self.temperature}; expected 0, the likeliest token, or a number above")
        if not 0 < self.top_p <= 1:
            raise UserError(f"--top_p is {self.top_p}; expected a share above 0, up to 1")
        if self.seed < 0:
            raise UserError(f"--seed is {self.seed}; expected a whole number of at least 0")

    def generator(self, number: int) -> torch.Generator:
        """Returns what the answers to prompt ``number`` are drawn by: the same for every model that answers it."""
        return torch.Generator().manual_seed(int(digest(self.seed, number), 16) % 2**63)


def choose(logits_V: Tensor, sampling: Sampling, generator: torch.Generator) -> int:
    """Returns a token, on the CPU, so that every device draws the same.

    Args:
        logits_V: Of the next token.
        sampling: How.
        generator: What it is drawn by.

    Raises:
        UserError: The logits are no numbers.

    >>> choose(torch.tensor([0.0, 2.0, 1.0]), Sampling(), torch.Generator())
    1
    """
    logits_V = logits_V.detach().to("cpu", torch.float64)
    highest = logits_V.max()
    if not math.isfinite(highest):  # max is NaN where one is
        raise UserError("the model's logits are no numbers; with a --scale above 1, take a smaller one")
    if sampling.temperature == 0:
        return int(logits_V.argmax())
    prob_V = torch.softmax((logits_V - highest) / sampling.temperature, 0)
    sorted_V, token_V = prob_V.sort(descending=True, stable=True)
    likelier_V = sorted_V.cumsum(0) - sorted_V
    kept = sorted_V[: max(1, int((likelier_V < sampling.top_p).sum()))]
    return int(token_V[torch.multinomial(kept, 1, generator=generator)])


@torch.no_grad()
def draw_tokens(
    model: PreTrainedModel, ids: Sequence[int], sampling: Sampling, number: int, ends: Sequence[int]
) -> Iterator[int]:
    """Yields the tokens that follow ``ids``, each as soon as it is drawn.

    Args:
        model: In evaluation mode.
        ids: The prompt's.
        sampling: How they are drawn.
        number: Of the prompt; see `Sampling.generator`.
        ends: Tokens that end an answer; not yielded.
    """
    generator = sampling.generator(number)
    step, past = torch.tensor([list(ids)], device=model.device), None
    for _ in range(sampling.max_new_tokens):
        out = model(input_ids=step, past_key_values=past, use_cache=True, logits_to_keep=1)
        token, past = choose(out.logits[0, -1], sampling, generator), out.past_key_values
        if token in ends:
            return
        yield token
        step = torch.tensor([[token]], device=model.device)


def stream_text(
    model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, ids: Sequence[int], sampling: Sampling, number: int
) -> Iterator[str]:
    """Yields an answer's text in pieces, as its tokens are drawn; a character is yielded once all its bytes are there.

    See `draw_tokens` for the arguments.
    """
    drawn: list[int] = []
    said = 0
    for token in draw_tokens(model, ids, sampling, number, end_tokens(model, tokenizer)):
        drawn.append(token)
        text = text_after(tokenizer, ids, drawn)
        if len(text) > said and not text.endswith(_UNFINISHED):
            yield text[said:]
            said = len(text)
    text = text_after(tokenizer, ids, drawn)
    if len(text) > said:
        yield text[said:]


def text_after(tokenizer: PreTrainedTokenizerBase, ids: Sequence[int], drawn: Sequence[int]) -> str:
    """Returns the text that tokens add to a prompt's: with its first space, which some tokenizers drop at a head."""
    before, whole = (
        str(tokenizer.decode(part, skip_special_tokens=True, clean_up_tokenization_spaces=False))
        for part in (list(ids[-1:]), [*ids[-1:], *drawn])
    )
    if whole.startswith(before):
        return whole[len(before) :]
    return str(tokenizer.decode(list(drawn), skip_special_tokens=True, clean_up_tokenization_spaces=False))
