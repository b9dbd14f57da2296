"""Where pages go: the relative map is the kernel's own, page by page; and the other strategies, on real pages."""

from __future__ import annotations

import random
from collections import Counter

import pytest

from guest.proof import prove
from guest.ranks import HUGE, SHARED, Memory, Rank, job
from guest.witness import node_vector
from pageferry import ferry
from pageferry.kernel import libnuma
from pageferry_planner.model import Strategy, Target

PAGES = 240


def scattered(rank: Rank, nodes: tuple[int, ...], seed: int) -> Memory:
    """Return memory whose pages lie on nodes at random, the same for every rank with the same seed."""
    memory = rank.map(PAGES)
    chosen = random.Random(seed)
    page = 0
    while page < PAGES:
        upto = min(PAGES, page + chosen.randint(1, 12))
        memory.write(page, upto, node=chosen.choice(nodes))
        page = upto
    return memory


@pytest.mark.parametrize(
    ("old", "new"),
    [
        ((0,), (2,)),
        ((0, 1), (1, 2)),
        ((0, 1, 2), (2, 3)),
        *(
            pytest.param(*nodes, marks=pytest.mark.long)
            for nodes in (
                ((0, 1), (2, 3)),
                ((0, 1), (0, 3)),
                ((1, 2), (0, 1)),
                ((0, 1, 2), (1, 2, 3)),
                ((0,), (2, 3)),
                ((0, 1, 2), (3,)),
                ((0, 1, 2, 3), (1, 2)),
                ((0,), (0, 3)),
                ((1, 3), (0, 1, 2)),
                ((0, 3), (0, 1, 2, 3)),
                ((0, 1, 2, 3), (0, 1, 2, 3)),
            )
        ),
    ],
)
def test_the_relative_map_is_the_kernels_own_page_by_page(old: tuple[int, ...], new: tuple[int, ...]) -> None:
    with job(node=0) as one, job(node=0) as two:
        everywhere = tuple(sorted({*old, *new}))
        by_kernel, by_us = (scattered(made.first, everywhere, seed=len(old) * 10 + len(new)) for made in (one, two))
        before = node_vector(one.first.pid, *by_kernel.span)
        assert node_vector(two.first.pid, *by_us.span) == before
        libnuma.migrate_pages(one.first.pid, old, new)
        prove(two, ferry.Request(Target(new, Strategy.RELATIVE, sources=frozenset(old))))
        assert node_vector(two.first.pid, *by_us.span) == node_vector(one.first.pid, *by_kernel.span)


def test_the_order_in_which_targets_are_named_does_not_change_the_relative_map() -> None:
    with job(node=0) as made:
        memory = scattered(made.first, (0, 1), seed=1)
        before = node_vector(made.first.pid, *memory.span)
        prove(made, ferry.Request(Target((3, 2), sources=frozenset({0, 1}))))
        assert node_vector(made.first.pid, *memory.span) == [node + 2 for node in before]


def test_local_brings_private_pages_to_their_process_and_shared_ones_to_most_of_their_users() -> None:
    with job(node=0, ranks=4) as made:
        shared = made.first.map(64, made.first.memfd(64), flags=SHARED).write()
        ranks = made.fork(4)
        own = [rank.map(64).write(seed=number) for number, rank in enumerate(ranks)]
        for rank, cpu in zip(ranks, (4, 6, 6, 7), strict=True):
            rank.ask("affinity", [cpu])
            shared.of(rank).read()
        made.end(made.ranks[3])
        made.end(made.ranks[2])
        made.end(made.ranks[1])
        prove(made, ferry.Request(Target((2, 3), Strategy.LOCAL)))
        assert [set(node_vector(memory.rank.pid, *memory.span)) for memory in own] == [{2}, {3}, {3}, {3}]
        assert set(node_vector(ranks[0].pid, *shared.span)) == {3}


def test_interleave_deals_pages_out_over_the_targets_in_huge_pages_worth() -> None:
    with job(node=0) as made:
        memory = made.first.map(8 * HUGE, made.first.memfd(8 * HUGE), flags=SHARED).write()
        prove(made, ferry.Request(Target((1, 2, 3), Strategy.INTERLEAVE)))
        nodes = node_vector(made.first.pid, *memory.span)
        pieces = [set(nodes[at : at + HUGE]) for at in range(0, len(nodes), HUGE)]
        assert pieces == [{1}, {2}, {3}, {1}, {2}, {3}, {1}, {2}]


def test_weighted_deals_pages_out_over_the_targets_by_their_weights() -> None:
    with job(node=0) as made:
        memory = made.first.map(8 * HUGE, made.first.memfd(8 * HUGE), flags=SHARED).write()
        prove(made, ferry.Request(Target((1, 2), Strategy.WEIGHTED, weights=((1, 3),))))
        nodes = node_vector(made.first.pid, *memory.span)
        pieces = [set(nodes[at : at + HUGE]) for at in range(0, len(nodes), HUGE)]
        assert pieces == [{1}, {1}, {2}, {1}] * 2


def test_pack_fills_the_targets_in_the_order_given() -> None:
    with job(node=0) as made:
        memory = made.first.map(2048).write()
        proof = prove(made, ferry.Request(Target((2, 3), Strategy.PACK)))
        assert Counter(node_vector(made.first.pid, *memory.span)) == {2: 2048}
        assert proof.after.not_on(2, 3) == 0
