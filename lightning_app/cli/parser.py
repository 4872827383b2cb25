"""The parser: Lightning's, with a help that fits a screen and plain errors."""

import math
import re
from argparse import Action
from typing import Any, Literal, get_args, get_origin

from jsonargparse import Namespace
from lightning.pytorch.cli import LightningArgumentParser

from lightning_app.cli.keys import help_page, no_key_before, no_such_key, without_value
from lightning_app.cli.verb import Verb
from lightning_app.errors import UserError, did_you_mean


class Parser(LightningArgumentParser):
    """Accepts every key, so that one YAML serves every verb; shows those of its verb; reports errors in one line."""

    verb: Verb | None = None

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **{"allow_abbrev": False, **kwargs})

    def parse_args(self, *args: Any, **kwargs: Any) -> Namespace:
        """Returns the settings.

        Raises:
            UserError: A key is unknown or has a value of another type, null too, or a number is NaN or infinite.
        """
        settings, actions = super().parse_args(*args, **kwargs), self.named_actions()
        for key, value in settings.items():
            kind = getattr(actions.get(key), "_typehint", None)
            if value is None and kind is not None and not _takes_null(kind):
                raise UserError(f"--{key} is null; expected {_name_of(kind)}, or leave it out")
            if (found := _not_finite(value)) is not None:
                raise UserError(f"--{key} is {found}; expected a finite number")
        return settings

    def error(self, message: str, ex: Exception | None = None) -> None:
        """Raises `UserError`.

        Raises:
            UserError: Always, with a suggestion for a wrong key.
        """
        line = " ".join(message.split())
        if valueless := re.search(r"argument (?:-\w/)?(--[\w.+]+)[^:]*: expected (?:one|at least one) argument", line):
            raise UserError(without_value(valueless[1]))
        known = list(self.named_actions())
        if stray := re.search(r"unrecognized arguments: ([^\s=]+)", line):
            raise UserError(no_such_key(stray[1], known) if stray[1].startswith("-") else no_key_before(stray[1]))
        if unknown := re.search(r"(?:Group '(\S+)' does not accept option|Option) '(\S+)'(?: is not accepted|$)", line):
            raise UserError(no_such_key(".".join(filter(None, unknown.groups())), known))
        inside = re.search(r"(?i:key|option|group) ['\"]?(?:--)?([\w.]+)", line)
        hint = did_you_mean(inside[1], known) if inside and inside[1] not in known else ""
        plain = _in_plain_words(line)[:400]
        raise UserError(f"{plain if plain.isprintable() else ascii(plain)}{hint}")

    def named_actions(self) -> dict[str, Action]:
        """Returns what stands behind every key, by each of its names without dashes."""
        return {
            name.removeprefix("--"): action
            for action in self._actions
            for name in (action.dest, *action.option_strings)
            if re.fullmatch(r"(?!.*\.help)(--)?\w[\w.]*", name)
        }

    def shown(self) -> dict[str, str]:
        """Returns the keys that the verb's help shows, with what it says of them."""
        actions, shown = {action.dest: action for action in self._actions}, {}
        defaults = self.get_defaults()
        for key in self.verb.keys if self.verb else ():
            about, default = (actions[key].help or "").replace("``", ""), defaults.get(key)
            default = ", ".join(default) if isinstance(default, (list, tuple)) else default
            shown[key] = about + (f" [{default}]" if default not in (None, False, "") else "")
        return shown

    def format_help(self, *args: object) -> str:
        """Returns a screen of the verb's own keys, or every key where there is no verb to choose them."""
        if self.verb is None:
            return super().format_help()
        return help_page(self.verb.name, self.verb.does, self.shown())


def _in_plain_words(line: str) -> str:
    """Returns jsonargparse's account of a wrong type as what was found and what was expected."""
    key = re.search(r'Parser key "([\w.]+)"', line)
    value = re.search(r"(?:Got value|Given value): (.*?)(?: - Expected|$| Given value)", line)
    expected = re.findall(r"Expected an? (?:<class '([\w.]+)'>|(?:typing\.)?(\S*\[.*?\]))", line)
    if not (key and value and expected):
        return line
    kinds = [(plain or special).replace("Literal", "one of ") for plain, special in expected]
    kinds = ["null" if kind == "NoneType" else kind for kind in dict.fromkeys(kinds)]
    return f"--{key[1]} is {value[1]}; expected {' or '.join(kinds)}"


def _takes_null(kind: Any) -> bool:
    return kind is Any or kind is object or type(None) in get_args(kind)


def _name_of(kind: Any) -> str:
    """Returns a type as people call it.

    >>> _name_of(int), _name_of(Literal["a", "b"]), _name_of(list[str])
    ('a whole number', 'one of a, b', 'list[str]')
    """
    if get_origin(kind) is Literal:
        return f"one of {', '.join(map(str, get_args(kind)))}"
    plain = {int: "a whole number", float: "a number", str: "text", bool: "true or false"}
    return plain.get(kind) or (kind.__name__ if isinstance(kind, type) and not get_args(kind) else str(kind))


def _not_finite(value: object) -> float | None:
    """Returns the first number in ``value`` that is NaN or infinite."""
    if isinstance(value, float):
        return None if math.isfinite(value) else value
    inside = value.values() if isinstance(value, dict) else value if isinstance(value, (list, tuple)) else ()
    return next((found for part in inside if (found := _not_finite(part)) is not None), None)
