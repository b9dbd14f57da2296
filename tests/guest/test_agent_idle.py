"""An idle agent and its guardian: small, of one thread, and woken by nothing but the watchdog's time.

Its metrics go out both ways, by file and by HTTP, and say what happened before.

What they do is seen by strace(1) from outside. PAGEFERRY_IDLE_SECONDS is how long.
"""

from __future__ import annotations

import os
import re
import signal
import socket
import subprocess
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from guest import agents, freezing
from guest.agents import Agent
from guest.steady import Steady, submit
from guest.vm.jobs import Slurm, wait_until

pytestmark = pytest.mark.long

SECONDS = float(os.environ.get("PAGEFERRY_IDLE_SECONDS", "60"))
WATCHDOG_SECONDS, WATCHED_SECONDS = 6.0, 15.0
RSS_KIB = 60 << 10

_CALL = re.compile(r"(\d+) +([a-z_0-9]+)\(")


@pytest.fixture(scope="module")
def jobs(slurm: Slurm) -> Iterator[list[Steady]]:
    """A job that is left alone, and one to be suspended."""
    begun = [submit(slurm, "-n1", mib=2) for _ in range(2)]
    yield begun
    for job in begun:
        job.end()


def comes_and_goes(agent: Agent, job: Steady) -> None:
    """Have Slurm suspend and resume a job under the agent's eyes; nothing is left to be done when this returns."""
    wait_until(lambda: agent.phase(job.id) == "runs", "the agent knows the job")
    job.slurm.suspend(job.id)
    wait_until(lambda: bool(agent.migrations(job.id)), "its memory was looked at")
    job.slurm.resume(job.id)
    wait_until(lambda: not freezing.held(job.slurm, job.id), "released")
    assert job.runs()
    assert agent.process is not None
    quiet(agent, [agent.process.pid, freezing.guardian(agent)])


def quiet(agent: Agent, pids: list[int]) -> None:
    """Wait until there is no errand, and processes have slept through two seconds: what follows a resume is done."""

    def switches() -> list[str]:
        files = [Path(f"/proc/{pid}/status").read_text() for pid in pids]
        return [re.findall(r"voluntary_ctxt_switches:\t(\d+)", text)[0] for text in files]

    def slept() -> bool:
        before = switches()
        time.sleep(2)  # metrics are filed up to a second after the last change
        return switches() == before and not freezing.errands(agent)

    wait_until(slept, "nothing is left to be done")


def calls(pids: list[int], trace: Path, seconds: float) -> dict[int, list[str]]:
    """Return the system calls that processes make in so many seconds, without those that they are in by then."""
    words = ["strace", "-f", "-o", str(trace)]
    for pid in pids:
        words += ["-p", str(pid)]
    strace = subprocess.Popen(words, stderr=subprocess.PIPE, text=True)
    assert strace.stderr is not None
    for _ in pids:
        assert "attached" in strace.stderr.readline()
    time.sleep(seconds)
    strace.send_signal(signal.SIGINT)
    strace.communicate(timeout=30)
    made: dict[int, list[str]] = {pid: [] for pid in pids}
    for line in trace.read_text().splitlines():
        if match := _CALL.match(line):
            made.setdefault(int(match[1]), []).append(match[2])
    return {pid: names[1:] for pid, names in made.items()}  # the first is the one that it slept in


def small(pid: int) -> int:
    """Return how much memory a process has, in KiB, after seeing that it has one thread."""
    assert len(list(Path(f"/proc/{pid}/task").iterdir())) == 1
    return int(Path(f"/proc/{pid}/status").read_text().split("VmRSS:")[1].split()[0])


def options(folder: Path) -> tuple[str, ...]:
    """Return the agent's options: a history of its own, and metrics to a folder and to a port."""
    return agents.own(folder, f'[metrics]\ntextfile = "{folder}"\nlisten = "127.0.0.1:9797"\n')


def test_an_idle_agent_makes_no_system_call(slurm: Slurm, jobs: list[Steady], results: Path, tmp_path: Path) -> None:
    with agents.agent(results / "agent-idle.log", *options(tmp_path), loads=True) as agent:
        comes_and_goes(agent, jobs[0])
        metrics = (tmp_path / "pageferry.prom").read_text()
        assert "\npageferry_holds_total 1\n" in metrics
        assert '\npageferry_hold_releases_total{cause="arrived"} 1\n' in metrics
        assert '\npageferry_held_jobs{phase="held"} 0\n' in metrics
        assert agent.process is not None
        pids = [agent.process.pid, freezing.guardian(agent)]
        made = calls(pids, results / "idle.strace", SECONDS)
        assert made == {pid: [] for pid in pids}
        rss = [small(pid) for pid in pids]
        (results / "idle.txt").write_text(f"{SECONDS:g} s: {made}; RSS of agent and guardian {rss} KiB\n")
        assert max(rss) < RSS_KIB
        assert all(job.runs() for job in jobs)


def test_with_a_watchdog_it_says_that_it_lives_and_nothing_else(
    slurm: Slurm, jobs: list[Steady], results: Path, tmp_path: Path
) -> None:
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as manager:
        manager.bind(str(tmp_path / "notify"))
        manager.setblocking(False)
        environment = {
            "NOTIFY_SOCKET": str(tmp_path / "notify"),
            "WATCHDOG_USEC": f"{WATCHDOG_SECONDS * 1e6:.0f}",
        }
        with agents.agent(results / "agent-watchdog.log", *options(tmp_path), environment=environment) as agent:
            comes_and_goes(agent, jobs[0])
            assert "READY=1" in heard(manager)
            assert agent.process is not None
            pids = [agent.process.pid, freezing.guardian(agent)]
            made = calls(pids, results / "watchdog.strace", WATCHED_SECONDS)
            said = heard(manager)
    times = WATCHED_SECONDS / (WATCHDOG_SECONDS / 2)
    assert said[-1] == "WATCHDOG=1"
    assert made[pids[1]] == [], "the guardian has no watchdog"
    assert set(made[pids[0]]) == {"poll", "socket", "sendto", "close"}
    assert times - 2 <= made[pids[0]].count("sendto") <= times + 1
    assert len(made[pids[0]]) <= 4 * (times + 1)


def heard(manager: socket.socket) -> list[str]:
    """Return what the service manager was told since."""
    messages = []
    while True:
        try:
            messages += manager.recv(4096).decode().splitlines()
        except BlockingIOError:
            return messages
