"""A look with the rights of the agent's unit, as with all, finds what is there, and changes nothing."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path

import pytest

from guest import rights
from guest.ranks import SHARED, Job, job
from guest.witness import census, residency
from pageferry import ferry
from pageferry.kernel.outsiders import mapped_outside
from pageferry_planner.policy import Rules
from support.children import LEADER_ENDS, python, said

NOBODY = 65534
PAGES = 4096
TOUCHED = {0, 100, 101, 4095}


@pytest.fixture(params=["unit", "old unit", "root"])
def whose(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> str:
    """Whose rights a look has; those of a unit as it was before CAP_FOWNER among them."""
    found: str = request.param
    monkeypatch.setenv(rights.VARIABLE, found.removeprefix("old "))
    if found == "old unit":
        monkeypatch.delitem(rights.CAPABILITIES, "CAP_FOWNER")
    return found


@pytest.fixture
def made() -> Iterator[Job]:
    """A job of an ordinary user's: two processes."""
    with job(ranks=2) as processes:
        for rank in processes.ranks:
            rank.ask("drop_to", NOBODY)
        yield processes


def seen(pids: tuple[int, ...], inode: int) -> int:
    """Return how many pages of a file, by its inode, a look finds."""
    snapshot, _ = ferry.survey(pids, Rules())
    numbers = [number for number, backing in enumerate(snapshot.backings) if backing.inode == inode]
    return sum(int(snapshot.runs.count[snapshot.runs.backing == number].sum()) for number in numbers)


@pytest.fixture
def sparse() -> Iterator[Path]:
    """A user's file in shared memory that nobody else may open, as large as a job's window, with nothing in it."""
    path = Path(f"/dev/shm/sparse-{os.getpid()}")
    path.touch(mode=0o600)
    os.truncate(path, PAGES * 4096)
    os.chown(path, NOBODY, NOBODY)
    yield path
    path.unlink()


def test_a_look_faults_nothing_in_of_a_users_sparse_file(whose: str, made: Job, sparse: Path) -> None:
    memory = made.first.map(PAGES, sparse, flags=SHARED)
    for page in TOUCHED:
        memory.write(page, page + 1)
    blocks = sparse.stat().st_blocks
    assert rights.call(seen, made.pids, sparse.stat().st_ino) == len(TOUCHED)
    assert sparse.stat().st_blocks == blocks == len(TOUCHED) * 8
    assert {page for page, there in enumerate(residency(sparse, PAGES)) if there} == TOUCHED


def test_a_look_finds_what_nobody_has_in_a_page_table_any_more(whose: str, made: Job, sparse: Path) -> None:
    gone = made.ranks[1]
    memory = made.first.map(PAGES, sparse, flags=SHARED)
    gone.map(PAGES, sparse, flags=SHARED).write(10, 50)
    made.end(gone)
    memory.write(0, 5)
    assert rights.call(seen, made.pids, sparse.stat().st_ino) == (5 if whose == "old unit" else 45)
    assert sparse.stat().st_blocks == 45 * 8


def test_memory_of_a_process_whose_first_thread_has_ended_is_found(whose: str) -> None:
    with python(LEADER_ENDS) as process:
        said(process)
        snapshot, _ = rights.call(ferry.survey, (process.pid,), Rules())
        assert snapshot.runs.pages() == census([process.pid]).total > 500


def test_what_such_a_process_maps_is_mapped_outside_another_job(made: Job) -> None:
    with python(LEADER_ENDS) as process:
        said(process)
        snapshot, _ = ferry.survey(made.pids, Rules())
        (libc,) = (backing for backing in snapshot.backings if "/libc" in backing.path)
        assert process.pid in mapped_outside([libc], made.pids).mapping[libc]
