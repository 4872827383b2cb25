"""``export``: what came out of a run, in the form that its users read."""

from pathlib import Path
from typing import Literal

from datamodules.prompts import read_prompts
from lightning_app.cli.lightning_cli import NeuroglotCLI
from lightning_app.cli.measure import of_run
from lightning_app.cli.verb import Verb, say
from lightning_app.errors import UserError
from lightning_app.export.exporting import Source
from lightning_app.export.exporting import export as write
from lightning_app.export.verification import PROMPTS
from lightning_app.files import size_on_disk
from lightning_app.languages import find_languages
from lightning_app.progress import short
from lightning_app.run import RunFolder

EXPORT = Verb(
    "export",
    "Write what came out of a run as its delta, as full weights for transformers and vLLM (hf), or as an exact LoRA, "
    "and keep it only where it does what the adapted model does; the newest run where nothing is named.",
    ("to", "source", "out", "scale", "target", "masters", "run_dir", "model.base", "language", "data.flores"),
    {
        "to": (Literal["delta", "hf", "lora"], "hf", "delta, hf (full weights) or lora."),
        "source": (str | None, None, "Run folder, checkpoint, or delta.safetensors."),
        "out": (str | None, None, "Folder or file to write; in the run's folder, export-..., where not given."),
        "scale": (float, 1.0, "Shrink or stretch the change."),
        "target": (Literal["peft", "vllm", "llamacpp"], "peft", "Who reads a LoRA."),
        "masters": (bool, False, "Keep a delta in the precision of training, fp32."),
    },
)  # fmt: skip


def export(arguments: list[str], shows_all: bool) -> None:
    """Writes, verifies, and says what was written and how large it is."""
    cli = NeuroglotCLI(EXPORT, of_run(arguments), shows_all)
    settings = cli.config
    path = find_source(settings.source, Path(settings.run_dir))
    is_given = "--model.base" in {argument.partition("=")[0] for argument in arguments}
    base, revision = (settings.model.base, settings.model.revision) if is_given else (None, None)
    source = Source.find(path, base, revision, settings.scale, settings.masters)
    folder = RunFolder.of(path).path if path.suffix == ".ckpt" else path.parent
    ending = ".safetensors" if settings.to == "delta" else ""
    out = Path(settings.out) if settings.out else folder / f"export-{settings.to}{ending}"
    language = find_languages(settings.language)[0][0] if settings.language else None
    prompts = read_prompts(
        settings.data.prompts, language, settings.data.flores, Path(settings.data.cache_dir), PROMPTS
    )
    found = write(source, settings.to, out, prompts, settings.target)
    say(f"{settings.to}: {out}, {short(size_on_disk(out))}B; {found}")


def find_source(source: str | None, root: Path) -> Path:
    """Returns the checkpoint or delta that ``--source`` names; the newest run's best checkpoint where it names none."""
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
