"""Neuroglot from Python: adapted models, sets of neurons, and what is in both. No Trainer, no command line.

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
    from lightning_app.analysis.alignment import Alignment, similarities
    from lightning_app.analysis.causality import Selectivity, measure_selectivity, switched_off
    from lightning_app.analysis.finished_runs import ablate, follow_resources, follow_size
    from lightning_app.analysis.neuron_map import compare_languages, map_neurons
    from lightning_app.analysis.promotion import describe_moved
    from lightning_app.analysis.scores import distribute_scores, trace_stability
    from lightning_app.analysis.script_control import control_script
    from lightning_app.analysis.weight_change import measure_change, read_vectors
    from lightning_app.comparison.results import read_result
    from lightning_app.errors import UserError
    from lightning_app.languages import PAPER_LANGUAGES, Language, find_language, find_languages
    from lightning_app.neurons.atlas import Atlas
    from lightning_app.neurons.neuron_set import NeuronSet
    from lightning_app.neurons.selection import select_subnetworks
    from lightning_app.neurons.subnetworks import Subnetworks, read_subnetworks
    from lightning_app.reports.analysis.every import show
    from lightning_app.run import RunFolder

__all__ = [
    "PAPER_LANGUAGES", "Adaptation", "AdaptedModel", "Alignment", "Atlas", "Language", "NeuronSet", "RunFolder",
    "Selectivity", "Subnetworks", "UserError", "__version__", "ablate", "compare_languages", "control_script",
    "describe_moved", "distribute_scores", "find_language", "find_languages", "follow_resources", "follow_size",
    "load_adapted", "map_neurons", "measure_change", "measure_selectivity", "read_result", "read_subnetworks",
    "read_vectors", "select_subnetworks", "show", "similarities", "switched_off", "trace_stability",
]  # fmt: skip

_HOMES = {
    "lightning_app.adapted": ("Adaptation", "AdaptedModel", "load_adapted"),
    "lightning_app.analysis.alignment": ("Alignment", "similarities"),
    "lightning_app.analysis.causality": ("Selectivity", "measure_selectivity", "switched_off"),
    "lightning_app.analysis.finished_runs": ("ablate", "follow_resources", "follow_size"),
    "lightning_app.analysis.neuron_map": ("compare_languages", "map_neurons"),
    "lightning_app.analysis.promotion": ("describe_moved",),
    "lightning_app.analysis.scores": ("distribute_scores", "trace_stability"),
    "lightning_app.analysis.script_control": ("control_script",),
    "lightning_app.analysis.weight_change": ("measure_change", "read_vectors"),
    "lightning_app.comparison.results": ("read_result",),
    "lightning_app.errors": ("UserError",),
    "lightning_app.languages": ("PAPER_LANGUAGES", "Language", "find_language", "find_languages"),
    "lightning_app.neurons.atlas": ("Atlas",),
    "lightning_app.neurons.neuron_set": ("NeuronSet",),
    "lightning_app.neurons.selection": ("select_subnetworks",),
    "lightning_app.neurons.subnetworks": ("Subnetworks", "read_subnetworks"),
    "lightning_app.reports.analysis.every": ("show",),
    "lightning_app.run": ("RunFolder",),
}


def __getattr__(name: str) -> object:
    home = next((home for home, names in _HOMES.items() if name in names), None)
    if home is None:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(import_module(home), name)


def __dir__() -> list[str]:
    return __all__
