"""How likely continuations of contexts are, many at once.

Shape suffixes: B sequences, T tokens, D hidden size, M predicted tokens, V vocabulary.
"""

from collections.abc import Sequence

import torch
from torch.nn.utils.rnn import pad_sequence
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from lightning_app.model.loss import OutputHead


@torch.no_grad()
def log_likelihoods(
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    pairs: Sequence[tuple[str, str]],
    tokens_at_once: int,
) -> list[float]:
    """Returns the log-likelihood in nats of each continuation after its context, in their order.

    Logits are made of the tokens of continuations alone. Draws nothing at random and leaves the model as it was.

    Args:
        model: In evaluation mode.
        tokenizer: Begins a context as it begins any text.
        pairs: Contexts and continuations; both are tokenised together and parted after the tokens of the context.
        tokens_at_once: B times T of a batch, at most; a longer sequence makes a batch of its own.
    """
    context = getattr(model.config.get_text_config(), "max_position_embeddings", None)
    rows = [_encode(tokenizer, *pair, context) for pair in pairs]
    found = [0.0] * len(rows)
    with torch.compiler.set_stance("force_eager"):
        for batch in _batches([len(ids) for ids, _ in rows], tokens_at_once):
            for number, value in zip(batch, _of_batch(model, [rows[number] for number in batch]), strict=True):
                found[number] = value
    return found


def _encode(
    tokenizer: PreTrainedTokenizerBase, context: str, continuation: str, longest: int | None
) -> tuple[list[int], int]:
    """Returns the tokens of both, without the beginning of what is too long, and how many of them are predicted."""
    whole, before = (tokenizer(text, verbose=False)["input_ids"] for text in (context + continuation, context))
    kept = whole if longest is None else whole[-(longest + 1) :]
    return kept, min(len(whole) - len(before), len(kept) - 1)


def _batches(lengths: Sequence[int], tokens_at_once: int) -> list[list[int]]:
    """Returns numbers of sequences, the longest together.

    >>> _batches([2, 5, 3], 6)
    [[1], [2, 0]]
    """
    batches: list[list[int]] = []
    for number in sorted(range(len(lengths)), key=lambda number: -lengths[number]):
        if batches and lengths[batches[-1][0]] * (len(batches[-1]) + 1) <= tokens_at_once:
            batches[-1].append(number)
        else:
            batches.append([number])
    return batches


def _of_batch(model: PreTrainedModel, rows: Sequence[tuple[list[int], int]]) -> list[float]:
    # Padded on the right, which a causal model does not see.
    ids_BT = pad_sequence([torch.tensor(ids) for ids, _ in rows], batch_first=True)
    is_predicted_BT = torch.zeros(ids_BT.shape, dtype=torch.bool)
    for row, (ids, predicted) in enumerate(rows):
        is_predicted_BT[row, len(ids) - predicted : len(ids)] = True
    ids_BT, is_predicted_BT = ids_BT.to(model.device), is_predicted_BT.to(model.device)
    hidden_BTD = model.base_model(input_ids=ids_BT[:, :-1], use_cache=False).last_hidden_state
    logits_MV = OutputHead.of(model).logits(hidden_BTD[is_predicted_BT[:, 1:]])
    labels_M = ids_BT[is_predicted_BT]
    log_p_M = logits_MV.log_softmax(-1).gather(1, labels_M.unsqueeze(1)).squeeze(1).double()
    counts = is_predicted_BT.sum(1).tolist()
    return [float(part.sum()) for part in log_p_M.cpu().split(counts)]
