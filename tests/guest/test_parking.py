"""Parking on a node without CPUs, under real preemption: the preemptor has the node, and the parked job gets it back.

Node 2 has room for one of two jobs; node 3 has memory and no CPUs. What was counted is left in the results.
"""

from __future__ import annotations

import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

from guest import agents
from guest.agents import Agent
from guest.ranks import cpus_of
from guest.steady import Steady, stood_still, submit
from guest.test_capacity import ballast
from guest.test_preemption import memory
from guest.vm import slurm as daemons
from guest.vm.jobs import Slurm, wait_until
from guest.witness import vmstat

pytestmark = pytest.mark.cpuless

OWN, PARK = 2, 3
MIB = 256
"""Pages."""

LOW, HIGH = 640, 560
"""MiB; node 2 has 1024."""

CONF = """
PreemptType=preempt/partition_prio
PreemptMode=SUSPEND,GANG
PartitionName=low Nodes=ALL PriorityTier=1 PreemptMode=suspend MaxTime=INFINITE State=UP
PartitionName=high Nodes=ALL PriorityTier=2 PreemptMode=off MaxTime=INFINITE State=UP
"""

PARKS = f"""
[spill]
least_bytes = "4K"
[[rule]]
name = "parked"
park = "{PARK}"
max_hold_seconds = 180
match.partition = "low"
"""


@pytest.fixture(scope="module")
def slurm(several_nodes: None) -> Iterator[Slurm]:
    """Slurm with partitions that preempt; one that runs without them is stopped."""
    daemons.stop()
    yield daemons.start(extra=CONF)
    daemons.stop()


@contextmanager
def agent_of(results: Path, folder: Path, name: str, settings: str) -> Iterator[Agent]:
    with agents.agent(results / f"agent-{name[:60]}.log", *agents.own(folder, settings)) as made:
        yield made


@pytest.fixture
def agent(slurm: Slurm, results: Path, tmp_path: Path, request: pytest.FixtureRequest) -> Iterator[Agent]:
    """An agent of this test's own, which parks what runs in the partition low."""
    with agent_of(results, tmp_path, request.node.name, PARKS) as made:
        yield made


@contextmanager
def job_of_node_2(slurm: Slurm) -> Iterator[Steady]:
    """Have a job that fills most of node 2; another one, that nobody preempts, has the CPUs of nodes 0 and 1."""
    Path("/proc/sys/vm/drop_caches").write_text("1")
    other = submit(slurm, "--partition=high", "-n4", "-mblock:block", mib=8)
    try:
        low = submit(slurm, "--partition=low", "-n2", "-mblock:block", mib=LOW, limit_mib=900)
        try:
            assert set(low.diary()[0]["cpus"]) == set(cpus_of(OWN)), "or the test is about other nodes"
            assert low.diary()[0]["nodes"] == {str(OWN): LOW * MIB}
            assert low.runs(), "it is past its first entry, whose own seconds are a gap on a slow machine"
            yield low
        finally:
            low.end()
    finally:
        other.end()


@pytest.fixture
def low(slurm: Slurm, agent: Agent) -> Iterator[Steady]:
    """A job that may be preempted."""
    with job_of_node_2(slurm) as begun:
        wait_until(lambda: agent.phase(begun.id) == "runs", "the agent knows the job")
        yield begun


def preempt(slurm: Slurm, low: Steady, mib: int = 8) -> Steady:
    """Submit a job that needs node 2's CPUs, and wait until it runs there and the other is frozen."""
    high = submit(slurm, "--partition=high", "-n2", "-mblock:block", mib=mib, limit_mib=800)
    assert slurm.state(low.id) == "SUSPENDED"
    wait_until(lambda: slurm.frozen(low.id), "the preempted job is frozen")
    assert set(high.diary()[0]["cpus"]) == set(cpus_of(OWN))
    return high


def counted(job: Steady, mib: int) -> dict[int, int]:
    """Return how many pages of a job's memory, and of what is mapped beside it, are on which node."""
    nodes = memory(job)
    assert nodes.total() >= mib * MIB
    return dict(sorted(nodes.items()))


def moves(agent: Agent, job: Steady) -> list[dict[str, Any]]:
    """Return what was recorded of a job, but for what a few pages that lay elsewhere were brought home by."""
    return [row for row in agent.migrations(job.id) if row["event"] != "spill"]


def parked(agent: Agent, low: Steady, outcome: str = "complete") -> None:
    """Wait until a job is parked."""
    wait_until(lambda: bool(moves(agent, low)), "the memory moves while the job is suspended")
    (moved,) = moves(agent, low)
    assert (moved["event"], moved["outcome"], moved["nodes_to"]) == ("park", outcome, str(PARK)), moved


def seen_still(low: Steady) -> tuple[list[int], int]:
    """Return how far a suspended job has counted, and the number of its next entry: a slow machine makes gaps, too."""
    return low.counts(), len(low.diary())


def back(low: Steady, still: tuple[list[int], int], node: int = OWN) -> None:
    """See that a job that goes on has all of its memory on a node at its first steps, and as it was."""
    counts, number = still
    for entry, count in zip(low.entries(number), counts, strict=True):
        assert entry["nodes"] == {str(node): LOW * MIB}, "each page is there at the first instruction"
        assert set(entry["cpus"]) == set(cpus_of(node))
        assert stood_still(entry, count), "not one step while it was suspended, or before its pages were there"
        assert entry["intact"]
    assert low.runs()


def test_the_preemptor_has_the_node_for_itself_and_the_parked_job_has_it_back_before_its_next_step(
    slurm: Slurm, agent: Agent, low: Steady, results: Path
) -> None:
    oom = vmstat()["oom_kill"]
    high = preempt(slurm, low, HIGH)
    at_once = high.diary()[0]["nodes"]
    parked(agent, low)
    assert set(counted(low, LOW)) == {PARK}
    assert agent.phase(low.id) == "held"
    assert agent.ask("status")["jobs"][str(low.id)]["parked_nodes"] == [PARK]
    wait_until(lambda: set(memory(high)) == {OWN}, f"the preemptor's memory is all on its node: {memory(high)}")
    seen = f"suspended: preempted {counted(low, LOW)}, preemptor {at_once} at its start, {counted(high, HIGH)} then"
    still = seen_still(low)
    assert high.runs()
    high.end()
    back(low, still)
    assert [(row["event"], row["outcome"]) for row in moves(agent, low)] == [
        ("park", "complete"),
        ("unpark", "complete"),
    ]
    assert all(row["bytes"] >= LOW << 20 for row in moves(agent, low))
    stopped = moves(agent, low)[1]["seconds_stopped"]
    (results / "parking.txt").write_text(
        f"{seen}\nresumed: {low.diary()[-1]['nodes']}, held for {stopped:.2f} s after Slurm's resume\n"
    )
    assert vmstat()["oom_kill"] == oom
    assert agent.ask("status")["jobs"][str(low.id)]["parked_nodes"] == []


@pytest.mark.long
def test_without_a_rule_that_parks_the_preemptor_finds_its_node_taken(
    slurm: Slurm, results: Path, tmp_path: Path, request: pytest.FixtureRequest
) -> None:
    with agent_of(results, tmp_path, request.node.name, ""), job_of_node_2(slurm) as low:
        high = preempt(slurm, low, HIGH)
        assert set(counted(low, LOW)) == {OWN}
        assert len(counted(high, HIGH)) > 1, "or the other tests show nothing"
        high.end()
        wait_until(lambda: slurm.state(low.id) == "RUNNING", "it goes on")


@pytest.mark.long
def test_a_request_that_is_made_while_a_job_is_parked_says_where_it_comes_back_to(
    slurm: Slurm, agent: Agent, low: Steady
) -> None:
    high = preempt(slurm, low)
    parked(agent, low)
    subprocess.run(["scontrol", "update", f"JobId={low.id}", "AdminComment=pageferry:nodes=1"], check=True)
    still = seen_still(low)
    high.end()
    back(low, still, node=1)
    (_, moved, *_) = moves(agent, low)
    assert (moved["event"], moved["nodes_from"], moved["nodes_to"]) == ("unpark", str(PARK), "1")
    words = ["scontrol", "show", "job", str(low.id)]
    wait_until(
        lambda: " to node 1, " in subprocess.run(words, capture_output=True, text=True, check=True).stdout,
        "the operator is told",
    )


@pytest.mark.long
def test_a_parked_job_whose_agent_is_killed_is_the_next_ones_and_comes_back(
    slurm: Slurm, agent: Agent, low: Steady
) -> None:
    high = preempt(slurm, low)
    parked(agent, low)
    still = seen_still(low)
    agent.kill()
    agent.start()
    wait_until(lambda: agent.phase(low.id) == "held", "the next agent holds it")
    assert set(counted(low, LOW)) == {PARK}
    high.end()
    back(low, still)
    assert moves(agent, low)[-1]["event"] == "unpark"


@pytest.mark.long
def test_a_parked_job_that_goes_on_without_an_agent_comes_back_when_there_is_one(
    slurm: Slurm, agent: Agent, low: Steady
) -> None:
    high = preempt(slurm, low)
    parked(agent, low)
    agent.kill()
    _, number = seen_still(low)
    high.end()
    assert low.entries(number)[0]["nodes"] == {str(PARK): LOW * MIB}
    assert low.runs()
    agent.start()
    wait_until(lambda: set(memory(low)) == {OWN}, "it comes back while it runs")  # what is on its way counts nowhere
    wait_until(lambda: memory(low).total() >= LOW * MIB, "all of it")
    assert low.runs()


@pytest.mark.long
def test_what_the_park_node_has_no_room_for_stays_and_all_of_it_is_there_at_the_resume(
    slurm: Slurm, agent: Agent, low: Steady
) -> None:
    oom = vmstat()["oom_kill"]
    with ballast(PARK, 320 * MIB):
        high = preempt(slurm, low)
        parked(agent, low, "partial")
        where = counted(low, LOW)
        assert set(where) == {OWN, PARK}
        assert 100 * MIB < where[PARK] < 320 * MIB
        still = seen_still(low)
        high.end()
        back(low, still)
    assert vmstat()["oom_kill"] == oom


@pytest.mark.long
def test_a_job_that_is_resumed_while_it_is_being_parked_is_whole_again(slurm: Slurm, agent: Agent, low: Steady) -> None:
    slurm.suspend(low.id)
    wait_until(lambda: agent.ask("status")["jobs"][str(low.id)]["parked_nodes"] == [PARK], "it is being parked")
    slurm.resume(low.id)
    wait_until(lambda: agent.phase(low.id) == "runs", "it goes on")
    assert set(counted(low, LOW)) == {OWN}
    assert low.runs()
    assert all(entry["intact"] for entry in low.diary())
    first, second = (row["event"] for row in moves(agent, low)[:2])
    assert (first, second) == ("park", "unpark")
