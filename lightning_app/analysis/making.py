"""The analyses by name, each made of what there is; what is lacking is said before anything is computed."""

from collections.abc import Callable, Iterator, Sequence
from itertools import chain, islice

from datamodules.encoding import encode_documents
from datamodules.flores import join_blocks
from lightning_app.adapted import AdaptedModel
from lightning_app.analysis.alignment import Alignment, similarities
from lightning_app.analysis.causality import Selectivity, measure_selectivity
from lightning_app.analysis.finished_runs import ablate, follow_resources, follow_size
from lightning_app.analysis.material import Material
from lightning_app.analysis.neuron_map import GROUPINGS, NeuronMap, OverlapMatrix, compare_languages, map_neurons
from lightning_app.analysis.promotion import Promotion, describe_moved
from lightning_app.analysis.scores import ScoreDistribution, Stability, distribute_scores, trace_stability
from lightning_app.analysis.script_control import ScriptControl, control_script, load_romaniser
from lightning_app.analysis.subject import Subject
from lightning_app.analysis.weight_change import WeightChange, measure_change, read_vectors
from lightning_app.comparison.results import RunResult
from lightning_app.errors import UserError, did_you_mean
from lightning_app.languages import Language, find_language
from lightning_app.neurons.atlas import Atlas
from lightning_app.neurons.neuron_set import NeuronSet
from lightning_app.neurons.subnetworks import Subnetworks

PAPERS_OTHERS = ("ar", "de", "en", "es", "fr", "it", "ja", "ru", "zh")
"""Languages that the paper aligns its own with."""

_BLOCK_SIZE = 512
_MOST_SWITCHED = 16  # languages of a pool whose neurons are switched off unasked
_DOCUMENTS_AT_ONCE = 64


def _map(subnetworks: Subnetworks) -> Iterator[NeuronMap]:
    yield map_neurons(subnetworks)


def _overlaps(subnetworks: Subnetworks) -> Iterator[OverlapMatrix]:
    for by in GROUPINGS:
        yield compare_languages(subnetworks, by)


def _scores(atlas: Atlas, material: Material) -> Iterator[ScoreDistribution]:
    yield distribute_scores(atlas, material.pool, material.sizes.rate, material.sizes.quantile)


def _stability(atlas: Atlas) -> Iterator[Stability]:
    yield trace_stability(atlas)


def _change(subject: Subject) -> Iterator[WeightChange]:
    before, adapted = subject.before, subject.adapted()
    yield measure_change(before, read_vectors(adapted.model, subject.neurons), adapted.base.layers)


def _promotions(subject: Subject, neurons: NeuronSet, material: Material) -> Iterator[Promotion]:
    before, adapted = subject.before, subject.adapted()
    after = read_vectors(adapted.model, neurons)
    for language in subject.languages:
        sentences = material.texts.own(language)
        yield describe_moved(adapted.model, adapted.tokenizer, before, after, neurons, language, sentences)


def _alignments(subject: Subject, material: Material) -> Iterator[Alignment]:
    found = []
    for language in subject.languages:
        others = _others(material, language)
        rows = material.texts.parallel([language, *others])
        found.append((language, others, rows, _similarities(subject.adapted(), rows)))
    for language, others, rows, after in found:  # each model once
        yield Alignment(language, tuple(others), len(rows), _similarities(subject.base(), rows), after)


def _similarities(model: AdaptedModel, rows: Sequence[Sequence[str]]) -> tuple[tuple[float, ...], ...]:
    return similarities(model.model, model.tokenizer, rows)


def _others(material: Material, language: Language) -> list[Language]:
    """Returns what a language is compared with: those named, the paper's that FLORES has, or the pool's.

    Raises:
        UserError: FLORES has none of them.
    """
    if material.texts.against is not None:
        return [each for each in material.texts.against if each != language]
    refused = None
    for candidates in (map(find_language, PAPERS_OTHERS), material.pool):
        found = []
        for each in candidates:
            try:
                found += [each] if each != language and material.texts.own(each) else []
            except UserError as error:
                refused = error
        if found:
            return found
    raise refused or UserError(f"there is no language to compare {language} with; name some by --against")


def _selectivity(subnetworks: Subnetworks, subject: Subject, material: Material) -> Iterator[Selectivity]:
    base = subject.base()
    subnetworks.model.require_same(base.base, "the sets of neurons", material.folder)
    pool = [each for each in material.pool if len(subnetworks.of(each))]
    if len(pool) > _MOST_SWITCHED:
        pool = [each for each in pool if each in subject.languages] or pool[:_MOST_SWITCHED]
    measured = list(dict.fromkeys([*pool, *(material.texts.against or ())]))
    block_size = min(_BLOCK_SIZE, getattr(base.model.config, "max_position_embeddings", None) or _BLOCK_SIZE)
    texts = {each: join_blocks(material.texts.own(each), base.tokenizer, block_size) for each in measured}
    yield measure_selectivity(base.model, {each: subnetworks.of(each) for each in pool}, texts)


def _script_controls(
    atlas: Atlas, subject: Subject, material: Material, romanise: Callable[[str], str]
) -> Iterator[ScriptControl]:
    base, texts = subject.base(), material.texts
    atlas.model.require_same(base.base, "the atlas", material.folder)
    for language in material.with_other_scripts():
        ids: list[int] = []
        romanised: list[int] = []
        documents = iter(texts.documents(language))
        while len(ids) < texts.tokens and (batch := list(islice(documents, _DOCUMENTS_AT_ONCE))):
            ids += chain.from_iterable(encode_documents(base.tokenizer, batch))
            romanised += chain.from_iterable(encode_documents(base.tokenizer, [romanise(each) for each in batch]))
        yield control_script(base.model, ids, romanised, language, atlas, material.pool, material.sizes)


def _comparisons(runs: Sequence[RunResult]) -> Iterator[object]:
    found = [*ablate(runs), *follow_size(runs), *follow_resources(runs)]
    if not found:
        raise UserError(
            "the runs do not differ in one thing alone: expected other projections, other numbers of tokens, or three "
            "languages or more, and the same base, method, settings and rate"
        )
    yield from found


# What they take is looked at when one is called, what they make is made when it is asked for. In an order in which
# models are opened seldom: the base, the adapted one, the base again.
ANALYSES: dict[str, Callable[[Material], Iterator[object]]] = {
    "neurons": lambda it: _map(it.require_sets()),
    "overlap": lambda it: _overlaps(it.require_several()),
    "scores": lambda it: _scores(it.require_atlas(), it),
    "stability": lambda it: _stability(it.require_curves()),
    "change": lambda it: _change(it.require_change()),
    "tokens": lambda it: _promotions(it.require_target(), it.require_trained(), it),
    "alignment": lambda it: _alignments(it.require_target(), it),
    "causal": lambda it: _selectivity(it.require_several(), it.require_model(), it),
    "script": lambda it: _script_controls(it.require_atlas(), it.require_other_script(), it, load_romaniser()),
    "runs": lambda it: _comparisons(it.require_runs()),
}
OF_SEVERAL = "runs"
ONLY_WHERE_NAMED = ("script",)  # it reads documents, which may be on the hub


def choose_analyses(what: str | None, material: Material) -> tuple[dict[str, Iterator[object]], dict[str, str]]:
    """Returns the results of the analyses that are asked for, or else of all that can be made, and why others cannot.

    Results are computed while they are iterated over, and may still raise `UserError` then.

    Raises:
        UserError: One is unknown, or is asked for and lacks something.
    """
    # Of several runs together there is nothing else to say.
    possible = [name for name in ANALYSES if (name == OF_SEVERAL) == bool(material.runs)]
    names = possible if what is None else [name.strip() for name in what.split(",") if name.strip()]
    for name in names:
        if name not in ANALYSES:
            raise UserError(f"--what has no '{name}'{did_you_mean(name, ANALYSES)}; expected {', '.join(ANALYSES)}")
    chosen: dict[str, Iterator[object]] = {}
    left_out: dict[str, str] = {}
    for name in ANALYSES:
        if name not in names:
            continue
        if what is None and name in ONLY_WHERE_NAMED:
            left_out[name] = "it is made where --what names it"
            continue
        try:
            chosen[name] = ANALYSES[name](material)
        except UserError as error:
            if what is not None:
                raise UserError(f"{name} cannot be made: {error}") from error
            left_out[name] = str(error)
    return chosen, left_out
