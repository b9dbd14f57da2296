"""What must hold of the metrics' HTTP: a scrape is answered, and no client can hold up the agent or use it up."""

from __future__ import annotations

import http.client
import resource
import select
import socket
import threading
import urllib.request
from collections.abc import Iterator

import pytest

from pageferry.agent.connections import TURN_SECONDS
from pageferry.agent.metrics_http import CONNECTIONS, HEAD_BYTES, Listener
from pageferry.config import Address
from pageferry.exposition import CONTENT_TYPE
from pageferry.kernel.sockets import listening
from support.wire_agent import Clock

TEXT = 'a_total{x="ü"} 1\n'


def readable(listener: Listener, seconds: float) -> bool:
    return bool(select.select([listener.fileno()], [], [], seconds)[0])


class Agent:
    """A listener whose loop a test turns by hand."""

    def __init__(self) -> None:
        self.clock = Clock()
        self.text = TEXT
        with socket.create_server(("127.0.0.1", 0)) as probe:
            self.port: int = probe.getsockname()[1]
        self.listener = Listener(Address(f"127.0.0.1:{self.port}"), self.told, self.clock)

    def told(self) -> str:
        if not self.text:
            raise ZeroDivisionError("an oversight")
        return self.text

    def connected(self) -> socket.socket:
        return socket.create_connection(("127.0.0.1", self.port), timeout=20)

    def turn(self) -> None:
        """Serve until nothing is to be done."""
        for _ in range(100_000):
            if not readable(self.listener, 0):
                return
            self.listener.serve()
        raise AssertionError("the listener spins")

    def said(self, client: socket.socket) -> bytes:
        """Return all that a client is told until the connection is closed."""
        heard = b""
        client.setblocking(False)
        for _ in range(10_000):
            self.turn()
            try:
                chunk = client.recv(65536)
            except BlockingIOError:
                select.select([client.fileno(), self.listener.fileno()], [], [], 1)
                continue
            except ConnectionResetError:
                return heard
            if not chunk:
                return heard
            heard += chunk
        raise AssertionError(f"not closed: {heard[:100]!r}")

    def ask(self, request: bytes) -> bytes:
        with self.connected() as client:
            client.sendall(request)
            return self.said(client)


@pytest.fixture
def agent() -> Iterator[Agent]:
    made = Agent()
    yield made
    made.listener.close()


GET = b"GET /metrics HTTP/1.1\r\nHost: node01:9797\r\nAccept: text/plain\r\n\r\n"


def test_a_scrape_gets_the_metrics_as_an_http_client_reads_them(agent: Agent) -> None:
    stop = threading.Event()

    def loop() -> None:
        while not stop.is_set():
            if readable(agent.listener, 0.05):
                agent.listener.serve()

    thread = threading.Thread(target=loop)
    thread.start()
    try:
        opener = urllib.request.build_opener(urllib.request.ProxyHandler({}))
        for _ in range(3):
            with opener.open(f"http://127.0.0.1:{agent.port}/metrics?module=x", timeout=20) as answer:
                assert answer.status == http.client.OK
                assert answer.headers["Content-Type"] == CONTENT_TYPE
                assert answer.read().decode() == TEXT
    finally:
        stop.set()
        thread.join()
    assert agent.listener.deadline() is None, "nothing is left of them"


@pytest.mark.parametrize(
    ("request_", "status"),
    [
        (b"GET / HTTP/1.1\r\n\r\n", 404),
        (b"GET /metrics/x HTTP/1.0\r\n\r\n", 404),
        (b"GET /../../etc/shadow HTTP/1.1\r\n\r\n", 404),
        (b"POST /metrics HTTP/1.1\r\nContent-Length: 2\r\n\r\n{}", 405),
        (b"HEAD /metrics HTTP/1.1\r\n\r\n", 405),
        (b"GET /metrics\r\n\r\n", 400),
        (b"\r\n\r\n", 400),
        (b"\x16\x03\x01\x02\x00\n\n", 400),
        (b"GET /metrics HTTP/1.1\r\nX: " + b"x" * HEAD_BYTES, 431),
        (b"GET /metrics HTTP/1.1\n\n", 200),
        (GET, 200),
    ],
)
def test_each_request_gets_the_answer_that_it_deserves(agent: Agent, request_: bytes, status: int) -> None:
    assert agent.ask(request_).startswith(f"HTTP/1.1 {status} ".encode())
    assert agent.ask(GET).endswith(b"\r\n\r\n" + TEXT.encode())


def test_a_request_that_comes_byte_by_byte_is_answered(agent: Agent) -> None:
    with agent.connected() as client:
        for byte in GET:
            client.sendall(bytes([byte]))
            agent.turn()
        assert agent.said(client).endswith(TEXT.encode())


def test_an_answer_that_the_client_takes_slowly_comes_whole(agent: Agent) -> None:
    agent.text = "x" * (4 << 20)
    assert agent.ask(GET).endswith(b"\r\n\r\n" + agent.text.encode())


def test_who_says_nothing_or_takes_nothing_is_cut_off_in_time(agent: Agent) -> None:
    agent.text = "x" * (16 << 20)
    with agent.connected() as silent, agent.connected() as deaf:
        deaf.sendall(GET)
        agent.turn()
        assert agent.listener.deadline() == agent.clock.now + TURN_SECONDS
        agent.clock.now += TURN_SECONDS
        agent.listener.expire()
        assert agent.listener.deadline() is None
        assert agent.said(silent) == b""
        assert len(agent.said(deaf)) < len(agent.text)


def test_no_more_than_so_many_are_served_at_once_and_then_others_again(agent: Agent) -> None:
    clients = [agent.connected() for _ in range(CONNECTIONS)]
    agent.turn()
    with agent.connected() as late:
        assert agent.said(late) == b""
    for client in clients:
        client.close()
    agent.turn()
    assert agent.ask(GET).startswith(b"HTTP/1.1 200 ")


def test_who_hangs_up_is_forgotten(agent: Agent) -> None:
    for request in (b"", b"GET /met", GET):
        with agent.connected() as client:
            client.sendall(request)
        agent.turn()
    agent.turn()
    assert agent.listener.deadline() is None


def test_a_fault_of_ours_is_an_answer_and_the_agent_goes_on(agent: Agent) -> None:
    agent.text = ""
    assert agent.ask(GET).startswith(b"HTTP/1.1 500 ")
    agent.text = TEXT
    assert agent.ask(GET).startswith(b"HTTP/1.1 200 ")


def test_without_descriptors_it_neither_spins_nor_gives_up(agent: Agent) -> None:
    with agent.connected() as client:
        client.sendall(GET)
        limits = resource.getrlimit(resource.RLIMIT_NOFILE)
        resource.setrlimit(resource.RLIMIT_NOFILE, (1, limits[1]))
        try:
            agent.listener.serve()
        finally:
            resource.setrlimit(resource.RLIMIT_NOFILE, limits)
        agent.turn()
        assert agent.listener.deadline() is not None
        agent.clock.now += 1
        agent.listener.expire()
        assert agent.said(client).endswith(TEXT.encode())


@pytest.mark.parametrize("host", ["192.0.2.1", "2001:db8::1"])
def test_it_can_listen_before_the_host_has_its_address(host: str) -> None:
    with pytest.raises(OSError, match="assign"):
        listening(host, 0)
    listening(host, 0, freely=True).close()
