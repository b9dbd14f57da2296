"""An agent's socket whose loop a test turns by hand, and clients of it."""

from __future__ import annotations

import json
import os
import select
import socket
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from pageferry.agent.wire_server import Reply, Server
from pageferry.errors import ConfigError
from pageferry.wire import Peer

NOBODY = 65534


class Clock:
    now = 1000.0

    def __call__(self) -> float:
        return self.now


class Agent:
    """A server whose handler does what each verb of these tests says; the tests turn its loop by hand."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.clock = Clock()
        self.heard: list[tuple[Peer, dict[str, Any]]] = []
        self.later: list[Reply] = []
        self.server = Server(path, self.handle, clock=self.clock)

    def handle(self, peer: Peer, message: dict[str, Any], reply: Reply) -> Mapping[str, Any] | None:
        self.heard.append((peer, message))
        match message["verb"]:
            case "later":
                self.later.append(reply)
                return None
            case "at once":
                reply({"by": "reply"})
                return None
            case "refuse":
                raise ConfigError("no such key")
            case "bug":
                raise ZeroDivisionError("an oversight")
            case "unsayable":
                return {"x": object()}
            case "large":
                return {"text": "x" * (4 << 20)}
        return {"echo": message}

    def turn(self) -> None:
        """Serve until nothing is to be done."""
        for _ in range(100_000):
            if not select.select([self.server], [], [], 0)[0]:
                return
            self.server.serve()
        raise AssertionError("the server spins")

    def said(self, client: socket.socket) -> list[dict[str, Any]]:
        """Return all that a client has been told so far; its last member is {} if the connection was closed."""
        self.turn()
        client.setblocking(False)
        heard = b""
        end: list[dict[str, Any]] = [{}]
        try:
            while chunk := client.recv(65536):
                heard += chunk
                self.turn()
        except BlockingIOError:
            end = []
        except ConnectionResetError:
            pass
        assert not heard or heard.endswith(b"\n")
        return [json.loads(line) for line in heard.splitlines()] + end


def connected(path: Path) -> socket.socket:
    client = socket.socket(socket.AF_UNIX)
    client.connect(os.fspath(path))
    return client


def connected_as(path: Path, uid: int) -> socket.socket:
    """Connect with another effective user: it is what SO_PEERCRED tells."""
    os.seteuid(uid)
    try:
        return connected(path)
    finally:
        os.seteuid(0)
