"""Runs of resident pages → plan: what stays by rule, what is in place, what goes where and in which order."""

from __future__ import annotations

from collections import Counter

import numpy as np

from pageferry_planner.capacity import fit, pages_per_node
from pageferry_planner.columns import Bools, Ints
from pageferry_planner.folios import gathered, parted
from pageferry_planner.ledger import staying
from pageferry_planner.model import (
    MOST_WEIGHT,
    Bucket,
    Flows,
    Host,
    HugePages,
    Kind,
    Plan,
    Runs,
    Snapshot,
    Target,
    WhenFull,
)
from pageferry_planner.strategies import sources_of, wanted_nodes
from pageferry_planner.worth import ranks, rows_of


def place(snapshot: Snapshot, target: Target, host: Host) -> Plan:
    """Return the plan that brings the snapshot's movable pages to the target, each page at most once.

    Raises ValueError if the target names no node, or one that the host has no memory on, or a weight that is none, or
    is to keep huge pages and nobody knows which they are.
    """
    unknown = sorted(set(target.nodes) - set(host.room))
    if unknown or not target.nodes:
        raise ValueError(f"no memory on node {unknown[0]}" if unknown else "no target node")
    for node, weight in target.weights:
        if not 1 <= weight <= MOST_WEIGHT:
            raise ValueError(f"node {node} has weight {weight}, not 1 to {MOST_WEIGHT}")
    runs = snapshot.runs
    kept = ~snapshot.movable()
    excluded: dict[str, int] = {}
    for backing, count in zip(runs.backing[kept].tolist(), runs.count[kept].tolist(), strict=True):
        rule = snapshot.verdicts[backing].rule
        excluded[rule] = excluded.get(rule, 0) + count
    parts = runs.take(~kept)
    on_purpose = np.isin(parts.node, list(target.left_alone))
    special, parts = parts.take(on_purpose), parts.take(~on_purpose)
    movable = gathered(parts)
    sources = target.sources if target.sources is not None else sources_of(movable, target.special)
    movable, wanted = wanted_nodes(snapshot, movable, sources, target, host)
    misplaced = wanted != movable.node
    moves, wanted = movable.take(misplaced), wanted[misplaced]
    keeps = target.huge_pages is HugePages.KEEP
    if keeps and not snapshot.folios:
        raise ValueError("it is not known which pages are huge")
    pooled = moves.kind == Kind.HUGETLB
    need = pages_per_node(wanted[~pooled], moves.count[~pooled])
    pool_need = _pool_need(moves.take(pooled), wanted[pooled])
    torn = keeps & (moves.kind == Kind.PART) & (moves.unit == snapshot.huge_page)
    stays_torn, moves, wanted = moves.take(torn), moves.take(~torn), wanted[~torn]
    placed = fit(moves, wanted, target, host, snapshot.huge_page)
    going = placed.final != placed.runs.node
    going_runs = placed.runs.take(going)
    rank = ranks(snapshot, going_runs, target.order)
    going_runs, of = parted(going_runs, parts)
    unmet = Runs.concatenate([stays_torn, placed.runs.take(~going & placed.unmet)])
    no_room = placed.runs.take(~going & ~placed.unmet)
    stays = (
        staying(runs.take(kept), Bucket.EXCLUDED),
        staying(Runs.concatenate([movable.take(~misplaced), special]), Bucket.IN_PLACE),
        staying(no_room, Bucket.NO_ROOM),
        staying(unmet, Bucket.NO_HUGE_PAGE),
    )
    return Plan(
        page_bytes=snapshot.page_bytes,
        processes=snapshot.processes,
        moves=going_runs,
        target=placed.final[going][of],
        stage=placed.stage[going][of],
        in_place=special.pages() + movable.pages() - moves.pages() - stays_torn.pages(),
        excluded=excluded,
        no_room=no_room.pages(),
        sources=tuple(sorted(sources)),
        need=need,
        room=dict(host.room),
        asked_per_process=snapshot.asked_per_process,
        lacking=placed.lacking if target.when_full is WhenFull.REFUSE else {},
        stays=Flows.concatenate(stays),
        rank=rank[of],
        keeps=keeps,
        surplus=target.hugetlb_surplus,
        no_huge_page=unmet.pages(),
        short=placed.short,
        unread=snapshot.unread,
        special=special.pages(),
        pool_need=pool_need,
        pools=dict(host.pools),
    )


def may_move(snapshot: Snapshot, target: Target, host: Host) -> Bools:
    """Return which of the snapshot's runs have pages that belong elsewhere, whether there is room for them or not."""
    rows = np.flatnonzero(snapshot.movable() & ~np.isin(snapshot.runs.node, list(target.left_alone)))
    runs = snapshot.runs.take(rows)
    sources = target.sources if target.sources is not None else sources_of(runs, target.special)
    parts, wanted = wanted_nodes(snapshot, runs, sources, target, host)
    found = np.zeros(len(snapshot.runs), bool)
    found[rows[np.unique(rows_of(runs, parts.take(wanted != parts.node)))]] = True
    return found


def _pool_need(runs: Runs, wanted: Ints) -> dict[tuple[int, int], int]:
    """Return how many hugetlb pages are to come to each node, by node and size in pages."""
    need: Counter[tuple[int, int]] = Counter()
    for node, unit, count in zip(wanted.tolist(), runs.unit.tolist(), runs.count.tolist(), strict=True):
        need[node, unit] += count // unit
    return dict(need)
