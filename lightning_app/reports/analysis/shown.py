"""An analysis as people see it: a table, a picture and how to read it."""

from collections.abc import Callable
from dataclasses import dataclass
from functools import singledispatch
from pathlib import Path
from typing import TYPE_CHECKING

from lightning_app.files import write_text
from lightning_app.reports.drawing import drawing, save
from lightning_app.reports.layout import as_json

if TYPE_CHECKING:
    from matplotlib.figure import Figure


@dataclass(frozen=True)
class Shown:
    """An analysis, ready for people.

    Attributes:
        name: Of its files.
        title: What it shows, a few words.
        reading: How to read it, a sentence or two.
        table: For the terminal; lines of at most 118 characters.
        result: What is shown; its JSON is the dataclass itself.
        draw: Makes the picture, inside `drawing`; None where there is nothing to draw.
    """

    name: str
    title: str
    reading: str
    table: str
    result: object
    draw: "Callable[[], Figure] | None"

    def write(self, folder: Path) -> list[Path]:
        """Writes NAME.json, NAME.png and NAME.svg, and returns their paths."""
        data = folder / f"{self.name}.json"
        write_text(data, as_json({"title": self.title, "reading": self.reading, "result": self.result}))
        if self.draw is None:
            return [data]
        with drawing():
            return [data, *save(self.draw(), folder / self.name)]


@singledispatch
def show(result: object) -> Shown:
    """Returns a result of `lightning_app.analysis` as people see it; its kinds are in the files beside this one."""
    raise TypeError(f"no picture of a {type(result).__name__} is known")
