"""A socket that listens, and its connections, each with a deadline: one descriptor and one deadline for the loop.

Non-blocking and bounded, so that no client can hold up the loop or use it up. Who is let in, and what is said then, is
left to what derives from this: `wire_server` and `metrics_http`.
"""

from __future__ import annotations

import logging
import select
import socket
from abc import ABC, abstractmethod
from collections.abc import Callable
from contextlib import suppress
from typing import Generic, Protocol, TypeVar

TURN_SECONDS = 5.0
"""A client has this long to send a whole request, and as long again to take the answer."""

_ACCEPTED_AT_ONCE = 16
_PAUSE_SECONDS = 1.0

_log = logging.getLogger(__name__)


class Connection(Protocol):
    """A client; `deadline`: when (on the clock) it is closed, None while it is not it that is waited for."""

    socket: socket.socket
    deadline: float | None


Client = TypeVar("Client", bound=Connection)


class Connections(ABC, Generic[Client]):
    """`name` is what the log calls the socket; it is closed with the connections."""

    def __init__(self, listening: socket.socket, name: str, clock: Callable[[], float]) -> None:
        self._socket = listening
        self._name = name
        self._clock = clock
        self._connections: dict[int, Client] = {}
        self._resume: float | None = None
        self._epoll = select.epoll()
        self._epoll.register(listening, select.EPOLLIN)

    def fileno(self) -> int:
        """Return the descriptor for the loop to watch (EPOLLIN, level-triggered)."""
        return self._epoll.fileno()

    def serve(self) -> None:
        """Do what can be done now: at most one step of each connection, so that nobody waits for one of them."""
        for fd, events in self._epoll.poll(0):
            if fd == self._socket.fileno():
                self._accept()
            elif (connection := self._connections.get(fd)) is not None:
                try:
                    self._advance(connection, events)
                except BlockingIOError:
                    continue
                except OSError:
                    self._drop(connection)

    def deadline(self) -> float | None:
        """Return when (on the clock) `expire` is next to be called; None: not before something else happens."""
        due = [connection.deadline for connection in self._connections.values()]
        return min((moment for moment in (*due, self._resume) if moment is not None), default=None)

    def expire(self) -> None:
        """Close the connections whose time is up."""
        now = self._clock()
        for connection in list(self._connections.values()):
            if connection.deadline is not None and connection.deadline <= now:
                self._drop(connection)
        if self._resume is not None and self._resume <= now:
            self._resume = None
            self._epoll.modify(self._socket, select.EPOLLIN)

    def close(self) -> None:
        """Close everything."""
        for connection in list(self._connections.values()):
            self._drop(connection)
        self._epoll.close()
        self._socket.close()

    @abstractmethod
    def _admitted(self, client: socket.socket) -> Client | None:
        """Return a connection for a client, to be read from; None if it is not let in."""

    @abstractmethod
    def _advance(self, connection: Client, events: int) -> None:
        """Take a connection one step on. Raises OSError if it is to be closed, BlockingIOError if it has to wait."""

    def _begin_turn(self, connection: Client) -> None:
        """Wait for a client from now on."""
        connection.deadline = self._clock() + TURN_SECONDS

    def _is_open(self, connection: Client) -> bool:
        return self._connections.get(connection.socket.fileno()) is connection

    def _drop(self, connection: Client) -> None:
        """Close a connection: even if a forked child has it too, its client sees the end, and the loop nothing more."""
        if self._is_open(connection):
            del self._connections[connection.socket.fileno()]
            self._epoll.unregister(connection.socket)
            with suppress(OSError):
                connection.socket.shutdown(socket.SHUT_RDWR)
            connection.socket.close()

    def _accept(self) -> None:
        for _ in range(_ACCEPTED_AT_ONCE):
            try:
                client, _ = self._socket.accept()
            except BlockingIOError:
                return
            except ConnectionAbortedError:
                continue
            except OSError as error:  # no descriptor or no memory: the others go on, and we try again soon
                _log.error("%s: %s", self._name, error.strerror)
                self._resume = self._clock() + _PAUSE_SECONDS
                self._epoll.modify(self._socket, 0)
                return
            client.setblocking(False)
            if (connection := self._admitted(client)) is None:
                client.close()
                continue
            self._connections[client.fileno()] = connection
            self._epoll.register(client, select.EPOLLIN)
            self._begin_turn(connection)
