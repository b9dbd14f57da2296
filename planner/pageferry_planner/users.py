"""Where the users of a file run: runs of its pages are cut where the users change, and each part has the users' nodes.

One sweep over the places where mappings begin and end, whatever number of files and mappings there are.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Sequence

import numpy as np

from pageferry_planner.columns import Ints
from pageferry_planner.cuts import cut, edges_inside
from pageferry_planner.model import Ranges, Runs


def most_users_nodes(
    runs: Runs, vmas: Ranges, homes: Sequence[frozenset[int]], nobodys: frozenset[int]
) -> tuple[Runs, list[frozenset[int]], Ints]:
    """Return runs of files, cut where their users change; sets of nodes; and for each part the number of its set.

    `homes`: the nodes of each process. A part's set has the nodes on which most of its users are, a process that maps
    it several times being one; `nobodys` where no process maps it.
    """
    vmas = vmas.take(np.isin(vmas.backing, runs.backing))
    lo, hi, begin, end = vmas.index, vmas.index + vmas.count, runs.index, runs.index + runs.count
    # A place in a file as one number: the file's, and the rank of the index among all that occur.
    indexes = np.unique(np.concatenate([lo, hi, begin, end]))

    def places(backing: Ints, index: Ints) -> Ints:
        return backing * len(indexes) + np.searchsorted(indexes, index, "right") - 1

    changes = np.concatenate([places(vmas.backing, lo), places(vmas.backing, hi)])
    edges = np.unique(changes)
    at = places(runs.backing, begin)
    row, rank = edges_inside(at, places(runs.backing, end) - at, edges)
    parts, _ = cut(runs, row, indexes[(at[row] + rank) % max(len(indexes), 1)] - begin[row])
    stretch = np.searchsorted(edges, places(parts.backing, parts.index), "right") - 1

    order = np.argsort(changes, kind="stable")
    users = np.concatenate([vmas.process, vmas.process])[order].tolist()
    comes = np.repeat([True, False], len(vmas))[order].tolist()
    number = {nobodys: 0}
    of_stretch = np.zeros(len(edges) + 1, np.int64)  # the last, -1: before all mappings
    ends = np.searchsorted(changes[order], edges, "right")
    used = np.unique(stretch[stretch >= 0])
    for place, nodes in _sweep(users, comes, ends.tolist(), used.tolist(), homes):
        of_stretch[place] = number.setdefault(nodes or nobodys, len(number))
    return parts, list(number), of_stretch[stretch]


def _sweep(
    users: Sequence[int],
    comes: Sequence[bool],
    ends: Sequence[int],
    wanted: Sequence[int],
    homes: Sequence[frozenset[int]],
) -> Iterator[tuple[int, frozenset[int]]]:
    """Yield the nodes of most users in each stretch that is wanted; where there are none, no nodes.

    `users` come and go, in the order of the places; in stretch i those have that are before `ends[i]` in it.
    """
    mappings: Counter[int] = Counter()
    votes: Counter[int] = Counter()
    done = 0
    for stretch in wanted:
        for change in range(done, ends[stretch]):
            user = users[change]
            before = mappings[user] > 0
            mappings[user] += 1 if comes[change] else -1
            if before != (mappings[user] > 0):
                for node in homes[user]:
                    votes[node] += -1 if before else 1
        done = ends[stretch]
        most = max(votes.values(), default=0)
        yield stretch, frozenset(node for node, count in votes.items() if count == most > 0)
