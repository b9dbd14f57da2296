"""The agent is killed at each step of its way with a job, and at any moment: the job runs on, and the next agent knows.

The guardian's own death is in test_agent_guardian, other failures in test_agent_failures.
"""

from __future__ import annotations

import os
import random
import signal
import subprocess
import threading
import time
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from typing import Any

import pytest

from guest import agents, freezing
from guest.agents import RUN, Agent
from guest.freezing import held, stopped_errand
from guest.steady import Steady, submit
from guest.vm.jobs import Slurm, wait_until

MOMENTS = 20
SEED = 3
REAL = 5
"""Every so many of the random moments, Slurm itself suspends and resumes."""

SETTINGS = "[agent]\nmax_hold_seconds = 20\n[spill]\nenabled = false\n"


@pytest.fixture(scope="module")
def shared(slurm: Slurm, results: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Agent]:
    """An agent for all tests of this file."""
    folder = tmp_path_factory.mktemp("agent")
    with agents.agent(results / "agent-killed.log", *agents.own(folder, SETTINGS)) as made:
        yield made


@pytest.fixture(scope="module")
def steady(slurm: Slurm) -> Iterator[Steady]:
    """A job for all tests of this file."""
    begun = submit(slurm, "-n1", mib=2)
    yield begun
    begun.end()


@pytest.fixture
def agent(shared: Agent) -> Agent:
    """The agent, running again if it was killed."""
    assert shared.process is not None
    if shared.process.poll() is not None:
        shared.start()
    return shared


@pytest.fixture
def job(agent: Agent, steady: Steady) -> Iterator[Steady]:
    """The job, running and in nobody's hands."""
    wait_until(lambda: settled(agent, steady), "the job runs and nothing is done about it")
    yield steady
    if steady.slurm.frozen(steady.id):
        subprocess.run(["scontrol", "resume", str(steady.id)], check=False)
        freezing.write(steady.slurm, steady.id, False)


def settled(agent: Agent, job: Steady) -> bool:
    state = agent.ask("status")["jobs"].get(str(job.id), {})
    return state.get("phase") == "runs" and state.get("stage") is None


def stage(agent: Agent, job: Steady) -> str | None:
    word: str | None = agent.ask("status")["jobs"][str(job.id)]["stage"]
    return word


def suspend(job: Steady) -> None:
    """Suspend the job as slurmd does, which is faster than Slurm."""
    freezing.write(job.slurm, job.id, True)


def asking(agent: Agent, job: Steady) -> int:
    """Bring the job where it is held and Slurm is being asked for a request; return the errand, which is stopped."""
    subprocess.run(["scontrol", "suspend", str(job.id)], check=True)
    errand = stopped_errand(agent)
    assert agent.phase(job.id) == "held"
    assert stage(agent, job) == "asks Slurm"
    return errand


def moving(agent: Agent, job: Steady) -> int:
    """Bring the job where its memory is being moved while it is suspended; return the errand, which is stopped."""
    suspend(job)
    errand = stopped_errand(agent)
    os.kill(errand, signal.SIGCONT)
    errand = stopped_errand(agent, after=errand)
    assert agent.phase(job.id) == "held"
    assert stage(agent, job) == "moves"
    return errand


def arrived(agent: Agent, job: Steady) -> None:
    """Bring the job where its memory has arrived, and Slurm still has it suspended."""
    number = len(agent.migrations(job.id))
    suspend(job)
    wait_until(lambda: len(agent.migrations(job.id)) > number, "its memory has arrived")
    assert agent.phase(job.id) == "held"


def waiting(agent: Agent, job: Steady) -> None:
    """Bring the job where Slurm lets it run, and it waits for its memory, which is on its way."""
    asking(agent, job)
    job.slurm.resume(job.id)
    wait_until(lambda: agent.phase(job.id) == "waits", "it waits for its memory")


def at_call(agent: Agent, job: Steady, call: str, path: Path | str, bring: Callable[[], Any]) -> None:
    """Have the agent killed as it makes a system call on a path, which is then not made."""
    assert agent.process is not None
    path = Path(str(path).format(job=job.id))
    words = ["strace", "-o", "/dev/null", "-p", str(agent.process.pid), "-P", str(path)]
    words += ["-e", f"trace={call}", "-e", f"inject={call}:signal=KILL"]
    with subprocess.Popen(words, stderr=subprocess.PIPE, text=True) as strace:
        assert strace.stderr is not None
        try:
            assert "attached" in (said := strace.stderr.readline()), said
            bring()
            strace.wait(30)
        finally:
            strace.kill()
    wait_until(lambda: agent.process is not None and agent.process.poll() is not None, "the agent is killed", 5)


def freeze_file(job: Steady) -> Path:
    return freezing.task_freezers(job.slurm, job.id)[0]


RECORD, UNDONE, NEW = (RUN / "holds" / f"{{job}}.{word}" for word in ("hold", "undone", "new"))


def at_release(agent: Agent, job: Steady, call: str, path: Path | None = None) -> None:
    arrived(agent, job)
    at_call(agent, job, call, path or freeze_file(job), partial(freezing.write, job.slurm, job.id, False))


STEPS: dict[str, Callable[[Agent, Steady], Any]] = {
    "it records the hold": lambda agent, job: at_call(agent, job, "rename", NEW, partial(suspend, job)),
    "it sets the hold": lambda agent, job: at_call(agent, job, "write", freeze_file(job), partial(suspend, job)),
    "it asks Slurm": asking,
    "it moves": moving,
    "all has arrived": arrived,
    "the job waits": waiting,
    "it says that it releases": lambda agent, job: at_release(agent, job, "rename", RECORD),
    "it releases": lambda agent, job: at_release(agent, job, "write"),
    "it has released": lambda agent, job: at_release(agent, job, "unlink", UNDONE),
}
UNHELD = {"it records the hold"}
"""The guardian has not been told of anything by then."""


EACH_CHANGE = {"it sets the hold", "it moves", "it has released"}
"""At these each change must show it; the others take long."""


@pytest.mark.parametrize(
    "step", [pytest.param(step, marks=[] if step in EACH_CHANGE else pytest.mark.long) for step in STEPS]
)
def test_an_agent_that_is_killed_leaves_nothing_held_and_the_next_one_knows(
    agent: Agent, job: Steady, step: str
) -> None:
    STEPS[step](agent, job)
    agent.kill()
    wait_until(lambda: not held(job.slurm, job.id), "the guardian has released the job")
    if job.slurm.state(job.id) == "SUSPENDED":
        job.slurm.resume(job.id)
    freezing.write(job.slurm, job.id, False)
    assert job.runs()
    agent.start()
    wait_until(lambda: settled(agent, job), "the next agent finds it running")
    released = [event["text"] for event in since_start(agent) if event["kind"] == "released by the guardian"]
    assert [str(job.id) in text for text in released] == [True] * (step not in UNHELD)
    comes_and_goes(agent, job)


def since_start(agent: Agent) -> list[dict[str, Any]]:
    """Return the events from what the agent said as it started on."""
    events = sorted(agent.ask("history", limit=1000)["events"], key=lambda event: event["id"])
    starts = [number for number, event in enumerate(events) if event["kind"] == "started"]
    before = starts[-2] + 1 if len(starts) > 1 else 0
    ends = [number for number, event in enumerate(events[: starts[-1]]) if event["kind"] in {"released", "held"}]
    return events[max([before, *(number + 1 for number in ends)]) :]


def comes_and_goes(agent: Agent, job: Steady) -> None:
    """Suspend and resume the job, which is held in between and has its memory looked at."""
    number = len(agent.migrations(job.id))
    freezing.write(job.slurm, job.id, True)
    wait_until(lambda: held(job.slurm, job.id), "held")
    wait_until(lambda: len(agent.migrations(job.id)) > number, "its memory is looked at")
    freezing.write(job.slurm, job.id, False)
    wait_until(lambda: not held(job.slurm, job.id), "released")
    assert job.runs()
    assert agent.migrations(job.id)[number]["error"] == ""


@pytest.mark.long
def test_at_whatever_moment_the_agent_is_killed_the_job_runs_on(agent: Agent, job: Steady) -> None:
    began = time.monotonic()
    comes_and_goes(agent, job)
    span = time.monotonic() - began
    moments = random.Random(SEED)
    for number in range(MOMENTS):
        real = number % REAL == 0
        suspended, killed = moments.uniform(0, span), moments.uniform(2 * real, 2 * span + 2 * real)
        cycle = threading.Thread(target=really if real else simulated, args=(job, suspended))
        cycle.start()
        time.sleep(killed)
        agent.kill()
        agent.start()
        cycle.join()
        moment = f"moment {number}: suspended for {suspended:.3f} s, killed after {killed:.3f} s"
        wait_until(lambda: not held(job.slurm, job.id), f"{moment}: released\n{agent.said()[-3000:]}", 30)
        wait_until(lambda: agent.phase(job.id) == "runs", f"{moment}: known to run", 30)
        assert job.runs(), moment
    assert job.slurm.state(job.id) == "RUNNING"
    assert all(entry["intact"] for entry in job.diary())
    wait_until(lambda: settled(agent, job), "the last agent has done its work")
    comes_and_goes(agent, job)


def simulated(job: Steady, seconds: float) -> None:
    freezing.write(job.slurm, job.id, True)
    time.sleep(seconds)
    freezing.write(job.slurm, job.id, False)


def really(job: Steady, seconds: float) -> None:
    job.slurm.suspend(job.id)
    time.sleep(seconds)
    job.slurm.resume(job.id)
