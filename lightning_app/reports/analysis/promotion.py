"""What the neurons that moved most write, and what opens them."""

import warnings
from collections.abc import Iterable
from typing import TYPE_CHECKING

from lightning_app.analysis.promotion import Piece, Promotion
from lightning_app.reports.analysis.neurons import name_of
from lightning_app.reports.analysis.shown import Shown, show
from lightning_app.reports.drawing import COLOURS, WIDTH_IN, new_figure
from lightning_app.reports.layout import shortened

if TYPE_CHECKING:
    from matplotlib.figure import Figure

_LINE = 118
_NEURONS_IN_TABLE = 4
_TOKENS_IN_PICTURE, _LINE_IN_PICTURE = 6, 44


@show.register
def _show_promotion(found: Promotion) -> Shown:
    lines = []
    for each in found.neurons[:_NEURONS_IN_TABLE]:
        lines.append(f"layer {each.layer}, neuron {each.neuron}, moved by {each.change:.4g}")
        raised = {"before": each.raised_before, "after": each.raised_after, "by the change": each.raised_by_change}
        lines += [shortened(f"  raises {about:<14}{_spaced(tokens)}", _LINE) for about, tokens in raised.items()]
        lines += [shortened(f"  opened by{'':<12}{_marked(piece)}", _LINE) for piece in each.pieces[:2]]
    if len(found.neurons) > _NEURONS_IN_TABLE:
        lines.append(f"{len(found.neurons) - _NEURONS_IN_TABLE} more neurons are in the files")
    return Shown(
        f"tokens-{found.language.short}",
        f"What the neurons that moved most write, {name_of(found.language)}",
        "Each row is a neuron, by how far its vectors moved. Beside it, the tokens that it raises when it is open, in "
        "grey before training and in blue after; ␣ is a space.",
        "\n".join(lines) or "no neuron was trained",
        found,
        (lambda: _draw_promotion(found)) if found.neurons else None,
    )


def _spaced(tokens: Iterable[str]) -> str:
    return "  ".join(map(_visible, tokens))


def _visible(text: str) -> str:
    r"""Returns a token or a piece of text on one line, a space before it shown.

    >>> _visible(" ab"), _visible("a\nb"), _visible("  ")
    ('␣ab', 'a↵b', '␣')
    """
    plain = "".join("↵" if letter == "\n" else letter if letter.isprintable() else "·" for letter in text.strip(" "))
    return f"{'␣' if text.startswith(' ') else ''}{plain}"


def _marked(piece: Piece) -> str:
    return _visible(f"{piece.before}[{piece.token}]{piece.after}".strip())


def _draw_promotion(found: Promotion) -> "Figure":
    """Draws bars with tokens; letters that matplotlib's font lacks are boxes in the PNG, not in the SVG."""
    warnings.filterwarnings("ignore", message=".*Glyph .* missing from font.*")
    count = len(found.neurons)
    figure, axes = new_figure(WIDTH_IN, 0.9 + 0.62 * count)
    most = max(each.change for each in found.neurons)
    axes.barh(range(count), [each.change for each in found.neurons], 0.5, color=COLOURS[0])
    axes.set_yticks(range(count), [f"layer {each.layer}\nneuron {each.neuron}" for each in found.neurons], fontsize=10)
    axes.invert_yaxis()
    for row, each in enumerate(found.neurons):
        for dy, tokens, colour in ((-0.2, each.raised_before, "#666666"), (0.2, each.raised_after, COLOURS[0])):
            axes.text(1.04 * most, row + dy, _first(tokens), color=colour, fontsize=10, va="center")
    axes.set_xlim(0, 3.3 * most)
    axes.set_xticks([0, most], ["0", f"{most:.3g}"])
    axes.set_xlabel("change of its vectors (L2)", loc="left")
    axes.tick_params(axis="y", length=0)
    return figure


def _first(tokens: Iterable[str]) -> str:
    """Returns as many tokens as fit beside a bar."""
    return shortened(_spaced(list(tokens)[:_TOKENS_IN_PICTURE]), _LINE_IN_PICTURE)
