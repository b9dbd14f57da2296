"""What must hold of the order of a plan: what is worth most goes first, page by page, and stages still hold."""

from __future__ import annotations

from dataclasses import replace
from fractions import Fraction

import numpy as np
from hypothesis import given, settings
from hypothesis import strategies as st

from pageferry.mover import batches
from pageferry_planner.model import ANONYMOUS, Host, Order, Plan, Snapshot, Target, Verdict
from pageferry_planner.placement import place
from support.plans import AMPLE, anonymous, hosts, line_host, referenced_of, snapshot_of, snapshots, targets

JUST_MORE = Fraction(1001, 1000)
"""What rounding may cost, and no more."""


@st.composite
def looked_at(draw: st.DrawFn) -> Snapshot:
    snapshot = draw(snapshots())
    return replace(snapshot, referenced=draw(st.none() | referenced_of(snapshot)))


def worth_of_each(snapshot: Snapshot, plan: Plan) -> list[Fraction]:
    """Return what each move is worth: counted for each of its pages, by hand."""
    mapped = snapshot.vmas
    vmas = list(zip(mapped.backing.tolist(), mapped.index.tolist(), mapped.count.tolist(), strict=True))
    shares: dict[tuple[int, int], Fraction] = {}
    for row, (process, page, count) in enumerate(_rows(snapshot)):
        used = Fraction(1) if snapshot.referenced is None else Fraction(int(snapshot.referenced[row]), count)
        shares |= {(process, at): used for at in range(page, page + count)}
    found = []
    for process, page, count, _, backing, index in zip(*(c.tolist() for c in plan.moves.columns()[:6]), strict=True):
        users = 0
        if backing != ANONYMOUS:
            of = [(lo, lo + length) for other, lo, length in vmas if other == backing]
            users = sum(lo <= at < hi for at in range(index, index + count) for lo, hi in of)
        found.append(max(Fraction(users, count), Fraction(1)) * shares[process, page])
    return found


def _rows(snapshot: Snapshot) -> list[tuple[int, int, int]]:
    runs = snapshot.runs
    return list(zip(runs.process.tolist(), runs.page.tolist(), runs.count.tolist(), strict=True))


@given(looked_at(), targets(), hosts())
@settings(max_examples=100)
def test_what_is_worth_twice_as_much_goes_first_and_what_is_worth_more_never_later(
    snapshot: Snapshot, target: Target, host: Host
) -> None:
    plan = place(snapshot, replace(target, order=Order.WORTH), host)
    assert plan.rank is not None
    ranked = list(zip(worth_of_each(snapshot, plan), plan.rank.tolist(), strict=True))
    for worth, rank in ranked:
        for other, others in ranked:
            if worth >= 2 * JUST_MORE * other and worth > 0:
                assert rank < others
            elif worth >= JUST_MORE * other:
                assert rank <= others


@given(looked_at(), targets(), hosts())
@settings(max_examples=80)
def test_the_order_changes_nothing_but_the_order(snapshot: Snapshot, target: Target, host: Host) -> None:
    by_worth, by_address = (place(snapshot, replace(target, order=order), host) for order in Order)
    for one, other in zip(by_worth.moves.columns(), by_address.moves.columns(), strict=True):
        assert np.array_equal(one, other)
    assert np.array_equal(by_worth.target, by_address.target)
    assert np.array_equal(by_worth.stage, by_address.stage)
    assert by_address.rank is not None
    assert not by_address.rank.any()


@given(looked_at(), targets(), hosts(), st.integers(1, 4))
@settings(max_examples=80)
def test_batches_go_by_stage_then_by_rank_and_hold_every_page_once(
    snapshot: Snapshot, target: Target, host: Host, workers: int
) -> None:
    plan = place(snapshot, target, host)
    assert plan.rank is not None
    of_page: dict[tuple[int, int], tuple[int, int]] = {}
    for row, (process, page, count) in enumerate(
        zip(plan.moves.process.tolist(), plan.moves.page.tolist(), plan.moves.count.tolist(), strict=True)
    ):
        key = (int(plan.stage[row]), int(plan.rank[row]))
        of_page |= {(process, at): key for at in range(page, page + count)}
    seen: list[tuple[int, int]] = []
    pages = []
    for stage in batches(plan, workers):
        for batch in stage:
            runs = batch.runs
            here = [
                (batch.process, at)
                for page, count in zip(runs.page.tolist(), runs.count.tolist(), strict=True)
                for at in range(page, page + count)
            ]
            (key,) = {of_page[address] for address in here}
            seen.append(key)
            pages += here
    assert seen == sorted(seen)
    assert sorted(pages) == sorted(of_page)


def test_shared_by_many_goes_before_private_and_hot_before_cold() -> None:
    rows = [anonymous(0, 5000, 512, 0), (0, 9216, 512, 0, 0, 0), anonymous(0, 7000, 512, 0), (0, 99_840, 512, 0, 1, 0)]
    users = [(process, 9216, 512, 0, 0) for process in range(8)] + [(0, 99_840, 512, 1, 0)]
    snapshot = snapshot_of(rows, homes=[frozenset({0})] * 8, verdicts=[Verdict(True, "job-only")] * 2, vmas=users)
    plan = place(snapshot, Target((1,)), line_host([AMPLE] * 4))
    assert plan.rank is not None
    assert plan.moves.page[plan.rank == 0].tolist() == [9216], "what eight processes map"
    assert set(plan.moves.page[plan.rank == 1].tolist()) == {5000, 7000, 99_840}

    known = replace(snapshot, referenced=np.array([512, 512, 0, 128]))
    plan = place(known, Target((1,)), line_host([AMPLE] * 4))
    assert plan.rank is not None
    assert plan.moves.page[np.argsort(plan.rank)].tolist() == [9216, 5000, 99_840, 7000]


def test_half_a_budget_leaves_at_most_a_third_of_what_it_leaves_in_address_order() -> None:
    """Of what is read from afar afterwards, with a process whose small memory has the shared segment last."""
    ranks, far = 8, 4096
    cold = [anonymous(rank, 700_000, 1024 if rank == ranks - 1 else 8192, 0) for rank in range(ranks)]
    hot = [anonymous(rank, 100_000, 1024, 0) for rank in range(ranks)]
    users = [(rank, 500_224, far, 0, 0) for rank in range(ranks)]
    rows = [*cold, *hot, (ranks - 1, 500_224, far, 0, 0, 0)]
    snapshot = snapshot_of(rows, homes=[frozenset({0})] * ranks, verdicts=[Verdict(True, "job-only")], vmas=users)
    snapshot = replace(snapshot, referenced=np.array([0] * ranks + [1024] * ranks + [far]))
    left = {}
    for order in Order:
        plan = place(snapshot, Target((1,), order=order), line_host([AMPLE] * 4))
        left[order] = _accesses_left(plan, plan.moves.pages() // 2, ranks)
    assert 3 * left[Order.WORTH] <= left[Order.ADDRESS]
    assert left[Order.ADDRESS] > ranks * far // 2


def _accesses_left(plan: Plan, budget: int, ranks: int) -> int:
    """Return how many pages, each once for each process that reads it, are far when so many pages have moved."""
    left = 0
    for stage in batches(plan):
        for batch in stage:
            for page, count in zip(batch.runs.page.tolist(), batch.runs.count.tolist(), strict=True):
                readers = 0 if page >= 700_000 else ranks if page >= 500_000 else 1
                left += readers * max(0, count - max(0, budget))
                budget -= count
    return left
