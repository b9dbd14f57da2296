"""Memory that ranks share is asked for once and arrives whole, whatever kind it is and whoever touched it."""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path

import pytest

from guest import rights
from guest.proof import prove_whole, request
from guest.ranks import PRIVATE, READ, SHARED, Job, Memory, Rank, filled, job
from guest.witness import node_vector, vmstat
from pageferry_planner.model import Bucket

pytestmark = pytest.mark.systemd

PAGES = 512
ANONYMOUS_SHARED = SHARED | 0x20


def file_of(path: Path, pages: int) -> Path:
    """Make a file of so many pages, none of them in memory."""
    with path.open("wb") as file:
        file.truncate(pages * 4096)
    return path


def object_of(memory: Memory) -> tuple[Path, int, int]:
    """Return the object behind shared memory, by the kernel's own name for it."""
    start, end = memory.span
    return Path(f"/proc/{memory.rank.pid}/map_files/{start:x}-{end:x}"), 0, memory.pages


def of_tmpfs(rank: Rank, folder: Path) -> Memory:
    return rank.map(PAGES, file_of(folder / "shared", PAGES), flags=SHARED)


def of_memfd(rank: Rank, folder: Path) -> Memory:
    return rank.map(PAGES, rank.memfd(PAGES), flags=SHARED)


def of_nothing(rank: Rank, folder: Path) -> Memory:
    return rank.map(PAGES, flags=ANONYMOUS_SHARED)


def of_system_v(rank: Rank, folder: Path) -> Memory:
    return rank.system_v(PAGES)


KINDS = pytest.mark.parametrize("kind", [of_tmpfs, of_memfd, of_nothing, of_system_v])
Kind = Callable[[Rank, Path], Memory]


@KINDS
def test_what_all_ranks_touched_is_asked_for_once(tmp_path: Path, kind: Kind) -> None:
    with job(node=0) as made:
        shared = kind(made.first, tmp_path).write()
        everybody = [shared, *(shared.of(rank).read() for rank in made.fork(3))]
        proof = prove_whole(made, 2)
        assert proof.before.sightings >= proof.before.total + 3 * PAGES
        for memory in everybody:
            assert node_vector(memory.rank.pid, *memory.span) == [2] * PAGES


@KINDS
def test_what_each_rank_touched_a_part_of_arrives_whole(tmp_path: Path, kind: Kind) -> None:
    part = PAGES // 4
    with job(node=0) as made:
        shared = kind(made.first, tmp_path)
        parts = [shared.of(rank).write(n * part, (n + 1) * part) for n, rank in enumerate(made.fork(4))]
        proof = prove_whole(made, 2, objects=[object_of(shared)])
        assert proof.before.on(0) >= PAGES
        for number, memory in enumerate(parts):
            nodes = [-1] * PAGES
            nodes[number * part : (number + 1) * part] = [2] * part
            assert node_vector(memory.rank.pid, *memory.span) == nodes


@KINDS
def test_what_no_process_has_in_its_page_table_any_more_arrives_too(tmp_path: Path, kind: Kind) -> None:
    with job(node=0) as made:
        shared = kind(made.first, tmp_path)
        (gone,) = made.fork()
        shared.of(gone).write(100, 300)
        made.end(gone)
        shared.write(0, 50)
        proof = prove_whole(made, 2, objects=[object_of(shared)])
        assert proof[Bucket.MOVED] >= 250
        assert node_vector(made.first.pid, *shared.span) == [2] * 50 + [-1] * (PAGES - 50)


def test_pages_of_an_overlays_file_that_no_process_maps_any_more_arrive_too(overlay: Path) -> None:
    with job(node=0) as made:
        shared = made.first.map(PAGES, filled(overlay / "shared", PAGES), prot=READ)
        (gone,) = made.fork()
        shared.of(gone).read(100, 300)
        made.end(gone)
        shared.read(0, 50)
        prove_whole(made, 2, objects=[(overlay / "shared", 0, PAGES)])
        nodes = node_vector(made.first.pid, *shared.span)
        assert nodes[:50] == [2] * 50
        assert set(nodes[50:]) <= {-1, 2}  # some kernels enter what is around a page that is read


def test_what_was_written_by_system_calls_only_arrives_too(tmp_path: Path) -> None:
    with job(node=0) as made:
        shared = of_tmpfs(made.first, tmp_path)
        with (tmp_path / "shared").open("r+b") as file:
            file.seek(64 * 4096)
            file.write(os.urandom(64 * 4096))
        proof = prove_whole(made, 3, objects=[object_of(shared)])
        assert proof[Bucket.MOVED] >= 64
        assert node_vector(made.first.pid, *shared.span) == [-1] * PAGES


def test_two_files_and_two_segments_of_the_same_ranks_are_all_moved(tmp_path: Path) -> None:
    with job(node=1) as made:
        memories = [
            made.first.map(64, file_of(tmp_path / "one", 64), flags=SHARED).write(seed=1),
            made.first.map(64, file_of(tmp_path / "two", 64), flags=SHARED).write(seed=2),
            made.first.system_v(64).write(seed=3),
            made.first.system_v(64).write(seed=4),
        ]
        made.fork(2)
        proof = prove_whole(made, 3)
        assert proof[Bucket.MOVED] >= 4 * 64
        for memory in memories:
            assert node_vector(made.first.pid, *memory.span) == [3] * 64


def mapped_at(made: Job, path: Path, spans: list[tuple[int, int]]) -> list[Memory]:
    """Have each of as many new ranks map and write pages [lo, hi) of a file, and nothing else of it."""
    ranks = made.fork(len(spans))
    return [rank.map(hi - lo, path, lo, flags=SHARED) for rank, (lo, hi) in zip(ranks, spans, strict=True)]


def test_overlapping_offsets_of_a_file_are_asked_for_once(tmp_path: Path) -> None:
    path = file_of(tmp_path / "shared", 300)
    with job(node=0) as made:
        one, two, three = mapped_at(made, path, [(0, 150), (100, 250), (200, 300)])
        one.write(seed=1)
        three.write(seed=3)
        two.read()
        proof = prove_whole(made, 2)
        assert proof.after.of(path) == {2: 300}
        assert proof.before.sightings >= proof.before.total + 100


def test_disjoint_offsets_of_a_file_all_arrive(tmp_path: Path) -> None:
    path = file_of(tmp_path / "shared", 300)
    with job(node=0) as made:
        for number, memory in enumerate(mapped_at(made, path, [(0, 100), (200, 300)])):
            memory.write(seed=number)
        proof = prove_whole(made, 2)
        assert proof.after.of(path) == {2: 200}


def test_a_window_of_which_another_rank_has_a_wider_view_is_asked_for_once(tmp_path: Path) -> None:
    path = file_of(tmp_path / "shared", 300)
    with job(node=0) as made:
        narrow, wide = mapped_at(made, path, [(120, 160), (0, 300)])
        narrow.write()
        wide.write(0, 100)
        proof = prove_whole(made, 2)
        assert proof.after.of(path) == {2: 140}


def test_the_same_file_mapped_twice_by_one_process_is_asked_for_once(tmp_path: Path) -> None:
    path = file_of(tmp_path / "shared", 100)
    with job(node=0) as made:
        one, two = made.first.map(100, path, flags=SHARED), made.first.map(60, path, 20, flags=SHARED)
        one.write()
        two.read()
        proof = prove_whole(made, 2)
        assert proof.after.of(path) == {2: 100}
        assert node_vector(made.first.pid, *two.span) == [2] * 60


def test_shared_and_private_mappings_of_one_file_are_asked_for_once(tmp_path: Path) -> None:
    path = file_of(tmp_path / "shared", 200)
    with job(node=0) as made:
        made.first.map(200, path, flags=SHARED).write()
        ranks = made.fork(2)
        private = ranks[0].map(200, path, flags=PRIVATE).read()
        private.write(0, 50, seed=7)
        constant = ranks[1].map(200, path, flags=PRIVATE, prot=READ).read()
        proof = prove_whole(made, 2)
        assert proof.after.of(path) == {2: 250}
        assert node_vector(ranks[0].pid, *private.span) == [2] * 200
        assert node_vector(ranks[1].pid, *constant.span) == [2] * 200


def test_pages_in_place_already_are_never_asked_for(tmp_path: Path) -> None:
    with job(node=0) as made:
        shared = of_tmpfs(made.first, tmp_path)
        shared.write(0, 128, node=2)
        shared.write(128, 160, node=0)
        shared.write(160, PAGES, node=2)
        for rank in made.fork(2):
            shared.of(rank).read()
        proof = prove_whole(made, 2)
        assert proof[Bucket.IN_PLACE] >= PAGES - 32
        rights.move(made.pids, request(2))  # what checking the contents has touched
        before = vmstat()
        again = rights.move(made.pids, request(2)).tally
        assert again.requested == again.calls == again.addresses == 0
        assert (vmstat() - before)["pgmigrate_success"] == 0


def test_ranks_in_namespaces_of_their_own_do_not_share_segments_of_one_number() -> None:
    """System V segments are counted from 0 in every IPC namespace: the same number is another segment there."""
    with job(node=0) as made:
        one, two = made.fork(2)
        for rank, seed in ((one, 1), (two, 2)):
            rank.ask("unshare_ipc")
            rank.system_v(100).write(seed=seed)
        proof = prove_whole(made, 2)
        assert proof[Bucket.MOVED] >= 200
