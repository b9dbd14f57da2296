"""Runs of resident pages → plan: what stays by rule, what is in place, what goes where and in which order."""

from __future__ import annotations

import numpy as np

from pageferry_planner.capacity import fit, pages_per_node
from pageferry_planner.huge import cut_huge, whole
from pageferry_planner.ledger import staying
from pageferry_planner.model import (
    MOST_WEIGHT,
    Bucket,
    Flows,
    Host,
    HugePages,
    Plan,
    Runs,
    Snapshot,
    Target,
    WhenFull,
)
from pageferry_planner.strategies import sources_of, wanted_nodes
from pageferry_planner.worth import ranks


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
    movable = runs.take(~kept)
    on_purpose = np.isin(movable.node, list(target.left_alone))
    special, movable = movable.take(on_purpose), movable.take(~on_purpose)
    sources = target.sources if target.sources is not None else sources_of(movable, target.special)
    movable, wanted = wanted_nodes(snapshot, movable, sources, target, host)
    misplaced = wanted != movable.node
    moves, wanted = movable.take(misplaced), wanted[misplaced]
    need = pages_per_node(wanted, moves.count)
    huge, torn = np.zeros(len(moves), bool), Runs.empty()
    keeps = target.huge_pages is HugePages.KEEP
    if keeps:
        if snapshot.huge is None:
            raise ValueError("it is not known which pages are huge")
        moves, of, huge = cut_huge(moves, snapshot.huge)
        can = ~huge | whole(moves)
        torn, moves, wanted, huge = moves.take(~can), moves.take(can), wanted[of][can], huge[can]
    placed = fit(moves, wanted, huge, target, host)
    going = placed.final != placed.runs.node
    final = placed.final[going]
    going_runs = placed.runs.take(going)
    unmet = Runs.concatenate([torn, placed.runs.take(~going & placed.unmet)])
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
        target=final,
        stage=placed.stage[going],
        in_place=special.pages() + movable.pages() - moves.pages() - torn.pages(),
        excluded=excluded,
        no_room=no_room.pages(),
        sources=tuple(sorted(sources)),
        need=need,
        room=dict(host.room),
        asked_per_process=snapshot.asked_per_process,
        lacking=placed.lacking if target.when_full is WhenFull.REFUSE else {},
        stays=Flows.concatenate(stays),
        rank=ranks(snapshot, going_runs, target.order),
        huge=placed.huge[going] if keeps else None,
        no_huge_page=unmet.pages(),
        short=placed.short,
        unread=snapshot.unread,
        special=special.pages(),
    )
