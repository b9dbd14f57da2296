"""Parking of PBS's jobs on a node without CPUs: real processes in groups laid out as PBS's, real pages, MoM's hook.

Node 3 has memory and no CPUs. What is in the queue `slow` is moved at a rate, so that a resume comes in between.
"""

from __future__ import annotations

import os
import signal
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path

import pytest

from guest import agents, freezing
from guest.agents import Agent
from guest.pbs import PbsJob, pbs_job
from guest.steady import stood_still
from guest.test_capacity import ballast, free_pages
from guest.test_pbs import migrations, nodes
from guest.vm.jobs import wait_until
from pageferry.pbs import record

pytestmark = pytest.mark.cpuless

OWN, PARK = 2, 3
MIB = 256
"""Pages."""

SIZE = 128
"""MiB of each job."""

LEFT = 64
"""MiB that are free on node 2 beside the first of them."""

HOOK = {"command": [], "preresume_seconds": 25, "seconds": 5}

PARKS = f"""
[spill]
enabled = false
[[rule]]
name = "slowly"
park = "{PARK}"
rate = "8M"
match.partition = "slow"
[[rule]]
name = "parked"
park = "{PARK}"
"""


@pytest.fixture(scope="module")
def agent(results: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Agent]:
    """An agent that parks each job."""
    folder = tmp_path_factory.mktemp("agent")
    with agents.agent(results / "agent-parking-pbs.log", *agents.own(folder, PARKS)) as made:
        yield made


@contextmanager
def job_of_node_2(job_id: str, cgroup: str, queue: str = "") -> Iterator[PbsJob]:
    """Have a job begin, all of it on node 2."""
    with pbs_job(job_id, cgroup, HOOK, node=OWN, mib=SIZE, queue=queue) as made:
        made.hook("execjob_begin")
        assert set(nodes(made)) == {OWN}
        yield made
    record.forget(job_id)


def anonymous(node: int) -> int:
    """Return how many anonymous pages are on a node, as the kernel counts them, a little late."""
    text = Path(f"/sys/devices/system/node/node{node}/meminfo").read_text()
    return int(text.split("AnonPages:")[1].split()[0]) // 4


def parked(agent: Agent, job: PbsJob) -> None:
    """Suspend a job, and see that all of it is parked."""
    assert job.suspend()["errors"] == []
    wait_until(lambda: bool(migrations(agent, job)), "it is parked")
    (moved,) = migrations(agent, job)
    assert (moved["event"], moved["outcome"], moved["nodes_to"]) == ("park", "complete", str(PARK)), moved
    assert set(nodes(job)) == {PARK}


def resumed(job: PbsJob, before_sigcont: Callable[[], None] = lambda: None) -> None:
    """Resume a job, and see that all of it is back, and as it was, in its first steps."""
    (count,), noted = job.steady.counts(), job.noted()
    assert job.hook("execjob_preresume")["errors"] == []
    before_sigcont()
    job.signal(signal.SIGCONT)
    (entry,) = job.first_steps(noted)
    assert entry["nodes"] == {str(OWN): SIZE * MIB}, "each page is there at the first instruction"
    assert stood_still(entry, count), "not one step before its pages were there"
    assert entry["intact"]
    assert job.steady.runs()


@pytest.mark.long
def test_a_parked_job_leaves_its_node_to_another_and_has_it_back_before_its_next_step(
    agent: Agent, cgroup: str
) -> None:
    with job_of_node_2("11.guest", cgroup) as low:
        with ballast(OWN, LEFT * MIB):
            assert free_pages(OWN) < SIZE * MIB, "or the other one would have found room anyway"
            parked(agent, low)
            with pbs_job("12.guest", cgroup, HOOK, node=OWN, mib=SIZE) as other:
                assert other.steady.diary()[0]["nodes"] == {str(OWN): SIZE * MIB}
                assert set(nodes(low)) == {PARK}
        resumed(low)
        park, back = migrations(agent, low)
        assert (back["event"], back["outcome"], back["nodes_to"]) == ("unpark", "complete", str(OWN)), back
        assert sorted(back["moments"], key=back["moments"].get) == ["held", "moving", "moved", "released"]
        assert min(park["bytes"], back["bytes"]) >= SIZE << 20
        assert record.load(low.id).parked == ()


def test_a_job_that_is_resumed_while_it_is_being_parked_is_parked_no_further_and_whole_before_its_next_step(
    agent: Agent, cgroup: str
) -> None:
    with job_of_node_2("13.guest", cgroup, "slow") as low:
        low.suspend()
        wait_until(lambda: nodes(low)[PARK] > MIB, "a part of it is parked")
        resumed(low)
        park, back = migrations(agent, low)
        assert (park["event"], back["event"]) == ("park", "unpark")
        assert park["outcome"] == "partial"
        assert MIB * 4096 < park["bytes"] < SIZE << 20
        assert back["outcome"] == "complete"
        assert back["bytes"] == park["bytes"], "what was moved, and nothing else"
        assert back["seconds_stopped"] > 0


@pytest.mark.long
def test_a_job_whose_resume_comes_before_its_parking_has_begun_is_not_parked(agent: Agent, cgroup: str) -> None:
    with job_of_node_2("16.guest", cgroup, "slow") as low, ThreadPoolExecutor(1) as mom:
        suspends = mom.submit(low.suspend)
        errand = freezing.stopped_errand(agent)
        suspends.result()

        def goes_on() -> None:
            os.kill(errand, signal.SIGCONT)
            assert {row["bytes"] for row in migrations(agent, low)} == {0}, "nothing has moved, whichever came first"

        resumed(low, goes_on)
        low.hook("exechost_periodic")
        wait_until(lambda: record.load(low.id).parked == (), "it is not taken for parked any more")


@pytest.mark.long
@pytest.mark.parametrize(("job_id", "queue"), [("14.guest", ""), ("15.guest", "slow")])
def test_of_a_job_that_dies_parked_or_on_its_way_nothing_is_left_and_its_id_may_be_anothers(
    agent: Agent, cgroup: str, job_id: str, queue: str
) -> None:
    before = anonymous(PARK)
    with job_of_node_2(job_id, cgroup, queue) as low:
        if queue:
            low.suspend()
            wait_until(lambda: nodes(low)[PARK] > 8 * MIB, "a part of it is parked")
        else:
            parked(agent, low)
        assert anonymous(PARK) > before + 4 * MIB, "or it cannot be seen to go"
        for process in low.processes:
            process.kill()
            process.wait()
        wait_until(lambda: not freezing.errands(agent), "nobody is busy with it any more")
        wait_until(lambda: anonymous(PARK) < before + MIB, "its memory is free")
        low.hook("execjob_epilogue")
        assert not list(record.FOLDER.glob(f"{low.id}.*"))
    with job_of_node_2(job_id, cgroup) as again:
        assert record.load(again.id).parked == ()
        assert again.steady.runs()
