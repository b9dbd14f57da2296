"""Names of files and processes are hostile text: they decide nothing, and mislead nobody."""

from __future__ import annotations

from pathlib import Path

import pytest

from guest.proof import prove, prove_whole, request
from guest.ranks import READ, SHARED, filled, job
from guest.witness import node_vector
from pageferry_planner.model import Bucket
from pageferry_planner.policy import Rules

NAMES = [
    "new\nline",
    "7f0000000000-7f0000001000 rw-s 00000000 00:01 1 SYSV00000000 (deleted)",
    "\udcff\udcfe",
]
MORE_NAMES = [
    "two words",
    " (deleted)",
    "file (deleted)",
    "line\n7f0000000000-7f0000001000 rw-p 00000000 00:00 0 [heap]",
    "\x1b[2J\x1b]0;title\x07",
    "[heap]",
    "[vdso]",
    "N0=999999 kernelpagesize_kB=4",
    "back\\012slash",
    "a" * 255,
]


@pytest.mark.parametrize(
    "name",
    [*NAMES, *(pytest.param(name, marks=pytest.mark.long) for name in MORE_NAMES)],
    ids=lambda name: ascii(name)[:24],
)
def test_a_file_moves_whatever_its_name(tmp_path: Path, name: str) -> None:
    path = tmp_path / name
    filled(path, 100)
    with job(node=0) as made:
        memory = made.first.map(100, path, flags=SHARED).write()
        (other,) = made.fork()
        memory.of(other).read()
        prove_whole(made, 2)
        for rank in (made.first, other):
            assert node_vector(rank.pid, *memory.span) == [2] * 100


def test_a_file_that_was_deleted_moves_and_another_of_its_name_is_another(tmp_path: Path) -> None:
    path = tmp_path / "data"
    with job(node=0) as made:
        memories = []
        for seed in (1, 2):
            filled(path, 100)
            memories.append(made.first.map(100, path, flags=SHARED).write(seed=seed))
            path.unlink()
        (other,) = made.fork()
        memories[0].of(other).read(0, 50)
        prove_whole(made, 2)
        for memory in memories:
            assert node_vector(made.first.pid, *memory.span) == [2] * 100


def test_a_deleted_file_is_found_on_the_sites_list_by_its_name(tmp_path: Path) -> None:
    path = tmp_path / "kept"
    filled(path, 100)
    with job(node=0) as made:
        memory = made.first.map(100, path, flags=SHARED).write()
        path.unlink()
        proof = prove(made, request(2, rules=Rules(stay=(str(path),))))
        assert proof.outcome.tally.excluded == {"library-list": 100}
        assert node_vector(made.first.pid, *memory.span) == [0] * 100


def test_a_memfd_that_is_named_like_a_segment_is_none(tmp_path: Path) -> None:
    with job(node=0) as made:
        memory = made.first.map(64, made.first.memfd(64, "/SYSV00000000 (deleted)"), flags=SHARED).write()
        (other,) = made.fork()
        memory.of(other).read()
        proof = prove_whole(made, 2)
        assert proof[Bucket.MOVED] >= 64
        assert node_vector(other.pid, *memory.span) == [2] * 64


def test_a_mapping_of_a_device_node_is_not_the_jobs_memory() -> None:
    with job(node=0) as made:
        private = made.first.map(64, "/dev/zero").write()
        made.first.map(16, "/dev/mem", prot=READ, flags=SHARED)
        prove_whole(made, 2)
        assert node_vector(made.first.pid, *private.span) == [2] * 64
