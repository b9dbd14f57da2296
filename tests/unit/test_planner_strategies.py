"""What must hold of where each strategy wants pages, on hosts with ample room (pack: with any)."""

from __future__ import annotations

import time
from collections import Counter
from dataclasses import replace
from fractions import Fraction

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from pageferry_planner import strategies
from pageferry_planner.model import ANONYMOUS, Host, Snapshot, Strategy, Target, Verdict, WhenFull
from pageferry_planner.placement import place
from pageferry_planner.strategies import wanted_nodes
from support.kernel_rule import where_pages_go
from support.plans import (
    AMPLE,
    HUGE,
    NODES,
    Page,
    anonymous,
    brought_to,
    hosts,
    line_host,
    movable,
    snapshot_of,
    snapshots,
    targets,
    targets_of,
)

MOVES = Verdict(True, "job-only")


def nearest_of(node: int, nodes: set[int], host: Host) -> int:
    return node if node in nodes else next(near for near in host.nearest[node] if near in nodes)


@given(snapshots(), targets([Strategy.RELATIVE]), hosts(ample=True))
@settings(max_examples=100, deadline=None)
def test_relative_puts_each_page_where_the_kernel_would_and_strays_nearby(
    snapshot: Snapshot, target: Target, host: Host
) -> None:
    plan = place(snapshot, target, host)
    nodes = set(target.nodes)
    if target.sources is not None:
        assert set(plan.sources) == target.sources
    goes = where_pages_go(plan.sources, nodes)
    final = brought_to(snapshot, plan)
    for address, page in movable(snapshot).items():
        assert final[address] == (goes[page.node] if page.node in goes else nearest_of(page.node, nodes, host))


@given(snapshots(), targets([Strategy.INTERLEAVE]), hosts(ample=True))
@settings(max_examples=100, deadline=None)
def test_interleave_deals_out_huge_pages_by_their_place(snapshot: Snapshot, target: Target, host: Host) -> None:
    final = brought_to(snapshot, place(snapshot, target, host))
    for address, page in movable(snapshot).items():
        assert final[address] == target.nodes[page.index // HUGE % len(target.nodes)]


def dealt_by_claims(target: Target, pieces: int) -> list[int]:
    """Return the nodes of the first pieces: each goes to the greatest weight for what it has so far, half a piece more.

    Of equal claims the node that is named first has the better one.
    """
    weights, got = dict(target.weights), Counter[int]()
    dealt = []
    for _ in range(pieces):
        claims = {node: Fraction(2 * weights.get(node, 1), 2 * got[node] + 1) for node in target.nodes}
        dealt.append(next(node for node in target.nodes if claims[node] == max(claims.values())))
        got[dealt[-1]] += 1
    return dealt


@given(snapshots(), targets([Strategy.WEIGHTED]), hosts(ample=True))
@settings(max_examples=100, deadline=None)
def test_weighted_deals_out_huge_pages_by_their_place_to_the_node_with_the_best_claim(
    snapshot: Snapshot, target: Target, host: Host
) -> None:
    final = brought_to(snapshot, place(snapshot, target, host))
    pages = movable(snapshot)
    dealt = dealt_by_claims(target, 1 + max((page.index // HUGE for page in pages.values()), default=0))
    assert final == {address: dealt[page.index // HUGE] for address, page in pages.items()}


@given(
    st.lists(st.sampled_from(NODES), min_size=1, unique=True),
    st.dictionaries(st.sampled_from(NODES), st.integers(1, 255)),
    st.integers(0, 2000),
)
@settings(max_examples=40, deadline=None)
def test_weighted_gives_each_node_its_weight_in_any_cycle_of_pieces(
    nodes: list[int], weights: dict[int, int], first: int
) -> None:
    target = Target(tuple(nodes), Strategy.WEIGHTED, weights=tuple(weights.items()))
    shares = {node: weights.get(node, 1) for node in nodes}
    away = 4  # no target: all moves
    snapshot = snapshot_of([anonymous(0, first * HUGE, sum(shares.values()) * HUGE, away)])
    plan = place(snapshot, target, line_host([AMPLE] * 5))
    got = Counter[int]()
    for node, count in zip(plan.target.tolist(), plan.moves.count.tolist(), strict=True):
        got[node] += count
    assert got == {node: share * HUGE for node, share in shares.items()}


def test_weighted_spreads_a_nodes_pieces_so_that_small_memory_has_its_proportion_too() -> None:
    target = Target((1, 0), Strategy.WEIGHTED, weights=((0, 3), (1, 1), (2, 200)))
    plan = place(snapshot_of([anonymous(0, 0, 8 * HUGE, 3)]), target, line_host([AMPLE] * 4))
    assert [targets_of(plan)[0, piece * HUGE] for piece in range(8)] == [0, 1, 0, 0, 0, 1, 0, 0]


@pytest.mark.parametrize(
    ("weights", "cycle"),
    [
        ({0: 200, 1: 100}, [0, 1, 0]),
        ({0: 255, 1: 255}, [0, 1]),
        ({0: 60}, [0]),
        ({0: 30, 2: 60}, [2, 0, 2]),
    ],
)
def test_weights_with_a_common_factor_repeat_as_soon_as_those_without_it(
    weights: dict[int, int], cycle: list[int]
) -> None:
    assert strategies._cycle(tuple(weights), weights).tolist() == cycle


@given(snapshots(), targets([Strategy.INTERLEAVE]), hosts(), st.integers(1, 255))
@settings(max_examples=50, deadline=None)
def test_weighted_with_equal_weights_is_interleave(snapshot: Snapshot, target: Target, host: Host, weight: int) -> None:
    weighted = replace(target, strategy=Strategy.WEIGHTED, weights=tuple((node, weight) for node in target.nodes))
    unsaid = replace(target, strategy=Strategy.WEIGHTED, weights=())
    expected = targets_of(place(snapshot, target, host))
    assert targets_of(place(snapshot, weighted, host)) == expected
    assert targets_of(place(snapshot, unsaid, host)) == expected


@pytest.mark.parametrize("weight", [-1, 0, 256])
def test_a_weight_that_the_kernel_would_not_take_is_refused(weight: int) -> None:
    target = Target((0, 1), Strategy.WEIGHTED, weights=((0, 1), (1, weight)))
    with pytest.raises(ValueError, match="node 1"):
        place(snapshot_of([anonymous(0, 0, 9, 0)]), target, line_host([AMPLE] * 2))


def homes_by_counting(snapshot: Snapshot, page: Page, process: int, nodes: set[int]) -> set[int]:
    """The nodes that the page belongs on: of its process's CPUs, or of those of most processes that map it."""
    home = [set(known.nodes) & nodes or nodes for known in snapshot.processes]
    if page.backing == ANONYMOUS:
        return home[process]
    vmas = snapshot.vmas
    users = {
        int(vmas.process[row])
        for row in range(len(vmas))
        if vmas.backing[row] == page.backing and 0 <= page.index - vmas.index[row] < vmas.count[row]
    }
    votes = Counter(node for user in users for node in home[user])
    return {node for node in votes if votes[node] == max(votes.values())}


@given(snapshots(), targets([Strategy.LOCAL]), hosts(ample=True))
@settings(max_examples=100, deadline=None)
def test_local_brings_memory_to_its_process_and_shared_memory_to_most_of_its_users(
    snapshot: Snapshot, target: Target, host: Host
) -> None:
    final = brought_to(snapshot, place(snapshot, target, host))
    belongs: dict[tuple[int, int, int], int] = {}
    for address, page in movable(snapshot).items():
        of_vma = (address[0] if page.backing == ANONYMOUS else -1, page.backing, page.index)
        if of_vma not in belongs:
            home = homes_by_counting(snapshot, page, address[0], set(target.nodes))
            belongs[of_vma] = nearest_of(page.node, home, host)
        assert final[address] == belongs[of_vma]


def test_local_a_process_that_maps_a_range_twice_is_one_user() -> None:
    thrice = [(0, page, 10, 0, 0) for page in (0, 100, 200)]
    snapshot = snapshot_of(
        [(0, 0, 10, 2, 0, 0)],
        homes=[frozenset({0}), frozenset({1}), frozenset({1})],
        verdicts=[MOVES],
        vmas=[*thrice, (1, 0, 10, 0, 0), (2, 0, 10, 0, 0)],
    )
    plan = place(snapshot, Target((0, 1), Strategy.LOCAL), line_host([AMPLE] * 4))
    assert set(plan.target.tolist()) == {1}


def test_local_a_process_is_no_user_of_what_lies_before_or_behind_its_mappings() -> None:
    snapshot = snapshot_of(
        [(0, 40, 20, 2, 0, 40)],
        homes=[frozenset({0}), frozenset({1}), frozenset({1})],
        verdicts=[MOVES],
        vmas=[(0, 0, 100, 0, 0), (1, 0, 40, 0, 0), (2, 0, 40, 0, 0), (1, 500, 40, 0, 60), (2, 500, 40, 0, 60)],
    )
    plan = place(snapshot, Target((0, 1), Strategy.LOCAL), line_host([AMPLE] * 4))
    assert targets_of(plan) == {(0, page): 0 for page in range(40, 60)}


def test_local_a_run_that_ends_where_a_mapping_does_is_not_cut_there() -> None:
    snapshot = snapshot_of(
        [(0, 0, 100, 2, 0, 0)],
        homes=[frozenset({0}), frozenset({1})],
        verdicts=[MOVES],
        vmas=[(0, 0, 100, 0, 0), (1, 0, 100, 0, 100)],
    )
    plan = place(snapshot, Target((0, 1), Strategy.LOCAL), line_host([AMPLE] * 4))
    assert plan.moves.count.tolist() == [100]


def test_local_each_rank_s_slice_of_a_shared_file_goes_to_that_rank() -> None:
    snapshot = snapshot_of(
        [(0, 0, 100, 3, 0, 0)],
        homes=[frozenset({0}), frozenset({1})],
        verdicts=[MOVES],
        vmas=[(0, 0, 100, 0, 0), (1, 7, 50, 0, 50), (1, 900, 50, 0, 50), (1, 800, 50, 0, 50)],
    )
    plan = place(snapshot, Target((0, 1), Strategy.LOCAL), line_host([AMPLE] * 4))
    final = targets_of(plan)
    assert [final[0, page] for page in (0, 49)] == [0, 0]
    # both ranks use the second half: either is as good, and node 1 is the nearer one
    assert [final[0, page] for page in (50, 99)] == [1, 1]


def test_local_a_page_that_no_process_maps_may_be_on_any_of_the_nodes() -> None:
    """Before, between and behind what is mapped of its file, and of a file of which nothing is."""
    snapshot = snapshot_of(
        [(0, 0, 60, 2, 0, 10), (0, 200, 5, 2, 1, 0), (0, 300, 5, 0, 2, 0)],
        homes=[frozenset({0}), frozenset({3})],
        verdicts=[MOVES, MOVES, MOVES],
        vmas=[(0, 10, 10, 0, 20), (1, 40, 10, 0, 40), (1, 0, 5, 2, 0)],
    )
    plan = place(snapshot, Target((0, 3), Strategy.LOCAL), line_host([AMPLE] * 4))
    final = targets_of(plan)
    assert {final[0, page] for page in (*range(10), *range(20, 30), *range(40, 60), *range(200, 205))} == {3}
    assert {final[0, page] for page in range(10, 20)} == {0}
    assert {final[0, page] for page in (*range(30, 40), *range(300, 305))} == {3}


@pytest.mark.parametrize("kind", ["mappings of one file", "files", "processes"])
def test_local_takes_a_few_times_as_long_as_a_strategy_that_looks_at_no_mapping(kind: str) -> None:
    """With so many of a kind, hundreds of times as long if all were looked at for each."""
    numbers = range(30_000)
    backing = {"mappings of one file": [0] * len(numbers), "files": numbers, "processes": [ANONYMOUS] * len(numbers)}[
        kind
    ]
    process = numbers if kind == "processes" else [0] * len(numbers)
    snapshot = snapshot_of(
        [(process[number], 2 * number, 1, 2, backing[number], 2 * number) for number in numbers],
        homes=[frozenset({0})] * (process[-1] + 1),
        verdicts=[MOVES] * (backing[-1] + 1),
        vmas=[(process[number], 2 * number, 2, backing[number], 2 * number) for number in numbers],
    )

    def seconds(strategy: Strategy) -> float:
        target, host = Target((0, 1), strategy), line_host([AMPLE] * 4)
        began = time.process_time()
        wanted_nodes(snapshot, snapshot.runs, frozenset({2}), target, host)
        return time.process_time() - began

    assert seconds(Strategy.LOCAL) < 40 * max(seconds(Strategy.INTERLEAVE) for _ in range(3))


@given(snapshots(), targets([Strategy.PACK], [WhenFull.PARTIAL, WhenFull.REFUSE]), hosts())
@settings(max_examples=80, deadline=None)
def test_pack_never_brings_a_page_to_a_later_node_than_it_is_on(snapshot: Snapshot, target: Target, host: Host) -> None:
    pages = movable(snapshot)
    for address, node in targets_of(place(snapshot, target, host)).items():
        if pages[address].node in target.nodes:
            assert target.nodes.index(node) < target.nodes.index(pages[address].node)


@given(snapshots(), targets([Strategy.PACK], [WhenFull.PARTIAL]), hosts())
@settings(max_examples=80, deadline=None)
def test_pack_fills_a_node_before_it_uses_the_next(snapshot: Snapshot, target: Target, host: Host) -> None:
    plan = place(snapshot, target, host)
    final = brought_to(snapshot, plan)
    arrived = Counter(targets_of(plan).values())
    for place_, node in enumerate(target.nodes):
        later = [address for address, there in final.items() if there not in target.nodes[: place_ + 1]]
        if later:
            assert host.room[node] - arrived[node] < HUGE


@given(snapshots(), targets([Strategy.PACK]), hosts(ample=True))
@settings(max_examples=100, deadline=None)
def test_pack_with_ample_room_brings_everything_to_the_first_node(
    snapshot: Snapshot, target: Target, host: Host
) -> None:
    assert set(brought_to(snapshot, place(snapshot, target, host)).values()) <= {target.nodes[0]}


@pytest.mark.parametrize("strategy", Strategy)
def test_what_is_in_place_is_never_asked_for(strategy: Strategy) -> None:
    snapshot = snapshot_of([anonymous(0, 0, 512, 0), anonymous(0, 1024, 512, 0)])
    plan = place(snapshot, Target((0,), strategy), line_host([AMPLE] * len(NODES)))
    assert (len(plan.moves), plan.in_place) == (0, 1024)
