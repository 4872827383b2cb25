"""``apply``: puts deltas onto a base on the disk, and takes them off again."""

from collections.abc import Sequence
from pathlib import Path

from lightning_app.cli.lightning_cli import ParsedCLI
from lightning_app.cli.verb import Verb, say
from lightning_app.errors import UserError
from lightning_app.export.applied import Applied
from lightning_app.export.delta import LanguageDelta
from lightning_app.export.stack import Policy, Stack
from lightning_app.export.whole import require_new
from lightning_app.files import size_on_disk
from lightning_app.hub import fetch_published, is_published
from lightning_app.languages import find_language
from lightning_app.progress import short
from lightning_app.reports.stacking import format_overlaps
from lightning_app.run import RunFolder

APPLY = Verb(
    "apply",
    "Put deltas onto a base, one or several languages, as a folder that transformers and vLLM load; --remove takes "
    "them off again bit for bit.",
    ("deltas", "base", "out", "remove", "policy", "weights"),
    {
        "deltas": (
            list[str], [], "Files, runs that have one, or hub:OWNER/NAME; to remove also languages, or all where none "
            "is named.",
        ),
        "base": (str | None, None, "Folder or hub name; that of the first delta where not given."),
        "out": (str | None, None, "Folder to write."),
        "remove": (bool, False, "Take them off the folder that --base names."),
        "policy": (Policy | None, None, "What becomes of neurons that several have; refuse where not given."),
        "weights": (str | None, None, "For --policy weighted: a number for each delta, 2,1."),
    },
    has_defaults=False,
    words="deltas",
)  # fmt: skip


def apply(arguments: list[str], shows_all: bool) -> None:
    """Writes the folder, and says what is on it and how large it is."""
    settings = ParsedCLI(APPLY, arguments, shows_all).config
    if not settings.out:
        raise UserError("nothing says where to write; give --out FOLDER")
    require_new(out := Path(settings.out))
    weights = read_weights(settings.weights)
    if settings.remove:
        if not settings.base:
            raise UserError("nothing says what to take the deltas off; give --base FOLDER")
        there = Applied.find(settings.base, settings.model.revision)
        stack = _without(there, settings.deltas)
    else:
        deltas = [find_delta(word) for word in settings.deltas]
        if not deltas:
            raise UserError("nothing to apply: name deltas, as in: python main.py apply delta.safetensors --out FOLDER")
        own = deltas[0].model
        revision = settings.model.revision if settings.base else own.revision or None
        there = Applied.find(settings.base or own.name, revision)
        stack = there.with_deltas(deltas, settings.policy, weights)
    if overlaps := stack.overlaps():
        say(format_overlaps(overlaps))
    say(f"{out} takes about {short(there.files.bytes + there.record_bytes(stack))}B")
    there.write(stack, out)
    on = f"with {', '.join(each.language for each in stack.deltas)}" if stack.deltas else "without a delta"
    say(f"{there.files.folder} {on}: {out}, {short(size_on_disk(out))}B")


def read_weights(weights: str | None) -> tuple[float, ...]:
    """Returns the numbers of ``--weights``."""
    try:
        return tuple(float(each) for each in weights.split(",")) if weights else ()
    except ValueError as error:
        raise UserError(f"--weights is {weights}; expected a number for each delta, comma between") from error


def find_delta(word: str) -> LanguageDelta:
    """Returns the delta of a file, a run folder or a name on the hub."""
    path = fetch_published(word, "delta.safetensors", "the delta") if is_published(word) else Path(word)
    if path.is_dir():
        path = RunFolder(path).delta
        if not path.is_file():
            raise UserError(f"{path.parent} has no delta.safetensors; give the folder of a run that trained neurons")
    return LanguageDelta.load(path)


def _without(there: Applied, words: Sequence[str]) -> Stack:
    """Returns what stays on a folder without the deltas that are named by file, run or language; all where none is."""
    if not there.stack.deltas:
        raise UserError(
            f"{there.files.folder} does not say that deltas are on it; give --base a folder that apply has written"
        )
    if not words:
        return Stack(())
    stack = there.stack
    on_it = ", ".join(each.language for each in stack.deltas)
    gone: set[str] = set()
    for word in words:
        is_file = is_published(word) or Path(word).exists()
        wanted = find_delta(word).identity if is_file else find_language(word).glotcc
        found = [each.identity for each in stack.deltas if wanted in (each.identity, each.language)]
        if not found:
            raise UserError(f"{word} is not on {there.files.folder}; on it are {on_it}")
        gone.update(found)
    return there.without(lambda each: each.identity in gone)
