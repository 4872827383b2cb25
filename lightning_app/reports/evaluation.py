"""The table of an evaluation: what got better or worse beyond noise, and what was left out and why."""

import json
import math
import textwrap
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path

from lightning_app.errors import UserError
from lightning_app.evaluation.contestants import ADAPTED, BASE
from lightning_app.evaluation.differences import Difference
from lightning_app.evaluation.evaluation import Outcome
from lightning_app.evaluation.translation import CORPUS_METRICS
from lightning_app.files import JSON, UNREADABLE, one_line
from lightning_app.reports.metrics import digits, heading, shown_factor

_WIDTH = 118
_LEVEL = 0.05


def describe_evaluation(outcomes: Sequence[Outcome], about: JSON, limit: int | None, before: JSON) -> JSON:
    """Returns an evaluation as plain data, as evaluation.json keeps it.

    Args:
        outcomes: Of the tasks.
        about: Which models were measured, ``models`` by their identities among it.
        limit: How many items of each task, where not all.
        before: What the file says already: tasks of the same models stay, unless they were measured again.
    """
    tasks = dict(before["tasks"]) if before.get("models") == about["models"] else {}
    for each in outcomes:
        if not each.why_not or "left_out" in tasks.get(each.task, {"left_out": ""}):
            tasks[each.task] = _describe(each) | ({} if each.why_not else {"limit": limit})
    return {**about, "tasks": tasks}


def read_evaluation(path: Path) -> JSON:
    """Returns what an evaluation.json says; nothing where there is none.

    Raises:
        UserError: It is damaged.
    """
    if not path.is_file():
        return {}
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
        if not all(isinstance(task, dict) for task in content["tasks"].values()):
            raise TypeError("its tasks are no JSON objects")
        return content
    except UNREADABLE as error:
        raise UserError(f"{path} is damaged ({one_line(error)}); delete it and run again") from error


def _describe(outcome: Outcome) -> JSON:
    if outcome.why_not:
        return {"language": outcome.language, "left_out": outcome.why_not}
    first = next(iter(outcome.scores.values()))
    described: JSON = {
        "language": outcome.language,
        "metric": outcome.main,
        "items": first.items,
        "asked": first.asked,
        "higher_is_better": first.metrics[outcome.main].higher_is_better,
        "metrics": {},
    }
    for name, scores in outcome.scores.items():
        described[name] = scores.metrics[outcome.main].value
        described["metrics"][name] = {
            metric: {"value": each.value, "stderr": each.stderr, "signature": each.signature}
            for metric, each in scores.metrics.items()
        }
    described["changes"] = {
        metric: {"value": each.change, "low": each.low, "high": each.high, "p": each.p, "verdict": each.verdict}
        for metric, each in outcome.differences.items()
    }
    optional = {"metrics_left_out": first.left_out, "requests_cut_short": first.cut_short, "note": outcome.note}
    return described | {key: value for key, value in optional.items() if value}


def format_evaluation(outcomes: Sequence[Outcome], limit: int | None = None) -> str:
    """Returns the table for a terminal: what changed beyond noise first, worse before better, and what was left out.

    Args:
        outcomes: Of the tasks.
        limit: How many items of each task were measured, where not all.
    """
    measured = [each for each in outcomes if not each.why_not]
    order = {"worse": 0, "better": 1, "": 2}
    measured.sort(key=lambda each: order[each.difference.verdict] if each.difference else 2)
    rows = [row for each in measured for row in _rows(each)]
    widths = {heading: max(len(heading), *(len(row[heading]) for row in rows)) for heading in rows[0]} if rows else {}
    widths = {heading: width for heading, width in widths.items() if any(row[heading] for row in rows)}
    lines = [_line({heading: heading for heading in widths}, widths)] if rows else []
    lines += [_line(row, widths) for row in rows]
    notes = [textwrap.fill(note, _WIDTH) for note in _notes(measured, limit)]
    left_out = list(_left_out(outcomes))
    return "\n".join([*lines, *([""] if lines and notes else []), *notes, *([""] if left_out else []), *left_out])


def _rows(outcome: Outcome) -> Iterator[dict[str, str]]:
    """Yields the row of a task's main metric, and one below it for each figure of a translated corpus."""
    first = next(iter(outcome.scores.values()))
    yield {"task": outcome.task, "items": str(first.items), **_figures(outcome, outcome.main)}
    for metric in CORPUS_METRICS:
        if metric != outcome.main and first.metrics.get(metric) and first.metrics[metric].signature:
            yield {"task": "", "items": "", **_figures(outcome, metric)}


def _figures(outcome: Outcome, metric: str) -> dict[str, str]:
    row = {"metric": heading(metric)}
    for name in (BASE, ADAPTED):
        row[name] = _figure(outcome, name, metric)
    change = outcome.differences.get(metric)
    if change is None:
        return row | {"change": "", "95 % interval": "", "": ""}
    return row | {
        "change": _signed(change.change, metric),
        "95 % interval": _interval(change, metric),
        "": change.verdict if change.is_tested else "not tested",
    }


def _notes(measured: Sequence[Outcome], limit: int | None) -> Iterator[str]:
    """Yields what a reader of the table must know, a line each."""
    if limit is not None:
        yield f"Only the first {limit} items of each task: for trying, not for conclusions."
    verdicts = [each.difference.verdict for each in measured if each.difference and each.difference.is_tested]
    if verdicts:
        better, worse, same = (verdicts.count(verdict) for verdict in ("better", "worse", ""))
        by_chance = _LEVEL * len(verdicts)
        said = f"{better} better, {worse} worse, {same} not told apart from chance (95 %, items resampled in pairs)"
        many = f"; of {len(verdicts)} tasks about {by_chance:.0f} would seem changed by chance"
        yield f"{said}{many if by_chance >= 0.5 else ''}."
    yield from dict.fromkeys(each.note for each in measured if each.note)
    every = [(each.task, scores) for each in measured for scores in each.scores.values()]
    for (metric, why), tasks in _grouped((task, *item) for task, scores in every for item in scores.left_out.items()):
        yield f"Without {metric} of {', '.join(tasks)}: {why}."
    if cut := dict.fromkeys(task for task, scores in every if scores.cut_short):
        yield f"Prompts longer than the model reads at once lost their beginning in {', '.join(cut)}."


def _left_out(outcomes: Sequence[Outcome]) -> Iterator[str]:
    """Yields what was left out by reason, and once what to do about it."""
    reasons = [(each.task, *each.why_not.partition("; ")[::2]) for each in outcomes if each.why_not]
    if reasons:
        yield "left out:"
    grouped = list(_grouped(reasons))
    advice = list(dict.fromkeys(advice for (_, advice), _ in grouped))
    for wanted in advice:
        for (why, told), tasks in grouped:
            if told == wanted:
                line = f"{', '.join(tasks)}: {why}"
                yield textwrap.fill(line, _WIDTH, initial_indent="  ", subsequent_indent="    ")
        if wanted:
            yield textwrap.fill(wanted, _WIDTH, initial_indent="  -> ", subsequent_indent="     ")


def _grouped(found: Iterable[tuple[str, str, str]]) -> Iterator[tuple[tuple[str, str], list[str]]]:
    """Yields each pair of reasons once, with the tasks that have it."""
    groups: dict[tuple[str, str], dict[str, None]] = {}
    for task, *reason in found:
        groups.setdefault((reason[0], reason[1]), {})[task] = None
    yield from ((reason, list(tasks)) for reason, tasks in groups.items())


def _figure(outcome: Outcome, contestant: str, metric: str) -> str:
    found = outcome.scores[contestant].metrics.get(metric) if contestant in outcome.scores else None
    if found is None:
        return ""
    factor = shown_factor(metric)
    error = "" if math.isnan(found.stderr) else f" ±{factor * found.stderr:.{digits(metric)}f}"
    return f"{factor * found.value:.{digits(metric)}f}{error}"


def _interval(change: Difference, metric: str) -> str:
    if math.isnan(change.low):
        return "" if math.isnan(change.p) else f"p = {change.p:.3f}"
    return f"{_signed(change.low, metric)} to {_signed(change.high, metric)}"


def _signed(value: float, metric: str) -> str:
    return f"{shown_factor(metric) * value:+.{digits(metric)}f}"


def _line(row: dict[str, str], widths: dict[str, int]) -> str:
    first, *others = widths
    return "  ".join([f"{row[first]:<{widths[first]}}", *(f"{row[each]:>{widths[each]}}" for each in others)]).rstrip()
