"""The agent's end of the socket: lines in, answers out, and no more connections of anybody than are his share.

What a request means, and whether its peer may ask, is left to the handler (`wire.allowed`).
"""

from __future__ import annotations

import fcntl
import logging
import os
import select
import socket
import stat
import struct
import time
from collections.abc import Callable, Mapping
from contextlib import suppress
from pathlib import Path
from typing import Any

from pageferry.agent.connections import Connections
from pageferry.errors import KernelError, PageferryError, UsageError
from pageferry.wire import LINE_BYTES, Peer, decoded, encoded

Reply = Callable[[Mapping[str, Any]], None]
"""Answers a request: once, at any time. Without effect when the peer is gone or has its answer."""

Handle = Callable[[Peer, dict[str, Any], Reply], Mapping[str, Any] | None]
"""Does what a request asks. It returns the answer, or None if it will `reply` later, or raises a PageferryError."""

CONNECTIONS = 64
CONNECTIONS_OF_USERS = 48
CONNECTIONS_OF_A_USER = 8

_log = logging.getLogger(__name__)


class _Connection:
    """A client; `turn` counts its requests, so that a late reply to one is never taken for that to another."""

    __slots__ = ("answer", "closing", "deadline", "ended", "mask", "peer", "received", "socket", "turn", "waiting")

    def __init__(self, client: socket.socket, peer: Peer) -> None:
        self.socket = client
        self.peer = peer
        self.received = bytearray()
        self.answer = bytearray()
        self.turn = 0
        self.mask = select.EPOLLIN
        self.waiting = False  # for the handler
        self.ended = False  # the client sends no more
        self.closing = False  # once the answer is sent
        self.deadline: float | None = None

    def wanted(self) -> int:
        """Return the events to wait for. A lost client is always told of; to be called again at once, ask to write."""
        if self.waiting:
            return 0
        again = self.answer or self.closing or self.ended or b"\n" in self.received
        return select.EPOLLOUT if again else select.EPOLLIN


class Server(Connections[_Connection]):
    """Raises as `open_socket` does.

    `trusted`: users whose connections the limits for users do not count, such as root and SlurmUser.
    """

    def __init__(
        self,
        path: Path,
        handle: Handle,
        *,
        trusted: Callable[[], frozenset[int]] = lambda: frozenset({0}),
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._lock, listening = open_socket(path)
        super().__init__(listening, str(path), clock)
        self._path = path
        self._handle = handle
        self._trusted = trusted

    def close(self) -> None:
        """Close everything and remove the socket."""
        with suppress(OSError):
            self._path.unlink()
        super().close()
        os.close(self._lock)

    def _admitted(self, client: socket.socket) -> _Connection | None:
        peer = Peer(*struct.unpack("iII", client.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, 12)))
        if why := self._full(peer):
            with suppress(OSError):
                client.send(encoded({"error": why, "code": KernelError.exit_code}))
            return None
        return _Connection(client, peer)

    def _full(self, peer: Peer) -> str | None:
        if len(self._connections) >= CONNECTIONS:
            return f"the agent has {CONNECTIONS} connections already"
        trusted = self._trusted()
        if peer.uid in trusted:
            return None
        users = [other.peer.uid for other in self._connections.values() if other.peer.uid not in trusted]
        if users.count(peer.uid) >= CONNECTIONS_OF_A_USER:
            return f"the agent has {CONNECTIONS_OF_A_USER} connections of this user already"
        if len(users) >= CONNECTIONS_OF_USERS:
            return f"the agent has {CONNECTIONS_OF_USERS} connections of users already"
        return None

    def _advance(self, connection: _Connection, events: int) -> None:
        self._step(connection, events)
        self._arm(connection)

    def _step(self, connection: _Connection, events: int) -> None:
        if connection.waiting:
            if events & (select.EPOLLHUP | select.EPOLLERR):
                raise ConnectionResetError
            return
        if connection.answer:
            self._send(connection)
            return
        if connection.closing:
            raise ConnectionResetError
        if b"\n" not in connection.received and not connection.ended:
            chunk = connection.socket.recv(LINE_BYTES + 1 - len(connection.received))
            connection.received += chunk
            connection.ended = not chunk
        line, end, rest = connection.received.partition(b"\n")
        if end and len(line) < LINE_BYTES:
            connection.received = rest
            self._request(connection, bytes(line))
        elif len(connection.received) > LINE_BYTES:
            connection.closing = True
            self._answer(connection, {"error": f"a request is longer than {LINE_BYTES} bytes", "code": 2})
        elif connection.ended and not connection.received:
            raise ConnectionResetError
        elif connection.ended:
            connection.closing = True
            self._answer(connection, {"error": "a request without an end of line", "code": 2})

    def _request(self, connection: _Connection, line: bytes) -> None:
        connection.turn += 1
        connection.waiting = True
        connection.deadline = None
        turn = connection.turn

        def reply(answer: Mapping[str, Any]) -> None:
            if connection.turn != turn or not connection.waiting or not self._is_open(connection):
                return
            try:
                self._answer(connection, answer if "error" in answer else {"ok": True, **answer})
            except OSError:
                self._drop(connection)
            else:
                self._arm(connection)

        try:
            message = decoded(line)
            if not isinstance(message.get("verb"), str):
                raise UsageError("verb is missing, or no text")
            answer = self._handle(connection.peer, message, reply)
        except PageferryError as error:
            answer = {"error": str(error), "code": error.exit_code}
        except Exception:  # noqa: BLE001 - a request, however odd, must not end the agent
            _log.exception("a request of pid %d, uid %d failed", connection.peer.pid, connection.peer.uid)
            answer = {"error": "the agent failed at this request; its log says how", "code": PageferryError.exit_code}
        if answer is not None:
            reply(answer)

    def _answer(self, connection: _Connection, answer: Mapping[str, Any]) -> None:
        connection.waiting = False
        self._begin_turn(connection)
        try:
            connection.answer += encoded(answer)
        except (TypeError, ValueError, RecursionError):
            _log.exception("an answer cannot be sent")
            connection.answer += encoded({"error": "the agent's answer cannot be sent; its log says why", "code": 1})
        self._send(connection)

    def _send(self, connection: _Connection) -> None:
        with suppress(BlockingIOError):
            del connection.answer[: connection.socket.send(connection.answer)]
        if not connection.answer:
            self._begin_turn(connection)

    def _arm(self, connection: _Connection) -> None:
        if self._is_open(connection) and connection.mask != connection.wanted():
            connection.mask = connection.wanted()
            self._epoll.modify(connection.socket, connection.mask)


def open_socket(path: Path) -> tuple[int, socket.socket]:
    """Return the lock's descriptor and the listening socket, in a directory that is made if it is not there.

    The socket takes the place of one that a dead agent left. Everyone may connect: SO_PEERCRED decides, not the mode.
    Raises UsageError if an agent runs already, KernelError if the place is not ours alone or cannot be used.
    """
    try:
        with suppress(FileExistsError):
            path.parent.mkdir()
            path.parent.chmod(0o755)  # whatever the umask
        status = path.parent.stat()
        if status.st_uid != os.geteuid() or status.st_mode & (stat.S_IWGRP | stat.S_IWOTH):
            raise KernelError(f"{path.parent}: others may write there")
        lock = os.open(path.with_suffix(".lock"), os.O_RDWR | os.O_CREAT | os.O_CLOEXEC | os.O_NOFOLLOW, 0o600)
    except OSError as error:
        raise KernelError(f"{path}: {error.strerror}") from error
    listener = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM | socket.SOCK_CLOEXEC | socket.SOCK_NONBLOCK)
    new = path.with_suffix(".new")
    try:
        # Not flock(2): a forked child shares that, and would keep a dead agent's place taken.
        fcntl.lockf(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        new.unlink(missing_ok=True)
        listener.bind(os.fspath(new))
        new.chmod(0o666)
        listener.listen(CONNECTIONS)
        new.rename(path)  # so there is a socket that answers at every moment
    except OSError as error:
        listener.close()
        os.close(lock)
        if isinstance(error, BlockingIOError | PermissionError) and error.filename is None:
            raise UsageError(f"an agent runs already: it has locked {path.with_suffix('.lock')}") from error
        raise KernelError(f"{path}: {error.strerror or error}") from error
    return lock, listener
