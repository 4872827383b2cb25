"""How tables fit a terminal, and how plain data becomes JSON."""

import json
import math
import textwrap
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import fields, is_dataclass

from lightning_app.languages import Language

_WIDTH = 118
_LONGEST = 60


def blocks(table: Sequence[dict[str, str]], repeated: Sequence[str]) -> Iterator[str]:
    """Yields a table of cells by heading as tables of at most 118 characters a line.

    What does not fit beside the rest goes into another table below; each begins with the ``repeated`` columns.
    """
    widths = {heading: max(len(heading), *(len(row[heading]) for row in table)) for heading in table[0]}
    wanted = [heading for heading in table[0] if heading not in repeated]
    while wanted:
        block = list(repeated)
        while wanted and (len(block) == len(repeated) or sum(widths[h] + 2 for h in [*block, wanted[0]]) - 2 <= _WIDTH):
            block.append(wanted.pop(0))
        first, *others = block
        lines = [dict.fromkeys(block, "") | {heading: heading for heading in block}, *table]
        yield "\n".join(
            "  ".join([f"{line[first]:<{widths[first]}}", *(f"{line[h]:>{widths[h]}}" for h in others)]).rstrip()
            for line in lines
        )


def shortened(text: str, longest: int = _LONGEST) -> str:
    """Returns a cell of a bearable length."""
    return text if len(text) <= longest else f"{text[: longest - 1]}…"


def wrapped(sentence: str) -> str:
    """Returns a sentence in lines of at most 118 characters."""
    return textwrap.fill(sentence, _WIDTH)


def as_json(described: object) -> str:
    """Returns plain data and dataclasses of it as JSON; languages by short code; what is not finite becomes null."""
    return json.dumps(_plain(described), indent=2, ensure_ascii=False) + "\n"


def _plain(value: object) -> object:
    if isinstance(value, Language):
        return value.short
    if is_dataclass(value):
        return {each.name: _plain(getattr(value, each.name)) for each in fields(value)}
    if isinstance(value, Mapping):
        return {key: _plain(part) for key, part in value.items()}
    if isinstance(value, list | tuple):
        return [_plain(part) for part in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value
