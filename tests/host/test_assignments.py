"""What must hold of the jobs' CPUs, on this kernel: groups as Slurm makes them on version 1, and real processes.

Two jobs have a CPU each. What the real Slurm does meanwhile, and version 2, is the guest's.
"""

from __future__ import annotations

import errno
import json
import os
import select
import signal
from collections.abc import Iterator
from contextlib import ExitStack, suppress
from dataclasses import dataclass
from pathlib import Path
from subprocess import Popen

import pytest

from pageferry.cpus import groups as cpu_groups
from pageferry.cpus import record as cpu_map
from pageferry.cpus.assignments import Assignments
from pageferry.errors import KernelError, UsageError, Vanished
from pageferry.kernel import cgroup
from pageferry.kernel.files import write_text
from pageferry.kernel.private_cpuset import group_path, remove_empty_groups
from pageferry.kernel.processes import open_process
from pageferry.schedulers.slurm_cgroups import slurm_job_cpusets
from pageferry_planner.cpu_permutation import CpuPermutation
from support.children import child, python, said

JOBS = (910_000_001, 910_000_002)
NEXT = 910_000_003

THREADS = """
import os, sys, threading
def pinned(cpu):
    os.sched_setaffinity(0, {cpu})
    barrier.wait()
    sys.stdin.read()
cpus = sorted(os.sched_getaffinity(0))
barrier = threading.Barrier(len(cpus) + 1)
for cpu in cpus:
    threading.Thread(target=pinned, args=(cpu,)).start()
barrier.wait()
print(1, flush=True)
"""

DAEMON = """
import os, sys
pid = os.fork()
if not pid:
    print(os.getpid(), flush=True)
    sys.stdin.readline()
    os.execvp("sleep", ["sleep", "1000"])
os.waitpid(pid, 0)
"""
"""A slurmstepd: its fork becomes the program once it is told."""


@dataclass(frozen=True, slots=True)
class Groups:
    """Slurm's groups on version 1, of our own."""

    cpuset: Path
    freezer: Path

    def job(self, job: int, cpus: str) -> Path:
        """Make a job, or write its CPUs again, as Slurm does for each step."""
        path = self.cpuset / "uid_0" / f"job_{job}"
        (self.freezer / "uid_0" / f"job_{job}").mkdir(parents=True, exist_ok=True)
        make(path)
        (path / "cpuset.cpus").write_text(cpus)
        return path

    def step(self, job: int, name: str, cpus: str, *pids: int) -> Path:
        path = self.cpuset / "uid_0" / f"job_{job}" / name
        make(path)
        (path / "cpuset.cpus").write_text(cpus)
        for pid in pids:
            (path / "cgroup.procs").write_text(str(pid))
        return path


def make(path: Path) -> None:
    """Make a cpuset group that allows what the one above it does."""
    if not path.is_dir():
        path.mkdir()
        for name in ("cpuset.cpus", "cpuset.mems"):
            (path / name).write_text((path.parent / name).read_text())


@pytest.fixture
def groups(cpus: list[int]) -> Iterator[Groups]:
    legacy = cgroup.read_hierarchies().legacy
    if os.geteuid() != 0 or not {"cpuset", "freezer"} <= legacy.keys():
        pytest.skip("needs root and cgroup version 1; the guest has both versions")
    made = Groups(*(legacy[name] / f"slurm_pageferry{os.getpid()}" for name in ("cpuset", "freezer")))
    made.freezer.mkdir()
    make(made.cpuset)
    make(made.cpuset / "uid_0")
    yield made
    apart = sorted((legacy["cpuset"] / "pageferry").glob(f"{made.cpuset.name}.*"))
    for pid in (pid for top in (made.cpuset, *apart) for pid in cgroup.pids(top)):  # what a test's own processes began
        with suppress(Vanished), open_process(pid) as handle:
            signal.pidfd_send_signal(handle.pidfd, signal.SIGKILL)
            select.select([handle.pidfd], [], [])
    remove_empty_groups()
    for top in (made.cpuset, made.freezer):
        for path in reversed(list(cgroup.walk(top))):
            path.rmdir()


@pytest.fixture
def cpus() -> list[int]:
    found = sorted(os.sched_getaffinity(0))
    assert len(found) > 1, "needs two CPUs"
    return found[:2]


@dataclass(frozen=True, slots=True)
class Jobs:
    """Two jobs that run: the first has the first CPU, the second the other one."""

    first: Popen[bytes]
    second: Popen[bytes]
    steps: tuple[Path, Path]


@pytest.fixture
def stack(groups: Groups) -> Iterator[ExitStack]:
    with ExitStack() as entered:
        yield entered


@pytest.fixture
def jobs(groups: Groups, stack: ExitStack, cpus: list[int]) -> Jobs:
    processes, steps = [], []
    for job, cpu in zip(JOBS, cpus, strict=True):
        process = stack.enter_context(child())
        groups.job(job, str(cpu))
        steps.append(groups.step(job, "step_0", str(cpu), process.pid))
        processes.append(process)
    return Jobs(processes[0], processes[1], (steps[0], steps[1]))


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    return tmp_path / "run"


@pytest.fixture
def ours(jobs: Jobs, folder: Path) -> Assignments:
    return seeing(folder)


def seeing(folder: Path) -> Assignments:
    made = Assignments(folder)
    assert made.restore() == ()
    return made


def written(path: Path) -> frozenset[int]:
    return cpu_groups.written(path)


def apart(step: Path) -> Path:
    """Our group for a step."""
    return group_path(cgroup.read_hierarchies().legacy["cpuset"], step)


def pins(pid: int) -> list[set[int]]:
    threads = Path(f"/proc/{pid}/task").iterdir()
    return sorted((os.sched_getaffinity(int(thread.name)) for thread in threads), key=sorted)


def check_swapped(jobs: Jobs, cpus: list[int]) -> None:
    assert [written(apart(step)) for step in jobs.steps] == [{cpus[1]}, {cpus[0]}]
    assert [cgroup.pids(apart(step)) for step in jobs.steps] == [{jobs.first.pid}, {jobs.second.pid}]
    assert pins(jobs.first.pid) == [{cpus[1]}]
    assert pins(jobs.second.pid) == [{cpus[0]}]
    check_slurms(jobs, cpus)


def check_in_place(jobs: Jobs, cpus: list[int]) -> None:
    assert not any(apart(step).exists() for step in jobs.steps)
    assert [cgroup.pids(step) for step in jobs.steps] == [{jobs.first.pid}, {jobs.second.pid}]
    assert pins(jobs.first.pid) == [{cpus[0]}]
    assert pins(jobs.second.pid) == [{cpus[1]}]
    check_slurms(jobs, cpus)


def check_slurms(jobs: Jobs, cpus: list[int]) -> None:
    """Slurm's groups are as Slurm wrote them."""
    for place, step in enumerate(jobs.steps):
        assert written(step) == written(step.parent) == {cpus[place]}
        assert written(step.parent.parent) >= {*cpus}


def test_a_move_swaps_two_jobs_and_back(ours: Assignments, jobs: Jobs, cpus: list[int]) -> None:
    assert ours.move(JOBS[0], [cpus[1]]) == JOBS
    check_swapped(jobs, cpus)
    assert [ours.cpus(job) for job in JOBS] == [{cpus[1]}, {cpus[0]}]
    assert [ours.slurm_cpus(job) for job in JOBS] == [{cpus[0]}, {cpus[1]}]
    assert ours.move(JOBS[0], [cpus[1]]) == (), "it is there"
    assert ours.move(JOBS[1], [cpus[1]]) == JOBS[::-1]
    check_in_place(jobs, cpus)
    assert ours.view()["map"] == {}


def test_all_jobs_get_slurms_cpus_back_where_no_agent_is_to_follow(
    ours: Assignments, jobs: Jobs, folder: Path, cpus: list[int]
) -> None:
    assert ours.give_back() == (), "all have them"
    ours.move(JOBS[0], [cpus[1]])
    check_swapped(jobs, cpus)
    assert seeing(folder).give_back() == JOBS
    check_in_place(jobs, cpus)
    assert seeing(folder).view()["map"] == {}


def test_what_is_shown_can_be_written_as_json(ours: Assignments, cpus: list[int]) -> None:
    ours.move(JOBS[0], [cpus[1]])
    shown = json.loads(json.dumps(ours.view()))
    assert shown["map"] == {str(cpus[0]): cpus[1], str(cpus[1]): cpus[0]}
    assert shown["jobs"][str(JOBS[0])] == {"slurm": str(cpus[0]), "real": str(cpus[1]), "launching": False}


def test_nothing_is_written_where_nothing_changes(
    ours: Assignments, cpus: list[int], monkeypatch: pytest.MonkeyPatch
) -> None:
    ours.move(JOBS[0], [cpus[1]])
    monkeypatch.setattr(
        "pageferry.cpus.groups.write_text", lambda *_: pytest.fail("our own events would call us again")
    )
    monkeypatch.setattr("pageferry.cpus.assignments.save", lambda *_: pytest.fail("nothing to save"))
    assert [ours.seen(job) for job in JOBS] == [frozenset(), frozenset()]
    assert not ours.settle()


def test_slurm_can_write_a_moved_job_again_and_begin_a_step_that_follows_it(
    ours: Assignments, groups: Groups, jobs: Jobs, stack: ExitStack, cpus: list[int]
) -> None:
    ours.move(JOBS[0], [cpus[1]])
    late = stack.enter_context(child())
    step = groups.step(JOBS[0], "step_1", str(cpus[0]), late.pid)
    groups.job(JOBS[0], str(cpus[0]))  # the kernel would refuse it if a step had another CPU
    assert ours.seen(JOBS[0]) == frozenset()
    assert written(apart(step)) == {cpus[1]}
    assert pins(late.pid) == [{cpus[1]}]
    check_swapped(jobs, cpus)


def test_a_process_that_stayed_behind_is_moved_at_the_next_look(
    ours: Assignments, jobs: Jobs, stack: ExitStack, cpus: list[int]
) -> None:
    ours.move(JOBS[0], [cpus[1]])
    late = stack.enter_context(child())
    (jobs.steps[0] / "cgroup.procs").write_text(str(late.pid))
    assert ours.seen(JOBS[0]) == frozenset(), "its memory is where it was"
    assert cgroup.pids(apart(jobs.steps[0])) == {jobs.first.pid, late.pid}
    assert pins(late.pid) == [{cpus[1]}]


def test_our_group_has_the_nodes_of_slurms_and_decides_where_a_job_is(
    ours: Assignments, jobs: Jobs, cpus: list[int]
) -> None:
    assert slurm_job_cpusets(JOBS[0])[1] == jobs.steps[:1]
    ours.move(JOBS[0], [cpus[1]])
    group = apart(jobs.steps[0])
    assert slurm_job_cpusets(JOBS[0])[1] == (group,)
    assert (group / "cpuset.mems").read_text() == (jobs.steps[0] / "cpuset.mems").read_text()


def test_our_group_ends_with_its_last_process(ours: Assignments, jobs: Jobs, cpus: list[int]) -> None:
    ours.move(JOBS[0], [cpus[1]])
    group = apart(jobs.steps[0])
    jobs.first.kill()
    jobs.first.wait()
    ours.seen(JOBS[0])
    assert not group.exists()
    assert not ours.settle(), "nothing is launched any more"
    ours.move(JOBS[1], [cpus[1]])
    assert not group.parent.exists()


def test_a_newcomer_is_mapped_and_its_memory_may_follow(
    ours: Assignments, groups: Groups, stack: ExitStack, cpus: list[int]
) -> None:
    ours.move(JOBS[0], [cpus[1]])
    newcomer = stack.enter_context(child())
    groups.job(NEXT, str(cpus[0]))
    groups.step(NEXT, "step_0", str(cpus[0]), newcomer.pid)
    assert ours.seen(NEXT) == {NEXT}
    assert pins(newcomer.pid) == [{cpus[1]}]
    assert ours.cpus(NEXT) == {cpus[1]}, "the same CPU to Slurm, so the same one in fact: one of them is suspended"


def test_a_step_is_moved_only_when_its_launcher_has_become_the_program(
    ours: Assignments, groups: Groups, stack: ExitStack, cpus: list[int]
) -> None:
    ours.move(JOBS[0], [cpus[1]])
    daemon = stack.enter_context(python(DAEMON))
    launcher = said(daemon)
    (groups.freezer / "uid_0" / f"job_{JOBS[0]}" / "cgroup.procs").write_text(str(daemon.pid))
    step = groups.step(JOBS[0], "step_1", str(cpus[0]), daemon.pid, launcher)
    ours.seen(JOBS[0])
    assert ours.settle()
    assert ours.view()["jobs"][str(JOBS[0])]["launching"]
    os.sched_setaffinity(launcher, {cpus[0]})  # as task/affinity does: it must not fail
    assert launcher in cgroup.pids(step)
    assert daemon.stdin is not None
    daemon.stdin.write(b"\n")
    daemon.stdin.flush()
    while ours.settle():
        os.sched_yield()
    assert Path(f"/proc/{launcher}/exe").resolve().name == "sleep"
    assert pins(launcher) == [{cpus[1]}]
    assert cgroup.pids(apart(step)) == {launcher}
    assert cgroup.pids(step) == {daemon.pid}, "slurmstepd stays"


def test_a_step_without_processes_waits(ours: Assignments, groups: Groups, cpus: list[int]) -> None:
    ours.move(JOBS[0], [cpus[1]])
    step = groups.step(JOBS[0], "step_1", str(cpus[0]))
    ours.seen(JOBS[0])
    assert ours.settle()
    assert not apart(step).exists()
    step.rmdir()
    assert not ours.settle()


@pytest.mark.parametrize(
    ("job", "wanted", "says"),
    [
        (JOBS[0], [100_000], "cannot have on this host: 100000"),
        (JOBS[0], [], "has 1 CPUs on this host .*, not 0: none"),
        (JOBS[0], [0, 1], "has 1 CPUs on this host .*, not 2: 0-1"),
        (NEXT, [0], f"no such job on this host: {NEXT}"),
    ],
    ids=["offline", "none", "too many", "unknown"],
)
def test_a_move_that_makes_no_sense_is_refused_and_nothing_changes(
    ours: Assignments, jobs: Jobs, cpus: list[int], job: int, wanted: list[int], says: str
) -> None:
    with pytest.raises(UsageError, match=says):
        ours.move(job, wanted)
    check_in_place(jobs, cpus)


def test_a_job_that_is_not_confined_cannot_be_moved(ours: Assignments, groups: Groups) -> None:
    (groups.cpuset / "uid_0" / f"job_{NEXT}").mkdir()
    assert ours.seen(NEXT) == frozenset()
    with pytest.raises(UsageError, match="ConstrainCores=yes"):
        ours.move(NEXT, [0])


def interrupt(patch: pytest.MonkeyPatch, writes: int, error: BaseException) -> None:
    """Let so many writes to cpusets pass, and raise at the next."""
    left = writes

    def write(path: Path, text: str) -> None:
        nonlocal left
        left -= 1
        if left == -1:
            raise error
        write_text(path, text)

    patch.setattr("pageferry.cpus.groups.write_text", write)


WRITES = 4
"""For two steps, the CPUs of our group for each, and a process that goes there."""

WRITES_BACK = 2
"""Two processes go to Slurm's groups."""


@pytest.mark.parametrize("writes", range(WRITES))
def test_if_the_kernel_refuses_midway_all_is_as_before(
    ours: Assignments, jobs: Jobs, folder: Path, cpus: list[int], writes: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    record = (folder / "cpu_map.json").read_bytes()
    with monkeypatch.context() as patch:
        interrupt(patch, writes, KernelError("Device or resource busy"))
        with pytest.raises(KernelError, match="busy"):
            ours.move(JOBS[0], [cpus[1]])
    check_in_place(jobs, cpus)
    assert (folder / "cpu_map.json").read_bytes() == record
    assert ours.view()["map"] == {}
    assert ours.move(JOBS[0], [cpus[1]]) == JOBS, "later it may"


def test_a_record_that_cannot_be_written_stops_a_move_before_it_begins(
    ours: Assignments, jobs: Jobs, folder: Path, cpus: list[int]
) -> None:
    (folder / "cpu_map.json.new").mkdir()
    with pytest.raises(KernelError, match=r"cpu_map\.json\.new"):
        ours.move(JOBS[0], [cpus[1]])
    check_in_place(jobs, cpus)
    (folder / "cpu_map.json.new").rmdir()
    ours.move(JOBS[0], [cpus[1]])
    check_swapped(jobs, cpus)


def test_where_another_controller_shares_the_mount_no_task_is_taken_out_of_its_groups(
    ours: Assignments, jobs: Jobs, cpus: list[int], monkeypatch: pytest.MonkeyPatch
) -> None:
    legacy = {**cgroup.read_hierarchies().legacy}
    shared = cgroup.Hierarchies(None, legacy | {"memory": legacy["cpuset"]})
    monkeypatch.setattr("pageferry.kernel.private_cpuset.read_hierarchies", lambda *_: shared)
    with pytest.raises(KernelError, match="memory is there too"):
        ours.move(JOBS[0], [cpus[1]])
    check_in_place(jobs, cpus)


class CrashError(BaseException):
    """The agent ends here: nothing of it gets to clean up."""


@pytest.mark.parametrize("writes", range(WRITES_BACK))
def test_what_a_crash_interrupted_is_completed_on_the_way_back_too(
    ours: Assignments, jobs: Jobs, folder: Path, cpus: list[int], writes: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    ours.move(JOBS[0], [cpus[1]])
    with monkeypatch.context() as patch:
        interrupt(patch, writes, CrashError())
        with pytest.raises(CrashError):
            ours.move(JOBS[0], [cpus[0]])
    after = seeing(folder)
    check_in_place(jobs, cpus)
    assert [after.slurm_cpus(job) for job in JOBS] == [{cpus[0]}, {cpus[1]}]


@pytest.mark.parametrize("writes", range(WRITES))
def test_what_a_crash_interrupted_is_completed(
    ours: Assignments, jobs: Jobs, folder: Path, cpus: list[int], writes: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    with monkeypatch.context() as patch:
        interrupt(patch, writes, CrashError())
        with pytest.raises(CrashError):
            ours.move(JOBS[0], [cpus[1]])
    after = seeing(folder)
    check_swapped(jobs, cpus)
    assert after.move(JOBS[0], [cpus[0]]) == JOBS
    check_in_place(jobs, cpus)


@pytest.fixture
def crossed(groups: Groups, stack: ExitStack, folder: Path, cpus: list[int]) -> list[int]:
    """A job on two CPUs, with a map that has them the other way round; its threads: one on both, two on one each."""
    process = stack.enter_context(python(THREADS))
    assert said(process) == 1
    both = f"{cpus[0]},{cpus[1]}"
    groups.job(JOBS[0], both)
    groups.step(JOBS[0], "step_0", both, process.pid)
    threads = sorted(int(path.name) for path in Path(f"/proc/{process.pid}/task").iterdir())[:3]
    for thread, mask in zip(threads, [{*cpus}, {cpus[0]}, {cpus[1]}], strict=True):
        os.sched_setaffinity(thread, mask)
    cpu_map.save(folder, cpu_map.CpuMap(CpuPermutation({cpus[0]: cpus[1], cpus[1]: cpus[0]})))
    return threads


def masks(threads: list[int]) -> list[set[int]]:
    return [os.sched_getaffinity(thread) for thread in threads]


def test_each_threads_pin_follows_and_no_thread_is_mapped_twice(
    crossed: list[int], folder: Path, cpus: list[int]
) -> None:
    ours = Assignments(folder)
    for _ in range(3):
        ours.seen(JOBS[0])
        assert masks(crossed) == [{*cpus}, {cpus[1]}, {cpus[0]}]
    seeing(folder)
    assert masks(crossed) == [{*cpus}, {cpus[1]}, {cpus[0]}]


def test_if_a_pin_is_refused_all_pins_are_as_before(
    crossed: list[int], folder: Path, cpus: list[int], monkeypatch: pytest.MonkeyPatch
) -> None:
    ours = Assignments(folder)
    before = masks(crossed)
    setaffinity = os.sched_setaffinity

    def refuse(thread: int, mask: frozenset[int]) -> None:
        if thread == crossed[2] and mask == {cpus[0]}:
            raise OSError(errno.EINVAL, "Invalid argument")
        setaffinity(thread, mask)

    with monkeypatch.context() as patch:
        patch.setattr(os, "sched_setaffinity", refuse)
        with pytest.raises(KernelError, match="Invalid argument"):
            ours.seen(JOBS[0])
        assert masks(crossed) == before
    ours.seen(JOBS[0])
    assert masks(crossed) == [{*cpus}, {cpus[1]}, {cpus[0]}]


def test_pins_that_a_crash_interrupted_are_completed(
    crossed: list[int], folder: Path, cpus: list[int], monkeypatch: pytest.MonkeyPatch
) -> None:
    with monkeypatch.context() as patch:
        patch.setattr("pageferry.cpus.changes.set_pins_of_all", raising)
        with pytest.raises(CrashError):
            Assignments(folder).seen(JOBS[0])
    seeing(folder)
    assert masks(crossed) == [{*cpus}, {cpus[1]}, {cpus[0]}]


def raising(*_: object) -> None:
    raise CrashError


def test_the_map_outlives_the_agent_and_is_forgotten_with_the_last_job(
    ours: Assignments, groups: Groups, jobs: Jobs, stack: ExitStack, folder: Path, cpus: list[int]
) -> None:
    ours.move(JOBS[0], [cpus[1]])
    ours = seeing(folder)
    check_swapped(jobs, cpus)
    stack.close()
    for step, job in zip(jobs.steps, JOBS, strict=True):
        assert ours.view()["map"] != {}
        for path in (step, step.parent, groups.freezer / "uid_0" / f"job_{job}"):
            path.rmdir()
        assert ours.seen(job) == frozenset()
    assert ours.view() == {"map": {}, "jobs": {}}
    assert seeing(folder).view() == {"map": {}, "jobs": {}}


def test_jobs_that_ended_while_no_agent_ran_are_forgotten(
    ours: Assignments, groups: Groups, jobs: Jobs, stack: ExitStack, folder: Path, cpus: list[int]
) -> None:
    ours.move(JOBS[0], [cpus[1]])
    jobs.first.kill()
    jobs.first.wait()
    for path in (jobs.steps[0], jobs.steps[0].parent, groups.freezer / "uid_0" / f"job_{JOBS[0]}"):
        path.rmdir()
    ours = seeing(folder)
    assert list(ours.view()["jobs"]) == [str(JOBS[1])]
    assert ours.cpus(JOBS[1]) == {cpus[0]}


def damage(folder: Path, how: str) -> None:
    path = folder / "cpu_map.json"
    if how == "another boot":
        path.write_text(json.dumps(json.loads(path.read_text()) | {"boot": "another"}))
    elif how == "gone":
        path.unlink()
    elif how == "half":
        path.write_text(path.read_text()[:-40])
    else:
        path.write_text(how)


@pytest.mark.parametrize("how", ["another boot", "half", "[]", '{"version": 1}', "[" * 100_000, "\0", "gone"])
def test_a_record_that_cannot_be_used_is_said_and_leaves_jobs_alone(
    ours: Assignments, jobs: Jobs, folder: Path, cpus: list[int], how: str
) -> None:
    damage(folder, how)
    ours = Assignments(folder)
    said = ours.restore()
    assert len(said) == (how != "gone")
    assert all("not used" in line and "\n" not in line for line in said)
    check_in_place(jobs, cpus)
    ours.move(JOBS[0], [cpus[1]])
    check_swapped(jobs, cpus)


@pytest.mark.parametrize("how", ["another boot", "half", "gone"])
def test_without_a_record_the_groups_say_who_was_moved(
    groups: Groups, stack: ExitStack, folder: Path, cpus: list[int], how: str
) -> None:
    processes = [stack.enter_context(child()) for _ in JOBS]
    for job, cpu, process in zip(JOBS, cpus, processes, strict=True):
        groups.job(job, str(cpu))
        groups.step(job, "step_batch", str(cpu), process.pid)
    seeing(folder).move(JOBS[0], [cpus[1]])
    damage(folder, how)
    ours = Assignments(folder)
    assert [line for line in ours.restore() if line.startswith("job")] == [
        f"job {job}: found moved, by its cgroups" for job in JOBS
    ]
    assert [ours.slurm_cpus(job) for job in JOBS] == [{cpus[0]}, {cpus[1]}]
    assert [pins(process.pid) for process in processes] == [[{cpus[1]}], [{cpus[0]}]]
    ours.move(JOBS[0], [cpus[0]])
    assert [pins(process.pid) for process in processes] == [[{cpus[0]}], [{cpus[1]}]]


def test_processes_that_end_meanwhile_are_no_hindrance(ours: Assignments, jobs: Jobs, cpus: list[int]) -> None:
    jobs.first.kill()
    assert ours.move(JOBS[0], [cpus[1]]) == JOBS
    assert pins(jobs.second.pid) == [{cpus[0]}]


def test_cpus_are_chosen_on_nodes(ours: Assignments, cpus: list[int]) -> None:
    assert ours.choose(JOBS[0], [0]) == {cpus[0]}
    ours.move(JOBS[0], [cpus[1]])
    assert ours.choose(JOBS[0], [0]) == {cpus[1]}
    with pytest.raises(UsageError, match=f"no CPUs for job {JOBS[0]} on nodes 9: no node 9"):
        ours.choose(JOBS[0], [9])
