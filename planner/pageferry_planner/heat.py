"""What was seen of the use of pages → the snapshot's runs, cut where use changes, and how many pages of each were used.

Who looks, and how, is left to the caller. What nobody could look at counts as used: an order may rest on what is known
to be unused, never on what is not known.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace

import numpy as np

from pageferry_planner.columns import Bools, Columns, Ints
from pageferry_planner.cuts import cut, edges_inside
from pageferry_planner.model import ANONYMOUS, Ranges, Runs, Snapshot

PIECE_PAGES = 512
"""Use is told apart by aligned pieces of so many pages, a huge page, or by larger folios."""

_WHOLE = 1 << 16
"""A share of 1: shares are sums of whole numbers, so that what nobody used comes out as exactly 0."""


@dataclass(frozen=True, slots=True)
class Pieces(Columns):
    """What was seen of pieces of runs, one row each: `run` is a row of the runs, `piece` a page number / PIECE_PAGES.

    `pages`: how many pages of it were looked at, at least 1; `used`: how many of these were used.
    """

    run: Ints
    piece: Ints
    pages: Ints
    used: Ints


def by_piece(snapshot: Snapshot, pieces: Pieces) -> Snapshot:
    """Return the snapshot with what was seen page by page; a piece that comes several times was seen in parts."""
    if not len(pieces):
        return snapshot
    steps = snapshot.runs.steps()[pieces.run]
    at = np.maximum(pieces.piece * PIECE_PAGES - snapshot.runs.page[pieces.run], 0) // steps * steps
    order = np.lexsort((at, pieces.run))
    found = replace(pieces, piece=at).take(order)
    found = _summed(found, (found.run[1:] != found.run[:-1]) | (found.piece[1:] != found.piece[:-1]))
    level = np.where(found.used > 0, np.frexp(found.used / found.pages)[1], np.iinfo(np.int32).min)
    alike = _summed(found, (found.run[1:] != found.run[:-1]) | (level[1:] != level[:-1]))
    later = np.append(False, alike.run[1:] == alike.run[:-1])
    runs, of = cut(snapshot.runs, alike.run[later], alike.piece[later])
    share = np.full(len(runs), _WHOLE)
    share[np.isin(of, alike.run)] = -(-alike.used * _WHOLE // alike.pages)
    return _with(snapshot, runs, share)


def by_mapping(snapshot: Snapshot, pages: Ints, used: Ints) -> Snapshot:
    """Return the snapshot with what was seen of each of its VMAs: so many `pages` in memory, and of these so many used.

    Both are columns beside the VMAs; 0 pages: nothing is known of it. What several map was used as much as in the mean
    over them: times their number, that is how many processes read a page from afar.
    """
    known = pages > 0
    share = np.zeros(len(pages), np.int64)
    share[known] = -(-used[known] * _WHOLE // pages[known])
    rows, offsets = [], []
    for of_runs, of_vmas, at, begin in _spaces(snapshot.runs, snapshot.vmas):
        edges = np.unique(np.concatenate([begin, begin + snapshot.vmas.count[of_vmas]]))
        row, offset = edges_inside(at, snapshot.runs.count[of_runs], edges)
        rows.append(of_runs[row])
        offsets.append(offset)
    nothing = np.zeros(0, np.int64)
    runs, _ = cut(snapshot.runs, np.concatenate([nothing, *rows]), np.concatenate([nothing, *offsets]))
    found = np.full(len(runs), _WHOLE)
    for of_runs, of_vmas, at, begin in _spaces(runs, snapshot.vmas):
        mapped = begin, begin + snapshot.vmas.count[of_vmas]
        number = _covering(mapped, known[of_vmas].astype(np.int64), at)
        total = _covering(mapped, share[of_vmas], at)
        found[of_runs[number > 0]] = -(-total[number > 0] // number[number > 0])
    return _with(snapshot, runs, found)


def _summed(pieces: Pieces, apart: Bools) -> Pieces:
    """Join rows, where no new one begins."""
    begin = np.append(0, np.flatnonzero(apart) + 1)
    pages, used = np.add.reduceat(pieces.pages, begin), np.add.reduceat(pieces.used, begin)
    return Pieces(pieces.run[begin], pieces.piece[begin], pages, used)


def _spaces(runs: Runs, vmas: Ranges) -> Iterator[tuple[Ints, Ints, Ints, Ints]]:
    """Yield for each process's own memory and each backing: rows of runs and of VMAs, and where these begin in it."""
    own = runs.backing == ANONYMOUS
    for process in np.unique(runs.process[own]).tolist():
        rows, of = np.flatnonzero(own & (runs.process == process)), np.flatnonzero(vmas.process == process)
        yield rows, of, runs.page[rows], vmas.page[of]
    for backing in np.unique(runs.backing[~own]).tolist():
        rows, of = np.flatnonzero(runs.backing == backing), np.flatnonzero(vmas.backing == backing)
        yield rows, of, runs.index[rows], vmas.index[of]


def _covering(mapped: tuple[Ints, Ints], value: Ints, at: Ints) -> Ints:
    """Return for each place the sum of the values of the stretches [begin, end) that it lies in."""
    sums = []
    for edge in mapped:
        order = np.argsort(edge)
        sums.append(np.append(0, np.cumsum(value[order]))[np.searchsorted(edge[order], at, "right")])
    covering: Ints = sums[0] - sums[1]
    return covering


def _with(snapshot: Snapshot, runs: Runs, share: Ints) -> Snapshot:
    return replace(snapshot, runs=runs, referenced=-(-runs.count * np.minimum(share, _WHOLE) // _WHOLE))
