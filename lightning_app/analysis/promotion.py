"""What the neurons that training moved most write, and what opens them.

Shape suffixes: T tokens, M neurons, D hidden size, V vocabulary.
"""

import heapq
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from lightning_app.analysis.weight_change import Vectors, change_norms
from lightning_app.languages import Language
from lightning_app.model.ffn import find_gated_ffns
from lightning_app.model.loss import OutputHead
from lightning_app.neurons.neuron_set import NeuronSet

_TOKENS, _PIECES = 10, 5
_BEFORE, _AFTER = 8, 3  # tokens of a piece on either side of the one that opens the neuron


@dataclass(frozen=True)
class Piece:
    """A piece of text that opens a neuron.

    Attributes:
        before: What stands before the token.
        token: At which the neuron puts out the most of its sentence.
        after: What follows; the model has not seen it there.
        output: act(gate) * up.
    """

    before: str
    token: str
    after: str
    output: float


@dataclass(frozen=True)
class MovedNeuron:
    """A neuron that training moved.

    Attributes:
        layer: Its layer.
        neuron: Its index there.
        change: Norm of the change of its three vectors together.
        sign: Whether it puts out positive (1) or negative (-1) numbers where it is open most; tokens are those that it
            raises with this sign.
        raised_before: Tokens that its down column raised most in the base.
        raised_after: Tokens that it raises now.
        raised_by_change: Tokens that what training added to the column raises.
        pieces: What opens it most, each of another sentence.
    """

    layer: int
    neuron: int
    change: float
    sign: int
    raised_before: tuple[str, ...]
    raised_after: tuple[str, ...]
    raised_by_change: tuple[str, ...]
    pieces: tuple[Piece, ...]


@dataclass(frozen=True)
class Promotion:
    """The neurons that training moved most, and what they do.

    Attributes:
        language: Whose text opens them.
        sentences: How many were read.
        neurons: The most moved first.
    """

    language: Language
    sentences: int
    neurons: tuple[MovedNeuron, ...]


def most_moved(before: Vectors, after: Vectors, neurons: NeuronSet, count: int) -> list[tuple[int, int, float]]:
    """Returns layer, index and change of the neurons that moved farthest, all projections together.

    Args:
        before: Vectors of the base.
        after: Those of the adapted model.
        neurons: Whose vectors they are.
        count: How many to return.
    """
    squares: dict[int, Tensor] = {}
    for (layer, _), norm_S in change_norms(before, after).items():
        squares[layer] = squares.get(layer, torch.zeros_like(norm_S)) + norm_S.square()
    every = [
        (float(square) ** 0.5, layer, int(index))
        for layer, square_S in squares.items()
        for square, index in zip(square_S, neurons.by_layer[layer], strict=True)
    ]
    return [(layer, index, change) for change, layer, index in heapq.nlargest(count, every)]


@torch.no_grad()
def raised_tokens(
    model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, vectors_MD: Tensor, count: int = _TOKENS
) -> list[tuple[str, ...]]:
    """Returns the tokens whose logits each vector raises most, by the model's own final norm and output head.

    The norm scales all of a vector alike, so that the order is that of its direction in the residual stream.

    Args:
        model: In evaluation mode.
        tokenizer: Its own.
        vectors_MD: Directions in the residual stream.
        count: Tokens for each.
    """
    head = OutputHead.of(model)
    weight = head.linear.weight
    logits_MV = head.logits(_final_norm(model)(vectors_MD.to(weight.device, weight.dtype)))
    best = logits_MV[:, : len(tokenizer)].topk(count).indices.tolist()
    return [tuple(spelled(tokenizer, number) for number in row) for row in best]


def _final_norm(model: PreTrainedModel) -> nn.Module:
    """Returns the norm between the last layer and the output head: the last module directly under the decoder."""
    norms = [child for child in model.base_model.children() if "norm" in type(child).__name__.lower()]
    return norms[-1] if norms else nn.Identity()


def spelled(tokenizer: PreTrainedTokenizerBase, number: int) -> str:
    """Returns a token as text; by its name in the vocabulary where it is a part of a character."""
    text = str(tokenizer.decode([number]))
    return text if "\N{REPLACEMENT CHARACTER}" not in text else str(tokenizer.convert_ids_to_tokens(number))


@torch.no_grad()
def opening_pieces(
    model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, neurons: Sequence[tuple[int, int]],
    sentences: Sequence[str], count: int = _PIECES,
) -> list[tuple[Piece, ...]]:  # fmt: skip
    """Returns where each neuron puts out the most, as act(gate) * up of either sign: the best place of a sentence.

    Args:
        model: In evaluation mode.
        tokenizer: Its own.
        neurons: Layer and index of each.
        sentences: Read one by one.
        count: Pieces for each neuron.
    """
    found: list[list[tuple[float, int, Piece]]] = [[] for _ in neurons]
    for number, sentence in enumerate(sentences):
        ids = tokenizer(sentence, verbose=False)["input_ids"]
        outputs_TM = outputs_of(model, torch.tensor([ids], device=model.device), neurons)
        for place, at in enumerate(outputs_TM.abs().argmax(0).tolist()):
            output = float(outputs_TM[at, place])
            before, after = (
                str(tokenizer.decode(part)) for part in (ids[max(0, at - _BEFORE) : at], ids[at + 1 :][:_AFTER])
            )
            piece = Piece(before, spelled(tokenizer, ids[at]), after, output)
            found[place].append((abs(output), -number, piece))
    return [tuple(piece for _, _, piece in heapq.nlargest(count, each)) for each in found]


def outputs_of(model: PreTrainedModel, ids_1T: Tensor, neurons: Sequence[tuple[int, int]]) -> Tensor:
    """Returns what neurons put out at each token of one sequence, act(gate) * up, fp32 (T, M) on the CPU."""
    ffns = find_gated_ffns(model)
    outputs_TM = torch.zeros(ids_1T.shape[1], len(neurons))
    handles = []
    for layer in {layer for layer, _ in neurons}:
        places = [place for place, (at, _) in enumerate(neurons) if at == layer]
        index = torch.tensor([neurons[place][1] for place in places], device=ids_1T.device)

        def keep(
            module: nn.Module, args: tuple[Tensor, ...], places: list[int] = places, index: Tensor = index
        ) -> None:
            outputs_TM[:, places] = args[0][0, :, index].float().cpu()

        handles.append(ffns[layer].down.register_forward_pre_hook(keep))
    try:
        model.base_model(input_ids=ids_1T, use_cache=False)
    finally:
        for handle in handles:
            handle.remove()
    return outputs_TM


def describe_moved(
    model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, before: Vectors, after: Vectors, neurons: NeuronSet,
    language: Language, sentences: Sequence[str], count: int = 12,
) -> Promotion:  # fmt: skip
    """Returns what the most moved neurons write, and what opens them.

    Args:
        model: The adapted one, in evaluation mode.
        tokenizer: Its own.
        before: Vectors of the base.
        after: Vectors of the adapted model.
        neurons: Whose vectors those are.
        language: Of the sentences.
        sentences: That may open them.
        count: How many neurons.
    """
    moved = most_moved(before, after, neurons, count)
    pieces = opening_pieces(model, tokenizer, [(layer, index) for layer, index, _ in moved], sentences)
    signs = [-1 if sum(piece.output for piece in each) < 0 else 1 for each in pieces]
    places = [int((neurons.by_layer[layer] == index).nonzero()) for layer, index, _ in moved]
    old_MD, new_MD = (
        torch.stack([sign * each[layer, "down"][place].float()
                     for (layer, _, _), place, sign in zip(moved, places, signs, strict=True)])
        for each in (before, after)
    )  # fmt: skip
    tokens = [raised_tokens(model, tokenizer, vectors) for vectors in (old_MD, new_MD, new_MD - old_MD)]
    every = zip(moved, signs, *tokens, pieces, strict=True)
    return Promotion(language, len(sentences), tuple(MovedNeuron(*about, *rest) for about, *rest in every))
