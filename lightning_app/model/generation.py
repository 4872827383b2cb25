"""Generating text greedily: one prompt's continuation, or answers to many prompts at once."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import cast

import torch
from torch import Tensor
from transformers import (
    GenerationConfig,
    PreTrainedModel,
    PreTrainedTokenizerBase,
    StoppingCriteria,
    StoppingCriteriaList,
)

from lightning_app.model.attention import attend_with_masks


def generating(model: PreTrainedModel) -> Callable[..., Tensor]:
    """Returns the model's `generate`, which transformers leaves without a type that can be called."""
    return cast(Callable[..., Tensor], model.generate)


@torch.no_grad()
def continue_text(model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, prompt: str, max_new_tokens: int) -> str:
    """Returns the greedy continuation of a prompt, special tokens left out."""
    ids = tokenizer(prompt, return_tensors="pt", return_token_type_ids=False).to(model.device)
    padding = tokenizer.pad_token_id or tokenizer.eos_token_id
    out = generating(model)(**ids, max_new_tokens=max_new_tokens, do_sample=False, pad_token_id=padding)
    return str(tokenizer.decode(out[0, ids["input_ids"].shape[1] :], skip_special_tokens=True))


@dataclass(frozen=True)
class Decoding:
    """How an answer is generated, greedily.

    Attributes:
        stops: Texts that end it; it is what stands before the first of them.
        max_new_tokens: Where it ends at the latest.
        repetition_penalty: Of tokens that prompt and answer have already; 1 is none.
    """

    stops: tuple[str, ...]
    max_new_tokens: int
    repetition_penalty: float = 1.0

    def within(self, context: int | None) -> tuple[int | None, int]:
        """Returns how many tokens a prompt and its answer may have in a context; at least half of it is the prompt's.

        >>> decoding = Decoding((), 128)
        >>> decoding.within(8192), decoding.within(200), decoding.within(None)
        ((8064, 128), (100, 100), (None, 128))
        """
        if context is None:
            return None, self.max_new_tokens
        room = max(context - self.max_new_tokens, context // 2)
        return room, min(self.max_new_tokens, context - room)

    def cut(self, text: str) -> str:
        r"""Returns what stands before the first stop.

        >>> Decoding(("\n", "Q:"), 9).cut("a Q: b\nc")
        'a '
        """
        return min((text.split(stop)[0] for stop in self.stops), key=len, default=text)


@torch.no_grad()
def answer_prompts(
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    prompts: Sequence[str],
    decoding: Decoding,
    batch_size: int,
) -> list[str]:
    """Returns the greedy answers to prompts, in their order, cut at the stops.

    Draws nothing at random and leaves the model as it was. Rows of a batch are padded on the left, behind the attention
    mask, with their own first token: no tokenizer lacks it, and where a version of transformers lets the repetition
    penalty see padding, it punishes no other token. A prompt that leaves no room for its answer in the model's context
    loses its beginning.

    Args:
        model: In evaluation mode.
        tokenizer: Begins a prompt as it begins any text.
        prompts: What to answer.
        decoding: When an answer ends.
        batch_size: Prompts at once, the longest together.
    """
    longest, _ = decoding.within(_context(model))
    rows = [tokenizer(prompt, verbose=False)["input_ids"] for prompt in prompts]
    rows = [ids if longest is None else ids[-longest:] for ids in rows]
    order = sorted(range(len(rows)), key=lambda number: -len(rows[number]))
    answers = [""] * len(rows)
    with attend_with_masks(model), torch.compiler.set_stance("force_eager"):
        for first in range(0, len(order), batch_size):
            numbers = order[first : first + batch_size]
            texts = _answer_batch(model, tokenizer, [rows[number] for number in numbers], decoding)
            for number, text in zip(numbers, texts, strict=True):
                answers[number] = decoding.cut(text)
    return answers


def count_cut(model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, prompts: Sequence[str], to: Decoding) -> int:
    """Returns how many prompts would lose their beginning."""
    longest, _ = to.within(_context(model))
    return 0 if longest is None else sum(len(tokenizer(each, verbose=False)["input_ids"]) > longest for each in prompts)


def _context(model: PreTrainedModel) -> int | None:
    return getattr(model.config.get_text_config(), "max_position_embeddings", None)


def _answer_batch(
    model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, rows: Sequence[list[int]], decoding: Decoding
) -> list[str]:
    longest = max(len(ids) for ids in rows)
    padding = [longest - len(ids) for ids in rows]
    ids_BT = torch.tensor([[ids[0]] * pad + ids for ids, pad in zip(rows, padding, strict=True)])
    mask_BT = torch.tensor([[0] * pad + [1] * len(ids) for ids, pad in zip(rows, padding, strict=True)])
    ends = end_tokens(model, tokenizer)
    config = GenerationConfig(
        max_new_tokens=decoding.within(_context(model))[1], do_sample=False, num_beams=1,
        repetition_penalty=decoding.repetition_penalty, eos_token_id=ends, pad_token_id=ends[0], use_cache=True,
    )  # fmt: skip
    out_BT = generating(model)(
        input_ids=ids_BT.to(model.device),
        attention_mask=mask_BT.to(model.device),
        generation_config=config,
        stopping_criteria=StoppingCriteriaList([StopsAt(tokenizer, decoding.stops, longest)]),
    )
    return [str(text) for text in tokenizer.batch_decode(out_BT[:, longest:], skip_special_tokens=True)]


def end_tokens(model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase) -> list[int]:
    """Returns the tokenizer's EOS first, then those that the base names for generation."""
    named = model.generation_config.eos_token_id if model.generation_config is not None else None
    named = named if isinstance(named, list) else [named]
    return list(dict.fromkeys(end for end in (tokenizer.eos_token_id, *named) if end is not None))


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
