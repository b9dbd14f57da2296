"""Does it fit? Unique pages for each node against its room, in the order in which nodes are vacated.

A move never reclaims what others need: pages without room go to the next nearest node or stay, as the target says.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass
from itertools import product

import numpy as np

from pageferry_planner.columns import Bools, Ints
from pageferry_planner.model import Host, Runs, Target, WhenFull

_NODE_BITS = 16

HUGE_PAGES = 512
"""Runs are cut at multiples of this page number, so that no huge page is cut in two."""


@dataclass(frozen=True, slots=True)
class Fit:
    """Runs, cut where room ended, the node each ends on (`final`; its own node: it stays), and when (`stage`).

    `huge`: which are of huge pages. `lacking`: pages per node that it had no room for; `short`: those of huge pages for
    which it had room, but no free huge page; `unmet`: which runs stay for that.
    """

    runs: Runs
    final: Ints
    stage: Ints
    huge: Bools
    unmet: Bools
    lacking: dict[int, int]
    short: dict[int, int]


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


def fit(runs: Runs, wanted: Ints, huge: Bools, target: Target, host: Host) -> Fit:
    """Return where each run can go, given the host's room and what the target says of a full node.

    `huge`: which runs are of huge pages and go to free huge pages alone, before others take these apart.
    """
    room, free = Counter(host.room), Counter({node: count * HUGE_PAGES for node, count in host.huge.items()})
    lacking, short = Counter[int](), Counter[int]()
    stage = stages(runs.node, wanted)
    kinds = (True, False) if huge.any() else (False,)
    parts: list[Runs] = []
    found: list[tuple[int, int, bool, bool]] = []
    for number in range(int(stage.max(initial=-1)) + 1):
        left, freed = Counter[int](), Counter[int]()
        edges = _edges(runs.node[stage == number], wanted[stage == number])
        for whole, (here, there) in product(kinds, edges):
            rest = runs.take((stage == number) & (huge == whole) & (runs.node == here) & (wanted == there))
            unmet = False
            for choice in _choices(here, there, target, host) if len(rest) else ():
                taken, rest = first_pages(rest, min(room[choice], free[choice]) if whole else room[choice])
                room[choice] -= taken.pages()
                left[here] += taken.pages()
                if whole:
                    free[choice] -= taken.pages()
                    freed[here] += taken.pages()
                parts.append(taken)
                found.append((choice, number, whole, False))
                if choice == there and len(rest):
                    unmet = whole and room[there] >= HUGE_PAGES
                    (short if unmet else lacking)[there] += rest.pages()
            parts.append(rest)
            found.append((here, number, whole, unmet))
        room += left
        free += freed
    columns = np.repeat(np.array(found, np.int64).reshape(-1, 4), list(map(len, parts)), axis=0).T
    final, when, of_huge, unmets = columns[0], columns[1], columns[2] != 0, columns[3] != 0
    return Fit(Runs.concatenate(parts), final, when, of_huge, unmets, dict(lacking), dict(short))


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
    """Return the runs that fit into so many pages, and the rest; one run may be cut."""
    total = np.cumsum(runs.count)
    whole = int(np.searchsorted(total, max(pages, 0), "right"))
    if whole == len(runs):
        return runs, Runs.empty()
    over = max(pages, 0) - (int(total[whole - 1]) if whole else 0)
    page = int(runs.page[whole])
    over = max(0, (page + over) // HUGE_PAGES * HUGE_PAGES - page)
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
