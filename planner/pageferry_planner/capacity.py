"""Does it fit? Unique pages for each node against its room, in the order in which nodes are vacated.

A move never reclaims what others need: pages without room go to the next nearest node or stay, as the target says.
hugetlb pages have a room of their own, the pool of their size on the node; so have huge pages that are to be kept.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np

from pageferry_planner.columns import Bools, Ints
from pageferry_planner.model import Host, HugePages, Kind, Runs, Target, WhenFull

_NODE_BITS = 16

HUGE_PAGES = 512
"""Ordinary pages are cut at multiples of this page number: no huge page is cut in two that nobody could tell."""

KEPT = -1
"""As a kind of room: free huge pages for those that are kept whole."""


@dataclass(frozen=True, slots=True)
class Fit:
    """Runs, cut where room ended, the node each ends on (`final`; its own node: it stays), and when (`stage`).

    `lacking`: pages per node that it had no room for; `short`: those of kept huge pages for which it had room, but no
    free huge page; `unmet`: which runs stay for want of a huge page.
    """

    runs: Runs
    final: Ints
    stage: Ints
    unmet: Bools
    lacking: dict[int, int]
    short: dict[int, int]


def kept_whole(runs: Runs, keeps: bool, huge_page: int) -> Bools:
    """Return which runs are of transparent huge pages that are not to be split."""
    kept: Bools = (runs.kind == Kind.FOLIO) & (runs.unit == huge_page) & keeps
    return kept


def kinds_of_room(runs: Runs, target: Target, huge_page: int) -> Iterator[tuple[int, Ints]]:
    """Yield the kinds of room that runs take, and the rows of each, the scarcest first: others take huge pages apart.

    A kind is that of a pool (the pages of its huge pages, times -1), KEPT, or 0: ordinary memory.
    """
    kept = kept_whole(runs, target.huge_pages is HugePages.KEEP, huge_page)
    kind = np.where(runs.kind == Kind.HUGETLB, -runs.unit, np.where(kept, KEPT, 0))
    for number in np.unique(kind).tolist():
        yield number, np.flatnonzero(kind == number)


class Room:
    """What nodes have left of each kind of room, in pages, while a plan is made."""

    def __init__(self, host: Host, target: Target, huge_page: int) -> None:
        self._memory = Counter(host.room)
        self._huge = Counter({node: count * huge_page for node, count in host.huge.items()})
        self._pools = Counter({place: count * place[1] for place, count in host.pools.items()})
        self._surplus = huge_page if target.hugetlb_surplus else 0  # of gigantic pages the kernel makes no more
        self._left: list[tuple[Counter[Any], Any, int]] = []

    def most(self, kind: int, node: int) -> int:
        """Return how many pages of a kind a node can take."""
        if kind >= KEPT:
            return min(self._memory[node], self._huge[node]) if kind == KEPT else self._memory[node]
        more = self._memory[node] // -kind * -kind if -kind <= self._surplus else 0
        return self._pools[node, -kind] + max(more, 0)

    def take(self, kind: int, pages: int, node: int, source: int | None = None) -> None:
        """Take note that so many pages of a kind come to a node; what they leave at `source` is there once it is left.

        A hugetlb page for which the pool has none is made of the node's memory, and its own given back to that.
        """
        shares: list[tuple[Counter[Any], Any, Any, int]] = [(self._memory, node, source, pages)]
        if kind == KEPT:
            shares.append((self._huge, node, source, pages))
        elif kind < KEPT:
            pooled = min(pages, self._pools[node, -kind])
            shares = [
                (self._pools, (node, -kind), (source, -kind), pooled),
                (self._memory, node, source, pages - pooled),
            ]
        for counter, to, here, count in shares:
            counter[to] -= count
            self._left.append((counter, here, count))

    def leave(self) -> None:
        """Give back what has been left since."""
        for counter, here, count in self._left:
            counter[here] += count
        self._left.clear()


def pages_per_node(node: Ints, count: Ints) -> dict[int, int]:
    """Return the sum of `count` for each node."""
    known, inverse = np.unique(node, return_inverse=True)
    pages = np.bincount(inverse, count, len(known)).astype(np.int64)
    return dict(zip(known.tolist(), pages.tolist(), strict=True))


def stages(source: Ints, target: Ints) -> Ints:
    """Return a stage for each move: what leaves a node comes before what enters it, except within a cycle."""
    edges = _edges(source, target)
    nodes = {node for edge in edges for node in edge}
    reach: dict[int, set[int]] = {node: {there for here, there in edges if here == node} for node in nodes}
    for middle in nodes:
        for node in nodes:
            if middle in reach[node]:
                reach[node] |= reach[middle]
    entering: dict[int, int] = {}
    for node in sorted(nodes, key=lambda node: len(reach[node] | {node})):  # what a node reaches comes before it
        below = [entering[there] for there in reach[node] if node not in reach[there]]
        entering[node] = max(below, default=-1) + 1 + (node in reach[node])
    stage = {(here, there): entering[there] - (here in reach[there]) for here, there in edges}
    _, inverse = np.unique(_codes(source, target), return_inverse=True)
    return np.array([stage[edge] for edge in edges], np.int64)[inverse]


def fit(runs: Runs, wanted: Ints, target: Target, host: Host, huge_page: int) -> Fit:
    """Return where each run can go, given the host's room and what the target says of a full node.

    `huge_page`: pages of a transparent huge page.
    """
    room = Room(host, target, huge_page)
    lacking, short = Counter[int](), Counter[int]()
    stage = stages(runs.node, wanted)
    parts: list[Runs] = [Runs.empty()]
    found: list[tuple[int, int, bool]] = [(0, 0, False)]
    for number in range(int(stage.max(initial=-1)) + 1):
        now = stage == number
        edges = _edges(runs.node[now], wanted[now])
        for kind, rows in kinds_of_room(runs.take(now), target, huge_page):
            of_kind, to = runs.take(now).take(rows), wanted[now][rows]
            for here, there in edges:
                rest = of_kind.take((of_kind.node == here) & (to == there))
                unmet = False
                for choice in _choices(here, there, target, host) if len(rest) else ():
                    taken, rest = first_pages(rest, room.most(kind, choice))
                    room.take(kind, int(taken.room().sum()), choice, here)
                    parts.append(taken)
                    found.append((choice, number, False))
                    if choice == there and len(rest):
                        unmet = kind < KEPT or (kind == KEPT and room.most(0, there) >= huge_page)
                        (short if unmet and kind == KEPT else lacking)[there] += rest.pages()
                parts.append(rest)
                found.append((here, number, unmet))
        room.leave()
    columns = np.repeat(np.array(found, np.int64), list(map(len, parts)), axis=0).T
    return Fit(Runs.concatenate(parts), columns[0], columns[1], columns[2] != 0, dict(lacking), dict(short))


def _choices(here: int, there: int, target: Target, host: Host) -> Iterable[int]:
    """Return the nodes to try for pages on `here` that belong on `there`, the best first."""
    yield there
    if target.when_full is WhenFull.SPILL:
        for node in host.nearest.get(there, ()):
            if node == here:  # the pages are already as near as what is left
                return
            if node in host.room and node in target.spill:
                yield node


def first_pages(runs: Runs, pages: int) -> tuple[Runs, Runs]:
    """Return the runs that fit where so many pages have room, and the rest; one run may be cut."""
    total = np.cumsum(runs.room())
    whole = int(np.searchsorted(total, max(pages, 0), "right"))
    if whole == len(runs):
        return runs, Runs.empty()
    over = max(pages, 0) - (int(total[whole - 1]) if whole else 0)
    page, step = int(runs.page[whole]), max(int(runs.unit[whole]), int(runs.take(np.array([whole])).steps()[0]))
    over = over // step * step if step > 1 else max(0, (page + over) // HUGE_PAGES * HUGE_PAGES - page)
    if not over:
        return runs.take(np.arange(whole)), runs.take(np.arange(whole, len(runs)))
    head, tail = runs.take(np.arange(whole + 1)), runs.take(np.arange(whole, len(runs)))
    head.count[-1] = over
    for column in (tail.page, tail.index):
        column[0] += over
    tail.count[0] -= over
    return head, tail


def _edges(source: Ints, target: Ints) -> list[tuple[int, int]]:
    return [(code >> _NODE_BITS, code & (1 << _NODE_BITS) - 1) for code in np.unique(_codes(source, target)).tolist()]


def _codes(source: Ints, target: Ints) -> Ints:
    return (source << _NODE_BITS) + target
