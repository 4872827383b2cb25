"""The runs under a folder as a table: what each is, what differs between them, what it came to and how far it is."""

import json
import math
import time
from collections import Counter
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

from lightning_app.comparison.overview import RunRow
from lightning_app.errors import UserError, did_you_mean
from lightning_app.files import JSON
from lightning_app.identity import short_name
from lightning_app.progress import short
from lightning_app.reports.findings import languages, rate
from lightning_app.reports.layout import blocks, shortened, wrapped

_LEGEND = (
    "gain, bits: fall of the target's loss from the base to the best step on the same text, in nats per token and in "
    "bits per byte; worst: the watched language whose loss rises most."
)
_FIRST = ("lr", "seed", "rate", "token_budget")  # of the settings, those that are turned most
_LONGEST_SETTINGS = 44
_OWN_COLUMNS = ("language", "model.base", "model.method")
_DOWN = {"gain", "bits", "tokens", "when"}
"""Columns whose largest value is the one to be first: a gain, but not a rise."""
_COLUMNS: dict[str, Callable[[RunRow], float | str | None]] = {
    "run": lambda row: row.name,
    "language": lambda row: "+".join(row.targets),
    "base": lambda row: short_name(row.base),
    "method": lambda row: row.method,
    "gain": lambda row: row.gain,
    "bits": lambda row: row.bits_gain,
    "worst": lambda row: row.worst and row.worst[1],
    "tokens": lambda row: row.tokens,
    "state": lambda row: row.state,
    "when": lambda row: row.changed_at,
}


def sort_rows(rows: Sequence[RunRow], key: str) -> list[RunRow]:
    """Returns the rows by a column or a setting: the best or newest first, words by alphabet; unknown ones last.

    Raises:
        UserError: There is no such column or setting.
    """
    settings = _short_keys({name for row in rows for name in row.settings})
    dotted = next((name for name, shown in settings.items() if key in (name, shown)), None)
    if key not in _COLUMNS and dotted is None:
        known = [*_COLUMNS, *sorted(settings.values())]
        raise UserError(
            f"--sort is {key}; expected a column ({', '.join(_COLUMNS)}) or a setting such as lr"
            f"{did_you_mean(key, known)}"
        )

    def value(row: RunRow) -> object:
        return _COLUMNS[key](row) if key in _COLUMNS else row.settings.get(str(dotted))

    known_rows = [row for row in rows if _is_known(value(row))]
    are_numbers = all(isinstance(value(row), (int, float)) for row in known_rows)

    def order(row: RunRow) -> Any:
        return value(row) if are_numbers else str(value(row))

    ordered = sorted(known_rows, key=order, reverse=key in _DOWN)
    return [*ordered, *(row for row in rows if not _is_known(value(row)))]


def _is_known(value: object) -> bool:
    return value not in (None, "") and not (isinstance(value, float) and math.isnan(value))


def describe_runs(rows: Sequence[RunRow]) -> list[JSON]:
    """Returns the rows as plain data, with the settings in which those of the same languages and base differ."""
    differing = _differing(rows)
    return [
        {
            "run": row.name,
            "folder": str(row.folder),
            "language": list(row.targets),
            "base": row.base,
            "method": row.method,
            "settings": differing[row.folder],
            "gain": row.gain,
            "bits_gain": row.bits_gain,
            "worst": {"language": row.worst[0], "rise": row.worst[1]} if row.worst else None,
            "rises": dict(row.rises),
            "steps": row.steps,
            "steps_in_all": row.steps_in_all,
            "tokens": row.tokens,
            "tokens_in_all": row.tokens_in_all,
            "state": row.state,
            "note": row.note,
            "when": _when(row, "%Y-%m-%dT%H:%M:%S"),
        }
        for row in rows
    ]


def format_runs(rows: Sequence[RunRow]) -> str:
    """Returns the rows as tables of at most 118 characters a line, what all share above, what there is to add below.

    A path or an error that is longer than a line is not broken.
    """
    cells = _cells(rows)
    shared = {name: row for name, row in cells[0].items() if name in ("language", "base", "method") and row}
    shared = {name: cell for name, cell in shared.items() if all(row[name] == cell for row in cells)}
    if len(rows) == 1:
        shared = {}
    kept = [{name: cell for name, cell in row.items() if name not in shared} for row in cells]
    empty = {name for name in kept[0] if name != "run" and not any(row[name] for row in kept)}
    table = [{name: cell for name, cell in row.items() if name not in empty} for row in kept]
    lines = [_heading(rows[0], shared)] if shared else []
    lines += blocks(table, ("run",))
    if "gain" not in empty:
        lines.append(wrapped(_LEGEND))
    notes = [f"{row.name}: {row.state}{_note(row)}" for row in rows if row.note]
    return "\n\n".join([*lines, *(["\n".join(notes)] if notes else [])])


def _heading(row: RunRow, shared: Mapping[str, str]) -> str:
    said = [_names(row.targets)] if "language" in shared else []
    said += [f"on {row.base}"] if "base" in shared else []
    said += [f"method {row.method}"] if "method" in shared else []
    return f"all of them: {', '.join(said)}"


def _names(codes: Sequence[str]) -> str:
    try:
        return languages(codes)
    except UserError:
        return "+".join(codes)  # of a configuration that names something else


def _note(row: RunRow) -> str:
    return f", by {row.note}" if row.state == "running" else f": {row.note}"


def _cells(rows: Sequence[RunRow]) -> list[dict[str, str]]:
    differing = _differing(rows)
    shown = _short_keys({key for settings in differing.values() for key in settings})
    return [
        {
            "run": shortened(row.name),
            "language": shortened("+".join(row.targets), 16),
            "base": shortened(short_name(row.base), 24),
            "method": row.method,
            "gain": _signed(row.gain),
            "bits": _signed(row.bits_gain),
            "worst": f"{row.worst[0]} {_signed(row.worst[1])}" if row.worst else "",
            "tokens": _of(row.tokens, row.tokens_in_all),
            "state": _state(row),
            "when": _when(row, "%Y-%m-%d %H:%M") or "",
            "settings": _settings(differing[row.folder], shown),
        }
        for row in rows
    ]


def _state(row: RunRow) -> str:
    if row.state not in ("stopped", "running") or not row.steps:
        return row.state
    in_all = f" of {row.steps_in_all}" if row.steps_in_all else ""
    return f"{row.state}{' at' if row.state == 'stopped' else ''} step {row.steps}{in_all}"


def _of(done: int | None, in_all: int | None) -> str:
    if done is None:
        return ""
    return short(done) if done == in_all or in_all is None else f"{short(done)} of {short(in_all)}"


def _signed(value: float) -> str:
    return f"{value:+.4f}" if math.isfinite(value) else ""


def _when(row: RunRow, form: str) -> str | None:
    return time.strftime(form, time.localtime(row.changed_at)) if math.isfinite(row.changed_at) else None


def _differing(rows: Sequence[RunRow]) -> dict[Path, JSON]:
    """Returns, by folder, the settings that are not the same in all runs of a run's languages and base.

    Those that are turned most come first. Runs of other bases differ in more than anybody wants to read.
    """
    alike: dict[tuple[object, ...], list[RunRow]] = {}
    for row in rows:
        alike.setdefault((row.targets, row.base), []).append(row)
    found: dict[Path, JSON] = {}
    for group in alike.values():
        known = [row.settings for row in group if row.settings]
        names = {name for settings in known for name in settings if name not in _OWN_COLUMNS}
        names = {name for name in names if len({json.dumps(each.get(name), sort_keys=True) for each in known}) > 1}
        ordered = sorted(names, key=_order)
        found |= {row.folder: {key: row.settings[key] for key in ordered if key in row.settings} for row in group}
    return found


def _order(name: str) -> tuple[int, str]:
    leaf = name.rpartition(".")[2]
    return (_FIRST.index(leaf) if leaf in _FIRST else len(_FIRST), name)


def _short_keys(names: Iterable[str]) -> dict[str, str]:
    """Returns what each key is called in a table: its last part, where that is one key's alone."""
    leaves = {name: name.rpartition(".")[2] for name in names}
    counts = Counter(leaves.values())
    return {name: leaf if counts[leaf] == 1 else name for name, leaf in leaves.items()}


def _settings(settings: JSON, shown: Mapping[str, str]) -> str:
    said = (f"{shown[key]} {_value(key, value)}" for key, value in settings.items())
    return shortened(", ".join(said), _LONGEST_SETTINGS)


def _value(key: str, value: object) -> str:
    if key == "model.lr" and isinstance(value, (int, float)):
        return rate(value)
    if isinstance(value, list):
        return "+".join(map(str, value))
    if isinstance(value, int) and not isinstance(value, bool) and value >= 10_000:
        return short(value)
    if isinstance(value, float):
        return f"{value:g}"
    return value if isinstance(value, str) else json.dumps(value, ensure_ascii=False)
