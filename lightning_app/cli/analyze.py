"""``analyze``: what is in a run, an atlas, masks or several runs, as tables, pictures and JSON."""

import json
from pathlib import Path

from lightning_app.analysis.choice import choose_analyses
from lightning_app.analysis.material import Place, read_material
from lightning_app.cli.lightning_cli import ParsedCLI
from lightning_app.cli.measure import of_run
from lightning_app.cli.verb import Verb, say
from lightning_app.neurons.sizes import Sizes
from lightning_app.reports.analysis.every import show
from lightning_app.run import RunFolder

ANALYZE = Verb(
    "analyze",
    "Show what is in a run, an atlas, released masks or several finished runs: where neurons lie, what languages "
    "share, what training changed, what neurons do. Writes JSON, PNG and SVG for each.",
    (
        "sources", "what", "out", "languages", "model.base", "profiling.rate", "profiling.quantile", "data.cache_dir",
        "trainer.accelerator",
    ),
    {
        "sources": (
            list[str], [], "Run folder, several runs, checkpoint, delta, atlas, subnetwork file or released masks.",
        ),
        "what": (str | None, None, "Analyses, comma between; all that the sources allow where not given."),
        "out": (str | None, None, "Folder to write to; the run's analysis/, or beside the file, where not given."),
        "languages": (str | None, None, "Order of released masks' languages, or the pool of an atlas: mt,af,..."),
    },
    has_defaults=False,
    words="sources",
)  # fmt: skip


def analyze(arguments: list[str], shows_all: bool) -> None:
    """Makes every analysis, prints its table and writes its files."""
    if not any(argument.startswith(("--sources", "--help")) for argument in arguments):
        newest = RunFolder.newest(Path("runs")).path
        say(f"newest run {newest}")
        arguments = [f"--sources={json.dumps([str(newest)])}", *arguments]
    cli = ParsedCLI(ANALYZE, of_run(arguments, "--sources"), shows_all)
    settings = cli.config
    # A run itself knows its base, unless that is somewhere else now.
    is_given = "--model.base" in {argument.partition("=")[0] for argument in arguments}
    base, revision = (settings.model.base, settings.model.revision) if is_given else (None, None)
    place = Place(base, revision, Path(settings.data.cache_dir), cli.make_fabric().device)
    sizes = Sizes(settings.profiling.rate, settings.profiling.quantile)
    material = read_material(settings.sources, settings.languages, sizes, place)
    chosen, left_out = choose_analyses(settings.what, material)
    folder = Path(settings.out) if settings.out else material.folder
    written: list[Path] = []
    for analysis in chosen:
        for result in analysis.make(material):
            shown = show(result)
            written += shown.write(folder)
            say(f"{shown.title}\n{shown.table}\n")
    for name, why in left_out.items():
        say(f"left out: {name}, {why}")
    say(f"{len(written)} files in {folder}/: {', '.join(sorted({path.stem for path in written}))}")
