"""What must hold of asking the agent: who may do what, and a clear word when there is no answer."""

from __future__ import annotations

import os
import select
import socket
import subprocess
import tempfile
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pageferry import wire
from pageferry.errors import ConfigError, KernelError, PageferryError, UsageError
from support.wire_agent import NOBODY, Agent

SECONDS = 20.0


@pytest.fixture
def folder() -> Iterator[Path]:
    with tempfile.TemporaryDirectory(prefix="wire-") as name:  # a socket's path is short
        folder = Path(name)
        folder.chmod(0o755)
        yield folder


@pytest.fixture
def agent(folder: Path) -> Iterator[Agent]:
    running = Agent(folder / "agent.sock")
    yield running
    running.server.close()


@pytest.fixture
def served(agent: Agent) -> Iterator[Agent]:
    """Let the agent serve in a thread, for clients that wait."""
    awake, stop = os.pipe()

    def loop() -> None:
        while awake not in select.select([agent.server.fileno(), awake], [], [])[0]:
            agent.server.serve()

    thread = threading.Thread(target=loop)
    thread.start()
    yield agent
    os.close(stop)
    thread.join(SECONDS)
    os.close(awake)


@pytest.mark.parametrize("verb", ["starting", "ended", "poke", "status", "move", "cpus", "history", "", "no such"])
def test_root_and_slurm_user_may_do_everything(verb: str) -> None:
    for owner in (None, 0, 64030, 1000):
        assert wire.allowed(0, 64030, verb, owner)
        assert wire.allowed(0, None, verb, owner)
        assert wire.allowed(64030, 64030, verb, owner)


def test_others_may_read_about_their_own_jobs_and_ask_for_them_and_nothing_else() -> None:
    for verb in ("status", "history", "poke", "request"):
        assert wire.allowed(1000, 64030, verb, 1000)
        assert not wire.allowed(1000, 64030, verb, 1001)
        assert not wire.allowed(1000, None, verb, None)
        assert not wire.allowed(1000, 64030, verb, 0)
    for verb in ("move", "cpus", "starting", "ended", "", "Status", "status "):
        assert not wire.allowed(1000, 64030, verb, 1000)


@given(st.binary(max_size=300))
def test_any_line_is_an_object_or_a_usage_error(line: bytes) -> None:
    try:
        assert isinstance(wire.decoded(line), dict)
    except UsageError as error:
        assert str(error).isprintable()


def test_ask_returns_the_answer(served: Agent) -> None:
    assert wire.ask(served.path, {"verb": "status", "job": 7}, SECONDS)["echo"] == {"verb": "status", "job": 7}
    assert len(wire.ask(served.path, {"verb": "large"}, SECONDS)["text"]) == 4 << 20


def test_ask_raises_what_the_answer_says(served: Agent) -> None:
    with pytest.raises(ConfigError, match=r"^no such key$"):
        wire.ask(served.path, {"verb": "refuse"}, SECONDS)
    with pytest.raises(PageferryError, match="its log says") as caught:
        wire.ask(served.path, {"verb": "bug"}, SECONDS)
    assert caught.value.exit_code == 1
    with pytest.raises(UsageError, match="longer than"):
        wire.ask(served.path, {"verb": "x" * 1_000_000}, SECONDS)


def test_ask_says_that_no_agent_runs(folder: Path) -> None:
    path = folder / "agent.sock"
    with pytest.raises(KernelError, match="does not run"):
        wire.ask(path, {"verb": "status"}, SECONDS)
    assert not wire.present(path)
    with socket.socket(socket.AF_UNIX) as dead:
        dead.bind(os.fspath(path))
    with pytest.raises(KernelError, match="does not run"):
        wire.ask(path, {"verb": "status"}, SECONDS)
    assert not wire.present(path)


def listening(path: Path, backlog: int = 8) -> socket.socket:
    listener = socket.socket(socket.AF_UNIX)
    listener.bind(os.fspath(path))
    listener.listen(backlog)
    return listener


def test_ask_gives_up_on_an_agent_that_hangs_even_with_its_queue_full(folder: Path) -> None:
    path = folder / "agent.sock"
    with ExitStack() as stack:
        stack.enter_context(listening(path, 0))
        assert wire.present(path)
        for _ in range(2):
            with pytest.raises(KernelError, match=r"did not answer within 0\.2 s"):
                wire.ask(path, {"verb": "status"}, 0.2)
        client = stack.enter_context(socket.socket(socket.AF_UNIX, socket.SOCK_STREAM | socket.SOCK_NONBLOCK))
        with pytest.raises(BlockingIOError):
            client.connect(os.fspath(path))
        assert wire.present(path)
        began = time.monotonic()
        with pytest.raises(KernelError, match=r"did not answer within 0\.2 s"):
            wire.ask(path, {"verb": "status"}, 0.2)
        assert time.monotonic() - began >= 0.2, "a queue that is full may be empty in a moment"


def answering(path: Path, answer: Callable[[socket.socket], object]) -> threading.Thread:
    listener = listening(path)

    def serve() -> None:
        with listener:
            client, _ = listener.accept()
            with client:
                client.recv(65536)
                answer(client)

    thread = threading.Thread(target=serve)
    thread.start()
    return thread


@pytest.mark.parametrize(
    ("answer", "text"),
    [
        (b"", "ended before"),
        (b'{"ok":', "ended before"),
        (b"nonsense\n", "cannot be read"),
        (b"[]\n", "cannot be read"),
    ],
)
def test_ask_says_that_an_answer_is_none(folder: Path, answer: bytes, text: str) -> None:
    path = folder / "agent.sock"
    thread = answering(path, lambda client: client.sendall(answer))
    with pytest.raises(KernelError, match=text):
        wire.ask(path, {"verb": "status"}, SECONDS)
    thread.join(SECONDS)


def test_ask_escapes_what_an_error_brings(folder: Path) -> None:
    path = folder / "agent.sock"
    thread = answering(path, lambda client: client.sendall(b'{"error": "a\\u001b[2Jb", "code": [1]}\n'))
    with pytest.raises(PageferryError, match=r"^a\\x1b\[2Jb$"):
        wire.ask(path, {"verb": "status"}, SECONDS)
    thread.join(SECONDS)


def test_ask_by_a_user_without_access_is_denied(folder: Path) -> None:
    with listening(folder / "agent.sock"):
        (folder / "agent.sock").chmod(0o600)
        folder.chmod(0o755)
        os.seteuid(NOBODY)
        try:
            with pytest.raises(KernelError, match="Permission denied"):
                wire.ask(folder / "agent.sock", {"verb": "status"}, SECONDS)
        finally:
            os.seteuid(0)


def test_members_of_a_message_are_what_they_should_be() -> None:
    message = {"job": 7, "name": "x", "flag": True, "big": 1 << 32, "less": -1, "none": None, "real": 7.0}
    assert wire.number(message, "job") == 7
    assert wire.number(message, "absent", 3) == 3
    assert wire.text(message, "name") == "x"
    assert wire.text(message, "absent", "") == ""
    for key in ("name", "flag", "big", "less", "none", "real"):
        with pytest.raises(UsageError, match=rf"^{key}: expected a whole number$"):
            wire.number(message, key, 3)
    with pytest.raises(UsageError, match=r"^job: expected text$"):
        wire.text(message, "job")
    with pytest.raises(UsageError, match=r"^absent is missing$"):
        wire.number(message, "absent")


def test_what_a_hook_sends_without_this_package_is_understood(served: Agent) -> None:
    program = (
        "import json, socket, sys\n"
        "s = socket.socket(socket.AF_UNIX); s.connect(sys.argv[1])\n"
        "s.sendall(json.dumps({'verb': 'ended', 'job': 7}).encode() + b'\\n')\n"
        "print(json.loads(s.makefile().readline())['ok'])"
    )
    command = ["/usr/bin/python3", "-I", "-c", program, os.fspath(served.path)]
    assert subprocess.run(command, capture_output=True, check=True, env={}).stdout == b"True\n"
