"""What all pictures have in common: size, letters, colours and the files that they become.

Made for a column of 8 cm: twice that wide, with text twice as large. Colours are Okabe and Ito's.
"""

from contextlib import AbstractContextManager
from pathlib import Path
from typing import TYPE_CHECKING, Any

from lightning_app.files import replacing

if TYPE_CHECKING:  # matplotlib takes half a second, and only who draws waits for it
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

COLOURS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9", "#000000")
WIDTH_IN = 6.3

_SETTINGS: dict[Any, Any] = {
    "font.size": 13, "legend.fontsize": 12, "axes.spines.top": False, "axes.spines.right": False,
    "svg.fonttype": "none", "svg.hashsalt": "neuroglot", "text.parse_math": False,
}  # fmt: skip


def drawing() -> AbstractContextManager[None]:
    """Returns the context that figures are made and saved in."""
    import matplotlib

    return matplotlib.rc_context(_SETTINGS)


def new_figure(width_in: float, height_in: float) -> "tuple[Figure, Axes]":
    """Returns a figure that no window system and no global state knows of, and its axes."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(width_in, height_in), layout="constrained")
    return figure, figure.subplots()


def save(figure: "Figure", stem: Path) -> list[Path]:
    """Writes PNG and SVG; the same data give the same bytes."""
    paths = []
    for kind, metadata in (("png", {"Software": None}), ("svg", {"Date": None, "Creator": None})):
        path = stem.with_suffix(f".{kind}")
        with replacing(path) as temporary:
            figure.savefig(temporary, format=kind, dpi=150, metadata=metadata)
        paths.append(path)
    return paths
