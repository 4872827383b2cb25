"""Draws how step time and memory scale, from the results of the scaling suite."""

import re
from pathlib import Path

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
    from matplotlib import pyplot, ticker

    axes = list(dict.fromkeys(axis for axis, _, _ in points))
    figure, grid = pyplot.subplots(
        len(_METRICS), len(axes), figsize=(3.4 * len(axes), 8.4), sharex="col", layout="constrained", squeeze=False
    )
    for row, (metric, label) in enumerate(_METRICS.items()):
        for column, axis in enumerate(axes):
            cell = grid[row][column]
            unit = 1.0
            if metric == "time":
                unit = min(points[axis, metric, "frozen"])[1].median
            elif metric == "peak_memory":
                unit = 1024.0
            for variant, (name, colour, style) in _STYLES.items():
                line = sorted(points.get((axis, metric, variant), []), key=lambda point: point[0])
                if line:
                    x = [value for value, _ in line]
                    y = [result.median / unit for _, result in line]
                    cell.plot(x, y, style, color=colour, label=name, marker="o", markersize=3)
                    low, high = ([getattr(r, end) / unit for _, r in line] for end in ("low", "high"))
                    cell.fill_between(x, low, high, color=colour, alpha=0.15, linewidth=0)
            ticks = sorted({value for variant in _STYLES for value, _ in points.get((axis, metric, variant), [])})
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
            cell.set_xlabel(axis if row == len(_METRICS) - 1 else "")
            cell.set_ylabel(label if column == 0 else "")
    handles, labels = grid[0][0].get_legend_handles_labels()
    figure.legend(handles, labels, loc="outside upper center", ncols=len(handles), frameon=False)
    figure.savefig(path, dpi=110)
    pyplot.close(figure)
    return path
