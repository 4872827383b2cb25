"""``atlas``: what an atlas holds; several of one model are added up."""

from pathlib import Path

from lightning_app.cli.lightning_cli import NeuroglotCLI
from lightning_app.cli.verb import Verb
from lightning_app.errors import UserError
from lightning_app.neurons.atlas import sum_atlases
from lightning_app.reports.layout import as_json
from lightning_app.reports.neurons import describe_atlas, format_atlas

ATLAS = Verb(
    "atlas",
    "Show the languages of an atlas, their tokens, text and stability; add up the parts that an array of jobs counted.",
    ("atlas", "write", "json"),
    {
        "atlas": (str | list[str] | None, None, "Atlas, or several of one model, also as 'parts/*.safetensors'."),
        "write": (str | None, None, "Write the sum to this file."),
        "json": (bool, False, "Print JSON."),
    },
    has_defaults=False,
)


def atlas(arguments: list[str], shows_all: bool) -> None:
    """Prints what the sum of atlases holds, and writes it where that is asked for."""
    settings = NeuroglotCLI(ATLAS, arguments, shows_all).config
    if not settings.atlas:
        raise UserError("nothing to read: give --atlas FILE, or several, or a pattern in quotes")
    summed = sum_atlases(settings.atlas)
    if settings.write:
        summed.save(Path(settings.write))
    described = describe_atlas(summed)
    print(as_json(described) if settings.json else format_atlas(described), flush=True)
