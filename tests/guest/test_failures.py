"""What cannot move, or is lost on the way, is said so, and nothing else is held up by it."""

from __future__ import annotations

import os
import signal
import time
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace

import pytest

from guest import rights
from guest.proof import prove, prove_whole, request
from guest.ranks import SHARED, Job, Rank, filled, job
from guest.witness import census, node_vector, vmstat
from pageferry import ferry, mover
from pageferry.errors import Vanished
from pageferry.kernel import libnuma
from pageferry.mover import Limits
from pageferry_planner.ledger import buckets
from pageferry_planner.model import Bucket, Tally

AtCall = Callable[[int, Callable[[], None]], None]


@pytest.fixture
def before_call(monkeypatch: pytest.MonkeyPatch) -> AtCall:
    """Have something happen right before the n-th call that moves pages (counted from 1)."""
    happenings: dict[int, Callable[[], None]] = {}
    calls = 0
    really = libnuma.move_pages

    def move_pages(
        pid: int, addresses: libnuma.Addresses, nodes: libnuma.Nodes, flags: int
    ) -> tuple[int, libnuma.Nodes]:
        nonlocal calls
        calls += 1
        happenings.pop(calls, lambda: None)()
        return really(pid, addresses, nodes, flags)

    monkeypatch.setattr(libnuma, "move_pages", move_pages)
    return happenings.__setitem__


def test_pinned_pages_are_said_to_be_pinned_and_everything_else_moves() -> None:
    with job(node=0) as made:
        memory = made.first.map(500).write()
        ring = made.first.ask("pin", memory.address + 100 * 4096, 64)
        proof = prove(made, request(2))
        assert proof[Bucket.PINNED] == 64
        assert proof[Bucket.MOVED] == proof.before.not_on(2) - 64
        assert proof.outcome.tally.requested == proof.before.not_on(2)
        assert proof.outcome.tally.retried % 64 == 0
        assert node_vector(made.first.pid, *memory.span) == [2] * 100 + [0] * 64 + [2] * 336
        assert not proof.outcome.complete

        made.first.ask("close", ring)
        prove_whole(made, 2)
        assert node_vector(made.first.pid, *memory.span) == [2] * 500


def test_pinned_pages_of_shared_memory_hold_up_no_other_page() -> None:
    with job(node=0) as made:
        memory = made.first.map(300, made.first.memfd(300), flags=SHARED).write()
        (other,) = made.fork()
        memory.of(other).read()
        for page in range(0, 300, 30):
            other.ask("pin", memory.address + page * 4096, 1)
        proof = prove(made, request(2))
        assert proof[Bucket.PINNED] == 10
        assert node_vector(made.first.pid, *memory.span) == [0 if page % 30 == 0 else 2 for page in range(300)]


def killed_midway(made: Job, victims: list[Rank], objects: list[tuple[str, int, int]]) -> tuple[Tally, int]:
    """Move a job of which some are killed on the way, and assert what holds whoever it was and whenever.

    Return the tally, and how many pages went with those who were killed.
    """
    survivors = [rank for rank in made.ranks if rank not in victims]
    made.seal()
    before = census(made.pids, objects)
    counters = vmstat()
    outcome = rights.move(made.pids, request(2))
    counters = vmstat() - counters
    tally = outcome.tally
    assert tally.total() == before.total
    assert buckets(outcome.ledger) == {bucket: pages for bucket, pages in tally.pages.items() if pages}
    assert counters["pgmigrate_success"] == tally[Bucket.MOVED]
    gone = before.total
    if survivors:
        after = census([rank.pid for rank in survivors], objects)
        gone -= after.total
        assert after.not_on(2) == 0
        assert made.broken(survivors) == []
    assert tally[Bucket.VANISHED] <= gone
    assert outcome.complete
    return tally, gone


@pytest.mark.parametrize("call", [3, *(pytest.param(call, marks=pytest.mark.long) for call in (1, 2))])
def test_shared_pages_of_a_carrier_that_is_killed_arrive_through_another(before_call: AtCall, call: int) -> None:
    with job(node=0) as made:
        name = made.first.memfd(400)
        carrier, *others = made.fork(3)
        shared = [rank.map(400, name, flags=SHARED) for rank in (carrier, *others)]
        shared[0].write()
        shared[1].read(0, 300)
        carrier.map(200).write()
        assert carrier.pid < others[0].pid
        objects = [(f"/proc/{made.first.pid}/fd/{name.rsplit('/')[-1]}", 0, 400)]
        before_call(call, carrier.kill)
        tally, gone = killed_midway(made, [carrier], objects)
        assert call > 1 or gone >= tally[Bucket.VANISHED] > 200
        assert call > 1 or gone - tally[Bucket.VANISHED] <= tally[Bucket.IN_PLACE] + tally[Bucket.EXCLUDED]
        assert node_vector(others[0].pid, *shared[1].span)[:300] == [2] * 300


def test_pages_that_were_a_killed_processs_own_have_vanished(before_call: AtCall) -> None:
    with job(node=0, ranks=2) as made:
        victim = made.ranks[1]
        victim.map(3000).write()
        before_call(1, victim.kill)
        tally, gone = killed_midway(made, [victim], [])
        assert gone >= tally[Bucket.VANISHED] >= 3000
        # A page of a file that it alone had touched may have been in place, or excluded, before it went.
        assert gone - tally[Bucket.VANISHED] <= tally[Bucket.IN_PLACE] + tally[Bucket.EXCLUDED]


def test_when_all_processes_are_killed_midway_what_was_left_has_vanished(before_call: AtCall) -> None:
    with job(node=0, ranks=3) as made:
        for seed, rank in enumerate(made.ranks):
            rank.map(300).write(seed=seed)

        def kill_all() -> None:
            for rank in made.ranks:
                rank.kill()

        before_call(2, kill_all)
        tally, _ = killed_midway(made, list(made.ranks), [])
        assert tally[Bucket.VANISHED] >= 600


def test_a_job_that_has_ended_before_has_vanished() -> None:
    with job(node=0, ranks=2) as made:
        for rank in made.ranks:
            rank.kill()
        with pytest.raises(Vanished):
            rights.move(made.pids, request(2))


def test_processes_that_have_ended_before_are_left_out() -> None:
    with job(node=0, ranks=3) as made:
        memory = made.first.map(100).write()
        pids = made.pids
        made.end(made.ranks[2])
        outcome = rights.move(pids, request(2))
        assert outcome.complete
        assert node_vector(made.first.pid, *memory.span) == [2] * 100


def test_memory_is_found_and_moved_when_the_first_thread_has_ended() -> None:
    with job(node=0, ranks=2) as made:
        shared = made.first.map(100, made.first.memfd(100), flags=SHARED).write()
        memory = made.first.map(200).write()
        made.first.end_first_thread()
        prove_whole(made, 2)
        for part in (shared, memory):
            assert node_vector(made.first.pid, *part.span) == [2] * part.pages


@pytest.mark.parametrize("call", [1, pytest.param(2, marks=pytest.mark.long)])
def test_memory_is_moved_when_the_first_thread_ends_between_the_plan_and_a_call(
    before_call: AtCall, monkeypatch: pytest.MonkeyPatch, call: int
) -> None:
    monkeypatch.setattr(mover, "BATCH_PAGES", 512)
    with job(node=0) as made:
        memory = made.first.map(2048).write()
        made.seal()
        before_call(call, made.first.end_first_thread)
        outcome = rights.move(made.pids, request(2))
        assert outcome.complete
        assert outcome.tally[Bucket.VANISHED] == 0
        assert node_vector(made.first.pid, *memory.span) == [2] * 2048
        assert made.broken() == []


def test_without_any_time_nothing_is_asked_for_and_a_second_move_does_it_all() -> None:
    with job(node=0, ranks=2) as made:
        made.first.map(500).write()
        proof = prove(made, request(2, limits=Limits(seconds=0.0)))
        assert proof[Bucket.NOT_REACHED] == proof.before.not_on(2)
        assert proof.migrated == proof.outcome.tally.requested == proof.outcome.tally.calls == 0
        assert not proof.outcome.complete
        prove_whole(made, 2)


def test_a_move_whose_time_ends_midway_says_what_was_not_reached_and_a_second_one_completes_it(
    before_call: AtCall, monkeypatch: pytest.MonkeyPatch
) -> None:
    late = 0.0

    def be_late() -> None:
        nonlocal late
        late = 1000.0

    monkeypatch.setattr(mover, "time", SimpleNamespace(monotonic=lambda: time.monotonic() + late, sleep=time.sleep))
    monkeypatch.setattr(mover, "BATCH_PAGES", 512)
    with job(node=0) as made:
        made.first.map(4096).write()
        before_call(3, be_late)
        proof = prove(made, request(2, limits=Limits(seconds=500.0, workers=1)))
        assert 512 < proof[Bucket.MOVED] <= 3 * 512
        assert proof[Bucket.NOT_REACHED] == proof.before.not_on(2) - proof[Bucket.MOVED]
        assert proof.outcome.tally.calls == 3
        monkeypatch.undo()
        again = prove_whole(made, 2)
        assert again[Bucket.IN_PLACE] >= proof[Bucket.MOVED]


def handler_is_back_after_a_move(pids: tuple[int, ...]) -> bool:
    """Return True if Ctrl-C raises again once a move has ended."""
    ferry.move(pids, request(3))
    return signal.getsignal(signal.SIGINT) is signal.default_int_handler


@pytest.mark.parametrize("call", [3, pytest.param(1, marks=pytest.mark.long)])
def test_control_c_stops_between_calls_and_what_was_done_is_told(
    before_call: AtCall, monkeypatch: pytest.MonkeyPatch, call: int
) -> None:
    monkeypatch.setattr(mover, "BATCH_PAGES", 512)
    with job(node=0) as made:
        made.first.map(4096).write()
        before_call(call, lambda: os.kill(os.getpid(), signal.SIGINT))
        interrupted_at: list[int] = []
        proof = prove(
            made, request(2, limits=Limits(workers=1)), progress=lambda done, _of: interrupted_at.append(done)
        )
        assert 0 < proof[Bucket.MOVED] < proof.before.not_on(2)
        assert proof[Bucket.NOT_REACHED] == proof.before.not_on(2) - proof[Bucket.MOVED]
        assert interrupted_at[-1] == proof.before.not_on(2)
        monkeypatch.undo()
        prove_whole(made, 2)
        assert rights.call(handler_is_back_after_a_move, made.pids)


def test_progress_tells_of_every_page_once(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(mover, "BATCH_PAGES", 512)
    told: list[tuple[int, int]] = []
    with job(node=0, ranks=2) as made:
        made.first.map(2048).write()
        proof = prove(made, request(2), progress=lambda done, of: told.append((done, of)))
        assert [done for done, _ in told] == sorted({done for done, _ in told})
        assert told[-1] == (proof.migrated, proof.migrated)
        assert len(told) >= 4


def test_a_file_that_is_cut_short_while_it_is_mapped_moves_as_far_as_it_goes(tmp_path: Path) -> None:
    path = tmp_path / "data"
    filled(path, 200)
    with job(node=0) as made:
        memory = made.first.map(200, path, flags=SHARED)
        memory.write(0, 50)
        os.truncate(path, 100 * 4096 - 1000)
        prove_whole(made, 2, objects=[(path, 0, 200)])
        assert node_vector(made.first.pid, *memory.span) == [2] * 50 + [-1] * 150
