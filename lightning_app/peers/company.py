"""This process among the others of its run: it ends with them, and says why once."""

import contextlib
import ctypes
import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import asdict

from lightning_app.errors import Interrupted
from lightning_app.peers.connections import Broadcast, Connections, End, connect
from lightning_app.peers.launching import end_with_launcher, rank_by_launcher

_GRACE_S = 5.0  # for the main thread to come to an end by itself, and for the others to hear of it
_WORD_S = 3.0  # for the reason to arrive after a collective broke
_CTRL_C_S = 2.0  # for this process's own Ctrl-C: a terminal sends it to all
_EXIT_S = 0.5  # for an exit that is under way to get here
_LOOK_S = 0.2

Say = Callable[[int, str], None]
"""Tells people why the process of a rank ended."""


class PeerEnded(BaseException):
    """Another process of the run has ended before its time; raised in the main thread, wherever that is."""


class _Company:
    """What this process knows of the others."""

    def __init__(self) -> None:
        self.connections: Connections | None = None
        self.children: list[subprocess.Popen[bytes]] = []
        self.end: End | None = None  # of the process that was the first to end
        self.has_ended = threading.Event()
        self.say: Say = lambda rank, line: None
        self.cleanups: list[Callable[[], None]] = []
        self._lock, self._finishes = threading.RLock(), threading.Lock()
        self._main: int | None = None  # the main thread, while it may be stopped
        self._is_leaving, self.is_exiting = threading.Event(), threading.Event()

    @property
    def rank(self) -> int:
        return self.connections.rank if self.connections is not None else 0

    def begin(self) -> None:
        self._main = threading.get_ident()
        self._is_leaving.clear()
        self.is_exiting.clear()

    def leave(self) -> None:
        """From here on the main thread ends by itself: nothing that is learned stops it."""
        while self._main is not None:
            with contextlib.suppress(PeerEnded), self._lock:
                _raise_in(self._main, None)  # takes back what is still to be raised
                self._main = None
        self._is_leaving.set()

    def learn(self, end: End) -> None:
        """Takes in how a process ended, passes it on, and stops the main thread of this one."""
        if self.children and end.teller != end.rank and self.is_exiting.wait(_EXIT_S):
            return  # this process ends, and has ended its children itself
        with self._lock:
            is_first, self.end = self.end is None, self.end or end
        self.has_ended.set()
        if is_first:
            self.pass_on()
            threading.Thread(target=self._stop_main, args=(end,), daemon=True).start()

    def pass_on(self) -> None:
        """Tells the others how the first of all ended: the first process knows them all, and they know it."""
        if self.connections is not None and self.end is not None and self.rank in (0, self.end.rank):
            self.connections.send(asdict(self.end))

    def _stop_main(self, end: End) -> None:
        if end.code == 128 + signal.SIGINT and self._is_leaving.wait(_CTRL_C_S):
            return
        with self._lock:
            if self._main is not None:
                _raise_in(self._main, ctypes.py_object(PeerEnded))
        if not self._is_leaving.wait(_GRACE_S):
            # It waits for what will never come: a collective, or the others at the start.
            for clean in reversed(self.cleanups):
                with contextlib.suppress(OSError):
                    clean()
            self.finish(end)

    def finish(self, end: End) -> None:
        """Says why, unless the first process does, and ends this process together with the others."""
        if not self._finishes.acquire(blocking=False):
            time.sleep(10 * _GRACE_S)  # another thread is at it
        links = self.connections
        if links is None or self.rank == 0:
            self._tell(end)
            if links is not None:
                links.everybody_has_heard.wait(_GRACE_S + 1)
        else:
            links.send({"heard": True})
            is_told = links.first_has_told.wait(0 if links.first_is_gone.is_set() else _GRACE_S)
            if not is_told:
                self._tell(end)
            # Launchers end all with the first that goes, by a signal: it is the others' turn before theirs.
            links.first_is_gone.wait(2 * _GRACE_S if is_told else 0)
        for child in self.children:
            if child.poll() is None:
                child.kill()
        with contextlib.suppress(OSError, ValueError):
            sys.stdout.flush()
            sys.stderr.flush()
        os._exit(end.code)

    def _tell(self, end: End) -> None:
        if end.line:
            self.say(end.teller, end.line)

    def how_ended(self, rank: int) -> End:
        """Returns what can be known of a process that went without a word."""
        number = rank - self.rank - 1
        if 0 <= number < len(self.children):
            with contextlib.suppress(subprocess.TimeoutExpired):
                return _end_of_child(rank, self.children[number].wait(timeout=2.0))
        why = "it was killed, perhaps for want of memory, or its machine is gone; the same command goes on"
        return End(rank, f"process {rank} ended without a word: {why}", 1, self.rank)


_company = _Company()


def _raise_in(thread: int, error: "ctypes.py_object[type[BaseException]] | None") -> None:
    ctypes.pythonapi.PyThreadState_SetAsyncExc(ctypes.c_ulong(thread), error)


@contextlib.contextmanager
def company(say: Say) -> Iterator[None]:
    """Ends this process with the others of its run while the block lasts, and waits for them where it ends well.

    Args:
        say: How people are told.

    Raises:
        PeerEnded: Another process has ended before its time; `conclude` knows why.
    """
    end_with_launcher()
    _company.say = say
    _company.begin()
    try:
        yield
        _wait_for_children()
    except (SystemExit, KeyboardInterrupt) as stop:
        _company.is_exiting.set()
        if not isinstance(stop.__cause__, Interrupted) and has_others():
            conclude("", stop.code if isinstance(stop, SystemExit) and isinstance(stop.code, int) else 130)
        _part()  # a signal that all have answered together
        raise
    except BaseException:
        _company.leave()
        if has_others():
            # Launchers send it to all where one has ended: here the reason is still to be said.
            signal.signal(signal.SIGTERM, signal.SIG_IGN)
        raise
    _part()


def _part() -> None:
    """Lets this process go, as it should."""
    _company.leave()
    if _company.connections is not None:
        _company.connections.send({"done": True})


def conclude(line: str, code: int) -> int:
    """Says why this process ends before its time, and returns its exit code.

    Where there are others it does not return: they are told, and all end together, with the line and the code of the
    one that was the first to end.

    Args:
        line: Why; empty where nobody is to be told, or another process has ended this one.
        code: Exit code.
    """
    own = End(_company.rank, line, code, _company.rank)
    _company.leave()
    if not has_others():
        if line:
            _company.say(rank_by_launcher(), line)
        return code
    if _company.end is None:
        _company.end = own
        _company.pass_on()
    _company.finish(_company.end)
    return code


def has_others() -> bool:
    """Tells whether this process is one of several that have found each other, or has launched some."""
    return _company.connections is not None or bool(_company.children)


def is_of_another(error: BaseException) -> bool:
    """Tells whether the end of another process brought this one an error; waits a moment to hear of it."""
    is_broken = isinstance(error, RuntimeError) and has_others() and _company.has_ended.wait(_WORD_S)
    return is_broken or isinstance(error, PeerEnded)


@contextlib.contextmanager
def with_cleanup(clean: Callable[[], None]) -> Iterator[None]:
    """Calls ``clean`` after the block, also where another process ends this one in the middle of it."""
    _company.cleanups.append(clean)
    try:
        yield
    finally:
        _company.cleanups.remove(clean)
        clean()


def join(rank: int, count: int, broadcast: Broadcast[tuple[int, str] | None]) -> None:
    """Connects the processes of a run, once. Collective, and the first thing that they do together.

    Args:
        rank: Of this process.
        count: Of all.
        broadcast: Returns the first process's value on all.
    """
    if _company.connections is not None:
        return
    try:
        connections = connect(rank, count, broadcast, os.environ.get("MASTER_ADDR", "127.0.0.1"), _company)
    except OSError as error:
        _warn(f"process {rank}", error)
        return
    if rank == 0 and connections.count < count - 1:
        _warn(f"{count - 1 - connections.count} of the processes", "they cannot be reached")
    _company.connections = connections
    connections.start()


def _warn(which: str, why: object) -> None:
    sys.stderr.write(f"warning: {which} cannot be watched ({why}): where one dies, others may wait for half an hour\n")


def watch_children(child_processes: list[subprocess.Popen[bytes]]) -> None:
    """Watches processes that this one has launched, and ends all where one ends before its time."""
    _company.children = child_processes
    threading.Thread(target=_watch, args=(child_processes,), daemon=True, name="children").start()


def _watch(children: list[subprocess.Popen[bytes]]) -> None:
    codes: list[int | None] = [None]
    while None in codes:
        time.sleep(_LOOK_S)
        codes = [child.poll() for child in children]
        for number, code in enumerate(codes):
            if code:
                if _company.connections is not None:
                    _company.has_ended.wait(_LOOK_S)  # its own word comes first
                _company.learn(_end_of_child(_company.rank + number + 1, code))
                return


def _end_of_child(rank: int, code: int) -> End:
    if code >= 0:
        # Before they were connected it has said why by itself.
        line = f"process {rank} ended without a word, with exit code {code}; the same command goes on"
        return End(rank, line if _company.connections is not None else "", code or 1, _company.rank)
    name = signal.Signals(-code).name
    why = ", perhaps for want of memory" if name == "SIGKILL" else ""
    code = 128 - code if -code in (signal.SIGINT, signal.SIGTERM) else 1
    return End(rank, f"process {rank} was ended by {name}{why}; the same command goes on", code, _company.rank)


def _wait_for_children() -> None:
    """Returns once they are done, however much longer their part takes; raises `PeerEnded` where one failed."""
    for child in _company.children:
        if child.wait():
            _company.has_ended.wait(10 * _LOOK_S)
            raise PeerEnded
