"""What a verb is. Nothing here, in keys.py, configurations.py and command_line.py imports more than yaml."""

import os
import sys
from dataclasses import dataclass, field


@dataclass(frozen=True)
class Verb:
    """A verb of the command line.

    Attributes:
        name: What it is called by.
        does: What it does, in a line or two.
        keys: The keys that its help shows, the most turned first.
        options: Those that it has beside the keys that all share: type, default and help.
        has_defaults: Whether keys that are not given are those of default.yaml; else there is no base, either.
        words: The option, a list, that words without a key belong to; None where the verb takes none.
    """

    name: str
    does: str
    keys: tuple[str, ...]
    options: dict[str, tuple[object, object, str]] = field(default_factory=dict)
    has_defaults: bool = True
    words: str | None = None


def say(text: str) -> None:
    """Prints on the first process only, before there is a trainer to ask; to stderr where stdout is for JSON."""
    ranks = (os.environ.get(name, "0") for name in ("LOCAL_RANK", "SLURM_PROCID", "RANK"))
    if all(rank == "0" for rank in ranks):
        print(text, flush=True, file=sys.stderr if "--json" in sys.argv else sys.stdout)
