"""What must hold of order where a move is cut short: what the job is at has moved first, as its own accesses show.

The job is two processes with memory of their own and shared, in many mappings; a few of them, the last by address, are
read over and over. The move is ended when half of it is done. Where the pages are that the processes read in their
loops, move_pages(2) says, asked of each process for each page that it reads.
"""

from __future__ import annotations

import json
import os
import signal
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import pytest

from guest import nursery
from guest.ranks import SHARED, Job, Memory, Rank, job
from guest.witness import queried_nodes
from pageferry import ferry, hotness, mover
from pageferry.hotness import Means
from pageferry.mover import Limits
from pageferry_planner.model import Bucket, Order, Target

pytestmark = pytest.mark.long

PIECE = 512
"""Pages of a mapping; one page more, which may not be touched, keeps it from being joined with the next one."""

FIRST, SECOND = 24, 8
"""Mappings of the first process, of which every third is shared, and those that the second has of its own."""

HOT_FIRST, HOT_SECOND = (18, 20, 21, 23), (5, 7)
"""Which of these are read over and over, in the order of their addresses; those that are shared are read by both."""

AWAY = 2


@dataclass(frozen=True, slots=True)
class Busy:
    """The job, what each of its processes reads in its loop, and where the shared memory is in each."""

    job: Job
    hot: dict[int, list[Memory]]
    shared: frozenset[tuple[int, int]]

    def remote(self, *, shared: bool = False) -> int:
        """Return how many pages all processes read in a round that are not on the target; `shared`: of these alone."""
        away = 0
        for pid, memories in self.hot.items():
            for memory in memories:
                if not shared or (pid, memory.address) in self.shared:
                    addresses = range(memory.address, memory.address + PIECE * 4096, 4096)
                    away += sum(node != AWAY for node in queried_nodes(pid, addresses))
        return away

    def accesses(self) -> int:
        """Return how many pages all processes read in a round."""
        return sum(len(memories) * PIECE for memories in self.hot.values())

    def run_on(self, _seconds: float = 0) -> None:
        """Wait until each process has read all of it again, twice at least."""
        for rank in self.job.ranks:
            rank.ask("use_on", 3)


@contextmanager
def busy() -> Iterator[Busy]:
    """Start the job on node 0; both processes share one CPU, so that what it remembers of page tables does not last."""
    with job(node=0) as made:
        first = made.first
        segments = [first.memfd(PIECE, f"part{number}") for number in range(FIRST // 3)]
        (second,) = made.fork()
        waiting = iter(segments)
        paths: dict[int, str] = {}
        memories = []
        for number in range(FIRST):
            path = next(waiting) if number % 3 == 2 else ""
            memory = first.map(PIECE, path, flags=SHARED) if path else apart(first)
            paths |= {memory.address: path} if path else {}
            memories.append(memory.write(0, PIECE, node=0))
        memories.sort(key=lambda memory: memory.address)
        theirs = {address: second.map(PIECE, path, flags=SHARED).read() for address, path in paths.items()}
        own = sorted((apart(second).write(0, PIECE, node=0) for _ in range(SECOND)), key=lambda memory: memory.address)
        hot = {
            first.pid: [memories[number] for number in HOT_FIRST],
            second.pid: [own[number] for number in HOT_SECOND]
            + [theirs[memories[number].address] for number in HOT_FIRST if memories[number].address in paths],
        }
        assert len(HOT_SECOND) < len(hot[second.pid]) < len(HOT_SECOND) + len(HOT_FIRST), "some of it is shared"
        for rank in (first, second):
            rank.ask("affinity", [0])
            rank.ask("use", [(memory.address, PIECE) for memory in hot[rank.pid]])
        shared = {(first.pid, address) for address in paths}
        shared |= {(second.pid, memory.address) for memory in theirs.values()}
        yield Busy(made, hot, frozenset(shared))


def apart(rank: Rank) -> Memory:
    """Map private memory that the kernel does not join with the mapping beside it."""
    memory = rank.map(PIECE + 1)
    rank.ask("mprotect", memory.address + PIECE * 4096, 1, 0)
    return memory


@pytest.fixture(autouse=True)
def small_calls(monkeypatch: pytest.MonkeyPatch) -> None:
    """Have calls of few pages, so that a move can be ended where a test wants it."""
    monkeypatch.setattr(mover, "BATCH_PAGES", PIECE)


def half_moved(running: Busy, order: Order, hot_seconds: float | None) -> float:
    """Move half of a job while it runs; return which share of its accesses is remote then."""
    before = running.remote()
    assert before == running.accesses(), "all is far away"

    def halfway(done: int, of: int) -> None:
        if done >= 0.45 * of:  # calls under way are still made
            os.kill(os.getpid(), signal.SIGINT)  # what a budget does, at a page instead of at a time

    request = ferry.Request(Target((AWAY,), order=order), limits=Limits(workers=1), hot_seconds=hot_seconds)
    outcome = ferry.move(running.job.pids, request, halfway)
    moved, of = outcome.tally[Bucket.MOVED], outcome.plan.moves.pages()
    assert 0.4 < moved / of < 0.6
    assert outcome.tally[Bucket.NOT_REACHED] >= 0.4 * of
    running.run_on()
    after = running.remote()
    print(f"{order}, hot_seconds {hot_seconds}: {moved} of {of} pages moved, {after} of {before} accesses are remote")
    return after / before


def test_half_a_move_leaves_a_third_of_the_remote_accesses_that_address_order_leaves(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    assert hotness.means() is not Means.NONE, "this kernel tells of use"
    with busy() as running:
        by_address = half_moved(running, Order.ADDRESS, None)
    with busy() as running:
        monkeypatch.setattr(hotness, "pause", running.run_on)
        by_worth = half_moved(running, Order.WORTH, 1.0)
    assert by_address > 0.5, "the hot part is the last by address"
    assert by_worth <= by_address / 3


def test_without_having_watched_what_both_processes_map_goes_first() -> None:
    with busy() as running:
        by_sharers = half_moved(running, Order.WORTH, None)
        assert running.remote(shared=True) == 0
        assert by_sharers < 1.0


def test_a_job_that_is_watched_and_then_held_moves_by_what_it_used_before(monkeypatch: pytest.MonkeyPatch) -> None:
    with busy() as running:
        monkeypatch.setattr(hotness, "pause", running.run_on)
        asked = ferry.watch(running.job.pids, ferry.Request(Target((AWAY,)), hot_seconds=1.0))
        for pid in running.job.pids:
            os.kill(pid, signal.SIGSTOP)
        snapshot, plan = ferry.plan(running.job.pids, asked)
        for pid in running.job.pids:
            os.kill(pid, signal.SIGCONT)
        assert plan.rank is not None
        assert snapshot.referenced is not None
        pages = {
            (plan.processes[process].pid, page + step): rank
            for process, page, count, rank in zip(
                *(column.tolist() for column in (plan.moves.process, plan.moves.page, plan.moves.count, plan.rank)),
                strict=True,
            )
            for step in range(count)
        }
        hot = {(pid, memory.address // 4096) for pid, memories in running.hot.items() for memory in memories}
        coldest = max(plan.rank.tolist())
        assert all(pages[at] < coldest for at in hot if at in pages)
        assert sum(rank == coldest for rank in pages.values()) >= (FIRST + SECOND - 8) * PIECE


def test_the_commands_say_what_was_in_use_and_the_file_keeps_it(tmp_path: Path) -> None:
    path = tmp_path / "snapshot"
    with busy() as running:
        target = [f"--pid={running.job.first.pid}", "--to", str(AWAY)]
        pageferry("snapshot", *target, "--hot", "1", "--out", str(path))
        plan = json.loads(pageferry("plan", "--from-snapshot", str(path), "--json"))
        total, used = plan["move_bytes"], plan["in_use_bytes"]
        assert (len(HOT_FIRST) + len(HOT_SECOND)) * PIECE * 4096 // 2 < used < total // 2
        assert "of what may move was in use" in pageferry("plan", *target, "--hot", "1")
        moved = json.loads(pageferry("move", *target, "--hot", "1", "--freeze", "--json"))
        assert moved["complete"]
        running.run_on()
        assert running.remote() == 0
    assert f"pages in use: told {hotness.means().value}" in pageferry("doctor", code=None)


def pageferry(*words: str, code: int | None = 0) -> str:
    """Run the command as an operator does; return what it printed."""
    said = nursery.run(*words, timeout=200)
    assert code is None or said.returncode == code, said.stderr
    assert "Traceback" not in said.stderr
    return said.stdout
