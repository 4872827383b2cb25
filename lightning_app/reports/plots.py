"""Two figures of a comparison: gain against what other languages lose, and validation curves.

Markers, fillings and dashes keep the methods apart without their colours.
"""

import math
import textwrap
from collections.abc import Collection, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from lightning_app.comparison.front import Front, Scaled, build_fronts
from lightning_app.comparison.ranking import Group, best_groups, group_results
from lightning_app.comparison.results import RunResult
from lightning_app.files import JSON
from lightning_app.progress import short
from lightning_app.reports.drawing import COLOURS, WIDTH_IN, drawing, new_figure, save
from lightning_app.reports.findings import languages, rate

if TYPE_CHECKING:  # matplotlib takes half a second, and only who draws waits for it
    from matplotlib.artist import Artist
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure
    from matplotlib.lines import Line2D
    from matplotlib.typing import LineStyleType

_MARKERS = ("o", "s", "^", "D", "v", "P", "X")
_DASHES: "tuple[LineStyleType, ...]" = ("-", "-.", ":", (0, (7, 1.5, 1, 1.5, 1, 1.5)))
_SCALE_DASHES: "LineStyleType" = (0, (4, 2))
_AXES_IN, _LEGEND_LINE_IN, _LINE_CHARACTERS = 4.4, 0.25, 58


@dataclass(frozen=True)
class _Style:
    colour: str
    marker: str
    dashes: "LineStyleType"
    is_filled: bool

    def line(self) -> JSON:
        face = self.colour if self.is_filled else "white"
        return {
            "color": self.colour, "linestyle": self.dashes, "linewidth": 1.6, "marker": self.marker, "markersize": 7,
            "markerfacecolor": face, "markeredgecolor": self.colour, "markeredgewidth": 1.4,
        }  # fmt: skip


def _styles(groups: Sequence[Group]) -> dict[str, _Style]:
    """Returns a style per method, the same in both figures; a second seven has hollow markers."""
    styles = {}
    for i, label in enumerate(sorted({group.label for group in groups})):
        turn, place = divmod(i, len(_MARKERS))
        colour = COLOURS[(place + 3 * turn) % len(COLOURS)]
        styles[label] = _Style(colour, _MARKERS[place], _DASHES[(place + turn) % len(_DASHES)], turn % 2 == 0)
    return styles


def draw_front(results: Sequence[RunResult], folder: Path, scaled: Scaled | None = None) -> list[Path]:
    """Draws front.png and front.svg: every run a point, every method a line through what its rates reach.

    Returns:
        The paths; none where no language is watched.
    """
    if not results[0].watched:
        return []
    groups = group_results(results)
    fronts = {front.label: front for front in build_fronts(groups, scaled)}
    styles, order = _styles(groups), [group.label for group in best_groups(groups)]
    with drawing():
        figure, axes = new_figure(WIDTH_IN, _AXES_IN)
        axes.axhline(0, color="#888888", linewidth=0.8, zorder=0)
        axes.axvline(0, color="#888888", linewidth=0.8, zorder=0)
        (base,) = axes.plot(0, 0, "*", color="black", markersize=13, linestyle="none", zorder=5)
        handles = [_draw_method(axes, fronts[label], styles[label]) for label in order]
        for run in results:
            axes.plot(run.gain, run.mean_retention, styles[run.label].marker, color=styles[run.label].colour,
                      markersize=3.5, alpha=0.6, zorder=3)  # fmt: skip
        outside = _limit(axes, results, list(fronts.values()))
        axes.set_xlabel(f"gain in {languages(list(results[0].targets))}, nats per token (right is better)")
        axes.set_ylabel(f"rise of loss, {_watched(results[0].watched)},\nnats per token (lower is better)")
        _legend(figure, [base, *handles], ["base", *order], _front_notes(groups, fronts.values(), outside))
        return save(figure, folder / "front")


def _draw_method(axes: "Axes", front: Front, style: _Style) -> "Line2D":
    """Draws a method's line, its rates' means and its scale curves; returns what stands for it in the legend."""
    from matplotlib.lines import Line2D

    axes.plot(
        *zip(*Front(front.label, front.rates).line, strict=True),
        color=style.colour,
        linestyle=style.dashes,
        linewidth=1.6,
        zorder=2,
    )
    marks = style.line() | {"linestyle": "none"}
    axes.plot([p.gain for p in front.rates], [p.retention for p in front.rates], **marks, zorder=4)
    for lr in dict.fromkeys(point.lr for point in front.scaled):
        curve = [(point.gain, point.retention) for point in front.scaled if point.lr == lr]
        axes.plot(*zip(*curve, strict=True), color=style.colour, linestyle=_SCALE_DASHES, linewidth=1.2, zorder=1)
    return Line2D([], [], **style.line())


def _front_notes(groups: Sequence[Group], fronts: Collection[Front], outside: Sequence[str]) -> list[str]:
    notes = ["small: runs; large: means of a rate over seeds"] if any(len(group.runs) > 1 for group in groups) else []
    if any((p.gain, p.retention) not in front.line for front in fronts for p in front.rates):
        notes.append("off the lines: rates that another beats in both")
    notes += ["dashed: finished changes, scaled"] if any(front.scaled for front in fronts) else []
    return notes + ([f"far off and not shown: {', '.join(outside)}"] if outside else [])


def _watched(codes: Sequence[str]) -> str:
    return languages(list(codes)) if len(codes) <= 3 else f"mean of {len(codes)} watched languages"


def _limit(axes: "Axes", results: Sequence[RunResult], fronts: Sequence[Front]) -> list[str]:
    """Keeps a rate that broke the model from squeezing all others into a corner; returns what lies outside."""
    gain = max(front.largest_gain for front in fronts)
    rise = max(retention for front in fronts for _, retention in front.line)
    left, top = (-0.6 * gain, 2.5 * rise) if gain > 0 and rise > 0 else (-math.inf, math.inf)
    inside = [run for run in results if run.gain >= left and run.mean_retention <= top]
    if not inside or len(inside) == len(results):
        return []
    points = [(run.gain, run.mean_retention) for run in inside] + [point for front in fronts for point in front.line]
    for values, limit in ((0, axes.set_xlim), (1, axes.set_ylim)):
        low, high = min(point[values] for point in points), max(point[values] for point in points)
        limit(low - 0.12 * (high - low), high + 0.06 * (high - low))
    return list(dict.fromkeys(f"{run.label} at {rate(run.lr)}" for run in results if run not in inside))


def draw_curves(results: Sequence[RunResult], folder: Path) -> list[Path]:
    """Draws curves.png and curves.svg: target loss of each method at its best rate, mean and range of its seeds."""
    groups = group_results(results)
    best, styles = best_groups(groups), _styles(groups)
    base = results[0].target_loss_before
    with drawing():
        figure, axes = new_figure(WIDTH_IN, _AXES_IN)
        axes.axhline(base, color="#888888", linewidth=0.8, zorder=0)
        axes.annotate("base", (1, base), xycoords=("axes fraction", "data"), xytext=(0, 3),
                      textcoords="offset points", ha="right", va="bottom")  # fmt: skip
        handles, lowest = [], base
        for i, group in enumerate(best):
            tokens, low, mean, high = _band(group)
            every = max(1, len(tokens) // 6)
            (handle,) = axes.plot(tokens, mean, **styles[group.label].line(), markevery=(i % every, every))
            if len(group.runs) > 1:
                axes.fill_between(tokens, low, high, color=styles[group.label].colour, alpha=0.18, linewidth=0)
            handles.append(handle)
            lowest = min([lowest, *(value for value in low if math.isfinite(value))])
        if axes.get_ylim()[1] > (ceiling := base + 0.5 * (base - lowest)) > base:
            axes.set_ylim(top=ceiling)
        axes.xaxis.set_major_formatter(lambda value, _: short(value))
        axes.set_xlabel("tokens of training")
        axes.set_ylabel(f"loss on {languages(list(results[0].targets))},\nnats per token (lower is better)")
        notes = ["each at its best rate"]
        notes += ["bands: lowest to highest seed"] if any(len(group.runs) > 1 for group in best) else []
        _legend(figure, handles, [group.label for group in best], notes)
        return save(figure, folder / "curves")


def _band(group: Group) -> tuple[list[float], list[float], list[float], list[float]]:
    """Returns tokens, and lowest, mean and highest target loss of the seeds, at steps that all of them validated."""
    curves = [dict(run.curve) for run in group.runs]
    first = group.runs[0]
    steps = sorted(set.intersection(*(set(curve) for curve in curves)))
    losses = [[curve[step] for curve in curves] for step in steps]
    tokens = [step * first.tokens / max(1, first.steps) for step in steps]
    return tokens, [min(v) for v in losses], [sum(v) / len(v) for v in losses], [max(v) for v in losses]


def _legend(figure: "Figure", handles: "Sequence[Artist]", labels: Sequence[str], notes: Sequence[str]) -> None:
    """Puts the legend and what it must say below the axes, where they cover nothing, and makes room for them."""
    longest = max(map(len, labels))
    columns = min(len(labels), 3 if longest <= 15 else 2 if longest <= 28 else 1)
    named = [textwrap.fill(label, _LINE_CHARACTERS) for label in labels]
    note = [line for note in notes for line in textwrap.wrap(note, _LINE_CHARACTERS)]
    lines = math.ceil(sum(label.count("\n") + 1 for label in named) / columns) + len(note)
    figure.set_size_inches(WIDTH_IN, _AXES_IN + _LEGEND_LINE_IN * lines)
    figure.legend(handles, named, loc="outside lower center", ncols=columns, frameon=False, handlelength=3.2,
                  title="\n".join(note), title_fontsize=11, alignment="left")  # fmt: skip
