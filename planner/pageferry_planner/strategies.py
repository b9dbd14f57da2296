"""Which node a page belongs on: relative, local, interleave, pack and weighted.

`relative` is the kernel's own rule (do_migrate_pages() in mm/mempolicy.c), so that first-touch placement survives.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import replace

import numpy as np

from pageferry_planner.capacity import HUGE_PAGES, Room, first_pages, kinds_of_room, pages_per_node
from pageferry_planner.columns import Ints
from pageferry_planner.cuts import cut, edges_inside
from pageferry_planner.model import ANONYMOUS, Host, HugePages, Runs, Snapshot, Strategy, Target
from pageferry_planner.users import most_users_nodes

STRAY_SHARE = 16
"""A node that holds less than 1/16 of an even share is no source of the relative map: what is there strayed."""


def wanted_nodes(
    snapshot: Snapshot, runs: Runs, sources: frozenset[int], target: Target, host: Host
) -> tuple[Runs, Ints]:
    """Return the runs, cut where parts of one belong on different nodes, and the node that each belongs on."""
    nodes = frozenset(target.nodes)
    if target.strategy is Strategy.INTERLEAVE:
        return _dealt(runs, target.nodes, {})
    if target.strategy is Strategy.WEIGHTED:
        return _dealt(runs, target.nodes, dict(target.weights))
    if target.strategy is Strategy.PACK:
        return _pack(runs, target, host, snapshot.huge_page)
    if target.strategy is Strategy.LOCAL:
        return _local(snapshot, runs, nodes, host)
    moved = node_map(sources, nodes)
    return runs, _per_value(runs.node, lambda node: moved.get(node, nearest(node, nodes, host)))


def node_map(sources: frozenset[int], nodes: frozenset[int]) -> dict[int, int]:
    """Return where each source node's pages go, by the kernel's rule.

    The i-th old node goes to the i-th new one, modulo their number (node_remap()); but when the numbers differ, an old
    node that is also a new one keeps its pages (do_migrate_pages()).
    """
    old, new = sorted(sources), sorted(nodes)
    return {
        node: node if len(old) != len(new) and node in nodes else new[place % len(new)]
        for place, node in enumerate(old)
    }


def sources_of(runs: Runs, special: frozenset[int] = frozenset()) -> frozenset[int]:
    """Return the nodes that hold the job's memory, without special ones and those where only some pages strayed."""
    runs = runs.take(~np.isin(runs.node, list(special)))
    pages = pages_per_node(runs.node, runs.count)
    least = sum(pages.values()) / max(len(pages), 1) / STRAY_SHARE
    return frozenset(node for node, count in pages.items() if count >= least)


def nearest(node: int, nodes: frozenset[int], host: Host) -> int:
    """Return the one of `nodes` that is nearest to `node`: itself, if it is one of them."""
    if node in nodes:
        return node
    return next((near for near in host.nearest.get(node, ()) if near in nodes), min(nodes))


def _dealt(runs: Runs, nodes: tuple[int, ...], weights: Mapping[int, int]) -> tuple[Runs, Ints]:
    """Deal the pages out in pieces of a huge page's size, or larger folios, by their place in the backing or space."""
    pieces = np.unique(
        np.concatenate(
            [
                np.zeros(0, np.int64),
                *(
                    np.arange(lo, hi, HUGE_PAGES)
                    for lo, hi in zip(
                        (runs.index // HUGE_PAGES * HUGE_PAGES).tolist(),
                        (runs.index + runs.count).tolist(),
                        strict=True,
                    )
                ),
            ]
        )
    )
    runs = _cut_at(runs, pieces)
    cycle = _cycle(nodes, weights)
    return runs, cycle[(runs.index // np.maximum(runs.unit, HUGE_PAGES)) % len(cycle)]


def _cycle(nodes: tuple[int, ...], weights: Mapping[int, int]) -> Ints:
    """Return the nodes of successive pieces, until they repeat: each as often as its weight says, evenly spread.

    The k-th piece (from 0) of a node of weight w comes at (k + 1/2) / w of the cycle. That is the method of
    Sainte-Laguë: whatever number of pieces comes first, the nodes' shares of them are close to the weights.
    """
    weight = np.array([weights.get(node, 1) for node in nodes], np.int64)
    weight //= np.gcd.reduce(weight)
    node, of = np.repeat(np.array(nodes, np.int64), weight), np.repeat(weight, weight)
    number = np.arange(len(node)) - np.repeat(np.cumsum(weight) - weight, weight)
    return node[np.argsort((number + 0.5) / of, kind="stable")]


def _pack(runs: Runs, target: Target, host: Host, huge_page: int) -> tuple[Runs, Ints]:
    """Fill the nodes in the order given, each up to its room; what is on an earlier node than needed stays there."""
    target = replace(target, huge_pages=HugePages.SPLIT)  # of free huge pages `fit` will ask
    room = Room(host, target, huge_page)
    parts: list[Runs] = [runs.take(np.zeros(0, np.int64))]
    wanted: list[Ints] = [np.zeros(0, np.int64)]
    last = target.nodes[-1]
    for kind, rows in kinds_of_room(runs, target, huge_page):
        left = runs.take(rows)
        for node in target.nodes:
            here = left.node == node
            taken, rest = first_pages(left.take(~here), room.most(kind, node))
            if node == last:
                taken, rest = left.take(~here), Runs.empty()
            room.take(kind, int(taken.room().sum()), node)
            parts += [left.take(here), taken]
            wanted.append(np.full(int(here.sum()) + len(taken), node, np.int64))
            left = rest
    return Runs.concatenate(parts), np.concatenate(wanted)


def _local(snapshot: Snapshot, runs: Runs, nodes: frozenset[int], host: Host) -> tuple[Runs, Ints]:
    """Bring private pages to the nodes of the CPUs of their process, shared ones to where most of their users are."""
    homes = [process.nodes & nodes or nodes for process in snapshot.processes]
    private, shared = (runs.take(rows) for rows in (runs.backing == ANONYMOUS, runs.backing != ANONYMOUS))
    private = private.take(np.argsort(private.process, kind="stable"))
    shared = shared.take(np.argsort(shared.backing, kind="stable"))
    shared, of_users, number = most_users_nodes(shared, snapshot.vmas, homes, nodes)
    sets = list(dict.fromkeys([*homes, *of_users]))
    place = {home: place for place, home in enumerate(sets)}
    of_process, of_set = (np.array([place[home] for home in each], np.int64) for each in (homes, of_users))
    parts = Runs.concatenate([private, shared])
    home = np.concatenate([of_process[private.process], of_set[number]])
    span = int(parts.node.max(initial=0)) + 1
    return parts, _per_value(home * span + parts.node, lambda pair: nearest(pair % span, sets[pair // span], host))


def _per_value(values: Ints, rule: Callable[[int], int]) -> Ints:
    known, inverse = np.unique(values, return_inverse=True)
    return np.array([rule(value) for value in known.tolist()], np.int64)[inverse]


def _cut_at(runs: Runs, edges: Ints) -> Runs:
    """Return the runs cut where `index` is one of the sorted `edges`."""
    return cut(runs, *edges_inside(runs.index, runs.count, edges))[0]
