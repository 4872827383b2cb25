import math

import pytest
import torch

from lightning_app.errors import UserError
from lightning_app.neurons import lape


def naive_select(counts, tokens, rate, quantile):
    """Equations 1 to 3 and the selection, neuron by neuron in plain Python."""
    layers, neurons, languages = counts.shape
    prob = [
        [[counts[layer, i, k].item() / tokens[k].item() for k in range(languages)] for i in range(neurons)]
        for layer in range(layers)
    ]  # fmt: skip
    flat = sorted(p for row in prob for neuron in row for p in neuron)
    tau = flat[min(max(round(quantile * len(flat)), 1), len(flat)) - 1]
    ranked = []
    for layer in range(layers):
        for i in range(neurons):
            p = prob[layer][i]
            total = math.fsum(p)
            q = [x / total if total else 0.0 for x in p]
            entropy = -math.fsum(x * math.log(x) for x in q if x > 0)
            ranked.append((round(entropy, 9) if max(p) > tau else math.inf, layer, i))
    taken = sorted(ranked)[: round(rate * layers * neurons)]
    sets = [sorted((layer, i) for _, layer, i in taken if prob[layer][i][k] > tau) for k in range(languages)]
    return sets, tau


@pytest.mark.parametrize("seed", range(8))
@pytest.mark.parametrize("top", [3, 50])
def test_selection_agrees_with_a_naive_loop_ties_included(seed, top):
    generator = torch.Generator().manual_seed(seed)
    counts = torch.randint(0, top, (4, 30, 5), generator=generator)
    tokens = torch.randint(top, 2 * top, (5,), generator=generator) if seed % 2 else torch.full((5,), top)
    for rate, quantile in ((0.05, 0.95), (0.3, 0.8), (1.0, 0.5)):
        expected, tau = naive_select(counts, tokens, rate, quantile)
        pairs, found_tau = lape.select(lape.activation_probability(counts, tokens), rate, quantile)
        assert found_tau == tau
        assert [[tuple(pair) for pair in p.tolist()] for p in pairs] == expected


def test_small_counts_do_produce_ties_at_the_cut():
    """Guards the test above: with three distinct counts the cut falls inside a group of equal entropy."""
    counts = torch.randint(0, 3, (4, 30, 5), generator=torch.Generator().manual_seed(0))
    entropy = lape.entropy(lape.activation_probability(counts, torch.full((5,), 3))).flatten().sort().values
    assert any(entropy[k - 1] == entropy[k] for k in (6, 36))


def test_permuting_languages_permutes_the_sets():
    counts = torch.randint(0, 4, (3, 40, 4), generator=torch.Generator().manual_seed(1))
    order = [2, 0, 3, 1]
    plain, _ = lape.select(counts.double() / 4, 0.2, 0.9)
    permuted, _ = lape.select(counts[..., order].double() / 4, 0.2, 0.9)
    for place, language in enumerate(order):
        assert torch.equal(permuted[place], plain[language])


def test_union_is_at_most_the_rate_and_sets_are_above_the_threshold():
    prob = torch.rand(6, 100, 7, generator=torch.Generator().manual_seed(2), dtype=torch.float64)
    pairs, tau = lape.select(prob, 0.05, 0.95)
    assert len(torch.cat(pairs).unique(dim=0)) <= 30
    for language, neurons in enumerate(pairs):
        assert (prob[neurons[:, 0], neurons[:, 1], language] > tau).all()


def test_sizes_at_rates_are_what_selection_gives():
    prob = torch.rand(4, 64, 5, generator=torch.Generator().manual_seed(3), dtype=torch.float64)
    for language in range(5):
        sizes = lape.sizes_at_rates(prob, language, (0.01, 0.1, 0.5))
        assert sizes == {rate: len(lape.select(prob, rate)[0][language]) for rate in sizes}


def test_a_dead_neuron_is_never_taken():
    prob = torch.zeros(1, 10, 3, dtype=torch.float64)
    prob[0, 7] = torch.tensor([0.9, 0.0, 0.0])
    pairs, _ = lape.select(prob, 0.5, 0.5)
    assert pairs[0].tolist() == [[0, 7]]
    assert len(pairs[1]) == len(pairs[2]) == 0


def test_zero_tokens_are_refused():
    with pytest.raises(UserError, match="no counted tokens"):
        lape.activation_probability(torch.zeros(1, 1, 2), torch.tensor([3, 0]))
