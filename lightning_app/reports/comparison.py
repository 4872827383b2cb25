"""A comparison of finished runs: one table in the shape of the paper's table 2, as data, text and files."""

import csv
import io
import json
import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict
from functools import reduce
from operator import attrgetter
from pathlib import Path

from markupsafe import Markup

from lightning_app.comparison.front import Scaled, build_fronts, common_gain
from lightning_app.comparison.ranking import (
    Group,
    Metric,
    best_groups,
    estimate,
    group_results,
    rank,
    rise_of,
    target_loss,
)
from lightning_app.comparison.results import RunResult, require_comparable
from lightning_app.files import JSON, write_text
from lightning_app.progress import duration, short
from lightning_app.reports.findings import findings, languages, number, rate
from lightning_app.reports.layout import as_json, blocks, shortened, wrapped
from lightning_app.reports.metrics import digits, shown_factor
from lightning_app.reports.page import render
from lightning_app.reports.plots import draw_curves, draw_front
from lightning_app.reports.run_plots import inlined

_TEMPLATE = Path(__file__).with_name("comparison_page.html")
_COSTS = ("seconds", "tokens_per_second", "peak_gib")


def describe_comparison(results: Sequence[RunResult], scaled: Scaled | None = None) -> JSON:
    """Returns a comparison as plain data.

    Args:
        results: Finished runs.
        scaled: Points of scale curves by run folder; they join the front of their method.

    Returns:
        ``rows`` (see `comparison_rows`), ``ranking`` by target loss, ``fronts``, ``equal_gain`` (None where nothing
        gains or nothing is watched), ``scaled_runs`` and ``findings``, sentences for people.

    Raises:
        UserError: The runs cannot be compared.
    """
    require_comparable(results)
    groups = group_results(results)
    best = best_groups(groups)
    ranking = rank(best)
    watched = list(results[0].watched)
    fronts = build_fronts(groups, scaled) if watched else []
    common = common_gain(fronts)
    others = [
        {"label": other.group.label, "is_told_apart": other.is_told_apart}
        | {"difference": asdict(other.estimate) if other.estimate else None}
        for other in ranking.others
    ]
    described: JSON = {
        "base": {"name": results[0].base, "fingerprint": results[0].fingerprint},
        "targets": dict(results[0].targets),
        "watched": watched,
        "tasks": _describe_tasks(results),
        "rows": comparison_rows(results),
        "ranking": {"best": ranking.best.label, "is_clear": ranking.is_clear, "others": others},
        "fronts": [asdict(front) | {"line": front.line} for front in fronts],
        "scaled_runs": [str(run.folder) for run in results if run.folder in (scaled or {})],
        "equal_gain": None,
    }
    if common is not None:
        gain, label = common
        at_gain = {f.label: f.retention_at(gain) for group in best for f in fronts if f.label == group.label}
        described["equal_gain"] = {"gain": gain, "set_by": label, "retention": at_gain}
    return described | {"findings": findings(results, groups, described)}


def _describe_tasks(results: Sequence[RunResult]) -> JSON:
    """Returns what the figure of each task is, and which way is up."""
    found = {task: score for run in results for task, score in run.tasks.items()}
    return {
        task: {"metric": found[task].metric, "higher_is_better": found[task].higher_is_better} for task in sorted(found)
    }


def comparison_rows(results: Sequence[RunResult]) -> list[JSON]:
    """Returns the base, every method at its best rate (best first), then the other rates, as plain data.

    Estimates are ``{"mean", "half_width", "n"}``. ``told_apart`` names the losses and tasks in which a row is better
    than every other method at its best rate, beyond the interval of their paired difference.
    """
    groups = group_results(results)
    best = best_groups(groups)
    watched = results[0].watched
    tasks = sorted({task for run in results for task in run.tasks})
    metrics = dict(_losses(watched)) | {f"task/{task}": _shortfall_in(task) for task in tasks}
    leaders = {name: ranking.best for name, metric in metrics.items() if (ranking := rank(best, metric)).is_clear}
    rows = [_base_row(results, tasks)]
    for group in [*best, *(group for group in groups if group not in best)]:
        told_apart = [name for name, leader in leaders.items() if group is leader]
        rows.append(_row(group, watched, tasks) | {"is_best_rate": group in best, "told_apart": told_apart})
    return rows


def _losses(watched: Sequence[str]) -> Iterator[tuple[str, Metric]]:
    yield "target_loss", target_loss
    yield "bits_per_byte", attrgetter("bits_per_byte")
    for code in watched:
        yield f"retention/{code}", rise_of(code)
    if watched:
        yield "mean_retention", attrgetter("mean_retention")


def _shortfall_in(task: str) -> Metric:
    return lambda run: run.tasks[task].shortfall if task in run.tasks else math.nan


def _base_row(results: Sequence[RunResult], tasks: Sequence[str]) -> JSON:
    """Returns the row of the unadapted base: means over all runs, which should not differ."""
    row: JSON = {"label": "unadapted base", "method": None, "lr": None, "seeds": [], "runs": []}
    row |= {"target_loss": asdict(estimate([run.target_loss_before for run in results])) | {"half_width": None}}
    row |= {"bits_per_byte": asdict(estimate([run.bits_per_byte_before for run in results])) | {"half_width": None}}
    scores = {task: [run.tasks[task][0] for run in results if task in run.tasks] for task in tasks}
    row["tasks"] = {task: asdict(estimate(values)) | {"half_width": None} for task, values in scores.items()}
    return row | {"is_best_rate": True, "told_apart": []}


def _row(group: Group, watched: Sequence[str], tasks: Sequence[str]) -> JSON:
    first = group.runs[0]
    scores = {task: [run.tasks[task][1] for run in group.runs if task in run.tasks] for task in tasks}
    return {
        "label": group.label,
        "method": first.method,
        "lr": group.lr,
        "seeds": group.seeds,
        "runs": [str(run.folder) for run in group.runs],
        "trained_parameters": round(group.mean(attrgetter("trained_parameters"))),
        "share_of_model": group.mean(attrgetter("share_of_model")),
        "target_loss": asdict(group.estimate(target_loss)),
        "bits_per_byte": asdict(group.estimate(attrgetter("bits_per_byte"))),
        "change": asdict(group.estimate(lambda run: -run.gain)),
        "retention": {
            code: asdict(rise := group.estimate(rise_of(code))) | {"is_worse": rise.excludes_zero and rise.mean > 0}
            for code in watched
        },
        "mean_retention": asdict(group.estimate(attrgetter("mean_retention"))) if watched else None,
        "tasks": {task: asdict(estimate(values)) for task, values in scores.items() if values},
    } | {name: group.mean(attrgetter(name)) for name in _COSTS}


def format_csv(described: JSON) -> str:
    """Returns every row in full precision; intervals are columns of their own, unknown numbers are empty."""
    watched, tasks = described["watched"], described["tasks"]
    estimates: dict[str, tuple[str, ...]] = {name: (name,) for name in ("target_loss", "bits_per_byte", "change")}
    estimates |= {f"retention_{code}": ("retention", code) for code in watched}
    estimates |= {"mean_retention": ("mean_retention",)} if watched else {}
    estimates |= {f"task_{task}": ("tasks", task) for task in tasks}
    plain = ["label", "method", "lr", "seeds", "is_best_rate", "trained_parameters", "share_of_model"]
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    halves = [heading for name in estimates for heading in (name, f"{name}_half_width")]
    writer.writerow([*plain, *halves, *_COSTS])
    for row in json.loads(as_json(described["rows"])):
        cells = [row.get(name) for name in plain]
        cells[plain.index("seeds")] = " ".join(map(str, row["seeds"]))
        for keys in estimates.values():
            found = reduce(lambda part, key: part.get(key) or {}, keys, row)
            cells += [found.get("mean"), found.get("half_width")]
        writer.writerow([*cells, *(row.get(name) for name in _COSTS)])
    return text.getvalue()


def _cells(row: JSON, watched: Sequence[str], tasks: JSON) -> dict[str, str]:
    """Returns a row of the table by heading. A base has no rate, seeds or cost."""
    is_base, apart = not row["runs"], row["told_apart"]
    cells = {"method": row["label"], "rate": "" if is_base else rate(row["lr"])}
    cells["seeds"] = "" if is_base else str(len(row["seeds"]))
    cells["trained"] = "" if is_base else _trained(row["trained_parameters"], row["share_of_model"])
    cells["target loss"] = _bold(number(row["target_loss"]), "target_loss" in apart)
    cells["bits/byte"] = _bold(number(row["bits_per_byte"], with_half_width=False), "bits_per_byte" in apart)
    cells["change"] = "" if is_base else number(row["change"], "+", with_half_width=False)
    if watched:
        mean = {} if is_base else row["mean_retention"]
        cells["mean rise"] = _bold(number(mean, "+"), "mean_retention" in apart)
    for code in watched:
        rise = {} if is_base else row["retention"][code]
        text = number(rise, "+", with_half_width=False) + (" ↑" if rise.get("is_worse") else "")
        cells[f"{code} rise"] = _bold(text, f"retention/{code}" in apart)
    for task, about in tasks.items():
        factor, estimate = shown_factor(about["metric"]), row["tasks"].get(task, {})
        shown = {key: value and factor * value for key, value in estimate.items()}
        text = number(shown, digits=digits(about["metric"]))
        cells[f"{task} {'↑' if about['higher_is_better'] else '↓'}"] = _bold(text, f"task/{task}" in apart)
    seconds, speed, peak = (row.get(name, math.nan) for name in _COSTS)
    cells["time"] = duration(seconds) if math.isfinite(seconds) else ""
    cells["tokens/s"] = short(speed) if math.isfinite(speed) else ""
    cells["peak GiB"] = f"{peak:.2f}" if math.isfinite(peak) else ""
    return cells


def _bold(text: str, is_bold: bool) -> str:
    return f"**{text}**" if is_bold else text


def _trained(parameters: int, share: float) -> str:
    """Returns parameters and share of the model as the paper's tables give them, small ones in short."""
    millions = f"{parameters / 1e6:.1f}M" if parameters >= 1_000_000 else short(parameters)
    return f"{millions} ({100 * share:.2f} %)" if share >= 1e-3 else f"{millions} ({100 * share:.2g} %)"


def format_markdown(described: JSON) -> str:
    """Returns the comparison as a page: every method at its best rate, what follows from it, then every other rate."""
    best = [row for row in described["rows"] if row["is_best_rate"]]
    rest = [row for row in described["rows"] if not row["is_best_rate"]]
    lines = [f"# {languages(list(described['targets']))} on {described['base']['name']}", ""]
    lines += [*_markdown_table(best, described), ""]
    lines += [line for sentence in described["findings"] for line in (sentence, "")]
    if rest:
        lines += ["## Other rates", "", *_markdown_table(rest, described), ""]
    return "\n".join(lines)


def _markdown_table(rows: Sequence[JSON], described: JSON) -> list[str]:
    table = [_cells(row, described["watched"], described["tasks"]) for row in rows]
    headings = list(table[0])
    lines = [headings, ["---", *("---:" for _ in headings[1:])], *(list(row.values()) for row in table)]
    return ["| " + " | ".join(cell.replace("|", "\\|") for cell in line) + " |" for line in lines]


def format_terminal(described: JSON) -> str:
    """Returns the best rates as tables of at most 118 characters a line, and what follows from them.

    What does not fit beside the rest goes into another table below; each begins with method and rate.
    """
    rows = [row for row in described["rows"] if row["is_best_rate"]]
    table = [_cells(row, described["watched"], described["tasks"]) for row in rows]
    for row in table:
        row["method"] = shortened(row["method"])
    return "\n\n".join([*blocks(table, ("method", "rate")), *map(wrapped, described["findings"])])


def write_comparison(folder: Path, results: Sequence[RunResult], scaled: Scaled | None = None) -> list[Path]:
    """Writes comparison.md, .html, .csv and .json, front and curves as .png and .svg, and returns their paths.

    There is no front where nothing is watched.

    Raises:
        UserError: The runs cannot be compared, or the disk is full.
    """
    described = describe_comparison(results, scaled)
    texts = {"md": format_markdown(described), "csv": format_csv(described), "json": as_json(described)}
    paths = [folder / f"comparison.{suffix}" for suffix in texts]
    for path, text in zip(paths, texts.values(), strict=True):
        write_text(path, text)
    drawn = [*draw_front(results, folder, scaled), *draw_curves(results, folder)]
    page = folder / "comparison.html"
    write_text(page, _page(described, {path.stem: path for path in drawn if path.suffix == ".svg"}))
    return [*paths, page, *drawn]


def _page(described: JSON, drawn: Mapping[str, Path]) -> str:
    rows = [(row["is_best_rate"], _cells(row, described["watched"], described["tasks"])) for row in described["rows"]]
    headings = {"front": "Gain against what other languages lose", "curves": "Losses by step"}
    return render(
        _TEMPLATE,
        title=f"{languages(list(described['targets']))} on {described['base']['name']}",
        findings=described["findings"],
        tables={
            "Every method at its best rate": [row for is_best, row in rows if is_best],
            "Other rates": [row for is_best, row in rows if not is_best],
        },
        pictures={
            headings.get(name, name): Markup(inlined(path.read_text(encoding="utf-8"), name))
            for name, path in drawn.items()
        },
    )
