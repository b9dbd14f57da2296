"""What must hold of a real agent's metrics: promtool has nothing to say, and what happens to a job shows in them.

The job is groups of our own making, named as Slurm names them; no Slurm is there to be asked.
"""

from __future__ import annotations

import http.client
import os
import signal
import socket
import subprocess
import sys
import tempfile
import time
import urllib.request
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, closing, contextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path

import pytest
from prometheus_client.parser import text_string_to_metric_families

from pageferry import wire
from pageferry.agent.exporter import FILE
from pageferry.errors import KernelError
from support.slurm_groups import SlurmJob, slurm_job

SECONDS = 60.0


def wait_until(what: Callable[[], object], why: str) -> None:
    """Look again and again: a file that is replaced by another process has no event that is worth the trouble."""
    until = time.monotonic() + SECONDS
    while not what():
        assert time.monotonic() < until, why
        time.sleep(0.05)


def free_port() -> int:
    with socket.create_server(("127.0.0.1", 0)) as probe:
        return int(probe.getsockname()[1])


@dataclass
class Agent:
    settings: Path
    socket: Path
    collector: Path
    port: int
    log: Path
    process: subprocess.Popen[bytes] = field(init=False)

    def answers(self) -> bool:
        try:
            return bool(wire.ask(self.socket, {"verb": "status"}, 10))
        except KernelError:  # not yet
            return False

    def configure(self) -> None:
        """Write the settings for this folder and port."""
        self.settings.write_text(f'[metrics]\ntextfile = "{self.collector}"\nlisten = "127.0.0.1:{self.port}"\n')

    def sockets(self) -> int:
        found = 0
        for link in Path(f"/proc/{self.process.pid}/fd").iterdir():
            with suppress(FileNotFoundError):
                found += str(link.readlink()).startswith("socket:")
        return found

    def client(self) -> http.client.HTTPConnection:
        made = http.client.HTTPConnection("127.0.0.1", self.port, timeout=SECONDS)
        made.connect()
        return made

    def scraped(self) -> str:
        opener = urllib.request.build_opener(urllib.request.ProxyHandler({}))
        with opener.open(f"http://127.0.0.1:{self.port}/metrics", timeout=SECONDS) as answer:
            return str(answer.read().decode())

    def filed(self) -> str:
        path = self.collector / FILE
        return path.read_text() if path.exists() else ""

    def stop(self) -> int:
        self.process.send_signal(signal.SIGTERM)
        return self.process.wait(SECONDS)


def value(text: str, name: str, **labels: str) -> float | None:
    """Return the one number of a name and labels, None if it is not there."""
    for family in text_string_to_metric_families(text):
        for sample in family.samples:
            if sample.name == name and sample.labels == labels:
                return float(sample.value)
    return None


@contextmanager
def running(
    folder: Path, collector: Path, port: int | None = None, program: Sequence[str] = ("-m", "pageferry")
) -> Iterator[Agent]:
    """Run an agent that knows nothing of this host's own, and end it."""
    words = [
        "--config",
        str(folder / "pageferry.toml"),
        "--run-folder",
        str(folder / "run"),
        "--history-file",
        str(folder / "h.sqlite3"),
    ]
    log = folder / "log"
    made = Agent(folder / "pageferry.toml", folder / "run/agent.sock", collector, port or free_port(), log)
    made.configure()
    with log.open("wb") as output:
        process = made.process = subprocess.Popen(
            [sys.executable, *program, "agent", *words],
            stdout=output,
            stderr=output,
            env={**os.environ, "PATH": "/usr/sbin:/usr/bin:/sbin:/bin"},
        )
    try:
        wait_until(lambda: process.poll() is not None or made.answers(), "the agent answers")
        assert process.poll() is None, log.read_text()
        yield made
    finally:
        if process.poll() is None:
            assert made.stop() == 0, log.read_text()


@pytest.fixture
def folder() -> Iterator[Path]:
    with tempfile.TemporaryDirectory(prefix="metrics-") as name:  # a socket's path is short
        yield Path(name)


@pytest.fixture
def agent(folder: Path, tmp_path: Path) -> Iterator[Agent]:
    with running(folder, tmp_path) as made:
        yield made


@pytest.fixture
def job() -> Iterator[SlurmJob]:
    with slurm_job("v2") as made:
        yield made


def suspend(job: SlurmJob, suspended: bool = True) -> None:
    """Write what Slurm writes."""
    for step in sorted(job.group.iterdir()):
        if step.name.startswith("step_"):
            (step / "user/cgroup.freeze").write_text("1" if suspended else "0")


@pytest.mark.long
def test_promtool_has_nothing_to_say_of_what_an_agent_writes_and_of_what_it_answers(
    agent: Agent, job: SlurmJob
) -> None:
    suspend(job)
    wait_until(lambda: value(agent.scraped(), "pageferry_holds_total"), "held")
    suspend(job, False)
    wait_until(lambda: value(agent.filed(), "pageferry_hold_releases_total", cause="arrived"), "released, and filed")
    for text in (agent.scraped(), agent.filed()):
        checked = subprocess.run(
            ["promtool", "check", "metrics"], input=text, capture_output=True, text=True, check=False, timeout=SECONDS
        )
        assert (checked.returncode, checked.stdout, checked.stderr) == (0, "", "")


def test_what_happens_to_a_job_shows(agent: Agent, job: SlurmJob) -> None:
    assert value(agent.scraped(), "pageferry_held_jobs", phase="held") == 0
    suspend(job)
    wait_until(lambda: value(agent.scraped(), "pageferry_held_jobs", phase="held") == 1, "held")
    name, words = "pageferry_migrations_total", {"event": "suspend", "outcome": "nothing"}
    wait_until(
        lambda: value(agent.scraped(), name, **words) == 1, "its memory was looked at: it has no CPUs of its own"
    )
    suspend(job, False)
    wait_until(lambda: value(agent.filed(), "pageferry_hold_releases_total", cause="arrived") == 1, "released")
    wait_until(lambda: value(agent.filed(), "pageferry_held_jobs", phase="held") == 0, "and filed")
    assert value(agent.filed(), "pageferry_holds_total") == 1
    assert job.answers()


def test_what_is_held_when_the_agent_stops_is_released_and_told_so(agent: Agent, job: SlurmJob) -> None:
    suspend(job)
    wait_until(lambda: value(agent.scraped(), "pageferry_held_jobs", phase="held") == 1, "held")
    assert agent.stop() == 0
    assert value(agent.filed(), "pageferry_up") == 0
    assert value(agent.filed(), "pageferry_hold_releases_total", cause="stopped") == 1
    assert value(agent.filed(), "pageferry_held_jobs", phase="held") == 0
    suspend(job, False)
    assert job.answers()


def test_a_job_that_ends_while_it_is_held_is_no_longer_held(agent: Agent) -> None:
    with slurm_job("v2") as job:
        suspend(job)
        wait_until(lambda: value(agent.scraped(), "pageferry_held_jobs", phase="held") == 1, "held")
        agent.process.send_signal(signal.SIGSTOP)  # it sees the end as a whole: half of it looks like a resume
    agent.process.send_signal(signal.SIGCONT)
    wait_until(lambda: value(agent.scraped(), "pageferry_hold_releases_total", cause="ended") == 1, "it has ended")
    assert value(agent.scraped(), "pageferry_held_jobs", phase="held") == 0


def test_jobs_are_served_though_no_metric_can_go_out(folder: Path, job: SlurmJob) -> None:
    with (
        socket.create_server(("127.0.0.1", 0)) as other,
        running(folder, folder / "no such", other.getsockname()[1]) as agent,
    ):
        suspend(job)
        wait_until(lambda: wire.ask(agent.socket, {"verb": "status"}, 10)["counts"].get("held"), "held")
        suspend(job, False)
        assert job.answers()
        wait_until(lambda: len(wire.ask(agent.socket, {"verb": "status"}, 10)["metrics_faults"]) == 2, "both are told")
        assert wire.ask(agent.socket, {"verb": "status"}, 10)["settings"] == str(folder / "pageferry.toml")
        said = agent.log.read_text()
        assert f"metrics.textfile: {folder}/no such/" in said
        assert "metrics.listen: 127.0.0.1:" in said


LISTENING = 2  # sockets: the agent's own and that of its metrics

LARGE_AND_PATIENT = """
from pageferry.agent import connections
from pageferry.agent.metrics import Metrics
from pageferry.cli.main import main
text = Metrics.text
Metrics.text = lambda self, up=True: text(self, up) + "# " + "x" * (16 << 20) + chr(10)
connections.TURN_SECONDS = 600.0
main()
"""
"""No client is cut off for its slowness, and no answer is taken over by the kernel as a whole."""


def test_who_is_connected_when_the_agent_is_told_to_listen_elsewhere_hangs_nowhere(folder: Path) -> None:
    with ExitStack() as stack:
        agent = stack.enter_context(running(folder, folder, program=("-c", LARGE_AND_PATIENT)))
        idle, half, taking = (stack.enter_context(closing(agent.client())) for _ in range(3))
        half.sock.sendall(b"GET /metrics HTTP/1.1\r\nHo")
        taking.request("GET", "/metrics")
        answer = taking.getresponse()
        assert answer.read(5000).startswith(b"# HELP ")
        wait_until(lambda: agent.sockets() == LISTENING + 3, "nobody else is connected by then")
        old, agent.port = agent.port, free_port()
        agent.configure()
        agent.process.send_signal(signal.SIGHUP)
        wait_until(lambda: "reloaded" in agent.log.read_text(), "reloaded")
        assert agent.sockets() == LISTENING, "none is left of the old address"
        with pytest.raises((http.client.IncompleteRead, ConnectionResetError)):
            answer.read()
        with suppress(ConnectionResetError):
            assert half.sock.recv(1) == b""
        with pytest.raises(ConnectionError):
            idle.request("GET", "/metrics")
            idle.getresponse()
        with pytest.raises(ConnectionRefusedError):
            socket.create_connection(("127.0.0.1", old))
        assert value(agent.scraped().partition("# xx")[0], "pageferry_up") == 1
