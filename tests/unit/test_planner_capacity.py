"""What must hold of room: no node is ever asked to take more than it has, and what has no room is accounted for."""

from __future__ import annotations

import time
from collections import Counter

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from pageferry_planner.capacity import stages
from pageferry_planner.model import Host, Plan, Snapshot, Strategy, Target, WhenFull
from pageferry_planner.placement import place
from support.plans import (
    AMPLE,
    HUGE,
    NODES,
    Address,
    anonymous,
    hosts,
    line_host,
    movable,
    pages_of,
    snapshot_of,
    snapshots,
    targets,
    targets_of,
)

FULLS = list(WhenFull)


def flows(plan: Plan) -> dict[int, Counter[tuple[int, int]]]:
    """Return for each stage how many pages go from which node to which."""
    found: dict[int, Counter[tuple[int, int]]] = {}
    moves = plan.moves
    for stage, here, there, count in zip(
        plan.stage.tolist(), moves.node.tolist(), plan.target.tolist(), moves.count.tolist(), strict=True
    ):
        found.setdefault(stage, Counter())[here, there] += count
    return found


def free_after_each_stage(plan: Plan, host: Host) -> list[dict[int, int]]:
    """Carry the plan out on paper; within a stage, everything arrives before anything has left."""
    free = dict(host.room)
    history = [dict(free)]
    for _, flow in sorted(flows(plan).items()):
        for (_, there), count in flow.items():
            free[there] -= count
        history.append(dict(free))
        for (here, _), count in flow.items():
            free[here] += count
    return history


@given(snapshots(), targets(), hosts())
@settings(max_examples=400, deadline=None)
def test_no_node_is_sent_more_than_its_room_and_what_left_it_in_an_earlier_stage(
    snapshot: Snapshot, target: Target, host: Host
) -> None:
    for free in free_after_each_stage(place(snapshot, target, host), host):
        assert min(free.values()) >= 0


@given(snapshots(), targets(), hosts())
@settings(max_examples=120, deadline=None)
def test_a_run_is_cut_between_huge_pages_only(snapshot: Snapshot, target: Target, host: Host) -> None:
    plan = place(snapshot, target, host)
    if target.strategy is Strategy.LOCAL:
        return  # it cuts where mappings begin and end
    ends = {(process, page + count) for process, page, count in _addresses(snapshot)}
    begins = {(process, page) for process, page, _ in _addresses(snapshot)}
    moves = plan.moves
    for process, page, count, index in zip(
        moves.process.tolist(), moves.page.tolist(), moves.count.tolist(), moves.index.tolist(), strict=True
    ):
        assert (process, page) in begins or page % HUGE == 0
        assert (process, page + count) in ends or (page + count) % HUGE == 0
        assert target.strategy not in {Strategy.INTERLEAVE, Strategy.WEIGHTED} or index % HUGE + count <= HUGE


def _addresses(snapshot: Snapshot) -> list[tuple[int, int, int]]:
    runs = snapshot.runs
    return list(zip(runs.process.tolist(), runs.page.tolist(), runs.count.tolist(), strict=True))


@given(snapshots(), targets(fulls=[WhenFull.REFUSE]), hosts())
@settings(max_examples=120, deadline=None)
def test_refuse_says_what_lacks_exactly_when_something_has_no_room(
    snapshot: Snapshot, target: Target, host: Host
) -> None:
    plan = place(snapshot, target, host)
    assert sum(plan.lacking.values()) == plan.no_room
    assert all(pages > 0 for pages in plan.lacking.values())
    assert set(plan.lacking) <= set(target.nodes)
    for node in plan.lacking:
        assert plan.need[node] > host.room[node]


@given(snapshots(), targets(fulls=[WhenFull.REFUSE]))
@settings(max_examples=80, deadline=None)
def test_with_ample_room_nothing_lacks(snapshot: Snapshot, target: Target) -> None:
    plan = place(snapshot, target, line_host([AMPLE] * len(NODES)))
    assert (plan.lacking, plan.no_room) == ({}, 0)


@given(snapshots(), targets(fulls=[WhenFull.PARTIAL, WhenFull.SPILL]), hosts())
@settings(max_examples=80, deadline=None)
def test_partial_and_spill_never_refuse(snapshot: Snapshot, target: Target, host: Host) -> None:
    assert place(snapshot, target, host).lacking == {}


@given(snapshots(), targets(fulls=[WhenFull.PARTIAL]), hosts(), st.sampled_from(NODES))
@settings(max_examples=120, deadline=None)
def test_partial_leaves_no_huge_page_s_room_unused(snapshot: Snapshot, target: Target, host: Host, node: int) -> None:
    plan = place(snapshot, Target((node,), target.strategy, when_full=WhenFull.PARTIAL), host)
    assert plan.no_room == 0 or host.room[node] - plan.moves.pages() < HUGE


def wanted_by(snapshot: Snapshot, target: Target, host: Host) -> dict[Address, int]:
    """Return where each movable page would go if there were room; not for `pack`, which looks at the room."""
    roomy = Host(dict.fromkeys(host.room, AMPLE), host.nearest)
    targets_ = targets_of(place(snapshot, target, roomy))
    return {address: targets_.get(address, page.node) for address, page in movable(snapshot).items()}


NOT_PACK = [strategy for strategy in Strategy if strategy is not Strategy.PACK]


def distance(wanted: int, node: int, host: Host) -> int:
    return 0 if node == wanted else 1 + host.nearest[wanted].index(node)


@given(snapshots(), targets(NOT_PACK, [WhenFull.PARTIAL, WhenFull.REFUSE]), hosts())
@settings(max_examples=80, deadline=None)
def test_without_spill_a_page_goes_where_it_belongs_or_stays(snapshot: Snapshot, target: Target, host: Host) -> None:
    wanted = wanted_by(snapshot, target, host)
    for address, node in targets_of(place(snapshot, target, host)).items():
        assert node == wanted[address]


@given(snapshots(), targets(NOT_PACK, [WhenFull.SPILL]), hosts())
@settings(max_examples=120, deadline=None)
def test_spill_goes_to_allowed_nodes_that_are_nearer_than_where_the_page_is(
    snapshot: Snapshot, target: Target, host: Host
) -> None:
    wanted = wanted_by(snapshot, target, host)
    pages = movable(snapshot)
    for address, node in targets_of(place(snapshot, target, host)).items():
        page, belongs = pages[address], wanted[address]
        assert node == belongs or node in target.spill
        assert distance(belongs, node, host) < distance(belongs, page.node, host)


@given(
    st.integers(1, 3000),
    hosts(),
    st.permutations(NODES),
    st.frozensets(st.sampled_from(NODES)),
)
@settings(max_examples=300, deadline=None)
def test_spill_fills_the_nearest_allowed_node_first(
    count: int, host: Host, order: list[int], spill: frozenset[int]
) -> None:
    here, there = order[0], order[1]
    snapshot = snapshot_of([anonymous(0, HUGE, count, here)])
    target = Target((there,), sources=frozenset({here}), when_full=WhenFull.SPILL, spill=spill)
    plan = place(snapshot, target, host)
    arrived = Counter(targets_of(plan).values())
    nearer = host.nearest[there][: host.nearest[there].index(here)]
    left = count
    for node in (there, *(near for near in nearer if near in spill)):
        fits = left if left <= host.room[node] else host.room[node] // HUGE * HUGE
        assert arrived[node] == fits
        left -= fits
    assert plan.no_room == left


def plan_of(rows: list[tuple[int, int, int, int, int, int]], target: Target, room: list[int]) -> Plan:
    return place(snapshot_of(rows), target, line_host(room))


def test_spill_never_goes_farther_than_where_the_pages_are() -> None:
    target = Target((0,), when_full=WhenFull.SPILL, spill=frozenset(NODES))
    plan = plan_of([anonymous(0, 0, HUGE, 1)], target, [0, 0, AMPLE, AMPLE])
    assert (len(plan.moves), plan.no_room) == (0, HUGE)


def test_a_chain_leaves_a_node_before_it_enters_it() -> None:
    rows = [anonymous(0, 0, 1000, 0), anonymous(0, 5000, 1000, 1)]
    plan = plan_of(rows, Target((1, 2)), [0, 0, 1000, 0])
    assert plan.lacking == {}
    assert [dict(flow) for _, flow in sorted(flows(plan).items())] == [{(1, 2): 1000}, {(0, 1): 1000}]


def test_room_that_is_left_in_the_same_stage_is_not_counted_on() -> None:
    rows = [anonymous(0, 0, 1000, 0), anonymous(0, 5000, 1000, 1)]
    homes = [frozenset({1}), frozenset({0})]
    swapped = snapshot_of([rows[0], (1, *rows[1][1:])], homes=homes)
    plan = place(swapped, Target((0, 1), Strategy.LOCAL), line_host([0, 0, AMPLE, AMPLE]))
    assert plan.lacking == {0: 1000, 1: 1000}


def test_a_node_s_room_may_be_used_up_to_the_last_page() -> None:
    plan = plan_of([anonymous(0, 7, 1234, 0)], Target((1,)), [0, 1234, 0, 0])
    assert (plan.lacking, plan.moves.pages()) == ({}, 1234)
    plan = plan_of([anonymous(0, 7, 1234, 0)], Target((1,)), [0, 1233, 0, 0])
    assert plan.lacking == {1: 7 + 1234 - 1024}


def test_a_node_that_spilled_pages_would_enter_is_left_in_an_earlier_stage() -> None:
    """1 → 2 has no room and spills to 0, which 0 → 1 leaves only later: that must not become a cycle."""
    rows = [anonymous(0, 0, 1024, 0), anonymous(0, 5120, 1024, 1)]
    target = Target((1, 2), when_full=WhenFull.SPILL, spill=frozenset({0}))
    nearest = {node: tuple(other for other in NODES if other != node) for node in NODES}
    host = Host({0: 512, 1: 0, 2: 512, 3: 0}, nearest)
    plan = place(snapshot_of(rows), target, host)
    assert min(free for after in free_after_each_stage(plan, host) for free in after.values()) >= 0
    assert plan.moves.pages() == 2048


edges = st.lists(st.tuples(st.integers(0, 5), st.integers(0, 5)).filter(lambda edge: edge[0] != edge[1]), max_size=12)


def on_one_way_round(moves: list[tuple[int, int]], here: int, there: int) -> bool:
    """Whether one can go on from `there` and come back to `here`."""
    known = {there}
    while more := {target for source, target in moves if source in known} - known:
        known |= more
    return here in known


@given(edges)
@settings(max_examples=500, deadline=None)
def test_what_leaves_a_node_comes_before_what_enters_it_except_within_a_cycle(moves: list[tuple[int, int]]) -> None:
    source, target = np.array(moves, np.int64).reshape(-1, 2).T
    stage = stages(source, target).tolist()
    for entering, (here, there) in enumerate(moves):
        for leaving, (node, farther) in enumerate(moves):
            if node != there:
                continue
            both = on_one_way_round(moves, here, there) and on_one_way_round(moves, there, farther)
            assert stage[leaving] < stage[entering] or (both and stage[leaving] == stage[entering])


@given(edges)
@settings(max_examples=120, deadline=None)
def test_there_are_no_more_stages_than_nodes_and_moves_without_a_successor_come_first(
    moves: list[tuple[int, int]],
) -> None:
    source, target = np.array(moves, np.int64).reshape(-1, 2).T
    stage = stages(source, target).tolist()
    for number, (_, there) in enumerate(moves):
        assert 0 <= stage[number] < 6
        if there not in source:
            assert stage[number] == 0


@pytest.mark.parametrize("nodes", [16, 64])
def test_moves_from_every_node_to_every_other_are_ordered_quickly_on_large_hosts(nodes: int) -> None:
    moves = [(here, there) for here in range(nodes) for there in range(nodes) if here != there]
    source, target = np.array(moves, np.int64).T
    began = time.process_time()
    assert len(set(stages(source, target).tolist())) == 1
    assert time.process_time() - began < 1


@pytest.mark.parametrize("when_full", FULLS)
def test_no_room_at_all_moves_nothing_and_says_so(when_full: WhenFull) -> None:
    plan = plan_of([anonymous(0, 0, 100, 0)], Target((1,), when_full=when_full), [0, 0, 0, 0])
    assert (plan.moves.pages(), plan.no_room, plan.total()) == (0, 100, 100)
    assert plan.lacking == ({1: 100} if when_full is WhenFull.REFUSE else {})
    assert pages_of(plan.moves) == {}
