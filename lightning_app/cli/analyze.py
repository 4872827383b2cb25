"""``analyze``: what is in a run, an atlas, masks or several runs, as tables, pictures and JSON."""

import json
from collections.abc import Iterator
from dataclasses import asdict, replace
from pathlib import Path

from jsonargparse import Namespace

from datamodules.examination import examine, fertility_of
from datamodules.held_out import HeldOutText
from lightning_app.analysis.making import choose_analyses
from lightning_app.analysis.material import Place, Texts, read_material
from lightning_app.cli.lightning_cli import NeuroglotCLI, ParsedCLI
from lightning_app.cli.measure import of_run
from lightning_app.cli.verb import Verb, say
from lightning_app.errors import UserError
from lightning_app.files import write_text
from lightning_app.languages import find_language
from lightning_app.neurons.sizes import Sizes
from lightning_app.reports.analysis.every import show
from lightning_app.reports.layout import as_json
from lightning_app.reports.tables import format_text
from lightning_app.run import RunFolder, is_first_process

ANALYZE = Verb(
    "analyze",
    "Show what is in a run, an atlas, released masks or several finished runs: where neurons lie, what languages "
    "share, what training changed, what neurons do. Writes JSON, PNG and SVG for each; the newest run where nothing is "
    "named.",
    (
        "sources", "text", "what", "out", "languages", "against", "sentences", "tokens", "model.base", "profiling.rate",
        "profiling.quantile", "data.source", "data.flores", "data.cache_dir", "trainer.accelerator",
    ),
    {
        "sources": (
            list[str], [], "Run folder, several runs, checkpoint, delta, atlas, subnetwork file or released masks.",
        ),
        "what": (
            str | None, None, "neurons, overlap, scores, stability, change, tokens, alignment, causal, script, runs; "
            "comma between. All but script that the sources allow where not given.",
        ),
        "out": (str | None, None, "Folder to write to; the run's analysis/, or beside the file, where not given."),
        "languages": (str | None, None, "Order of released masks' languages, or the pool of an atlas: mt,af,..."),
        "against": (str | None, None, "Other languages for alignment and causal; the paper's nine, or the pool."),
        "sentences": (int, 200, "Of FLORES devtest, for alignment, causal and tokens."),
        "tokens": (int, 200_000, "Of a language's documents, for script."),
        "text": (bool, False, "Look at the training text of --language instead, before money is spent on it."),
        "documents": (int | None, None, "Of the text, at most; all of it where not given."),
        "near": (bool, False, "Count near duplicates in the text, too."),
    },
    has_defaults=False,
    words="sources",
)  # fmt: skip


def analyze(arguments: list[str], shows_all: bool) -> None:
    """Makes every analysis, prints its table and writes its files."""
    if "--text" in arguments:
        return _analyze_text(arguments, shows_all)
    if not any(argument.startswith(("--sources", "--help")) for argument in arguments):
        newest = RunFolder.newest(Path("runs")).path
        say(f"newest run {newest}")
        arguments = [f"--sources={json.dumps([str(newest)])}", *arguments]
    cli = ParsedCLI(ANALYZE, of_run(arguments, "--sources"), shows_all)
    settings = cli.config
    # A run itself knows its base, unless that is somewhere else now.
    is_given = "--model.base" in {argument.partition("=")[0] for argument in arguments}
    base, revision = (settings.model.base, settings.model.revision) if is_given else (None, None)
    cli.require_whole_base()
    place = Place(base, revision, Path(settings.data.cache_dir), cli.make_fabric().device)
    sizes = Sizes(settings.profiling.rate, settings.profiling.quantile)
    if not is_first_process():
        return
    material = read_material(settings.sources, settings.languages, sizes, place, _texts(settings))
    chosen, left_out = choose_analyses(settings.what, material)
    folder = Path(settings.out) if settings.out else material.folder
    written: list[Path] = []
    for name, results in chosen.items():
        try:
            written += _write(results, folder)
        except UserError as error:
            if settings.what is not None:
                raise
            left_out[name] = str(error)
    for name, why in left_out.items():
        say(f"left out: {name}, {why}")
    say(f"{len(written)} files in {folder}/: {', '.join(dict.fromkeys(path.stem for path in written))}")


def _analyze_text(arguments: list[str], shows_all: bool) -> None:
    """Prints what the text of each target language is, and writes it as JSON where ``--out`` says."""
    cli = NeuroglotCLI(ANALYZE, arguments, shows_all)
    data, settings = cli.datamodule, cli.config
    if not data.targets:
        raise UserError("no language whose text to look at: give --language (cy, say)")
    if settings.documents is not None and settings.documents < 1:
        raise UserError(f"--documents is {settings.documents}; expected a whole number above zero")
    corpus, flores, told = data.corpus, data.evaluation_text, {}
    has_tokenizer = corpus.tokenizer_name is not None
    for share in data.targets:
        language = share.language
        sentences = flores.sentences(language)
        held_out = {str(split): HeldOutText(texts, language.script) for split, texts in sentences.items()}
        found = examine(corpus.text(language), held_out, settings.documents, settings.near)
        cut = fertility_of(corpus.tokenizer, language, sentences["devtest"]) if has_tokenizer else None
        say(format_text(language, found, cut))
        told[language.glotcc] = {"text": asdict(found), "fertility": asdict(cut) if cut is not None else None}
    if settings.out:
        write_text(Path(settings.out) / "text.json", as_json(told))
        say(f"text.json in {settings.out}/")


def _write(results: Iterator[object], folder: Path) -> list[Path]:
    written: list[Path] = []
    names: list[str] = []
    for result in results:
        shown = show(result)
        names.append(shown.name)
        if names.count(shown.name) > 1:  # two methods' runs on one language, say
            shown = replace(shown, name=f"{shown.name}-{names.count(shown.name)}")
        written += shown.write(folder)
        say(f"{shown.title}\n{shown.table}\n")
    return written


def _texts(settings: Namespace) -> Texts:
    for key in ("sentences", "tokens"):
        if settings[key] < 1:
            raise UserError(f"--{key} is {settings[key]}; expected a whole number above zero")
    data, against = settings.data, settings.against
    files = {find_language(code).glotcc: own for code, own in (data.files or {}).items()}
    others = tuple(find_language(code.strip()) for code in against.split(",")) if against else None
    return Texts(
        data.flores,
        Path(data.cache_dir),
        data.source,
        data.revision,
        files,
        settings.sentences,
        settings.tokens,
        others,
    )
