"""What the words of a command name, read: sets of neurons, counts, a model, finished runs."""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TypeVar

import torch

from datamodules.flores import read_flores, read_parallel
from datamodules.sources import open_source
from lightning_app.analysis.subject import Subject
from lightning_app.comparison.results import RunResult, read_result
from lightning_app.errors import UserError
from lightning_app.files import file_kind
from lightning_app.languages import Language, find_language
from lightning_app.neurons.atlas import ATLAS_KIND, Atlas, sum_atlases
from lightning_app.neurons.neuron_set import NeuronSet
from lightning_app.neurons.selection import select_subnetworks
from lightning_app.neurons.sizes import Sizes
from lightning_app.neurons.subnetworks import RELEASED, Subnetworks, read_subnetworks
from lightning_app.run import RunFolder

Value = TypeVar("Value")


@dataclass(frozen=True)
class Place:
    """Where a run's or a user's things are.

    Attributes:
        base: Of a model, where it is not where it was; of masks and atlases, whose model is to be looked into.
        revision: Of the base.
        cache_dir: Where atlases and FLORES are kept.
        device: Where models run.
    """

    base: str | None
    revision: str | None
    cache_dir: Path
    device: torch.device


@dataclass(frozen=True)
class Texts:
    """Where sentences and documents come from.

    Attributes:
        flores: As ``--data.flores``.
        cache_dir: Where FLORES's tarball is kept.
        source: As ``--data.source``.
        revision: Of the source.
        files: Own text by GlotCC code, as ``--data.files``.
        sentences: Of FLORES devtest, at most; dev is what training is measured on.
        tokens: Of a language's documents, at most.
        against: Languages beside those that were adapted to; None for the paper's nine, or the pool.
    """

    flores: str
    cache_dir: Path
    source: str
    revision: str
    files: Mapping[str, str | list[str]]
    sentences: int
    tokens: int
    against: tuple[Language, ...] | None = None

    def parallel(self, languages: Sequence[Language]) -> list[tuple[str, ...]]:
        """Returns sentences of languages side by side; raises `UserError` where FLORES lacks one."""
        return read_parallel(self.flores, languages, "devtest", self.cache_dir)[: self.sentences]

    def own(self, language: Language) -> list[str]:
        """Returns sentences of a language."""
        return read_flores(self.flores, language, "devtest", self.cache_dir)[: self.sentences]

    def documents(self, language: Language) -> Iterator[str]:
        """Yields documents of a language, as training reads them."""
        own = self.files.get(language.glotcc)
        source = open_source(self.source, language, self.revision, [own] if isinstance(own, str) else own)
        batches = source.batches(None)
        try:
            for documents, _ in batches:
                yield from documents
        finally:
            getattr(batches, "close", lambda: None)()  # a stream that is left open can abort the process at its end


@dataclass
class Material:
    """What analyses are made of; what was not named, and cannot be found beside it, is None or empty.

    Attributes:
        subnetworks: Sets of a pool of languages.
        atlas: The counts that they are selected from.
        subject: A model, and what became of it.
        runs: Finished runs, where several are named.
        sizes: How many neurons each language gets of the atlas.
        folder: Where results belong.
        texts: For analyses that read text.
    """

    folder: Path
    texts: Texts
    subnetworks: Subnetworks | None = None
    atlas: Atlas | None = None
    subject: Subject | None = None
    runs: list[RunResult] = field(default_factory=list)
    sizes: Sizes = field(default_factory=Sizes)

    @property
    def pool(self) -> list[Language]:
        """The languages of the sets."""
        return [find_language(code) for code in self.subnetworks.pool] if self.subnetworks is not None else []

    def with_other_scripts(self) -> list[Language]:
        """Returns the languages that are not written in Latin letters: of those adapted to, else of the pool."""
        named = self.subject.languages if self.subject is not None else []
        return [each for each in named or self.pool if each.script != "Latn"]

    def require_sets(self) -> Subnetworks:
        """Returns the sets; raises `UserError` where there are none, as all of these do."""
        return _there(self.subnetworks, "there are no sets of neurons")

    def require_several(self) -> Subnetworks:
        """Returns the sets of more than one language."""
        return _there(self.require_sets() if len(self.pool) > 1 else None, "there are no sets of several languages")

    def require_atlas(self) -> Atlas:
        """Returns the counts."""
        return _there(self.atlas, "there is no atlas; name it beside")

    def require_curves(self) -> Atlas:
        """Returns counts that were stopped when they were stable."""
        atlas = self.require_atlas()
        why = "its languages were not counted with --profiling.stop_when_stable"
        return _there(atlas if atlas.stability else None, why)

    def require_model(self) -> Subject:
        """Returns a model, adapted or not."""
        return _there(self.subject, "there is no model; give its --model.base")

    def require_change(self) -> Subject:
        """Returns an adapted model."""
        subject = self.subject
        return _there(subject if subject is not None and subject.has_change else None, "there is no adapted model")

    def require_target(self) -> Subject:
        """Returns an adapted model that says its language."""
        subject = self.require_change()
        return _there(subject if subject.languages else None, "the adapted model does not say its language")

    def require_trained(self) -> NeuronSet:
        """Returns the neurons that were trained."""
        return _there(self.require_change().neurons, "more than neurons was trained")

    def require_other_script(self) -> Subject:
        """Returns the model of languages of which one at least is not written in Latin letters."""
        subject = self.require_model()
        return _there(subject if self.with_other_scripts() else None, "its languages are all in Latin letters")

    def require_runs(self) -> Sequence[RunResult]:
        """Returns several finished runs."""
        return _there(self.runs or None, "it takes several finished runs")


def _there(value: Value | None, why: str) -> Value:
    if value is None:
        raise UserError(why)
    return value


def read_material(words: Sequence[str], languages: str | None, sizes: Sizes, place: Place, texts: Texts) -> Material:
    """Returns what is named: runs, checkpoints, deltas, atlases, subnetwork files or released masks.

    Args:
        words: Paths; several runs, several atlases of one model, or one of each kind.
        languages: Those of released masks, in their order; of an atlas the pool to select for.
        sizes: How many neurons each language gets of an atlas.
        place: Where the rest is.
        texts: For analyses that read text.

    Raises:
        UserError: Nothing is there, it is damaged, or what is named does not go together.
    """
    if not words:
        raise UserError(
            "nothing to analyse: name a run, an atlas, masks or several runs, as in: python main.py analyze runs/cy-..."
        )
    paths = [Path(word) for word in words]
    for path in paths:
        if not path.exists():
            raise UserError(f"there is nothing at {path}; expected a run folder, a checkpoint, or a file of neurons")
    folders = [path for path in paths if path.is_dir()]
    if len(folders) > 1:
        if len(folders) < len(paths):
            raise UserError("several runs are compared by themselves; leave the files out, or name one run")
        return Material(_together(folders), texts, runs=_finished(folders))
    material = Material(folders[0] / "analysis" if folders else _beside(paths[0]), texts, sizes=sizes)
    for path in paths:
        _add(material, path, languages, place)
    atlases = [path for path in paths if path.suffix == ".safetensors" and file_kind(path) == ATLAS_KIND]
    if atlases:
        material.atlas = sum_atlases([str(path) for path in atlases])
        material.subnetworks = material.subnetworks or _select(material, languages)
    if material.subject is None and place.base is not None:
        material.subject = Subject(None, place.base, place.revision, place.device)
    return material


def _add(material: Material, path: Path, languages: str | None, place: Place) -> None:
    """Reads one thing, and what belongs to it."""
    kind = file_kind(path) if path.suffix == ".safetensors" else path.suffix
    if path.is_dir():
        _add_run(material, RunFolder(path), place)
    elif kind in (*RELEASED, "subnetwork"):
        if material.subnetworks is not None:
            raise UserError(f"{path} holds a second pool of languages; name one, or compare: subnetwork --against")
        material.subnetworks = read_subnetworks(path, languages)
    elif kind in (".ckpt", "delta"):
        material.subject = Subject(path, place.base, place.revision, place.device)
    elif kind != ATLAS_KIND:
        raise UserError(f"{path} is {kind or 'no file of ours'}; expected a run, checkpoint, delta, atlas or masks")


def _add_run(material: Material, folder: RunFolder, place: Place) -> None:
    best = folder.best_checkpoint()
    if not folder.has_begun() or best is None:
        raise UserError(f"{folder} is no run with a checkpoint; name a run folder, or the files themselves")
    material.subject = Subject(best, place.base, place.revision, place.device)
    if folder.subnetworks.is_file():
        material.subnetworks = Subnetworks.load(folder.subnetworks)
        material.atlas = _atlas_of(material.subnetworks, place.cache_dir / "atlases")
        if material.subnetworks.rate and material.subnetworks.quantile:
            material.sizes = Sizes(material.subnetworks.rate, material.subnetworks.quantile)


def _atlas_of(subnetworks: Subnetworks, atlases: Path) -> Atlas | None:
    """Returns the atlas in a folder that subnetworks were selected from, by what it holds; None where none is."""
    for path in sorted(atlases.glob("*.safetensors")):
        atlas = Atlas.load(path)
        if set(subnetworks.pool) <= set(atlas.counts) and atlas.pool_id(subnetworks.pool) == subnetworks.atlas:
            return atlas
    return None


def _select(material: Material, languages: str | None) -> Subnetworks:
    atlas = material.require_atlas()
    codes = languages.split(",") if languages else list(atlas.counts)
    return select_subnetworks(atlas, [find_language(code) for code in codes], material.sizes)


def _finished(folders: Sequence[Path]) -> list[RunResult]:
    found = {path: read_result(RunFolder(path)) for path in folders}
    if unfinished := [str(path) for path, result in found.items() if result is None]:
        raise UserError(f"{unfinished[0]} holds no finished run; finish it with its fit command, or leave it out")
    return [result for result in found.values() if result is not None]


def _together(folders: Sequence[Path]) -> Path:
    parents = {folder.absolute().parent for folder in folders}
    return (parents.pop() if len(parents) == 1 else Path.cwd()) / "analysis"


def _beside(path: Path) -> Path:
    return path.with_name(f"{path.stem}-analysis")
