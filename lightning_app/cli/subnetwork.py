"""``subnetwork``: select neurons from an atlas, or read released masks, and describe them."""

import json
from dataclasses import asdict
from pathlib import Path

from lightning_app.cli.lightning_cli import NeuroglotCLI
from lightning_app.cli.verb import Verb
from lightning_app.errors import UserError
from lightning_app.files import file_kind
from lightning_app.identity import ModelIdentity
from lightning_app.languages import Language, expand_languages, find_language
from lightning_app.model.base import base_without_weights
from lightning_app.neurons.atlas import ATLAS_KIND, Atlas, sum_atlases
from lightning_app.neurons.selection import select_subnetworks
from lightning_app.neurons.subnetworks import RELEASED, Subnetworks, read_subnetworks
from lightning_app.reports.layout import as_json
from lightning_app.reports.neurons import (
    describe_difference,
    describe_subnetworks,
    format_difference,
    format_subnetworks,
)

_SHAPE_KEYS = ("layers", "neurons_per_layer", "hidden_size", "parameters")
SUBNETWORK = Verb(
    "subnetwork",
    "Select neurons from an atlas, or read a subnetwork file or released masks, and describe them.",
    (
        "atlas", "profiling.rate", "profiling.quantile", "profiling.rates", "profiling.parameters",
        "profiling.threshold", "profiling.most_per_layer", "profiling.fewest_per_layer", "languages", "file", "against",
        "model.base", "shape", "write", "write_atlas", "json",
    ),
    {
        "file": (str | None, None, "Subnetwork file or released masks (.pt, .pth) to read instead of selecting."),
        "languages": (str | None, None, "Order of released masks' languages, or the pool: mt,af or family:Celtic."),
        "atlas": (str | list[str] | None, None, "Atlas to select from; several are added up, 'parts/*.safetensors'."),
        "shape": (dict[str, int] | None, None, f"Numbers of a model not at hand: {', '.join(_SHAPE_KEYS)}."),
        "against": (str | None, None, "Compare with this subnetwork, these masks, or what this atlas gives alike."),
        "write": (str | None, None, "Write the subnetwork to this file; to .pt or .pth in the form of released masks."),
        "write_atlas": (str | None, None, "Write the summed atlas to this file."),
        "json": (bool, False, "Print JSON."),
    },
    has_defaults=False,  # the paper's base is nothing to assume of a file
)  # fmt: skip


def subnetwork(arguments: list[str], shows_all: bool) -> None:
    """Prints the figures of a pool's subnetworks, and writes them where that is asked for."""
    cli = NeuroglotCLI(SUBNETWORK, arguments, shows_all)
    settings, by_rate = cli.config, None
    if settings.file is not None:
        found = read_subnetworks(Path(settings.file), settings.languages)
    else:
        if not settings.atlas:
            raise UserError(
                "nothing to read: give --atlas FILE (or several), or --file with a subnetwork or released masks"
            )
        summed = sum_atlases(settings.atlas)
        if settings.write_atlas:
            summed.save(Path(settings.write_atlas))
        pool = _pool(settings.languages, summed)
        cli.profiling.require_pool(pool)
        found = cli.profiling.select(summed, pool)
        by_rate = select_subnetworks(summed, pool, cli.profiling.sizes.paper) if found.sizes else None
    if settings.against:
        difference = describe_difference(found, _other(cli, settings.against, settings.languages))
        print(as_json(difference) if settings.json else format_difference(difference), flush=True)
        return
    identity = _shape(settings.shape, found.model)
    if not found.model.parameters and settings.shape is None and settings.model.base:
        identity = base_without_weights(settings.model.base, settings.model.revision).identity
        found.model.require_same(identity, "subnetwork", settings.file or "selected")
    if settings.write:
        path = Path(settings.write)
        (found.save_released if path.suffix in RELEASED else found.save)(path)
    figures = describe_subnetworks(found, identity, by_rate)
    print(json.dumps(figures, ensure_ascii=False) if settings.json else format_subnetworks(figures), flush=True)


def _pool(text: str | None, atlas: Atlas) -> list[Language]:
    """Returns the languages to select for: those of the atlas, or those named, of groups the ones that it holds."""
    if text is None:
        return [find_language(code) for code in atlas.counts]
    pool, of_groups = expand_languages(text)
    return [language for language in pool if language in atlas or language not in of_groups]


def _other(cli: NeuroglotCLI, given: str, languages: str | None) -> Subnetworks:
    """Returns what ``--against`` names: subnetworks, masks of the same languages, or an atlas to select from alike."""
    path = Path(given)
    if path.suffix not in RELEASED and file_kind(path) == ATLAS_KIND:
        atlas = sum_atlases(given)
        return cli.profiling.select(atlas, _pool(languages, atlas))
    return read_subnetworks(path, languages)


def _shape(shape: dict[str, int] | None, model: ModelIdentity) -> ModelIdentity:
    if unknown := set(shape or {}) - set(_SHAPE_KEYS):
        raise UserError(f"--shape has no {', '.join(sorted(unknown))}; expected {', '.join(_SHAPE_KEYS)}")
    return ModelIdentity(**{**asdict(model), **(shape or {})})
