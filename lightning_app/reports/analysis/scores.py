"""LAPE's scores beside their thresholds, and how stable a selection is."""

import itertools
from typing import TYPE_CHECKING

from lightning_app.analysis.scores import Histogram, ScoreDistribution, Stability
from lightning_app.files import JSON
from lightning_app.progress import short
from lightning_app.reports.analysis.neurons import name_of
from lightning_app.reports.analysis.shown import Shown, show
from lightning_app.reports.drawing import COLOURS, WIDTH_IN, new_figure
from lightning_app.reports.layout import blocks

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

_GREY = "#999999"
_DASHES = ("-", "--", ":")
_MOST_NAMED = 21


@show.register
def _show_scores(found: ScoreDistribution) -> Shown:
    share = 100 / found.neurons
    cut = "-" if found.cut is None else f"{found.cut:.4f}"
    lines = [
        f"{found.model}: {found.neurons:,} neurons, {len(found.languages)} languages",
        f"activation threshold {found.tau:.4f}, the {100 * found.quantile:g} % quantile of all probabilities",
        f"entropy up to {cut} of at most {found.highest:.4f} is taken: {found.taken:,} neurons, "
        f"{share * found.taken:.2f} % (asked for {100 * found.rate:g} %)",
        f"{found.silent:,} neurons, {share * found.silent:.1f} %, are above the threshold in no language",
    ]
    return Shown(
        "scores",
        f"LAPE's scores in {found.model}, and where they are cut",
        "Above, how often gates open: a language may have a neuron only right of the dashed line. Below, how evenly "
        "the languages open a neuron (0: one of them alone): those left of the dashed line are taken, and of the grey "
        "ones, which no language opens often enough, none.",
        "\n".join(lines),
        found,
        lambda: _draw_scores(found),
    )


def _draw_scores(found: ScoreDistribution) -> "Figure":
    from matplotlib.figure import Figure

    figure = Figure(figsize=(WIDTH_IN, 5.6), layout="constrained")
    above, below = figure.subplots(2)
    _steps(above, found.probabilities, COLOURS[0], "")
    _mark(above, found.tau, f"threshold {found.tau:.3f}")
    above.set_xlabel("activation probability")
    above.set_ylabel("neurons, in each\nlanguage")
    active = [a + b for a, b in zip(found.entropies.counts, found.silent_entropies.counts, strict=True)]
    _steps(below, Histogram(found.entropies.edges, tuple(active)), _GREY, "no language opens them often")
    _steps(below, found.entropies, COLOURS[0], "some does")
    if found.cut is not None:
        _mark(below, found.cut, f"cut {found.cut:.3f}")
    below.set_xlabel("entropy over languages, nats")
    below.set_ylabel("neurons")
    figure.legend(*below.get_legend_handles_labels(), loc="outside lower center", ncols=2, frameon=False)
    for axes in (above, below):
        axes.set_yscale("log")
        axes.set_ylim(bottom=0.7)
        axes.yaxis.set_major_formatter(lambda value, _: short(value))
    return figure


def _steps(axes: "Axes", histogram: Histogram, colour: str, label: str) -> None:
    axes.stairs(histogram.counts, histogram.edges, fill=True, color=colour, label=label or None)


def _mark(axes: "Axes", value: float, text: str) -> None:
    """Draws a dashed line with its name on the side that has room."""
    low, high = axes.get_xlim()
    is_left = value < (low + high) / 2
    axes.axvline(value, color="black", linestyle="--", linewidth=1.2)
    axes.annotate(text, (value, 0.97), xycoords=("data", "axes fraction"), xytext=(5 if is_left else -5, 0),
                  textcoords="offset points", ha="left" if is_left else "right", va="top", fontsize=11)  # fmt: skip


@show.register
def _show_stability(found: Stability) -> Shown:
    rows = [
        {
            "language": name_of(curve.language),
            "tokens": short(curve.tokens[-1]),
            "overlap": f"{curve.overlaps[-1]:.3f}",
            "at half of them": f"{curve.overlaps[(len(curve.overlaps) - 1) // 2]:.3f}",
        }
        for curve in found.curves
    ]
    return Shown(
        "stability",
        f"How stable the sets of {found.model} are over tokens",
        "Overlap (Jaccard) of the sets that two halves of a language's text give, as more of it is counted: at 1 more "
        "text would change nothing.",
        "\n".join(blocks(rows, ["language"])),
        found,
        lambda: _draw_stability(found),
    )


def _draw_stability(found: Stability) -> "Figure":
    count = len(found.curves)
    columns = 3
    lines = -(-count // columns) if count <= _MOST_NAMED else 0
    figure, axes = new_figure(WIDTH_IN, 3.6 + 0.25 * lines)
    styles = itertools.cycle(itertools.product(_DASHES, COLOURS))
    is_named = count <= _MOST_NAMED
    for curve, (dashes, colour) in zip(found.curves, styles, strict=False):
        how: JSON = {"color": colour, "linestyle": dashes, "linewidth": 1.6, "marker": "o", "markersize": 4}
        how = how if is_named else {"color": _GREY, "linewidth": 0.6}
        axes.plot(curve.tokens, curve.overlaps, label=curve.language.name, **how)
    if not is_named:
        lowest = min(found.curves, key=lambda curve: curve.overlaps[-1])
        axes.plot(lowest.tokens, lowest.overlaps, color=COLOURS[1], linewidth=1.6)
        axes.annotate(f"lowest at its end: {lowest.language.name}", (0.98, 0.05), xycoords="axes fraction", ha="right",
                      color=COLOURS[1])  # fmt: skip
    axes.set_ylim(0, 1.02)
    axes.set_xlim(left=0)
    axes.xaxis.set_major_formatter(lambda value, _: short(value))
    axes.set_xlabel("tokens counted")
    axes.set_ylabel("overlap of the sets\nof two halves (Jaccard)")
    if is_named:
        figure.legend(loc="outside lower center", ncols=columns, frameon=False)
    return figure
