"""The metrics for who asks for them by HTTP: GET /metrics, one request for each connection, and nothing else.

What there is to tell is left to the agent.
"""

from __future__ import annotations

import logging
import select
import socket
import time
from collections.abc import Callable
from dataclasses import dataclass, field

from pageferry.agent.connections import Connections
from pageferry.config import Address
from pageferry.exposition import CONTENT_TYPE
from pageferry.kernel.sockets import listening

CONNECTIONS = 16
HEAD_BYTES = 8192
"""No request is longer, its headers included."""

_log = logging.getLogger(__name__)


@dataclass(slots=True)
class _Connection:
    socket: socket.socket
    deadline: float | None = None
    received: bytearray = field(default_factory=bytearray)
    answer: bytearray = field(default_factory=bytearray)


class Listener(Connections[_Connection]):
    """Raises OSError if nobody can listen at the address."""

    def __init__(self, address: Address, text: Callable[[], str], clock: Callable[[], float] = time.monotonic) -> None:
        super().__init__(listening(address.host, address.port, freely=True), "metrics.listen", clock)
        self._text = text

    def _admitted(self, client: socket.socket) -> _Connection | None:
        return _Connection(client) if len(self._connections) < CONNECTIONS else None

    def _advance(self, connection: _Connection, _events: int) -> None:
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
            self._begin_turn(connection)
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


def _answer(status: str, body: str = "", headers: str = "") -> bytes:
    content = body.encode()
    return (
        f"HTTP/1.1 {status}\r\n{headers}Content-Length: {len(content)}\r\nConnection: close\r\n\r\n".encode() + content
    )
