"""The ledger: where a job's pages were, where they are then, and why, summed by what they are of and by node.

A tally says how many pages ended in each bucket; the ledger says of which backing they were and on which nodes. The two
are sums of the same pages, so before, after and the tally agree to the page: what was = what is + what vanished.
"""

from __future__ import annotations

import math
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

_FEW = 1 << 20
_LEFT = frozenset(Bucket) - {Bucket.MOVED, Bucket.IN_PLACE, Bucket.EXCLUDED}
"""What a second round looks for again."""


def staying(runs: Runs, bucket: Bucket) -> Flows:
    """Return the flows of runs whose pages all end in one bucket, where they are; a row for each run."""
    return Flows(runs.backing, runs.node, runs.node, np.full(len(runs), FATES.index(bucket)), runs.count)


def ended(runs: Runs, target: int, fate: Ints) -> Flows:
    """Return the flows of runs that were to go to `target`; `fate`, a place in FATES, is of each of their pages."""
    pages = np.bincount(fate, minlength=len(FATES))
    parts = []
    for number in np.flatnonzero(pages).tolist():
        part, count = runs, runs.count
        if pages[number] != len(fate):
            count = np.add.reduceat(fate == number, np.cumsum(runs.count) - runs.count, dtype=np.int64)
            part, count = runs.take(count > 0), count[count > 0]
        to = _to(FATES[number], part.node, target)
        parts.append(Flows(part.backing, part.node, to, np.full(len(part), number), count))
    return Flows.concatenate(parts)


def summed(flows: Flows) -> Flows:
    """Return flows that differ in nothing but their count as one."""
    backings = int(flows.backing.max(initial=ANONYMOUS)) + 2
    nodes = int(max(flows.node.max(initial=0), flows.to.max(initial=0))) + 2
    sizes = (backings, nodes, nodes, len(FATES))
    code = np.ravel_multi_index((flows.backing + 1, flows.node, flows.to + 1, flows.fate), sizes)
    if math.prod(sizes) <= max(_FEW, len(flows)):  # runs may be as many as pages: they are not sorted where it can be
        count = np.bincount(code, flows.count, math.prod(sizes))
        code = np.flatnonzero(count)
        count = count[code]
    else:
        code, inverse = np.unique(code, return_inverse=True)
        count = np.bincount(inverse, flows.count, len(code))
    backing, node, to, fate = np.unravel_index(code, sizes)
    return Flows(backing - 1, node, to - 1, fate, count.astype(np.int64))


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
