"""What must hold of the watch on a tree as Slurm makes it, on this kernel; the guest's tests have the real Slurm."""

from __future__ import annotations

import os
import select
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from pageferry.agent.watch import Event, Kind, Watch
from pageferry.errors import KernelError
from pageferry.kernel import cgroup
from pageferry.kernel.inotify import Inotify
from support.children import child

SECONDS = 10.0
JOB = 4_100_000_000 + os.getpid() % 4_000_000 * 10
OTHER = JOB + 1
NOBODY = 65534


def remove(top: Path) -> None:
    for group in reversed(list(cgroup.walk(top))):
        group.rmdir()


def made(parent: Path, name: str) -> Iterator[Path]:
    path = parent / name
    path.mkdir()
    try:
        yield path
    finally:
        remove(path)


@pytest.fixture
def slice_() -> Iterator[Path]:
    unified = cgroup.read_hierarchies().unified
    assert unified is not None, "cgroup v2 is mounted on every host that these tests run on"
    yield from made(unified, f"pageferry-watch-{os.getpid()}.slice")


@pytest.fixture
def scope(slice_: Path) -> Path:
    path = slice_ / "test_slurmstepd.scope"
    path.mkdir()
    return path


def legacy(controller: str) -> Iterator[Path]:
    mount = cgroup.read_hierarchies().legacy.get(controller)
    if mount is None:
        pytest.skip(f"{controller} is not mounted as version 1; the guest's tests have it")
    for top in made(mount, f"slurm_pageferry-{os.getpid()}"):
        (top / "uid_1000").mkdir()
        yield top / "uid_1000"


@pytest.fixture
def freezer() -> Iterator[Path]:
    yield from legacy("freezer")


@pytest.fixture
def cpuset() -> Iterator[Path]:
    yield from legacy("cpuset")


@pytest.fixture
def watch() -> Iterator[Watch]:
    watch = Watch()
    yield watch
    watch.close()


def start(scope: Path, job: int = JOB, step: str = "step_0") -> Path:
    """Make the groups of a step with one task, as Slurm does, and return the one that Slurm freezes."""
    user = scope / f"job_{job}" / step / "user"
    user.mkdir(parents=True)
    (user.parent / "slurm").mkdir()
    (user / "task_0").mkdir()
    return user


def write(path: Path, text: str) -> None:
    """Write as Slurm does, without the truncation of a shell's redirection."""
    fd = os.open(path, os.O_WRONLY)
    os.write(fd, text.encode())
    os.close(fd)


def told(watch: Watch) -> list[Event]:
    return [event for event in watch.events() if event.job in {0, JOB, OTHER}]


def kinds(watch: Watch) -> list[Kind]:
    return [event.kind for event in told(watch)]


def awaited(watch: Watch) -> list[Event]:
    """Return the next events, which the kernel may tell a moment later."""
    while not (events := told(watch)):
        assert select.select([watch], [], [], SECONDS)[0], "no event came"
    return events


def silent(watch: Watch, seconds: float) -> bool:
    """Say whether nothing of ours is told for some time; other groups of this host may come and go."""
    deadline = time.monotonic() + seconds
    while (left := deadline - time.monotonic()) > 0:
        if select.select([watch], [], [], left)[0] and told(watch):
            return False
    return not told(watch)


def watches(watch: Watch) -> int:
    return Path(f"/proc/self/fdinfo/{watch.fileno()}").read_text().count("inotify wd:")


def ours(watch: Watch) -> set[int]:
    return {JOB, OTHER} & set(watch.jobs())


def test_jobs_that_were_there_before_are_known_and_no_event(scope: Path) -> None:
    user = start(scope)
    watch = Watch()
    assert ours(watch) == {JOB}
    assert told(watch) == []
    write(user / "cgroup.freeze", "0")
    assert told(watch) == [Event(Kind.FREEZER, JOB, user, writes=1)]
    watch.close()


def test_a_jobs_life_is_told_in_order(watch: Watch, scope: Path) -> None:
    job = scope / f"job_{JOB}"
    user = job / "step_0/user"
    job.mkdir()
    assert told(watch) == [Event(Kind.JOB, JOB, job)]
    assert ours(watch) == {JOB}
    user.parent.mkdir()
    assert told(watch) == []
    user.mkdir()
    assert told(watch) == [Event(Kind.STEP, JOB, user)]
    (user / "task_0").mkdir()
    assert told(watch) == [Event(Kind.TASK, JOB, user / "task_0")]
    write(user / "cgroup.freeze", "1")
    assert told(watch)[0] == Event(Kind.FREEZER, JOB, user, writes=1)
    remove(job)
    assert told(watch) == [Event(Kind.GONE, JOB, job)]
    assert ours(watch) == set()


def test_what_appeared_before_the_watch_was_there_is_told_once(watch: Watch, scope: Path) -> None:
    user = start(scope)
    assert told(watch) == [
        Event(Kind.JOB, JOB, scope / f"job_{JOB}"),
        Event(Kind.STEP, JOB, user),
        Event(Kind.TASK, JOB, user / "task_0"),
    ]
    assert told(watch) == []


def test_slices_and_scopes_that_appear_later_are_watched(watch: Watch, slice_: Path) -> None:
    for inner in ("", "a.slice", "a.slice/a-b.slice"):
        scope = slice_ / inner / "n_slurmstepd.scope"
        scope.mkdir(parents=True)
        assert told(watch) == []
        start(scope)
        assert kinds(watch) == [Kind.JOB, Kind.STEP, Kind.TASK]
        remove(scope)
        assert kinds(watch) == [Kind.GONE]


def test_a_freeze_and_thaw_at_once_is_told_with_each_write_counted(watch: Watch, scope: Path) -> None:
    users = [start(scope, step=step) for step in ("step_0", "step_1")]
    told(watch)
    for user in users:
        for value in "10" * 5:
            write(user / "cgroup.freeze", value)
    assert [event for event in told(watch) if event.writes] == [
        Event(Kind.FREEZER, JOB, user, writes=10) for user in users
    ]


def test_the_kernels_word_that_a_group_is_frozen_is_told(watch: Watch, scope: Path) -> None:
    user = start(scope)
    with child() as process:
        (user / "task_0/cgroup.procs").write_text(str(process.pid))
        told(watch)
        for value in "10":
            write(user / "cgroup.freeze", value)
            frozen = f"frozen {value}"
            writes = 0
            while frozen not in (user / "cgroup.events").read_text() or writes == 0:
                writes += sum(event.writes for event in awaited(watch) if event.kind is Kind.FREEZER)
            assert writes == 1
        process.kill()
        process.wait()


def test_the_first_process_of_a_step_is_told_and_more_of_them_wake_nobody(watch: Watch, scope: Path) -> None:
    user = start(scope)
    told(watch)
    with child() as first, child() as second:
        (user / "task_0/cgroup.procs").write_text(str(first.pid))
        assert awaited(watch) == [Event(Kind.FREEZER, JOB, user)]
        (user / "task_0/cgroup.procs").write_text(str(second.pid))
        second.kill()
        second.wait()
        assert silent(watch, 0.3)
        first.kill()
        first.wait()
        assert awaited(watch) == [Event(Kind.FREEZER, JOB, user)]


def test_reading_is_no_event(watch: Watch, scope: Path) -> None:
    start(scope)
    told(watch)
    for group in cgroup.walk(scope / f"job_{JOB}"):
        for file in group.iterdir():
            if file.is_file() and os.access(file, os.R_OK) and file.stat().st_mode & 0o400:
                file.read_bytes()
    assert told(watch) == []


def test_a_hold_of_ours_below_is_no_event(watch: Watch, scope: Path) -> None:
    user = start(scope)
    told(watch)
    write(user / "task_0/cgroup.freeze", "1")
    assert silent(watch, 0.3)


def test_a_scope_that_a_user_made_is_not_believed(watch: Watch, slice_: Path) -> None:
    own = slice_ / "own.slice"
    start(own / "later_slurmstepd.scope")  # made before it was given away, and found
    fake = slice_ / "x_slurmstepd.scope"
    fake.mkdir()
    os.chown(fake, NOBODY, NOBODY)
    start(fake, OTHER)
    delegated = slice_ / "delegated.slice"
    delegated.mkdir()
    os.chown(delegated, NOBODY, NOBODY)
    start(delegated / "x_slurmstepd.scope", OTHER)
    assert {event.job for event in told(watch)} == {JOB}
    assert {event.job for event in watch.rescan()} & {JOB, OTHER} == set()
    assert ours(watch) == {JOB}


def test_a_scope_below_a_group_that_is_no_slice_is_found_by_a_rescan_and_watched_from_then_on(
    watch: Watch, slice_: Path
) -> None:
    scope = slice_ / "container/inner/slurmstepd.scope"
    start(scope)
    assert told(watch) == []
    assert {event.kind for event in watch.rescan() if event.job == JOB} == {Kind.JOB, Kind.STEP, Kind.TASK}
    remove(scope)
    assert kinds(watch) == [Kind.GONE]
    start(scope)
    assert kinds(watch) == [Kind.JOB, Kind.STEP, Kind.TASK]


@pytest.mark.parametrize("name", ["job_0", "job_007", f"job_{JOB}x", "job_99999999999", "job_", "job_١"])
def test_what_is_no_jobs_group_is_left_alone(watch: Watch, scope: Path, name: str) -> None:
    (scope / name / "step_0/user").mkdir(parents=True)
    assert [event for event in watch.events() if event.group.is_relative_to(scope)] == []
    assert not {0, 1, 7, JOB, 99999999999} & set(watch.jobs())


def test_a_job_on_two_slurmd_is_gone_when_both_have_removed_it(watch: Watch, slice_: Path) -> None:
    first, second = (slice_ / f"n{number}_slurmstepd.scope" for number in (1, 2))
    start(first)
    start(second)
    assert kinds(watch).count(Kind.JOB) == 2
    remove(first)
    assert kinds(watch) == []
    remove(second)
    assert kinds(watch) == [Kind.GONE]


def test_a_job_that_takes_the_place_of_one_of_its_name_is_gone_and_there_again(watch: Watch, scope: Path) -> None:
    start(scope)
    told(watch)
    remove(scope / f"job_{JOB}")
    user = start(scope)
    assert kinds(watch) == [Kind.GONE, Kind.JOB, Kind.STEP, Kind.TASK]
    write(user / "cgroup.freeze", "0")
    assert kinds(watch) == [Kind.FREEZER]


def test_thousands_of_quick_jobs_leave_nothing_behind(watch: Watch, scope: Path) -> None:
    told(watch)
    before = watches(watch)
    for number in range(2000):
        start(scope)
        if number % 3:
            told(watch)
        remove(scope / f"job_{JOB}")
        if number % 2:
            told(watch)
    told(watch)
    assert watches(watch) == before
    assert len(watch._watched) == before
    assert ours(watch) == set()
    assert told(watch) == []


def test_groups_that_vanish_while_they_are_looked_at_are_no_error(watch: Watch, scope: Path) -> None:
    told(watch)
    before = watches(watch)

    def jobs() -> None:
        for _ in range(400):
            start(scope)
            remove(scope / f"job_{JOB}")
        start(scope, OTHER)

    maker = threading.Thread(target=jobs)
    maker.start()
    seen: list[Event] = []
    while maker.is_alive():
        seen += told(watch)
    maker.join()
    seen += told(watch)
    assert Event(Kind.STEP, OTHER, scope / f"job_{OTHER}/step_0/user") in seen
    assert ours(watch) == {OTHER}
    remove(scope / f"job_{OTHER}")
    assert kinds(watch) == [Kind.GONE]
    assert watches(watch) == before


def test_lost_events_are_told_and_what_they_hid_is_found(watch: Watch, scope: Path) -> None:
    user = start(scope)
    told(watch)
    most = int(Path("/proc/sys/fs/inotify/max_queued_events").read_text())
    for _ in range(most // 2 + 1):
        write(user / "cgroup.freeze", "0")
    start(scope, OTHER)
    remove(scope / f"job_{JOB}")
    events = told(watch)
    while select.select([watch], [], [], 0)[0]:
        events += told(watch)
    lost = next(event for event in events if event.kind is Kind.LOST)
    after = events[events.index(lost) :]
    assert lost.job == 0
    assert [event.kind for event in after if event.job == OTHER] == [Kind.JOB, Kind.STEP, Kind.TASK]
    assert [event.kind for event in after if event.job == JOB] == [Kind.GONE]
    assert ours(watch) == {OTHER}


def test_a_watch_that_found_no_room_is_mended_by_a_rescan(
    watch: Watch, scope: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    add: Callable[[Inotify, Path, int], int] = Inotify.watch

    def full(self: Inotify, path: Path, mask: int) -> int:
        if path.name == "user":
            raise KernelError("no inotify watch is left")
        return add(self, path, mask)

    monkeypatch.setattr(Inotify, "watch", full)
    user = start(scope)
    with pytest.raises(KernelError, match="no inotify watch"):
        told(watch)
    monkeypatch.undo()
    assert Event(Kind.TASK, JOB, user / "task_0") in watch.rescan()
    write(user / "cgroup.freeze", "0")
    assert kinds(watch) == [Kind.FREEZER]


def test_a_rescan_of_what_is_known_tells_nothing_and_adds_nothing(watch: Watch, scope: Path) -> None:
    start(scope)
    told(watch)
    before = watches(watch)
    assert [event for event in watch.rescan() if event.job == JOB] == []
    assert watches(watch) == before


def test_a_legacy_step_is_told_with_its_freezer(watch: Watch, freezer: Path) -> None:
    job = freezer / f"job_{JOB}"
    step = job / "step_0"
    step.mkdir(parents=True)
    assert told(watch) == [Event(Kind.JOB, JOB, job), Event(Kind.STEP, JOB, step)]
    write(step / "freezer.state", "FROZEN")
    (step / "freezer.state").read_text()
    assert told(watch) == [Event(Kind.FREEZER, JOB, step, writes=1)]
    for state in ("THAWED", "FROZEN", "THAWED"):
        write(step / "freezer.state", state)
    assert told(watch) == [Event(Kind.FREEZER, JOB, step, writes=3)]
    remove(job)
    assert told(watch) == [Event(Kind.GONE, JOB, job)]


def test_legacy_cpusets_are_told_at_the_job_and_the_step(watch: Watch, cpuset: Path) -> None:
    job = cpuset / f"job_{JOB}"
    step = job / "step_0"
    step.mkdir(parents=True)
    assert kinds(watch) == [Kind.JOB, Kind.STEP]
    for group in (cpuset.parent, cpuset):
        for name in ("cpuset.cpus", "cpuset.mems"):
            write(group / name, "0")
    assert told(watch) == []
    for group in (job, step):
        write(group / "cpuset.cpus", "0")
        write(group / "cpuset.mems", "0")
    assert told(watch) == [Event(Kind.CPUSET, JOB, job), Event(Kind.CPUSET, JOB, step)]


def test_a_legacy_job_is_gone_when_every_hierarchy_has_removed_it(watch: Watch, freezer: Path, cpuset: Path) -> None:
    jobs = [top / f"job_{JOB}" for top in (freezer, cpuset)]
    for job in jobs:
        job.mkdir()
    assert sorted(event.group for event in told(watch)) == sorted(jobs)
    remove(jobs[0])
    assert kinds(watch) == []
    remove(jobs[1])
    assert told(watch) == [Event(Kind.GONE, JOB, jobs[1])]
    assert ours(watch) == set()


def test_a_legacy_tree_that_slurmd_makes_later_is_watched(watch: Watch, freezer: Path) -> None:
    late = freezer.parent.with_name(f"{freezer.parent.name}-late")
    (late / "uid_7" / f"job_{JOB}" / "step_0").mkdir(parents=True)
    try:
        assert kinds(watch) == [Kind.JOB, Kind.STEP]
    finally:
        remove(late)
    assert kinds(watch) == [Kind.GONE]


def test_a_closed_watch_leaves_no_descriptor_and_closing_twice_is_once(watch: Watch) -> None:
    fd = watch.fileno()
    watch.close()
    watch.close()
    assert not Path(f"/proc/self/fd/{fd}").exists()
