"""``export``: what came out of a run, in the form that its users read."""

from collections.abc import Sequence
from pathlib import Path
from typing import Literal

from datamodules.prompts import read_prompts
from lightning_app.cli.apply import read_weights
from lightning_app.cli.lightning_cli import NeuroglotCLI
from lightning_app.cli.measure import of_run
from lightning_app.cli.verb import Verb, say
from lightning_app.comparison.scaled import losses_on_base_as_it_is
from lightning_app.errors import UserError
from lightning_app.export.exporting import Form, Options, verify
from lightning_app.export.exporting import export as write
from lightning_app.export.pushing import push, require_may_push
from lightning_app.export.source import Source
from lightning_app.export.stack import Policy
from lightning_app.export.verification import PROMPTS
from lightning_app.export.whole import require_new
from lightning_app.files import JSON, size_on_disk
from lightning_app.hub import fetch_published, is_published
from lightning_app.languages import Language, find_language, find_languages
from lightning_app.progress import short
from lightning_app.reports.run_page import RunReport
from lightning_app.reports.stacking import format_overlaps
from lightning_app.run import RunFolder

EXPORT = Verb(
    "export",
    "Write what came out of a run as its delta, as full weights for transformers and vLLM (hf), as an exact LoRA or as "
    "a gguf file, and keep it only where it does what the adapted model does; the newest run where nothing is named.",
    (
        "to", "source", "out", "push_to", "private", "scale", "policy", "weights", "target", "masters", "converter",
        "run_dir", "model.base", "language", "data.flores",
    ),
    {
        "to": (Form, "hf", "delta, hf (full weights), lora or gguf."),
        "source": (
            str | list[str] | None, None, "Run folder, checkpoint, delta.safetensors or hub:OWNER/NAME; [A,B] stacks "
            "several.",
        ),
        "out": (str | None, None, "Folder or file to write; in the run's folder, export-..., where not given."),
        "push_to": (str | None, None, "Also publish it on the hub, with a card: OWNER/NAME."),
        "private": (bool, False, "Make a new repository of the hub private."),
        "scale": (float, 1.0, "Shrink or stretch the change."),
        "policy": (Policy, "refuse", "What becomes of neurons that several have."),
        "weights": (str | None, None, "For --policy weighted: a number for each source, 2,1."),
        "target": (Literal["peft", "vllm", "llamacpp"], "peft", "Who reads a LoRA."),
        "masters": (bool, False, "Keep a delta in the precision of training, fp32."),
        "converter": (str | None, None, "llama.cpp's convert_hf_to_gguf.py; the one on PATH where not given."),
    },
)  # fmt: skip
_ENDINGS = {"delta": ".safetensors", "gguf": ".gguf"}


def export(arguments: list[str], shows_all: bool) -> None:
    """Writes, verifies, publishes, and says what was written and how large it is."""
    cli = NeuroglotCLI(EXPORT, of_run(arguments), shows_all)
    settings = cli.config
    named = settings.source if isinstance(settings.source, list) else [settings.source]
    paths = [find_source(each, Path(settings.run_dir)) for each in named]
    is_given = "--model.base" in {argument.partition("=")[0] for argument in arguments}
    base, revision = (settings.model.base, settings.model.revision) if is_given else (None, None)
    weights = read_weights(settings.weights)
    source = Source.find(paths, base, revision, settings.scale, settings.masters, settings.policy, weights)
    folder = RunFolder.of(paths[0]).path if paths[0].suffix == ".ckpt" else paths[0].parent
    out = Path(settings.out) if settings.out else folder / f"export-{settings.to}{_ENDINGS.get(settings.to, '')}"
    is_there = settings.push_to is not None and out.exists()  # of a start whose upload failed
    if not is_there:
        require_new(out)
    if settings.push_to is not None:
        require_may_push(settings.push_to, source, settings.to)
    if len(paths) > 1:
        say(format_overlaps(source.stack.overlaps()))
    languages = [each for each, _ in find_languages(settings.language)] if settings.language else _languages(source)
    prompts = _prompts(settings.data.prompts, languages, settings.data.flores, Path(settings.data.cache_dir))
    options = Options(settings.target, Path(settings.converter) if settings.converter else None)
    if is_there:
        found = verify(source, settings.to, out, prompts)
    else:
        found = write(source, settings.to, out, prompts, options, say)
    say(f"{settings.to}: {out}, {short(size_on_disk(out))}B; {found}")
    if source.adaptation is not None and source.adaptation.quantization and settings.scale == 1.0:
        _say_both_losses(RunFolder.of(paths[0]), source.adaptation.quantization)
    if settings.push_to is not None:
        facts, samples = _told_by_the_run(paths, settings.scale)
        address = push(settings.push_to, source, settings.to, out, settings.private, facts, samples)
        say(f"published: {address}")


def _told_by_the_run(paths: Sequence[Path], scale: float) -> tuple[dict[str, str], list[JSON]]:
    """Returns what the report of the run says was done, and its samples; nothing where it is not one run."""
    report = RunReport(RunFolder.of(paths[0]) if paths[0].suffix == ".ckpt" else RunFolder(paths[0].parent))
    if len(paths) > 1 or scale != 1.0 or not report.record:
        return {}, []
    return {label: fact for label, fact in report.facts.items() if label != "Base"}, report.samples


def _say_both_losses(folder: RunFolder, quantization: str) -> None:
    """Says what training changed for a run's targets on the base as it is, beside what it changed on the quantised one.

    Part of what is trained on a quantised base makes good what its bits lost, and is of no use where nothing was lost.
    """
    result = folder.record().get("result", {})
    before, trained = result.get("before", {}), result.get("best", {}).get("losses", {})
    if not before or not trained:  # a checkpoint by itself, or a run that has not ended
        return
    say(f"measuring it on FLORES dev on the base as it is; it was trained on one in {quantization}")
    base, adapted = losses_on_base_as_it_is(folder)
    for code in folder.record()["targets"]:
        rise, in_training = (last[code][0] - first[code][0] for first, last in ((base, adapted), (before, trained)))
        here, there = f"{adapted[code][0]:.4f} ({rise:+.4f})", f"{trained[code][0]:.4f} ({in_training:+.4f})"
        say(f"{code}: {here} nats per token on the base as it is, {there} in {quantization}")
        if rise > 2 * result["best"].get("errors", {}).get(code, 0.0):
            say(
                f"warning: {code} is worse on the base as it is than without the change, which makes good what "
                f"{quantization} lost; train on the base as it is, or on one that loses less"
            )


def find_source(source: str | None, root: Path) -> Path:
    """Returns the checkpoint or delta that ``--source`` names; the newest run's best checkpoint where it names none."""
    if source is not None and is_published(source):
        return fetch_published(source, "delta.safetensors", "--source")
    path = Path(source) if source else RunFolder.newest(root).path
    if not path.exists():
        raise UserError(
            f"there is nothing at --source {path}; expected a run folder, a checkpoint or a delta.safetensors"
        )
    if path.is_dir():
        best = RunFolder(path).best_checkpoint()
        if best is None:
            raise UserError(f"{path} has no best checkpoint; give the folder of a run that has validated")
        return best
    return path


def _languages(source: Source) -> list[Language]:
    return [find_language(code) for code in source.languages]


def _prompts(file: str | None, languages: Sequence[Language], flores: str, cache_dir: Path) -> list[str]:
    """Returns what an export is verified on: of the languages in equal parts."""
    if file is not None or not languages:
        return read_prompts(file, None, flores, cache_dir, PROMPTS)
    share = -(-PROMPTS // len(languages))
    return [prompt for each in languages for prompt in read_prompts(None, each, flores, cache_dir, share)]
