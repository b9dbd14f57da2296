"""Memory that the ranks of a job share is asked for once and arrives whole, whatever kind it is and whoever touched it."""

from __future__ import annotations

from pathlib import Path

import pytest

from guest.proof import prove_whole
from guest.ranks import PRIVATE, READ, SHARED, Job, Memory, Rank, job
from guest.witness import census, node_vector

PAGES = 512


@pytest.fixture
def shm() -> Path:
    """A folder of a tmpfs."""
    return Path("/dev/shm")


def file_of(path: Path, pages: int) -> Path:
    """Make a file of so many pages, none of them in memory."""
    with path.open("wb") as file:
        file.truncate(pages * 4096)
    return path


def assert_all_on(node: int, *memories: Memory, pages: int) -> None:
    for memory in memories:
        assert node_vector(memory.rank.pid, *memory.span).count(node) == pages


def map_tmpfs(first: Rank, path: Path) -> Memory:
    return first.map(PAGES, file_of(path, PAGES), flags=SHARED)


def test_ranks_that_share_a_tmpfs_file_have_it_moved_once(tmp_path: Path) -> None:
    with job(node=0) as made:
        shared = made.first.map(PAGES, file_of(tmp_path / "shared", PAGES), flags=SHARED).write()
        ranks = made.fork(3)
        for rank in ranks:
            shared.of(rank).read()
        proof = prove_whole(made, 2)
        assert proof.after.of(tmp_path / "shared") == {2: PAGES}
        assert_all_on(2, shared, *(shared.of(rank) for rank in ranks), pages=PAGES)
        assert proof.before.sightings > proof.before.total + 3 * PAGES
