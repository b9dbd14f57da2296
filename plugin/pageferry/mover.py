"""Carries a plan out: batches, worker threads, a budget, retries, and an account of every page that was to move.

One move_pages(2) call takes pages of one address space to one node, whatever VMAs they are in: each call that moves
disables the LRU caches of all CPUs, and pages bound for one node make one batch in the kernel. What a page did is read
from the page tables again, never guessed from a return value.
"""

from __future__ import annotations

import errno
import mmap
import os
import signal
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import FIRST_COMPLETED, Future, ThreadPoolExecutor, wait
from contextlib import contextmanager
from dataclasses import dataclass, field, replace

import numpy as np

from pageferry.kernel import libnuma
from pageferry.kernel.huge_pages import alone_at, on_one_cpu, read_free_huge_pages, read_splits
from pageferry.kernel.hugetlb import read_free_hugepages
from pageferry.kernel.pageflags import flags_of, huge_pages, joined_to_previous
from pageferry.kernel.processes import ProcessHandle
from pageferry.kernel.residency import PageTables
from pageferry.pace import Pace
from pageferry_planner.capacity import HUGE_PAGES, first_pages, kept_whole
from pageferry_planner.columns import Bools, Ints
from pageferry_planner.ledger import ended
from pageferry_planner.model import FATES, SELF, Bucket, Flows, Kind, Plan, Ranges, Runs, Tally, huge_page
from pageferry_planner.pages import Entries

BATCH_PAGES = 1 << 15
"""Pages of one call at most: the budget and Ctrl-C are looked at between calls."""

WORKER_PAGES = 1 << 13
"""A further worker is worth its while from so many pages on."""

STALLED_ROUNDS = 3
"""How often pages that are busy are asked for again without any of them having moved."""

_FINAL = {-errno.EACCES: Bucket.DENIED, -errno.EPERM: Bucket.DENIED, -errno.ENOMEM: Bucket.NO_ROOM}


@dataclass(frozen=True, slots=True)
class Limits:
    """How much a move may take: worker threads (None: by CPUs and pages) and seconds (None: as long as it takes).

    `bytes_per_second`: what all workers together stay below (None: as fast as it goes).
    """

    workers: int | None = None
    seconds: float | None = None
    move_all: bool = True
    bytes_per_second: float | None = None


@dataclass(frozen=True, slots=True)
class Batch:
    """Runs of one process that go to one node. `counted`: each of their folios to a huge page that is free there."""

    process: int
    target: int
    runs: Runs
    counted: bool = False


class _Fates:
    """The bucket of each page of a batch, while it is being worked on; a page that nobody says more of has vanished."""

    def __init__(self, runs: Runs) -> None:
        self._order = np.argsort(runs.page)
        self._page = runs.page[self._order]
        self._begin = (np.cumsum(runs.count) - runs.count)[self._order]
        self.of_page = np.full(runs.pages(), FATES.index(Bucket.VANISHED))

    def settle(self, bucket: Bucket, page: Ints) -> None:
        """Take note of where pages of the batch, by number, have ended."""
        if len(page) == len(self.of_page):  # all of them
            self.of_page[:] = FATES.index(bucket)
            return
        run = np.searchsorted(self._page, page, "right") - 1
        self.of_page[self._begin[run] + page - self._page[run]] = FATES.index(bucket)


@dataclass(slots=True)
class _Account:
    """What became of a batch, while it is being worked on; `flows` when it is done."""

    fates: _Fates
    flows: Flows = field(default_factory=Flows.empty)
    requested: int = 0
    retried: int = 0
    addresses: int = 0
    calls: int = 0
    lost: bool = False


@dataclass(frozen=True, slots=True)
class Carried:
    """The tally of a plan, with the flows that it sums up.

    `carrier_lost`: look again, since a carrier ended on the way: its pages may be the job's still.
    """

    tally: Tally
    flows: Flows
    carrier_lost: bool


def batches(plan: Plan, workers: int = 1, most: int | None = None) -> Iterator[list[Batch]]:
    """Return the plan's stages, each a list of batches that may be worked on side by side.

    The lowest rank goes first, of one rank the largest batch. A batch has at most `most` pages (None: BATCH_PAGES), but
    always room for a folio. Huge pages that must not be split go before all else of their stage, which would take the
    target's free huge pages apart; those of a pool are in batches of their own.

    What one process carries is shared out among the workers, if it is much: a page that all ranks map takes many times
    as long as one of a single rank, so the carrier of shared memory would else keep one worker busy to the end.
    """
    moves = plan.moves
    top = BATCH_PAGES if most is None else max(HUGE_PAGES, most)
    ranks = plan.rank if plan.rank is not None else np.zeros(len(moves), np.int64)
    kept = kept_whole(moves, plan.keeps, huge_page(plan.page_bytes))
    pooled = np.where(moves.kind == Kind.HUGETLB, moves.unit, 0)
    turns = plan.stage * 2 + ~kept if kept.any() else plan.stage
    for turn in np.unique(turns).tolist():
        rows = np.flatnonzero(turns == turn)
        keys = (pooled[rows], plan.target[rows], moves.process[rows], ranks[rows])
        order = np.lexsort((moves.page[rows], *keys))
        rows, (pool, target, process, rank) = rows[order], (key[order] for key in keys)
        new = np.append(True, np.any([key[1:] != key[:-1] for key in (pool, target, process, rank)], axis=0))
        ends = np.append(np.flatnonzero(new)[1:], len(rows))
        found = []
        for first, last in zip(np.flatnonzero(new).tolist(), ends.tolist(), strict=True):
            part = moves.take(rows[first:last])
            share = min(top, max(WORKER_PAGES, -(-part.pages() // workers)))
            counted = bool(kept[rows[first]] or (pool[first] and not plan.surplus))
            cut = (Batch(int(process[first]), int(target[first]), piece, counted) for piece in _pieces(part, share))
            found += [(int(rank[first]), batch) for batch in cut]
        found.sort(key=lambda ranked: (ranked[0], -ranked[1].runs.pages()))
        yield [batch for _, batch in found]


def carry(
    plan: Plan,
    handles: Sequence[ProcessHandle],
    tables: PageTables,
    limits: Limits,
    progress: Callable[[int], None] = lambda _pages: None,
) -> Carried:
    """Carry the plan out and account for all of it; `progress` is told how many pages the batches just done had.

    Ctrl-C stops between calls: what was not reached is counted so. Raises nothing that a page can cause; UsageError
    for a rate of nothing.
    """
    deadline = time.monotonic() + limits.seconds if limits.seconds is not None else None
    stop = threading.Event()

    def stopped() -> bool:
        return stop.is_set() or (deadline is not None and time.monotonic() >= deadline)

    pages = plan.moves.pages()
    workers = limits.workers or max(1, min(len(os.sched_getaffinity(0)), pages // WORKER_PAGES))
    pace = Pace(limits.bytes_per_second) if limits.bytes_per_second is not None else None
    most = pace.call_bytes(BATCH_PAGES * mmap.PAGESIZE) // mmap.PAGESIZE if pace is not None else None
    splits = read_splits() if plan.keeps else 0
    worker = _Worker(
        handles, tables, limits.move_all, stopped, pace, huge_page(plan.page_bytes) if plan.keeps else None
    )
    accounts: list[_Account] = []
    with _interrupt_sets(stop), ThreadPoolExecutor(workers, "pageferry-mover") as pool:
        try:
            for stage in batches(plan, workers, most):
                waiting: dict[Future[list[_Account]], int] = {
                    pool.submit(worker.carry_all, load): sum(batch.runs.pages() for batch in load)
                    for load in _loads(stage)
                }
                while waiting:
                    done, _ = wait(waiting, return_when=FIRST_COMPLETED)
                    for future in done:
                        accounts += future.result()
                        progress(waiting.pop(future))
        except BaseException:
            stop.set()  # what is still waiting in the pool is not begun
            raise
    lost = any(account.lost for account in accounts)
    flows = Flows.concatenate([account.flows for account in accounts])
    every = Flows.concatenate([plan.stays, flows])
    splits = read_splits() - splits if plan.keeps else 0
    return Carried(_tally(plan, flows, accounts, splits), every, carrier_lost=lost and not stop.is_set())


def _loads(stage: Sequence[Batch]) -> Iterator[list[Batch]]:
    """Deal batches out, small ones several at a time: to wake a thread costs as much as to move some of them."""
    load: list[Batch] = []
    pages = 0
    for batch in stage:
        if load and pages + batch.runs.pages() > min(WORKER_PAGES, BATCH_PAGES):
            yield load
            load, pages = [], 0
        load.append(batch)
        pages += batch.runs.pages()
    if load:
        yield load


@contextmanager
def _interrupt_sets(stop: threading.Event) -> Iterator[None]:
    """Have Ctrl-C set `stop` instead of raising at whatever line we are; where it is ignored, it stays so."""
    before = signal.getsignal(signal.SIGINT)
    if threading.current_thread() is not threading.main_thread() or not callable(before):
        yield
        return
    signal.signal(signal.SIGINT, lambda *_: stop.set())
    try:
        yield
    finally:
        signal.signal(signal.SIGINT, before)


class _Worker:
    """Works on one batch at a time per thread; holds nothing that changes.

    `keeps`: the pages of a huge page that is not to be split, None: it may be.
    """

    def __init__(  # noqa: PLR0917 - one caller
        self,
        handles: Sequence[ProcessHandle],
        tables: PageTables,
        move_all: bool,
        stopped: Callable[[], bool],
        pace: Pace | None,
        keeps: int | None,
    ) -> None:
        self._handles = handles
        self._tables = tables
        self._flags = libnuma.MPOL_MF_MOVE_ALL if move_all else libnuma.MPOL_MF_MOVE
        self._stopped = stopped
        self._pace = pace
        self._keeps = keeps

    def carry_all(self, load: Sequence[Batch]) -> list[_Account]:
        return [self.carry(batch) for batch in load]

    def carry(self, batch: Batch) -> _Account:
        account = _Account(_Fates(batch.runs))
        self._pay(batch.process, batch.runs.pages())
        if self._stopped():
            account.fates.of_page[:] = FATES.index(Bucket.NOT_REACHED)
        elif not self._wanted(batch.process):
            account.lost = True
        else:
            self._carry(batch, account)
        account.flows = ended(batch.runs, batch.target, account.fates.of_page)
        return account

    def _carry(self, batch: Batch, account: _Account) -> None:
        found = self._look(batch.runs)
        there = found.node == batch.target
        along = there & (batch.runs.folio[found.row] > 0)  # with another part of their folio, which was asked for
        account.requested += int(along.sum())
        account.fates.settle(Bucket.MOVED, found.page[along])
        account.fates.settle(Bucket.IN_PLACE, found.page[there & ~along])
        left = found.take(~there)
        if self._keeps is not None and batch.runs.kind[0] != Kind.HUGETLB:
            huge = huge_pages(left.pfn, self._keeps)
            whole = huge & batch.counted & self._complete(batch, left)
            account.fates.settle(Bucket.NO_HUGE_PAGE, left.page[huge & ~whole])  # or it has become one since
            self._insist(batch, left.take(whole), account)
            left, batch = left.take(~huge), replace(batch, counted=False)
        self._insist(batch, left, account)

    def _insist(self, batch: Batch, left: Entries, account: _Account) -> None:
        """Ask for pages until each has ended in a bucket: first by folios as planned, then as they are now."""
        first = True
        stalled = 0
        while len(left):
            if account.calls and self._stopped():
                account.fates.settle(Bucket.NOT_REACHED, left.page)
                break
            before = len(left)
            by = _by_folio(batch.runs, left) if first else self._by_frame(left)
            ask = self._ask_counted if batch.counted else self._ask
            left = ask(batch, left, by, account, first)
            first = False
            stalled = stalled + 1 if len(left) == before else 0
            if stalled > STALLED_ROUNDS:
                account.fates.settle(Bucket.PINNED, left.page)
                break
            if stalled:
                time.sleep(0.001 * 2**stalled)
            self._pay(batch.process, len(left))

    def _pay(self, process: int, pages: int) -> None:
        """Wait as the rate says, if there is one: before the pages are looked at, so that the look is fresh."""
        if self._pace is not None and pages and not self._stopped() and self._wanted(process):
            pidfd = None if process == SELF else self._handles[process].pidfd
            self._pace.pay(pages * mmap.PAGESIZE, self._stopped, pidfd)

    def _complete(self, batch: Batch, left: Entries) -> Bools:
        """Return which entries are of folios of which all pages are there still."""
        by = _by_folio(batch.runs, left)
        whole: Bools = np.bincount(by, minlength=1)[by] == batch.runs.unit[left.row]
        return whole

    def _ask_counted(self, batch: Batch, left: Entries, by: Ints, account: _Account, first: bool) -> Entries:
        """Do as `_ask` does for as many huge pages as their target has free now; the others stay."""
        with alone_at(batch.target, self._stopped) as ours, on_one_cpu():
            if not ours:
                account.fates.settle(Bucket.NOT_REACHED, left.page)
                return left.take(np.zeros(0, np.int64))
            may = np.cumsum(_heads(by)) <= self._free(batch)
            if self._keeps is not None and batch.runs.kind[0] != Kind.HUGETLB:
                may &= huge_pages(left.pfn, self._keeps)
            account.fates.settle(Bucket.NO_HUGE_PAGE, left.page[~may])
            left, by = left.take(may), (np.cumsum(may) - 1)[by[may]]
            return self._ask(batch, left, by, account, first) if len(left) else left

    def _free(self, batch: Batch) -> int:
        """Return how many huge pages of a batch's size its target has free now, in its pool or at all."""
        if batch.runs.kind[0] != Kind.HUGETLB:
            return read_free_huge_pages().get(batch.target, 0)
        return read_free_hugepages(batch.target).get(int(batch.runs.unit[0]) * mmap.PAGESIZE, 0)

    def _ask(self, batch: Batch, left: Entries, by: Ints, account: _Account, first: bool) -> Entries:
        """Make one moving call; account for the pages that it settled and return the others, in the order to ask.

        `by`: the row of the page that is asked for to move this one, too; `first`: it is for the first time.
        """
        heads = _heads(by)
        addresses = left.page[heads].astype(np.uint64) * np.uint64(mmap.PAGESIZE)
        pid = os.getpid() if batch.process == SELF else self._handles[batch.process].thread()
        account.calls += 1
        account.addresses += len(addresses)
        account.requested += len(left) if first else 0
        account.retried += 0 if first else len(left)
        reason = 0
        try:
            missed, status = libnuma.move_pages(
                pid, addresses, np.full(len(addresses), batch.target, np.int32), self._flags
            )
        except OSError as error:
            missed, status = len(addresses), np.full(len(addresses), libnuma.NOT_TOLD, np.int32)
            reason = -(error.errno or errno.EIO)
        if not self._alive(batch.process):
            account.requested -= len(left) if first else 0
            account.lost = True
            return left.take(np.zeros(0, np.int64))
        if not missed and bool((status == batch.target).all()) and bool(heads.all()):
            account.fates.settle(Bucket.MOVED, left.page)
            return left.take(np.zeros(0, np.int64))
        return self._settle(batch, left, status[(np.cumsum(heads) - 1)[by]], reason, account)

    def _settle(self, batch: Batch, left: Entries, status: libnuma.Nodes, reason: int, account: _Account) -> Entries:
        """Read where each page is now; of those that a call left out, `status` and `reason` say why."""
        now = self._look(_as_runs(left, batch.process))
        order = np.argsort(left.page)  # as `now` is
        told = status[order][np.isin(left.page[order], now.page, assume_unique=True)]
        arrived = now.node == batch.target
        account.fates.settle(Bucket.MOVED, now.page[arrived])
        again = ~arrived
        final_ones = _FINAL | ({-errno.ENOMEM: Bucket.NO_HUGE_PAGE} if batch.runs.kind[0] == Kind.HUGETLB else {})
        if reason in final_ones:
            account.fates.settle(final_ones[reason], now.page[again])
            again &= False
        for error, bucket in final_ones.items():
            final = again & (told == error)
            account.fates.settle(bucket, now.page[final])
            again &= ~final
        unmovable = again & (told == -errno.EFAULT)
        account.fates.settle(Bucket.PINNED, now.page[unmovable])
        again &= ~unmovable
        busy = told[again] == -errno.EBUSY  # such a page ends the kernel's batch: ask for it after the others
        return now.take(np.concatenate([np.flatnonzero(again)[~busy], np.flatnonzero(again)[busy]]))

    def _wanted(self, process: int) -> bool:
        """Return whether the carrier is there; what we map ourselves outlives the job, and is then nobody's."""
        return self._alive(process) and (process != SELF or any(handle.alive() for handle in self._handles))

    def _alive(self, process: int) -> bool:
        return process == SELF or self._handles[process].alive()

    def _look(self, runs: Runs) -> Entries:
        """Return the present pages of runs, one entry each, ascending."""
        nothing = np.zeros(len(runs), bool)
        ranges = Ranges(runs.process, runs.page, runs.count, runs.backing, runs.index, nothing)
        return Entries.concatenate(list(self._tables.entries(ranges)))

    def _by_frame(self, entries: Entries) -> Ints:
        """Return the row of the page that each moves along with, as parts of one folio by the flags of their frames."""
        rows = np.arange(len(entries))
        if not entries.pfn.any():
            return rows
        joined = joined_to_previous(entries.page, entries.pfn, flags_of(entries.pfn))
        by: Ints = np.maximum.accumulate(np.where(joined, 0, rows))
        return by


def _as_runs(entries: Entries, process: int) -> Runs:
    page = np.sort(entries.page)
    begin = np.append(0, np.flatnonzero(np.diff(page) != 1) + 1)
    count = np.diff(np.append(begin, len(page)))
    nothing = np.zeros(len(begin), np.int64)
    return Runs.of_pages(nothing + process, page[begin], count, nothing, nothing, page[begin])


def _by_folio(runs: Runs, entries: Entries) -> Ints:
    """Return the row of the page that each moves along with, as far as the runs know their folios."""
    rows = np.arange(len(entries))
    step = (entries.page - runs.page[entries.row]) // runs.steps()[entries.row]
    goes_on = (entries.row[1:] == entries.row[:-1]) & (step[1:] == step[:-1])
    by: Ints = np.maximum.accumulate(np.where(np.append(False, goes_on)[: len(rows)], 0, rows))
    parts = np.flatnonzero(runs.folio[entries.row])
    _, first, of = np.unique(runs.folio[entries.row[parts]], return_index=True, return_inverse=True)
    by[parts] = parts[first][of]
    return by


def _heads(by: Ints) -> Bools:
    """Return which pages are asked for."""
    heads: Bools = by == np.arange(len(by))
    return heads


def _pieces(runs: Runs, most: int) -> Iterator[Runs]:
    """Cut runs into parts of at most so many pages, or of one folio that is larger."""
    while len(runs):
        piece, runs = first_pages(runs, max(most, int(runs.unit[0])))
        yield piece


def _tally(plan: Plan, flows: Flows, accounts: Sequence[_Account], split: int) -> Tally:
    counted = np.bincount(flows.fate, flows.count, len(FATES)).astype(np.int64)
    pages = Counter(dict(zip(FATES, counted.tolist(), strict=True)))
    pages[Bucket.IN_PLACE] += plan.in_place
    pages[Bucket.EXCLUDED] += sum(plan.excluded.values())
    pages[Bucket.NO_ROOM] += plan.no_room
    pages[Bucket.NO_HUGE_PAGE] += plan.no_huge_page
    return Tally(
        pages=dict(pages),
        excluded=dict(plan.excluded),
        requested=sum(account.requested for account in accounts),
        retried=sum(account.retried for account in accounts),
        addresses=sum(account.addresses for account in accounts),
        calls=sum(account.calls for account in accounts),
        split=split,
    )
