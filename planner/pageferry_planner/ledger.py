"""The ledger: where a job's pages were, where they are then, and why, summed by what they are of and by node.

A tally says how many pages ended in each bucket; the ledger says of which backing they were and on which nodes. The two
are sums of the same pages, so before, after and the tally agree to the page: what was = what is + what vanished.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence

import numpy as np

from pageferry_planner.columns import Ints
from pageferry_planner.model import ANONYMOUS, FATES, GONE, Backing, Bucket, Flows, Plan, Runs, Snapshot

Key = tuple[Backing | None, int, int, str]
"""Of which backing (None: memory of one process), from node, to node (GONE: none), and the bucket or, of what is
excluded, the rule."""

Ledger = Counter[Key]
"""Base pages by key."""

_Identity = tuple[str, int, str] | None

_NODE_BITS = 16
_FATE_BITS = 4
_LEFT = frozenset({Bucket.VANISHED, Bucket.PINNED, Bucket.NO_ROOM, Bucket.DENIED, Bucket.NOT_REACHED})
"""What a second round looks for again."""


def staying(runs: Runs, bucket: Bucket) -> Flows:
    """Return the flows of runs whose pages all end in one bucket, where they are."""
    return summed(Flows(runs.backing, runs.node, runs.node, np.full(len(runs), FATES.index(bucket)), runs.count))


def ended(runs: Runs, target: int, fate: Ints) -> Flows:
    """Return the flows of runs that were to go to `target`; `fate`, a place in FATES, is of each of their pages."""
    begin = np.cumsum(runs.count) - runs.count
    parts = []
    for number in np.unique(fate).tolist():
        count = np.add.reduceat(fate == number, begin, dtype=np.int64)
        rows = np.flatnonzero(count)
        node = runs.node[rows]
        to = _to(FATES[number], node, target)
        parts.append(Flows(runs.backing[rows], node, to, np.full(len(rows), number), count[rows]))
    return summed(Flows.concatenate(parts))


def summed(flows: Flows) -> Flows:
    """Return flows that differ in nothing but their count as one, in any order."""
    code = flows.backing + 1
    for column, bits in ((flows.node, _NODE_BITS), (flows.to + 1, _NODE_BITS), (flows.fate, _FATE_BITS)):
        code = (code << bits) + column
    _, first, inverse = np.unique(code, return_index=True, return_inverse=True)
    one = flows.take(first)
    count = np.bincount(inverse, flows.count, len(first)).astype(np.int64)
    return Flows(one.backing, one.node, one.to, one.fate, count)


def unmoved(plan: Plan) -> Flows:
    """Return the flows of a plan that is refused: what was to move has no room."""
    return Flows.concatenate([plan.stays, staying(plan.moves, Bucket.NO_ROOM)])


def ledger(snapshot: Snapshot, flows: Sequence[Flows]) -> Ledger:
    """Return the ledger of flows whose backings are those of the snapshot."""
    found: Ledger = Counter()
    every = summed(Flows.concatenate(flows))
    for backing, node, to, fate, count in zip(*(column.tolist() for column in every.columns()), strict=True):
        bucket = FATES[fate]
        why = snapshot.verdicts[backing].rule if bucket is Bucket.EXCLUDED else bucket.value
        found[snapshot.backings[backing] if backing != ANONYMOUS else None, node, to, why] += count
    return found


def merged(first: Ledger, again: Ledger) -> Ledger:
    """Return two rounds as one: what the first had not moved and the second found has the second's fate.

    What the second did not find either has vanished; what it found beyond that has come into being meanwhile, where it
    was found.
    """
    both: Ledger = Counter()
    left: Counter[tuple[_Identity, int]] = Counter()
    named: dict[_Identity, Backing | None] = {}
    for key, pages in first.items():
        backing, node, _, why = key
        named[_identity(backing)] = backing
        if why in _LEFT:
            left[_identity(backing), node] += pages
        else:
            both[key] += pages
    for key, pages in again.items():
        backing, node, to, why = key
        stood_before = why != Bucket.MOVED and why not in _LEFT and node == to
        if not stood_before and why != Bucket.VANISHED:
            both[key] += pages
            left[_identity(backing), node] -= pages
    for (identity, node), pages in left.items():
        if pages > 0:
            both[named[identity], node, GONE, Bucket.VANISHED.value] += pages
    return both


def buckets(of: Ledger) -> dict[Bucket, int]:
    """Return the pages of a ledger by bucket, as a tally has them."""
    pages: Counter[Bucket] = Counter()
    for (_, _, _, why), count in of.items():
        pages[Bucket(why) if why in set(Bucket) else Bucket.EXCLUDED] += count
    return dict(pages)


def _identity(backing: Backing | None) -> _Identity:
    """Return what a backing is known by: another process may know it by another path."""
    return (backing.device, backing.inode, backing.space) if backing is not None else None


def _to(bucket: Bucket, node: Ints, target: int) -> Ints:
    if bucket in {Bucket.MOVED, Bucket.IN_PLACE}:
        return np.full(len(node), target)
    return np.full(len(node), GONE) if bucket is Bucket.VANISHED else node
