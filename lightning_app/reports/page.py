"""HTML pages that hold everything: no network, no script, readable on a phone, light and dark, printable."""

from datetime import datetime
from pathlib import Path

from jinja2 import Environment, StrictUndefined
from markupsafe import Markup

from lightning_app import __version__

_STYLE = Path(__file__).with_suffix(".css")


def render(template: Path, **facts: object) -> str:
    """Returns a page; all text in it is escaped, and what a template lacks is an error."""
    environment = Environment(autoescape=True, undefined=StrictUndefined, trim_blocks=True, lstrip_blocks=True)
    own = {"style": Markup(_STYLE.read_text(encoding="utf-8")), "version": __version__}
    page = environment.from_string(template.read_text(encoding="utf-8"))
    return page.render(**own, now=f"{datetime.now():%Y-%m-%d %H:%M}", **facts)
