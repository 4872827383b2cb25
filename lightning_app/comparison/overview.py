"""Every run under a folder, finished or not, as plain data; what cannot be read is said in its own row."""

import json
import math
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal, TypeGuard

import yaml

from lightning_app.comparison.results import over_targets, read_result
from lightning_app.errors import UserError
from lightning_app.files import JSON
from lightning_app.run import RunFolder, deciding_settings, occupant, occupied_folders

State = Literal["complete", "running", "stopped", "not trained", "damaged"]

_DEPTH = 3  # folders of comparisons lie among runs, and may lie in a folder of their own
_LAST_BYTES = 4096
_DAMAGE = (UserError, OSError, ValueError, KeyError, TypeError, AttributeError, LookupError, RecursionError)
# Both are safe; pyyaml's own takes ten times as long for a configuration as that of libyaml.
_FAST_YAML = getattr(yaml, "CSafeLoader", yaml.SafeLoader)
_NESTING = "[{-?:"
_MOST_NESTED = 5000  # libyaml's loader overflows the stack of the process at some tens of thousands


@dataclass(frozen=True)
class RunRow:
    """A run. Numbers that are not known are NaN, or None where they count something.

    Attributes:
        folder: Its folder.
        name: What the folder is called under that of all runs.
        targets: Short codes of the languages it adapts to.
        base: Name of the base.
        method: What it trains.
        settings: Every key that decides its result, dotted, without those that are off.
        gain: Fall of the target loss in nats per token: at the best checkpoint, or at the best validation so far.
        bits_gain: The same in bits per byte.
        rises: Rise of the loss of every watched language, there.
        steps: Optimiser steps made.
        steps_in_all: Those of the whole run.
        tokens: Trained on.
        tokens_in_all: Of the whole run.
        state: What has become of it.
        note: What there is to say of its state.
        changed_at: When something was written last, in seconds since 1970.
    """

    folder: Path
    name: str
    targets: tuple[str, ...] = ()
    base: str = ""
    method: str = ""
    settings: Mapping[str, object] = field(default_factory=dict)
    gain: float = math.nan
    bits_gain: float = math.nan
    rises: Mapping[str, float] = field(default_factory=dict)
    steps: int | None = None
    steps_in_all: int | None = None
    tokens: int | None = None
    tokens_in_all: int | None = None
    state: State = "not trained"
    note: str = ""
    changed_at: float = math.nan

    @property
    def worst(self) -> tuple[str, float] | None:
        """The watched language whose loss rises most, and by how much."""
        known = [(rise, code) for code, rise in self.rises.items() if math.isfinite(rise)]
        return (max(known)[1], max(known)[0]) if known else None


def read_rows(root: Path) -> list[RunRow]:
    """Returns a row for every run under ``root``, those of comparisons among them, by folder.

    Raises:
        UserError: ``root`` is there and cannot be read as a folder.
    """
    try:
        folders = {*_find(root, _DEPTH), *occupied_folders(root)} if root.exists() else set()
    except OSError as error:
        raise UserError(f"cannot read the runs in {root}: {error.strerror}; check --run_dir") from error
    return [_read_row(RunFolder(path), str(path.relative_to(root))) for path in sorted(folders)]


def _find(folder: Path, depth: int) -> Iterator[Path]:
    for path in folder.iterdir():
        if path.name.startswith(".") or not path.is_dir():
            continue
        if RunFolder(path).has_begun():
            yield path
        elif depth > 1:
            try:
                yield from (*_find(path, depth - 1), *occupied_folders(path))
            except OSError:
                continue  # a folder of somebody else's: not known to hold runs


def _read_row(folder: RunFolder, name: str) -> RunRow:
    """Returns the row of a run; whatever is wrong with its folder is its state."""
    found: JSON = {"folder": folder.path, "name": name}
    try:
        found["changed_at"] = _changed_at(folder)
        record, settings = folder.record(), _read_settings(folder)
        targets = dict(record.get("targets") or dict.fromkeys(settings.targets))
        found |= {"settings": settings.deciding, "targets": tuple(targets)}
        found |= {"base": str(record.get("base", {}).get("name") or settings.base)}
        found |= {"method": str(record.get("method") or settings.method)}
        return RunRow(**found, **_progress(folder, record, settings.deciding.get("trainer.max_retention_loss")))
    except _DAMAGE as error:
        said = f"there is no {error}" if isinstance(error, KeyError) else " ".join(str(error).split())
        return RunRow(**found, state="damaged", note=said[:200])


@dataclass(frozen=True)
class _Settings:
    """What a configuration says of its run."""

    targets: tuple[str, ...] = ()
    base: str = ""
    method: str = ""
    deciding: Mapping[str, object] = field(default_factory=dict)


def _read_settings(folder: RunFolder) -> _Settings:
    given = next((file for file in (folder.config, folder.given_config) if file.is_file()), None)
    if given is None:
        return _Settings()
    try:
        text = given.read_text(encoding="utf-8")
        is_ours = sum(map(text.count, _NESTING)) <= _MOST_NESTED
        config = yaml.load(text, Loader=_FAST_YAML if is_ours else yaml.SafeLoader)
        model = config["model"]
        targets = str(config["language"] or "").split(",")
        return _Settings(
            tuple(part.partition(":")[0].strip() for part in targets if part),
            str(model["base"] or "new"), str(model["method"]),
            json.loads(json.dumps(deciding_settings(config), default=str)),
        )  # fmt: skip
    except (yaml.YAMLError, *_DAMAGE) as error:
        reason = f"there is no {error}" if isinstance(error, KeyError) else " ".join(str(error).split())
        raise UserError(f"{given.name} is damaged: {reason}") from error


def _progress(folder: RunFolder, record: JSON, limit: object) -> JSON:
    """Returns how far a run is and what it has come to, as fields of a row; ``limit`` is ``max_retention_loss``."""
    result = read_result(folder, with_curve=False)
    if result is not None:
        steps, tokens = result.steps, result.tokens
        found: JSON = {"steps": steps, "steps_in_all": steps, "tokens": tokens, "tokens_in_all": tokens}
        return found | {
            "gain": result.gain, "bits_gain": result.bits_gain, "rises": result.retention, "state": "complete",
        }  # fmt: skip
    metrics = _read_metrics(folder.metrics, record.get("targets") or {}, limit)
    steps, length = metrics.pop("steps"), record.get("length") or {}
    found = {"steps": steps, "steps_in_all": length.get("steps"), "tokens_in_all": length.get("tokens")}
    if length:
        found["tokens"] = round(length["tokens"] * min(1.0, steps / max(1, length["steps"])))
    if (holder := occupant(folder)) is not None:
        return {**found, **metrics, "state": "running", "note": holder}
    return {**found, **metrics, "state": "stopped" if steps else "not trained", "note": _last_line(folder.log)}


def _read_metrics(path: Path, targets: Mapping[str, float], limit: object) -> JSON:
    """Returns the last step of metrics.jsonl, and gain and rises of its best validation; skips lines cut short."""
    rows = []
    step = 0
    for line in path.read_bytes().split(b"\n") if path.is_file() else []:
        try:
            if b'"val/loss/' in line:
                rows.append(json.loads(line))
                step = max(step, int(rows[-1]["step"]))
            elif line.startswith(b'{"step": ') and line.endswith(b"}"):
                step = max(step, int(line[9 : line.index(b",")]))
        except (ValueError, KeyError, TypeError, RecursionError):
            continue
    return {"steps": step, **_best_figures(rows, targets, limit)}


def _best_figures(rows: list[JSON], targets: Mapping[str, float], limit: object) -> JSON:
    before = next((row for row in rows if row["step"] == 0), None)
    after = [row for row in rows if row["step"] > 0 and all(_is_number(row.get(f"val/loss/{c}")) for c in targets)]
    if before is None or not after or not targets:
        return {}
    watched = [code for key in before if (code := key.removeprefix("val/loss/")) != key and code not in targets]

    def worst_rise(row: JSON) -> float:
        return max(row.get(f"val/loss/{code}", math.inf) - before[f"val/loss/{code}"] for code in watched)

    if _is_number(limit) and watched:
        after = [row for row in after if worst_rise(row) <= limit] or [min(after, key=worst_rise)]
    best = min(after, key=lambda row: over_targets({c: row[f"val/loss/{c}"] for c in targets}, targets))

    def fall(kind: str, code: str) -> float:
        one, other = before.get(f"val/{kind}/{code}"), best.get(f"val/{kind}/{code}")
        return one - other if _is_number(one) and _is_number(other) else math.nan

    gains = (over_targets({c: fall(kind, c) for c in targets}, targets) for kind in ("loss", "bits_per_byte"))
    rises = {code: -fall("loss", code) for code in watched}
    return dict(zip(("gain", "bits_gain"), gains, strict=True)) | {"rises": rises}


def _is_number(value: object) -> TypeGuard[float]:
    return isinstance(value, (int, float)) and math.isfinite(value)


def _changed_at(folder: RunFolder) -> float:
    files = (folder.record_file, folder.metrics, folder.log, folder.path)
    return max((file.stat().st_mtime for file in files if file.exists()), default=math.nan)


def _last_line(log: Path) -> str:
    """Returns the error that a run of a comparison ended with, where it did."""
    if not log.is_file():
        return ""
    with log.open("rb") as file:
        file.seek(max(0, log.stat().st_size - _LAST_BYTES))
        lines = [line for line in file.read().decode("utf-8", "replace").split("\n") if line.strip()]
    said = lines[-1].partition("error: ") if lines else ("", "", "")
    return said[2][:200] if said[1] else ""
