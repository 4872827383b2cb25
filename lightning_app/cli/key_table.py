"""``python -m lightning_app.cli.key_table``: writes keys.json, what the parser of every verb knows of its keys."""

import types
from argparse import Action
from collections.abc import Mapping
from importlib import metadata
from typing import Literal, Union, cast, get_args, get_origin

from lightning_app.cli.command_line import VERBS, find_verb
from lightning_app.cli.keys import TABLE
from lightning_app.cli.lightning_cli import ParsedCLI
from lightning_app.cli.parser import Parser
from lightning_app.files import JSON, write_json

_PLAIN = (str, int, float, bool, type(None))
_CONTAINERS = (Union, types.UnionType, list, tuple)


def make_parsers() -> dict[str, Parser]:
    """Returns the parser that the arguments of each verb go through."""
    return {name: cast(Parser, ParsedCLI(find_verb(name)[0], [], shows_all=False).parser) for name in VERBS}


def make_table(parsers: Mapping[str, Parser]) -> JSON:
    """Returns the keys that all verbs share, and of every verb what its help shows and its options."""
    kinds: dict[str, str] = {}
    verbs = {}
    for name, parser in parsers.items():
        verb, own = find_verb(name)[0], {key: _kind(action) for key, action in parser.named_actions().items()}
        options = {key: own.pop(key) for key in list(own) if key.removeprefix("no_") in verb.options}
        verbs[name] = {"does": verb.does, "shown": parser.shown(), "options": options}
        verbs[name] |= {"words": verb.words} if verb.words else {}
        kinds = kinds or own
    return {"lightning": metadata.version("lightning"), "keys": kinds, "verbs": verbs}


def _kind(action: Action) -> str:
    if action.nargs == 0 or action.dest == "print_config":  # which takes one only after a =
        return "flag"
    if action.nargs == "?":
        return "optional"
    if type(action).__name__ == "_ActionConfigLoad":
        return "group"
    return "value" if _is_plain(getattr(action, "_typehint", action.type)) else "open"


def _is_plain(kind: object) -> bool:
    """Tells whether values of a type are numbers, words or lists of them, without names of their own inside."""
    origin = get_origin(kind)
    if origin in _CONTAINERS or getattr(origin, "__name__", "") == "Sequence":
        return all(_is_plain(part) for part in get_args(kind) if part is not ...)
    return kind in _PLAIN or origin is Literal


if __name__ == "__main__":
    write_json(TABLE, make_table(make_parsers()))
