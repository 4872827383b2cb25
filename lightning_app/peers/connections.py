"""Connections from the first process of a run to all others, over which each says why it ends, if it can."""

import contextlib
import json
import os
import secrets
import selectors
import socket
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Protocol, TypeVar

_JOIN_S = 30.0
_WELCOME = b"+"
_PROBES = {"TCP_KEEPIDLE": 10, "TCP_KEEPINTVL": 5, "TCP_KEEPCNT": 4}  # a machine that is gone is found in 30 s

Value = TypeVar("Value")
Broadcast = Callable[[Value], Value]
"""Returns the first process's value on all. Collective."""


@dataclass(frozen=True)
class End:
    """How a process ended before its time.

    Attributes:
        rank: Of the process.
        line: Why, for people; empty where nobody is to be told.
        code: Exit code of the whole run.
        teller: Who says the line: the process itself, or one that found it gone.
    """

    rank: int
    line: str
    code: int
    teller: int


class Listener(Protocol):
    """Who is told what the connections bring."""

    def learn(self, end: End) -> None:
        """Takes in how a process ended."""

    def how_ended(self, rank: int) -> End:
        """Returns what can be known of a process that went without a word."""


class Connections(threading.Thread):
    """Listens to the connections of one process: the first has one to every other, each of these one to the first.

    Args:
        rank: Of this process.
        sockets: By the rank at the other end.
        listener: Who is told.

    Attributes:
        everybody_has_heard: Set in the first process once every other is done, gone, or about to end as well.
        first_has_told: Set in another process once the first has told it how one ended.
        first_is_gone: Set in another process once the first has closed the connection.
    """

    def __init__(self, rank: int, sockets: dict[int, socket.socket], listener: Listener) -> None:
        super().__init__(daemon=True, name="peers")
        self.rank, self._sockets, self._listener = rank, sockets, listener
        self._unread = dict.fromkeys(sockets, b"")
        self._silent = set(sockets)
        self.count = len(sockets)
        self.everybody_has_heard, self.first_has_told, self.first_is_gone = (threading.Event() for _ in range(3))
        # A loader's process must not keep the connection of a process that was killed.
        os.register_at_fork(after_in_child=self._close)

    def send(self, message: dict[str, object]) -> None:
        """Sends to the other end of every connection that is still there."""
        for connection in list(self._sockets.values()):
            with contextlib.suppress(OSError):
                connection.sendall(json.dumps(message).encode() + b"\n")

    def run(self) -> None:
        """Reads until every connection is closed."""
        with selectors.DefaultSelector() as selector:
            for rank, connection in self._sockets.items():
                selector.register(connection, selectors.EVENT_READ, rank)
            while selector.get_map():
                for key, _ in selector.select():
                    if not self._read(key.data):
                        selector.unregister(key.fileobj)

    def _read(self, rank: int) -> bool:
        """Reads what there is from one process; returns whether more may follow."""
        try:
            received = self._sockets[rank].recv(1 << 16)
        except OSError:
            received = b""
        *lines, self._unread[rank] = (self._unread[rank] + received).split(b"\n")
        for line in lines:
            message = json.loads(line)
            if "line" in message:
                if rank == 0:
                    self.first_has_told.set()
                self._listener.learn(End(**message))
            else:
                self._has_heard(rank)
        if not received:
            if rank in self._silent and not self.first_has_told.is_set():
                self._listener.learn(self._listener.how_ended(rank))
            self._has_heard(rank)
            if rank == 0:
                self.first_is_gone.set()
        return bool(received)

    def _has_heard(self, rank: int) -> None:
        self._silent.discard(rank)
        if not self._silent:
            self.everybody_has_heard.set()

    def _close(self) -> None:
        for connection in self._sockets.values():
            connection.close()


def connect(
    rank: int, count: int, broadcast: Broadcast[tuple[int, str] | None], address: str, listener: Listener
) -> Connections:
    """Returns the connections of this process. Collective.

    Args:
        rank: Of this process.
        count: Of all processes.
        broadcast: Gives the first process's port to all.
        address: Of the first process's machine.
        listener: Who is told what they bring.

    Raises:
        OSError: The first process cannot be reached, or had no time.
    """
    server = _server(count) if rank == 0 else None
    told = broadcast((server.getsockname()[1], secrets.token_hex(16)) if server is not None else None)
    if told is None:
        raise OSError("the first process told no port")
    port, token = told
    if server is not None:
        with server:
            sockets = _accept(server, count, token)
    else:
        connection = socket.create_connection((address, port), timeout=_JOIN_S)
        connection.sendall(f"{token} {rank}\n".encode())
        if connection.recv(1) != _WELCOME:
            raise OSError("the first process closed the connection")
        sockets = {0: connection}
    for connection in sockets.values():
        connection.settimeout(None)
        connection.setsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1)
        for name, value in _PROBES.items():
            if option := getattr(socket, name, None):
                connection.setsockopt(socket.IPPROTO_TCP, option, value)
    return Connections(rank, sockets, listener)


def _server(count: int) -> socket.socket:
    with contextlib.suppress(OSError):
        if socket.has_dualstack_ipv6():
            return socket.create_server(("", 0), family=socket.AF_INET6, backlog=count, dualstack_ipv6=True)
    return socket.create_server(("", 0), backlog=count)


def _accept(server: socket.socket, count: int, token: str) -> dict[int, socket.socket]:
    """Returns the connections of the others by rank, of those that come in time.

    Whoever else knocks, and does not know the token, is left alone.
    """
    sockets: dict[int, socket.socket] = {}
    until = time.monotonic() + _JOIN_S
    while len(sockets) < count - 1 and time.monotonic() < until:
        server.settimeout(max(0.1, until - time.monotonic()))
        with contextlib.suppress(OSError, ValueError):
            connection, _ = server.accept()
            connection.settimeout(_JOIN_S / 3)
            word, _, rank = connection.makefile("r").readline().partition(" ")
            if not secrets.compare_digest(word, token):
                connection.close()
                continue
            connection.sendall(_WELCOME)
            sockets[int(rank)] = connection
    return sockets
