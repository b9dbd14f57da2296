"""What must hold of a plan as a whole: it accounts for every resident page, and requests each at most once."""

from __future__ import annotations

from collections import Counter

import pytest
from hypothesis import given, settings

from pageferry_planner.model import Host, Snapshot, Target, Verdict
from pageferry_planner.placement import place
from support.plans import (
    AMPLE,
    anonymous,
    brought_to,
    hosts,
    line_host,
    movable,
    pages_of,
    snapshot_of,
    snapshots,
    targets,
    targets_of,
)


@given(snapshots(), targets(), hosts())
@settings(max_examples=250, deadline=None)
def test_every_resident_page_is_in_one_count(snapshot: Snapshot, target: Target, host: Host) -> None:
    plan = place(snapshot, target, host)
    assert plan.total() == snapshot.runs.pages()
    assert min(plan.in_place, plan.no_room, *plan.excluded.values(), 0) == 0
    counts = zip(snapshot.runs.backing.tolist(), snapshot.runs.count.tolist(), strict=True)
    kept = sum(count for backing, count in counts if backing >= 0 and not snapshot.verdicts[backing].moves)
    assert sum(plan.excluded.values()) == kept


@given(snapshots(), targets(), hosts())
@settings(max_examples=150, deadline=None)
def test_a_page_is_requested_once_from_where_it_is_to_elsewhere(snapshot: Snapshot, target: Target, host: Host) -> None:
    plan = place(snapshot, target, host)
    pages = movable(snapshot)
    requested = pages_of(plan.moves)
    assert (plan.moves.count > 0).all()
    for address, node in targets_of(plan).items():
        assert requested[address] == pages[address]
        assert node != pages[address].node


@given(snapshots(), targets(), hosts())
@settings(max_examples=100, deadline=None)
def test_what_a_rule_keeps_is_counted_under_that_rule(snapshot: Snapshot, target: Target, host: Host) -> None:
    may_move = movable(snapshot)
    kept = Counter(
        snapshot.verdicts[page.backing].rule
        for address, page in pages_of(snapshot.runs).items()
        if address not in may_move
    )
    assert place(snapshot, target, host).excluded == kept


@given(snapshots(), targets(), hosts(ample=True))
@settings(max_examples=100, deadline=None)
def test_a_plan_that_was_carried_out_leaves_memory_on_target_nodes_only(
    snapshot: Snapshot, target: Target, host: Host
) -> None:
    plan = place(snapshot, target, host)
    assert set(brought_to(snapshot, plan).values()) <= set(target.nodes)
    assert plan.no_room == 0
    assert plan.need == Counter(targets_of(plan).values())
    assert plan.room == host.room


def test_stages_and_targets_have_a_row_for_each_run() -> None:
    rows = [anonymous(0, 0, 1000, 0), anonymous(0, 5000, 1000, 1)]
    plan = place(snapshot_of(rows), Target((1, 2)), line_host([0, 300, 2000, 0]))
    assert len(plan.moves) == len(plan.target) == len(plan.stage)


def test_a_job_without_memory_has_an_empty_plan() -> None:
    plan = place(snapshot_of([]), Target((1,)), line_host([AMPLE] * 4))
    assert (plan.total(), len(plan.moves), plan.sources) == (0, 0, ())


def test_a_job_all_of_whose_memory_stays_has_no_moves() -> None:
    snapshot = snapshot_of([(0, 0, 9, 0, 0, 0)], verdicts=[Verdict(False, "library-list")], vmas=[(0, 0, 9, 0, 0)])
    plan = place(snapshot, Target((1,)), line_host([AMPLE] * 4))
    assert (plan.total(), len(plan.moves), plan.excluded) == (9, 0, {"library-list": 9})


def test_the_snapshot_is_left_as_it_was() -> None:
    snapshot = snapshot_of([anonymous(0, 7, 3000, 0)])
    before = [column.tolist() for column in snapshot.runs.columns()]
    place(snapshot, Target((1,)), line_host([0, 1100, 0, 0]))
    assert [column.tolist() for column in snapshot.runs.columns()] == before


@pytest.mark.parametrize(("nodes", "complaint"), [((), "no target node"), ((1, 9), "no memory on node 9")])
def test_a_target_that_makes_no_sense_is_refused(nodes: tuple[int, ...], complaint: str) -> None:
    with pytest.raises(ValueError, match=complaint):
        place(snapshot_of([anonymous(0, 0, 1, 0)]), Target(nodes), line_host([AMPLE] * 4))
