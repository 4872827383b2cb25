"""Where neurons lie, and what languages share."""

import itertools
import math
from collections.abc import Sequence
from typing import TYPE_CHECKING

from lightning_app.analysis.neuron_map import NeuronMap, OverlapMatrix
from lightning_app.languages import Language
from lightning_app.reports.analysis.shown import Shown, show
from lightning_app.reports.drawing import COLOURS, WIDTH_IN
from lightning_app.reports.layout import blocks

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure
    from matplotlib.image import AxesImage

_LINE_IN = 0.27
_MOST_WITH_NUMBERS = 14
_SMALLEST = 6.0  # points of a letter that is still read
_MOST_PAIRS = 8


def name_of(language: Language) -> str:
    """Returns a language's name and short code, or the code alone where it has no name."""
    return language.name if language.name == language.short else f"{language.name} ({language.short})"


@show.register
def _show_map(found: NeuronMap) -> Shown:
    union = f"{sum(found.union_per_layer):,} neurons in all"
    if found.union_share is not None:
        union += f", {100 * found.union_share:.2f} % of the FFN neurons"
    rows = [
        {
            "language": name_of(language),
            "neurons": f"{neurons:,}",
            "in the last third": f"{100 * sum(row[2 * found.layers // 3 :]) / max(1, neurons):.0f} %",
            "most in a layer": f"{max(row):,}",
            "of layer": str(row.index(max(row))) if neurons else "-",
        }
        for language, neurons, row in zip(found.languages, found.neurons, found.per_layer, strict=True)
    ]
    head = f"{found.model}: {union}; {100 * found.last_third:.0f} % of them in the last third of {found.layers} layers"
    return Shown(
        "neurons",
        f"Neurons of each language in each layer of {found.model}",
        "Above, neurons that any language has, by layer, the first layer left. Below, each language's own: the darker, "
        "the more.",
        "\n".join([head, *blocks(rows, ["language"])]),
        found,
        lambda: _draw_map(found),
    )


def _draw_map(found: NeuronMap) -> "Figure":
    from matplotlib.colors import PowerNorm
    from matplotlib.figure import Figure

    count = len(found.languages)
    row_in = _LINE_IN if count <= 20 else max(0.05, min(0.17, 8 / count))
    heights_in = [1.3, max(0.4, row_in * count)]
    figure = Figure(figsize=(WIDTH_IN, sum(heights_in) + 1.8), layout="constrained")
    above, below = figure.subplots(2, sharex=True, height_ratios=heights_in)
    above.bar(range(found.layers), found.union_per_layer, width=0.9, color=COLOURS[0])
    above.set_ylabel("neurons of\nany language")
    most = max(1, *itertools.chain(*found.per_layer))
    image = below.imshow(found.per_layer, aspect="auto", cmap="Blues", norm=PowerNorm(0.5, 0, most))
    name_rows(below, found.languages, row_in)
    below.set_xlabel("layer")
    _bar(figure, below, image, "neurons of a language in a layer", [0, *_round_steps(most)])
    return figure


def name_rows(axes: "Axes", languages: Sequence[Language], row_in: float) -> None:
    """Labels the rows of a map with languages: by name where rows are high, else by code, or only their number."""
    size = min(12.0, 60 * row_in)
    if size < _SMALLEST:
        axes.set_yticks([])
        axes.set_ylabel(f"{len(languages)} languages")
        return
    axes.set_yticks(range(len(languages)), [each.name if size > 9 else each.short for each in languages], fontsize=size)
    axes.tick_params(axis="y", length=0)


def name_columns(axes: "Axes", languages: Sequence[Language], column_in: float) -> None:
    """Labels the columns of a map with the codes of languages, where they are wide enough."""
    size = min(12.0, 60 * column_in)
    is_shown = size >= _SMALLEST
    names = [each.short for each in languages] if is_shown else []
    axes.set_xticks(range(len(names)), names, fontsize=size, rotation=90)
    axes.tick_params(axis="x", length=0)


def _round_steps(most: int) -> list[int]:
    """Returns round numbers up to ``most`` for a scale that is finer at its beginning.

    >>> _round_steps(1152), _round_steps(7)
    ([50, 200, 1000], [1, 2, 5])
    """
    every = [factor * 10**power for power in range(8) for factor in (1, 2, 5)]
    fitting = [step for step in every if most / 40 < step <= most]
    return fitting[-4:] if len(fitting) <= 4 else fitting[-1::-2][::-1]


def _bar(figure: "Figure", axes: "Axes", image: "AxesImage", label: str, ticks: Sequence[float]) -> None:
    bar = figure.colorbar(image, ax=axes, location="bottom", fraction=0.12, aspect=40, pad=0.02, label=label)
    bar.set_ticks(list(ticks))
    bar.ax.minorticks_off()


@show.register
def _show_overlap(found: OverlapMatrix) -> Shown:
    places = range(len(found.languages))
    pairs = sorted(((found.jaccard[a][b], a, b) for a in places for b in range(a)), reverse=True)
    rows = [
        {
            "languages": " and ".join(sorted(found.languages[place].name for place in (a, b))),
            found.by: found.groups[a] if found.groups[a] == found.groups[b] else "different",
            "shared": f"{found.shared[a][b]:,}",
            "overlap": f"{jaccard:.3f}",
        }
        for jaccard, a, b in pairs[:_MOST_PAIRS]
    ]
    what = {"family": "language family", "script": "script"}[found.by]
    head = f"overlap by {what}: {_mean(found.within)} within one, {_mean(found.between)} between two"
    head += f", median {_mean(found.median)}" if found.median is not None else ""
    return Shown(
        f"overlap-{found.by}",
        f"Neurons that languages share, ordered by {what}",
        "Each cell is the share of the neurons of either language that both have (Jaccard). Lines part one "
        f"{what} from the next. Languages of one share {_mean(found.within)} on average, of two "
        f"{_mean(found.between)}.",
        "\n".join([head, *(blocks(rows, ["languages"]) if rows else ["there is one language only"])]),
        found,
        (lambda: _draw_overlap(found)) if len(found.languages) > 1 else None,
    )


def _mean(value: float | None) -> str:
    return "-" if value is None else f"{value:.3f}"


def _draw_overlap(found: OverlapMatrix) -> "Figure":
    from matplotlib.figure import Figure

    count = len(found.languages)
    values = [[math.nan if a == b else found.jaccard[a][b] for b in range(count)] for a in range(count)]
    most = max(found.jaccard[a][b] for a in range(count) for b in range(a)) or 1.0
    side_in = min(4.6, max(1.6, 0.42 * count))
    figure = Figure(figsize=(WIDTH_IN, side_in + 1.2), layout="compressed")
    axes = figure.subplots()
    image = axes.imshow(values, cmap="Blues", vmin=0, vmax=most)
    axes.set_facecolor("#dddddd")  # of the diagonal
    name_rows(axes, found.languages, side_in / count)
    name_columns(axes, found.languages, side_in / count)
    if count <= _MOST_WITH_NUMBERS:
        for a, b in itertools.product(range(count), repeat=2):
            if a != b:
                colour = "white" if values[a][b] > 0.6 * most else "black"
                number = f"{values[a][b]:.2f}".removeprefix("0")
                axes.text(b, a, number, ha="center", va="center", fontsize=9, color=colour)
    _part_groups(axes, found.groups)
    _bar(figure, axes, image, "share of their neurons that both have (Jaccard)", _fifths(most))
    return figure


def _fifths(most: float) -> list[float]:
    step = next((s for s in (0.01, 0.02, 0.05, 0.1, 0.2) if most / s <= 6), 0.2)
    return [round(step * i, 2) for i in range(int(most / step + 1e-9) + 1)]


def _part_groups(axes: "Axes", groups: Sequence[str]) -> None:
    """Draws lines between groups, and names those of them that have room on the right."""
    start, width = 0, 0.8 if len(groups) <= 20 else 0.3
    for group, members in itertools.groupby(groups):
        size = len(list(members))
        if start:
            axes.axhline(start - 0.5, color="black", linewidth=width)
            axes.axvline(start - 0.5, color="black", linewidth=width)
        if len(groups) <= 20 or size >= len(groups) / 20:
            axes.text(len(groups) - 0.3, start + (size - 1) / 2, group, va="center", fontsize=11, clip_on=False)
        start += size
    for side in ("top", "right"):
        axes.spines[side].set_visible(True)
