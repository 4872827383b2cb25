"""What training changed in the weights."""

from typing import TYPE_CHECKING

from lightning_app.analysis.weight_change import ProjectionChange, WeightChange
from lightning_app.model.ffn import PROJECTIONS
from lightning_app.reports.analysis.shown import Shown, show
from lightning_app.reports.drawing import COLOURS, WIDTH_IN
from lightning_app.reports.layout import blocks, wrapped

if TYPE_CHECKING:
    from matplotlib.figure import Figure

_MARKERS = dict(zip(PROJECTIONS, ("o", "s", "^"), strict=True))
_COLOUR_OF = dict(zip(PROJECTIONS, COLOURS, strict=False))
_MOST_ROWS = 40


@show.register
def _show_change(found: WeightChange) -> Shown:
    by_layer: dict[int, dict[str, ProjectionChange]] = {}
    for each in found.changes:
        by_layer.setdefault(each.layer, {})[each.projection] = each
    rows = []
    for layer, own in by_layer.items():
        row = {"layer": str(layer), "neurons": f"{max(each.neurons for each in own.values()):,}"}
        row |= {f"{name} L2": f"{own[name].l2:.4g}" if name in own else "-" for name in PROJECTIONS}
        row |= {f"{name} rel.": f"{100 * own[name].relative:.3g} %" if name in own else "-" for name in PROJECTIONS}
        ratio = found.asymmetry.get(layer)
        rows.append({**row, "down / gate and up": "-" if ratio is None else f"{ratio:.2f}"})
    lines = [*blocks(rows[-_MOST_ROWS:], ["layer"])]
    if (last := found.asymmetry_last_third) is not None:
        lines += [wrapped(f"a neuron's down column moved {last:.2f} times as far as its gate and up rows, on average "
                          "over the last third of the layers")]  # fmt: skip
    return Shown(
        "change",
        "How far training moved the neurons' weights",
        "Above, the mean length of a neuron's change by layer. Below, how many neurons moved how far, all layers "
        "together.",
        "\n".join(lines),
        found,
        (lambda: _draw_change(found)) if found.changes else None,
    )


def _draw_change(found: WeightChange) -> "Figure":
    from matplotlib.figure import Figure

    figure = Figure(figsize=(WIDTH_IN, 6.0), layout="constrained")
    above, below = figure.subplots(2)
    for projection in PROJECTIONS:
        own = [each for each in found.changes if each.projection == projection]
        if not own:
            continue
        label = f"{projection}_proj"
        above.plot(
            [each.layer for each in own], [each.mean_l2 for each in own], color=_COLOUR_OF[projection],
            marker=_MARKERS[projection], markersize=6, label=label,
        )  # fmt: skip
        counts = [sum(column) for column in zip(*(each.histogram.counts for each in own), strict=True)]
        below.stairs(counts, own[0].histogram.edges, color=_COLOUR_OF[projection], linewidth=1.8, label=label)
    above.set_ylim(bottom=0)
    above.set_xlabel("layer")
    above.locator_params(axis="x", integer=True)
    above.set_ylabel("mean change\nof a neuron (L2)")
    below.set_xscale("log")
    edges = found.changes[0].histogram.edges
    ticks = [edges[0] * (edges[-1] / edges[0]) ** (place / 4) for place in range(5)] if edges[0] else []
    below.set_xticks(ticks, [f"{tick:.2g}" for tick in ticks])
    below.set_xticks([], minor=True)
    below.set_xlabel("change of a neuron's vector (L2)")
    below.set_ylabel("neurons")
    handles, labels = above.get_legend_handles_labels()
    figure.legend(handles, labels, loc="outside lower center", ncols=3, frameon=False)
    return figure
