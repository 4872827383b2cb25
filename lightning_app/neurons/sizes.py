"""How many neurons a language gets: by the paper's one rate over the pool, or a size of its own.

Every size is read off one ranking, lowest entropy first (`lape.rank_neurons`): a language's candidates are the neurons
in it that the language opens more often than its threshold, and a size says how many of them it gets.
"""

import math
import re
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from typing import Literal

import torch
from torch import Tensor

from lightning_app.errors import UserError
from lightning_app.files import JSON
from lightning_app.languages import Language, find_language
from lightning_app.neurons import lape

_UNITS = {"": 1, "k": 10**3, "m": 10**6, "b": 10**9}
_NUMBER = re.compile(r"(\d+(?:\.\d+)?)\s*([kmb]?)", re.IGNORECASE)

Threshold = Literal["pool", "language"]


@dataclass(frozen=True)
class Sizes:
    """How neurons are taken from the ranking; the defaults are the paper's.

    Args:
        rate: Share of all neurons that is taken, over the whole pool.
        quantile: Where the activation threshold lies among the probabilities.
        rates: Rate of a language, by any name of it, where it is another; how deep into the ranking it reaches.
        parameters: Numbers to train for each language, as ``50M``, in place of a rate: its best neurons up to that.
        threshold: Quantile over the probabilities of the ``pool``, or of each ``language`` alone.
        most_per_layer: Neurons that a language gets in one layer at most, its best ones.
        fewest_per_layer: Neurons that it gets in every layer at least, where it has so many candidates there.

    Raises:
        UserError: A number is out of its range.
    """

    rate: float = 0.05
    quantile: float = 0.95
    rates: Mapping[str, float] = field(default_factory=dict)
    parameters: int | str | None = None
    threshold: Threshold = "pool"
    most_per_layer: int | None = None
    fewest_per_layer: int = 0

    def __post_init__(self) -> None:
        if not 0 < self.rate <= 1 or not 0 < self.quantile < 1:
            raise UserError(
                f"--profiling.rate is {self.rate} and quantile {self.quantile}; expected 0 < rate <= 1, "
                "0 < quantile < 1"
            )
        own = {find_language(code).glotcc: rate for code, rate in self.rates.items()}
        if len(own) < len(self.rates) or not all(0 < rate <= 1 for rate in own.values()):
            raise UserError(
                f"--profiling.rates is {dict(self.rates)}; expected each language once, with a rate above 0, up to 1"
            )
        object.__setattr__(self, "rates", own)
        object.__setattr__(self, "parameters", _read_parameters(self.parameters))
        most, fewest = self.most_per_layer, self.fewest_per_layer
        if fewest < 0 or (most is not None and (most < 1 or most < fewest)):
            raise UserError(
                f"--profiling.fewest_per_layer is {fewest} and most_per_layer {most}; expected 0 <= fewest <= most, "
                "and most above zero or null"
            )

    @property
    def paper(self) -> "Sizes":
        """The paper's way at the same rate and quantile, which others are told against."""
        return Sizes(self.rate, self.quantile)

    def own(self) -> JSON:
        """Returns what is not the paper's way, as plain data; empty where all of it is."""
        paper = asdict(self.paper)
        return {key: value for key, value in asdict(self).items() if value != paper[key]}

    def require_pool(self, pool: list[Language]) -> None:
        """Raises `UserError` where a language has a rate but is not in the pool."""
        if missing := sorted(set(self.rates) - {language.glotcc for language in pool}):
            raise UserError(
                f"--profiling.rates names {', '.join(map(str, map(find_language, missing)))}, which is not in the "
                "pool; take it out, or name it in --profiling.languages"
            )


def select(prob_LNK: Tensor, pool: list[Language], sizes: Sizes, hidden_size: int) -> tuple[list[Tensor], list[float]]:
    """Returns each language's subnetwork, sorted (layer, neuron) pairs, (neurons, 2), and its threshold.

    With the paper's sizes this is `lape.select`.

    Args:
        prob_LNK: Activation probabilities.
        pool: The K languages.
        sizes: How many neurons each gets.
        hidden_size: Of the model; a neuron has 3 * D weights.
    """
    neurons_per_layer, languages = prob_LNK.shape[1:]
    if sizes.threshold == "pool":
        taus = [lape.activation_threshold(prob_LNK, sizes.quantile)] * languages
    else:
        taus = [lape.activation_threshold(prob_LNK[..., k], sizes.quantile) for k in range(languages)]
    tau_K = torch.tensor(taus, dtype=prob_LNK.dtype)
    ranking = lape.rank_neurons(prob_LNK, tau_K)
    pairs = []
    for k, language in enumerate(pool):
        is_active = prob_LNK[..., k].flatten()[ranking] > taus[k]
        depth = round(sizes.rates.get(language.glotcc, sizes.rate) * len(ranking))
        flat = ranking[_taken(is_active, ranking // neurons_per_layer, depth, sizes, hidden_size)].sort().values
        pairs.append(torch.stack([flat // neurons_per_layer, flat % neurons_per_layer], dim=1))
    return pairs, taus


def _taken(is_active: Tensor, layer: Tensor, depth: int, sizes: Sizes, hidden_size: int) -> Tensor:
    """Returns the places in the ranking that a language takes.

    Args:
        is_active: (L * N,), whether the language opens the neuron at this place more often than its threshold.
        layer: (L * N,), of the neuron at this place.
        depth: Places that a rate reaches.
        sizes: How many neurons it gets.
        hidden_size: Of the model.
    """
    candidates = is_active.nonzero().flatten()
    of_layer = _places_within(layer[candidates])
    is_least = of_layer < sizes.fewest_per_layer
    fits = of_layer < (len(is_active) if sizes.most_per_layer is None else sizes.most_per_layer)
    if sizes.parameters is None:
        return candidates[is_least | (fits & (candidates < depth))]
    most = int(sizes.parameters) // (3 * hidden_size)
    return torch.cat([candidates[is_least], candidates[fits & ~is_least]])[:most]


def _places_within(group: Tensor) -> Tensor:
    """Returns for each member how many of its group come before it.

    >>> _places_within(torch.tensor([3, 1, 3, 3, 1])).tolist()
    [0, 0, 1, 2, 1]
    """
    order = group.argsort(stable=True)
    sizes = group.bincount()
    starts = sizes.cumsum(0) - sizes
    places = torch.empty_like(group)
    places[order] = torch.arange(len(group)) - starts[group[order]]
    return places


def _read_parameters(given: int | str | None) -> int | None:
    """Returns a number of parameters; raises `UserError` where it is none.

    >>> _read_parameters("1.5M"), _read_parameters(200)
    (1500000, 200)
    """
    if given is None:
        return None
    match = _NUMBER.fullmatch(str(given).strip().replace("_", ""))
    number = math.floor(float(match[1]) * _UNITS[match[2].lower()]) if match else 0
    if number < 1:
        raise UserError(f"--profiling.parameters is {given}; expected a number of weights above zero, as 50M or 800k")
    return number
