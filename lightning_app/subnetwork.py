"""Subnetworks: which neurons speak which language, as selected from an atlas or read from released masks."""

import pickle
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor

from lightning_app import __version__, lape
from lightning_app.atlas import Atlas
from lightning_app.errors import UserError
from lightning_app.files import digest, load_tensors, save_tensors
from lightning_app.identity import ModelIdentity
from lightning_app.languages import Language, find_language

_KIND = "subnetwork"
_RATES_TO_SUGGEST = (0.01, 0.02, 0.05, 0.1, 0.2, 0.3, 0.5)


@dataclass
class Subnetwork:
    """The neurons of every language of a pool, and how they were chosen.

    Attributes:
        model: The model they belong to; for released masks only what the file itself tells.
        pool: GlotCC codes of the languages that were compared. The pool changes every set.
        neurons: Per GlotCC code, the sorted (layer, neuron) pairs, int64 (neurons, 2).
        rate: Share of all neurons taken over the whole pool; None where unknown.
        quantile: Where the activation threshold lies among all probabilities; None where unknown.
        tau: The activation threshold; None where unknown.
        atlas: Digest of the counts they were selected from, or the file the masks came from.
    """

    model: ModelIdentity
    pool: list[str]
    neurons: dict[str, Tensor]
    rate: float | None
    quantile: float | None
    tau: float | None
    atlas: str

    def of(self, language: Language) -> Tensor:
        """Returns the (layer, neuron) pairs of one language.

        Raises:
            UserError: The subnetwork does not know the language.
        """
        if language.glotcc not in self.neurons:
            raise UserError(
                f"the subnetwork has no {language}; its pool is {' '.join(self.pool)}. Select it again with the "
                "language in --profiling.languages"
            )
        return self.neurons[language.glotcc]

    def by_layer(self, language: Language) -> dict[int, Tensor]:
        """Returns the sorted neuron indices of one language, for the layers that have any."""
        pairs = self.of(language)
        return {int(layer): pairs[pairs[:, 0] == layer, 1] for layer in pairs[:, 0].unique()}

    def id_of(self, language: Language) -> str:
        """Digest over one language's neurons: what a checkpoint of neuron weights must match."""
        return digest(self.of(language))

    def save(self, path: Path) -> None:
        """Writes the subnetwork, atomically."""
        metadata = {
            "version": __version__,
            "model": self.model.as_dict(),
            "pool": self.pool,
            "rate": self.rate,
            "quantile": self.quantile,
            "tau": self.tau,
            "atlas": self.atlas,
        }
        save_tensors(path, {f"neurons.{code}": pairs for code, pairs in self.neurons.items()}, metadata, _KIND)

    @classmethod
    def load(cls, path: Path) -> "Subnetwork":
        """Reads a subnetwork file.

        Raises:
            UserError: There is none at ``path``, or the file is damaged.
        """
        tensors, meta = load_tensors(path, _KIND)
        neurons = {name.removeprefix("neurons."): pairs for name, pairs in tensors.items()}
        model = ModelIdentity(**meta["model"])
        return cls(model, meta["pool"], neurons, meta["rate"], meta["quantile"], meta["tau"], meta["atlas"])


def select_subnetwork(atlas: Atlas, pool: list[Language], rate: float, quantile: float) -> Subnetwork:
    """Selects the subnetworks of all languages of ``pool`` (arXiv 2510.13580, section 3)."""
    if not 0 < rate <= 1 or not 0 < quantile < 1:
        raise UserError(f"rate is {rate} and quantile {quantile}; expected 0 < rate <= 1 and 0 < quantile < 1")
    pairs, tau = lape.select(atlas.probability(pool), rate, quantile)
    codes = [language.glotcc for language in pool]
    neurons = dict(zip(codes, pairs, strict=True))
    return Subnetwork(atlas.model, codes, neurons, rate, quantile, tau, atlas.pool_id(codes))


def suggest_rates(atlas: Atlas, pool: list[Language], language: Language, quantile: float) -> str:
    """Returns a sentence part with the neurons that ``language`` would get at other rates."""
    sizes = lape.sizes_at_rates(atlas.probability(pool), pool.index(language), _RATES_TO_SUGGEST, quantile)
    return ", ".join(f"{size} at rate {rate:g}" for rate, size in sizes.items())


def read_released_masks(path: Path, languages: list[Language]) -> Subnetwork:
    """Reads masks as the paper and LAPE's authors release them: a list of languages of a list of layers of indices.

    Such a file says neither model nor languages, so their order has to be given.

    Raises:
        UserError: The file is not of that form, or holds another number of languages than given.
    """
    try:
        lists = torch.load(path, map_location="cpu", weights_only=True)
        per_language = [[torch.as_tensor(layer, dtype=torch.int64) for layer in layers] for layers in lists]
    except FileNotFoundError as error:
        raise UserError(f"there are no released masks at {path}; check the path") from error
    except (pickle.UnpicklingError, RuntimeError, EOFError, TypeError, ValueError) as error:
        reason = str(error).split("\n")[0]
        raise UserError(f"{path} is not a list of languages of lists of layers of neuron indices: {reason}") from error
    if len(per_language) != len(languages):
        raise UserError(
            f"{path} holds the masks of {len(per_language)} languages, but --languages names {len(languages)}; "
            "name them all, in the order of the file"
        )
    model = ModelIdentity(path.name, "", "", len(per_language[0]), 0, 0, 0)
    neurons = {}
    for language, layers in zip(languages, per_language, strict=True):
        pairs = [torch.stack([torch.full_like(layer, i), layer.sort().values], dim=1) for i, layer in enumerate(layers)]
        neurons[language.glotcc] = torch.cat(pairs)
    return Subnetwork(model, list(neurons), neurons, None, None, None, path.name)


def read_subnetwork(path: Path, languages: str | None = None) -> Subnetwork:
    """Reads a subnetwork file, or released masks where their ``languages`` are given as ``mt,af,...``."""
    if path.suffix in (".pt", ".pth"):
        if not languages:
            raise UserError(f"{path.name} does not say its languages; name them in its order: --languages mt,af,is,...")
        return read_released_masks(path, [find_language(code) for code in languages.split(",")])
    return Subnetwork.load(path)
