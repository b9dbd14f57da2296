"""What the watch tells of real Slurm jobs, from their start to their end; also on cgroup version 1.

The site has PrologFlags=Contain, so that the extern step is among those that are suspended.
"""

from __future__ import annotations

import select
import subprocess
import time
from collections.abc import Callable, Iterator
from contextlib import suppress
from pathlib import Path

import pytest

from guest.vm import slurm as daemons
from guest.vm.jobs import CGROUP, Slurm
from pageferry.agent.watch import Event, Kind, Watch
from pageferry.schedulers.slurm_cgroups import Suspension, slurm_job_suspension, slurm_job_user_groups

pytestmark = [pytest.mark.v1, pytest.mark.long]

SECONDS = 60.0
STEPS = {"step_batch", "step_extern", "step_0"}
SCRIPT = "srun --overlap sleep 1000 & sleep 1000"
POLL_SECONDS = 0.05


@pytest.fixture(scope="module")
def slurm(several_nodes: None) -> Iterator[Slurm]:
    daemons.stop()
    yield daemons.start(extra="PrologFlags=Contain")
    daemons.stop()


@pytest.fixture
def watch(slurm: Slurm) -> Iterator[Watch]:
    watch = Watch()
    yield watch
    watch.close()


def gather(watch: Watch, enough: Callable[[list[Event]], bool], poll: float = SECONDS) -> list[Event]:
    """Collect events until they are enough, which is asked after each batch, and with `poll` without one too."""
    deadline = time.monotonic() + SECONDS
    events: list[Event] = []
    while not enough(events):
        assert time.monotonic() < deadline, f"no more than {events}"
        if select.select([watch], [], [], poll)[0]:
            events += watch.events()
    return events


def started(slurm: Slurm, watch: Watch) -> tuple[int, list[Event]]:
    """Start a job and return what was told until all its steps had their processes."""
    job = slurm.submit(SCRIPT, "--ntasks=1")

    def running(events: list[Event]) -> bool:
        groups = slurm_job_user_groups(job)
        return {step_of(group) for group in groups} == STEPS and all(has_program(group) for group in groups)

    return job, gather(watch, running, POLL_SECONDS)


def has_program(group: Path) -> bool:
    """Say whether a step's program runs: `sleep`, not its launcher any more."""
    with suppress(FileNotFoundError, ProcessLookupError):  # a group, or a launcher, that has just gone
        lists = [path.read_text().split() for path in group.rglob("cgroup.procs")]
        return any(Path(f"/proc/{pid}/comm").read_text() == "sleep\n" for pids in lists for pid in pids)
    return False


def step_of(group: Path) -> str:
    return next(part for part in group.parts if part.startswith("step_"))


def writes(events: list[Event]) -> dict[str, int]:
    found: dict[str, int] = {}
    for event in events:
        if event.writes:
            found[step_of(event.group)] = found.get(step_of(event.group), 0) + event.writes
    return found


def gone(job: int) -> Callable[[list[Event]], bool]:
    return lambda events: any(event.kind is Kind.GONE and event.job == job for event in events)


def watches(watch: Watch) -> int:
    return Path(f"/proc/self/fdinfo/{watch.fileno()}").read_text().count("inotify wd:")


def test_a_jobs_start_suspension_resumption_and_end_are_told(slurm: Slurm, watch: Watch) -> None:
    others = set(watch.jobs())  # on version 1, of jobs that ended as they started
    job, events = started(slurm, watch)
    assert {event.job for event in events} == {job}
    assert events[0].kind is Kind.JOB
    assert set(watch.jobs()) == {job} | others
    frozen_by_slurm = set(slurm.step_freezers(job))
    assert frozen_by_slurm == set(slurm_job_user_groups(job))
    steps = [event.group for event in events if event.kind is Kind.STEP]
    assert frozen_by_slurm <= set(steps)
    tasks = [event.group for event in events if event.kind is Kind.TASK]
    assert {group.parent for group in tasks} == (frozen_by_slurm if slurm.cgroup == "v2" else set())
    assert set(CGROUP.glob(f"system.slice/*/job_{job}/step_*/user/task_*")) <= set(tasks)
    assert any(event.kind is Kind.CPUSET for event in events)
    assert writes(events) == {}
    assert slurm_job_suspension(job) == Suspension(asked=False, frozen=False)

    # What the kernel has cached must not matter. Version 2 needs no poll; version 1 has no event for FROZEN.
    Path("/proc/sys/vm/drop_caches").write_text("3")
    subprocess.run(["scontrol", "suspend", str(job)], check=True)
    poll = SECONDS if slurm.cgroup == "v2" else POLL_SECONDS
    once = dict.fromkeys(STEPS, 1)
    events = gather(watch, lambda events: slurm_job_suspension(job).frozen and writes(events) == once, poll)
    assert slurm.frozen(job)
    assert {event.kind for event in events} == {Kind.FREEZER}

    subprocess.run(["scontrol", "resume", str(job)], check=True)
    gather(watch, lambda events: not slurm_job_suspension(job).asked and writes(events) == once)

    subprocess.run(["scancel", str(job)], check=True)
    assert gather(watch, gone(job))[-1].kind is Kind.GONE
    assert set(watch.jobs()) <= others
    left = watches(watch)
    quick = slurm.submit("true")
    gather(watch, gone(quick))
    assert watches(watch) == left


def test_a_suspension_that_is_over_at_once_is_told_by_its_writes(slurm: Slurm, watch: Watch) -> None:
    job, _ = started(slurm, watch)
    for verb in ("suspend", "resume"):
        subprocess.run(["scontrol", verb, str(job)], check=True)
    twice = dict.fromkeys(STEPS, 2)
    assert writes(gather(watch, lambda events: writes(events) == twice)) == twice
    assert slurm_job_suspension(job) == Suspension(asked=False, frozen=False)
    subprocess.run(["scancel", str(job)], check=True)
    gather(watch, gone(job))


def test_a_job_that_is_cancelled_while_it_is_suspended_is_gone(slurm: Slurm, watch: Watch) -> None:
    job, _ = started(slurm, watch)
    subprocess.run(["scontrol", "suspend", str(job)], check=True)
    gather(watch, lambda _: slurm_job_suspension(job).frozen, POLL_SECONDS)
    subprocess.run(["scancel", str(job)], check=True)
    gather(watch, gone(job))
    assert slurm_job_suspension(job) == Suspension(asked=False, frozen=False)
