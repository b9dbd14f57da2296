"""Jobs that Slurm itself suspends and resumes: by preemption, and in turns (gang scheduling).

Nobody asks for anything here but by submitting jobs; the agent sees Slurm's freezer and nothing else.
"""

from __future__ import annotations

import subprocess
import time
from collections import Counter
from collections.abc import Iterator
from pathlib import Path

import pytest

from guest import agents, freezing, nursery
from guest.agents import Agent
from guest.ranks import cpus_of
from guest.steady import Steady, stood_still, submit
from guest.vm import slurm as daemons
from guest.vm.jobs import Slurm, wait_until
from guest.witness import node_vector, vmas
from pageferry.kernel.lists import parse_list

SLICE_SECONDS = 10
CONF = f"""
PreemptType=preempt/partition_prio
PreemptMode=SUSPEND,GANG
SchedulerTimeSlice={SLICE_SECONDS}
PartitionName=low Nodes=ALL PriorityTier=1 PreemptMode=suspend MaxTime=INFINITE State=UP
PartitionName=high Nodes=ALL PriorityTier=2 PreemptMode=off MaxTime=INFINITE State=UP
PartitionName=turns Nodes=ALL PriorityTier=1 PreemptMode=suspend OverSubscribe=FORCE:2 MaxTime=INFINITE State=UP
"""


@pytest.fixture(scope="module")
def slurm(several_nodes: None) -> Iterator[Slurm]:
    """Slurm with partitions that preempt and take turns; one that runs without them is stopped."""
    daemons.stop()
    yield daemons.start(extra=CONF)
    daemons.stop()


@pytest.fixture
def agent(slurm: Slurm, results: Path, tmp_path: Path, request: pytest.FixtureRequest) -> Iterator[Agent]:
    """An agent of this test's own."""
    log = results / f"agent-{request.node.name[:60]}.log"
    with agents.agent(log, "--history-file", str(tmp_path / "history.sqlite3")) as made:
        yield made


@pytest.fixture
def low(slurm: Slurm, agent: Agent) -> Iterator[Steady]:
    """A job of two ranks that may be preempted, on the CPUs of node 0."""
    begun = submit(slurm, "--partition=low", "-n2", "-mblock:block", mib=8, ranks=2)
    wait_until(lambda: agent.phase(begun.id) == "runs", "the agent knows the job")
    yield begun
    begun.end()


def preempt(slurm: Slurm, low: Steady) -> Steady:
    """Submit a job that needs all CPUs, and wait until it runs and the other is frozen."""
    high = submit(slurm, "--partition=high", "-n8", mib=8)
    assert slurm.state(low.id) == "SUSPENDED"
    wait_until(lambda: slurm.frozen(low.id), "the preempted job is frozen")
    return high


def memory(job: Steady) -> Counter[int]:
    """Return how many pages of the ranks' largest private mapping are on which node, as page tables tell."""
    nodes: Counter[int] = Counter()
    for pid in job.slurm.pids(job.id):
        private = (vma for vma in vmas(pid) if not vma.path and vma.permissions == "rw-p")
        vma = max(private, key=lambda vma: vma.end - vma.start)
        if vma.end - vma.start >= 8 << 20 and b"steady_rank" in freezing.command(pid):
            nodes.update(node for node in node_vector(pid, vma.start, vma.end) if node >= 0)
    return nodes


def move(job: Steady, to: str) -> None:
    """Move a job's memory and leave its CPUs, as an operator does."""
    said = nursery.run("move", job.id, "--to", to)
    assert said.returncode == 0, said.stderr


def nodes_of_cpus(agent: Agent, job: Steady) -> set[str]:
    """Return the nodes of the CPUs that a job has."""
    cpus = parse_list(agent.ask("cpus")["jobs"][str(job.id)]["real"])
    return {str(node) for node in range(4) if cpus & set(cpus_of(node))}


def test_a_preempted_job_comes_back_with_its_memory_where_its_cpus_are(slurm: Slurm, agent: Agent, low: Steady) -> None:
    move(low, "2")
    assert set(memory(low)) == {2}
    assert nodes_of_cpus(agent, low) == {"0"}
    high = preempt(slurm, low)
    wait_until(lambda: bool(agent.migrations(low.id)), "the memory moves while the job is suspended")
    assert agent.phase(low.id) == "held"
    still, noted = low.counts(), low.noted()
    before = high.diary()[0]
    assert high.runs()
    assert before["intact"]
    high.end()
    for entry, count in zip(low.first_after(noted), still, strict=True):
        assert set(entry["nodes"]) == {"0"}, "each page is there at the first instruction"
        assert set(entry["cpus"]) <= set(cpus_of(0))
        assert stood_still(entry, count), "not one step while it was suspended, or before its pages were there"
        assert entry["intact"]
    assert low.runs()
    (migration, *_) = agent.migrations(low.id)
    assert (migration["event"], migration["outcome"]) == ("suspend", "complete")
    assert migration["bytes"] >= 16 << 20
    kinds = [row["kind"] for row in agent.ask("history", job=low.id)["events"]]
    assert kinds == ["released", "held"], "held and released once, by us"
    assert not agent.migrations(high.id), "the other was left alone"
    assert agent.count("beaten") == 0


@pytest.mark.long
def test_a_request_of_a_preempted_job_is_served_before_it_comes_back(slurm: Slurm, agent: Agent, low: Steady) -> None:
    subprocess.run(["scontrol", "update", f"JobId={low.id}", "AdminComment=pageferry:nodes=3"], check=True)
    high = preempt(slurm, low)
    wait_until(lambda: bool(agent.migrations(low.id)), "the memory moves while the job is suspended")
    cpus = agent.ask("cpus")["jobs"]
    assert cpus[str(low.id)]["real"] == "6-7"
    assert cpus[str(high.id)]["real"] == "0-7", "the preemptor has all that Slurm gave it"
    assert high.runs()
    noted = low.noted()
    high.end()
    for entry in low.first_after(noted):
        assert set(entry["nodes"]) == {"3"}
        assert set(entry["cpus"]) <= {6, 7}
    assert low.runs()


@pytest.mark.long
def test_a_job_that_is_preempted_without_an_agent_comes_back_as_it_was(slurm: Slurm) -> None:
    low = submit(slurm, "--partition=low", "-n2", "-mblock:block", mib=8, ranks=2)
    move(low, "2")
    high = preempt(slurm, low)
    noted = low.noted()
    high.end()
    for entry in low.first_after(noted):
        assert set(entry["nodes"]) == {"2"}, "or the other tests show nothing"
    low.end()


@pytest.mark.long
def test_jobs_that_take_turns_keep_running_and_nothing_is_left_held(slurm: Slurm, agent: Agent, tmp_path: Path) -> None:
    jobs = [submit(slurm, "--partition=turns", "-n8", mib=8) for _ in range(2)]
    move(jobs[0], "2")
    began = time.monotonic()
    for turn in range(1, 3):
        for job in jobs:
            job.entries(turn)
    assert time.monotonic() - began < 10 * SLICE_SECONDS
    for job in jobs:
        kinds = Counter(row["kind"] for row in agent.ask("history", job=job.id)["events"])
        assert kinds["held"] - kinds["released"] in {0, 1}
        assert kinds["held"] >= 2
        assert not set(kinds) & {"not held", "not released", "hold lost"}
        assert all(entry["intact"] for entry in job.diary())
    jobs[1].end()
    wait_until(lambda: slurm.state(jobs[0].id) == "RUNNING", "the other one has the machine for itself")
    wait_until(lambda: agent.phase(jobs[0].id) == "runs", "it is let go")
    assert jobs[0].runs()

    def is_let_go() -> bool:
        kinds = Counter(row["kind"] for row in agent.ask("history", job=jobs[0].id)["events"])
        return kinds["held"] == kinds["released"] and not list((agents.RUN / "holds").glob("*.hold"))

    # Its turn may have been over when the other one ended: then Slurm freezes it for a moment still.
    wait_until(is_let_go, "each hold has been released")
    jobs[0].end()
