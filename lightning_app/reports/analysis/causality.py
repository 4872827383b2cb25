"""What happens without a language's neurons, and what of them follows the script."""

import itertools
from typing import TYPE_CHECKING

from lightning_app.analysis.causality import Selectivity
from lightning_app.analysis.script_control import ScriptControl
from lightning_app.progress import short
from lightning_app.reports.analysis.neurons import name_columns, name_of, name_rows
from lightning_app.reports.analysis.shown import Shown, show
from lightning_app.reports.drawing import COLOURS, WIDTH_IN, new_figure
from lightning_app.reports.layout import blocks, wrapped

if TYPE_CHECKING:
    from matplotlib.figure import Figure

_MOST_WITH_NUMBERS = 12
_COLUMNS_IN = 4.6  # width of the map


def _signed(value: float | None) -> str:
    return "-" if value is None else f"{value:+.4f}"


@show.register
def _show_selectivity(found: Selectivity) -> Shown:
    rows = [
        {
            "without the neurons of": name_of(language),
            "neurons": f"{found.neurons[row]:,}",
            "own loss": _signed(found.own(row)),
            "others' loss": _signed(found.others(row)),
            "own, random neurons": _signed(found.own_random(row)),
            "rises most in": found.measured[found.rises[row].index(max(found.rises[row]))].name,
        }
        for row, language in enumerate(found.switched)
    ]
    foot = (
        f"rises in nats per token; random: as many neurons in each layer, mean of {found.draws} draws. Of "
        f"{len(rows)} languages {found.most_selective} lose most themselves, and more than without random neurons"
    )
    return Shown(
        "causal",
        "What each language's loss does without a language's neurons",
        "A row is a language whose neurons are switched off, a column a language whose loss is read: the rise in nats "
        "per token. Neurons that are a language's own make the framed cells dark and nothing else. Below, the same "
        "without as many random neurons in each layer.",
        "\n".join([*blocks(rows, ["without the neurons of"]), wrapped(foot)]),
        found,
        lambda: _draw_selectivity(found),
    )


def _draw_selectivity(found: Selectivity) -> "Figure":
    from matplotlib.colors import TwoSlopeNorm
    from matplotlib.figure import Figure
    from matplotlib.patches import Rectangle

    rows, columns = len(found.switched), len(found.measured)
    every = [*itertools.chain(*found.rises), *itertools.chain(*found.random_rises)]
    most = max(map(abs, every)) or 1.0
    height_in = max(0.6, min(4.6, 0.36 * rows))
    figure = Figure(figsize=(WIDTH_IN, 2 * height_in + 2.6), layout="constrained")
    panels = figure.subplots(2, sharex=True)
    for axes, values, title in (
        (panels[0], found.rises, "without the neurons of"),
        (panels[1], found.random_rises, "without as many random ones"),
    ):
        image = axes.imshow(values, aspect="auto", cmap="RdBu_r", norm=TwoSlopeNorm(0, -most, most))
        name_rows(axes, found.switched, height_in / rows)
        axes.set_title(title, fontsize=13, loc="left")
        for row, language in enumerate(found.switched):
            if language in found.measured:
                at = (found.measured.index(language) - 0.5, row - 0.5)
                axes.add_patch(Rectangle(at, 1, 1, fill=False, edgecolor="black", linewidth=1.0))
        if max(rows, columns) <= _MOST_WITH_NUMBERS:
            for a, b in itertools.product(range(rows), range(columns)):
                colour = "white" if abs(values[a][b]) > 0.6 * most else "black"
                axes.text(b, a, _brief(values[a][b]), ha="center", va="center", fontsize=8, color=colour)
    name_columns(panels[1], found.measured, _COLUMNS_IN / columns)
    panels[1].set_xlabel("rise of the loss in")
    figure.colorbar(image, ax=list(panels), location="bottom", fraction=0.05, aspect=40, label="nats per token")
    return figure


def _brief(value: float) -> str:
    """Returns a number in four characters or so.

    >>> _brief(0.1234), _brief(-0.0312), _brief(1.5), _brief(0.001)
    ('.12', '-.03', '1.5', '.00')
    """
    if abs(value) >= 0.995:
        return f"{value:.1f}"
    return f"{value:.2f}".replace("0.", ".", 1) if abs(value) >= 0.005 else ".00"


@show.register
def _show_script(found: ScriptControl) -> Shown:
    rows = [
        {"text": "as it is", "tokens": short(found.tokens), "neurons": f"{found.neurons:,}"},
        {"text": "romanised", "tokens": short(found.tokens_romanised), "neurons": f"{found.neurons_romanised:,}"},
        {"text": "both", "tokens": "", "neurons": f"{found.shared:,}"},
    ]
    name = name_of(found.language)
    said = (
        f"{100 * found.follows_script:.0f} % of the neurons of {name} are not among those of its romanised text: they "
        f"follow the script. The two sets overlap by {found.overlap:.3f} (Jaccard), those of two halves of the text as "
        f"it is by {found.overlap_of_halves:.3f}"
    )
    return Shown(
        f"script-{found.language.short}",
        f"How much of the set of {name} follows its script",
        f"Neurons of {name} by layer, from its text as it is, from the same text in Latin letters, and in both sets. "
        f"{said}.",
        "\n".join([*blocks(rows, ["text"]), wrapped(said)]),
        found,
        lambda: _draw_script(found),
    )


def _draw_script(found: ScriptControl) -> "Figure":
    figure, axes = new_figure(WIDTH_IN, 3.6)
    layers = range(len(found.per_layer))
    axes.bar([x - 0.22 for x in layers], found.per_layer, width=0.44, color=COLOURS[0], label="as it is")
    axes.bar([x + 0.22 for x in layers], found.per_layer_romanised, width=0.44, color=COLOURS[4], label="romanised")
    axes.bar(layers, found.per_layer_shared, width=0.88, color="#333333", label="in both sets")
    axes.locator_params(axis="x", integer=True)
    axes.set_xlabel("layer")
    axes.set_ylabel(f"neurons of {found.language.name}")
    figure.legend(loc="outside lower center", ncols=3, frameon=False)
    return figure
