"""The metrics for who asks for them by HTTP: GET /metrics, one request for each connection, and nothing else.

Non-blocking and bounded, as `wire_server` is: no client can hold up the loop or use it up. The loop watches one
descriptor and one deadline. What there is to tell is left to the agent.
"""

from __future__ import annotations

import logging
import select
import socket
import time
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass, field

from pageferry.config import Address
from pageferry.exposition import CONTENT_TYPE
from pageferry.kernel.sockets import listening

CONNECTIONS = 16
HEAD_BYTES = 8192
"""No request is longer, its headers included."""

TURN_SECONDS = 5.0
"""A client has this long to send its request, and as long again to take the answer."""

_PAUSE_SECONDS = 1.0

_log = logging.getLogger(__name__)


@dataclass(slots=True)
class _Connection:
    socket: socket.socket
    deadline: float
    received: bytearray = field(default_factory=bytearray)
    answer: bytearray = field(default_factory=bytearray)


class Listener:
    """The listening socket and its connections. Raises OSError if nobody can listen there."""

    def __init__(self, address: Address, text: Callable[[], str], clock: Callable[[], float] = time.monotonic) -> None:
        self._text = text
        self._clock = clock
        self._connections: dict[int, _Connection] = {}
        self._resume: float | None = None
        self._socket = listening(address.host, address.port, freely=True)
        self._epoll = select.epoll()
        self._epoll.register(self._socket, select.EPOLLIN)

    def fileno(self) -> int:
        """Return the descriptor for the loop to watch (EPOLLIN, level-triggered)."""
        return self._epoll.fileno()

    def port(self) -> int:
        """Return the port, also where any was asked for."""
        port: int = self._socket.getsockname()[1]
        return port

    def serve(self) -> None:
        """Do what can be done now: at most one step of each connection."""
        for fd, _ in self._epoll.poll(0):
            if fd == self._socket.fileno():
                self._accept()
            elif (connection := self._connections.get(fd)) is not None:
                try:
                    self._advance(connection)
                except BlockingIOError:
                    continue
                except OSError:
                    self._drop(connection)

    def deadline(self) -> float | None:
        """Return when (on the clock) `expire` is next to be called; None: not before something else happens."""
        due = [connection.deadline for connection in self._connections.values()]
        return min([*due, *([] if self._resume is None else [self._resume])], default=None)

    def expire(self) -> None:
        """Close the connections whose time is up."""
        now = self._clock()
        for connection in [one for one in self._connections.values() if one.deadline <= now]:
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

    def _accept(self) -> None:
        for _ in range(CONNECTIONS):
            try:
                client, _ = self._socket.accept()
            except BlockingIOError:
                return
            except ConnectionAbortedError:
                continue
            except OSError as error:  # no descriptor or no memory: the others go on, and we try again soon
                _log.error("metrics.listen: %s", error.strerror)
                self._resume = self._clock() + _PAUSE_SECONDS
                self._epoll.modify(self._socket, 0)
                return
            if len(self._connections) >= CONNECTIONS:
                client.close()
                continue
            client.setblocking(False)
            self._connections[client.fileno()] = _Connection(client, self._clock() + TURN_SECONDS)
            self._epoll.register(client, select.EPOLLIN)

    def _advance(self, connection: _Connection) -> None:
        """Take a connection one step on. Raises OSError if it is to be dropped, BlockingIOError if it has to wait."""
        if not connection.answer:
            chunk = connection.socket.recv(HEAD_BYTES + 1 - len(connection.received))
            connection.received += chunk
            if not chunk:
                raise ConnectionResetError
            head, end, _ = connection.received.replace(b"\r\n", b"\n").partition(b"\n\n")
            if len(connection.received) > HEAD_BYTES:
                connection.answer += _answer("431 Request Header Fields Too Large")
            elif end:
                connection.answer += self._answered(bytes(head))
            else:
                return
            connection.deadline = self._clock() + TURN_SECONDS
            self._epoll.modify(connection.socket, select.EPOLLOUT)
        del connection.answer[: connection.socket.send(connection.answer)]
        if not connection.answer:
            raise ConnectionResetError  # it has what it asked for

    def _answered(self, head: bytes) -> bytes:
        words = head.partition(b"\n")[0].split(b" ")
        if len(words) != 3 or not words[2].startswith(b"HTTP/1."):
            return _answer("400 Bad Request")
        if words[1].partition(b"?")[0] != b"/metrics":
            return _answer("404 Not Found", "There is /metrics.\n")
        if words[0] != b"GET":
            return _answer("405 Method Not Allowed", headers="Allow: GET\r\n")
        try:
            return _answer("200 OK", self._text(), f"Content-Type: {CONTENT_TYPE}\r\n")
        except Exception:  # noqa: BLE001 - a scrape must not end the agent
            _log.exception("the metrics cannot be told")
            return _answer("500 Internal Server Error")

    def _drop(self, connection: _Connection) -> None:
        """Close a connection: even if a forked child has it too, its client sees the end, and the loop nothing more."""
        del self._connections[connection.socket.fileno()]
        self._epoll.unregister(connection.socket)
        with suppress(OSError):
            connection.socket.shutdown(socket.SHUT_RDWR)
        connection.socket.close()


def _answer(status: str, body: str = "", headers: str = "") -> bytes:
    content = body.encode()
    return (
        f"HTTP/1.1 {status}\r\n{headers}Content-Length: {len(content)}\r\nConnection: close\r\n\r\n".encode() + content
    )
