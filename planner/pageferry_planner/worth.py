"""What a move is worth: in which order pages are to go, so that a budget that runs out has bought the most.

A page is worth what reads it from afar: as many mappings as it has, and of these, as much as was used of late, where
that is known. Ranks are powers of two apart, so that runs of about the same worth still go in large batches. Which
pages can go before others is `capacity`'s: an order holds within a stage.
"""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

from pageferry_planner.columns import Ints
from pageferry_planner.model import ANONYMOUS, Order, Ranges, Runs, Snapshot


def ranks(snapshot: Snapshot, moves: Runs, order: Order) -> Ints:
    """Return a rank for each run, the lowest goes first; `moves` are the snapshot's runs or parts of them."""
    if order is Order.ADDRESS or not len(moves):
        return np.zeros(len(moves), np.int64)
    worth = mappings(snapshot.vmas, moves)
    if snapshot.referenced is not None:
        worth *= (snapshot.referenced / snapshot.runs.count)[rows_of(snapshot.runs, moves)]
    exponent = np.where(worth > 0, np.frexp(worth)[1], np.iinfo(np.int32).min)
    rank: Ints = np.unique(-exponent.astype(np.int64), return_inverse=True)[1]
    return rank


def mappings(vmas: Ranges, runs: Runs) -> npt.NDArray[np.float64]:
    """Return how many VMAs map a page of each run, in the mean over its pages and at least 1."""
    found = np.ones(len(runs))
    user_rows, run_rows = (np.argsort(table.backing, kind="stable") for table in (vmas, runs))
    for backing in np.unique(runs.backing[runs.backing != ANONYMOUS]).tolist():
        users = vmas.take(_of(vmas.backing, user_rows, backing))
        rows = _of(runs.backing, run_rows, backing)
        lo, hi = runs.index[rows], runs.index[rows] + runs.count[rows]
        mapped = _before(users.index, lo, hi) - _before(users.index + users.count, lo, hi)
        found[rows] = np.maximum(mapped / runs.count[rows], 1)
    return found


def _of(column: Ints, ordered: Ints, value: int) -> Ints:
    """Return the rows that have a value, given all rows in the order of the column."""
    first, last = np.searchsorted(column, [value, value + 1], sorter=ordered)
    return ordered[first:last]


def _before(edges: Ints, lo: Ints, hi: Ints) -> Ints:
    """Return for each of the ranges, summed over its pages, how many of the edges are at or before a page."""
    edges = np.sort(edges)
    first, last = np.searchsorted(edges, lo, "right"), np.searchsorted(edges, hi, "left")
    sums = np.append(0, np.cumsum(edges))  # wraps, where numbers are no real ones', and is right again in a difference
    total: Ints = first * (hi - lo) + (last - first) * hi - (sums[last] - sums[first])
    return total


def rows_of(runs: Runs, parts: Runs) -> Ints:
    """Return the row of the run that each of the parts is of."""
    order = np.lexsort((runs.page, runs.process))
    process, page = runs.process[order], runs.page[order]
    place = np.empty(len(parts), np.int64)
    for number in np.unique(parts.process).tolist():
        first, last = np.searchsorted(process, [number, number + 1])
        rows = parts.process == number
        place[rows] = first + np.searchsorted(page[first:last], parts.page[rows], "right") - 1
    return order[place]
