"""What must hold of the service manager's socket: it is told what is so, in one datagram, and never waited for."""

from __future__ import annotations

import os
import socket
from collections.abc import Iterator
from pathlib import Path

import pytest

from pageferry.kernel.sd_notify import notify, watchdog_seconds


@pytest.fixture(params=["path", "abstract"])
def manager(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[tuple[socket.socket, dict[str, str]]]:
    address = f"@pageferry-{os.getpid()}" if request.param == "abstract" else os.fspath(tmp_path / "notify")
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM | socket.SOCK_NONBLOCK) as listener:
        listener.bind(address.replace("@", "\0"))
        yield listener, {"NOTIFY_SOCKET": address}


def test_what_is_said_arrives_as_one_message(manager: tuple[socket.socket, dict[str, str]]) -> None:
    listener, environ = manager
    assert notify(environ, READY="1", STATUS="2 jobs held")
    assert listener.recv(4096) == b"READY=1\nSTATUS=2 jobs held"
    assert notify(environ, WATCHDOG="1")
    assert listener.recv(4096) == b"WATCHDOG=1"


def test_a_value_cannot_begin_an_assignment_of_its_own(manager: tuple[socket.socket, dict[str, str]]) -> None:
    listener, environ = manager
    assert notify(environ, STATUS="job a\nSTOPPING=1\udcff")
    assert listener.recv(4096) == rb"STATUS=job a\nSTOPPING=1\xff"


def test_a_manager_that_does_not_listen_is_not_waited_for(manager: tuple[socket.socket, dict[str, str]]) -> None:
    _, environ = manager
    sent = 0
    while notify(environ, WATCHDOG="1"):
        sent += 1
        assert sent < 1_000_000
    assert sent


@pytest.mark.parametrize(
    "address", [None, "", "vsock:2:1", "relative/path", "/nowhere/at/all", "@", "/" + "x" * 200, "/a\0b"]
)
def test_without_a_manager_nothing_is_said_and_nothing_raised(address: str | None) -> None:
    assert notify({} if address is None else {"NOTIFY_SOCKET": address}, READY="1") is False


def test_the_environment_is_the_default(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("NOTIFY_SOCKET", raising=False)
    monkeypatch.setenv("WATCHDOG_USEC", "20000000")
    monkeypatch.setenv("WATCHDOG_PID", str(os.getpid()))
    assert notify(READY="1") is False
    assert watchdog_seconds() == 10.0


def test_the_watchdog_is_fed_at_half_its_time() -> None:
    assert watchdog_seconds({"WATCHDOG_USEC": "30000000"}) == 15.0
    assert watchdog_seconds({"WATCHDOG_USEC": "30000000", "WATCHDOG_PID": str(os.getpid())}) == 15.0


@pytest.mark.parametrize("interval", ["", "0", "-5", "5s", "1e6", " 5", "٣", "9" * 40])
def test_a_watchdog_that_is_none_is_not_fed(interval: str) -> None:
    assert watchdog_seconds({"WATCHDOG_USEC": interval}) is None


def test_another_process_watchdog_is_not_ours() -> None:
    assert watchdog_seconds({}) is None
    assert watchdog_seconds({"WATCHDOG_USEC": "30000000", "WATCHDOG_PID": str(os.getppid())}) is None
    assert watchdog_seconds({"WATCHDOG_USEC": "30000000", "WATCHDOG_PID": ""}) is None
