"""Pictures of one run: its losses by step, what each language gained or lost, and where the trained neurons lie."""

import io
import re
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING

from lightning_app.files import JSON
from lightning_app.languages import find_language
from lightning_app.reports.drawing import COLOURS, WIDTH_IN, drawing, new_figure

if TYPE_CHECKING:
    from matplotlib.figure import Figure

_ROW_IN, _MOST_CURVES = 0.28, 6
_SIZES = re.compile(r' (?:width|height)="[^"]*"')
_NAMES = re.compile(r'( id="|url\(#|href="#)')


def as_svg(figure: "Figure", name: str) -> str:
    """Returns a figure as an SVG element; see `inlined`."""
    out = io.StringIO()
    figure.savefig(out, format="svg", metadata={"Date": None, "Creator": None}, transparent=True)
    return inlined(out.getvalue(), name)


def inlined(svg: str, name: str) -> str:
    """Returns an SVG file as an element for a page: without its head, as wide as there is room.

    Args:
        svg: The file's text.
        name: Comes before every name in it, for a page holds several pictures, and their names must differ.
    """
    start = svg.index("<svg")
    end = svg.index(">", start)
    return _NAMES.sub(rf"\g<1>{name}-", _SIZES.sub("", svg[start:end]) + svg[end:])


def draw_curves(rows: Sequence[JSON], targets: Sequence[str]) -> str:
    """Draws the loss in training and on FLORES dev of the targets, by step; nothing where nothing was logged.

    Args:
        rows: Of metrics.jsonl.
        targets: Codes of the languages that are adapted to.
    """
    train = [(row["step"], row["train/loss"]) for row in rows if "train/loss" in row]
    curves = {
        code: [(row["step"], row[f"val/loss/{code}"]) for row in rows if f"val/loss/{code}" in row]
        for code in targets[:_MOST_CURVES]
    }
    if not train and not any(curves.values()):
        return ""
    with drawing():
        figure, axes = new_figure(WIDTH_IN, 3.6)
        if train:
            axes.plot(*zip(*train, strict=True), color="#888888", linewidth=1, label="training text")
        for (code, points), colour in zip(curves.items(), COLOURS, strict=False):
            if points:
                name = f"FLORES dev, {find_language(code).name}"
                axes.plot(*zip(*points, strict=True), color=colour, marker="o", markersize=4, label=name)
        axes.set_xlabel("step")
        axes.set_ylabel("nats per token (lower is better)")
        axes.legend(frameon=False)
        return as_svg(figure, "curves")


def draw_changes(changes: Mapping[str, tuple[float, float]], targets: Sequence[str]) -> str:
    """Draws how each language's loss changed, the worst first, with two standard errors.

    Args:
        changes: Nats per token, and their standard error (NaN where unknown), by code.
        targets: Codes of the languages that are adapted to, drawn in another colour.
    """
    order = sorted(changes, key=lambda code: changes[code][0])
    if not order:
        return ""
    with drawing():
        figure, axes = new_figure(WIDTH_IN, 1.2 + _ROW_IN * len(order))
        for place, code in enumerate(order):
            change, error = changes[code]
            colour = COLOURS[0] if code in targets else COLOURS[1] if change > 0 else COLOURS[2]
            width = 2 * error if error == error else 0.0
            axes.barh(place, change, color=colour, height=0.7, xerr=width or None, ecolor="#888888")
        axes.axvline(0, color="#888888", linewidth=0.8)
        axes.set_yticks(range(len(order)), [find_language(code).name for code in order])
        axes.locator_params("x", nbins=5)
        axes.set_xlabel("change of loss on FLORES dev, nats per token\n(left is better)")
        return as_svg(figure, "changes")


def draw_layers(per_layer: Sequence[int], neurons_per_layer: int) -> str:
    """Draws how many neurons are trained in each layer."""
    if not sum(per_layer):
        return ""
    with drawing():
        figure, axes = new_figure(WIDTH_IN, 2.8)
        axes.bar(range(len(per_layer)), per_layer, color=COLOURS[0])
        axes.locator_params("x", integer=True)
        axes.locator_params("y", integer=True, nbins=5)
        axes.set_xlabel(f"layer, 0 is the lowest; each has {neurons_per_layer} neurons")
        axes.set_ylabel("trained neurons")
        return as_svg(figure, "layers")
