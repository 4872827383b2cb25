"""Neuroglot from Python: adapted models, and the sets of neurons that are trained. No Trainer, no command line.

>>> import neuroglot
>>> neuroglot.find_language("cy").name
'Welsh'

Each name is imported when it is first asked for, so that a language costs no torch.
"""

from importlib import import_module
from typing import TYPE_CHECKING

from lightning_app import __version__

if TYPE_CHECKING:
    from lightning_app.adapted import Adaptation, AdaptedModel, load_adapted
    from lightning_app.errors import UserError
    from lightning_app.languages import PAPER_LANGUAGES, Language, find_language, find_languages
    from lightning_app.neurons.atlas import Atlas
    from lightning_app.neurons.neuron_set import NeuronSet
    from lightning_app.neurons.selection import select_subnetworks
    from lightning_app.neurons.subnetworks import Subnetworks, read_subnetworks
    from lightning_app.run import RunFolder

__all__ = [
    "PAPER_LANGUAGES", "Adaptation", "AdaptedModel", "Atlas", "Language", "NeuronSet", "RunFolder", "Subnetworks",
    "UserError", "__version__", "find_language", "find_languages", "load_adapted", "read_subnetworks",
    "select_subnetworks",
]  # fmt: skip

_HOMES = {
    "lightning_app.adapted": ("Adaptation", "AdaptedModel", "load_adapted"),
    "lightning_app.errors": ("UserError",),
    "lightning_app.languages": ("PAPER_LANGUAGES", "Language", "find_language", "find_languages"),
    "lightning_app.neurons.atlas": ("Atlas",),
    "lightning_app.neurons.neuron_set": ("NeuronSet",),
    "lightning_app.neurons.selection": ("select_subnetworks",),
    "lightning_app.neurons.subnetworks": ("Subnetworks", "read_subnetworks"),
    "lightning_app.run": ("RunFolder",),
}


def __getattr__(name: str) -> object:
    home = next((home for home, names in _HOMES.items() if name in names), None)
    if home is None:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(import_module(home), name)


def __dir__() -> list[str]:
    return __all__
