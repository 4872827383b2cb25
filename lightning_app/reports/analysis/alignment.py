"""How near languages lie in the model, before and after."""

from typing import TYPE_CHECKING

from lightning_app.analysis.alignment import Alignment
from lightning_app.reports.analysis.neurons import name_of
from lightning_app.reports.analysis.shown import Shown, show
from lightning_app.reports.drawing import COLOURS, WIDTH_IN
from lightning_app.reports.layout import blocks

if TYPE_CHECKING:
    from matplotlib.figure import Figure

_COLUMNS = 3


@show.register
def _show_alignment(found: Alignment) -> Shown:
    rows = [
        {
            "with": name_of(other),
            "before": f"{100 * old:.1f}",
            "after": f"{100 * new:.1f}",
            "change": f"{100 * (new - old):+.1f}",
            "most in a layer": f"{100 * max(b - a for a, b in zip(first, then, strict=True)):+.1f}",
        }
        for other, (old, new), first, then in zip(found.others, found.means, found.before, found.after, strict=True)
    ]
    return Shown(
        f"alignment-{found.language.short}",
        f"How near sentences of {name_of(found.language)} lie to their translations",
        f"Cosine similarity of {found.sentences} sentences with their translations, by layer (100: the same "
        "direction), before and after training. Means are over the layers.",
        "\n".join(blocks(rows, ["with"])),
        found,
        lambda: _draw_alignment(found),
    )


def _draw_alignment(found: Alignment) -> "Figure":
    """Draws a panel for each language: lines of many would cover one another."""
    from matplotlib.figure import Figure

    columns = min(_COLUMNS, len(found.others))
    lines = -(-len(found.others) // columns)
    figure = Figure(figsize=(WIDTH_IN, 1.9 * lines + 0.9), layout="constrained")
    panels = figure.subplots(lines, columns, sharex=True, sharey=True, squeeze=False)
    for axes in panels.flat[len(found.others) :]:
        axes.remove()
    for axes, other, first, then in zip(panels.flat, found.others, found.before, found.after, strict=False):
        for values, label, colour, dashes in ((first, "before", "#666666", "--"), (then, "after", COLOURS[0], "-")):
            axes.plot([100 * value for value in values], color=colour, linestyle=dashes, linewidth=1.8, label=label)
        axes.set_title(other.name, fontsize=12)
        axes.locator_params(axis="x", integer=True)
    handles, labels = panels[0, 0].get_legend_handles_labels()
    figure.legend(handles, labels, loc="outside lower center", ncols=2, frameon=False)
    for axes in panels[-1]:
        axes.set_xlabel("layer")
    figure.supylabel("cosine similarity x 100", fontsize=13)
    return figure
