"""What must hold of memory on special nodes (HBM, a GPU's): it stays unless a move names its node, and none comes."""

from __future__ import annotations

from dataclasses import replace

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from pageferry_planner.model import Bucket, Host, Order, Snapshot, Strategy, Target, WhenFull
from pageferry_planner.placement import place
from support.kernel_rule import where_pages_go
from support.plans import (
    AMPLE,
    NODES,
    anonymous,
    fates_of,
    hosts,
    line_host,
    movable,
    snapshot_of,
    snapshots,
    targets,
    targets_of,
)

DDR_AND_HBM = [anonymous(0, 0, 1000, 0), anonymous(0, 5000, 800, 1), anonymous(0, 9000, 600, 2)]
HBM = frozenset({2, 3})


@st.composite
def targets_with_special_nodes(draw: st.DrawFn) -> Target:
    return replace(draw(targets()), special=draw(st.frozensets(st.sampled_from(NODES))))


@given(snapshots(), targets_with_special_nodes(), hosts())
@settings(max_examples=250, deadline=None)
def test_no_page_leaves_a_special_node_that_is_neither_target_nor_source(
    snapshot: Snapshot, target: Target, host: Host
) -> None:
    plan = place(snapshot, target, host)
    stays = target.special - set(target.nodes) - (target.sources or frozenset())
    pages = movable(snapshot)
    assert not {pages[address].node for address in targets_of(plan)} & stays
    assert plan.special == sum(page.node in stays for page in pages.values())
    assert plan.in_place >= plan.special


@given(snapshots(), targets_with_special_nodes(), hosts())
@settings(max_examples=250, deadline=None)
def test_no_page_comes_to_a_special_node_that_is_neither_target_nor_named_for_what_spills(
    snapshot: Snapshot, target: Target, host: Host
) -> None:
    went = set(targets_of(place(snapshot, target, host)).values())
    assert went & target.special <= {*target.nodes, *(target.spill if target.when_full is WhenFull.SPILL else ())}


@given(snapshots(), targets_with_special_nodes(), hosts())
@settings(max_examples=150, deadline=None)
def test_every_resident_page_is_in_one_count(snapshot: Snapshot, target: Target, host: Host) -> None:
    plan = place(snapshot, target, host)
    assert plan.total() == snapshot.runs.pages()
    fates = fates_of(plan.stays)
    assert fates[Bucket.IN_PLACE] == plan.in_place
    assert fates.total() + plan.moves.pages() == snapshot.runs.pages()


@given(snapshots(), targets([Strategy.RELATIVE]), hosts(ample=True))
@settings(max_examples=100, deadline=None)
def test_a_special_node_is_no_source_of_the_relative_map_unless_it_is_named(
    snapshot: Snapshot, target: Target, host: Host
) -> None:
    plan = place(snapshot, replace(target, special=HBM), host)
    if target.sources is not None:
        assert set(plan.sources) == target.sources
    else:
        assert not HBM & set(plan.sources)
    goes, pages = where_pages_go(plan.sources, set(target.nodes)), movable(snapshot)
    for address, node in targets_of(plan).items():
        assert pages[address].node not in goes or node == goes[pages[address].node]


@given(snapshots(), targets(), hosts())
@settings(max_examples=100, deadline=None)
def test_special_nodes_that_the_host_has_not_change_nothing(snapshot: Snapshot, target: Target, host: Host) -> None:
    plain, named = (place(snapshot, one, host) for one in (target, replace(target, special=frozenset({77, 1023}))))
    assert targets_of(named) == targets_of(plain)
    assert (named.in_place, named.special, named.sources) == (plain.in_place, 0, plain.sources)


@pytest.mark.parametrize("strategy", Strategy)
def test_a_job_on_two_nodes_goes_to_two_others_and_its_hbm_data_stays(strategy: Strategy) -> None:
    host = line_host([AMPLE] * 6)
    plan = place(snapshot_of(DDR_AND_HBM), Target((4, 5), strategy, special=HBM), host)
    assert (plan.moves.pages(), plan.special, plan.sources) == (1800, 600, (0, 1))
    if strategy is Strategy.RELATIVE:
        targets = targets_of(plan)
        assert (targets[0, 0], targets[0, 5000]) == (4, 5), "not shifted by a third source"


@pytest.mark.parametrize(
    ("target", "moves", "special"),
    [
        (Target((1,), special=HBM), 1000, 600),
        (Target((1,), sources=frozenset({0}), special=HBM), 1000, 600),
        (Target((1,), sources=frozenset(), special=HBM), 1000, 600),
        (Target((1,), sources=frozenset({2}), special=HBM), 1600, 0),
        (Target((0, 1), sources=frozenset({2, 3}), special=HBM), 600, 0),
        (Target((2,), special=HBM), 1800, 0),
        (Target((3,), special=HBM), 1800, 600),
        (Target((3,), sources=frozenset({0, 2}), special=HBM), 2400, 0),
        (Target((1,), special=frozenset()), 1600, 0),
    ],
    ids=str,
)
def test_hbm_data_moves_only_where_the_move_names_its_node(target: Target, moves: int, special: int) -> None:
    plan = place(snapshot_of(DDR_AND_HBM), target, line_host([AMPLE] * 4))
    assert (plan.moves.pages(), plan.special) == (moves, special)


def test_what_does_not_fit_goes_past_a_nearer_special_node() -> None:
    host = Host({0: 0, 1: 100, 2: AMPLE, 3: AMPLE}, {0: (1, 2, 3), 1: (2, 0, 3), 2: (), 3: ()})
    rows = [anonymous(0, 0, 2048, 3)]
    wanted = Target((1,), when_full=WhenFull.SPILL, spill=frozenset({0, 1}), order=Order.ADDRESS, special=HBM - {3})
    assert place(snapshot_of(rows), wanted, host).no_room == 2048
    named = replace(wanted, spill=frozenset({0, 1, 2}))
    assert set(targets_of(place(snapshot_of(rows), named, host)).values()) == {2}
