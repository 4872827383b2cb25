"""The keys that every verb shares, a help that fits a screen, and errors in plain words."""

import re
import textwrap
from dataclasses import dataclass

from jsonargparse import ActionConfigFile
from lightning.pytorch.cli import LightningArgumentParser

from datamodules.glotcc import GlotCCDataModule
from lightning_app.cli.configs import CONFIGS
from lightning_app.errors import UserError, did_you_mean
from lightning_app.methods.registry import METHODS
from lightning_app.profiling.settings import ProfilingSettings
from lightning_app.training.module import SparseSubnetModule
from lightning_app.training.trainer import NeuroglotTrainer

HELP_ALL = "--help_all"


@dataclass(frozen=True)
class Verb:
    """A verb of the command line.

    Attributes:
        name: What it is called by.
        does: What it does, in a line or two.
        keys: The keys that its help shows, the most turned first.
    """

    name: str
    does: str
    keys: tuple[str, ...]


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


def make_parser(verb: Verb, shows_all: bool) -> Parser:
    """Returns the parser of a verb with the keys that all share; a verb adds its own.

    Args:
        verb: Whose keys the help shows.
        shows_all: Whether the help shows every key instead.
    """
    parser = Parser(
        prog=f"python main.py {verb.name}", description=verb.does, default_config_files=[str(CONFIGS / "default.yaml")]
    )
    parser.verb = None if shows_all else verb
    parser.add_argument("-c", "--config", action=ActionConfigFile, help="YAML file; several are merged in order.")
    parser.add_argument("--language", type=str | None, default=None, help="Target language: cy, Welsh, cym-Latn.")
    parser.add_argument("--seed_everything", type=bool | int, default=0, help="Seed of the run.")
    parser.add_argument("--run_dir", type=str, default="runs", help="Folder of all runs.")
    parser.add_argument("--name", type=str | None, default=None, help="Name of the run folder.")
    parser.add_lightning_class_args(NeuroglotTrainer, "trainer")
    added = parser.add_lightning_class_args(SparseSubnetModule, "model")
    for method in METHODS.values():
        there = {key.removeprefix("model.") for key in added}
        added += parser.add_class_arguments(method, "model", as_group=False, instantiate=False, skip=there)
    next(a for a in parser._actions if a.dest == "model.method").help = f"What is trained: {', '.join(METHODS)}."
    parser.add_lightning_class_args(GlotCCDataModule, "data")
    parser.add_class_arguments(ProfilingSettings, "profiling")
    parser.link_arguments("language", "model.language")
    parser.link_arguments("language", "data.language")
    parser.link_arguments("model.base", "data.base")
    parser.link_arguments("model.revision", "data.base_revision")
    parser.link_arguments("seed_everything", "data.seed")
    return parser


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
