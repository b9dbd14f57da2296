"""Lines on the agent's socket, changed at random: each is answered in one line, and none ends the agent."""

from __future__ import annotations

import json
import logging
import select
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from pageferry import wire
from pageferry.agent import service
from pageferry.agent.wire_server import Server
from pageferry.errors import PageferryError
from pageferry.history.store import Store
from pageferry.wire import LINE_BYTES, Peer
from support.history_rows import row as history_row
from support.mutations import LONG, clean, fuzz, mutated, one_line
from support.service_agent import JOB, VERBS, Told, made
from support.wire_agent import connected

pytestmark = pytest.mark.filterwarnings("ignore:Generating overly large repr")

OWNER = 1000
MESSAGES = [{"verb": verb, **more} for verb, more in VERBS.items() if verb != "pbs"]
MESSAGES += [{"verb": "history", "job": "12.server", "limit": 5, "ledgers": True}, {"verb": "history", "migration": 1}]
MESSAGES += [{"verb": "move", "job": JOB, "nodes": "0-1,3", "cpus": "0-3", "strategy": "local", "hold": True}]
LINES = [json.dumps(message).encode() for message in MESSAGES]
VALUES: tuple[Any, ...] = (
    None,
    True,
    0,
    -1,
    7,
    1.5,
    1 << 32,
    1 << 64,
    10**40,
    "",
    "7",
    "0-3",
    "3-1",
    "0-99999999",
    "x" * LONG,
)
VALUES += ("\ud800", "a\nb", "\u202e", [], [7], {}, {"a": {}}, "12.server", "12.e5", "local", "²", "\0")


@pytest.fixture(scope="module")
def verbs(tmp_path_factory: pytest.TempPathFactory) -> Iterator[service.Service]:
    store = Store(tmp_path_factory.mktemp("wire") / "history")
    store.record_event(JOB, OWNER, "hold", "")
    patch = pytest.MonkeyPatch()
    patch.setattr(service, "slurm_job_owner", {JOB: OWNER}.get)
    yield made(Told(), store)
    patch.undo()
    store.close()


def handled(verbs: service.Service, line: bytes, uid: int) -> None:
    """Give a line to the agent's verbs, as the server does: it is answered, or refused in a line."""
    message = clean(lambda: wire.decoded(line))
    if isinstance(message, PageferryError):
        return
    assert isinstance(message, dict)
    if message.get("verb") == "pbs":
        return
    later: list[Mapping[str, Any]] = []
    before = len(told_of(verbs).calls)
    answer = clean(lambda: verbs.handle(Peer(1, uid, uid), message, later.append))
    if isinstance(answer, PageferryError):
        assert len(told_of(verbs).calls) == before, "what is refused is not done"
        return
    for said in [answer, *later]:
        assert said is None or wire.decoded(wire.encoded(said)[:-1]) is not None
    for call in told_of(verbs).calls[before:]:
        if call[0] == "request":
            assert type(call[1]) is int
            assert 0 <= call[1] < 1 << 32
            assert all(0 <= node < 1 << 30 for node in call[2].nodes)
            assert uid == 0 or call[1] == JOB


def told_of(verbs: service.Service) -> Told:
    told = verbs.tending
    assert isinstance(told, Told)
    return told


@given(mutated(LINES), st.sampled_from([0, OWNER, 65534]))
@example(b"[" * 60_000, 0)
@example(b'{"a":' * 10_000, 0)
@example(b'{"verb": "\\ud800"}', 0)
@example(b'{"verb": "status", "job": 1e999}', 0)
@fuzz
def test_a_changed_line_is_answered_or_refused(verbs: service.Service, line: bytes, uid: int) -> None:
    handled(verbs, line, uid)


@given(
    st.sampled_from(MESSAGES),
    st.dictionaries(st.sampled_from([*{key for message in MESSAGES for key in message}, "x"]), st.sampled_from(VALUES)),
    st.sampled_from([0, OWNER, 65534]),
)
@fuzz
def test_any_members_are_answered_or_refused(
    verbs: service.Service, message: dict[str, Any], changes: dict[str, Any], uid: int
) -> None:
    handled(verbs, json.dumps(message | changes).encode(), uid)


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory, verbs: service.Service) -> Iterator[tuple[Path, Server]]:
    path = tmp_path_factory.mktemp("socket") / "agent.sock"
    server = Server(path, verbs.handle)
    yield path, server
    server.close()


@given(
    st.lists(mutated(LINES) | st.binary(max_size=30), max_size=4),
    st.sampled_from([b"\n", b"\r\n", b"\n\n", b"", b"\0\n"]),
)
@example([b"x" * (LINE_BYTES - 1)], b"\n")
@example([b"x" * LINE_BYTES], b"\n")
@fuzz
def test_any_bytes_on_the_socket_are_answered_line_by_line(
    server: tuple[Path, Server], lines: list[bytes], end: bytes
) -> None:
    logging.disable(logging.CRITICAL)
    path, serves = server
    sent = b"".join(line + end for line in lines if b'"pbs"' not in line)[: 3 * LINE_BYTES]
    with connected(path) as client:
        client.setblocking(False)
        serves.serve()
        heard, left = b"", sent
        for _ in range(2000):
            if left:
                try:
                    left = left[client.send(left) :]
                except BlockingIOError:
                    pass
                except OSError:
                    left = b""
                if not left:
                    client.shutdown(1)
            _turn(serves)
            try:
                chunk = client.recv(1 << 16)
            except BlockingIOError:
                continue
            except ConnectionResetError:
                break
            if not chunk and not left:
                break
            heard += chunk
    _turn(serves)
    assert not heard or heard.endswith(b"\n")
    for answer in map(json.loads, heard.splitlines()):
        assert ("error" in answer) != (answer.get("ok") is True)
        if "error" in answer:
            one_line(answer["error"])
            assert "failed at this request" not in answer["error"]
            assert "cannot be sent" not in answer["error"]
            assert answer["code"] in {1, 2, 3, 4}
    assert len(heard.splitlines()) <= sent.count(b"\n") + 1
    logging.disable(logging.NOTSET)


def _turn(server: Server) -> None:
    while select.select([server.fileno()], [], [], 0)[0]:
        server.serve()


@given(mutated([wire.encoded({"ok": True, "migrations": [history_row()]})[:-1], b'{"error": "no", "code": 2}']))
@fuzz
def test_any_answer_is_read_or_refused(text: bytes) -> None:
    found = clean(lambda: wire.decoded(text))
    assert isinstance(found, dict | PageferryError)


@pytest.mark.parametrize("line", LINES)
def test_the_recorded_lines_are_answered(verbs: service.Service, line: bytes) -> None:
    answer = clean(lambda: verbs.handle(Peer(1, 0, 0), wire.decoded(line), lambda _: None))
    assert not isinstance(answer, PageferryError)
