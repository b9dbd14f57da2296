"""Large folios of 16 KiB to 1 MiB, which Linux makes since 6.8, move once, whole, by one address each.

How many pages a folio has is read from the flags of its frames, by the test itself.
"""

from __future__ import annotations

import os
import subprocess
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from guest import rights
from guest.proof import prove, prove_whole, request
from guest.ranks import BIND, MADV_HUGEPAGE, PRIVATE, READ, SHARED, Job, Memory, Rank, job
from guest.witness import node_vector, page_table
from pageferry import folios as known_folios
from pageferry_planner.model import Bucket

FOLDER = Path("/sys/kernel/mm/transparent_hugepage")
SIZES = (16, 64, 256, 1024)
FOLIOS = 8

pytestmark = pytest.mark.folios


@contextmanager
def made_of(kilobytes: int, file: str = "enabled") -> Iterator[int]:
    """Let memory be made of folios of this size where it is advised; yields their pages."""
    path, larger = (FOLDER / f"hugepages-{size}kB" / file for size in (kilobytes, 2048))
    path.write_text("advise" if file == "shmem_enabled" else "madvise")
    before = larger.read_text().partition("[")[2].partition("]")[0]
    larger.write_text("never")
    try:
        yield kilobytes // 4
    finally:
        path.write_text("never")
        larger.write_text(before)


def folios(rank: Rank, memory: Memory) -> Counter[int]:
    """Return how many folios of how many pages a process maps there."""
    frames = page_table(rank.pid, *memory.span) & ((1 << 55) - 1)
    with Path("/proc/kpageflags").open("rb", buffering=0) as file:
        sizes: list[int] = []
        for frame in frames.tolist():
            file.seek(int(frame) * 8)
            tail = int.from_bytes(file.read(8), "little") >> 16 & 1
            if tail and sizes:
                sizes[-1] += 1
            else:
                sizes.append(1)
    return Counter(sizes)


def advised(made: Job, pages: int, flags: int = PRIVATE) -> Memory:
    memory = made.first.map(FOLIOS * pages, align=pages, flags=flags)
    memory.tell("madvise", MADV_HUGEPAGE)
    for lo, hi in ((0, 3), (3, 6), (6, memory.pages)):
        memory.write(lo, hi)
    return memory


@pytest.mark.parametrize("kilobytes", SIZES)
def test_folios_of_a_process_move_whole_by_one_address_each(kilobytes: int) -> None:
    with made_of(kilobytes) as pages, job(node=0) as made:
        memory = advised(made, pages)
        assert folios(made.first, memory) == {pages: FOLIOS}
        tally = prove_whole(made, 2).outcome.tally
        assert folios(made.first, memory) == {pages: FOLIOS}
        assert node_vector(made.first.pid, *memory.span) == [2] * memory.pages
        assert tally.addresses <= tally.requested - FOLIOS * (pages - 1)
        assert tally.retried == 0


@pytest.mark.parametrize("kilobytes", SIZES)
def test_folios_of_shared_memory_that_ranks_map_move_whole_by_one_address_each(kilobytes: int) -> None:
    with made_of(kilobytes, "shmem_enabled") as pages, job(node=0) as made:
        memory = advised(made, pages, flags=SHARED)
        assert folios(made.first, memory) == {pages: FOLIOS}
        for rank in made.fork(2):
            memory.of(rank).read()
        tally = prove_whole(made, 2).outcome.tally
        assert folios(made.first, memory) == {pages: FOLIOS}
        assert node_vector(made.first.pid, *memory.span) == [2] * memory.pages
        assert tally.addresses <= tally.requested - FOLIOS * (pages - 1)
        assert tally.retried == 0


def test_what_is_left_of_a_folio_moves_with_all_of_it() -> None:
    with made_of(64) as pages, job(node=0) as made:
        memory = advised(made, pages)
        made.first.ask("unmap", memory.address + 3 * 4096, 3)
        tally = prove_whole(made, 2, unmapped=3).outcome.tally
        assert node_vector(made.first.pid, *memory.span).count(2) == memory.pages - 3
        assert tally.addresses <= tally.requested - (FOLIOS * (pages - 1) - 3), "one for both parts"
        assert tally.retried == 0


@pytest.mark.parametrize("parent_writes", [False, True])
def test_folios_that_forked_processes_share_arrive_once(parent_writes: bool) -> None:
    with made_of(64) as pages, job(node=0) as made:
        memory = advised(made, pages)
        ranks = made.fork(2)
        if parent_writes:
            memory.write(0, 1, seed=5)
        prove_whole(made, 2)
        for rank in (made.first, *ranks):
            assert node_vector(rank.pid, *memory.span) == [2] * memory.pages


def moves_by_folios(made: Job, memory: Memory) -> Counter[int]:
    """Move the job; assert that each folio of its memory went whole, by one address; return how many had which size."""
    found = folios(made.first, memory)
    proof = prove(made, request(2))
    assert set(node_vector(made.first.pid, *memory.span)) == {2}
    assert folios(made.first, memory) == found
    assert proof.migrated == proof[Bucket.MOVED]
    assert proof.outcome.tally.addresses <= proof.outcome.tally.requested - (memory.pages - found.total())
    return found


def test_folios_of_a_file_in_a_tmpfs_of_huge_pages_move_whole(tmp_path: Path) -> None:
    subprocess.run(["mount", "-t", "tmpfs", "-o", "huge=always", "huge", str(tmp_path)], check=True)
    try:
        with job(node=0) as made:
            path = tmp_path / "window"
            path.touch()
            os.truncate(path, 1024 * 4096)
            memory = made.first.map(1024, path, flags=SHARED, align=512).write()
            for rank in made.fork(2):
                memory.of(rank).read(0, 600)
            assert max(moves_by_folios(made, memory)) > 1
    finally:
        subprocess.run(["umount", "--lazy", str(tmp_path)], check=True)


def test_what_is_read_of_a_file_moves_in_the_folios_that_the_file_system_makes(scratch: Path) -> None:
    """Of single pages, where it makes none."""
    path = scratch / "input"
    path.write_bytes(bytes(256 * 4096))
    with job(node=0) as made:
        subprocess.run(["sync"], check=True)
        Path("/proc/sys/vm/drop_caches").write_text("1")
        made.first.ask("set_mempolicy", BIND, [0])
        moves_by_folios(made, made.first.map(256, path, flags=SHARED, prot=READ).read())


def test_a_look_with_less_rights_still_moves_every_page(monkeypatch: pytest.MonkeyPatch) -> None:
    """Without frames nobody can tell folios: each page is asked for, and all arrive."""
    with made_of(64) as pages, job(node=0) as made:
        memory = advised(made, pages)
        monkeypatch.setattr(known_folios, "with_folios", lambda taken, _: taken)
        outcome = rights.move(made.pids, request(2))
        assert outcome.complete
        assert node_vector(made.first.pid, *memory.span) == [2] * memory.pages
