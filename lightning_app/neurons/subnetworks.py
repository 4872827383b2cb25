"""The subnetworks of a pool of languages: a file of our own, or masks as the paper and LAPE's authors release them."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import torch
from torch import Tensor

from lightning_app import __version__
from lightning_app.errors import UserError
from lightning_app.files import JSON, UNREADABLE, one_line, refused_object, save_lists, save_tensors
from lightning_app.identity import ModelIdentity
from lightning_app.languages import Language, find_language
from lightning_app.neurons.neuron_file import NeuronFile, describe
from lightning_app.neurons.neuron_set import NeuronSet

_KIND = "subnetwork"
RELEASED = (".pt", ".pth")
"""Suffixes of masks as they are released."""

_MOST_NEURONS = 1 << 18  # released masks do not say how many a layer has; the widest FFNs have a third of this


@dataclass
class Subnetworks:
    """The neurons of every language of a pool, and how they were chosen.

    Attributes:
        model: The model they belong to; for released masks only what the file itself tells.
        pool: GlotCC codes of the languages that were compared. The pool changes every set.
        neurons: The set of each language, by GlotCC code.
        rate: Share of all neurons taken over the whole pool; None where unknown.
        quantile: Where the activation threshold lies among all probabilities; None where unknown.
        tau: The activation threshold; None where unknown.
        atlas: Digest of the counts they were selected from, or the file the masks came from.
        sizes: What of `Sizes` is not the paper's way, and the thresholds where each language has its own.
    """

    model: ModelIdentity
    pool: list[str]
    neurons: dict[str, NeuronSet]
    rate: float | None
    quantile: float | None
    tau: float | None
    atlas: str
    sizes: JSON = field(default_factory=dict)

    def of(self, language: Language) -> NeuronSet:
        """Returns the neurons of one language.

        Raises:
            UserError: The language is not among them.
        """
        if language.glotcc not in self.neurons:
            raise UserError(
                f"the subnetwork has no {language}; its pool is {' '.join(self.pool)}. Select it again with the "
                "language in --profiling.languages"
            )
        return self.neurons[language.glotcc]

    def to_train(self, targets: Sequence[Language], first_layer: int, where: Path | str) -> NeuronSet:
        """Returns the neurons of the languages to adapt to, from ``first_layer`` up; of several their union.

        Raises:
            UserError: A language has none, or the model has no such neurons.
        """
        every = [self.of(language) for language in targets]
        for language, own in zip(targets, every, strict=True):
            if not len(own):
                raise UserError(
                    f"subnetwork {where} holds no neurons for {language}; select it again at a higher --profiling.rate"
                )
        union = NeuronSet({}).union(*every)
        neurons = union.from_layer(first_layer)
        if not len(neurons):
            raise UserError(
                f"--model.first_layer is {first_layer}, but the neurons of {', '.join(map(str, targets))} lie in "
                f"layers {union.layers[0]} to {union.layers[-1]}"
            )
        return neurons

    def save(self, path: Path) -> None:
        """Writes the subnetworks, atomically."""
        metadata: JSON = {
            "version": __version__,
            "model": self.model.as_dict(),
            "pool": self.pool,
            "rate": self.rate,
            "quantile": self.quantile,
            "tau": self.tau,
            "atlas": self.atlas,
        }
        if self.sizes:
            metadata["sizes"] = self.sizes
        save_tensors(path, {f"neurons.{code}": each.pairs for code, each in self.neurons.items()}, metadata, _KIND)

    def save_released(self, path: Path) -> None:
        """Writes them as the paper releases masks, atomically: a list of languages of a list of layers of indices.

        Such a file says neither model nor languages; the order is the pool's.
        """
        empty = torch.empty(0, dtype=torch.int64)
        lists = [[self.neurons[code].by_layer.get(n, empty) for n in range(self.model.layers)] for code in self.pool]
        save_lists(path, lists)

    @classmethod
    def load(cls, path: Path) -> "Subnetworks":
        """Reads a subnetwork file.

        Raises:
            UserError: There is none at ``path``, or the file is damaged, of a later version, or says what cannot be.
        """
        file = NeuronFile(path, _KIND, ("pool", "rate", "quantile", "tau", "atlas"), optional=("sizes",))
        sizes = file.metadata.get("sizes", {})
        file.require(isinstance(sizes, dict), "sizes", "a table of keys")
        sets = file.by_language("neurons")
        pool = file.metadata["pool"]
        is_pool = isinstance(pool, list) and all(isinstance(code, str) for code in pool)
        file.require(is_pool and len(set(pool)) == len(pool), "pool", "languages, each once")
        if set(pool) != set(sets):
            raise file.refuse(
                f"its pool is {ascii(pool)[:200]}, but it holds neurons of {' '.join(sorted(sets))[:200]}"
            )
        rate, quantile = file.share("rate", without=(0,)), file.share("quantile", without=(0, 1))
        neurons = {code: NeuronSet.from_pairs(file.require_pairs(f"neurons.{code}")) for code in sets}
        return cls(file.model, pool, neurons, rate, quantile, file.share("tau"), file.text("atlas"), sizes)


def shared_neurons(sets: Sequence[NeuronSet]) -> Tensor:
    """Returns how many neurons every two of K sets have in common, float64 (K, K); on the diagonal their sizes."""
    union = NeuronSet({}).union(*sets)
    held_KU = torch.stack([union.is_in(each) for each in sets]).double() if sets else torch.zeros(0, 0).double()
    return held_KU @ held_KU.T


def overlaps(sets: Mapping[str, NeuronSet]) -> dict[str, dict[str, float]]:
    """Returns the Jaccard index of every two sets, by their names; 0 where both are empty."""
    shared_KK = shared_neurons(list(sets.values()))
    sizes_K = shared_KK.diagonal()
    jaccard_KK = shared_KK / (sizes_K[:, None] + sizes_K - shared_KK).clamp(min=1)
    return {a: {b: float(jaccard_KK[i, k]) for k, b in enumerate(sets) if k != i} for i, a in enumerate(sets)}


def read_released_masks(path: Path, languages: list[Language]) -> Subnetworks:
    """Reads masks as the paper and LAPE's authors release them: a list of languages of a list of layers of indices.

    Such a file says neither model nor languages, so their order has to be given.

    Raises:
        UserError: The file is not of that form, holds another number of languages than given, or one is given twice.
    """
    if not path.is_file():
        raise UserError(f"there are no released masks at {path}; check the path")
    for language in languages:
        if languages.count(language) > 1:
            raise UserError(f"--languages names {language} twice; name each language once, in the order of {path.name}")
    try:
        lists = torch.load(path, map_location="cpu", weights_only=True)
        per_language = [[_indices(layer) for layer in layers] for layers in lists]
    except UNREADABLE as error:
        refused = refused_object(error)
        reason = f"it holds a Python object, {refused}, which is not loaded" if refused else one_line(error)
        raise UserError(f"{path} is not a list of languages of lists of layers of neuron indices: {reason}") from error
    if len(per_language) != len(languages):
        raise UserError(
            f"{path} holds the masks of {len(per_language)} languages, but --languages names {len(languages)}; "
            "name them all, in the order of the file"
        )
    layers = [len(each) for each in per_language]
    if len(set(layers)) > 1:
        odd = next(place for place, count in enumerate(layers) if count != layers[0])
        raise UserError(
            f"{path} has {layers[0]} layers for {languages[0]} but {layers[odd]} for {languages[odd]}; expected the "
            "masks of one model"
        )
    model = ModelIdentity(path.name, "", "", layers[0], 0, 0, 0)
    neurons = {
        language.glotcc: NeuronSet(dict(enumerate(layers)))
        for language, layers in zip(languages, per_language, strict=True)
    }
    return Subnetworks(model, list(neurons), neurons, None, None, None, path.name)


def _indices(layer: object) -> Tensor:
    """Returns the indices of one layer, int64 (neurons,).

    Raises:
        ValueError: They are none.
    """
    indices = torch.as_tensor(layer)
    if not indices.numel():
        return torch.empty(0, dtype=torch.int64)
    if indices.ndim != 1 or indices.is_floating_point() or indices.is_complex() or indices.dtype == torch.bool:
        raise ValueError(f"a layer is {describe(indices)}, expected whole numbers")
    low, high = int(indices.min()), int(indices.max())
    if low < 0 or high >= _MOST_NEURONS:
        raise ValueError(f"a layer names neuron {low if low < 0 else high}, no FFN has it")
    return indices.to(torch.int64)


def read_subnetworks(path: Path, languages: str | None = None) -> Subnetworks:
    """Reads a subnetwork file, or released masks where their ``languages`` are given as ``mt,af,...``."""
    if path.suffix in RELEASED:
        if not languages:
            raise UserError(f"{path.name} does not say its languages; name them in its order: --languages mt,af,is,...")
        return read_released_masks(path, [find_language(code) for code in languages.split(",")])
    return Subnetworks.load(path)
