"""The guardian is killed, alone and with the agent, and the agent hangs: what it held is released or taken over."""

from __future__ import annotations

import os
import signal
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path

import pytest

from guest import agents, freezing, nursery
from guest.agents import Agent
from guest.freezing import happens, held, stopped_errand
from guest.steady import Steady, submit
from guest.vm.jobs import Slurm, wait_until
from pageferry.gate.gate import PULSE_SECONDS

pytestmark = pytest.mark.v1

SETTINGS = "[agent]\nmax_hold_seconds = 60\n[spill]\nenabled = false\n"


@pytest.fixture(scope="module")
def shared(slurm: Slurm, results: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Agent]:
    """An agent for all tests of this file."""
    folder = tmp_path_factory.mktemp("agent")
    with agents.agent(results / "agent-guardian.log", *agents.own(folder, SETTINGS)) as made:
        yield made


@pytest.fixture(scope="module")
def two(slurm: Slurm) -> Iterator[list[Steady]]:
    """Two jobs for all tests of this file."""
    begun = [submit(slurm, "-n1", mib=2) for _ in range(2)]
    yield begun
    for job in begun:
        job.end()


@pytest.fixture
def agent(shared: Agent) -> Agent:
    """The agent, running again if it was killed."""
    assert shared.process is not None
    if shared.process.poll() is not None:
        shared.start()
    return shared


@pytest.fixture
def jobs(agent: Agent, two: list[Steady]) -> Iterator[list[Steady]]:
    """The jobs, running."""
    for job in two:
        wait_until(lambda job=job: settled(agent, job), "the job runs")  # type: ignore[misc]
    yield two
    for job in two:
        freezing.write(job.slurm, job.id, False)


def settled(agent: Agent, job: Steady) -> bool:
    state = agent.ask("status")["jobs"].get(str(job.id), {})
    return state.get("phase") == "runs" and state.get("stage") is None


def suspended(agent: Agent, job: Steady) -> None:
    """Suspend a job, and wait until its memory has arrived."""
    number = len(agent.migrations(job.id))
    freezing.write(job.slurm, job.id, True)
    wait_until(lambda: len(agent.migrations(job.id)) > number, "its memory has arrived")
    assert held(job.slurm, job.id)


def waits(agent: Agent, job: Steady) -> int:
    """Suspend a job and resume it, and have it wait for an errand that is stopped; return that."""
    freezing.write(job.slurm, job.id, True)
    errand = stopped_errand(agent)
    freezing.write(job.slurm, job.id, False)
    wait_until(lambda: agent.phase(job.id) == "waits", "it waits for its memory")
    assert held(job.slurm, job.id)
    return errand


def both_killed(agent: Agent) -> None:
    """End agent and guardian, none of which can see the other's end."""
    assert agent.process is not None
    guardian = freezing.guardian(agent)
    agent.signal(signal.SIGSTOP)
    assert freezing.stands_still(agent.process.pid)
    os.kill(guardian, signal.SIGKILL)
    agent.kill()
    wait_until(lambda: not Path(f"/proc/{guardian}").exists(), "the guardian is gone")


def test_the_hold_outlasts_the_guardian_and_the_next_guardian_releases_it(agent: Agent, jobs: list[Steady]) -> None:
    job = jobs[0]
    suspended(agent, job)
    ended = freezing.guardian(agent)
    count = job.counts()
    os.kill(ended, signal.SIGKILL)
    wait_until(lambda: agent.count("guardian ended") > 0, "the agent knows")
    assert freezing.guardian(agent) != ended
    assert held(job.slurm, job.id)
    assert agent.phase(job.id) == "held"
    assert job.counts() == count
    agent.kill()
    wait_until(lambda: not held(job.slurm, job.id), "the second guardian releases it")


def test_when_both_are_killed_what_systemd_runs_afterwards_releases(agent: Agent, jobs: list[Steady]) -> None:
    job = jobs[0]
    waits(agent, job)
    both_killed(agent)
    count = job.counts()
    assert held(job.slurm, job.id)
    assert not happens(lambda: job.counts() != count, 0.5), "nobody is there to release it"
    said = nursery.run("release").stdout
    assert said == f"job {job.id}: released\n"
    assert not held(job.slurm, job.id)
    assert job.runs()


def test_when_both_are_killed_the_next_agent_keeps_what_is_suspended_and_releases_the_rest(
    agent: Agent, jobs: list[Steady]
) -> None:
    kept, released = jobs
    suspended(agent, kept)
    waits(agent, released)
    both_killed(agent)
    count = kept.counts()
    agent.start()
    wait_until(lambda: not held(released.slurm, released.id), "what Slurm lets run is released")
    assert released.runs()
    assert held(kept.slurm, kept.id)
    assert agent.phase(kept.id) == "held"
    assert kept.counts() == count
    for job, text in ((kept, "still held"), (released, "released")):
        events = agent.ask("history", job=job.id)["events"]
        assert any(event["kind"] == "recovered" and text in event["text"] for event in events)
    freezing.write(kept.slurm, kept.id, False)
    wait_until(lambda: not held(kept.slurm, kept.id), "released after Slurm's resume")
    assert kept.runs()


@pytest.mark.long
def test_an_agent_that_hangs_is_given_up_on_and_goes_on_where_it_can(agent: Agent, jobs: list[Steady]) -> None:
    job = jobs[0]
    errand = waits(agent, job)
    agent.signal(signal.SIGSTOP)
    wait_until(lambda: not held(job.slurm, job.id), "the guardian gives up on the agent", PULSE_SECONDS + 20)
    assert job.runs()
    agent.signal(signal.SIGCONT)
    wait_until(lambda: agent.phase(job.id) == "runs", "the agent knows that its hold is lost")
    assert not held(job.slurm, job.id)
    told = [event["text"] for event in agent.ask("history")["events"] if event["kind"] == "released by the guardian"]
    assert "has not been heard" in told[0]
    with suppress(ProcessLookupError):  # on a slow machine its own time limit was up meanwhile
        os.kill(errand, signal.SIGCONT)
    wait_until(lambda: settled(agent, job), "its memory is moved while it runs")
    suspended(agent, job)
    freezing.write(job.slurm, job.id, False)
    wait_until(lambda: not held(job.slurm, job.id), "released as ever")
    assert job.runs()
