"""Language Activation Probability Entropy: which neurons speak which language.

Pure functions on activation counts (arXiv 2402.16438; arXiv 2510.13580, eq. 1 to 3). Everything is computed in float64.

Shape suffixes: L layers, N neurons per layer, K languages.
"""

from collections.abc import Sequence

import torch
from torch import Tensor

from lightning_app.errors import UserError


def activation_probability(counts_LNK: Tensor, tokens_K: Tensor) -> Tensor:
    """Returns p = c / n, the share of a language's tokens that open a neuron's gate (eq. 1).

    Args:
        counts_LNK: Tokens with a positive gate, integers.
        tokens_K: Tokens counted per language, integers above zero.

    >>> activation_probability(torch.tensor([[[1, 4]]]), torch.tensor([4, 8])).tolist()
    [[[0.25, 0.5]]]
    """
    if (tokens_K <= 0).any():
        raise UserError("a language of the atlas has no counted tokens; profile it again")
    return counts_LNK.double() / tokens_K.double()


def entropy(prob_LNK: Tensor) -> Tensor:
    """Returns H = -sum q ln q over languages, with q = p / sum p and 0 ln 0 = 0, in nats (eq. 2 and 3).

    Rounded to 12 decimals: neurons that tie on paper must tie in floating point too, whatever the order of the sum or
    the machine's logarithm, because ties at the cut are broken by position.

    >>> entropy(torch.tensor([[[0.5, 0.5], [0.3, 0.0], [0.0, 0.0]]], dtype=torch.float64)).tolist()
    [[0.69314718056, 0.0, 0.0]]
    """
    total_LN1 = prob_LNK.sum(-1, keepdim=True)
    share_LNK = torch.where(total_LN1 > 0, prob_LNK / total_LN1, torch.zeros_like(prob_LNK))
    return -torch.xlogy(share_LNK, share_LNK).sum(-1).round(decimals=12) + 0.0


def activation_threshold(prob_LNK: Tensor, quantile: float = 0.95) -> float:
    """Returns tau, the probability of rank round(quantile * L*N*K), 1-based and ascending, among all p.

    >>> activation_threshold(torch.arange(1, 101, dtype=torch.float64).reshape(5, 5, 4) / 100)
    0.95
    """
    rank = min(max(round(quantile * prob_LNK.numel()), 1), prob_LNK.numel())
    return prob_LNK.flatten().kthvalue(rank).values.item()


def rank_neurons(prob_LNK: Tensor, tau: float | Tensor) -> Tensor:
    """Returns the flat positions (layer * N + neuron) of all L*N neurons, lowest entropy first.

    A neuron that no language opens more often than ``tau``, one for all or (K,), counts as infinite; ties go to the
    lowest position.
    """
    entropy_LN = torch.stack([entropy(prob_NK) for prob_NK in prob_LNK])  # a layer at a time: pools can be large
    entropy_LN[(prob_LNK <= tau).all(-1)] = torch.inf
    return entropy_LN.flatten().argsort(stable=True)


def select(prob_LNK: Tensor, rate: float = 0.05, quantile: float = 0.95) -> tuple[list[Tensor], float]:
    """Returns each language's subnetwork and the threshold tau.

    Of all L*N neurons the round(rate * L*N) with the lowest entropy are taken; a taken neuron belongs to every
    language with p > tau, so the sets may overlap and their union is at most ``rate`` of the neurons.

    Args:
        prob_LNK: Activation probabilities.
        rate: Share of the neurons to take over all languages together, 0 < rate <= 1.
        quantile: Where tau lies among all activation probabilities.

    Returns:
        K tensors of shape (neurons, 2), the sorted (layer, neuron) pairs of a language; and tau.
    """
    neurons_per_layer = prob_LNK.shape[1]
    tau = activation_threshold(prob_LNK, quantile)
    taken = rank_neurons(prob_LNK, tau)[: round(rate * prob_LNK.shape[0] * neurons_per_layer)].sort().values
    active_TK = prob_LNK.flatten(0, 1)[taken] > tau
    subnetworks = []
    for language in range(prob_LNK.shape[2]):
        flat = taken[active_TK[:, language]]
        subnetworks.append(torch.stack([flat // neurons_per_layer, flat % neurons_per_layer], dim=1))
    return subnetworks, tau


def sizes_at_rates(prob_LNK: Tensor, language: int, rates: Sequence[float], quantile: float = 0.95) -> dict[float, int]:
    """Returns how many neurons ``language`` (its position in the pool) would get at each of ``rates``."""
    tau = activation_threshold(prob_LNK, quantile)
    active = prob_LNK[..., language].flatten()[rank_neurons(prob_LNK, tau)] > tau
    return {rate: int(active[: round(rate * active.numel())].sum()) for rate in rates}
