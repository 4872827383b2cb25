"""Configurations by name, and what the program says before there is a Trainer."""

import os
import sys
from pathlib import Path

from lightning_app.errors import UserError, did_you_mean

CONFIGS = Path(__file__).resolve().parent.parent.parent / "configs"


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


def _relative(path: Path) -> str:
    return os.path.relpath(path) if path.is_relative_to(Path.cwd()) else str(path)


def say(text: str) -> None:
    """Prints on the first process only, before there is a trainer to ask; to stderr where stdout is for JSON."""
    ranks = (os.environ.get(name, "0") for name in ("LOCAL_RANK", "SLURM_PROCID", "RANK"))
    if all(rank == "0" for rank in ranks):
        print(text, flush=True, file=sys.stderr if "--json" in sys.argv else sys.stdout)
