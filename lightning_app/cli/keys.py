"""The keys of the command line, known before torch is imported: a help page and a typo cost no more than reading them.

``keys.json`` beside this file holds them, as `key_table` finds them in the parser; ``make keys`` writes it anew.
"""

import json
import re
import textwrap
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from functools import cache
from importlib import metadata
from pathlib import Path

from lightning_app.errors import UserError, did_you_mean
from lightning_app.files import JSON

TABLE = Path(__file__).with_suffix(".json")
HELP_ALL = "--help_all"
HELP = ("-h", "--help")
_SWITCHED = {"true": "--", "false": "--no_"}  # what a flag may be set to, by what the parser knows it as
_PARTS_OF_A_CLASS = ("class_path", "init_args", "dict_kwargs")


@dataclass(frozen=True)
class Keys:
    """The keys of a verb.

    Attributes:
        verb: The verb's name.
        does: What it does.
        shown: The keys that its help shows, with what the help says of them.
        kinds: Every key by its dotted name: ``group`` of keys, ``value``, ``open`` (a value with names of its own in
            it, such as a mapping or a class), ``flag`` (takes no value) or ``optional`` (may take one).
        words: The key that words without one belong to, or None.
    """

    verb: str
    does: str
    shown: Mapping[str, str]
    kinds: Mapping[str, str]
    words: str | None = None

    @classmethod
    def of(cls, verb: str) -> "Keys":
        """Returns the keys of a verb."""
        own = _table()["verbs"][verb]
        return cls(verb, own["does"], own["shown"], {**_table()["keys"], **own["options"]}, own.get("words"))

    @property
    def takes_source(self) -> bool:
        """Whether a word at the beginning is what the verb works on, as if ``--source`` stood before it."""
        return "source" in self.kinds and self.words is None

    def kind(self, key: str) -> str | None:
        """Returns the kind of a key, ``open`` for what stands inside an open one, or None where there is no such key.

        >>> keys = Keys("fit", "", {}, {"model": "group", "model.lr": "value", "data.files": "open"})
        >>> keys.kind("model.lr"), keys.kind("data.files.cy"), keys.kind("model.lr.x"), keys.kind("model.lrr")
        ('value', 'open', None, None)
        """
        parts = key.split(".")
        if key in self.kinds or not set(parts).isdisjoint(_PARTS_OF_A_CLASS):
            return self.kinds.get(key, "open")
        outer = [".".join(parts[:length]) for length in range(1, len(parts))]
        is_inside = any(self.kinds.get(name) == "open" for name in outer)
        return "open" if is_inside or (parts[0] == "trainer" and len(parts) > 1 and _is_other_trainer()) else None

    def tidy(self, arguments: list[str]) -> list[str]:
        """Returns the arguments with their words behind the key that these belong to, and --push-to as --push_to.

        A flag may be followed by what it is set to, as other keys are.

        >>> keys = Keys("apply", "", {}, {"base": "value", "remove": "flag", "push_to": "value"}, "deltas")
        >>> keys.tidy(["--remove", "a", "b", "--base", "c", "--push-to", "d-e"])
        ['--remove', '--base', 'c', '--push_to', 'd-e', '--deltas=["a", "b"]']
        >>> keys.tidy(["--remove", "false"]), keys.tidy(["--remove=true"])
        (['--no_remove'], ['--remove'])
        """
        words: list[str] = []
        others: list[str] = []
        may_be_value = is_after_flag = False
        for argument in arguments:
            if is_after_flag and argument in _SWITCHED:
                others[-1], is_after_flag = others[-1].replace("--", _SWITCHED[argument], 1), False
                continue
            is_key = argument.startswith("-") and argument != "-"  # which is a value: stdin
            argument = self._with_underscores(argument) if is_key else argument
            if self.words is None or is_key or may_be_value:
                others.append(argument)
            else:
                words.append(argument)
            key, equals, value = argument.removeprefix("--").partition("=")
            if value in _SWITCHED and self.kind(key) == "flag":
                others[-1] = f"{_SWITCHED[value]}{key}"
            is_after_flag = is_key and not equals and self.kind(key) == "flag"
            may_be_value = is_key and not equals and not is_after_flag
        return [*others, f"--{self.words}={json.dumps(words)}"] if words else others

    def _with_underscores(self, argument: str) -> str:
        name, equals, value = argument.removeprefix("--").partition("=")
        plain = name.replace("-", "_")
        is_meant = self.kind(name) is None and self.kind(plain) not in (None, "open")
        return f"--{plain}{equals}{value}" if argument.startswith("--") and is_meant else argument

    def require(self, arguments: Iterable[str]) -> None:
        """Raises `UserError` where an argument is no key of this verb, a key lacks its value, or a word its key.

        What cannot be told without the types of the keys is left to the parser.
        """
        unfinished, may_be_value = "", False
        for argument in arguments:
            name, equals, value = argument.partition("=")
            if argument == "--":
                return
            if name.startswith("--") and " " not in name:
                if unfinished:
                    raise UserError(without_value(unfinished))
                key = name.removeprefix("--").removesuffix("+")
                kind = self.kind(key)
                if kind is None:
                    raise UserError(no_such_key(name, self.kinds))
                if equals and not value:
                    raise UserError(without_value(name))  # --run_dir=$RUNS, and no such variable
                may_be_value = not equals and kind != "flag"
                unfinished = name if may_be_value and kind != "optional" and key in self.kinds else ""
            elif not argument and unfinished:
                raise UserError(without_value(unfinished))
            elif argument.startswith("-") or may_be_value:
                unfinished, may_be_value = "", argument.startswith("-")
            else:
                raise UserError(no_key_before(argument))
        if unfinished:
            raise UserError(without_value(unfinished))


def overview() -> str:
    """Returns what the program does and its verbs."""
    lines = ["Neuroglot: teach a language model a language by training only the neurons that speak it.", ""]
    lines += ["usage: python main.py VERB [--config FILE]... [--KEY VALUE]...", ""]
    for name, own in _table()["verbs"].items():
        lines.append(f"  {name:<12}{re.split(r'[.:;](?= |$)', own['does'])[0]}")
    lines += ["", "python main.py VERB --help shows the keys of a verb; --debug shows where an unforeseen error arose."]
    return "\n".join(lines)


def help_page(verb: str, does: str, shown: Mapping[str, str]) -> str:
    """Returns a screen of a verb's own keys."""
    lines = [f"usage: python main.py {verb} [--config FILE]... [--KEY VALUE]...", ""]
    lines += [*textwrap.wrap(does, 118), ""]
    for key, about in shown.items():
        wrapped = textwrap.wrap(about, 84, break_on_hyphens=False) or [""]
        lines.append(f"  --{key:<32}{wrapped[0]}")
        lines += [f"{'':36}{more}" for more in wrapped[1:]]
    lines += ["", f"Every other key: python main.py {verb} {HELP_ALL}, or configs/default.yaml; what a"]
    lines += ["command would use: --print_config. A name like cy.yaml is looked up here, then in configs/.", ""]
    return "\n".join(lines)


def no_such_key(key: str, known: Iterable[str]) -> str:
    """Returns the line about an unknown key, ``--model.lrr`` or ``model.lrr``, with what was probably meant.

    >>> no_such_key("--lr", ["language", "model.lr"])
    "there is no key --lr; did you mean 'model.lr'?"
    """
    name, known = key.removeprefix("--"), list(known)
    inside = [each for each in known if each.endswith(f".{name}")]
    return f"there is no key {key}{did_you_mean(inside[0] if inside else name, known)}"


def no_key_before(word: str) -> str:
    """Returns the line about a word that is no key and no key's value."""
    return f"'{word[:100]}' stands alone; expected a key in front of it: --KEY {word[:100]}"


def without_value(key: str) -> str:
    """Returns the line about a key without its value."""
    return f"{key} is without a value; expected {key} VALUE"


@cache
def _is_other_trainer() -> bool:
    """Tells whether another Lightning is installed than the table was made with: its Trainer may have other keys."""
    return metadata.version("lightning") != _table()["lightning"]


@cache
def _table() -> JSON:
    return json.loads(TABLE.read_text(encoding="utf-8"))
