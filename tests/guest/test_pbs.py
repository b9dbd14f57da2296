"""What PBS's events come to on four nodes: real processes in groups laid out as pbs_cgroups lays them, real pages.

On both cgroup versions, with the shipped hook file and a real agent, or none.
"""

from __future__ import annotations

import os
import re
import signal
import subprocess
import sys
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from guest import agents, freezing, nursery
from guest.agents import Agent
from guest.freezing import happens
from guest.pbs import PbsJob, pbs_job
from guest.steady import stood_still
from guest.vm.jobs import wait_until
from guest.witness import census, vmstat
from pageferry.pbs import record
from pageferry.schedulers.pbs_cgroups import pbs_job_freezers

pytestmark = pytest.mark.v1

MIB = 256
"""Base pages of a MiB."""

MAX_HOLD = 20
SETTINGS = f"""
[agent]
max_hold_seconds = {MAX_HOLD}
[spill]
least_bytes = "1M"
[[rule]]
name = "all"
owners_may_ask = true
"""


@pytest.fixture(scope="module")
def shared_agent(results: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Agent]:
    """An agent for all tests of this file that need nothing special of it."""
    folder = tmp_path_factory.mktemp("agent")
    with agents.agent(results / "agent-pbs.log", *agents.own(folder, SETTINGS)) as made:
        yield made


@pytest.fixture
def agent(shared_agent: Agent) -> Agent:
    """The agent, running again if a test has ended it."""
    assert shared_agent.process is not None
    if shared_agent.process.poll() is not None:
        shared_agent.start()
    return shared_agent


@pytest.fixture
def config(tmp_path: Path) -> dict[str, Any]:
    """The hook's configuration: the time limits of an emulated machine."""
    command = tmp_path / "pageferry"
    command.write_text(f'#!/bin/sh\nexec {sys.executable} -m pageferry "$@"\n')
    command.chmod(0o755)
    return {
        "command": [str(command), "pbs-event"],
        "outcome_resource": "pageferry_outcome",
        "request_resource": "pageferry",
        "preresume_seconds": 25,
        "seconds": 5,
    }


@pytest.fixture
def job(cgroup: str, config: dict[str, Any]) -> Iterator[PbsJob]:
    """A task of an array, four ranks that share memory, on node 0."""
    with pbs_job("7[3].guest", cgroup, config, ranks=4, mib=8, shared=16) as made:
        yield made
    record.forget("7[3].guest")


def nodes(job: PbsJob) -> Counter[int]:
    """Return how many of the job's own pages are where, each once, as page tables tell: libraries left out."""
    found: Counter[int] = Counter()
    counted = census(job.pids)
    found.update(counted.of(job.folder / "segment"))
    for pid in job.pids:
        lines = Path(f"/proc/{pid}/numa_maps").read_text().splitlines()
        for line in lines:
            if "anon=" in line and "file=" not in line:
                counts = re.findall(r" N([0-9]+)=([0-9]+)", line)
                found.update({int(node): int(count) for node, count in counts})
    return found


def far(job: PbsJob, *near: int) -> int:
    return sum(count for node, count in nodes(job).items() if node not in near)


def state(pid: int) -> str:
    return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0]


def migrations(agent: Agent, job: PbsJob) -> list[dict[str, Any]]:
    """Return what is recorded of a job, the oldest first, once all that is under way is."""
    wait_until(lambda: not freezing.errands(agent), "the agent's errands have ended")
    agent.ask("status")  # by the time it has answered, it has heard of their end, too
    answer = agent.ask("history", job=job.id)
    return sorted(answer["migrations"], key=lambda row: row["id"])


def suspended(job: PbsJob) -> None:
    """Suspend a job, and wait until its memory has been looked at."""
    job.suspend()
    wait_until(lambda: bool(record.load(job.id).settled), "its memory has been looked at")


def test_a_suspended_jobs_memory_is_moved_while_it_is_stopped_and_a_resume_waits_for_nothing(
    agent: Agent, job: PbsJob
) -> None:
    assert far(job, 0) < MIB
    job.hook("execjob_begin")
    job.confine(1)
    counters = vmstat()
    did = job.suspend()
    assert did["errors"] == []
    wait_until(lambda: bool(record.load(job.id).settled), f"its memory has arrived\n{agent.said()[-2000:]}")
    moved = vmstat() - counters
    assert far(job, 1) == 0
    (migration,) = migrations(agent, job)
    assert (migration["event"], migration["outcome"]) == ("execjob_postsuspend", "complete")
    assert sorted(migration["moments"], key=migration["moments"].get) == ["suspended", "moving", "moved"]
    assert migration["requested"] == migration["pages"]["moved"] == moved["pgmigrate_success"]
    assert {state(pid) for pid in job.pids} == {"T"}
    counts, noted = job.steady.counts(), job.noted()
    did, at = job.resume()
    assert "moved" in did["set"][job.id]["pageferry_outcome"]
    for entry, count in zip(job.first_steps(noted), counts, strict=True):
        assert set(entry["nodes"]) == {"1"}, "each page is there at the first instruction"
        assert stood_still(entry, count)
        assert entry["intact"]
        assert entry["at"] - at < 5
    assert len(migrations(agent, job)) == 1, "nothing was left to do"
    assert (job.groups()[0] / "cpuset.cpus").read_text().strip() == "2-3", "as PBS wrote it"


def test_what_an_operator_asks_of_a_suspended_job_is_there_before_its_first_instruction(
    agent: Agent, job: PbsJob
) -> None:
    suspended(job)
    job.comment = "pageferry:nodes=2"
    counts, noted = job.steady.counts(), job.noted()
    did, _ = job.resume()
    assert did["errors"] == []
    for entry, count in zip(job.first_steps(noted), counts, strict=True):
        assert set(entry["nodes"]) == {"2"}
        assert stood_still(entry, count), "not one step before its pages were there"
        assert entry["intact"]
    wait_until(lambda: migrations(agent, job)[-1]["event"] == "execjob_preresume", "it is told")
    migration = migrations(agent, job)[-1]
    assert migration["outcome"] == "complete"
    assert migration["details"]["request"] == job.comment
    assert migration["seconds_stopped"] > 0
    assert sorted(migration["moments"], key=migration["moments"].get) == ["held", "moving", "moved", "released"]
    told = job.hook("exechost_periodic")["set"][job.id]["pageferry_outcome"]
    assert "to node 2" in told


@pytest.mark.long
def test_a_job_is_held_beyond_its_resume_until_its_pages_are_there_and_no_longer_than_max_hold(
    agent: Agent, job: PbsJob
) -> None:
    suspended(job)
    job.comment = "pageferry:nodes=3"
    counts = job.steady.counts()
    with record.alone(job.id) as ours:  # as an earlier move that takes its time
        assert ours
        did, _ = job.resume()
        assert did["seconds"] < 10, "MoM is let go as soon as the job is held"
        assert not happens(lambda: job.steady.counts() != counts, 3), "SIGCONT was sent, and it stands still"
        wait_until(lambda: job.steady.counts() != counts, "max_hold is used up", MAX_HOLD + 10)
    wait_until(lambda: far(job, 3) < MIB, "its memory follows while it runs")
    assert job.steady.runs()


@pytest.mark.long
@pytest.mark.parametrize("text", ["pageferry:nodes=9", "pageferry:nodes=2-x", "pageferry:nodes=1,cpus=2"])
def test_a_request_that_makes_no_sense_is_refused_and_the_job_resumes_as_it_was(
    agent: Agent, job: PbsJob, text: str
) -> None:
    suspended(job)
    job.comment = text
    job.resume()
    wait_until(lambda: record.load(job.id).told.startswith("failed"), "it is refused")
    assert job.steady.runs()
    assert far(job, 0) < MIB


@pytest.mark.long
def test_after_a_resize_the_memory_follows_the_nodes_that_remain(agent: Agent, job: PbsJob) -> None:
    job.confine(0, 1)
    job.hook("execjob_begin")
    before = nodes(job)
    assert set(before) == {0}
    job.confine(1)
    did = job.hook("execjob_resize")
    assert did["errors"] == []
    wait_until(lambda: far(job, 1) == 0, "its memory has followed")
    assert job.steady.runs()
    assert migrations(agent, job)[-1]["event"] == "execjob_resize"


@pytest.mark.long
def test_a_cpuset_that_somebody_else_changed_is_seen_at_the_next_period(agent: Agent, job: PbsJob) -> None:
    job.hook("exechost_periodic")
    job.confine(2)
    assert not happens(lambda: far(job, 0) > MIB, 1)
    job.hook("exechost_periodic")
    wait_until(lambda: far(job, 2) == 0, "its memory has followed")
    assert job.steady.runs()


@pytest.mark.long
def test_a_request_that_came_with_the_submission_holds_at_each_event(agent: Agent, job: PbsJob) -> None:
    job.signal(signal.SIGSTOP)
    job.hook("execjob_postsuspend", Resource_List={"pageferry": "nodes=3"})
    wait_until(lambda: record.load(job.id).settled == (3,), "its memory has arrived")
    assert far(job, 3) == 0
    job.hook("execjob_preresume", Resource_List={"pageferry": "nodes=3"})
    job.signal(signal.SIGCONT)
    assert job.steady.runs()
    assert far(job, 3) < MIB, "what it touched since is on the node of its CPUs"


def test_when_a_job_ends_the_spilled_memory_of_others_comes_home(
    agent: Agent, job: PbsJob, cgroup: str, config: dict[str, Any]
) -> None:
    with pbs_job("8.guest", cgroup, config, node=1, mib=4) as other:
        for pid in job.pids:
            subprocess.run(["migratepages", str(pid), "0", "3"], check=True)
        assert far(job, 0) > 32 * MIB
        other.end()
        job.hook("execjob_epilogue", id=other.id)
    wait_until(lambda: far(job, 0) < MIB, "it is home")
    assert job.steady.runs()
    wait_until(lambda: any(row["event"] == "spill" for row in migrations(agent, job)), "it is recorded")


@pytest.mark.long
def test_an_agent_that_is_killed_while_it_holds_a_job_leaves_it_running(agent: Agent, job: PbsJob) -> None:
    suspended(job)
    job.comment = "pageferry:nodes=1"
    counts = job.steady.counts()
    with record.alone(job.id) as ours:
        assert ours
        job.resume()
        assert not happens(lambda: job.steady.counts() != counts, 1)
        agent.kill()
        wait_until(lambda: job.steady.counts() != counts, "it is released", 10)
    agent.start()
    assert not list(record.FOLDER.glob("*.hold")), "no trace is left of it"
    assert job.steady.runs()


@pytest.mark.long
def test_what_an_agent_and_its_guardian_left_is_released_by_the_next_agent(agent: Agent, job: PbsJob) -> None:
    suspended(job)
    job.comment = "pageferry:nodes=1"
    counts = job.steady.counts()
    with record.alone(job.id) as ours:
        assert ours
        job.resume()
        (errand,) = freezing.errands(agent)
        (guardian,) = children(errand)
        os.kill(guardian, signal.SIGKILL)
        agent.kill()
        wait_until(lambda: not Path(f"/proc/{errand}").exists(), "the errand ends with the agent")
        assert not happens(lambda: job.steady.counts() != counts, 1), "nobody is left to release it"
    agent.start()
    wait_until(lambda: job.steady.counts() != counts, "the next agent releases it", 10)
    assert agent.count("recovered") == 1


def children(pid: int) -> list[int]:
    return [int(word) for word in Path(f"/proc/{pid}/task/{pid}/children").read_text().split()]


@pytest.mark.long
def test_without_an_agent_the_command_does_the_same(agent: Agent, job: PbsJob) -> None:
    assert agent.stop() == 0
    job.hook("execjob_begin")
    job.confine(1)
    job.suspend()
    wait_until(lambda: record.load(job.id).settled == (1,), "its memory has arrived")
    assert far(job, 1) == 0
    job.comment = "pageferry:nodes=2"
    counts, noted = job.steady.counts(), job.noted()
    did, _ = job.resume()
    assert did["errors"] == []
    for entry, count in zip(job.first_steps(noted), counts, strict=True):
        assert set(entry["nodes"]) == {"2"}
        assert stood_still(entry, count)


@pytest.mark.long
def test_an_agent_that_hangs_costs_mom_its_limit_and_the_job_resumes_as_it_was(agent: Agent, job: PbsJob) -> None:
    job.config = {**job.config, "seconds": 1, "preresume_seconds": 2}
    agent.signal(signal.SIGSTOP)
    try:
        job.suspend()
        did, _ = job.resume()
        assert did["seconds"] < 20
        assert job.steady.runs()
        assert far(job, 0) < MIB
    finally:
        agent.signal(signal.SIGCONT)
    wait_until(lambda: agent.ask("status") is not None, "it answers again")
    wait_until(lambda: not freezing.errands(agent), "what it was told is done", 120)
    assert job.steady.runs()


@pytest.mark.long
def test_a_resume_that_mom_gave_up_on_is_not_served_and_the_next_one_is(agent: Agent, job: PbsJob) -> None:
    suspended(job)
    before = len(migrations(agent, job))
    job.comment = "pageferry:nodes=2"
    agent.signal(signal.SIGSTOP)
    try:
        for _ in range(2):
            job.hook_that_meets_its_alarm("execjob_preresume", 1.0)
    finally:
        agent.signal(signal.SIGCONT)
    wait_until(lambda: agent.ask("status") is not None, "it answers again")
    assert len(migrations(agent, job)) == before
    noted = job.noted()
    job.resume()
    assert {node for entry in job.first_steps(noted) for node in entry["nodes"]} == {"2"}, "as it was asked for"


def test_a_job_by_its_id_is_found_by_the_commands(job: PbsJob, agent: Agent) -> None:
    words = ("move", job.id, "--to", "2", "--freeze")
    assert nursery.run(*words).returncode == 0
    assert far(job, 2) < MIB, "what it touched since is on the node of its CPUs"
    assert record.load(job.id).homes == (2,), "it stays there when another job ends"
    assert job.steady.runs()
    refused = nursery.run(*words, "--cpus", "2-3")
    assert refused.returncode == 2
    assert "keeps the CPUs that PBS gave it" in refused.stderr
    assert bool(pbs_job_freezers(job.id)) == (job.cgroup == "v2")
