"""Which of a job's pages are in use: marked, watched for a while in which the job runs, and looked at.

Page by page where the kernel keeps idle bits and page frames are shown to us; otherwise mapping by mapping, by the
referenced bits. What order follows from it is the planner's. Nothing here can fail a move: what cannot be found out is
not known, and the order is by sharers alone.
"""

from __future__ import annotations

import logging
import signal
from collections.abc import Iterator
from contextlib import suppress
from dataclasses import replace
from enum import StrEnum
from pathlib import Path

import numpy as np

from pageferry.errors import PageferryError, Vanished
from pageferry.kernel import capabilities, page_idle, referenced
from pageferry.kernel.pageflags import flags_of, joined_to_previous
from pageferry.snapshot import Taken
from pageferry_planner.columns import Bools, Ints
from pageferry_planner.heat import PIECE_PAGES, Pieces, by_mapping, by_piece
from pageferry_planner.model import Ranges, Snapshot
from pageferry_planner.pages import Entries

_log = logging.getLogger(__name__)

HURRY = signal.SIGUSR1
"""Ends a watch early: the job stands still. Who may be sent it has it blocked; then an early one counts, too."""


def pause(seconds: float) -> None:
    """Wait for so long, while the job runs, or until HURRY."""
    signal.sigtimedwait({HURRY}, seconds)


class Means(StrEnum):
    """How use is told: by idle bits of pages, by referenced bits of mappings, or not at all."""

    PAGES = "page by page"
    MAPPINGS = "mapping by mapping"
    NONE = "not at all"


def means(root: Path = Path("/")) -> Means:
    """Return how use can be told here, and with our privileges."""
    if page_idle.available(root) and "CAP_SYS_ADMIN" in capabilities.effective(root):
        return Means.PAGES
    return Means.MAPPINGS if referenced.available(root) else Means.NONE


def watched(taken: Taken, seconds: float) -> Taken:
    """Return what was taken, with what its job used in so many seconds from now; 0: since it was last marked.

    A job that used nothing stood still, and nothing is known of it.
    """
    by = means()
    if by is Means.NONE or (seconds and not watch(taken, seconds)):
        return taken
    try:
        seen = _pages(taken) if by is Means.PAGES else _mappings(taken)
    except (PageferryError, OSError) as error:
        _log.info("not known what the job uses: %s", error)
        return taken
    if seen.referenced is None or not seen.referenced[seen.movable()].any():
        return taken
    return replace(taken, snapshot=seen)


def watch(taken: Taken, seconds: float) -> bool:
    """Mark the job's movable pages as not used, and wait; return whether that could be done."""
    if marked := _mark(taken):
        pause(seconds)
    return marked


def _mark(taken: Taken) -> bool:
    by, marked = means(), 0
    try:
        if by is Means.PAGES:
            for entries, heads, _ in _looked_at(taken):
                page_idle.mark(entries.pfn[heads])
                marked += len(entries)
        elif by is Means.MAPPINGS:
            for handle in taken.handles:
                with suppress(Vanished):
                    referenced.clear(handle.pid)
                    marked += 1
    except (PageferryError, OSError) as error:
        _log.info("not known what the job uses: %s", error)
        return False
    return marked > 0


def _pages(taken: Taken) -> Snapshot:
    """Return the snapshot with what the idle bits say of its movable pages."""
    parts = []
    for entries, heads, run in _looked_at(taken):
        used = ~page_idle.idle(entries.pfn[heads])[np.cumsum(heads) - 1]
        piece = entries.page // PIECE_PAGES
        begin = np.append(0, np.flatnonzero((run[1:] != run[:-1]) | (piece[1:] != piece[:-1])) + 1)
        pages = np.diff(np.append(begin, len(run)))
        parts.append(Pieces(run[begin], piece[begin], pages, np.add.reduceat(used.astype(np.int64), begin)))
    return by_piece(taken.snapshot, Pieces.concatenate(parts))


def _looked_at(taken: Taken) -> Iterator[tuple[Entries, Bools, Ints]]:
    """Yield the job's movable pages with a page frame: which of them stand for a huge page, and the run of each.

    Of a huge page that goes on from one reading to the next, the second part has no head, and counts as used.
    """
    rows = np.flatnonzero(taken.snapshot.movable())
    runs = taken.snapshot.runs.take(rows)
    ranges = Ranges(runs.process, runs.page, runs.count, runs.backing, runs.index, np.zeros(len(runs), bool))
    for present in taken.tables.entries(ranges):
        entries = present.take(present.pfn != 0)
        if len(entries):
            heads = ~joined_to_previous(entries.page, entries.pfn, flags_of(entries.pfn))
            yield entries, heads, rows[entries.row]


def _mappings(taken: Taken) -> Snapshot:
    """Return the snapshot with what the referenced bits say of its mappings; one that is new since says nothing."""
    vmas = taken.snapshot.vmas
    pages, used = np.zeros(len(vmas), np.int64), np.zeros(len(vmas), np.int64)
    for number, handle in enumerate(taken.handles):
        with suppress(Vanished):
            first, resident, of_these = referenced.read(handle.pid)
            rows = np.flatnonzero(vmas.process == number)
            place = np.minimum(np.searchsorted(first, vmas.page[rows]), max(len(first) - 1, 0))
            known = first[place] == vmas.page[rows] if len(first) else np.zeros(len(rows), bool)
            pages[rows[known]], used[rows[known]] = resident[place[known]], of_these[place[known]]
    return by_mapping(taken.snapshot, pages, used)
