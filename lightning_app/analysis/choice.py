"""The analyses by name: what each needs, and how it is made of what there is."""

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass

from lightning_app.analysis.material import Material
from lightning_app.analysis.neuron_map import GROUPINGS, compare_languages, map_neurons
from lightning_app.analysis.scores import distribute_scores, trace_stability
from lightning_app.analysis.weight_change import measure_change, read_vectors
from lightning_app.errors import UserError, did_you_mean


@dataclass(frozen=True)
class Analysis:
    """One of them.

    Attributes:
        name: What ``--what`` calls it.
        lacks: Says what it lacks; an empty string where it can be made.
        make: Makes its results, the cheap ones when they are asked for.
    """

    name: str
    lacks: Callable[[Material], str]
    make: Callable[[Material], Iterable[object]]


def _lacks_sets(material: Material) -> str:
    return "" if material.subnetworks is not None else "there are no sets of neurons"


def _lacks_pool(material: Material) -> str:
    return _lacks_sets(material) or ("" if len(material.pool) > 1 else "there is one language only")


def _lacks_atlas(material: Material) -> str:
    return "" if material.atlas is not None else "there is no atlas; name it beside"


def _lacks_curves(material: Material) -> str:
    curves = "its languages were not counted with --profiling.stop_when_stable"
    return _lacks_atlas(material) or ("" if material.atlas is not None and material.atlas.stability else curves)


def _lacks_change(material: Material) -> str:
    return "" if material.subject is not None and material.subject.has_change else "there is no adapted model"


def _neurons(material: Material) -> Iterable[object]:
    assert material.subnetworks is not None
    yield map_neurons(material.subnetworks)


def _overlap(material: Material) -> Iterable[object]:
    assert material.subnetworks is not None
    for by in GROUPINGS:
        yield compare_languages(material.subnetworks, by)


def _scores(material: Material) -> Iterable[object]:
    assert material.atlas is not None
    yield distribute_scores(material.atlas, material.pool, material.sizes.rate, material.sizes.quantile)


def _stability(material: Material) -> Iterable[object]:
    assert material.atlas is not None
    yield trace_stability(material.atlas)


def _change(material: Material) -> Iterable[object]:
    subject = material.subject
    assert subject is not None
    before = read_vectors(subject.base().model, subject.neurons)
    adapted = subject.adapted()
    yield measure_change(before, read_vectors(adapted.model, subject.neurons), adapted.base.layers)


ANALYSES = (
    Analysis("neurons", _lacks_sets, _neurons),
    Analysis("overlap", _lacks_pool, _overlap),
    Analysis("scores", _lacks_atlas, _scores),
    Analysis("stability", _lacks_curves, _stability),
    Analysis("change", _lacks_change, _change),
)
"""In an order in which models are opened seldom."""


def choose_analyses(what: str | None, material: Material) -> tuple[Sequence[Analysis], dict[str, str]]:
    """Returns the analyses that are asked for, or else all that can be made, and why others cannot.

    Raises:
        UserError: One is unknown, or is asked for and lacks something.
    """
    lacks = {each.name: each.lacks(material) for each in ANALYSES}
    if what is None:
        return [each for each in ANALYSES if not lacks[each.name]], {name: why for name, why in lacks.items() if why}
    names = [name.strip() for name in what.split(",") if name.strip()]
    for name in names:
        if name not in lacks:
            raise UserError(f"--what has no '{name}'{did_you_mean(name, lacks)}; expected {', '.join(lacks)}")
        if lacks[name]:
            raise UserError(f"{name} cannot be made: {lacks[name]}")
    return [each for each in ANALYSES if each.name in names], {}
