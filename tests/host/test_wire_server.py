"""What must hold of the agent's end of the socket: who asks is known, and no client holds it up or uses it up."""

from __future__ import annotations

import json
import os
import resource
import socket
import stat
import tempfile
from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path

import pytest

from pageferry import wire
from pageferry.agent import wire_server
from pageferry.agent.connections import TURN_SECONDS
from pageferry.agent.wire_server import Server
from pageferry.errors import KernelError, UsageError
from pageferry.wire import Peer
from support.children import python
from support.wire_agent import NOBODY, Agent, connected, connected_as


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


# A conversation


def test_a_request_is_answered_and_its_peer_is_known(agent: Agent) -> None:
    with connected(agent.path) as client:
        client.send(b'{"verb": "status", "job": 7}\n')
        assert agent.said(client) == [{"ok": True, "echo": {"verb": "status", "job": 7}}]
    assert agent.heard[0][0] == Peer(os.getpid(), 0, 0)


def test_another_user_is_told_apart(agent: Agent) -> None:
    with connected_as(agent.path, NOBODY) as client:
        client.send(b'{"verb": "status"}\n')
        agent.turn()
    assert agent.heard[0][0].uid == NOBODY


def test_requests_of_one_connection_are_answered_in_order_however_they_are_cut(agent: Agent) -> None:
    with connected(agent.path) as client:
        for byte in b'{"verb": "a"}\n{"verb": "b"}\n{"ve':
            client.send(bytes([byte]))
            agent.turn()
        client.send(b'rb": "c"}\n')
        assert [answer["echo"]["verb"] for answer in agent.said(client)] == ["a", "b", "c"]


def test_a_deferred_answer_holds_up_its_own_connection_only(agent: Agent) -> None:
    with connected(agent.path) as client, connected(agent.path) as other:
        client.send(b'{"verb": "later"}\n{"verb": "next"}\n')
        assert agent.said(client) == []
        other.send(b'{"verb": "status"}\n')
        assert len(agent.said(other)) == 1
        agent.clock.now += 1e6
        agent.server.expire()
        agent.later[0]({"moved": 5})
        assert agent.said(client) == [{"ok": True, "moved": 5}, {"ok": True, "echo": {"verb": "next"}}]


def test_a_reply_counts_once_and_for_its_own_request_only(agent: Agent) -> None:
    with connected(agent.path) as client:
        client.send(b'{"verb": "at once"}\n{"verb": "later"}\n{"verb": "later"}\n')
        assert agent.said(client) == [{"ok": True, "by": "reply"}]
        agent.later[0]({"n": 1})
        assert agent.said(client) == [{"ok": True, "n": 1}]
        agent.later[0]({"n": "again"})
        assert agent.said(client) == []
        agent.later[1]({"error": "no room", "code": 1})
        assert agent.said(client) == [{"error": "no room", "code": 1}]


def test_a_reply_to_a_client_that_is_gone_has_no_effect(agent: Agent) -> None:
    client = connected(agent.path)
    client.send(b'{"verb": "later"}\n')
    agent.turn()
    client.close()
    agent.turn()
    assert agent.server.deadline() is None
    with connected(agent.path) as other:  # takes the same descriptor
        other.send(b'{"verb": "later"}\n')
        agent.turn()
        agent.later[0]({"for": "the first"})
        assert agent.said(other) == []


def test_what_a_client_had_still_to_ask_ends_with_it(agent: Agent) -> None:
    with connected(agent.path) as client:
        client.send(b'{"verb": "later"}\n')
        agent.turn()
        client.send(b'{"verb": "next"}\n')
    agent.turn()
    assert [message["verb"] for _, message in agent.heard] == ["later"]


def test_who_pokes_and_leaves_at_once_is_heard(agent: Agent) -> None:
    with connected(agent.path) as client:
        client.send(b'{"verb": "poke", "job": 7}\n')
    agent.turn()
    assert [message["job"] for _, message in agent.heard] == [7]
    assert agent.server.deadline() is None


def test_who_says_no_more_is_answered(agent: Agent) -> None:
    with connected(agent.path) as client:
        client.send(b'{"verb": "later"}\n')
        client.shutdown(socket.SHUT_WR)
        agent.turn()
        agent.later[0]({"n": 1})
        assert agent.said(client) == [{"ok": True, "n": 1}, {}]


# What goes wrong


@pytest.mark.parametrize(
    "line",
    [
        b"",
        b"nonsense",
        b"[]",
        b"3",
        b"null",
        b'"verb"',
        b"{}",
        b'{"verb": 3}',
        b'{"verb": null}',
        b'{"verb": ["status"]}',
        b'{"verb": "status", "job": NaN}',
        b'{"verb": "status", "job": -Infinity}',
        b'{"verb": "status", "job": 1e999}',
        b'{"verb": "status", "job": ' + b"1" * 5000 + b"}",
        b'{"verb": "status", "x": "\\ud800"}',
        b'{"verb": "status", "x": "\xff"}',
        b'{"verb": "status"} {"verb": "status"}',
        b"[" * 60_000,
        b'{"verb": ' + b"[" * 60_000,
        b'{"a":' * 10_000,
        b"\0" * 100,
    ],
    ids=lambda line: ascii(line[:24]),
)
def test_hostile_input_gets_one_line_and_the_connection_goes_on(agent: Agent, line: bytes) -> None:
    with connected(agent.path) as client:
        client.sendall(line + b"\n")
        (answer,) = agent.said(client)
        assert answer["code"] == 2
        assert answer["error"].isprintable()
        assert len(answer["error"]) < 300
        assert agent.heard == []
        client.send(b'{"verb": "status"}\n')
        assert agent.said(client)[0]["ok"]


def test_a_half_line_at_the_end_is_refused(agent: Agent) -> None:
    with connected(agent.path) as client:
        client.send(b'{"verb": "status"}')
        client.shutdown(socket.SHUT_WR)
        answer, end = agent.said(client)
        assert "end of line" in answer["error"]
        assert end == {}
    assert agent.heard == []


def test_a_line_of_the_greatest_length_is_taken_and_a_longer_one_ends_the_connection(agent: Agent) -> None:
    frame = len(b'{"verb":""}\n')
    with connected(agent.path) as client:
        client.setblocking(False)
        client.sendall(b'{"verb":"' + b"x" * (wire.LINE_BYTES - frame) + b'"}\n')
        assert agent.said(client)[0]["ok"]
        client.sendall(b'{"verb":"' + b"x" * (wire.LINE_BYTES - frame + 1) + b'"}\n')
        answer, end = agent.said(client)
        assert "longer than 65536" in answer["error"]
        assert end == {}
    assert len(agent.heard) == 1


@pytest.mark.parametrize(
    ("verb", "code", "text"),
    [("refuse", 3, "no such key"), ("bug", 1, "its log says"), ("unsayable", 1, "its log says")],
)
def test_a_handler_that_fails_costs_an_answer_only(
    agent: Agent, caplog: pytest.LogCaptureFixture, verb: str, code: int, text: str
) -> None:
    with connected(agent.path) as client:
        client.send(json.dumps({"verb": verb}).encode() + b"\n")
        (answer,) = agent.said(client)
        assert answer["code"] == code
        assert text in answer["error"]
        assert "oversight" not in answer["error"]
        assert bool(caplog.records) == (verb != "refuse")
        client.send(b'{"verb": "status"}\n')
        assert agent.said(client)[0]["ok"]


# Slow, silent and many clients


def test_a_silent_client_is_closed_when_its_time_is_up_and_not_before(agent: Agent) -> None:
    with connected(agent.path) as client:
        agent.turn()
        deadline = agent.server.deadline()
        assert deadline is not None
        agent.clock.now = deadline - 0.001
        agent.server.expire()
        assert agent.said(client) == []
        agent.clock.now = deadline
        agent.server.expire()
        assert agent.said(client) == [{}]
    assert agent.server.deadline() is None


def test_a_client_that_drips_gets_no_more_time(agent: Agent) -> None:
    with connected(agent.path) as client:
        agent.turn()
        deadline = agent.server.deadline()
        for byte in b'{"ve':
            agent.clock.now += 1
            client.send(bytes([byte]))
            agent.turn()
        assert agent.server.deadline() == deadline


def test_a_client_that_does_not_take_its_answer_holds_up_nobody_and_is_closed(agent: Agent) -> None:
    with connected(agent.path) as client, connected(agent.path) as other:
        client.send(b'{"verb": "large"}\n')
        other.send(b'{"verb": "status"}\n')
        assert agent.said(other)[0]["ok"]
        agent.clock.now += TURN_SECONDS
        other.send(b'{"verb": "status"}\n')
        assert agent.said(other)[0]["ok"]
        agent.server.expire()
        client.setblocking(False)
        heard = 0
        while chunk := client.recv(1 << 20):
            heard += len(chunk)
        assert heard < 4 << 20


def test_a_large_answer_arrives_whole(agent: Agent) -> None:
    with connected(agent.path) as client:
        client.send(b'{"verb": "large"}\n')
        assert len(agent.said(client)[0]["text"]) == 4 << 20


def test_a_flood_of_requests_is_served_one_a_turn(agent: Agent) -> None:
    with connected(agent.path) as client, connected(agent.path) as other:
        client.sendall(b'{"verb": "flood"}\n' * 1000)
        other.send(b'{"verb": "status"}\n')
        for _ in range(3):
            agent.server.serve()
        assert "status" in [message["verb"] for _, message in agent.heard]
        assert len(agent.heard) <= 4
        assert len(agent.said(client)) == 1000


def test_one_user_cannot_take_all_connections_and_users_cannot_keep_root_out(agent: Agent) -> None:
    with ExitStack() as stack:
        mine = [stack.enter_context(connected_as(agent.path, NOBODY)) for _ in range(20)]
        agent.turn()
        assert [agent.said(client) for client in mine[: wire_server.CONNECTIONS_OF_A_USER]] == [[]] * 8
        for client in mine[wire_server.CONNECTIONS_OF_A_USER :]:
            refused, end = agent.said(client)
            assert refused["code"] == 4
            assert "of this user" in refused["error"]
            assert end == {}
        for user in range(2000, 2040):
            for _ in range(2):
                stack.enter_context(connected_as(agent.path, user))
            agent.turn()
        roots = [stack.enter_context(connected(agent.path)) for _ in range(20)]
        agent.turn()
        spare = wire_server.CONNECTIONS - wire_server.CONNECTIONS_OF_USERS
        assert [agent.said(client) for client in roots[:spare]] == [[]] * spare
        assert "64 connections" in agent.said(roots[-1])[0]["error"]
        roots[0].send(b'{"verb": "status"}\n')
        assert agent.said(roots[0])[0]["ok"]
        mine[0].close()
        agent.turn()
        again = stack.enter_context(connected(agent.path))
        assert agent.said(again) == []


def test_without_descriptors_the_server_rests_and_goes_on_later(agent: Agent) -> None:
    with connected(agent.path) as client, connected(agent.path) as other:
        client.send(b'{"verb": "status"}\n')
        soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
        resource.setrlimit(resource.RLIMIT_NOFILE, (other.fileno() + 1, hard))
        try:
            agent.turn()
        finally:
            resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))
        assert agent.heard == []
        deadline = agent.server.deadline()
        assert deadline is not None
        agent.clock.now = deadline
        agent.server.expire()
        assert agent.said(client)[0]["ok"]


# The socket's place


def test_everyone_may_connect_and_only_root_may_replace_the_socket(folder: Path) -> None:
    old = os.umask(0o077)
    try:
        server = Server(folder / "run" / "agent.sock", lambda peer, message, reply: None)
    finally:
        os.umask(old)
    assert stat.S_IMODE((folder / "run" / "agent.sock").stat().st_mode) == 0o666
    assert stat.S_IMODE((folder / "run").stat().st_mode) == 0o755
    server.close()
    assert not (folder / "run" / "agent.sock").exists()


def test_a_place_where_others_may_write_is_refused(folder: Path) -> None:
    folder.chmod(0o777)
    with pytest.raises(KernelError, match="others may write"):
        Server(folder / "agent.sock", lambda peer, message, reply: None)
    folder.chmod(0o700)
    os.chown(folder, NOBODY, 0)
    with pytest.raises(KernelError, match="others may write"):
        Server(folder / "agent.sock", lambda peer, message, reply: None)


def test_a_place_that_cannot_be_used_is_a_clear_error(folder: Path) -> None:
    (folder / "file").touch()
    (folder / "agent.sock").mkdir()
    for path in (folder / "file" / "agent.sock", folder / "agent.sock", folder / ("x" * 200 + ".sock")):
        with pytest.raises(KernelError, match=r"directory|too long"):
            Server(path, lambda peer, message, reply: None)


AGENT = """
import os, signal
from pathlib import Path
from pageferry.agent.wire_server import Server
server = Server(Path({path!r}), lambda peer, message, reply: {{}})
if {fork} and os.fork() == 0:
    signal.pause()
print(os.getpid(), flush=True)
signal.pause()
"""


def test_a_living_agents_socket_is_not_taken(folder: Path) -> None:
    path = folder / "agent.sock"
    with python(AGENT.format(path=str(path), fork=False)) as process:
        assert process.stdout is not None
        process.stdout.readline()
        inode = path.stat().st_ino
        with pytest.raises(UsageError, match="runs already"):
            Server(path, lambda peer, message, reply: None)
        assert path.stat().st_ino == inode
        assert wire.present(path)


def test_a_dead_agents_socket_is_replaced_even_if_its_child_lives_on(folder: Path) -> None:
    path = folder / "agent.sock"
    with python(AGENT.format(path=str(path), fork=True)) as process:
        assert process.stdout is not None
        process.stdout.readline()
        (child,) = Path(f"/proc/{process.pid}/task/{process.pid}/children").read_text().split()
        process.kill()
        process.wait()
        try:
            agent = Agent(path)
            with connected(path) as client:
                client.send(b'{"verb": "status"}\n')
                assert agent.said(client)[0]["ok"]
            agent.server.close()
        finally:
            os.kill(int(child), 9)


def test_a_forked_child_neither_keeps_a_connection_open_nor_takes_it_away(agent: Agent) -> None:
    with connected(agent.path) as client, connected(agent.path) as other:
        client.send(b'{"verb": "later"}\n')
        agent.turn()
        read, write = os.pipe()
        child = os.fork()
        if child == 0:
            os.close(write)
            os.read(read, 1)
            os._exit(0)
        os.close(read)
        agent.clock.now += TURN_SECONDS
        agent.server.expire()
        assert agent.said(other) == [{}], "closed for its client, although the child has it still"
        os.close(write)
        os.waitpid(child, 0)
        agent.later[0]({"n": 1})
        assert agent.said(client) == [{"ok": True, "n": 1}]
        assert agent.path.exists()
