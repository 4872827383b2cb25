"""Arguments before and while they are parsed: configurations by name, a help that fits a screen, plain errors."""

import math
import os
import re
import sys
import textwrap
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from jsonargparse import Namespace
from lightning.pytorch.cli import LightningArgumentParser

from lightning_app.cli.configurations import check_file, check_text
from lightning_app.errors import UserError, did_you_mean

CONFIGS = Path(__file__).resolve().parent.parent.parent / "configs"
HELP_ALL = "--help_all"


@dataclass(frozen=True)
class Verb:
    """A verb of the command line.

    Attributes:
        name: What it is called by.
        does: What it does, in a line or two.
        keys: The keys that its help shows, the most turned first.
        options: Those that it has beside the keys that all share: type, default and help.
    """

    name: str
    does: str
    keys: tuple[str, ...]
    options: dict[str, tuple[object, object, str]] = field(default_factory=dict)


class Parser(LightningArgumentParser):
    """Accepts every key, so that one YAML serves every verb; shows those of its verb; reports errors in one line."""

    verb: Verb | None = None

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **{"allow_abbrev": False, **kwargs})

    def parse_args(self, *args: Any, **kwargs: Any) -> Namespace:
        """Returns the settings.

        Raises:
            UserError: A key is unknown or has a value of another type, or a number is NaN or infinite.
        """
        settings = super().parse_args(*args, **kwargs)
        for key, value in settings.items():
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
            raise UserError(f"{valueless[1]} is without a value; expected {valueless[1]} VALUE")
        known = [action.dest for action in self._actions]
        unknown = re.search(r"(?i:key|option|unrecognized arguments:|group) ['\"]?(?:--)?([\w.]+)", line)
        hint = did_you_mean(unknown[1], known) if unknown and unknown[1] not in known else ""
        raise UserError(f"{_in_plain_words(line)[:400]}{hint}")

    def format_help(self, *args: object) -> str:
        """Returns a screen of the verb's own keys, or every key where there is no verb to choose them."""
        if self.verb is None:
            return super().format_help()
        actions = {action.dest: action for action in self._actions}
        lines = [f"usage: python main.py {self.verb.name} [--config FILE]... [--KEY VALUE]...", ""]
        lines += [*textwrap.wrap(self.verb.does, 118), ""]
        defaults = self.get_defaults()
        for key in self.verb.keys:
            about, default = (actions[key].help or "").replace("``", ""), defaults.get(key)
            default = ", ".join(default) if isinstance(default, (list, tuple)) else default
            about += f" [{default}]" if default not in (None, False) else ""
            wrapped = textwrap.wrap(about, 84, break_on_hyphens=False) or [""]
            lines.append(f"  --{key:<32}{wrapped[0]}")
            lines += [f"{'':36}{more}" for more in wrapped[1:]]
        lines += ["", f"Every other key: python main.py {self.verb.name} {HELP_ALL}, or configs/default.yaml; what a"]
        lines += ["command would use: --print_config. A name like cy.yaml is looked up here, then in configs/.", ""]
        return "\n".join(lines)


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


def _not_finite(value: object) -> float | None:
    """Returns the first number in ``value`` that is NaN or infinite."""
    if isinstance(value, float):
        return None if math.isfinite(value) else value
    inside = value.values() if isinstance(value, dict) else value if isinstance(value, (list, tuple)) else ()
    return next((found for part in inside if (found := _not_finite(part)) is not None), None)


def resolve_configs(arguments: list[str]) -> list[str]:
    """Returns the arguments with every ``--config NAME`` that is not in the working directory taken from configs/.

    Raises:
        UserError: There is no such file in either place, or it is no configuration.
    """
    resolved = list(arguments)
    for index, argument in enumerate(arguments):
        if argument in ("--config", "-c"):
            if index + 1 == len(arguments) or arguments[index + 1].startswith("--"):
                raise UserError("--config is without a value; expected --config FILE")
            resolved[index + 1] = _resolve_config(arguments[index + 1])
        elif argument.startswith("--config="):
            resolved[index] = f"--config={_resolve_config(argument.removeprefix('--config='))}"
    return resolved


def _resolve_config(name: str) -> str:
    if name.lstrip().startswith("{"):
        check_text(name, "--config", None)
        return name
    found = _find_config(name)
    check_file(Path(found))
    return found


def _find_config(name: str) -> str:
    if os.path.isdir(name):
        raise UserError(f"--config {name} is a folder; expected a file such as {name.rstrip('/')}/config.yaml")
    if os.path.isfile(name):
        return name
    for candidate in (CONFIGS / name, CONFIGS / f"{name}.yaml"):
        if os.path.isfile(candidate):
            say(f"configuration {_relative(candidate)}")
            return str(candidate)
    known = sorted(str(path.relative_to(CONFIGS)) for path in CONFIGS.rglob("*.yaml"))
    raise UserError(
        f"there is no configuration {name}, neither here nor in configs/{did_you_mean(name, known) or ';'} "
        f"configs/ has {' '.join(known)}"
    )


def _relative(path: Path) -> str:
    return os.path.relpath(path) if path.is_relative_to(Path.cwd()) else str(path)


def say(text: str) -> None:
    """Prints on the first process only, before there is a trainer to ask; to stderr where stdout is for JSON."""
    ranks = (os.environ.get(name, "0") for name in ("LOCAL_RANK", "SLURM_PROCID", "RANK"))
    if all(rank == "0" for rank in ranks):
        print(text, flush=True, file=sys.stderr if "--json" in sys.argv else sys.stdout)
