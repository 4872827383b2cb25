"""One way to show that work is going on: a bar on a terminal, plain lines elsewhere, both with the time left."""

import contextlib
import os
import sys
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import ClassVar, Self

from filelock import BaseFileLock, Timeout
from tqdm import tqdm

_LINE_EVERY_S = 10.0
_BRIEF_S = 2.0


class TokenProgress:
    """Shows tokens done of a total, tokens per second and time left.

    Args:
        title: What is being done.
        total: Tokens expected; fewer is no error.
        initial: Tokens that were done before.
        is_shown: False on all processes but the first.
        line_every_s: Seconds between plain lines where the output is no terminal.
        is_brief: Whether it may be over before anybody has read a bar, which then waits for two seconds.
    """

    unit: ClassVar[str] = "tok"
    counted: ClassVar[str] = " tokens"
    per_second: ClassVar[str] = " tok/s"

    def __init__(
        self,
        title: str,
        total: int,
        initial: int = 0,
        is_shown: bool = True,
        line_every_s: float = _LINE_EVERY_S,
        is_brief: bool = False,
    ) -> None:
        self.title, self.total, self.done, self.is_shown = title, total, initial, is_shown
        self._initial, self._line_every_s, self._note = initial, line_every_s, ""
        self._started = self._last_line = time.monotonic()
        self._paused_at: float | None = None
        self._bar: tqdm | None = None
        if is_shown and _has_terminal():
            self._bar = tqdm(
                desc=title, total=total, initial=initial, unit=self.unit, unit_scale=True, file=sys.stdout,
                dynamic_ncols=True, leave=False, delay=_BRIEF_S if is_brief else 0,
            )  # fmt: skip

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def advance(self, amount: int, note: str = "") -> None:
        """Counts ``amount`` more and shows ``note`` (the loss, say) beside it."""
        self.done += amount
        self._note = note
        if self._bar is not None:
            self._bar.set_postfix_str(note, refresh=False)
            self._bar.update(amount)
        elif self.is_shown and time.monotonic() - self._last_line >= self._line_every_s:
            self._last_line = time.monotonic()
            self.write(self.line())

    def pause(self) -> None:
        """Stops the clock, for work that is not counted here."""
        self._paused_at = time.monotonic()

    def resume(self) -> None:
        """Starts the clock again."""
        if self._paused_at is not None:
            paused_s = time.monotonic() - self._paused_at
            self._started, self._paused_at = self._started + paused_s, None
            if self._bar is not None:
                # Its mean rate counts from the one, its recent rate from the other.
                self._bar.start_t += paused_s
                self._bar.last_print_t += paused_s

    @property
    def rate(self) -> float:
        """How much was done per second since this began, pauses left out."""
        elapsed = time.monotonic() - self._started
        return (self.done - self._initial) / elapsed if elapsed > 0 else 0.0

    def line(self) -> str:
        """Returns the state as one plain line."""
        rate = self.rate
        left_s = max(0, self.total - self.done) / rate if rate else 0.0
        share = f"{100 * self.done / self.total:.0f} %" if self.total else ""
        parts = [f"{self.title}: {short(self.done)} of {short(self.total)}{self.counted} {share}"]
        parts.append(f"{short(rate)}{self.per_second}")
        parts += [f"{duration(left_s)} left"] if self.done < self.total else []
        return ", ".join(parts + ([self._note] if self._note else []))

    def write(self, text: str) -> None:
        """Prints a line above the bar."""
        if self.is_shown:
            tqdm.write(text, file=sys.stdout)
            sys.stdout.flush()

    def close(self) -> None:
        """Takes the bar away."""
        if self._bar is not None:
            self._bar.close()
            self._bar = None


class ByteProgress(TokenProgress):
    """Shows bytes in the place of tokens."""

    unit = "B"
    counted = "B"
    per_second = "B/s"


class ItemProgress(TokenProgress):
    """Shows requests in the place of tokens."""

    unit = "it"
    counted = " requests"
    per_second = " a second"


@contextlib.contextmanager
def watched(progress: TokenProgress, done: Callable[[], int], every_s: float = 1.0) -> Iterator[None]:
    """Moves ``progress`` on to what ``done`` returns while the block lasts, for work that does not report by itself.

    Args:
        progress: Closed at the end.
        done: How much is done by now; called from another thread.
        every_s: Seconds between looks.
    """
    is_over = threading.Event()

    def watch() -> None:
        while not is_over.wait(every_s):
            progress.advance(max(0, done() - progress.done))

    thread = threading.Thread(target=watch, daemon=True, name=progress.title)
    with progress:
        thread.start()
        try:
            yield
        finally:
            is_over.set()
            thread.join()


@contextlib.contextmanager
def held(lock: BaseFileLock, other: str, is_shown: bool = True) -> Iterator[None]:
    """Holds a lock while the block lasts; says what ``other`` process has it for, where that takes a while."""
    try:
        lock.acquire(timeout=_LINE_EVERY_S)
    except Timeout:
        if is_shown:
            tqdm.write(f"another process {other}; waiting for it", file=sys.stdout)
        lock.acquire()
    try:
        yield
    finally:
        lock.release()


def bytes_of(folder: Path, pattern: str = "*") -> int:
    """Returns the bytes of the files in a folder that match, while others write there."""
    total = 0
    with contextlib.suppress(FileNotFoundError):  # a file is renamed when it is whole
        for file in folder.glob(pattern):
            total += file.stat().st_size
    return total


def _has_terminal() -> bool:
    """Tells whether stdout is a terminal with a size; some pseudo-terminals have none, and a bar would be empty."""
    return sys.stdout.isatty() and min(os.get_terminal_size(sys.stdout.fileno())) > 0


def short(number: float) -> str:
    """Returns a number with three digits and k, M or G.

    >>> short(13_000_000), short(999), short(18_400)
    ('13M', '999', '18.4k')
    """
    for unit in ("", "k", "M", "G"):
        if abs(number) < 1000 or unit == "G":
            return f"{number:.3g}{unit}"
        number /= 1000
    return ""


def duration(seconds: float) -> str:
    """Returns seconds as people write them.

    >>> duration(8), duration(200), duration(7260)
    ('8 s', '3 min 20 s', '2 h 01 min')
    """
    minutes, rest = divmod(round(seconds), 60)
    if minutes < 1:
        return f"{rest} s"
    return f"{minutes} min {rest:02d} s" if minutes < 60 else f"{minutes // 60} h {minutes % 60:02d} min"
