"""The one exception that reaches a user as a line instead of a traceback."""

import difflib
import signal
from collections.abc import Iterable

TRY_AGAIN = 75
"""Exit code of a run that ended before its scheduler's limit and goes on when it is started again (sysexits.h)."""


class Interrupted(BaseException):
    """A signal ended the run, after it was saved.

    Args:
        number: Of the signal; the exit code is 128 more, or `TRY_AGAIN` for the one by which a scheduler announces that
            it will end the job.
        line: What to tell the user.
    """

    def __init__(self, number: int, line: str) -> None:
        super().__init__(line)
        self.code = TRY_AGAIN if number == signal.SIGUSR1 else 128 + number


class UserError(Exception):
    """Input that cannot be used: the message says what was found, what was expected and what to do.

    The command line prints it as one line and exits with code 2. Whatever was found is in it as it can be printed.
    """

    def __init__(self, line: str = "") -> None:
        super().__init__(printable(line))


def printable(text: str) -> str:
    r"""Returns text on one line, with what no terminal shows as itself spelled out.

    >>> printable("a\tb\nc\x00d")
    'a b c\\x00d'
    """
    one_line = " ".join(text.split("\n")).replace("\t", " ")
    return "".join(c if c.isprintable() else c.encode("unicode_escape", "surrogatepass").decode() for c in one_line)


def did_you_mean(word: str, known: Iterable[str]) -> str:
    """Returns ``"; did you mean 'x'?"`` for the nearest known word, or an empty string.

    >>> did_you_mean("token_budgett", ["token_budget", "seed"])
    "; did you mean 'token_budget'?"
    >>> did_you_mean("zzz", ["token_budget"])
    ''
    """
    close = difflib.get_close_matches(word, list(known), n=1, cutoff=0.6)
    return f"; did you mean '{close[0]}'?" if close else ""
