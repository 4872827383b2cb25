"""``generate``: base and adapted model answer prompts side by side, for you, a file, or a native speaker to judge."""

from pathlib import Path

from jsonargparse import Namespace

from datamodules.prompts import read_prompt_file
from lightning_app import __version__
from lightning_app.cli.apply import read_weights
from lightning_app.cli.export import find_source
from lightning_app.cli.lightning_cli import ParsedCLI
from lightning_app.cli.measure import of_run
from lightning_app.cli.side_by_side import SideBySide, typed
from lightning_app.cli.tally import tally
from lightning_app.cli.verb import Verb, say
from lightning_app.errors import UserError
from lightning_app.evaluation.preferences import blind_pairs
from lightning_app.export.source import Source
from lightning_app.export.stack import Policy
from lightning_app.export.switching import BaseAndAdapted
from lightning_app.export.whole import new_whole, require_new
from lightning_app.files import JSON, write_json, write_text
from lightning_app.languages import Language, find_language
from lightning_app.model.sampling import Sampling
from lightning_app.reports.sheet import sheet_csv, sheet_html, sheet_key
from lightning_app.reports.stacking import format_overlaps
from lightning_app.run import is_first_process

GENERATE = Verb(
    "generate",
    "Answer prompts with base and adapted model side by side: of --prompts, or as you type them; --sheet has a native "
    "speaker judge without knowing which is which, --tally counts what came back. The newest run where none is named.",
    (
        "source", "prompt", "prompts", "chat", "temperature", "top_p", "max_new_tokens", "seed", "scale", "out",
        "sheet", "tally", "key", "language", "policy", "weights", "base", "run_dir", "trainer.accelerator",
    ),
    {
        "source": (
            str | list[str] | None, None, "Run folder, checkpoint, delta.safetensors or hub:OWNER/NAME; several are "
            "stacked.",
        ),
        "prompt": (str, "", "One prompt."),
        "prompts": (
            str | None, None, "File with a prompt a line, or JSON lines with a \"prompt\"; - is stdin.",
        ),
        "chat": (bool, False, "Ask by the tokenizer's chat template; else prompts are continued."),
        "temperature": (float, 0.0, "0 takes the likeliest token; the higher, the more others are drawn."),
        "top_p": (float, 1.0, "Draw of the likeliest tokens that have this probability together."),
        "max_new_tokens": (int, 128, "Where an answer ends at the latest."),
        "seed": (int, 0, "Of what is drawn, and of the order on the sheet."),
        "scale": (float, 1.0, "Shrink or stretch the change."),
        "out": (str | None, None, "Also write prompts and answers here, as JSON lines."),
        "sheet": (str | None, None, "Folder to write a sheet for judging to: sheet.html, sheet.csv, key.json."),
        "tally": (str | None, None, "Count judged sheets, comma between; of one judge each."),
        "key": (str | None, None, "The key.json of the judged sheets; the one beside the first where not given."),
        "policy": (Policy, "refuse", "What becomes of neurons that several have."),
        "weights": (str | None, None, "For --policy weighted: a number for each source, 2,1."),
        "base": (str | None, None, "Where the base is, if not under the name that it had in training."),
    },
    words="source",
)  # fmt: skip


def generate(arguments: list[str], shows_all: bool) -> None:
    """Answers and shows, writes and says what was written; or counts."""
    given = {argument.partition("=")[0].removeprefix("--") for argument in arguments if argument.startswith("--")}
    if "tally" in given:
        tally(ParsedCLI(GENERATE, arguments, shows_all).config, given & set(GENERATE.options))
        return
    cli = ParsedCLI(GENERATE, of_run(arguments), shows_all)
    settings = cli.config
    sampling = Sampling(settings.max_new_tokens, settings.temperature, settings.top_p, settings.seed)
    prompts = _read_prompts(settings, given)
    out, sheet = (_target(settings[key], f"--{key}") for key in ("out", "sheet"))
    if out is not None and sheet is not None and sheet.absolute() in (out.absolute(), *out.absolute().parents):
        raise UserError(f"--out {out} is where the sheet goes; give it another place")
    source = _find_source(settings, "model.revision" in given)
    language = _language(settings.language if "language" in given else None, source)
    cli.require_whole_base()
    fabric = cli.make_fabric()
    if not is_first_process():
        return
    if len(source.paths) > 1:
        say(format_overlaps(source.stack.overlaps()))
    two = BaseAndAdapted.load(source, fabric.device)
    side_by_side = SideBySide(two, sampling, settings.chat, _made_by(two, settings))
    side_by_side.require_room(prompts or [])
    side_by_side.answer_all(typed() if prompts is None else prompts, out)
    if sheet is not None:
        _write_sheet(side_by_side, language, sheet)


def _read_prompts(settings: Namespace, given: set[str]) -> list[str] | None:
    """Returns the prompts, or None where they are to be typed."""
    if "prompt" in given and settings.prompts is not None:
        raise UserError("--prompt and --prompts both say what to answer; leave one out")
    if settings.prompts == "":
        raise UserError("--prompts is empty; expected a file, or - for stdin")
    if "prompt" in given and not settings.prompt.strip():
        raise UserError("--prompt is empty; write something, or leave it out and type prompts one after another")
    if "prompt" in given:
        return [settings.prompt]
    if settings.prompts is not None:
        return read_prompt_file(settings.prompts)
    if settings.sheet is not None:
        raise UserError("a sheet needs prompts: give --prompts FILE, one a line")
    return None


def _target(path: str | None, key: str) -> Path | None:
    if path is None:
        return None
    if not path.strip():
        raise UserError(f"{key} is empty; expected where to write")
    require_new(Path(path), key)
    return Path(path)


def _find_source(settings: Namespace, has_revision: bool) -> Source:
    paths = [find_source(each, Path(settings.run_dir)) for each in _named(settings)]
    revision = settings.model.revision if has_revision else None
    weights = read_weights(settings.weights)
    return Source.find(paths, settings.base, revision, settings.scale, False, settings.policy, weights)


def _named(settings: Namespace) -> list[str]:
    """Returns what is asked; `of_run` has put the newest run where nothing was named."""
    return settings.source if isinstance(settings.source, list) else [settings.source]


def _language(given: str | None, source: Source) -> Language | None:
    """Returns the language that the sheet says its texts are in; None where there are several."""
    if given is not None:
        return find_language(given)
    return find_language(source.languages[0]) if len(source.languages) == 1 else None


def _made_by(two: BaseAndAdapted, settings: Namespace) -> JSON:
    keys = ("chat", "temperature", "top_p", "max_new_tokens", "seed", "scale")
    return {
        "version": __version__,
        "base": two.identity.as_dict(),
        "adapted": _named(settings),
        **{key: settings[key] for key in keys},
    }


def _write_sheet(said: SideBySide, language: Language | None, out: Path) -> None:
    pairs = blind_pairs(said.answers, said.sampling.seed)
    if not pairs:
        raise UserError("base and adapted model answer every prompt the same, so there is nothing to judge")
    same = len(said.answers) - len(pairs)
    with new_whole(out, key="--sheet") as folder:
        folder.mkdir()
        write_text(folder / "sheet.html", sheet_html(pairs, language))
        write_text(folder / "sheet.csv", sheet_csv(pairs))
        write_json(folder / "key.json", sheet_key(pairs, same, said.made_by))
    say(f"sheet of {len(pairs)} pairs: {out}/sheet.html or sheet.csv is for those who judge, key.json is not")
    if same:
        say(f"left out: {same} prompts that both answer the same")
    say(f"what comes back is counted by: python main.py generate --tally A.csv,B.csv --key {out}/key.json")
