"""Publishes an export on the hub, with its card and what its users need."""

from collections.abc import Mapping, Sequence
from pathlib import Path

from lightning_app.errors import UserError
from lightning_app.export import neuroglot_delta
from lightning_app.export.card import Published, is_hub_name, make_card
from lightning_app.export.source import Source
from lightning_app.files import JSON
from lightning_app.hub import publish, published_card, require_may_publish, require_repository
from lightning_app.run import RunFolder

_NEEDS_BASE = ("delta", "lora")


def require_may_push(repository: str, source: Source, form: str) -> None:
    """Raises `UserError` where the hub would refuse, or who loads it could not have the base."""
    require_repository(repository, f"--push_to is {repository or 'empty'}", "OWNER/NAME")
    if form in _NEEDS_BASE and _hub_base(source) is None:
        raise UserError(
            f"the base is a folder, {source.base}, which those who load a {form} do not have; publish it, and give its "
            "name with --model.base OWNER/NAME, or publish full weights with --to hf"
        )
    require_may_publish(repository)


def push(
    repository: str, source: Source, form: str, out: Path, is_private: bool, facts: Mapping[str, str],
    samples: Sequence[Mapping[str, str]],
) -> str:  # fmt: skip
    """Uploads an export that was written to ``out``, all of it or nothing, and returns its address.

    Args:
        repository: OWNER/NAME.
        source: What was exported.
        form: In which form.
        out: Where it is.
        is_private: Whether a new repository is.
        facts: What was done, by label, for its card.
        samples: Prompts with what base and adapted model answered, for its card.

    Raises:
        UserError: The hub refuses, or cannot be reached.
    """
    base, run = _hub_base(source), _run_of(source.paths[0])
    per_layer = None
    if source.has_neurons:
        neurons = source.delta.neurons
        per_layer = neurons.per_layer(source.delta.model.layers)
    evaluation: JSON = run.read_evaluation() if len(source.paths) == 1 and source.scale == 1.0 else {}
    base_card = published_card(base) if base is not None else {}
    card = make_card(Published(repository, form, base, base_card, source.about, per_layer, evaluation, facts, samples))
    files: dict[str, Path | bytes] = dict(_files(out, form))
    files["README.md"] = card.encode()
    if form == "delta":
        files["neuroglot_delta.py"] = Path(neuroglot_delta.__file__)
        if len(source.paths) == 1 and run.subnetworks.is_file():
            files[run.subnetworks.name] = run.subnetworks
    return publish(repository, files, f"{form} of Neuroglot", is_private)


def _files(out: Path, form: str) -> Mapping[str, Path]:
    if out.is_dir():
        return {str(path.relative_to(out)): path for path in sorted(out.rglob("*")) if path.is_file()}
    return {"delta.safetensors" if form == "delta" else out.name: out}


def _hub_base(source: Source) -> str | None:
    """Returns the hub's name of the base; None where it is a folder."""
    return source.base if is_hub_name(source.base) and not Path(source.base).exists() else None


def _run_of(path: Path) -> RunFolder:
    return RunFolder.of(path) if path.suffix == ".ckpt" else RunFolder(path.parent)
