"""The report of a run: one HTML page that holds all, asks no network, and is made from the run's folder alone."""

import json
import shlex
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

from markupsafe import Markup

from lightning_app.adapted import Adaptation
from lightning_app.errors import UserError
from lightning_app.export.delta import LICENCES
from lightning_app.files import JSON, load_checkpoint
from lightning_app.languages import Language, find_language
from lightning_app.progress import duration, short
from lightning_app.reports.page import render
from lightning_app.reports.run_plots import draw_changes, draw_curves, draw_layers, inlined
from lightning_app.run import RunFolder

_TEMPLATE = Path(__file__).with_suffix(".html")
_NAN = float("nan")
_NOISE = 2  # standard errors


@dataclass(frozen=True)
class Change:
    """How a language's loss changed.

    Attributes:
        language: Which.
        is_target: Whether it was adapted to.
        before: Nats per token of the base.
        after: Of the adapted model.
        bits: Bits per byte before and after.
        error: Standard error of the change; NaN where unknown.
    """

    language: Language
    is_target: bool
    before: float
    after: float
    bits: tuple[float, float]
    error: float

    @property
    def change(self) -> float:
        return self.after - self.before

    @property
    def verdict(self) -> str:
        """``better`` or ``worse`` where the change is beyond noise; nothing where that is unknown, or within."""
        if not abs(self.change) > _NOISE * self.error:
            return ""
        return "worse" if self.change > 0 else "better"


@dataclass(frozen=True)
class RunReport:
    """What a run's folder says of the run, however far it has come.

    Attributes:
        folder: Of the run.
    """

    folder: RunFolder

    @cached_property
    def record(self) -> JSON:
        return self.folder.record()

    @cached_property
    def rows(self) -> list[JSON]:
        return self.folder.read_metrics()

    @property
    def targets(self) -> list[str]:
        return list(self.record.get("targets", {}))

    @property
    def title(self) -> str:
        names = " and ".join(find_language(code).name for code in self.targets[:3]) or "A run"
        more = f" and {len(self.targets) - 3} more" if len(self.targets) > 3 else ""
        return f"{names}{more} · {Path(self.record.get('base', {}).get('name', 'unknown base')).name}"

    @property
    def state(self) -> str:
        """How far the run has come, in a sentence."""
        steps, done = self.record.get("length", {}).get("steps", 0), max((row["step"] for row in self.rows), default=0)
        if self.record.get("status") == "complete":
            return f"Complete: {done} steps."
        return f"Not complete: {done} of {steps} steps are logged. The same command goes on from the last checkpoint."

    @cached_property
    def changes(self) -> list[Change]:
        """Losses at the best checkpoint, or of the newest validation where the run is not complete; worst first."""
        result = self.record.get("result", {})
        best = result.get("best", {})
        before = result.get("before") or self._losses(first=True)
        after = best.get("losses") or self._losses(first=False)
        errors = best.get("errors", {})
        found = [
            Change(
                find_language(code), code in self.targets, before[code][0], after[code][0],
                (before[code][1], after[code][1]), errors.get(code, _NAN),
            )
            for code in after if code in before
        ]  # fmt: skip
        return sorted(found, key=lambda each: (not each.is_target, -each.change))

    def _losses(self, first: bool) -> dict[str, list[float]]:
        """Returns nats per token and bits per byte of the first or the newest validation, by language."""
        validated = [row for row in self.rows if any(key.startswith("val/bits_per_byte/") for key in row)]
        row = (validated[0] if first else validated[-1]) if validated else {}
        codes = [key.rpartition("/")[2] for key in row if key.startswith("val/bits_per_byte/")]
        return {code: [row[f"val/loss/{code}"], row[f"val/bits_per_byte/{code}"]] for code in codes}

    @property
    def findings(self) -> list[str]:
        """What the run came to, in sentences; first the targets, then what it cost."""
        said = [
            f"The loss on {each.language.name} {'fell' if each.change < 0 else 'rose'} by {abs(each.change):.4f} nats "
            f"per token, from {each.before:.4f} to {each.after:.4f} ({each.bits[0]:.4f} to {each.bits[1]:.4f} bits per "
            "byte)."
            for each in self.changes
            if each.is_target
        ]
        watched = [each for each in self.changes if not each.is_target]
        paid = [each for each in watched if each.verdict == "worse"]
        if paid:
            worst = paid[0]
            said.append(
                f"{len(paid)} of {len(watched)} watched languages paid for it beyond noise, "
                f"{worst.language.name} most: {worst.change:+.4f} nats per token."
            )
        elif watched and self.record.get("result"):
            said.append(f"None of the {len(watched)} watched languages lost more than noise.")
        return said

    @property
    def facts(self) -> dict[str, str]:
        """What was done, by label."""
        record, result = self.record, self.record.get("result", {})
        base, length = record.get("base", {}), record.get("length", {})
        facts = {
            "Base": f"{base.get('name', '')} {base.get('revision', '')[:12]}".strip(),
            "Method": f"{record.get('method', '')}{_settings(record.get('settings', {}))}",
            "Trained": _trained(result) or "see the run's own line at its start",
            "Learning rate": f"{record['lr']:g}" if record.get("lr") is not None else "",
            "Text": f"{length.get('steps', 0)} steps, {short(round(length.get('tokens', 0)))} tokens" if length else "",
            "Seed": str(record.get("seed", "")),
            "Device": f"{record.get('device', '')}, {_processes(record.get('processes', 1))}",
            "Throughput": f"{short(round(rate))} tokens/s" if (rate := self._last("speed/tokens_per_second")) else "",
            "Of the limit": f"{100 * share:.0f} %" if (share := self._last("speed/share_of_limit")) else "",
            "Peak memory": f"{gib:.2f} GiB" if (gib := result.get("peak_gib") or self._last("speed/peak_gib")) else "",
            "Time of training": duration(seconds) if (seconds := result.get("seconds")) else "",
            "Versions": ", ".join(f"{name} {version}" for name, version in record.get("versions", {}).items()),
            "Neuroglot": record.get("neuroglot", ""),
        }
        return {label: value for label, value in facts.items() if value}

    def _last(self, key: str) -> float | None:
        return next((row[key] for row in reversed(self.rows) if key in row), None)

    @property
    def texts(self) -> list[dict[str, str]]:
        """Each data set that was trained on, with its licence and what was left out."""
        return [
            {
                "language": find_language(code).name,
                "data_set": text["data_set"],
                "revision": text.get("revision", "")[:12],
                "licence": LICENCES.get(text["data_set"], "the user's own"),
                "left_out": ", ".join(
                    f"{count} {reason}" for reason, count in self.record.get("left_out", {}).get(code, {}).items()
                ),
            }
            for code, text in self.record.get("text", {}).items()
        ]

    @property
    def tasks(self) -> list[JSON]:
        """Tasks with base and adapted model, the worst verdict first; those left out at the end."""
        found = [{"task": name, **task} for name, task in self.folder.read_evaluation().get("tasks", {}).items()]
        for task in found:
            task["change"] = task.get("changes", {}).get(task.get("metric"), {})
        order = {"worse": 0, "better": 1}
        return sorted(found, key=lambda each: (order.get(each["change"].get("verdict"), 2), "left_out" in each))

    @property
    def samples(self) -> list[JSON]:
        """Prompts with what base and adapted model answered."""
        return read_samples(self.folder.samples)

    def pictures(self) -> list[JSON]:
        """What `analyze` has drawn of the run: title, how to read it, and the picture."""
        found = []
        for path in sorted(self.folder.analysis.glob("*.json")):
            drawn = path.with_suffix(".svg")
            if drawn.is_file():
                about = json.loads(path.read_text(encoding="utf-8"))
                svg = inlined(drawn.read_text(encoding="utf-8"), path.stem)
                found.append({"title": about["title"], "reading": about["reading"], "svg": Markup(svg)})
        return found

    def layers(self) -> str:
        """Returns a picture of where the trained neurons lie; nothing where others than neurons were trained."""
        checkpoint = next(iter(self.folder.checkpoints_by_age()), None)
        if checkpoint is None:
            return ""
        adaptation = Adaptation.read(load_checkpoint(checkpoint, is_mapped=True))
        if adaptation.neurons is None:
            return ""
        return draw_layers(adaptation.neurons.per_layer(adaptation.base.layers), adaptation.base.neurons_per_layer)


def make_run_page(folder: RunFolder) -> str:
    """Returns the page.

    Raises:
        UserError: The folder is not a run's, or what it says of the run is damaged.
    """
    report = RunReport(folder)
    if not report.record:
        raise UserError(f"{folder} has no run.json; expected the folder of a run that has begun to train")
    try:
        changes = {each.language.short: (each.change, each.error) for each in report.changes}
        return render(
            _TEMPLATE, report=report, curves=Markup(draw_curves(report.rows, report.targets)),
            layers=Markup(report.layers()), changes=Markup(draw_changes(changes, report.targets)),
            command=f"python main.py fit --config {shlex.quote(str(folder.config))}",
        )  # fmt: skip
    except (KeyError, TypeError, ValueError, AttributeError, IndexError) as error:
        raise UserError(f"what {folder} says of its run is damaged ({type(error).__name__}: {error})") from error


def read_samples(path: Path) -> list[JSON]:
    """Returns the samples of a run; none where there are none."""
    if not path.is_file():
        return []
    return [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines() if line.strip()]


def _trained(result: Mapping[str, float]) -> str:
    trained, every = result.get("trained_parameters"), result.get("parameters")
    return f"{short(trained)} of {short(every)} parameters ({100 * trained / every:.2f} %)" if trained and every else ""


def _settings(settings: Mapping[str, object]) -> str:
    return f" ({', '.join(f'{key} {value}' for key, value in settings.items())})" if settings else ""


def _processes(count: int) -> str:
    return "one process" if count == 1 else f"{count} processes"
