"""Verbs, a help that fits a screen, and errors in plain words."""

import re
import textwrap
from dataclasses import dataclass, field

from lightning.pytorch.cli import LightningArgumentParser

from lightning_app.errors import UserError, did_you_mean

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

    def error(self, message: str, ex: Exception | None = None) -> None:
        """Raises `UserError`.

        Raises:
            UserError: Always, with a suggestion for a wrong key.
        """
        line = " ".join(message.split())
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
