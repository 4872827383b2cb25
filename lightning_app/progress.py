"""One way to show that tokens are being worked through: a bar on a terminal, plain lines elsewhere."""

import os
import sys
import time
from typing import Self

from tqdm import tqdm

_LINE_EVERY_S = 15.0


class TokenProgress:
    """Shows tokens done of a total, tokens per second and time left.

    Args:
        title: What is being done.
        total: Tokens expected; fewer is no error.
        initial: Tokens that were done before.
        is_shown: False on all processes but the first.
        line_every_s: Seconds between plain lines where the output is no terminal.
    """

    def __init__(
        self, title: str, total: int, initial: int = 0, is_shown: bool = True, line_every_s: float = _LINE_EVERY_S
    ) -> None:
        self.title, self.total, self.done, self.is_shown = title, total, initial, is_shown
        self._initial, self._line_every_s, self._note = initial, line_every_s, ""
        self._started = self._last_line = time.monotonic()
        self._paused_at: float | None = None
        self._bar: tqdm | None = None
        if is_shown and _has_terminal():
            self._bar = tqdm(
                desc=title, total=total, initial=initial, unit="tok", unit_scale=True, file=sys.stdout,
                dynamic_ncols=True, leave=False,
            )  # fmt: skip

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def advance(self, tokens: int, note: str = "") -> None:
        """Counts ``tokens`` more and shows ``note`` (the loss, say) beside them."""
        self.done += tokens
        self._note = note
        if self._bar is not None:
            self._bar.set_postfix_str(note, refresh=False)
            self._bar.update(tokens)
        elif self.is_shown and time.monotonic() - self._last_line >= self._line_every_s:
            self._last_line = time.monotonic()
            self.write(self.line())

    def pause(self) -> None:
        """Stops the clock, for work that is not counted in tokens."""
        self._paused_at = time.monotonic()

    def resume(self) -> None:
        """Starts the clock again."""
        if self._paused_at is not None:
            paused_s = time.monotonic() - self._paused_at
            self._started, self._paused_at = self._started + paused_s, None
            if self._bar is not None:
                self._bar.start_t += paused_s

    @property
    def tokens_per_second(self) -> float:
        elapsed = time.monotonic() - self._started
        return (self.done - self._initial) / elapsed if elapsed > 0 else 0.0

    def line(self) -> str:
        """Returns the state as one plain line."""
        rate = self.tokens_per_second
        left_s = max(0, self.total - self.done) / rate if rate else 0.0
        share = f"{100 * self.done / self.total:.0f} %" if self.total else ""
        parts = [f"{self.title}: {short(self.done)} of {short(self.total)} tokens {share}", f"{short(rate)} tok/s"]
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


def _has_terminal() -> bool:
    """Tells whether stdout is a terminal with a width; some pseudo-terminals have none, and a bar would be empty."""
    return sys.stdout.isatty() and os.get_terminal_size(sys.stdout.fileno()).columns > 0


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
