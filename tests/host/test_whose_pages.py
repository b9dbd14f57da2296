"""Pages that only look like the job's memory do not count, and pages that others map as well stay."""

from __future__ import annotations

import os
import stat
import time
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path

import pytest

from guest import rights
from guest.ranks import PRIVATE, READ, Job, job
from guest.witness import Vma, census, page_table, vmas
from pageferry import elsewhere, ferry
from pageferry.kernel import procfs
from pageferry.kernel.residency import PageTables
from pageferry_planner.model import ANONYMOUS, Snapshot
from pageferry_planner.policy import OUTSIDE, Rules
from pageferry_planner.sharing import READ_ONLY_PRIVATE_PAGES

pytestmark = pytest.mark.usefixtures("whose")

PAGES = 64
MERGEABLE = 12
KSM = Path("/sys/kernel/mm/ksm")


@pytest.fixture(params=["unit", "root"])
def whose(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    """Whose rights a look has: those of the agent's unit, or all."""
    monkeypatch.setenv(rights.VARIABLE, request.param)


def look(pids: tuple[int, ...], *, counted: bool = True) -> Snapshot:
    """Look at processes, with or without the reference count."""
    return rights.call(ferry.survey, pids, Rules(reference_count=counted))[0]


def outside(found: Snapshot) -> int:
    """Return how many pages stay because processes outside map them as well."""
    if OUTSIDE not in found.backings:
        return 0
    number = found.backings.index(OUTSIDE)
    assert not found.verdicts[number].moves
    assert found.verdicts[number].rule == "reference-count"
    return int(found.runs.count[found.runs.backing == number].sum())


def own(found: Snapshot) -> int:
    """Return how many pages are the processes' own."""
    return int(found.runs.count[found.runs.backing == ANONYMOUS].sum())


def present(made: Job, vma: Vma) -> int:
    """Return how many pages of a mapping are in the first process's page table."""
    return int((page_table(made.first.pid, vma.start, vma.end) >> 63).sum())


@pytest.mark.parametrize(("ring", "path"), [("io_uring", "io_uring"), ("perf", "perf_event"), ("packet", "socket:")])
def test_a_ring_that_a_driver_maps_is_not_the_jobs_memory(ring: str, path: str) -> None:
    with job() as made:
        start = made.first.ask(ring)
        (vma,) = (vma for vma in vmas(made.first.pid) if vma.start == start)
        assert path in vma.path
        found, pages = look(made.pids), census(made.pids).total
        assert not any(path in backing.path for backing in found.backings)
        assert found.runs.pages() == pages - present(made, vma)


@pytest.fixture
def code() -> Iterator[Path]:
    """A file in shared memory."""
    path = Path(f"/dev/shm/code-{os.getpid()}")
    yield path
    path.unlink()


def test_the_kernels_trampolines_are_not_the_jobs_memory(code: Path) -> None:
    with job() as made:
        made.first.ask("probed", str(code))
        special = [vma for vma in vmas(made.first.pid) if vma.path.startswith("[uprobes")]
        assert special
        found, pages = look(made.pids), census(made.pids, [(code, 0, 1)]).total  # the probe is in a copy of the page
        kernels = sum(present(made, vma) for vma in special)
        assert kernels > 0
        assert found.runs.pages() == pages - kernels


def test_what_is_written_privately_through_a_device_node_is_the_processs_own_wherever_the_node_is(
    tmp_path: Path,
) -> None:
    node = tmp_path / "nothing"
    os.mknod(node, 0o666 | stat.S_IFCHR, os.makedev(1, 5))
    with job() as made:
        before = own(look(made.pids))
        made.first.map(PAGES, node, flags=PRIVATE).write()
        found = look(made.pids)
        assert own(found) >= before + PAGES
        assert not any("nothing" in backing.path for backing in found.backings)


def test_what_a_parent_outside_still_shares_stays_and_what_the_job_has_written_since_moves() -> None:
    with job() as made:
        memory = made.first.map(PAGES).write()
        (child,) = made.fork()
        memory.of(child).write(0, 10, seed=2)
        found = look((child.pid,))
        assert outside(found) >= PAGES - 10
        assert own(found) >= 10
        assert found.runs.pages() == census((child.pid,)).total
        both = look(made.pids)
        assert outside(both) == 0
        assert both.runs.pages() == census(made.pids).total
        assert outside(look((child.pid,), counted=False)) == 0


def test_a_child_that_is_forked_while_the_job_is_looked_at_is_the_jobs(monkeypatch: pytest.MonkeyPatch) -> None:
    with job() as made:
        made.first.map(PAGES).write()
        made.fork()
        assert outside(look((made.first.pid,))) == 0
        monkeypatch.setattr(elsewhere, "SINCE_SECONDS", -1)  # as if it had been there when the others were listed
        assert outside(look((made.first.pid,))) >= PAGES


@pytest.mark.parametrize("ends", [True, False])
def test_a_child_that_is_ending_maps_pages_though_it_shows_none(monkeypatch: pytest.MonkeyPatch, ends: bool) -> None:
    with job() as made:
        made.first.map(PAGES).write()
        (child,) = made.fork()
        (some, *_), really = vmas(child.pid), procfs.read_maps
        text = b"%x-%x rw-p 00000000 00:00 0 \n" % (some.start, some.start + 4096)
        monkeypatch.setattr("pageferry.snapshot.read_maps", lambda pid: text if pid == child.pid else really(pid))
        monkeypatch.setattr(elsewhere, "has_memory", lambda pid: pid != child.pid or not ends)
        assert (outside(look(made.pids)) < PAGES) is ends


def test_a_job_that_forks_all_the_time_keeps_its_memory() -> None:
    with job() as made:
        made.first.map(PAGES).write()
        made.first.ask("fork_on", 0.01)
        looks = (look((made.first.pid, *procfs.descendants(made.first.pid))) for _ in range(15))
        assert {outside(found) for found in looks} == {0}


def test_what_was_written_in_a_large_file_mapping_and_protected_before_a_fork_is_the_jobs(tmp_path: Path) -> None:
    large = READ_ONLY_PRIVATE_PAGES + 100
    file = tmp_path / "file"
    file.touch()
    os.truncate(file, large * 4096)
    with job() as made:
        memory = made.first.map(large, file, flags=PRIVATE).write(0, PAGES)
        memory.tell("mprotect", READ)
        made.fork()
        assert outside(look(made.pids)) == 0


@pytest.fixture
def merging() -> Iterator[None]:
    """Have the kernel merge equal pages, quickly, and no more when the test has ended."""
    before = {name: (KSM / name).read_text() for name in ("run", "pages_to_scan", "sleep_millisecs")}
    (KSM / "pages_to_scan").write_text("10000")
    (KSM / "sleep_millisecs").write_text("1")
    (KSM / "run").write_text("1")
    yield
    (KSM / "run").write_text("2")  # what is merged is taken apart again
    for name, value in before.items():
        with suppress(OSError):
            (KSM / name).write_text(value)


def await_merged(*jobs: Job) -> None:
    """Wait until what the jobs have given to be merged was merged."""
    until = time.monotonic() + 60
    while any(merged(made.first.pid) < PAGES for made in jobs):
        assert time.monotonic() < until, "nothing was merged"
        time.sleep(0.01)


def merged(pid: int) -> int:
    """Return how many pages of a process the kernel has merged."""
    return int(Path(f"/proc/{pid}/ksm_merging_pages").read_text())


@pytest.mark.usefixtures("merging")
def test_merged_pages_stay_although_the_job_has_just_forked() -> None:
    with job() as one, job() as two:
        for made in (one, two):
            made.first.map(PAGES).write(seed=os.getpid()).tell("madvise", MERGEABLE)
        await_merged(one, two)
        one.fork()
        with PageTables([]) as tables:
            told = tables.tells_merged()
        assert (outside(look((one.first.pid,))) >= PAGES) == told, "else they cannot be told from what was forked"


@pytest.mark.usefixtures("merging")
def test_merged_pages_move_only_if_all_that_map_them_are_the_jobs() -> None:
    with job() as one, job() as two:
        for made in (one, two):
            memory = made.first.map(PAGES).write(seed=os.getpid())
            memory.tell("madvise", MERGEABLE)
        await_merged(one, two)
        alone = look(one.pids)
        assert outside(alone) >= PAGES
        assert alone.runs.pages() == census(one.pids).total
        together = look((*one.pids, *two.pids))
        assert outside(together) == 0
        assert together.runs.pages() == census((*one.pids, *two.pids)).total
