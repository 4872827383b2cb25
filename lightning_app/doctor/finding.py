"""What a look at the machine, the hub or a configuration has found."""

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Literal

State = Literal["ok", "warning", "wrong"]


@dataclass(frozen=True)
class Finding:
    """One line of the report.

    Attributes:
        about: What was looked at, in a word or two.
        state: ``wrong`` is what would stop ``fit``, or let it go wrong.
        said: What was found; of what is wrong it may say how to mend it, too.
        mend: What to do, a command or a key where there is one; empty where ``said`` says it.
    """

    about: str
    state: State
    said: str
    mend: str = ""

    @property
    def line(self) -> str:
        """The finding as people read it."""
        return f"{self.state:<9}{self.about:<15}{'; '.join(filter(None, (self.said, self.mend)))}"


Findings = Iterator[Finding]


def ok(about: str, said: str) -> Finding:
    """Returns that something is in order."""
    return Finding(about, "ok", said)


def warning(about: str, said: str, mend: str = "") -> Finding:
    """Returns that something could be better."""
    return Finding(about, "warning", said, mend)


def wrong(about: str, said: str, mend: str = "") -> Finding:
    """Returns that something would stop a run."""
    return Finding(about, "wrong", said, mend)
