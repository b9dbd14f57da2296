"""Does it fit? Unique pages for each node against its room, in the order in which nodes are vacated.

A move never reclaims what others need: pages without room go to the next nearest node or stay, as the target says.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

import numpy as np

from pageferry_planner.columns import Ints
from pageferry_planner.model import Host, Runs, Target, WhenFull

_NODE_BITS = 16

HUGE_PAGES = 512
"""Runs are cut at multiples of this page number, so that no huge page is cut in two."""


@dataclass(frozen=True, slots=True)
class Fit:
    """Runs, cut where room ended, the node each ends on (`final`; its own node: it stays), and when (`stage`).

    `lacking`: pages per node that it had no room for.
    """

    runs: Runs
    final: Ints
    stage: Ints
    lacking: dict[int, int]


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


def fit(runs: Runs, wanted: Ints, target: Target, host: Host) -> Fit:
    """Return where each run can go, given the host's room and what the target says of a full node."""
    room = dict(host.room)
    lacking: dict[int, int] = {}
    stage = stages(runs.node, wanted)
    parts: list[Runs] = []
    finals: list[Ints] = []
    when: list[int] = []
    for number in range(int(stage.max(initial=-1)) + 1):
        left: dict[int, int] = {}
        for here, there in _edges(runs.node[stage == number], wanted[stage == number]):
            rest = runs.take((stage == number) & (runs.node == here) & (wanted == there))
            for choice in _choices(here, there, target, host):
                taken, rest = first_pages(rest, room[choice])
                room[choice] -= taken.pages()
                left[here] = left.get(here, 0) + taken.pages()
                parts.append(taken)
                finals.append(np.full(len(taken), choice, np.int64))
                if choice == there and len(rest):
                    lacking[there] = lacking.get(there, 0) + rest.pages()
            parts.append(rest)
            finals.append(rest.node)
        for node, pages in left.items():
            room[node] = room.get(node, 0) + pages
        when += [number] * (len(parts) - len(when))
    final = np.concatenate(finals) if finals else np.zeros(0, np.int64)
    return Fit(Runs.concatenate(parts), final, np.repeat(np.array(when, np.int64), list(map(len, parts))), lacking)


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
