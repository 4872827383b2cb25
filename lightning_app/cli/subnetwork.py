"""``subnetwork``: select neurons from an atlas, or read released masks, and describe them."""

import json
from dataclasses import asdict
from pathlib import Path

from lightning_app.cli.lightning_cli import NeuroglotCLI
from lightning_app.cli.verb import Verb
from lightning_app.errors import UserError
from lightning_app.identity import ModelIdentity
from lightning_app.languages import find_language
from lightning_app.model.base import base_without_weights
from lightning_app.neurons.atlas import Atlas
from lightning_app.neurons.subnetworks import read_subnetworks
from lightning_app.reports.tables import describe_subnetworks, format_subnetworks

_SHAPE_KEYS = ("layers", "neurons_per_layer", "hidden_size", "parameters")
SUBNETWORK = Verb(
    "subnetwork",
    "Select neurons from an atlas, or read a subnetwork file or released masks, and describe them.",
    (
        "atlas", "profiling.rate", "profiling.quantile", "languages", "file", "model.base", "shape", "write",
        "write_atlas", "json",
    ),
    {
        "file": (str | None, None, "Subnetwork file or released masks (.pt, .pth) to read instead of selecting."),
        "languages": (str | None, None, "Order of the languages of released masks, or the pool to select: mt,af,..."),
        "atlas": (str | list[str] | None, None, "Atlas to select from; several of the same model are added up."),
        "shape": (dict[str, int] | None, None, f"Numbers of a model not at hand: {', '.join(_SHAPE_KEYS)}."),
        "write": (str | None, None, "Write the subnetwork to this file."),
        "write_atlas": (str | None, None, "Write the summed atlas to this file."),
        "json": (bool, False, "Print JSON."),
    },
    has_defaults=False,  # the paper's base is nothing to assume of a file
)  # fmt: skip


def subnetwork(arguments: list[str], shows_all: bool) -> None:
    """Prints the figures of a pool's subnetworks, and writes them where that is asked for."""
    cli = NeuroglotCLI(SUBNETWORK, arguments, shows_all)
    settings = cli.config
    if settings.file is not None:
        found = read_subnetworks(Path(settings.file), settings.languages)
    else:
        summed = _sum_atlases(settings.atlas)
        if settings.write_atlas:
            summed.save(Path(settings.write_atlas))
        codes = settings.languages.split(",") if settings.languages else summed.counts
        found = cli.profiling.select(summed, [find_language(code) for code in codes])
    identity = _shape(settings.shape, found.model)
    if not found.model.parameters and settings.shape is None and settings.model.base:
        identity = base_without_weights(settings.model.base, settings.model.revision).identity
        found.model.require_same(identity, "subnetwork", settings.file or "selected")
    if settings.write:
        found.save(Path(settings.write))
    figures = describe_subnetworks(found, identity)
    print(json.dumps(figures, ensure_ascii=False) if settings.json else format_subnetworks(figures), flush=True)


def _sum_atlases(paths: str | list[str] | None) -> Atlas:
    paths = [paths] if isinstance(paths, str) else paths
    if not paths:
        raise UserError(
            "nothing to read: give --atlas FILE (or several), or --file with a subnetwork or released masks"
        )
    first, *others = [(Path(path), Atlas.load(Path(path))) for path in paths]
    for path, other in others:
        first[1].merge(other, path)
    return first[1]


def _shape(shape: dict[str, int] | None, model: ModelIdentity) -> ModelIdentity:
    if unknown := set(shape or {}) - set(_SHAPE_KEYS):
        raise UserError(f"--shape has no {', '.join(sorted(unknown))}; expected {', '.join(_SHAPE_KEYS)}")
    return ModelIdentity(**{**asdict(model), **(shape or {})})
