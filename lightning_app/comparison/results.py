"""What a finished run says of itself, as plain data, and whether runs may be compared."""

import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import combinations
from pathlib import Path

from lightning_app.comparison.tasks import TaskScore, read_tasks, require_same_items
from lightning_app.errors import UserError
from lightning_app.files import JSON, one_line
from lightning_app.run import RunFolder

Losses = Mapping[str, Sequence[float]]
"""Nats per token and bits per byte of each language."""

_DAMAGE = (KeyError, TypeError, ValueError, AttributeError, IndexError, ArithmeticError, RecursionError)


@dataclass(frozen=True)
class RunResult:
    """A finished run. Numbers that were not measured are NaN.

    Attributes:
        folder: Its run folder.
        base: Name of the base.
        fingerprint: Identity of the base.
        method: What was trained, and how.
        label: What it is called in tables: the method with the settings that differ from its defaults, ``lora (rank
            8)``; without them where all runs of the method have the same, see `shorten_labels`.
        settings: Those settings, for people; empty where there are none.
        lr: Learning rate.
        seed: Decides the order of the text, and what the method draws.
        targets: Share of each target language; they need not sum to one.
        validation: Digest of the validation text per language.
        trained_parameters: How many numbers were trained.
        parameters: Of the base.
        tokens: Trained on.
        steps: Of the optimiser.
        seconds: Of training.
        tokens_per_second: Of training.
        peak_gib: Largest memory of the device.
        device: Where it ran, and on how many.
        before: Losses of the unadapted base.
        best: Losses at the best checkpoint; NaN where no validation had a finite loss.
        curve: Step and target loss of every validation, the base at step 0.
        tasks: Score of the base and of the adapted model per task, where it was evaluated.
    """

    folder: Path
    base: str
    fingerprint: str
    method: str
    label: str
    settings: str
    lr: float
    seed: int
    targets: Mapping[str, float]
    validation: Mapping[str, str]
    trained_parameters: int
    parameters: int
    tokens: int
    steps: int
    seconds: float
    tokens_per_second: float
    peak_gib: float
    device: str
    before: Losses
    best: Losses
    curve: tuple[tuple[int, float], ...]
    tasks: Mapping[str, TaskScore]

    @property
    def watched(self) -> tuple[str, ...]:
        """Languages that were validated and not trained."""
        return tuple(code for code in self.before if code not in self.targets)

    @property
    def share_of_model(self) -> float:
        return self.trained_parameters / self.parameters

    @property
    def target_loss(self) -> float:
        """Nats per token at the best checkpoint, over the targets by share."""
        return over_targets({code: loss for code, (loss, _) in self.best.items()}, self.targets)

    @property
    def bits_per_byte(self) -> float:
        """Of the targets by share, at the best checkpoint."""
        return over_targets({code: bits for code, (_, bits) in self.best.items()}, self.targets)

    @property
    def target_loss_before(self) -> float:
        return over_targets({code: loss for code, (loss, _) in self.before.items()}, self.targets)

    @property
    def bits_per_byte_before(self) -> float:
        return over_targets({code: bits for code, (_, bits) in self.before.items()}, self.targets)

    @property
    def gain(self) -> float:
        """Fall of the target loss in nats per token; positive is better."""
        return self.target_loss_before - self.target_loss

    @property
    def bits_gain(self) -> float:
        """Fall of the targets' bits per byte; positive is better."""
        return self.bits_per_byte_before - self.bits_per_byte

    @property
    def retention(self) -> dict[str, float]:
        """Rise of the loss of every watched language in nats per token; positive is worse."""
        return {code: self.best[code][0] - self.before[code][0] for code in self.watched}

    @property
    def mean_retention(self) -> float:
        """Mean rise over the watched languages; NaN where none is watched."""
        rises = self.retention.values()
        return sum(rises) / len(rises) if rises else math.nan


def over_targets(values: Mapping[str, float], targets: Mapping[str, float]) -> float:
    """Returns the mean of ``values`` over the targets, by share.

    >>> over_targets({"cy": 2.0, "ka": 4.0, "en": 9.0}, {"cy": 3.0, "ka": 1.0})
    2.5
    """
    return sum(share * values[code] for code, share in targets.items()) / sum(targets.values())


def format_settings(settings: Mapping[str, object]) -> str:
    """Returns a method's settings that differ from its defaults, for people.

    >>> format_settings({"rank": 8, "projections": ["gate", "up"], "dora": True})
    'rank 8, projections gate+up, dora true'
    """
    return ", ".join(f"{key} {_setting(value)}" for key, value in settings.items())


def shorten_labels(results: Sequence[RunResult]) -> list[RunResult]:
    """Returns the runs with their method alone as a label, where all runs of the method have the same settings."""
    of_method = {run.method: {each.settings for each in results if each.method == run.method} for run in results}
    return [replace(run, label=run.method) if len(of_method[run.method]) == 1 else run for run in results]


def _setting(value: object) -> str:
    if isinstance(value, list | tuple):
        return "+".join(_setting(part) for part in value)
    return f"{value:g}" if isinstance(value, float) else str(value).lower() if isinstance(value, bool) else str(value)


def read_result(folder: RunFolder, with_curve: bool = True) -> RunResult | None:
    """Returns what a run came to; None where it is not complete. Its curve is in the largest of its files.

    Raises:
        UserError: Its record, or the evaluation beside it, lacks something or is damaged.
    """
    record = folder.record()
    try:
        if record.get("status") != "complete":
            return None
        return _result(folder, record, with_curve)
    except _DAMAGE as error:
        what = f"there is no {error}" if isinstance(error, KeyError) else one_line(error)
        raise UserError(
            f"{folder.record_file} does not say what a comparison needs ({what}); leave the run out, "
            "or train it again with --resume never"
        ) from error


def _result(folder: RunFolder, record: JSON, with_curve: bool) -> RunResult:
    result, targets = record["result"], {code: float(share) for code, share in record["targets"].items()}
    before = _losses(result["before"])
    best = _losses((result["best"] or {}).get("losses") or {code: [math.nan, math.nan] for code in before})
    if missing := sorted((set(before) ^ set(best)) | (set(targets) - set(before))):
        raise ValueError(f"the losses before and after are not of the same languages: {missing[0]}")
    if sum(targets.values()) <= 0:
        raise ValueError("the shares of the targets sum to nothing")
    lr = float(record["lr"])
    if not 0 < lr < math.inf:
        raise ValueError(f"its learning rate is {lr:g}")
    settings = format_settings(record.get("settings") or {})
    curve = _read_curve(folder.metrics, targets) if with_curve else {}
    start = (0, over_targets({code: loss for code, (loss, _) in before.items()}, targets))
    return RunResult(
        folder=folder.path,
        base=record["base"]["name"],
        fingerprint=record["base"]["fingerprint"],
        method=record["method"],
        label=f"{record['method']} ({settings})" if settings else record["method"],
        settings=settings,
        lr=lr,
        seed=int(record["seed"]),
        targets=targets,
        validation=dict(record["validation"]),
        trained_parameters=int(result["trained_parameters"]),
        parameters=int(result["parameters"]),
        tokens=int(result["tokens"]),
        steps=int(result["steps"]),
        seconds=_number(result["seconds"]),
        tokens_per_second=_number(result["tokens_per_second"]),
        peak_gib=_number(result["peak_gib"]),
        device=f"{record['processes']} x {record['device']}",
        before=before,
        best=best,
        curve=tuple(sorted({start[0]: start[1], **curve}.items())),
        tasks=read_tasks(folder),
    )


def _number(value: float | None) -> float:
    return math.nan if value is None else float(value)


def _losses(losses: Mapping[str, Sequence[float | None]]) -> dict[str, tuple[float, float]]:
    return {code: (_number(pair[0]), _number(pair[1])) for code, pair in losses.items()}


def _read_curve(metrics: Path, targets: Mapping[str, float]) -> dict[int, float]:
    """Returns the target loss by step; a line that a killed run left unfinished is skipped, a later one counts."""
    curve: dict[int, float] = {}
    lines = metrics.read_text(encoding="utf-8", errors="replace").split("\n") if metrics.is_file() else []
    for line in lines:
        if '"val/loss/' not in line:
            continue  # most lines are of training
        try:
            row = json.loads(line)
            losses = {code: float(row[f"val/loss/{code}"]) for code in targets}
            curve[int(row["step"])] = over_targets(losses, targets)
        except _DAMAGE:
            continue
    return curve


def require_comparable(results: Sequence[RunResult]) -> None:
    """Returns if the runs differ only in what a comparison is about.

    Raises:
        UserError: There is none; two are of different bases, targets, watched languages, validation texts or items of a
            task; or one repeats another, which an interval would take for a second seed.
    """
    if not results:
        raise UserError(
            "there is no finished run to compare; train one with: python main.py fit --config cy.yaml, "
            "and go on with killed ones by the same command that started them"
        )
    first = results[0]
    for other in results[1:]:
        pair = f"{first.folder} and {other.folder} cannot be compared: they"
        if first.fingerprint != other.fingerprint:
            raise UserError(
                f"{pair} are of different bases, {first.base} ({first.fingerprint}) and {other.base} "
                f"({other.fingerprint}); compare runs of one base"
            )
        if first.targets != other.targets:
            ours, theirs = _shares(first.targets), _shares(other.targets)
            raise UserError(f"{pair} have different targets, {ours} and {theirs}; compare runs of the same targets")
        for code in first.validation.keys() & other.validation.keys():
            if first.validation[code] != other.validation[code]:
                raise UserError(
                    f"{pair} were validated on different texts of {code}; train both on the same --data.flores"
                )
        if set(first.watched) != set(other.watched):
            ours, theirs = " ".join(first.watched) or "none", " ".join(other.watched) or "none"
            raise UserError(f"{pair} watch different languages, {ours} and {theirs}; give both the same --data.watch")
    require_same_items([(run.folder, run.tasks) for run in results])
    for one, two in combinations(results, 2):
        if (one.label, one.lr, one.seed) == (two.label, two.lr, two.seed):
            what = f"{one.label} at {one.lr:g} with seed {one.seed}"
            raise UserError(f"{one.folder} and {two.folder} are both {what}; leave one of them out")


def _shares(targets: Mapping[str, float]) -> str:
    return " ".join(code if share == 1 else f"{code} {share:g}" for code, share in targets.items())
