"""What ``generate --tally`` does: judged sheets read back and counted."""

import sys
from pathlib import Path

from jsonargparse import Namespace

from lightning_app.cli.verb import say
from lightning_app.errors import UserError
from lightning_app.evaluation.judged_sheets import Key, read_judged
from lightning_app.reports.sheet import format_tally


def tally(settings: Namespace, given: set[str]) -> None:
    """Prints wins, ties and losses of every judge.

    Args:
        settings: The keys.
        given: Which options of the verb are.

    Raises:
        UserError: A sheet cannot be read, or has rows that cannot be counted; these were printed, a line each.
    """
    if others := sorted(given - {"tally", "key"}):
        raise UserError(f"--tally counts judged sheets and generates nothing; leave --{', --'.join(others)} out")
    paths = [Path(word.strip()) for word in (settings.tally or "").split(",") if word.strip()]
    if not paths:
        raise UserError("--tally names no sheet; expected judged sheets, comma between: --tally A.csv,B.csv")
    key = Key.load(Path(settings.key) if settings.key else paths[0].parent / "key.json")
    judges, problems = {}, []
    are_names = len({path.stem for path in paths}) == len(paths)
    for path in dict.fromkeys(paths):
        judges[path.stem if are_names else str(path)], found = read_judged(path, key)
        problems += found
    for problem in problems:
        print(problem, file=sys.stderr, flush=True)
    if problems:
        some = "a row" if len(problems) == 1 else f"{len(problems)} rows"
        raise UserError(f"{some} cannot be counted; mend what is said above, and run the same command again")
    say(format_tally(judges, len(key.adapted), key.same))
