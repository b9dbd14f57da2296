"""Memory of a process's own is moved once, also where forked processes still share it, and files' pages beside it."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from guest.proof import prove_whole
from guest.ranks import PRIVATE, READ, WRITE, filled, job
from guest.witness import node_vector, status
from pageferry_planner.model import Bucket

pytestmark = pytest.mark.systemd


def test_what_a_process_has_alone_is_asked_for_once() -> None:
    with job(node=0) as made:
        memory = made.first.map(1000).write()
        proof = prove_whole(made, 2)
        assert node_vector(made.first.pid, *memory.span) == [2] * 1000
        assert proof.outcome.tally.calls <= 4


def test_parent_and_children_share_a_page_until_it_is_written_and_it_is_asked_for_once() -> None:
    with job(node=0) as made:
        memory = made.first.map(600).write()
        children = made.fork(3)
        memory.of(children[0]).write(0, 100, seed=2)
        memory.of(children[1]).write(50, 200, seed=3)
        proof = prove_whole(made, 2)
        assert proof.before.sightings >= proof.before.total + 3 * 600 - 250
        for rank in made.ranks:
            assert node_vector(rank.pid, *memory.span) == [2] * 600


def test_a_grandchild_shares_pages_that_its_parent_has_dropped() -> None:
    with job(node=0) as made:
        memory = made.first.map(300).write()
        (child,) = made.fork()
        (grandchild,) = made.fork(parent=child)
        memory.of(child).tell("unmap")
        proof = prove_whole(made, 2)
        assert proof[Bucket.MOVED] >= 300
        assert node_vector(grandchild.pid, *memory.span) == [2] * 300


def test_zero_pages_are_nobodys_and_are_not_asked_for() -> None:
    with job(node=0) as made:
        memory = made.first.map(500).read()
        memory.write(0, 20)
        proof = prove_whole(made, 2)
        nodes = node_vector(made.first.pid, *memory.span)
        assert nodes[:20] == [2] * 20
        assert proof[Bucket.PINNED] == 0


def test_pages_written_in_a_private_file_mapping_are_the_processs_own(tmp_path: Path) -> None:
    path = filled(tmp_path / "input", 200)
    with job(node=0) as made:
        memory = made.first.map(200, path, flags=PRIVATE).read()
        ranks = made.fork(2)
        for seed, rank in enumerate(ranks, start=1):
            memory.of(rank).read().write(10 * seed, 100, seed=seed)
        proof = prove_whole(made, 2)
        assert proof.after.of(path) == {2: 200 + 90 + 80}
        for rank in made.ranks:
            assert node_vector(rank.pid, *memory.span) == [2] * 200


def test_what_was_written_and_then_protected_is_the_processs_own(tmp_path: Path) -> None:
    path = filled(tmp_path / "input", 100)
    with job(node=0) as made:
        memory = made.first.map(100, path, flags=PRIVATE)
        for seed, rank in enumerate(made.fork(2), start=1):
            memory.of(rank).write(0, 40, seed=seed)
            memory.of(rank).tell("mprotect", READ)
        proof = prove_whole(made, 2, objects=[(path, 0, 100)])
        assert proof.after.of(path) == {2: 80}


def test_the_page_cache_of_a_file_on_a_disk_is_moved_through_whoever_touched_it(scratch: Path) -> None:
    path = filled(scratch / "input", 400)
    os.sync()
    with job(node=0) as made:
        ranks = made.fork(4)
        parts = [rank.map(400, path, prot=READ).read(n * 100, n * 100 + 100) for n, rank in enumerate(ranks)]
        proof = prove_whole(made, 2)
        assert proof.after.of(path) == {2: 400}
        for memory in parts:
            assert set(node_vector(memory.rank.pid, *memory.span)) <= {-1, 2}


def test_a_shared_mapping_of_a_file_on_a_disk_is_moved_once(scratch: Path) -> None:
    path = filled(scratch / "state", 300)
    with job(node=0) as made:
        shared = made.first.map(300, path, flags=0x01).write()
        for rank in made.fork(2):
            shared.of(rank).read()
        os.sync()
        proof = prove_whole(made, 2)
        assert proof.after.of(path) == {2: 300}


def test_mlocked_memory_moves_and_stays_locked() -> None:
    with job(node=0) as made:
        memory = made.first.map(256).write()
        memory.tell("mlock")
        prove_whole(made, 2)
        assert node_vector(made.first.pid, *memory.span) == [2] * 256
        assert status(made.first.pid, "VmLck") == {"VmLck": 1024}


def test_memory_that_may_not_be_read_any_more_moves_too() -> None:
    with job(node=0) as made:
        memory = made.first.map(100).write()
        memory.tell("mprotect", 0)
        before = node_vector(made.first.pid, *memory.span)
        memory.tell("mprotect", READ | WRITE)
        assert before == [0] * 100
        made.seal()
        memory.tell("mprotect", READ)
        prove_whole(made, 2)
        assert node_vector(made.first.pid, *memory.span) == [2] * 100


def test_holes_between_touched_pages_stay_holes() -> None:
    with job(node=0) as made:
        memory = made.first.map(3000)
        for page in range(0, 3000, 100):
            memory.write(page, page + 1)
        prove_whole(made, 3)
        nodes = node_vector(made.first.pid, *memory.span)
        assert nodes.count(3) == 30
        assert nodes.count(-1) == 2970


def test_sixty_four_threads_are_one_address_space_and_keep_their_pins() -> None:
    with job(node=0) as made:
        threads = made.first.ask("threads", 64, 16, [0, 1])
        assert len(threads) == 64
        pins = [os.sched_getaffinity(thread) for thread in threads]
        proof = prove_whole(made, 2)
        assert proof[Bucket.MOVED] >= 64 * 16
        assert [os.sched_getaffinity(thread) for thread in threads] == pins
        assert proof.outcome.tally.calls <= 6
