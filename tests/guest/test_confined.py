"""Jobs in cgroups: frozen ones move and stay frozen, and a cpuset's bounds are said plainly before anything moves."""

from __future__ import annotations

import select
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from guest import rights
from guest.proof import prove_whole, request
from guest.ranks import Job, job
from guest.witness import census, node_vector, vmstat
from pageferry import ferry
from pageferry.errors import KernelError
from pageferry_planner.model import Bucket, Target, WhenFull

pytestmark = pytest.mark.v1

ROOT = Path("/sys/fs/cgroup")


@contextmanager
def group(controller: str, version: str) -> Iterator[Path]:
    """Make a group of our own below the root."""
    path = (ROOT if version == "v2" else ROOT / controller) / "pageferry-test"
    if version == "v2" and controller != "freezer":
        (ROOT / "cgroup.subtree_control").write_text(f"+{controller}")
    path.mkdir()
    try:
        yield path
    finally:
        path.rmdir()


def enter(path: Path, made: Job) -> None:
    for rank in made.ranks:
        (path / "cgroup.procs").write_text(str(rank.pid))


def frozen(path: Path, version: str) -> bool:
    if version == "v2":
        return "frozen 1" in (path / "cgroup.events").read_text()
    return (path / "freezer.state").read_text().strip() == "FROZEN"


@contextmanager
def freeze(path: Path, version: str) -> Iterator[None]:
    """Freeze a group, wait until it stands still, and thaw it in the end."""
    switch, on, off = (
        (path / "cgroup.freeze", "1", "0") if version == "v2" else (path / "freezer.state", "FROZEN", "THAWED")
    )
    with (path / ("cgroup.events" if version == "v2" else "freezer.state")).open() as events:
        poll = select.poll()
        poll.register(events, select.POLLPRI)
        switch.write_text(on)
        while not frozen(path, version):
            poll.poll(20)  # version 1 tells nobody
    try:
        yield
    finally:
        switch.write_text(off)


def test_a_frozen_job_moves_and_stays_frozen(cgroup: str) -> None:
    with group("freezer", cgroup) as path, job(node=0, ranks=3) as made:
        memory = made.first.map(300, made.first.memfd(300), flags=1).write()
        made.seal()
        enter(path, made)
        with freeze(path, cgroup):
            before, counters = census(made.pids), vmstat()
            outcome = rights.move(made.pids, request(2))
            assert frozen(path, cgroup)
            assert outcome.tally.requested == before.not_on(2) == (vmstat() - counters)["pgmigrate_success"]
            assert node_vector(made.first.pid, *memory.span) == [2] * 300
            assert census(made.pids).not_on(2) == 0
        assert made.broken() == []


def test_a_target_outside_the_cpuset_is_refused_in_one_line_and_nothing_moves(cgroup: str) -> None:
    with group("cpuset", cgroup) as path, job(node=0, ranks=2) as made:
        (path / "cpuset.cpus").write_text("0-3")
        (path / "cpuset.mems").write_text("0-1")
        enter(path, made)
        counters = vmstat()
        with pytest.raises(KernelError, match=r"^node 2 is outside the job's cpuset \(mems 0-1\): .*widen cpuset.mems"):
            rights.move(made.pids, request(2))
        assert (vmstat() - counters)["pgmigrate_success"] == 0
        prove_whole(made, 1)


def test_a_process_whose_cpuset_is_narrower_than_the_others_bounds_them_all(cgroup: str) -> None:
    with group("cpuset", cgroup) as path, job(node=0, ranks=2) as made:
        (path / "cpuset.cpus").write_text("0-3")
        (path / "cpuset.mems").write_text("0-1")
        (path / "cgroup.procs").write_text(str(made.ranks[1].pid))
        with pytest.raises(KernelError, match="outside the job's cpuset"):
            rights.move(made.pids, request(3))


def test_nothing_spills_to_a_node_outside_the_cpuset(cgroup: str) -> None:
    with group("cpuset", cgroup) as path, job(node=0) as made:
        (path / "cpuset.cpus").write_text("0-3")
        (path / "cpuset.mems").write_text("0-1")
        made.first.map(4096).write()
        enter(path, made)
        target = Target((1,), when_full=WhenFull.SPILL, spill=frozenset({2, 3}))
        all_of_it = 1 << 40
        before, counters = census(made.pids), vmstat()
        outcome = rights.move(made.pids, ferry.Request(target, reserve_bytes=all_of_it))
        assert outcome.tally.requested == (vmstat() - counters)["pgmigrate_success"] == 0
        assert outcome.tally[Bucket.NO_ROOM] == before.not_on(1)
