"""Draws how step time and memory scale, from the results of the scaling suite."""

import re
from pathlib import Path
from typing import Any

from benchmarks.measure import Result
from lightning_app.progress import short

# In the order of the lines; the bound is dashed.
_STYLES = {
    "frozen": ("bound of frozen training", "black", "--"),
    "packed": ("packed", "#1b6ca8", "-"),
    "lora": ("PEFT LoRA, same parameters", "#d17b0f", "-"),
    "masked": ("masked", "#8a8a8a", "-"),
}
_METRICS = {
    "ratio_to_frozen": "step time, bound = 1",
    "time": "step time, bound at the left = 1",
    "peak_memory": "peak memory, GiB",
}


def draw_scaling(results: list[Result], path: Path) -> Path | None:
    """Draws a row per metric and a column per axis, and returns the picture's path; None without such results."""
    points: dict[tuple[str, str, str], list[tuple[float, Result]]] = {}
    for result in results:
        if match := re.fullmatch(r"scaling (.*) ([\d.e+-]+)", result.benchmark):
            points.setdefault((match[1], result.metric, result.variant), []).append((float(match[2]), result))
    if not points:
        return None
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    axes = list(dict.fromkeys(axis for axis, _, _ in points))
    figure, grid = pyplot.subplots(
        len(_METRICS), len(axes), figsize=(3.4 * len(axes), 8.4), sharex="col", layout="constrained", squeeze=False
    )
    for row, (metric, label) in enumerate(_METRICS.items()):
        for column, axis in enumerate(axes):
            lines = {variant: sorted(points.get((axis, metric, variant), []), key=_value) for variant in _STYLES}
            _draw(grid[row][column], metric, lines)
            grid[row][column].set_xlabel(axis if row == len(_METRICS) - 1 else "")
            grid[row][column].set_ylabel(label if column == 0 else "")
    handles, labels = grid[0][0].get_legend_handles_labels()
    figure.legend(handles, labels, loc="outside upper center", ncols=len(handles), frameon=False)
    figure.savefig(path, dpi=110)
    pyplot.close(figure)
    return path


def _value(point: tuple[float, Result]) -> float:
    return point[0]


def _draw(cell: Any, metric: str, lines: dict[str, list[tuple[float, Result]]]) -> None:
    from matplotlib import ticker

    unit = {"time": lines["frozen"][0][1].median, "peak_memory": 1024.0}.get(metric, 1.0)
    for variant, (name, colour, style) in _STYLES.items():
        x = [value for value, _ in lines[variant]]
        low, y, high = (
            [getattr(result, at) / unit for _, result in lines[variant]] for at in ("low", "median", "high")
        )
        cell.plot(x, y, style, color=colour, label=name, marker="o", markersize=3)
        cell.fill_between(x, low, high, color=colour, alpha=0.15, linewidth=0)
    ticks = [value for value, _ in lines["frozen"]]
    cell.set_xscale("log")
    cell.set_xticks(ticks, [f"{tick:g}" if tick < 10_000 else short(tick) for tick in ticks])
    cell.minorticks_off()
    if metric == "ratio_to_frozen":
        cell.set_ylim(0.7, 1.6)
    else:
        cell.set_yscale("log")
        cell.yaxis.set_major_locator(ticker.LogLocator(subs=(1, 2, 5)))
        cell.yaxis.set_major_formatter(lambda value, _: f"{value:g}")
        cell.yaxis.set_minor_locator(ticker.NullLocator())
    cell.grid(alpha=0.3)
