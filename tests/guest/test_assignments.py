"""Jobs on the CPUs that are theirs, on a real Slurm: seen from outside, whatever is moved, starts, or ends."""

from __future__ import annotations

import os
import random
import re
import subprocess
import sys
import threading
from collections.abc import Callable, Iterable, Iterator
from contextlib import ExitStack, contextmanager, suppress
from functools import cache
from pathlib import Path
from typing import Self, TypeVar

import pytest

from guest.vm.jobs import Slurm, wait_until
from guest.vm.layouts import Layout, cpu_list
from pageferry.cpus.assignments import Assignments
from pageferry.cpus.groups import job_groups, written
from pageferry.errors import PageferryError
from pageferry.kernel import cgroup, private_cpuset
from pageferry.kernel.lists import format_list
from pageferry.schedulers.slurm_cgroups import slurm_job_cgroups, slurm_jobs

pytestmark = pytest.mark.v1

T = TypeVar("T")
BOUND = "srun -n{tasks} --overlap --cpu-bind=cores sleep 1000"
SEED = 20221105
MOVES = 10

MAPPED = """
read began </proc/uptime
until [ "$cpus" = "{cpus}" ]; do
    while read key value; do
        if [ "$key" = Cpus_allowed_list: ]; then cpus=$value; fi
    done </proc/$$/status
done
read mapped </proc/uptime
echo "$began"
echo "$mapped"
"""
"""When the program began, and when it had its CPUs; by the shell alone, for each process more takes its time."""

THREADS = """
import os, sys, threading, time
def pinned(cpu):
    os.sched_setaffinity(0, {cpu})
    barrier.wait()
    time.sleep(1000)
cpus = sorted(os.sched_getaffinity(0))
barrier = threading.Barrier(len(cpus) + 1)
for cpu in cpus:
    threading.Thread(target=pinned, args=(cpu,)).start()
barrier.wait()
print("pinned", flush=True)
"""
"""A thread on each CPU, and a first one on all of them."""


class Agent:
    """What the agent does: looks at a job when its groups changed. In a thread of its own, one call at a time."""

    def __init__(self, folder: Path) -> None:
        self.ours = Assignments(folder)
        self.said = self.ours.restore()
        self.errors: list[str] = []
        self._lock = threading.Lock()
        self._end = threading.Event()
        self.looks: dict[int, object] = {}
        self._thread = threading.Thread(target=self._run)

    def __enter__(self) -> Self:
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._end.set()
        self._thread.join()
        assert self.errors == []

    def do(self, call: Callable[[Assignments], T]) -> T:
        with self._lock:
            return call(self.ours)

    def _run(self) -> None:
        while not self._end.wait(0.03):
            with self._lock:
                try:
                    self._look()
                    self.ours.settle()
                except PageferryError as error:
                    self.errors.append(str(error))

    def _look(self) -> None:
        looks = {job: look(job) for job in slurm_jobs()}
        for job in {*looks, *self.looks}:
            if looks.get(job) != self.looks.get(job):
                self.ours.seen(job)
        self.looks = looks


def look(job: int) -> object:
    return [
        (path, written(path))
        for group in job_groups(job)
        for path in (group.path, *(step.path for step in group.steps))
    ]  # fmt: skip


@contextmanager
def jobs(slurm: Slurm) -> Iterator[Callable[..., int]]:
    """Submit jobs that run until the end."""
    made: list[int] = []

    def submit(cpus: int, script: str, ready: Callable[[int], bool] = lambda _job: True) -> int:
        job = slurm.submit(script, f"--ntasks={cpus}", "--cpus-per-task=1", "--mem=64")
        made.append(job)
        slurm.wait_state(job, "RUNNING")
        wait_until(lambda: ready(job), f"job {job} runs its programs")
        return job

    try:
        yield submit
    finally:
        for job in made:
            slurm.cancel(job)
        wait_until(lambda: not any(slurm.pids(job) for job in made), "their processes are gone")
        with suppress(AssertionError):
            wait_until(lambda: not set(slurm_jobs()) & set(made), "Slurm removes the groups", 20)
        remove_empty(made)


def remove_empty(made: list[int]) -> None:
    """Remove what Slurm has left of jobs; on version 1 that happens to one that ends as it starts."""
    for job in set(slurm_jobs()) & set(made):
        for group in slurm_job_cgroups(job):
            for folder, _, _ in os.walk(group, topdown=False):
                Path(folder).rmdir()


def programs(slurm: Slurm, job: int, name: str) -> list[int]:
    """The job's processes of a program; a launcher that has yet to become it does not count."""
    return [pid for pid in pids(slurm, job) if Path(f"/proc/{pid}/exe").exists() and comm(pid) == name]


def pids(slurm: Slurm, job: int) -> list[int]:
    """The job's processes; groups that Slurm removes meanwhile are left out."""
    return sorted(pid for step in slurm.step_freezers(job) for pid in cgroup.pids(step))


def comm(pid: int) -> str:
    try:
        return Path(f"/proc/{pid}/exe").readlink().name
    except OSError:
        return ""


def runs(slurm: Slurm, name: str, count: int) -> Callable[[int], bool]:
    return lambda job: len(programs(slurm, job, name)) >= count


def masks(pids: Iterable[int]) -> dict[int, frozenset[int]]:
    """Each thread's CPUs, by the kernel's own word."""
    found = {}
    for pid in pids:
        for status in Path(f"/proc/{pid}/task").glob("*/status"):
            try:
                text = status.read_text()
            except OSError:  # it has ended
                continue
            match = re.search(r"^Cpus_allowed_list:\s*(\S*)$", text, re.MULTILINE)
            assert match is not None
            found[int(status.parent.name)] = frozenset(cpu_list(match[1]))
    return found


@cache
def slurms(job: int) -> frozenset[int]:
    """What Slurm's books say of a job that runs: its numbers of CPUs are the kernel's on this machine."""
    command = ["scontrol", "show", "job", "-d", str(job)]
    text = subprocess.run(command, capture_output=True, text=True, check=True).stdout
    match = re.search(r"\bCPU_IDs=(\S+)", text)
    assert match is not None, text
    return frozenset(cpu_list(match[1]))


def check_apart(slurm: Slurm, agent: Agent, running: Iterable[int]) -> None:
    """Every thread of every job is on that job's own CPUs, as many as Slurm gave it, and on nobody else's."""
    taken: dict[int, int] = {}
    for job in running:
        real = agent.do(lambda ours, job=job: ours.cpus(job))  # type: ignore[misc]
        assert len(real) == len(slurms(job))
        for thread, mask in masks(pids(slurm, job)).items():
            assert mask, thread
            assert mask <= real, f"job {job}: thread {thread} may run on {set(mask)}, the job on {set(real)}"
        for group in job_groups(job):
            if group.apart:
                assert written(group.path) == slurms(job), "as Slurm wrote it"
                assert all(written(step.path) <= slurms(job) for step in group.steps)
            else:
                assert written(group.path) == slurms(job) | real
                assert all(written(step.path) <= real for step in group.steps)
        for cpu in real:
            assert taken.setdefault(cpu, job) == job


def settle(agent: Agent) -> None:
    """Wait until what is there has been looked at, and nothing is being launched."""
    wait_until(
        lambda: agent.do(lambda ours: not ours.settle() and {job: look(job) for job in slurm_jobs()} == agent.looks),
        "all is settled",
    )


@pytest.fixture
def agent(slurm: Slurm, tmp_path: Path) -> Iterator[Agent]:
    with Agent(tmp_path / "run") as running:
        assert running.said == ()
        yield running


@pytest.mark.long
def test_whatever_is_moved_three_jobs_stay_on_their_own_cpus_with_their_pins(
    slurm: Slurm, agent: Agent, layout: Layout, tmp_path: Path
) -> None:
    program = tmp_path / "threads.py"
    program.write_text(THREADS)
    chance = random.Random(SEED)
    with jobs(slurm) as submit:
        alone = submit(1, "sleep 1000", runs(slurm, "sleep", 1))
        bound = submit(2, BOUND.format(tasks=2), runs(slurm, "sleep", 2))
        pinned = submit(3, f"exec {sys.executable} {program}", lambda job: "pinned" in slurm.output(job))
        running = (alone, bound, pinned)
        settle(agent)
        check_apart(slurm, agent, running)
        at = {thread: mask for job in running for thread, mask in masks(pids(slurm, job)).items()}
        assert sorted(len(mask) for mask in at.values()) == [1] * 7 + [2] * (len(at) - 8) + [3]
        seat = {cpu: cpu for cpu in range(layout.cpus)}
        for _ in range(MOVES):
            job = chance.choice(running)
            target = sorted(chance.sample(range(layout.cpus), len(slurms(job))))
            now = sorted(seat[cpu] for cpu in slurms(job))
            agent.do(lambda ours, job=job, target=target: ours.move(job, target))  # type: ignore[misc]
            goes = dict(zip(now, target, strict=True))
            goes |= dict(
                zip([cpu for cpu in target if cpu not in now], [cpu for cpu in now if cpu not in target], strict=True)
            )
            seat = {cpu: goes.get(real, real) for cpu, real in seat.items()}
            at = {thread: frozenset(goes.get(cpu, cpu) for cpu in mask) for thread, mask in at.items()}
            check_apart(slurm, agent, running)
            assert {thread: mask for job in running for thread, mask in masks(pids(slurm, job)).items()} == at
            assert agent.do(lambda ours, job=job: ours.cpus(job)) == frozenset(target)  # type: ignore[misc]
        settle(agent)
        check_apart(slurm, agent, running)


@pytest.mark.long
def test_a_newcomer_on_vacated_and_on_taken_cpus_gets_others_and_keeps_its_binding(
    slurm: Slurm, agent: Agent, layout: Layout, results: Path
) -> None:
    with jobs(slurm) as submit:
        moved = submit(2, BOUND.format(tasks=2), runs(slurm, "sleep", 2))
        settle(agent)
        target = sorted(set(range(layout.cpus)) - slurms(moved))[-2:]
        agent.do(lambda ours: ours.move(moved, target))
        rest = layout.cpus - 2
        its = format_list(set(range(layout.cpus)) - set(target))
        newcomer = submit(rest, f"{MAPPED.format(cpus=its)}\n{BOUND.format(tasks=rest)}", runs(slurm, "sleep", rest))
        assert slurms(newcomer) >= set(target), "taken"
        settle(agent)
        check_apart(slurm, agent, (moved, newcomer))
        assert agent.do(lambda ours: ours.cpus(newcomer)) >= slurms(moved), "vacated"
        for job, count in ((moved, 2), (newcomer, rest)):
            tasks = masks(programs(slurm, job, "sleep"))
            assert sorted(map(len, tasks.values())) == [1] * count, "each task on a core"
            assert frozenset().union(*tasks.values()) == agent.do(lambda ours, job=job: ours.cpus(job))  # type: ignore[misc]
        began, mapped = (float(line.split()[0]) for line in slurm.output(newcomer).splitlines())
        (results / "newcomer.txt").write_text(f"mapped {mapped - began:.2f} s after its program began (emulated)\n")
        assert mapped - began < 1.0, "0.1 s where no machine is emulated"


def test_a_later_step_of_a_moved_job_runs_on_its_cpus_and_older_steps_keep_their_pins(
    slurm: Slurm, agent: Agent, layout: Layout
) -> None:
    with jobs(slurm) as submit, ExitStack() as stack:
        job = submit(2, BOUND.format(tasks=2), runs(slurm, "sleep", 2))
        settle(agent)
        target = sorted(set(range(layout.cpus)) - slurms(job))[-2:]
        agent.do(lambda ours: ours.move(job, target))
        older = masks(programs(slurm, job, "sleep"))
        assert sorted(older.values(), key=sorted) == [{cpu} for cpu in target]
        for count in (4, 6):
            command = ["srun", f"--jobid={job}", "--overlap", "-n2", "--cpu-bind=cores", "sleep", "1000"]
            stack.enter_context(ended(subprocess.Popen(command, stderr=subprocess.PIPE)))
            wait_until(lambda count=count: runs(slurm, "sleep", count)(job), "the step runs")  # type: ignore[misc]
            settle(agent)
            now = masks(programs(slurm, job, "sleep"))
            assert {thread: now[thread] for thread in older} == older
            assert sorted((mask for thread, mask in now.items() if thread not in older), key=sorted) == [
                {cpu} for cpu in target
            ]
            check_apart(slurm, agent, [job])
            older = now


@contextmanager
def ended(process: subprocess.Popen[bytes]) -> Iterator[None]:
    with process:
        try:
            yield
        finally:
            process.terminate()


def test_a_suspended_job_is_moved_while_it_is_frozen_and_resumes_there(
    slurm: Slurm, agent: Agent, layout: Layout
) -> None:
    with jobs(slurm) as submit:
        job = submit(2, BOUND.format(tasks=2), runs(slurm, "sleep", 2))
        settle(agent)
        slurm.suspend(job)
        target = sorted(set(range(layout.cpus)) - slurms(job))[:2]
        agent.do(lambda ours: ours.move(job, target))
        assert slurm.frozen(job)
        check_apart(slurm, agent, [job])
        slurm.resume(job)
        check_apart(slurm, agent, [job])
        assert sorted(masks(programs(slurm, job, "sleep")).values(), key=sorted) == [{cpu} for cpu in target]


@pytest.mark.long
def test_an_empty_host_returns_to_the_identity(slurm: Slurm, agent: Agent, layout: Layout) -> None:
    with jobs(slurm) as submit:
        job = submit(1, "sleep 1000", runs(slurm, "sleep", 1))
        settle(agent)
        agent.do(lambda ours: ours.move(job, [layout.cpus - 1]))
        assert agent.do(lambda ours: ours.view()["map"]) != {}
    wait_until(lambda: agent.do(lambda ours: ours.view()) == {"map": {}, "jobs": {}}, "the map is forgotten")
    if (cpuset := cgroup.read_hierarchies().legacy.get("cpuset")) is not None:
        assert not (cpuset / private_cpuset.NAME).exists()
    with jobs(slurm) as submit:
        job = submit(1, "sleep 1000", runs(slurm, "sleep", 1))
        settle(agent)
        assert agent.do(lambda ours: ours.cpus(job)) == slurms(job)
        check_apart(slurm, agent, [job])


class CrashError(BaseException):
    """The agent ends here: nothing of it gets to clean up."""


@pytest.mark.long
def test_what_a_crash_interrupted_is_completed_by_the_next_agent(
    slurm: Slurm, layout: Layout, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def crash(*_: object) -> None:
        raise CrashError

    with jobs(slurm) as submit:
        first, second = (submit(2, BOUND.format(tasks=2), runs(slurm, "sleep", 2)) for _ in range(2))
        for broken in ("pageferry.cpus.groups.write_text", "pageferry.cpus.changes.set_pins_of_all"):
            with Agent(tmp_path / "run") as agent:
                settle(agent)
                now, target = (sorted(agent.do(lambda ours, job=job: ours.cpus(job))) for job in (first, second))  # type: ignore[misc]
            ours = Assignments(tmp_path / "run")
            with monkeypatch.context() as patch:
                patch.setattr(broken, crash)
                with pytest.raises(CrashError):
                    ours.move(first, target)
            with Agent(tmp_path / "run") as agent:
                assert agent.said == ()
                check_apart(slurm, agent, (first, second))
                for job, cpus in ((first, target), (second, now)):
                    tasks = masks(programs(slurm, job, "sleep")).values()
                    assert sorted(tasks, key=sorted) == [{cpu} for cpu in cpus]
