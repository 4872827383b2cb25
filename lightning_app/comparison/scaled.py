"""What a finished run would give if its change were smaller or larger: losses at other scales, without training."""

import math
from collections.abc import Mapping, Sequence
from contextlib import AbstractContextManager
from pathlib import Path

import torch
import yaml

from datamodules.chunking import pad_batch
from datamodules.glotcc import GlotCCDataModule
from lightning_app.adapted import as_it_is, as_trained, load_adapted
from lightning_app.comparison.front import ScaledPoint
from lightning_app.comparison.results import RunResult, over_targets
from lightning_app.errors import UserError
from lightning_app.files import JSON, UNREADABLE, one_line, write_json
from lightning_app.model.base import on_device
from lightning_app.model.loss import IGNORED, OutputHead, sequence_loss_sums
from lightning_app.run import RunFolder
from lightning_app.training.metrics import LanguageLoss, Losses

_BASE_NOT_QUANTIZED, _NOT_QUANTIZED = "base not quantised", "not quantised"


def require_scales(scales: Sequence[float]) -> None:
    """Raises `UserError` where a scale is no number of at least zero."""
    for scale in scales:
        if not 0 <= scale < float("inf"):
            raise UserError(f"--scale has {scale:g}; expected numbers of at least 0, such as 0,0.25,0.5,0.75,1,1.25")


def scaled_losses(folder: RunFolder, scales: Sequence[float]) -> dict[float, Losses]:
    """Returns the losses on FLORES dev of a run's best checkpoint with its change at every one of ``scales``.

    What was measured before is read from ``scaled.json`` in the run folder and measured no second time.

    Raises:
        UserError: A scale is no number of at least zero, or the run has no best checkpoint.
    """
    require_scales(scales)
    found = _measured(folder, {f"{scale:g}": (scale, True) for scale in scales})
    return {scale: found[f"{scale:g}"] for scale in scales}


def losses_on_base_as_it_is(folder: RunFolder) -> tuple[Losses, Losses]:
    """Returns the losses on FLORES dev of the base as it is, and with what a run trained on the quantised one.

    Raises:
        UserError: As `scaled_losses`.
    """
    found = _measured(folder, {_BASE_NOT_QUANTIZED: (0.0, False), _NOT_QUANTIZED: (1.0, False)})
    return found[_BASE_NOT_QUANTIZED], found[_NOT_QUANTIZED]


def _measured(folder: RunFolder, wanted: Mapping[str, tuple[float, bool]]) -> dict[str, Losses]:
    """Returns losses by name, where each stands for a scale and whether the base is quantised as in training."""
    best = folder.best_checkpoint()
    if best is None:
        raise UserError(f"{folder} has no best checkpoint yet; the same fit command goes on with the run")
    known: JSON = folder.read_scaled() if folder.scaled.is_file() else {}
    if known.get("checkpoint") != best.name:
        known = {"checkpoint": best.name, "losses": {}}
    _require_losses(folder.scaled, known.get("losses"))
    missing = {name: way for name, way in wanted.items() if name not in known["losses"]}
    if missing:
        try:
            config = yaml.safe_load(folder.config.read_text(encoding="utf-8"))
            data = GlotCCDataModule(
                language=config["language"], base=config["model"]["base"], base_revision=config["model"]["revision"],
                **config["data"],
            )  # fmt: skip
        except (*UNREADABLE, yaml.YAMLError) as error:
            raise UserError(f"{folder.config} is damaged ({one_line(error)}); leave the run out") from error
        data.setup("validate")
        for name, (scale, is_quantized) in missing.items():
            known["losses"][name] = _losses(str(best), config, data, scale, is_quantized)
            write_json(folder.scaled, known)
    return {name: known["losses"][name] for name in wanted}


def _require_losses(path: Path, losses: object) -> None:
    """Raises `UserError` unless there are numbers by scale and language: loss and bits per byte."""
    scales = losses.values() if isinstance(losses, dict) else [None]
    pairs = [pair for each in scales for pair in (each.values() if isinstance(each, dict) else [None])]
    if not all(isinstance(pair, list) and len(pair) == 2 and all(map(_is_number, pair)) for pair in pairs):
        raise UserError(f"{path} is damaged (it holds no losses by scale and language); delete it and run again")


def _is_number(value: object) -> bool:
    return isinstance(value, (int, float)) and not isinstance(value, bool)


def scaled_point(run: RunResult, scale: float, losses: Losses) -> ScaledPoint:
    """Returns what a run gains and loses with its change at a scale, of `scaled_losses`.

    Raises:
        UserError: They are not of its languages.
    """
    if missing := sorted({*run.targets, *run.watched} - set(losses)):
        raise UserError(f"the losses of {run.folder} at other scales lack {missing[0]}; delete scaled.json, run again")
    loss = over_targets({code: nats for code, (nats, _) in losses.items()}, run.targets)
    rises = [losses[code][0] - run.before[code][0] for code in run.watched]
    retention = sum(rises) / len(rises) if rises else math.nan
    return ScaledPoint(scale, run.target_loss_before - loss, retention, losses)


def _has_room(device: torch.device, model: torch.nn.Module) -> bool:
    if device.type != "cuda":
        return True
    free, _ = torch.cuda.mem_get_info(device)
    return 1.2 * sum(weight.nbytes for weight in model.parameters()) < free


@torch.no_grad()
def _losses(checkpoint: str, config: JSON, data: GlotCCDataModule, scale: float, is_quantized: bool) -> Losses:
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    base, revision = config["model"]["base"], config["model"]["revision"]
    load = as_trained(device) if is_quantized else as_it_is
    adapted = load_adapted(checkpoint, base, revision, scale=scale, load=load)
    if not is_quantized and not _has_room(device, adapted.model):
        device = torch.device("cpu")  # which is why it was quantised
    model = on_device(adapted.model, device)
    head, losses = OutputHead.of(model), {}
    is_mixed = config["trainer"]["precision"] == "bf16-mixed"
    context: AbstractContextManager[object] = torch.autocast(device.type, torch.bfloat16, enabled=is_mixed)
    for language in data.validation_languages:
        blocks = data.evaluation[language.glotcc]
        metric = LanguageLoss(len(blocks)).to(device)
        for first in range(0, len(blocks), data.validation_batch_size):
            some = blocks[first : first + data.validation_batch_size]
            batch = pad_batch([block.input_ids for block in some], 0)
            ids, labels = batch["input_ids"].to(device), batch["labels"][:, 1:].to(device)
            with context:
                hidden = model.base_model(input_ids=ids, use_cache=False).last_hidden_state
                nats_B = sequence_loss_sums(hidden[:, :-1], head, labels)
            numbers = torch.arange(first, first + len(some), device=device)
            text_bytes = torch.tensor(sum(block.text_bytes for block in some))
            metric.update(numbers, nats_B, (labels != IGNORED).sum(1), text_bytes)
        losses[language.short] = metric.compute()[0].tolist()
    return losses
