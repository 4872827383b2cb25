"""Arguments before and while they are parsed: configurations by name, the newest run, errors in plain words."""

import os
import re
import sys
from pathlib import Path

from lightning.pytorch.cli import LightningArgumentParser

from lightning_app.errors import UserError, did_you_mean
from lightning_app.run import CONFIG, best_checkpoint, newest_run

CONFIGS = Path(__file__).resolve().parent.parent / "configs"
MEASURING = ("validate", "test", "predict")


class Parser(LightningArgumentParser):
    """Reports a wrong key or type as one line with a suggestion."""

    def error(self, message: str, ex: Exception | None = None) -> None:
        """Raises `UserError`.

        Raises:
            UserError: Always.
        """
        line = " ".join(message.split())
        known = self._known_keys()
        unknown = re.search(r"(?i:key|option|unrecognized arguments:|group) ['\"]?(?:--)?([\w.]+)", line)
        hint = did_you_mean(unknown[1], known) if unknown and unknown[1] not in known else ""
        raise UserError(f"{_in_plain_words(line)[:400]}{hint}")

    def _known_keys(self) -> list[str]:
        known = [action.dest for action in self._actions]
        for parser in getattr(self._subcommands_action, "_name_parser_map", {}).values():
            known += [action.dest for action in parser._actions]
        return known


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


def resolve_configs(arguments: list[str]) -> list[str]:
    """Returns the arguments with every ``--config NAME`` that is not in the working directory taken from configs/.

    Raises:
        UserError: There is no such file in either place.
    """
    resolved = list(arguments)
    for index, argument in enumerate(arguments):
        if argument in ("--config", "-c") and index + 1 < len(arguments):
            resolved[index + 1] = _resolve_config(arguments[index + 1])
        elif argument.startswith("--config="):
            resolved[index] = f"--config={_resolve_config(argument.removeprefix('--config='))}"
    return resolved


def _resolve_config(name: str) -> str:
    if Path(name).is_file() or name.lstrip().startswith("{"):
        return name
    for candidate in (CONFIGS / name, CONFIGS / f"{name}.yaml"):
        if candidate.is_file():
            say(f"configuration {_relative(candidate)}")
            return str(candidate)
    known = sorted(str(path.relative_to(CONFIGS)) for path in CONFIGS.rglob("*.yaml"))
    raise UserError(
        f"there is no configuration {name}, neither here nor in configs/{did_you_mean(name, known)} "
        f"configs/ has {' '.join(known)}"
    )


def add_newest_run(arguments: list[str]) -> list[str]:
    """Returns the arguments of a measuring verb with the newest run filled in where they name no model at all."""
    verb = next((argument for argument in arguments if not argument.startswith("-")), None)
    naming = ("--config", "-c", "--model", "--language", "--ckpt_path", "--help", "-h", "--print_config")
    if verb not in MEASURING or any(argument.split("=")[0].split(".")[0] in naming for argument in arguments):
        return arguments
    root = Path("runs")
    for index, argument in enumerate(arguments):
        if argument.startswith("--run_dir"):
            root = Path(argument.partition("=")[2] or arguments[index + 1])
    folder = newest_run(root)
    checkpoint = best_checkpoint(folder)
    say(f"newest run {folder}, checkpoint {checkpoint.name if checkpoint else ''}")
    at = arguments.index(verb) + 1
    found = ["--config", str(folder / CONFIG), "--ckpt_path", str(checkpoint)]
    return [*arguments[:at], *found, *arguments[at:]]


def _relative(path: Path) -> str:
    return os.path.relpath(path) if path.is_relative_to(Path.cwd()) else str(path)


def say(text: str) -> None:
    """Prints on the first process only, before there is a trainer to ask; to stderr where stdout is for JSON."""
    ranks = (os.environ.get(name, "0") for name in ("LOCAL_RANK", "SLURM_PROCID", "RANK"))
    if all(rank == "0" for rank in ranks):
        print(text, flush=True, file=sys.stderr if "--json" in sys.argv else sys.stdout)
